//! The table of facts: `facts.toml`, read and checked.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use karat::{Error, Result};
use serde::Deserialize;

use super::Language;

/// What one can ask about a drug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Attribute {
    /// The pharmacological class.
    Class,
    /// What the drug does in the body.
    Mechanism,
    /// What it is used for.
    Indication,
    /// When it must not be used.
    Contraindication,
    /// The usual adult dose.
    Dose,
    /// Common adverse effects.
    Adverse,
    /// What happens together with another drug.
    Interaction,
    /// What to monitor.
    Monitoring,
    /// What to tell the patient.
    Advice,
    /// What counteracts it; not every drug has one.
    Antidote,
}

impl Attribute {
    /// All attributes, in the table's order.
    pub const ALL: [Attribute; 10] = [
        Attribute::Class,
        Attribute::Mechanism,
        Attribute::Indication,
        Attribute::Contraindication,
        Attribute::Dose,
        Attribute::Adverse,
        Attribute::Interaction,
        Attribute::Monitoring,
        Attribute::Advice,
        Attribute::Antidote,
    ];

    /// The name in the files.
    pub fn name(self) -> &'static str {
        match self {
            Attribute::Class => "class",
            Attribute::Mechanism => "mechanism",
            Attribute::Indication => "indication",
            Attribute::Contraindication => "contraindication",
            Attribute::Dose => "dose",
            Attribute::Adverse => "adverse",
            Attribute::Interaction => "interaction",
            Attribute::Monitoring => "monitoring",
            Attribute::Advice => "advice",
            Attribute::Antidote => "antidote",
        }
    }
}

/// A phrase and the parts of it a checker looks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phrase {
    /// The phrase without markup.
    pub text: String,
    /// Key points: substrings of `text`.
    pub keys: Vec<String>,
}

impl Phrase {
    /// Parses `[key] and [key]`; without brackets the whole is one key. `None` where brackets do
    /// not match.
    fn parse(marked: &str) -> Option<Self> {
        let (mut text, mut keys, mut open) = (String::new(), Vec::new(), None);
        for c in marked.chars() {
            match (c, open) {
                ('[', None) => open = Some(text.len()),
                (']', Some(start)) => {
                    keys.push(text[start..].to_string());
                    open = None;
                }
                ('[' | ']', _) => return None,
                _ => text.push(c),
            }
        }
        if keys.is_empty() {
            keys.push(text.clone());
        }
        let complete = open.is_none() && keys.iter().all(|k| !k.is_empty());
        complete.then_some(Phrase { text, keys })
    }
}

/// One attribute of one drug in one language.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// The value; of an interaction, what happens.
    pub value: Phrase,
    /// The partner of an interaction.
    pub partner: Option<String>,
}

/// A drug with its facts.
#[derive(Clone, Debug)]
pub struct Drug {
    /// Its key in the files.
    pub id: String,
    /// The Chinese generic name.
    pub zh: String,
    /// The English generic name, in lower case.
    pub en: String,
    /// The group of medicines it is listed with.
    pub group: String,
    facts: BTreeMap<(Attribute, Language), Fact>,
}

impl Drug {
    /// The name in `language`.
    pub fn name(&self, language: Language) -> &str {
        match language {
            Language::Zh => &self.zh,
            Language::En => &self.en,
        }
    }
    /// A fact, where the drug has it.
    pub fn fact(&self, attribute: Attribute, language: Language) -> Option<&Fact> {
        self.facts.get(&(attribute, language))
    }
    /// The attributes this drug has.
    pub fn attributes(&self) -> impl Iterator<Item = Attribute> + '_ {
        Attribute::ALL.into_iter().filter(|a| self.fact(*a, Language::Zh).is_some())
    }
    /// The plain text of a fact; empty where there is none.
    pub fn text(&self, attribute: Attribute, language: Language) -> &str {
        self.fact(attribute, language).map_or("", |f| f.value.text.as_str())
    }
}

/// The whole table, in the file's order.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The drugs.
    pub drugs: Vec<Drug>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    drug: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    id: String,
    zh: String,
    en: String,
    group: String,
    class: [String; 2],
    mechanism: [String; 2],
    indication: [String; 2],
    contraindication: [String; 2],
    dose: [String; 2],
    adverse: [String; 2],
    interaction: [String; 4],
    monitoring: [String; 2],
    advice: [String; 2],
    antidote: Option<[String; 2]>,
}

impl Row {
    fn into_drug(self) -> Result<Drug, String> {
        let [zh_partner, zh_effect, en_partner, en_effect] = self.interaction;
        let mut rows = vec![
            (Attribute::Class, self.class),
            (Attribute::Mechanism, self.mechanism),
            (Attribute::Indication, self.indication),
            (Attribute::Contraindication, self.contraindication),
            (Attribute::Dose, self.dose),
            (Attribute::Adverse, self.adverse),
            (Attribute::Interaction, [zh_effect, en_effect]),
            (Attribute::Monitoring, self.monitoring),
            (Attribute::Advice, self.advice),
        ];
        rows.extend(self.antidote.map(|a| (Attribute::Antidote, a)));
        let mut facts = BTreeMap::new();
        for (attribute, texts) in rows {
            for (language, marked) in [Language::Zh, Language::En].into_iter().zip(texts) {
                let value = Phrase::parse(&marked).ok_or_else(|| {
                    format!("the {} of {} has an unmatched or empty bracket", attribute.name(), self.id)
                })?;
                let partner = (attribute == Attribute::Interaction).then(|| match language {
                    Language::Zh => zh_partner.clone(),
                    Language::En => en_partner.clone(),
                });
                facts.insert((attribute, language), Fact { value, partner });
            }
        }
        Ok(Drug { id: self.id, zh: self.zh, en: self.en, group: self.group, facts })
    }
}

impl Facts {
    /// Reads and checks the table.
    ///
    /// # Errors
    /// [`karat::ErrorKind::Data`] where the file cannot be read or parsed, a bracket does not
    /// match, or a drug is twice.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        let bad = |what: String| Error::data(what).at(path.display()).help("mend the table; its head says the rules");
        let table: Table = toml::from_str(&text).map_err(|e| bad(e.to_string()))?;
        let drugs = table.drug.into_iter().map(Row::into_drug).collect::<Result<Vec<_>, _>>().map_err(bad)?;
        let mut seen = BTreeSet::new();
        for drug in &drugs {
            for name in [&drug.id, &drug.zh] {
                if !seen.insert(name.clone()) {
                    return Err(bad(format!("{name} is there twice")));
                }
            }
        }
        Ok(Facts { drugs })
    }

    /// The drug whose id is `id`.
    pub fn get(&self, id: &str) -> Option<&Drug> {
        self.drugs.iter().find(|d| d.id == id)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn brackets_mark_key_points_and_leave_the_text() {
        let phrase = Phrase::parse("[恶心]和[腹泻]").unwrap();
        assert_eq!(phrase.text, "恶心和腹泻");
        assert_eq!(phrase.keys, ["恶心", "腹泻"]);
        assert_eq!(Phrase::parse("血糖").unwrap().keys, ["血糖"]);
        for broken in ["[恶心", "恶心]", "[[恶心]]", "[]恶心"] {
            assert_eq!(Phrase::parse(broken), None, "{broken}");
        }
    }
}
