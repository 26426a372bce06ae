//! Question, thought, answer: training and held-out items.
//!
//! Two (drug, attribute) pairs of every drug are held out. A training item never states a held-out
//! pair, not even in passing in its thought; a held-out item asks for at least one. So both sets
//! know every drug and every kind of question, and share no asked-for combination.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Language;
use super::dice::Dice;
use super::facts::{Attribute, Drug, Fact, Facts};
use super::wording::{Patient, Wording, fill};

/// Counts of items by kind: single, stop, go, compare.
const TRAIN: [usize; 4] = [330, 50, 45, 75];
const HELD_OUT: [usize; 4] = [84, 14, 14, 20];

/// A (drug id, attribute name) pair.
pub type Pair = (String, String);

/// What can be checked about an answer. All strings occur in the reference answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checks {
    /// The facts asked for.
    pub asked: Vec<Pair>,
    /// Further facts that question or thought mention.
    pub mentioned: Vec<Pair>,
    /// Strings a right answer contains.
    pub key_points: Vec<String>,
    /// The answer's quantities, in order; not the digits of names such as P2Y12.
    pub numbers: Vec<String>,
    /// The answer's units and frequencies of dose and time.
    pub units: Vec<String>,
    /// The answer's words of negation or prohibition.
    pub negations: Vec<String>,
    /// `yes` or `no` where the question is whether a drug may be given.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub decision: Option<String>,
}

/// One line of `train.jsonl` or `heldout.jsonl`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// Unique over both files: kind, drug(s), attribute, language.
    pub id: String,
    /// The (first) drug: items of one drug are not independent.
    pub cluster: String,
    /// `single`, `stop`, `go` or `compare`.
    pub kind: String,
    /// `zh` or `en`.
    pub language: String,
    /// What the data is for; not part of the prompt.
    pub instruction: String,
    /// The user's question.
    pub question: String,
    /// The reasoning.
    pub think: String,
    /// The answer.
    pub answer: String,
    /// What can be checked.
    pub metrics: Checks,
}

/// Both sets, each in a shuffled order.
#[derive(Clone, Debug)]
pub struct Items {
    /// `train.jsonl`.
    pub train: Vec<Item>,
    /// `heldout.jsonl`.
    pub heldout: Vec<Item>,
    /// The held-out pairs.
    pub heldout_pairs: BTreeSet<Pair>,
}

/// JSON Lines of `items`.
pub fn jsonl(items: &[impl serde::Serialize]) -> String {
    items.iter().map(|i| format!("{}\n", serde_json::json!(i))).collect()
}

fn pair(drug: &Drug, attribute: Attribute) -> Pair {
    (drug.id.clone(), attribute.name().to_string())
}

/// Two pairs of every drug, at most one of them among the leads (class, mechanism, indication), so
/// that a training thought always has a point to start from. An interaction that the partner's row
/// states too is never held out.
fn choose_pairs(facts: &Facts, seed: u64) -> BTreeSet<Pair> {
    let mut pairs = BTreeSet::new();
    for drug in &facts.drugs {
        let mutual = |d: &Drug| {
            let partner = |x: &Drug| x.fact(Attribute::Interaction, Language::Zh).and_then(|f| f.partner.clone());
            facts.drugs.iter().any(|o| partner(d).as_ref() == Some(&o.zh) && partner(o).as_ref() == Some(&d.zh))
        };
        let mut pool: Vec<_> = drug.attributes().filter(|a| *a != Attribute::Interaction || !mutual(drug)).collect();
        Dice::new(seed, &format!("held out {}", drug.id)).shuffle(&mut pool);
        let lead = |a: &Attribute| LEADS.contains(a);
        let first = pool[0];
        let second = pool[1..].iter().copied().find(|a| !(lead(&first) && lead(a))).unwrap_or(pool[1]);
        pairs.extend([pair(drug, first), pair(drug, second)]);
    }
    pairs
}

const LEADS: [Attribute; 3] = [Attribute::Class, Attribute::Mechanism, Attribute::Indication];
/// What two drugs are compared in.
const COMPARED: [Attribute; 6] = [
    Attribute::Class,
    Attribute::Mechanism,
    Attribute::Indication,
    Attribute::Dose,
    Attribute::Adverse,
    Attribute::Monitoring,
];

