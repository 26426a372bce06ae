//! Broken lines are named with their number and reason; good ones are read whatever their line
//! ends.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use karat::ErrorKind;
use karat::data::fields::Fields;
use karat::data::read::{parse_jsonl, read_jsonl};
use karat::data::record::{Dataset, write_jsonl};
use proptest::prelude::*;

fn read(text: impl AsRef<[u8]>) -> karat::Result<Dataset> {
    parse_jsonl(text.as_ref(), "rows.jsonl", &Fields::default(), false)
}

const GOOD: &str = r#"{"question": "问", "think": "想", "answer": "答"}"#;

/// The reason for which `line` is refused between two good rows.
fn reason(line: impl AsRef<[u8]>) -> String {
    let text = [GOOD.as_bytes(), b"\n", line.as_ref(), b"\n", GOOD.as_bytes(), b"\n"].concat();
    let data = read(&text).unwrap();
    assert_eq!(data.records.len(), 2, "the good rows are kept");
    assert_eq!(data.bad.len(), 1);
    assert_eq!((data.bad[0].line, data.bad[0].file.as_str()), (2, "rows.jsonl"));
    let strict = parse_jsonl(&text, "rows.jsonl", &Fields::default(), true).unwrap_err();
    assert_eq!(strict.kind(), ErrorKind::Data);
    assert_eq!(strict.place(), Some("rows.jsonl:2"));
    assert_eq!(strict.what(), data.bad[0].reason);
    assert!(strict.help_text().is_some());
    data.bad[0].reason.clone()
}

