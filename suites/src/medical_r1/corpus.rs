//! The pretraining corpus: plain prose, one document a line, no question, no chat token, no
//! thought.
//!
//! A fact that is stated in one wording only is learnt but cannot be retrieved in another
//! (Allen-Zhu and Li, "Physics of Language Models 3.1"). So every fact is stated in all templates
//! of its attribute, in documents of changing order and under changing names, and again in cards,
//! stories, contrasts and lists.

use std::collections::{BTreeMap, BTreeSet};

use super::Language;
use super::dice::Dice;
use super::facts::{Attribute, Drug, Facts};
use super::wording::{Wording, capitalized, fill};

/// Encyclopaedic documents per drug.
const ARTICLES: [(Language, usize); 2] = [(Language::Zh, 42), (Language::En, 20)];
/// Cards per drug: label and value, in any order.
const CARDS: [(Language, usize); 2] = [(Language::Zh, 4), (Language::En, 3)];
/// Bilingual glossary lines per drug.
const GLOSSARY: usize = 3;
/// Stories per drug.
const STORIES: [(Language, usize); 2] = [(Language::Zh, 12), (Language::En, 5)];
/// Contrasts with another drug of the group, per drug.
const CONTRASTS: [(Language, usize); 2] = [(Language::Zh, 10), (Language::En, 4)];
/// How often each list is written, its names in another order each time.
const LISTS: usize = 5;
/// Documents of general prose.
const GENERAL: [(Language, usize); 2] = [(Language::Zh, 240), (Language::En, 90)];
/// Names in a list at most.
const LIST_LENGTH: usize = 6;

/// All documents in a shuffled order.
pub fn make(facts: &Facts, wording: &Wording, seed: u64) -> Vec<String> {
    let scribe = Scribe { facts, wording, seed };
    let mut documents = Vec::new();
    for drug in &facts.drugs {
        for (language, count) in ARTICLES {
            documents.extend((0..count).map(|k| scribe.article(drug, language, k)));
        }
        for (language, count) in CARDS {
            documents.extend((0..count).map(|k| scribe.card(drug, language, k)));
        }
        documents.extend((0..GLOSSARY).map(|k| scribe.glossary(drug, k)));
        for (language, count) in STORIES {
            documents.extend((0..count).map(|k| scribe.story(drug, language, k)));
        }
        for (language, count) in CONTRASTS {
            documents.extend((0..count).filter_map(|k| scribe.contrast(drug, language, k)));
        }
    }
    documents.extend(scribe.lists());
    for (language, count) in GENERAL {
        documents.extend((0..count).map(|k| scribe.general(language, k)));
    }
    Dice::new(seed, "corpus").shuffle(&mut documents);
    documents
}

/// A document that is no part of the corpus: the same prose in new documents.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct General {
    /// `article`, `story` or `general`, and its number.
    pub id: String,
    /// `zh` or `en`.
    pub language: &'static str,
    /// The document.
    pub text: String,
}

/// General documents held out of the corpus.
const HELD_OUT_GENERAL: [(Language, usize); 2] = [(Language::Zh, 20), (Language::En, 10)];

/// Prose to see what fine-tuning forgets: one article or story of each drug, of a draw that
/// [`make`] never makes, and general prose. None of these documents is in the corpus; their facts
/// and their wording are.
pub fn held_out(facts: &Facts, wording: &Wording, seed: u64) -> Vec<General> {
    let scribe = Scribe { facts, wording, seed };
    let known: BTreeSet<String> = make(facts, wording, seed).into_iter().collect();
    // Draws beyond those of the corpus; a document that happens to be in it all the same is drawn
    // anew.
    let new = |draw: &dyn Fn(usize) -> String| (1000..).map(draw).find(|text| !known.contains(text));
    let mut documents = Vec::new();
    let mut add = |id: String, language: Language, text: Option<String>| {
        documents.extend(text.map(|text| General { id, language: language.code(), text }));
    };
    for (number, drug) in facts.drugs.iter().enumerate() {
        let language = if number % 3 == 2 { Language::En } else { Language::Zh };
        add(format!("article {}", drug.id), language, new(&|k| scribe.article(drug, language, k)));
    }
    for (language, count) in HELD_OUT_GENERAL {
        for k in 0..count {
            let id = format!("general {} {k}", language.code());
            add(id, language, new(&|j| scribe.general(language, j + 1000 * k)));
        }
    }
    documents
}

