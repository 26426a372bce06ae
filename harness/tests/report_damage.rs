//! Reports that nobody built here: whatever stands in a `report.json`, reading it names the key
//! that is wrong, and what is read can be compared, gated and rendered without a panic.

#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
#[path = "report/fixture.rs"]
mod fixture;

use std::panic::{AssertUnwindSafe, catch_unwind};

use karat::ErrorKind;
use karat::gate::{Rules, annotations::annotations, check, junit::junit, text};
use karat::report::{Direction, Language, Report, benchmark, build, compare, csv, html, junit, latex, markdown, plot};
use serde_json::{Map, Value, json};

/// A small report with every part that a report can have, and few resamples.
fn original() -> Report {
    let items = fixture::items(7);
    let mut inputs = fixture::inputs(&items, fixture::three_models(&items));
    inputs.stats.resamples = 100;
    inputs.general = Some(karat::report::GeneralText {
        file: karat::report::DataFile { name: "general.jsonl".into(), sha256: "ee".repeat(32), rows: 3, read_as: None },
        scores: ["base", "lora"]
            .map(|name| {
                let score =
                    |i: u32| karat::eval::PartScore { logprob: -20.0 - f64::from(i), tokens: 10, bytes: 20, greedy: 0 };
                (name.to_string(), (0..3).map(score).collect())
            })
            .into(),
    });
    build(&inputs).unwrap()
}

/// A step from a JSON value into it.
#[derive(Clone, Debug)]
enum Step {
    Key(String),
    Index(usize),
}

/// All places of a value, of every list the first two elements.
fn places(value: &Value, here: &[Step], found: &mut Vec<Vec<Step>>) {
    let mut into = |step: Step, inner: &Value| {
        let path = [here, &[step]].concat();
        found.push(path.clone());
        places(inner, &path, found);
    };
    match value {
        Value::Object(map) => map.iter().for_each(|(key, inner)| into(Step::Key(key.clone()), inner)),
        Value::Array(list) => list.iter().take(2).enumerate().for_each(|(i, inner)| into(Step::Index(i), inner)),
        _ => {}
    }
}

fn at<'a>(value: &'a mut Value, path: &[Step]) -> &'a mut Value {
    path.iter().fold(value, |value, step| match step {
        Step::Key(key) => &mut value[key.as_str()],
        Step::Index(i) => &mut value[*i],
    })
}

/// What is put in the place of a value.
fn replacements() -> Vec<Value> {
    vec![
        Value::Null,
        json!(true),
        json!(-1),
        json!(0),
        json!(1.5),
        json!(1e308),
        json!(-1e308),
        json!(5e-324),
        json!(u64::MAX),
        json!(4_294_967_296_u64),
        json!("x\u{1b}[2J\u{202e}=1"),
        json!(""),
        json!([]),
        json!({}),
        json!([[[[{}]]]]),
    ]
}

/// What is done to one place of a report.
enum Change {
    Replaced(Value),
    TakenOut,
    /// A list's first element stands there twice.
    Twice,
}

/// All mutations of a report: every change in every place. A mutant is made when it is looked at:
/// all of them are gigabytes.
fn mutations(report: &Value) -> Vec<(Vec<Step>, Change)> {
    let mut paths = Vec::new();
    places(report, &[], &mut paths);
    let changes = || replacements().into_iter().map(Change::Replaced).chain([Change::TakenOut, Change::Twice]);
    paths.into_iter().flat_map(|path| changes().map(move |change| (path.clone(), change))).collect()
}

