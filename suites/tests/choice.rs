//! The multiple-choice suite: its data is what the table of facts gives, and a run of it counts
//! what it should.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::PathBuf;

use karat::eval::choice::{Normalisation, extract, most_probable};
use karat::eval::think;
use karat::plugin;
use karat::run::{Backends, Cancel, LoadedBackend, Notice, Origin, Recorded, prepare, run};
use karat::suite::Suite;
use karat_suites::medical_r1::{Source, choices};

fn folder() -> PathBuf {
    karat_suites::dir().join("medical-r1-choice")
}

struct Plugins;

impl Backends for Plugins {
    fn backend(&self, name: &str) -> karat::Result<LoadedBackend> {
        let plugin = plugin::find(name, &plugin::Search::from_env())?;
        Ok(LoadedBackend { backend: std::sync::Arc::new(plugin), origin: Origin::default() })
    }
}

#[test]
fn the_committed_items_are_what_the_table_gives_and_have_one_right_option() {
    let items = choices::make(&Source::load().unwrap());
    let committed = std::fs::read_to_string(folder().join("heldout.jsonl")).unwrap();
    assert!(committed == choices::jsonl(&items), "cargo run -p karat-suites --bin make-medical-r1 -- --write");
    assert!(items.len() >= 100, "{}", items.len());
    let mut places = [0; 4];
    for item in &items {
        assert_eq!(item.options.iter().collect::<BTreeSet<_>>().len(), 4, "{}", item.id);
        assert!(!item.question.contains(['{', '}']), "{}", item.question);
        places[item.options.iter().position(|o| *o == item.answer).unwrap()] += 1;
    }
    // The right one has no favourite place.
    assert!(places.iter().all(|n| *n > items.len() / 8), "{places:?}");
}

#[test]
fn a_run_measures_choices_by_likelihood_and_by_what_the_text_names() {
    let out = tempfile::tempdir().unwrap();
    let overrides = ["eval.items=12", "eval.max_new_tokens=64", "train.lora.max_steps=30", "train.lora.eval_every=0"];
    let mut suite = Suite::load(folder().join("suite.toml").to_str().unwrap(), &overrides.map(String::from)).unwrap();
    suite.train.full = None;
    let mut quiet = |_: Notice<'_>| {};
    let report = run(&suite, out.path(), &Plugins, &mut quiet, &Cancel::new()).unwrap();
    let items = prepare(&suite).unwrap().items;
    let recorded = Recorded::read_all(&out.path().join("results")).unwrap();
    assert_eq!(recorded.len(), 2);
    for model in &recorded {
        let row = |i: usize| &report.items[i].models[&model.name].metrics;
        for (i, item) in items.iter().enumerate() {
            let choice = item.choice.as_ref().unwrap();
            let options = &model.references[i].options;
            assert_eq!(options.len(), 4);
            for (score, text) in options.iter().zip(&choice.options) {
                assert!(score.logprob < 0.0 && score.tokens > 0, "{score:?}");
                assert_eq!((score.characters, score.bytes), (text.chars().count() as u64, text.len() as u64));
            }
            let right = |yes: bool| Some(f64::from(u8::from(yes)));
            for (metric, by) in [
                ("acc", Normalisation::Raw),
                ("acc_norm", Normalisation::Characters),
                ("acc_bytes", Normalisation::Bytes),
            ] {
                assert_eq!(
                    row(i)[metric],
                    right(most_probable(options, by) == Some(choice.gold)),
                    "{metric} {}",
                    item.id
                );
            }
            let named = extract(&choice.options, think::split(&model.predictions[i].text).answer);
            assert_eq!(row(i)["unparsed"], right(named.is_none()));
            assert_eq!(row(i)["acc_extracted"], right(named == Some(choice.gold)));
        }
        let value = |metric: &str| report.metric(metric).unwrap().models[&model.name].value.unwrap();
        let unparsed: f64 = (0..items.len()).map(|i| row(i)["unparsed"].unwrap()).sum();
        assert!((value("unparsed") - unparsed / items.len() as f64).abs() < 1e-12);
    }
    // The base model writes no answers at all: that is counted, and is another thing than a wrong
    // choice.
    assert_eq!(report.metric("unparsed").unwrap().models["base"].value, Some(1.0));
    assert!(karat::report::markdown::render(&report).contains("Unparsed answers"));
}
