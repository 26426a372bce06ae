//! The committed data of `medical-r1` is what its table gives, and is what it claims to be.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use karat::data::bpe;
use karat_suites::medical_r1::items::{Checks, Item, Items, Pair, jsonl};
use karat_suites::medical_r1::{self, MAX_POSITIONS, Source, VOCAB, generation_config, model_config};

fn source() -> Source {
    Source::load().unwrap()
}

fn committed(name: &str) -> String {
    std::fs::read_to_string(medical_r1::dir().join(name)).unwrap()
}

fn all(items: &Items) -> impl Iterator<Item = &Item> {
    items.train.iter().chain(&items.heldout)
}

fn pairs(checks: &Checks) -> impl Iterator<Item = &Pair> {
    checks.asked.iter().chain(&checks.mentioned)
}

#[test]
fn committed_files_are_what_the_table_gives() {
    let source = source();
    let items = source.items();
    let tokenizer = source.tokenizer().unwrap();
    for (name, text) in [
        ("train.jsonl", jsonl(&items.train)),
        ("heldout.jsonl", jsonl(&items.heldout)),
        ("general.jsonl", jsonl(&source.general())),
        ("base/tokenizer.json", bpe::tokenizer_json(&tokenizer).unwrap()),
        ("base/tokenizer_config.json", bpe::tokenizer_config_json(MAX_POSITIONS)),
        ("base/config.json", format!("{:#}\n", model_config())),
        ("base/generation_config.json", format!("{:#}\n", generation_config())),
    ] {
        assert!(committed(name) == text, "{name}: cargo run -p karat-suites --bin make-medical-r1 -- --write");
    }
    for name in ["train.jsonl", "heldout.jsonl"] {
        for line in committed(name).lines() {
            serde_json::from_str::<Item>(line).unwrap();
        }
    }
}

#[test]
fn no_general_document_is_in_the_corpus_or_looks_like_the_task() {
    let source = source();
    let corpus: BTreeSet<String> = source.corpus().into_iter().collect();
    let general = source.general();
    assert_eq!(general.len(), 96);
    let ids: BTreeSet<_> = general.iter().map(|g| &g.id).collect();
    assert_eq!(ids.len(), general.len());
    for document in &general {
        assert!(!corpus.contains(&document.text), "{}", document.id);
        for sign in ["<think>", "<|im_start|>", "？"] {
            assert!(!document.text.contains(sign), "{}: {sign}", document.id);
        }
    }
}

#[test]
fn there_are_enough_items_with_ids_and_questions_of_their_own() {
    let items = source().items();
    assert!(items.train.len() >= 450, "{}", items.train.len());
    assert!(items.heldout.len() >= 120, "{}", items.heldout.len());
    let ids: BTreeSet<_> = all(&items).map(|i| &i.id).collect();
    let questions: BTreeSet<_> = all(&items).map(|i| &i.question).collect();
    assert_eq!(ids.len(), all(&items).count());
    assert_eq!(questions.len(), all(&items).count());
    for set in [&items.train, &items.heldout] {
        let english = set.iter().filter(|i| i.language == "en").count() * 100 / set.len();
        assert!((15..=30).contains(&english), "{english} % English");
        let decisions: BTreeSet<_> = set.iter().filter_map(|i| i.metrics.decision.clone()).collect();
        assert_eq!(decisions.len(), 2);
    }
}

#[test]
fn no_training_item_states_a_held_out_pair_and_every_held_out_item_asks_for_one() {
    let items = source().items();
    for item in &items.train {
        for pair in pairs(&item.metrics) {
            assert!(!items.heldout_pairs.contains(pair), "{} states {pair:?}", item.id);
        }
    }
    let trained: BTreeSet<_> = items.train.iter().flat_map(|i| pairs(&i.metrics)).collect();
    for item in &items.heldout {
        let new = item.metrics.asked.iter().filter(|p| !trained.contains(p)).count();
        assert!(new > 0, "{} asks for nothing new", item.id);
    }
}

#[test]
fn no_training_text_about_a_drug_contains_a_value_held_out_for_it() {
    use karat_suites::medical_r1::Language;
    let source = source();
    let items = source.items();
    for item in &items.train {
        let text = format!("{} {} {}", item.question, item.think, item.answer).to_lowercase();
        for (id, name) in &items.heldout_pairs {
            let drug = source.facts.get(id).unwrap();
            let attribute = drug.attributes().find(|a| a.name() == name).unwrap();
            for language in [Language::Zh, Language::En] {
                if item.metrics.asked.iter().any(|(d, _)| d == id) {
                    let value = drug.text(attribute, language).to_lowercase();
                    assert!(!text.contains(&value), "{}: {value}", item.id);
                }
            }
        }
    }
}

