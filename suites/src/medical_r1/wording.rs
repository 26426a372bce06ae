//! The wording of items and corpus: `templates.toml` and `corpus.toml`, and how their slots are
//! filled.

use std::collections::BTreeMap;
use std::path::Path;

use karat::{Error, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Language;
use super::facts::Attribute;

/// Templates of one purpose in both languages.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bilingual {
    /// Chinese.
    pub zh: Vec<String>,
    /// English.
    pub en: Vec<String>,
}

impl Bilingual {
    /// The templates in `language`.
    pub fn of(&self, language: Language) -> &[String] {
        match language {
            Language::Zh => &self.zh,
            Language::En => &self.en,
        }
    }
}

/// Templates by attribute.
pub type ByAttribute = BTreeMap<String, Bilingual>;

/// Templates of a comparison.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compare {
    /// The question.
    pub question: Bilingual,
    /// The thought's opening.
    pub ask: Bilingual,
    /// The thought.
    pub think: Bilingual,
    /// The answer, by attribute.
    pub answer: ByAttribute,
}

/// Templates of a question about a patient.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Patient {
    /// The question.
    pub question: Bilingual,
    /// The thought.
    pub think: Bilingual,
    /// The answer.
    pub answer: Bilingual,
}

/// `templates.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Templates {
    system: String,
    attribute: BTreeMap<String, [String; 2]>,
    group: BTreeMap<String, [String; 2]>,
    question: ByAttribute,
    ask: Bilingual,
    ask_interaction: Bilingual,
    lead: ByAttribute,
    think: ByAttribute,
    answer: ByAttribute,
    compare: Compare,
    stop: Patient,
    go: Patient,
}

/// `corpus.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Prose {
    statement: ByAttribute,
    contrast: Bilingual,
    story: Bilingual,
    who: BTreeMap<String, Vec<String>>,
    list: BTreeMap<String, Vec<String>>,
    general: Bilingual,
}

/// All wording. Slots are explained in the files' heads.
#[derive(Clone, Debug)]
pub struct Wording {
    /// The system prompt the suite uses.
    pub system: String,
    attribute: BTreeMap<String, [String; 2]>,
    group: BTreeMap<String, [String; 2]>,
    /// Single questions.
    pub question: ByAttribute,
    /// Openings of a thought.
    pub ask: Bilingual,
    /// Openings of a thought about an interaction.
    pub ask_interaction: Bilingual,
    /// Known points a thought starts from.
    pub lead: ByAttribute,
    /// The decisive sentence of a thought.
    pub think: ByAttribute,
    /// Answers.
    pub answer: ByAttribute,
    /// Comparisons of two drugs.
    pub compare: Compare,
    /// Patients with a contraindication.
    pub stop: Patient,
    /// Patients without one.
    pub go: Patient,
    /// Corpus: statements of one fact.
    pub statement: ByAttribute,
    /// Corpus: two drugs side by side.
    pub contrast: Bilingual,
    /// Corpus: stories with a slot for each attribute.
    pub story: Bilingual,
    /// Corpus: the people in Chinese stories.
    pub who: Vec<String>,
    /// Corpus: lists by shared value; keys like `class_zh`.
    pub list: BTreeMap<String, Vec<String>>,
    /// Corpus: sentences without facts of the table.
    pub general: Bilingual,
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    toml::from_str(&text)
        .map_err(|e| Error::data(e.to_string()).at(path.display()).help("mend the file; its head says the rules"))
}

impl Wording {
    /// Reads `templates.toml` and `corpus.toml` in `dir` and checks that every attribute has
    /// wording.
    ///
    /// # Errors
    /// [`karat::ErrorKind::Data`] where a file is malformed or an attribute lacks wording.
    pub fn load(dir: &Path) -> Result<Self> {
        let (items, prose) = (dir.join("templates.toml"), dir.join("corpus.toml"));
        let t: Templates = read(&items)?;
        let p: Prose = read(&prose)?;
        for attribute in Attribute::ALL.map(Attribute::name) {
            for (table, path) in
                [(&t.question, &items), (&t.think, &items), (&t.answer, &items), (&p.statement, &prose)]
            {
                if table.get(attribute).is_none_or(|b| b.zh.is_empty() || b.en.is_empty()) {
                    return Err(Error::data(format!("no wording for the attribute {attribute}"))
                        .at(path.display())
                        .help("add templates in both languages"));
                }
            }
        }
        Ok(Wording {
            system: t.system,
            attribute: t.attribute,
            group: t.group,
            question: t.question,
            ask: t.ask,
            ask_interaction: t.ask_interaction,
            lead: t.lead,
            think: t.think,
            answer: t.answer,
            compare: t.compare,
            stop: t.stop,
            go: t.go,
            statement: p.statement,
            contrast: p.contrast,
            story: p.story,
            who: p.who.into_values().flatten().collect(),
            list: p.list,
            general: p.general,
        })
    }

    /// What an attribute is called.
    pub fn attribute(&self, attribute: Attribute, language: Language) -> &str {
        named(&self.attribute, attribute.name(), language)
    }

    /// What a group of medicines is called.
    pub fn group(&self, group: &str, language: Language) -> &str {
        named(&self.group, group, language)
    }
}

fn named<'a>(names: &'a BTreeMap<String, [String; 2]>, key: &str, language: Language) -> &'a str {
    names.get(key).map_or("", |n| n[usize::from(language == Language::En)].as_str())
}

/// `text` with a capital first letter.
pub fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |c| c.to_uppercase().chain(chars).collect())
}

/// Replaces every `{slot}` of `template` by its value; a slot that begins with a capital gets it
/// capitalised. A slot without a value stays as it is: tests look for braces.
pub fn fill(template: impl AsRef<str>, slots: &[(&str, &str)]) -> String {
    let template = template.as_ref();
    let mut out = String::with_capacity(template.len() * 2);
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        out.push_str(before);
        let Some((slot, tail)) = after.split_once('}') else {
            out.push('{');
            rest = after;
            continue;
        };
        let lower = slot.to_lowercase();
        match slots.iter().find(|(name, _)| *name == lower) {
            Some((_, value)) if lower == slot => out.push_str(value),
            Some((_, value)) => out.push_str(&capitalized(value)),
            None => out.extend(["{", slot, "}"]),
        }
        rest = tail;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_filled_once_and_capitals_carry_over() {
        assert_eq!(fill("{N} and {n}: {v}.", &[("n", "aspirin"), ("v", "{n}")]), "Aspirin and aspirin: {n}.");
        assert_eq!(fill("{x} stays", &[]), "{x} stays");
    }
}