#[test]
fn every_kind_of_bad_line_has_its_reason() {
    assert_eq!(reason(b"{\"question\": \"\xff\"}"), "invalid UTF-8 at byte 15");
    assert_eq!(reason("{\"question\": "), "invalid JSON: EOF while parsing a value (column 13)");
    assert_eq!(reason("{} {}"), "invalid JSON: trailing characters (column 4)");
    assert_eq!(reason("[1]"), "expected a JSON object, found a list");
    assert_eq!(reason(""), "the line is blank");
    assert_eq!(reason(r#"{"answer": "a"}"#), "\"question\" is missing");
    assert_eq!(reason(r#"{"question": null, "answer": "a"}"#), "\"question\" is missing");
    assert_eq!(reason(r#"{"question": 5, "answer": "a"}"#), "\"question\" must be a string, found a number");
    assert_eq!(reason(r#"{"question": "q", "answer": " \n"}"#), "\"answer\" is empty");
    assert_eq!(reason(r#"{"question": "q", "answer": "a", "think": []}"#), "\"think\" must be a string, found a list");
    assert_eq!(reason(r#"{"question": "q\u0000", "answer": "a"}"#), "the question contains a NUL character");
    assert_eq!(
        reason(r#"{"question": "q", "answer": "a", "id": 1.5}"#),
        "\"id\" must be a string or an integer, found a number"
    );
    assert!(reason(r#"{"question": "\ud800", "answer": "a"}"#).starts_with("invalid JSON: "));
}

#[test]
fn an_id_that_was_used_before_is_a_bad_row() {
    let row = |id: &str| format!(r#"{{"id": {id}, "question": "q", "answer": "a"}}"#);
    let data = read([row("\"x\""), row("7"), row("\"7\""), row("\"x\"")].join("\n")).unwrap();
    assert_eq!(data.records.iter().map(|r| r.id.as_str()).collect::<Vec<_>>(), ["x", "7"]);
    let reasons: Vec<_> = data.bad.iter().map(|b| (b.line, b.reason.as_str())).collect();
    assert_eq!(
        reasons,
        [(3, "the id \"7\" was already used on line 2"), (4, "the id \"x\" was already used on line 1")]
    );
}

#[test]
fn without_an_id_the_content_names_the_row_and_copies_stay_apart() {
    let other = r#"{"question": "问", "think": "想", "answer": "别"}"#;
    let data = read([GOOD, other, GOOD, GOOD].join("\n")).unwrap();
    let ids: Vec<_> = data.records.iter().map(|r| r.id.clone()).collect();
    assert!(data.bad.is_empty(), "a repeated row is the audit's business");
    assert!(ids[0].starts_with("sha256:") && ids[0].len() == 23);
    assert_eq!(ids[2], format!("{}#2", ids[0]));
    assert_eq!(ids[3], format!("{}#3", ids[0]));
    assert_ne!(ids[1], ids[0]);
    assert_eq!(read([other, GOOD].join("\n")).unwrap().records[1].id, ids[0], "the order does not matter");
    assert_eq!(data.records[1].cluster, ids[1], "a row alone is its own cluster");
}

#[test]
fn byte_order_mark_crlf_and_blank_last_lines_are_fine() {
    let plain = read(format!("{GOOD}\n{}\n", GOOD.replace('想', "思"))).unwrap();
    let windows = read(format!("\u{feff}{GOOD}\r\n{}\r\n\r\n  \n\n", GOOD.replace('想', "思"))).unwrap();
    assert_eq!(windows.records, plain.records);
    assert!(windows.bad.is_empty());
    assert_ne!(windows.files[0].sha256, plain.files[0].sha256, "the hash is of the bytes");
}

#[test]
fn a_file_without_a_good_row_says_why_and_what_to_do() {
    for empty in ["", "\n\n", "\u{feff}"] {
        let error = read(empty).unwrap_err();
        assert_eq!(
            (error.kind(), error.what(), error.place()),
            (ErrorKind::Data, "the data set is empty", Some("rows.jsonl"))
        );
    }
    let error = read("{}\n{}").unwrap_err();
    assert_eq!(error.what(), "none of the 2 lines is a usable row; line 1: \"question\" is missing");
    let wrapped = read(format!("{{\n  \"data\": [\n{GOOD}\n]\n}}")).unwrap_err();
    assert!(wrapped.what().contains("one JSON object over many lines"), "{wrapped}");
    assert!(wrapped.help_text().unwrap().contains("jq"), "{wrapped}");
    let wrapped = read(format!("{{\"data\": [{GOOD}]}}")).unwrap_err();
    assert!(wrapped.what().contains("the columns are \"data\""), "{wrapped}");
    let missing = read_jsonl("no/such/file.jsonl", &Fields::default(), false).unwrap_err();
    assert_eq!(missing.place(), Some("no/such/file.jsonl"));
}

#[test]
fn extra_fields_are_ignored_and_names_can_be_chosen() {
    let fields = Fields { question: "q".into(), answer: "a".into(), cluster: "drug".into(), ..Fields::default() };
    let text = r#"{"q": "x", "a": "y", "drug": 3, "metrics": {"f": [1]}, "instruction": "i", "question": 9}"#;
    let record = parse_jsonl(text.as_bytes(), "f", &fields, true).unwrap().records.remove(0);
    assert_eq!((record.question.as_str(), record.answer.as_str(), record.think.as_str()), ("x", "y", ""));
    assert_eq!((record.cluster.as_str(), record.instruction.as_deref(), record.line), ("3", Some("i"), 1));
    let item = record.to_item();
    assert_eq!((item.question.as_str(), item.cluster.as_str()), ("x", "3"));
}

#[test]
fn alpaca_rows_join_instruction_and_input_and_part_the_reasoning() {
    let rows = [
        r#"{"instruction": "Translate", "input": "你好", "output": "<think>\nhm\n</think>\n\nhello"}"#,
        r#"{"instruction": "Say hi", "input": "", "output": "hi <think>"}"#,
        r#"{"instruction": "Say hi", "output": "<think>never closed"}"#,
        r#"{"instruction": "Say hi", "output": "<think>no answer</think> "}"#,
    ];
    let data = parse_jsonl(rows.join("\n").as_bytes(), "f", &Fields::alpaca(), false).unwrap();
    let parts: Vec<_> =
        data.records.iter().map(|r| (r.question.as_str(), r.think.as_str(), r.answer.as_str())).collect();
    assert_eq!(parts, [("Translate\n你好", "hm", "hello")]);
    // As candidates these have no answer either.
    let reasons: Vec<_> = data.bad.iter().map(|b| b.reason.as_str()).collect();
    let open = "\"output\" opens its reasoning and never closes it, so that it has no answer";
    assert_eq!(reasons, [open, open, "\"output\" has reasoning but no answer"]);
}

#[test]
fn chat_rows_give_the_last_answer_and_what_came_before() {
    let rows = [
        r#"{"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q1"}, {"role": "assistant", "content": "A1"},
            {"role": "user", "content": "Q2"}, {"role": "assistant", "content": "A2", "reasoning_content": "T2"}]}"#,
        r#"{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "<think>T</think>A"}]}"#,
        r#"{"messages": [{"role": "user", "content": "Q"}]}"#,
        r#"{"messages": [{"role": "assistant", "content": "A"}]}"#,
        r#"{"messages": [{"role": "system", "content": "S"}]}"#,
        r#"{"messages": [{"role": "user"}]}"#,
        r#"{"messages": "hello"}"#,
    ]
    .map(|row| row.replace('\n', " "));
    let data = parse_jsonl(rows.join("\n").as_bytes(), "f", &Fields::messages(), false).unwrap();
    let first = &data.records[0];
    assert_eq!((first.question.as_str(), first.think.as_str(), first.answer.as_str()), ("Q2", "T2", "A2"));
    let history: Vec<_> = first.history.iter().map(|t| (t.role.as_str(), t.content.as_str())).collect();
    assert_eq!(history, [("system", "S"), ("user", "Q1"), ("assistant", "A1")]);
    assert_eq!((data.records[1].think.as_str(), data.records[1].answer.as_str()), ("T", "A"));
    let reasons: Vec<_> = data.bad.iter().map(|b| b.reason.as_str()).collect();
    assert_eq!(
        reasons,
        [
            "the last message must be of assistant",
            "after the optional system message, message 1 must be of user, found assistant",
            "\"messages\" has no question and answer",
            "message 1: \"content\" is missing",
            "\"messages\" must be a list, found a string",
        ]
    );
}

#[test]
fn the_decision_within_a_rows_metrics_is_read_written_and_refused_by_name_if_it_is_none() {
    use karat::eval::Decision;
    let row = |metrics: &str| format!(r#"{{"question": "q", "answer": "a", "metrics": {metrics}}}"#);
    let rows =
        [r#"{"decision": "no"}"#, r#"{"decision": true}"#, r#"{"decision": null}"#, r#"{"quality_f1": 1.0}"#, "5"];
    let data = read(rows.map(row).join("\n")).unwrap();
    let found: Vec<_> = data.records.iter().map(|r| r.to_item().decision).collect();
    assert_eq!(found, [Some(Decision::No), Some(Decision::Yes), None, None, None]);
    let path = tempfile::tempdir().unwrap();
    let path = path.path().join("out.jsonl");
    write_jsonl(&path, &data.records).unwrap();
    assert_eq!(read_jsonl(&path, &Fields::default(), true).unwrap().records, data.records);
    let refused = reason(row(r#"{"decision": "perhaps"}"#));
    assert_eq!(refused, "\"metrics.decision\" must be \"yes\" or \"no\", found \"perhaps\"");
}

#[test]
fn what_is_written_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let data = read(format!("{GOOD}\n{GOOD}\n")).unwrap();
    let path = dir.path().join("out.jsonl");
    write_jsonl(&path, &data.records).unwrap();
    assert_eq!(read_jsonl(&path, &Fields::default(), true).unwrap().records, data.records);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn the_real_validation_set_reads_without_a_bad_line() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shared = std::env::var_os("KARAT_SHARED").map(PathBuf::from);
    let found = shared.into_iter().chain(here.ancestors().map(|dir| dir.join("shared")));
    let Some(path) = found.map(|dir| dir.join("data/medical-r1/val.jsonl")).find(|path| path.is_file()) else {
        eprintln!("skipped: no shared/data beside the repository");
        return;
    };
    let data = read_jsonl(path, &Fields::default(), true).unwrap();
    assert_eq!(data.records.len(), 241);
    assert!(data.records.iter().all(|r| !r.think.is_empty() && r.instruction.is_some()));
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic_and_every_line_is_accounted_for(bytes: Vec<u8>) {
        let text = [GOOD.as_bytes(), b"\n", &bytes].concat();
        let data = read(&text).unwrap();
        let trimmed = text.trim_ascii_end();
        let lines = trimmed.split(|&b| b == b'\n').count();
        prop_assert_eq!(data.records.len() + data.bad.len(), lines);
    }
}
