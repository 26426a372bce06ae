//! Data as people have it, through the commands: what it was read as, what is cut, what to change.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

fn base() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().join("suites/medical-r1/base")
}

fn karat(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_karat")).current_dir(folder).args(args).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn told(output: &Output) -> String {
    assert!(output.status.success(), "{}", said(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A suite in `folder` whose `[data]` has these lines.
fn suite(folder: &Path, data: &str) {
    let text = format!(
        "name = \"forms\"\n[data]\n{data}\n[model]\nbase = {:?}\n[train.lora]\n[eval]\nmax_new_tokens = 8\nmetrics = [\"exact_match\"]\n",
        base()
    );
    std::fs::write(folder.join("suite.toml"), text).unwrap();
}

fn shared(i: usize) -> Value {
    json!({"id": format!("s{i}"), "system": "Be brief.", "conversations": [
        {"from": "human", "value": format!("What is {i}?")}, {"from": "gpt", "value": format!("It is {i}.")},
        {"from": "human", "value": "Sure?"}, {"from": "gpt", "value": format!("<think>{i}, yes</think>Yes, {i}.")}]})
}

fn alpaca(i: usize) -> Value {
    json!({"id": format!("a{i}"), "instruction": format!("Say {i}"), "input": "", "output": format!("{i}")})
}

#[test]
fn an_array_of_sharegpt_and_alpaca_lines_go_through_data_and_plan() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::write(
        folder.join("chats.json"),
        serde_json::to_string_pretty(&(0..20).map(shared).collect::<Vec<_>>()).unwrap(),
    )
    .unwrap();
    let lines: String = (0..10).map(|i| format!("{}\n", alpaca(i))).collect();
    std::fs::write(folder.join("held.jsonl"), lines).unwrap();
    std::fs::write(folder.join("more.csv"), "Question,Answer\nHow?,So.\n").unwrap();
    suite(folder, "train = [\"chats.json\", \"more.csv\"]\nheldout = \"held.jsonl\"");
    let text = told(&karat(folder, &["data", "suite.toml"]));
    for words in [
        "chats.json: 20 items, read as: sharegpt",
        "more.csv: 1 items, read as: question-answer",
        "held.jsonl: 10 items, read as: alpaca",
        "of 20 rows only the last turn is trained on; data.train_on = \"all\"",
        "max_length 2048 keeps all: the longest item has",
        "the model holds",
    ] {
        assert!(text.contains(words), "no {words:?} in {text}");
    }
    let object: Value = serde_json::from_str(&told(&karat(folder, &["data", "suite.toml", "--json"]))).unwrap();
    let forms: Vec<&str> =
        object["files"].as_array().unwrap().iter().map(|file| file["read_as"].as_str().unwrap()).collect();
    assert_eq!(forms, ["sharegpt", "question-answer", "alpaca"]);
    assert_eq!(object["lengths"]["max_length"], 2048);
    let plan = told(&karat(folder, &["run", "suite.toml", "--plan"]));
    assert!(plan.contains("10 items") && plan.contains("max_length 2048 keeps all"), "{plan}");
    // Every turn: more tokens are trained on, the rows are as long.
    let shown = |set: &[&str]| {
        let args = [&["data", "suite.toml", "--show", "100"], set].concat();
        told(&karat(folder, &args))
    };
    let all = shown(&["--set", "data.train_on=all"]);
    assert!(!all.contains("only the last turn"));
    assert!(all.contains("not trained on | trained on | not trained on | trained on)"), "{all}");
    // One form for all: the other files have no usable row.
    let forced = karat(folder, &["data", "suite.toml", "--set", "data.format=alpaca"]);
    assert_eq!(forced.status.code(), Some(6));
    assert!(
        said(&forced).contains("chats.json")
            && said(&forced).contains("\"instruction\" is missing; the columns are \"id\", \"system\""),
        "{}",
        said(&forced)
    );
    let wrong = karat(folder, &["data", "suite.toml", "--set", "data.format=llama"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(said(&wrong).contains("question-answer") && said(&wrong).contains("sharegpt"), "{}", said(&wrong));
}

#[test]
fn what_is_cut_is_told_before_training_and_stands_at_the_head_of_the_report() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut rows: Vec<Value> = (0..19).map(alpaca).collect();
    rows.push(json!({"id": "the long one", "instruction": "Count", "output": "one and two and ".repeat(40)}));
    std::fs::write(folder.join("rows.json"), Value::Array(rows.clone()).to_string()).unwrap();
    let held: Vec<Value> = rows.iter().rev().take(5).cloned().collect();
    std::fs::write(folder.join("held.json"), Value::Array(held).to_string()).unwrap();
    suite(folder, "train = \"rows.json\"\nvalidation = \"rows.json\"\nheldout = \"held.json\"\nmax_length = 64");
    for command in [&["data", "suite.toml"][..], &["run", "suite.toml", "--plan"]] {
        let text = told(&karat(folder, command));
        assert!(
            text.contains(
                "max_length 64 cuts train 1 of 20 (5.0 %), validation 1 of 20 (5.0 %), heldout 1 of 5 (20.0 %)"
            ) || text.contains("heldout 1 of 5 (20.0 %)"),
            "{text}"
        );
        assert!(text.contains("keeps all; the model holds") && text.contains("the long one: "), "{text}");
    }
    let object: Value = serde_json::from_str(&told(&karat(folder, &["data", "suite.toml", "--json"]))).unwrap();
    let keeps = object["lengths"]["keeps_all"].as_u64().unwrap();
    assert!(keeps > 64);
    let whole = told(&karat(folder, &["data", "suite.toml", "--set", &format!("data.max_length={keeps}")]));
    assert!(whole.contains(&format!("max_length {keeps} keeps all")), "{whole}");
    let less = told(&karat(folder, &["data", "suite.toml", "--set", &format!("data.max_length={}", keeps - 1)]));
    assert!(less.contains("cuts train 1 of 20"), "{less}");
    // The report: the references beyond a twentieth, not the training items at one.
    let texts: String =
        rows.iter().map(|row| format!("{}\n", json!({"id": row["id"], "candidate": row["output"]}))).collect();
    std::fs::write(folder.join("texts.jsonl"), texts).unwrap();
    let report =
        told(&karat(folder, &["eval", "suite.toml", "--predictions", "m=texts.jsonl", "--out", "out", "--json"]));
    let report: Value = serde_json::from_str(&report).unwrap();
    let report = if report["report"].is_object() { &report["report"] } else { &report };
    let cuts: Vec<&Value> = report["warnings"].as_array().unwrap().iter().filter(|w| w["kind"] == "cut").collect();
    assert_eq!(cuts.len(), 1, "{}", report["warnings"]);
    assert_eq!((&cuts[0]["part"], &cuts[0]["cut"], &cuts[0]["of"]), (&json!("heldout"), &json!(1), &json!(5)));
    assert_eq!(report["data"]["files"][0]["read_as"], "alpaca");
    let page = std::fs::read_to_string(folder.join("out/report/report.md"))
        .or_else(|_| std::fs::read_to_string(folder.join("out/report.md")))
        .unwrap();
    assert!(page.contains("are cut at 64 tokens") && page.contains("read as alpaca"), "{page}");
}

#[test]
fn pairs_and_texts_are_refused_with_what_to_do_and_chosen_answers_taken_where_asked() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let pairs: Vec<Value> =
        (0..20).map(|i| json!({"prompt": format!("q{i}"), "chosen": format!("good {i}"), "rejected": "bad"})).collect();
    std::fs::write(folder.join("pairs.json"), Value::Array(pairs).to_string()).unwrap();
    suite(folder, "file = \"pairs.json\"");
    let refused = karat(folder, &["data", "suite.toml"]);
    assert_eq!(refused.status.code(), Some(6));
    assert!(said(&refused).contains("data.preference = \"chosen\""), "{}", said(&refused));
    let taken = told(&karat(folder, &["data", "suite.toml", "--set", "data.preference=chosen"]));
    assert!(taken.contains("pairs.json: 20 items, read as: preference"), "{taken}");
    let (model, out) = (base(), folder.join("out"));
    let args = ["train", "--model", model.to_str().unwrap(), "--data", "pairs.json", "--out", out.to_str().unwrap()];
    let refused = karat(folder, &args);
    assert_eq!(refused.status.code(), Some(6));
    assert!(said(&refused).contains("preference pairs") && !out.exists(), "{}", said(&refused));
    std::fs::write(folder.join("texts.jsonl"), "{\"text\": \"plain\"}\n").unwrap();
    suite(folder, "file = \"texts.jsonl\"");
    let refused = karat(folder, &["data", "suite.toml"]);
    assert_eq!(refused.status.code(), Some(6));
    assert!(said(&refused).contains("karat train --text"), "{}", said(&refused));
}