/// A mutant: what was done, the report's value, and the key of the report that it was done below.
fn mutant(report: &Value, path: &[Step], change: &Change) -> (String, Value, String) {
    let mut mutant = report.clone();
    let what = match change {
        Change::Replaced(new) => {
            *at(&mut mutant, path) = new.clone();
            new.to_string()
        }
        Change::TakenOut => {
            let (last, parent) = path.split_last().unwrap();
            match (last, at(&mut mutant, parent)) {
                (Step::Key(key), Value::Object(map)) => drop(map.remove(key)),
                (Step::Index(i), Value::Array(list)) => drop(list.remove(*i)),
                _ => {}
            }
            "taken out".to_string()
        }
        Change::Twice => {
            if let Value::Array(list) = at(&mut mutant, path)
                && let Some(first) = list.first().cloned()
            {
                list.push(first);
            }
            "twice".to_string()
        }
    };
    let key = path.iter().find_map(|step| if let Step::Key(key) = step { Some(key.clone()) } else { None });
    (format!("{path:?}: {what}"), mutant, key.unwrap())
}

/// Everything that is done with a report that was read.
fn use_everywhere(original: &Report, mutant: &Report) {
    let allow: Vec<String> = compare::MUST_BE_EQUAL.map(String::from).to_vec();
    for (first, second) in [(original, mutant), (mutant, original), (mutant, mutant)] {
        let _ = compare::compare((first, "base"), (second, "lora"), &allow);
        let _ = compare::compare((first, "base"), (second, "lora"), &[]);
        let rules = Rules { allow: allow.clone(), ..Rules::default() };
        if let Ok(checks) = check(first, second, &rules) {
            let _ = (text::table(&checks), text::markdown(&checks, "s", "main"), junit(&checks, first, "main", "help"));
            let _ = annotations(&checks, "s", std::path::Path::new("suite.toml"));
        }
    }
    for language in [Language::English, Language::Chinese] {
        let report = Report { language, ..mutant.clone() };
        let _ = (markdown::render(&report), markdown::results_block(&report), html::render(&report));
        let _ = (csv::items(&report), csv::metrics(&report), latex::table(&report), junit::comparisons::junit(&report));
        let _ = (plot::metric_bars(&report), plot::training_curves(&report), report.to_json());
        let _ = (benchmark::github(&report, Direction::Higher), benchmark::github(&report, Direction::Lower));
    }
}

#[test]
fn a_damaged_report_is_refused_by_key_or_used_without_a_panic() {
    let original = original();
    let value: Value = serde_json::from_str(&original.to_json().unwrap()).unwrap();
    let all = mutations(&value);
    assert!(all.len() > 5000, "{}", all.len());
    // A panic's message belongs to the mutant that is named below.
    let (mut refused, mut used) = (0, 0);
    // Every 29th: the same ones always, of every kind of place and of every replacement.
    // KARAT_ALL_MUTANTS tries them all.
    let step = if std::env::var_os("KARAT_ALL_MUTANTS").is_some() { 1 } else { 29 };
    for (path, change) in all.iter().step_by(step) {
        let (what, mutant, key) = mutant(&value, path, change);
        let outcome = catch_unwind(AssertUnwindSafe(|| match Report::from_json(&mutant.to_string(), "r.json") {
            Ok(report) => {
                use_everywhere(&original, &report);
                None
            }
            Err(error) => Some(error),
        }));
        match outcome.unwrap_or_else(|_| panic!("a panic: {what}")) {
            None => used += 1,
            Some(error) => {
                refused += 1;
                assert_eq!(error.kind(), ErrorKind::Data, "{what}: {error}");
                let told = text::told(&error);
                let names = told.contains(key.as_str()) || told.contains(&key.replace('_', " "));
                assert!(told.contains("r.json") && names, "{what}: {told}");
            }
        }
    }
    assert!(refused > 100 && used > 100, "{refused} refused, {used} used");
}