struct Scribe<'a> {
    facts: &'a Facts,
    wording: &'a Wording,
    seed: u64,
}

fn space(language: Language) -> &'static str {
    if language == Language::Zh { "" } else { " " }
}

impl Scribe<'_> {
    fn dice(&self, what: &str, drug: &Drug, language: Language, k: usize) -> Dice {
        Dice::new(self.seed, &format!("{what} {} {} {k}", drug.id, language.code()))
    }

    /// All attributes of a drug, or now and then some, one sentence each. Document `k` takes the
    /// `k`-th template of each attribute (from a start of its own), so that over the documents
    /// every template states every fact.
    fn article(&self, drug: &Drug, language: Language, k: usize) -> String {
        let mut dice = self.dice("article", drug, language, k);
        let mut attributes: Vec<_> = drug.attributes().collect();
        dice.shuffle(&mut attributes);
        if dice.percent(25) {
            attributes.truncate(5);
        }
        let mut sentences = Vec::new();
        for (i, attribute) in attributes.into_iter().enumerate() {
            let (Some(fact), Some(templates)) =
                (drug.fact(attribute, language), self.wording.statement.get(attribute.name()))
            else {
                continue;
            };
            let templates = templates.of(language);
            let start = Dice::new(self.seed, &format!("start {} {}", drug.id, attribute.name())).below(templates.len());
            let name = mention(drug, language, i == 0, &mut dice);
            let slots =
                [("n", name.as_str()), ("v", fact.value.text.as_str()), ("p", fact.partner.as_deref().unwrap_or(""))];
            sentences.push(fill(&templates[(start + k) % templates.len()], &slots));
        }
        if dice.percent(20) {
            let general = dice.pick(self.wording.general.of(language)).clone();
            let at = if dice.percent(50) { 0 } else { sentences.len() };
            sentences.insert(at, general);
        }
        sentences.join(space(language))
    }

    fn labelled(&self, drug: &Drug, language: Language, attribute: Attribute) -> String {
        let label = self.wording.attribute(attribute, language);
        let value = drug.text(attribute, language);
        let partner = drug.fact(attribute, language).and_then(|f| f.partner.as_deref());
        match (language, partner) {
            (Language::Zh, None) => format!("{label}：{value}"),
            (Language::Zh, Some(partner)) => format!("{label}：与{partner}合用，{value}"),
            (Language::En, None) => format!("{label}: {value}"),
            (Language::En, Some(partner)) => format!("{label}: with {partner}, {value}"),
        }
    }

    fn card(&self, drug: &Drug, language: Language, k: usize) -> String {
        let mut dice = self.dice("card", drug, language, k);
        let mut attributes: Vec<_> = drug.attributes().collect();
        dice.shuffle(&mut attributes);
        let parts: Vec<_> = attributes.into_iter().map(|a| self.labelled(drug, language, a)).collect();
        match language {
            Language::Zh => format!("{}（{}）。{}。", drug.zh, drug.en, parts.join("；")),
            Language::En => format!("{}. {}.", capitalized(&drug.en), capitalized(&parts.join("; "))),
        }
    }

    fn glossary(&self, drug: &Drug, k: usize) -> String {
        let mut dice = Dice::new(self.seed, &format!("glossary {} {k}", drug.id));
        let mut attributes: Vec<_> = drug.attributes().filter(|a| *a != Attribute::Interaction).collect();
        dice.shuffle(&mut attributes);
        attributes.truncate(4);
        let parts: Vec<_> = attributes
            .into_iter()
            .map(|a| format!("{}，{}", drug.text(a, Language::Zh), drug.text(a, Language::En)))
            .collect();
        format!("{}，{}。{}。", drug.zh, drug.en, parts.join("。"))
    }

    fn story(&self, drug: &Drug, language: Language, k: usize) -> String {
        let mut dice = self.dice("story", drug, language, k);
        let templates = self.wording.story.of(language);
        let age = (24 + dice.below(55)).to_string();
        let who = dice.pick(&self.wording.who).clone();
        let partner = drug.fact(Attribute::Interaction, language).and_then(|f| f.partner.clone()).unwrap_or_default();
        let mut slots = vec![
            ("zh", drug.zh.as_str()),
            ("en", drug.en.as_str()),
            ("age", age.as_str()),
            ("who", who.as_str()),
            ("partner", partner.as_str()),
            ("effect", drug.text(Attribute::Interaction, language)),
        ];
        slots.extend(Attribute::ALL.iter().map(|a| (a.name(), drug.text(*a, language))));
        let start = Dice::new(self.seed, &format!("start story {}", drug.id)).below(templates.len());
        fill(&templates[(start + k) % templates.len()], &slots)
    }

    fn contrast(&self, drug: &Drug, language: Language, k: usize) -> Option<String> {
        let mut dice = self.dice("contrast", drug, language, k);
        let mut others: Vec<_> =
            self.facts.drugs.iter().filter(|o| o.id != drug.id && (o.group == drug.group || dice.percent(5))).collect();
        dice.shuffle(&mut others);
        let attributes: Vec<_> =
            drug.attributes().filter(|a| !matches!(a, Attribute::Interaction | Attribute::Antidote)).collect();
        let mut sentences = Vec::new();
        // Two attributes of one pair: a little paragraph, not a lone line.
        let other = others.first()?;
        for _ in 0..2 {
            let attribute = *dice.pick(&attributes);
            let slots = [
                ("n", drug.name(language)),
                ("m", other.name(language)),
                ("v", drug.text(attribute, language)),
                ("w", other.text(attribute, language)),
                ("a", self.wording.attribute(attribute, language)),
            ];
            sentences.push(fill(dice.pick(self.wording.contrast.of(language)), &slots));
        }
        sentences.dedup();
        Some(sentences.join(space(language)))
    }

    /// Lists of drugs that share a group, a value or a key point.
    fn lists(&self) -> Vec<String> {
        let mut shared: BTreeMap<(String, Language, String), Vec<&str>> = BTreeMap::new();
        for language in [Language::Zh, Language::En] {
            for drug in &self.facts.drugs {
                let mut add = |kind: &str, value: &str| {
                    let key = (format!("{kind}_{}", language.code()), language, value.to_string());
                    let names = shared.entry(key).or_default();
                    if !names.contains(&drug.name(language)) {
                        names.push(drug.name(language));
                    }
                };
                add("group", self.wording.group(&drug.group, language));
                for attribute in drug.attributes() {
                    add(attribute.name(), drug.text(attribute, language));
                    // Only where a key is a thing by itself: what to monitor, what may happen.
                    if matches!(attribute, Attribute::Monitoring | Attribute::Adverse)
                        && let Some(fact) = drug.fact(attribute, language)
                    {
                        fact.value.keys.iter().for_each(|k| add(attribute.name(), k));
                    }
                }
            }
        }
        let mut documents = Vec::new();
        for ((kind, language, value), names) in shared {
            let Some(templates) = self.wording.list.get(&kind).filter(|_| names.len() > 1) else { continue };
            for k in 0..LISTS {
                let mut dice = Dice::new(self.seed, &format!("list {kind} {value} {k}"));
                let mut some = names.clone();
                dice.shuffle(&mut some);
                some.truncate(LIST_LENGTH);
                let list = match (language, some.split_last()) {
                    (Language::En, Some((last, rest))) => format!("{} and {last}", rest.join(", ")),
                    (Language::Zh, Some((last, rest))) => format!("{}和{last}", rest.join("、")),
                    (_, None) => continue,
                };
                documents.push(fill(dice.pick(templates), &[("v", &value), ("l", &list)]));
            }
        }
        documents
    }

    fn general(&self, language: Language, k: usize) -> String {
        let mut dice = Dice::new(self.seed, &format!("general {} {k}", language.code()));
        let mut sentences = self.wording.general.of(language).to_vec();
        dice.shuffle(&mut sentences);
        sentences.truncate(3 + dice.below(4));
        sentences.join(space(language))
    }
}

/// How a drug is called in a sentence: the first time by name, later also as "this drug".
fn mention(drug: &Drug, language: Language, first: bool, dice: &mut Dice) -> String {
    let roll = dice.below(100);
    match (language, first) {
        (Language::Zh, true) if roll < 45 => format!("{}（{}）", drug.zh, drug.en),
        (Language::Zh, true) if roll < 55 => format!("{}（{}）", drug.en, drug.zh),
        (Language::Zh, false) if roll < 14 => "该药".to_string(),
        (Language::Zh, false) if roll < 22 => format!("{}（{}）", drug.zh, drug.en),
        (Language::Zh, _) => drug.zh.clone(),
        (Language::En, true) if roll < 20 => format!("{} ({})", drug.en, drug.zh),
        (Language::En, false) if roll < 14 => "this drug".to_string(),
        (Language::En, _) => drug.en.clone(),
    }
}