/// Makes both sets.
pub fn make(facts: &Facts, wording: &Wording, seed: u64) -> Items {
    let maker = Maker { wording, seed, held: choose_pairs(facts, seed) };
    let mut kinds: [Vec<Item>; 4] = Default::default();
    for (i, drug) in facts.drugs.iter().enumerate() {
        kinds[0].extend(drug.attributes().filter_map(|a| maker.single(drug, a)));
        kinds[1].extend(maker.patient(drug, Attribute::Contraindication));
        kinds[2].extend(maker.patient(drug, Attribute::Dose));
        for other in facts.drugs[i + 1..].iter().filter(|o| o.group == drug.group) {
            kinds[3].extend(COMPARED.into_iter().filter_map(|a| maker.compare(drug, other, a)));
        }
    }
    let (mut train, mut heldout) = (Vec::new(), Vec::new());
    for (kind, mut items) in kinds.into_iter().enumerate() {
        Dice::new(seed, &format!("order {kind}")).shuffle(&mut items);
        let (held, open): (Vec<_>, Vec<_>) = items.into_iter().partition(|i| maker.asks_held_out(i));
        let open = open.into_iter().filter(|i| !maker.gives_away(i, facts));
        train.extend(open.take(TRAIN[kind]));
        heldout.extend(held.into_iter().take(HELD_OUT[kind]));
    }
    Dice::new(seed, "train").shuffle(&mut train);
    Dice::new(seed, "heldout").shuffle(&mut heldout);
    Items { train, heldout, heldout_pairs: maker.held }
}

struct Maker<'a> {
    wording: &'a Wording,
    seed: u64,
    held: BTreeSet<Pair>,
}