#[test]
fn counts_and_names_that_cannot_be_are_refused_by_their_key() {
    let value: Value = serde_json::from_str(&original().to_json().unwrap()).unwrap();
    let refused = |change: &dyn Fn(&mut Value), key: &str| {
        let mut mutant = value.clone();
        change(&mut mutant);
        let error = Report::from_json(&mutant.to_string(), "r.json").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        assert!(error.to_string().contains(key), "{key}: {}", text::told(&error));
    };
    for resamples in [json!(4_294_967_296_u64), json!(9_223_372_036_854_775_807_u64), json!(0)] {
        refused(&|v| v["statistics"]["resamples"] = resamples.clone(), "statistics.resamples");
    }
    refused(&|v| v["statistics"]["confidence"] = json!(1.0), "statistics.confidence");
    refused(&|v| v["metrics"][0]["decimals"] = json!(4_000_000_000_u64), "metrics.nll_answer.decimals");
    refused(&|v| v["models"][1]["name"] = json!("base"), "`models`");
    refused(&|v| v["items"][1]["id"] = json!("med-000"), "`items`");
    refused(&|v| v["models"][1]["truncated"] = json!("many"), "models[1].truncated");
    refused(&|v| drop(v["models"][1].as_object_mut().map(|m: &mut Map<_, _>| m.remove("role"))), "models[1]");
    refused(&|v| v["metrics"][2]["models"]["lora"]["n"] = json!(-1), "metrics[2].models.lora.n");
    refused(&|v| v["metrics"][2]["models"]["lora"]["n"] = json!(1), "metrics[2].models.lora");
    refused(&|v| drop(v["items"].as_array_mut().unwrap().pop()), "6 items");
    refused(&|v| v["metrics"][2]["best"] = json!(["nobody"]), "metrics[2].best");
    refused(&|v| v["comparisons"][0]["candidate"] = json!("nobody"), "comparisons[0].candidate");
    let metric = value["comparisons"][0]["metrics"].as_object().unwrap().keys().next().unwrap().as_str();
    let key = format!("comparisons[0].metrics.{metric}");
    refused(&|v| v["comparisons"][0]["metrics"][metric]["wins"] = json!(1_000_000), &key);
}

#[test]
fn values_that_their_metric_cannot_have_are_refused_by_their_key() {
    let value: Value = serde_json::from_str(&original().to_json().unwrap()).unwrap();
    let metrics = value["metrics"].as_array().unwrap();
    let name = |metric: &Value| metric["name"].as_str().unwrap().to_string();
    let is_share = |m: &Value| karat::eval::metric::info(&name(m)).is_some_and(|def| def.range == (0.0, 1.0));
    let at = metrics.iter().position(is_share).unwrap();
    let name = name(&metrics[at]);
    let name = name.as_str();
    let refused = |change: &dyn Fn(&mut Value, &Value), key: &str| {
        for wrong in [json!(-1), json!(1.5), json!(1e300)] {
            let mut mutant = value.clone();
            change(&mut mutant, &wrong);
            let error = Report::from_json(&mutant.to_string(), "r.json").unwrap_err();
            assert!(error.kind() == ErrorKind::Data && error.to_string().contains(key), "{wrong}: {error}");
        }
    };
    for part in ["value", "ci_low", "ci_high"] {
        let key = format!("metrics[{at}].models.base.{part}");
        refused(&|v, wrong| v["metrics"][at]["models"]["base"][part] = wrong.clone(), &key);
    }
    let key = format!("items[0].models.base.metrics.{name}");
    refused(&|v, wrong| v["items"][0]["models"]["base"]["metrics"][name] = wrong.clone(), &key);
    for part in ["p_value", "p_adjusted"] {
        let key = format!("comparisons[0].metrics.{name}.{part}");
        refused(&|v, wrong| v["comparisons"][0]["metrics"][name][part] = wrong.clone(), &key);
    }
}

#[test]
fn a_text_that_is_cut_or_holds_no_number_is_no_report() {
    let text = original().to_json().unwrap();
    for end in (0..text.len()).filter(|&i| text.is_char_boundary(i)).step_by(997) {
        assert_eq!(Report::from_json(&text[..end], "r.json").unwrap_err().kind(), ErrorKind::Data, "{end}");
    }
    for number in ["NaN", "Infinity", "1e999", "-", "0x10"] {
        let broken = text.replacen("\"resamples\": 100", &format!("\"resamples\": {number}"), 1);
        assert_eq!(Report::from_json(&broken, "r.json").unwrap_err().kind(), ErrorKind::Data, "{number}");
    }
}
