//! Multiple choice over the same facts: one question a held-out (drug, attribute) pair, four
//! options of which one is right.
//!
//! The wrong options are the same attribute of other drugs, so that every option is a plausible
//! answer to the question and none can be told by its form. The pairs are those that no training
//! item of `medical-r1` states.

use serde::{Deserialize, Serialize};

use super::dice::Dice;
use super::facts::{Attribute, Drug};
use super::wording::fill;
use super::{Language, SEED, Source};

/// Options of an item.
const OPTIONS: usize = 4;

/// One line of `medical-r1-choice/heldout.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChoiceItem {
    /// Drug, attribute, language.
    pub id: String,
    /// The drug.
    pub cluster: String,
    /// `zh` or `en`.
    pub language: String,
    /// The question, without the options.
    pub question: String,
    /// What there is to choose from.
    pub options: Vec<String>,
    /// The right option's text.
    pub answer: String,
}

/// One item for every held-out pair that has enough other values to choose from. An interaction is
/// none: its value makes no sense beside another drug's partner.
pub fn make(source: &Source) -> Vec<ChoiceItem> {
    let held = source.items().heldout_pairs;
    let mut items = Vec::new();
    for drug in &source.facts.drugs {
        for attribute in drug.attributes().filter(|a| *a != Attribute::Interaction) {
            if held.contains(&(drug.id.clone(), attribute.name().to_string())) {
                items.extend(item(source, drug, attribute));
            }
        }
    }
    Dice::new(SEED, "order of choices").shuffle(&mut items);
    items
}

fn item(source: &Source, drug: &Drug, attribute: Attribute) -> Option<ChoiceItem> {
    let name = format!("choice-{}-{}", drug.id, attribute.name());
    let mut dice = Dice::new(SEED, &name);
    let language = if dice.percent(20) { Language::En } else { Language::Zh };
    let answer = drug.text(attribute, language).to_string();
    let mut others: Vec<String> = Vec::new();
    for other in source.facts.drugs.iter().filter(|d| d.id != drug.id) {
        let text = other.text(attribute, language);
        // A wrong option must not be a part of the right one, nor the other way round: it would be
        // half right.
        let apart = |a: &str, b: &str| !a.contains(b) && !b.contains(a);
        if !text.is_empty() && apart(text, &answer) && others.iter().all(|o| apart(o, text)) {
            others.push(text.to_string());
        }
    }
    if others.len() < OPTIONS - 1 {
        return None;
    }
    dice.shuffle(&mut others);
    let mut options: Vec<String> = others.into_iter().take(OPTIONS - 1).chain([answer.clone()]).collect();
    dice.shuffle(&mut options);
    let slots = [("n", drug.name(language)), ("a", source.wording.attribute(attribute, language))];
    let question = fill(dice.pick(source.wording.question.get(attribute.name())?.of(language)), &slots);
    Some(ChoiceItem {
        id: format!("{name}-{}", language.code()),
        cluster: drug.id.clone(),
        language: language.code().to_string(),
        question,
        options,
        answer,
    })
}

/// JSON Lines of `items`.
pub fn jsonl(items: &[ChoiceItem]) -> String {
    items.iter().map(|i| format!("{}\n", serde_json::json!(i))).collect()
}