impl Maker<'_> {
    fn asks_held_out(&self, item: &Item) -> bool {
        item.metrics.asked.iter().any(|p| self.held.contains(p))
    }

    /// Whether an item states a held-out pair in passing: as a point it mentions, or because the
    /// held-out value happens to occur in its text (an "antituberculosis drug" gives away that it
    /// is used for tuberculosis).
    fn gives_away(&self, item: &Item, facts: &Facts) -> bool {
        if item.metrics.mentioned.iter().any(|p| self.held.contains(p)) {
            return true;
        }
        let text = [&item.question, &item.think, &item.answer].map(|t| t.to_lowercase()).join(" ");
        item.metrics.asked.iter().filter_map(|(id, _)| facts.get(id)).any(|drug| {
            drug.attributes()
                .filter(|a| self.held.contains(&pair(drug, *a)))
                .any(|a| [Language::Zh, Language::En].iter().any(|l| text.contains(&drug.text(a, *l).to_lowercase())))
        })
    }

    /// About one item in five is English.
    fn start(&self, name: &str) -> (Dice, Language) {
        let mut dice = Dice::new(self.seed, name);
        let language = if dice.percent(20) { Language::En } else { Language::Zh };
        (dice, language)
    }

    fn single(&self, drug: &Drug, attribute: Attribute) -> Option<Item> {
        let w = self.wording;
        let name = format!("single-{}-{}", drug.id, attribute.name());
        let (mut dice, language) = self.start(&name);
        let fact = drug.fact(attribute, language)?;
        let mut leads: Vec<_> =
            LEADS.into_iter().filter(|l| *l != attribute && !self.held.contains(&pair(drug, *l))).collect();
        dice.shuffle(&mut leads);
        let lead = *leads.first()?;
        let slots = [
            ("n", drug.name(language)),
            ("v", fact.value.text.as_str()),
            ("p", fact.partner.as_deref().unwrap_or("")),
            ("a", w.attribute(attribute, language)),
        ];
        let ask = if attribute == Attribute::Interaction { &w.ask_interaction } else { &w.ask };
        let lead_slots = [("n", drug.name(language)), ("v", drug.text(lead, language))];
        let question = fill(dice.pick(w.question.get(attribute.name())?.of(language)), &slots);
        let think = join(
            language,
            &[
                fill(dice.pick(ask.of(language)), &slots),
                fill(dice.pick(w.lead.get(lead.name())?.of(language)), &lead_slots),
                fill(dice.pick(w.think.get(attribute.name())?.of(language)), &slots),
            ],
        );
        let answer = fill(dice.pick(w.answer.get(attribute.name())?.of(language)), &slots);
        let mut keys = fact.value.keys.clone();
        keys.extend(fact.partner.clone());
        let metrics = checks(&answer, vec![pair(drug, attribute)], vec![pair(drug, lead)], keys);
        Some(item(name, drug, "single", language, [question, think, answer], metrics))
    }

    /// A patient with a contraindication (`stop`) or without one, who needs a dose (`go`).
    fn patient(&self, drug: &Drug, attribute: Attribute) -> Option<Item> {
        let stop = attribute == Attribute::Contraindication;
        let (kind, templates): (_, &Patient) =
            if stop { ("stop", &self.wording.stop) } else { ("go", &self.wording.go) };
        let name = format!("{kind}-{}", drug.id);
        let (mut dice, language) = self.start(&name);
        let fact = drug.fact(attribute, language)?;
        let slots = [
            ("n", drug.name(language)),
            ("i", first_of(drug.text(Attribute::Indication, language), language)),
            ("v", fact.value.text.as_str()),
        ];
        let [question, think, answer] =
            [&templates.question, &templates.think, &templates.answer].map(|t| fill(dice.pick(t.of(language)), &slots));
        let mentioned = vec![pair(drug, Attribute::Indication)];
        let mut metrics = checks(&answer, vec![pair(drug, attribute)], mentioned, fact.value.keys.clone());
        metrics.decision = Some(if stop { "no" } else { "yes" }.to_string());
        Some(item(name, drug, kind, language, [question, think, answer], metrics))
    }

    /// Two drugs of a group that differ in `attribute`.
    fn compare(&self, drug: &Drug, other: &Drug, attribute: Attribute) -> Option<Item> {
        let w = &self.wording.compare;
        let name = format!("compare-{}-{}-{}", drug.id, other.id, attribute.name());
        let (mut dice, language) = self.start(&name);
        let of = |d: &Drug| -> Option<Fact> { d.fact(attribute, language).cloned() };
        let (one, two) = (of(drug)?, of(other)?);
        if one.value.text == two.value.text {
            return None;
        }
        let slots = [
            ("n", drug.name(language)),
            ("m", other.name(language)),
            ("v", one.value.text.as_str()),
            ("w", two.value.text.as_str()),
            ("a", self.wording.attribute(attribute, language)),
        ];
        let question = fill(dice.pick(w.question.of(language)), &slots);
        let parts = [fill(dice.pick(w.ask.of(language)), &slots), fill(dice.pick(w.think.of(language)), &slots)];
        let answer = fill(dice.pick(w.answer.get(attribute.name())?.of(language)), &slots);
        let keys = one.value.keys.iter().chain(&two.value.keys).cloned().collect();
        let asked = vec![pair(drug, attribute), pair(other, attribute)];
        let metrics = checks(&answer, asked, Vec::new(), keys);
        Some(item(name, drug, "compare", language, [question, join(language, &parts), answer], metrics))
    }
}

fn join(language: Language, sentences: &[String]) -> String {
    sentences.join(if language == Language::Zh { "" } else { " " })
}

fn item(name: String, drug: &Drug, kind: &str, language: Language, texts: [String; 3], metrics: Checks) -> Item {
    let [question, think, answer] = texts;
    let instruction = match language {
        Language::Zh => "用药知识问答，仅用于软件测试，不构成医疗建议。",
        Language::En => "Questions about medicines, for testing software only; no medical advice.",
    };
    Item {
        id: format!("{name}-{}", language.code()),
        cluster: drug.id.clone(),
        kind: kind.to_string(),
        language: language.code().to_string(),
        instruction: instruction.to_string(),
        question,
        think,
        answer,
        metrics,
    }
}

/// A patient comes with one condition where a drug has several.
fn first_of(indications: &str, language: Language) -> &str {
    let and = if language == Language::Zh { "和" } else { " and " };
    indications.split_once(and).map_or(indications, |(first, _)| first)
}

