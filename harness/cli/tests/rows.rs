//! One bad line among good ones: it is named, the others are worked on, and the exit code says so.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

fn base() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().join("suites/medical-r1/base")
}

fn karat(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_karat")).args(args).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn rows(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    let mut rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    rows.sort_by_key(|row| row["id"].to_string());
    rows
}

/// A copy of the shipped base whose template has no place for reasoning, and never says no.
fn plain_base(folder: &Path) -> PathBuf {
    let copy = folder.join("base");
    std::fs::create_dir(&copy).unwrap();
    for entry in std::fs::read_dir(base()).unwrap().map(|entry| entry.unwrap()) {
        std::fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    let template = "{% for m in messages %}{% if m.content == 'no' %}{{ raise_exception('never no') }}{% endif %}<|im_start|>{{ m.role }}\n\
        {{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let _ = std::fs::remove_file(copy.join("chat_template.jinja"));
    std::fs::write(copy.join("chat_template.jinja"), template).unwrap();
    copy
}

#[test]
fn a_bad_line_of_score_and_generate_is_named_and_the_others_are_done() {
    let folder = tempfile::tempdir().unwrap();
    let model = plain_base(folder.path());
    let input = folder.path().join("in.jsonl");
    let nested = format!("{{\"id\": {}1{}, \"text\": \"x\"}}", "[".repeat(200), "]".repeat(200));
    let lines = [
        r#"{"id": "a", "text": "hello"}"#,
        "{torn",
        r#"{"id": "m", "messages": []}"#,
        r#"{"id": "n", "messages": [{"role": "user", "content": "no"}]}"#,
        r#"{"id": "t", "messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}"#,
        r#"{"id": "both", "text": "x", "ids": [1]}"#,
        &nested,
        r#"{"id": "b", "messages": [{"role": "user", "content": "yes"}]}"#,
        r#"{"id": ["x"], "text": "x"}"#,
    ];
    let mut text = lines.join("\n").into_bytes();
    text.extend(b"\n{\"id\": \"u\", \"text\": \"\xff\"}\n\n");
    std::fs::write(&input, &text).unwrap();
    let (model, input) = (model.to_str().unwrap(), input.to_str().unwrap());
    for command in [&["score"][..], &["generate", "--max-new-tokens", "2"]] {
        let args = [command, &["--model", model, "--input", input]].concat();
        let output = karat(&args);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(6), "{said}");
        assert_eq!(rows(&output).iter().map(|row| row["id"].clone()).collect::<Vec<_>>(), ["a", "b"], "{said}");
        for (line, reason) in [
            (2, "broken input line"),
            (3, "\"messages\" is empty"),
            (4, "chat_template.jinja:"),
            (4, "never no"),
            (5, "\"tool_calls\" is not read"),
            (6, "exactly one of ids, text and messages"),
            (7, "recursion limit"),
            (9, "\"id\" must be a text or a number"),
            (10, "invalid UTF-8"),
        ] {
            let place = format!("in.jsonl:{line}: ");
            assert!(said.lines().any(|l| l.contains(&place) && l.contains(reason)), "no {place}{reason} in {said}");
        }
        assert!(said.contains("8 bad lines left out"), "{said}");
        let strict = karat(&[&args[..], &["--strict"]].concat());
        assert_eq!((strict.status.code(), strict.stdout.len()), (Some(6), 0));
        assert!(String::from_utf8_lossy(&strict.stderr).contains("in.jsonl:2: broken input line"));
    }
    std::fs::write(input, "{}\n[]\n").unwrap();
    let none = karat(&["score", "--model", model, "--input", input]);
    assert_eq!(none.status.code(), Some(6));
    assert!(said(&none).contains("none of the 2 lines is usable; line 1: a line needs exactly one"), "{}", said(&none));
}

#[test]
fn a_text_without_tokens_scores_nothing_and_not_less() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in.jsonl");
    std::fs::write(&input, "{\"id\": 1, \"text\": \"\"}\n{\"id\": 2, \"ids\": [5]}\n{\"id\": 3, \"ids\": []}\n")
        .unwrap();
    let output = karat(&["score", "--model", base().to_str().unwrap(), "--input", input.to_str().unwrap()]);
    assert!(output.status.success(), "{}", said(&output));
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!((text.matches("\"sum\":0.0").count(), text.matches("-0.0").count()), (3, 0), "{text}");
}

#[test]
fn rows_that_the_model_cannot_take_are_bad_lines_among_others() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in.jsonl");
    let long = format!("{{\"id\": \"long\", \"ids\": {:?}}}", vec![5; 100_000]);
    let lines =
        [r#"{"id": "a", "ids": [5, 6]}"#, r#"{"id": "out", "ids": [5, 1000000]}"#, &long, r#"{"id": "e", "text": ""}"#];
    std::fs::write(&input, lines.join("\n")).unwrap();
    let (model, input) = (base(), input.to_str().unwrap().to_string());
    for (command, kept) in [(&["score"][..], vec!["a", "e"]), (&["generate", "--max-new-tokens", "2"], vec!["a"])] {
        let args = [command, &["--model", model.to_str().unwrap(), "--input", &input]].concat();
        let output = karat(&args);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(6), "{said}");
        assert_eq!(rows(&output).iter().map(|row| row["id"].clone()).collect::<Vec<_>>(), kept, "{said}");
        assert!(said.contains("in.jsonl:2: the id 1000000 is not one of the model's"), "{said}");
        assert!(said.contains("in.jsonl:3: 100000 tokens, the model has room for"), "{said}");
        assert_eq!(said.contains("in.jsonl:4: the prompt is empty"), command[0] == "generate", "{said}");
        let strict = karat(&[&args[..], &["--strict"]].concat());
        assert_eq!((strict.status.code(), strict.stdout.len()), (Some(6), 0));
    }
}

#[test]
fn train_says_what_it_leaves_out_drops_and_writes_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let model = plain_base(folder.path());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let mut lines: Vec<String> = (0..4)
        .map(|i| json!({"id": i, "question": format!("q{i}"), "think": "why", "answer": "so"}).to_string())
        .collect();
    lines.push(json!({"question": "long ".repeat(200), "answer": "cut away"}).to_string());
    lines.push(json!({"question": "no", "answer": "never"}).to_string());
    lines.push("{torn".into());
    std::fs::write(path("rows.jsonl"), lines.join("\n")).unwrap();
    let (data, out) = (path("rows.jsonl"), path("out"));
    let args = ["train", "--model", model.to_str().unwrap(), "--data", &data, "--out", &out, "--set", "max_steps=1"];
    let args = [&args[..], &["--set", "data.max_length=64", "--method", "lora"]].concat();
    let output = karat(&args);
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    for words in [
        "rows.jsonl:6: the chat template cannot be rendered: never no",
        "rows.jsonl:7: invalid JSON",
        "2 bad lines left out",
        "1 examples were dropped",
        "the chat template has no place for reasoning",
        "(rows 4)",
    ] {
        assert!(text.contains(words), "no {words:?} in {text}");
    }
    let strict = karat(&[&args[..], &["--strict"]].concat());
    assert_eq!(strict.status.code(), Some(6));
    let forbidden = karat(&[&args[..], &["--set", "data.reasoning=template"]].concat());
    assert_eq!(forbidden.status.code(), Some(2));
    assert!(said(&forbidden).contains("drops the reasoning"), "{}", said(&forbidden));
}
