//! A suite's data with rows that cannot be used: the others are as if those had never been there.

#![allow(clippy::unwrap_used)]

mod byte_model;

use std::path::Path;

use byte_model::byte_model;
use karat::run::{Prepared, prepare};
use karat::suite::Suite;
use karat::{ErrorKind, Result};
use serde_json::{Value, json};

/// Opens the reasoning in the prompt: a row without reasoning cannot be rendered.
const OPENS: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and m.reasoning_content %}<think>\n\
    {{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}";

/// A folder with a model `base` and the rows `items.jsonl`.
fn place(template: &str, rows: &[Value]) -> tempfile::TempDir {
    let model = byte_model(Some(template));
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    std::fs::create_dir(&base).unwrap();
    for entry in std::fs::read_dir(model.path()).unwrap().map(|entry| entry.unwrap()) {
        std::fs::copy(entry.path(), base.join(entry.file_name())).unwrap();
    }
    std::fs::write(base.join("config.json"), "{}").unwrap();
    std::fs::write(folder.path().join("items.jsonl"), rows.iter().map(|row| format!("{row}\n")).collect::<String>())
        .unwrap();
    folder
}

fn suite(folder: &Path, data: &str, set: &[&str]) -> Result<Prepared> {
    let text = format!("name = \"x\"\n[data]\n{data}\n[model]\nbase = \"base\"\n");
    let set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
    prepare(&Suite::parse(&text, &folder.join("suite.toml"), &set)?)
}

fn good(i: usize) -> Value {
    json!({"id": format!("r{i}"), "question": format!("what is {i}?"), "think": "why", "answer": format!("{i}")})
}

/// The parts as ids.
fn ids(prepared: &Prepared) -> Vec<(String, Vec<String>)> {
    let ids = |records: &[karat::data::record::Record]| records.iter().map(|record| record.id.clone()).collect();
    prepared.parts.iter().map(|(name, records)| (name.clone(), ids(records))).collect()
}

#[test]
fn a_row_that_cannot_be_rendered_is_as_one_that_was_never_there() {
    let mut rows: Vec<Value> = (0..100).map(good).collect();
    let clean = place(OPENS, &rows);
    rows.insert(31, json!({"id": "bad", "question": "what?", "answer": "no reasoning"}));
    rows.push(json!({"id": "worse", "question": 5}));
    let mixed = place(OPENS, &rows);
    for split in ["9:1", "8:1:1"] {
        let data = format!("file = \"items.jsonl\"\nsplit = \"{split}\"");
        let (without, with) = (suite(clean.path(), &data, &[]).unwrap(), suite(mixed.path(), &data, &[]).unwrap());
        assert_eq!(ids(&with), ids(&without));
        assert_eq!((with.train, with.validation), (without.train, without.validation));
        assert_eq!(with.queries, without.queries);
        assert_eq!((with.files[0].rows, with.items.len()), (100, without.items.len()));
        let bad: Vec<(usize, &str)> = with.bad.iter().map(|row| (row.line, row.reason.as_str())).collect();
        assert_eq!(bad.len(), 2, "{bad:?}");
        assert!(bad[0].0 == 32 && bad[0].1.contains("not the beginning"), "{bad:?}");
        assert!(bad[1].0 == 102 && bad[1].1.contains("must be a string"), "{bad:?}");
        assert!(with.bad.iter().all(|row| row.file.ends_with("items.jsonl")));
        assert_eq!(with.audit.bad_rows, with.bad);
        assert!(with.audit.splits.values().all(|split| split.with_think == split.records));
    }
    // Strictly, it is an error in its place.
    std::fs::write(mixed.path().join("items.jsonl"), rows[..101].iter().map(|r| format!("{r}\n")).collect::<String>())
        .unwrap();
    let error = suite(mixed.path(), "file = \"items.jsonl\"\nstrict = true", &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    assert!(error.place().unwrap().ends_with("items.jsonl:32"), "{error}");
}

#[test]
fn a_file_that_serves_as_two_parts_has_its_bad_rows_once() {
    let rows = [good(0), good(1), good(2), good(3), json!({"id": "bad", "question": "q", "answer": "a"}), json!([])];
    let folder = place(OPENS, &rows);
    let prepared =
        suite(folder.path(), "train = \"items.jsonl\"\nheldout = \"items.jsonl\"\nsplit = \"1:1\"", &[]).unwrap();
    assert_eq!(prepared.bad.iter().map(|row| row.line).collect::<Vec<_>>(), [5, 6]);
    assert_eq!((prepared.items.len(), prepared.parts["train"].len()), (4, 2));
}

#[test]
fn rows_that_take_the_place_of_bad_ones_are_tried_as_well() {
    // Every second row is bad, and only a few of many are used.
    let rows: Vec<Value> = (0..400)
        .map(|i| if i % 2 == 0 { good(i) } else { json!({"id": i.to_string(), "question": "q", "answer": "a"}) })
        .collect();
    let folder = place(OPENS, &rows);
    let data = "file = \"items.jsonl\"\nsplit = \"8:1:1\"\ntrain_limit = 3";
    let prepared = suite(folder.path(), data, &["eval.items=5"]).unwrap();
    assert_eq!((prepared.train.len(), prepared.items.len(), prepared.queries.len()), (3, 5, 5));
    let bad: Vec<&str> = prepared.bad.iter().map(|row| row.reason.as_str()).collect();
    assert!(bad.len() == 200 && bad.iter().all(|reason| reason.contains("not the beginning")), "{}", bad.len());
}

#[test]
fn a_part_that_bad_rows_leave_empty_says_why() {
    let bad = |i: usize| json!({"id": format!("b{i}"), "question": "q", "answer": "a"});
    let folder = place(OPENS, &[bad(0), good(1), bad(2)]);
    let error = suite(folder.path(), "file = \"items.jsonl\"", &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    let what = error.what();
    assert!(what.contains("part of the data is empty once 2 bad rows are left out"), "{what}");
    assert!(what.contains("not the beginning") && error.help_text().is_some(), "{error}");
}

#[test]
fn what_becomes_of_reasoning_is_told_with_the_data() {
    let plain = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let mut rows: Vec<Value> = (0..20).map(good).collect();
    rows[3]["answer"] = "3</think>4".into();
    let folder = place(plain, &rows);
    let data = "file = \"items.jsonl\"";
    let auto = suite(folder.path(), data, &[]).unwrap();
    let told: Vec<&str> = auto.notes.iter().map(|note| note.english.as_str()).collect();
    assert!(told.len() == 2 && told[0].contains("(train 18, heldout 2)") && told[1].contains("\"r3\""), "{told:?}");
    assert!(auto.items.iter().all(|item| item.think == "why"));
    assert!(auto.queries.iter().all(|query| query.think_bytes == "<think>\nwhy\n</think>".len() as u64));
    assert_eq!(auto.audit.splits["train"].with_think, 18);
    let drop = suite(folder.path(), data, &["data.reasoning=drop"]).unwrap();
    assert!(drop.notes[0].english.contains("the reasoning of 20 rows is left out"), "{:?}", drop.notes);
    assert!(drop.items.iter().all(|item| item.think.is_empty()));
    assert!(drop.queries.iter().all(|query| query.think.is_empty()));
    assert_eq!(drop.audit.splits["train"].with_think, 0);
    let error = suite(folder.path(), data, &["data.reasoning=template"]).unwrap_err();
    assert!(error.kind() == ErrorKind::Usage && error.what().contains("drops the reasoning"), "{error}");
    // What is not asked for does not show: fingerprints and stored suites stay as they were.
    let options = serde_json::to_string(auto.formatter.options()).unwrap();
    assert!(!options.contains("reasoning") && !options.contains("think_tags"), "{options}");
}