/// Units that follow a number, the longest first where one begins another.
const UNITS: [&str; 16] = [
    "毫克",
    "微克",
    "克",
    "次",
    "小时",
    "分钟",
    "天",
    "日",
    "micrograms",
    "mg",
    "minutes",
    "hours",
    "days",
    "weeks",
    "g a day",
    "g",
];
const FREQUENCIES: [&str; 11] = [
    "每日",
    "每周",
    "每晚",
    "once daily",
    "twice daily",
    "three times daily",
    "five times daily",
    "once weekly",
    "every evening",
    "per kg",
    "每千克体重",
];
const NEGATIONS: [&str; 13] = [
    "禁用",
    "禁忌",
    "不能",
    "不可使用",
    "不可以",
    "不要",
    "不合适",
    "不超过",
    "避免",
    "must not",
    "contraindicated",
    "not",
    "never",
];

/// Numbers of `answer` that are quantities, with their units: not the digits of names such as
/// P2Y12, 5-羟色胺 or 50S.
fn quantities(answer: &str) -> (Vec<String>, Vec<String>) {
    let (mut numbers, mut units) = (Vec::new(), Vec::new());
    let push = |list: &mut Vec<String>, text: &str| {
        if !list.iter().any(|t| t == text) {
            list.push(text.to_string());
        }
    };
    let name = |c: char| c.is_alphabetic() && !is_han(c);
    let mut at = 0;
    while let Some(start) = answer[at..].find(|c: char| c.is_ascii_digit()).map(|i| at + i) {
        let run = &answer[start..];
        let run = &run[..run.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(run.len())];
        at = start + run.len();
        let run = run.trim_end_matches('.');
        let after = &answer[start + run.len()..];
        let unit = UNITS.into_iter().find(|u| {
            after
                .trim_start_matches(' ')
                .strip_prefix(u)
                .is_some_and(|rest| !u.is_ascii() || word_ends(rest.chars().next()))
        });
        let inside = |c: Option<char>| c.is_some_and(|c| name(c) || c == '-');
        if inside(answer[..start].chars().next_back()) || (unit.is_none() && inside(after.chars().next())) {
            continue;
        }
        push(&mut numbers, run);
        if let Some(unit) = unit {
            push(&mut units, unit);
        }
    }
    for frequency in FREQUENCIES.into_iter().filter(|f| answer.contains(f)) {
        push(&mut units, frequency);
    }
    (numbers, units)
}

fn is_han(c: char) -> bool {
    matches!(c, '\u{3400}'..='\u{9fff}')
}

fn checks(answer: &str, asked: Vec<Pair>, mentioned: Vec<Pair>, keys: Vec<String>) -> Checks {
    let (numbers, units) = quantities(answer);
    let has = |word: &str| {
        let ends = |at: usize| {
            word_ends(answer[..at].chars().next_back()) && word_ends(answer[at + word.len()..].chars().next())
        };
        answer.match_indices(word).any(|(at, _)| !word.is_ascii() || ends(at))
    };
    let negations = NEGATIONS.into_iter().filter(|w| has(w)).map(str::to_string).collect();
    let mut key_points: Vec<String> = Vec::new();
    for key in keys {
        // What begins a sentence in the answer has a capital there; the reference decides.
        let key = if answer.contains(&key) { key } else { super::wording::capitalized(&key) };
        if !key_points.contains(&key) {
            key_points.push(key);
        }
    }
    Checks { asked, mentioned, key_points, numbers, units, negations, decision: None }
}

fn word_ends(neighbour: Option<char>) -> bool {
    neighbour.is_none_or(|c| !c.is_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_found_and_digits_of_names_are_not() {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_string()).collect::<Vec<_>>();
        let (numbers, units) = quantities("P2Y12受体，5-羟色胺，50S；每次0.125至0.25毫克，每日1次。");
        assert_eq!((numbers, units), (owned(&["0.125", "0.25", "1"]), owned(&["毫克", "次", "每日"])));
        let (numbers, units) =
            quantities("Adults usually take 12.5 mg by mouth twice daily with vitamin B6, eGFR below 30.");
        assert_eq!((numbers, units), (owned(&["12.5", "30"]), owned(&["mg", "twice daily"])));
    }
}