#[test]
fn every_held_out_drug_and_attribute_is_known_from_training() {
    let items = source().items();
    let mut drugs: BTreeMap<&str, usize> = BTreeMap::new();
    let mut attributes: BTreeSet<&str> = BTreeSet::new();
    for (drug, attribute) in items.train.iter().flat_map(|i| &i.metrics.asked) {
        *drugs.entry(drug).or_default() += 1;
        attributes.insert(attribute);
    }
    for (drug, attribute) in items.heldout.iter().flat_map(|i| &i.metrics.asked) {
        assert!(drugs.get(drug.as_str()).is_some_and(|n| *n >= 3), "{drug} is asked about too seldom");
        assert!(attributes.contains(attribute.as_str()), "{attribute}");
    }
}

#[test]
fn everything_to_check_occurs_in_the_reference_answer() {
    for item in all(&source().items()) {
        let m = &item.metrics;
        assert!(!m.key_points.is_empty(), "{}", item.id);
        for text in m.key_points.iter().chain(&m.numbers).chain(&m.units).chain(&m.negations) {
            assert!(item.answer.contains(text.as_str()), "{}: {text:?} is not in {:?}", item.id, item.answer);
        }
        if m.asked.iter().any(|(_, a)| a == "contraindication") {
            assert!(!m.negations.is_empty(), "{}: no negation in {:?}", item.id, item.answer);
        }
        if m.asked.iter().any(|(_, a)| a == "dose") {
            assert!(!m.numbers.is_empty() && !m.units.is_empty(), "{}: no dose in {:?}", item.id, item.answer);
        }
    }
}

#[test]
fn every_reference_answer_is_read_as_the_decision_that_its_row_states() {
    use karat::eval::decision::{Decision, at_head, decide};
    let mut seen = 0;
    for item in all(&source().items()) {
        let Some(stated) = &item.metrics.decision else { continue };
        let expected = if stated == "yes" { Decision::Yes } else { Decision::No };
        assert_eq!(decide(&item.answer), Some(expected), "{}: {}", item.id, item.answer);
        assert_eq!(at_head(&item.answer), Some(expected), "{}: {}", item.id, item.answer);
        assert_eq!(stated == "no", item.kind == "stop", "{}", item.id);
        seen += 1;
    }
    assert!(seen > 100, "{seen}");
}

#[test]
fn no_slot_is_left_open() {
    let source = source();
    for item in all(&source.items()) {
        for text in [&item.question, &item.think, &item.answer] {
            assert!(!text.contains(['{', '}', '[', ']']), "{}: {text}", item.id);
        }
    }
    for document in source.corpus() {
        assert!(!document.contains(['{', '}', '[', ']']), "{document}");
    }
}

#[test]
fn corpus_states_every_fact_often_and_never_in_the_format_of_the_task() {
    use karat_suites::medical_r1::Language;
    let source = source();
    let corpus = source.corpus();
    for document in &corpus {
        assert!(!document.contains(['\n', '?', '？']), "{document}");
        for control in ["<|", "<think>", "</think>", source.wording.system.as_str()] {
            assert!(!document.contains(control), "{document}");
        }
    }
    for drug in &source.facts.drugs {
        for (language, least) in [(Language::Zh, 25), (Language::En, 12)] {
            let about: Vec<_> = corpus.iter().filter(|d| d.to_lowercase().contains(drug.name(language))).collect();
            for attribute in drug.attributes() {
                let value = drug.text(attribute, language).to_lowercase();
                let times = about.iter().filter(|d| d.to_lowercase().contains(&value)).count();
                assert!(times >= least, "{} of {}: {times} times in {language:?}", attribute.name(), drug.id);
            }
        }
    }
    let items = source.items();
    let documents: BTreeSet<_> = corpus.iter().collect();
    assert!(all(&items).all(|i| !documents.contains(&i.answer) && !documents.contains(&i.think)));
}

#[test]
fn configuration_fits_the_tokenizer() {
    let tokenizer = source().tokenizer().unwrap();
    assert_eq!(tokenizer.get_vocab_size(true), VOCAB);
    assert_eq!(VOCAB % 64, 0);
    let config = model_config();
    for (key, token) in
        [("eos_token_id", "<|im_end|>"), ("pad_token_id", "<|endoftext|>"), ("bos_token_id", "<|endoftext|>")]
    {
        assert_eq!(config[key].as_u64(), tokenizer.token_to_id(token).map(u64::from), "{key}");
    }
}
