//! Rows in every usual form are the same records; the form is a file's, found by its keys and told.

#![allow(clippy::unwrap_used)]

use karat::ErrorKind;
use karat::data::examples::TrainOn;
use karat::data::fields::{Fields, Reading};
use karat::data::format::{Format, Preference};
use karat::data::record::Dataset;
use karat::eval::think::ThinkTags;
use serde_json::{Value, json};

struct Said {
    format: Format,
    preference: Preference,
    train_on: TrainOn,
}

const AS_FOUND: Said = Said { format: Format::Auto, preference: Preference::Refuse, train_on: TrainOn::Last };
const CHOSEN: Said = Said { preference: Preference::Chosen, ..AS_FOUND };
const ALL: Said = Said { train_on: TrainOn::All, ..AS_FOUND };

fn read_as(said: &Said, rows: &[Value]) -> karat::Result<Dataset> {
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows.jsonl");
    std::fs::write(&file, text).unwrap();
    let (fields, tags) = (Fields::default(), ThinkTags::default());
    let Said { format, preference, train_on } = *said;
    Reading { format, preference, train_on, ..Reading::new(&fields, &tags) }.read(file)
}

fn read(rows: &[Value]) -> Dataset {
    read_as(&AS_FOUND, rows).unwrap()
}

/// The turns of the only record: role and text, the last one's reasoning behind it.
fn turns(data: &Dataset) -> Vec<(String, String)> {
    let [record] = &data.records[..] else { panic!("{} records, {:?}", data.records.len(), data.bad) };
    let mut turns: Vec<(String, String)> =
        record.history.iter().map(|turn| (turn.role.clone(), turn.content.clone())).collect();
    turns.push(("user".into(), record.question.clone()));
    turns.push((format!("assistant {}", record.think), record.answer.clone()));
    turns
}

fn said(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(role, text)| (role.to_string(), text.to_string())).collect()
}

/// Why the second of two rows is a bad one; the first is good and of the same form.
fn reason(good: Value, bad: Value) -> String {
    let data = read(&[good, bad]);
    assert_eq!((data.records.len(), data.bad.len()), (1, 1), "{:?}", data.bad);
    data.bad[0].reason.clone()
}

#[test]
fn one_conversation_in_every_form_is_one_record() {
    let long = said(&[("system", "S"), ("user", "Q1"), ("assistant", "A1"), ("user", "Q2"), ("assistant T", "A2")]);
    let short = said(&[("user", "Q2"), ("assistant T", "A2")]);
    let chat = |think: bool| {
        let mut last = json!({"role": "assistant", "content": "A2"});
        if think {
            last["reasoning_content"] = "T".into();
        } else {
            last["content"] = "<think>T</think>A2".into();
        }
        json!([{"role": "system", "content": "S"}, {"role": "user", "content": "Q1"}, {"role": "assistant", "content": "A1"},
            {"role": "user", "content": "Q2"}, last])
    };
    let shared = json!([{"from": "human", "value": "Q1"}, {"from": "gpt", "value": "A1"}, {"from": "user", "value": "Q2"},
        {"from": "ChatGPT", "value": "<think>\nT\n</think>\n\nA2"}]);
    let rows = [
        (Format::Messages, &long, json!({"messages": chat(true)})),
        (Format::Messages, &long, json!({"Messages": chat(false), "prompt": "Q1"})),
        (Format::Messages, &long, json!({"conversations": chat(true)})),
        (Format::Sharegpt, &long, json!({"conversations": shared, "system": "S", "id": "x"})),
        (Format::Sharegpt, &long, json!({"conversation": shared, "System": "S", "tools": ""})),
        (
            Format::Alpaca,
            &long,
            json!({"instruction": "Q2", "input": "", "output": "A2", "history": [["Q1", "A1"]], "system": "S", "think": "T"}),
        ),
        (Format::Alpaca, &short, json!({"Instruction": "Q2", "Output": "<think>T</think>A2", "text": "all of it"})),
        (
            Format::PromptCompletion,
            &long,
            json!({"prompt": chat(true).as_array().unwrap()[..4], "completion": chat(true).as_array().unwrap()[4..]}),
        ),
        (Format::PromptCompletion, &short, json!({"prompt": "Q2", "completion": "A2", "reasoning": "T"})),
        (Format::Columns, &short, json!({"question": "Q2", "answer": "<think>T</think>A2"})),
        (Format::Columns, &short, json!({"Question": "Q2", "Think": "T", "ANSWER": "A2", "instruction": "i"})),
        (Format::Columns, &short, json!({"question": "Q2", "thinking": "T", "answer": "A2", "output": "no"})),
    ];
    for (format, expected, row) in rows {
        let data = read(std::slice::from_ref(&row));
        assert_eq!((data.files[0].read_as, &turns(&data)), (format, expected), "{row}");
        assert_eq!(data.records[0].history.iter().filter(|turn| turn.role == "system").count(), expected.len() / 5);
    }
    let pairs = [
        (&short, json!({"prompt": "Q2", "chosen": "<think>T</think>A2", "rejected": "B"})),
        (&long, json!({"chosen": chat(true), "rejected": chat(false)})),
        (
            &long,
            json!({"prompt": chat(true).as_array().unwrap()[..4], "chosen": chat(true).as_array().unwrap()[4..], "rejected": []}),
        ),
        // The prompt once more before the answer.
        (&short, json!({"prompt": "Q2", "chosen": chat(true).as_array().unwrap()[3..], "rejected": "B"})),
    ];
    for (expected, row) in pairs {
        let data = read_as(&CHOSEN, std::slice::from_ref(&row)).unwrap();
        assert_eq!((data.files[0].read_as, &turns(&data)), (Format::Preference, expected), "{row}");
    }
}

#[test]
fn every_turn_of_the_assistants_is_trained_on_where_that_is_asked() {
    let chat = |weights: [Option<u8>; 3]| {
        let turns = weights.iter().enumerate().flat_map(|(i, weight)| {
            let mut answer = json!({"role": "assistant", "content": format!("A{i}")});
            if let Some(weight) = weight {
                answer["weight"] = (*weight).into();
            }
            [json!({"role": "user", "content": format!("Q{i}")}), answer]
        });
        Value::Array([json!({"role": "system", "content": "S"})].into_iter().chain(turns).collect())
    };
    let trained = |row: Value| {
        let data = read_as(&ALL, &[row]).unwrap();
        let record = &data.records[0];
        (record.trained.clone(), record.answer.clone())
    };
    assert_eq!(trained(json!({"messages": chat([None, None, None])})), (vec![2, 4], "A2".into()));
    assert_eq!(trained(json!({"messages": chat([Some(0), Some(1), None])})), (vec![4], "A2".into()));
    // Behind the last turn that is trained on nothing is said that its loss could know of.
    assert_eq!(trained(json!({"messages": chat([None, None, Some(0)])})), (vec![2], "A1".into()));
    let none = read_as(&ALL, &[json!({"messages": chat([Some(0), Some(0), Some(0)])})]).unwrap_err();
    assert!(none.what().contains("leaves nothing to train on"), "{none}");
    // What is asked apart is asked, whoever said it.
    let list = chat([None, None, None]);
    let (prompt, completion) = list.as_array().unwrap().split_at(4);
    assert_eq!(trained(json!({"prompt": prompt, "completion": completion})), (vec![4], "A2".into()));
    let data = read(&[json!({"messages": chat([None, None, None])}), json!({"messages": chat([Some(1), None, None])})]);
    assert_eq!((data.untrained_turns, data.earlier_weights), (2, 1));
    assert!(data.records.iter().all(|record| record.trained.is_empty()));
    let data = read_as(&ALL, &[json!({"messages": chat([None, None, None])})]).unwrap();
    assert_eq!((data.untrained_turns, data.earlier_weights), (0, 0));
}

#[test]
fn the_form_is_the_files_and_rows_of_two_are_an_error_that_names_both() {
    let columns = json!({"question": "q", "answer": "a"});
    let alpaca = json!({"instruction": "i", "output": "o"});
    let error = read_as(&AS_FOUND, &[columns.clone(), columns.clone(), alpaca.clone()]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    assert_eq!(error.what(), "the row is of the form alpaca, the one on line 1 of the form question-answer");
    assert!(error.place().unwrap().ends_with("rows.jsonl:3") && error.help_text().unwrap().contains("data.format"));
    // Forced, the others are bad rows.
    let forced = read_as(&Said { format: Format::Alpaca, ..AS_FOUND }, &[columns.clone(), alpaca.clone()]).unwrap();
    assert_eq!((forced.files[0].read_as, forced.records.len(), forced.bad[0].line), (Format::Alpaca, 1, 1));
    // A row without a form waits for one that has it.
    let data = read(&[json!({"question": "q"}), json!({"note": 1}), columns.clone()]);
    let reasons: Vec<_> = data.bad.iter().map(|bad| (bad.line, bad.reason.as_str())).collect();
    assert_eq!(reasons, [(1, "\"answer\" is missing"), (2, "\"question\" is missing")]);
    // Keys that are null say nothing.
    let data = read(&[
        json!({"messages": null, "instruction": "i", "input": null, "output": "o", "system": null, "history": []}),
    ]);
    assert_eq!(data.files[0].read_as, Format::Alpaca);
}

#[test]
fn what_is_no_form_is_told_with_the_columns_that_were_found() {
    let error = read_as(&AS_FOUND, &[json!({"frage": "q", "antwort": "a"}), json!({"mehr": 1})]).unwrap_err();
    assert!(error.what().starts_with("none of the 2 lines is a usable row; line 1: "), "{error}");
    assert!(error.what().ends_with("the columns are \"frage\", \"antwort\", \"mehr\""), "{error}");
    assert!(error.help_text().unwrap().contains("data.fields"), "{error}");
    let error = read_as(&AS_FOUND, &[json!({"question": "q", "Answre": "a"})]).unwrap_err();
    assert!(error.what().contains("\"answer\" is missing; the columns are \"question\", \"Answre\""), "{error}");
    // Two columns that differ in letter case alone: the exact one, else neither.
    let exact = read(&[json!({"Question": "no", "question": "q", "answer": "a"})]);
    assert_eq!(exact.records[0].question, "q");
    let good = json!({"question": "q", "answer": "a"});
    assert_eq!(
        reason(good, json!({"Question": "x", "QUESTION": "y", "answer": "a"})),
        "\"Question\" and \"QUESTION\" differ in letter case alone, and neither is \"question\""
    );
}

#[test]
fn what_cannot_be_learnt_from_is_refused_with_what_to_do() {
    let refused = |row: Value, words: &[&str]| {
        let error = read_as(&AS_FOUND, &[row]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        let text = format!("{error} {}", error.help_text().unwrap());
        words.iter().for_each(|words| assert!(text.contains(words), "{text:?} does not say {words:?}"));
    };
    refused(
        json!({"prompt": "p", "chosen": "c", "rejected": "r"}),
        &["preference pairs", "data.preference = \"chosen\""],
    );
    refused(json!({"chosen": [], "rejected": []}), &["preference pairs"]);
    refused(json!({"text": "plain"}), &["plain texts", "karat train --text"]);
    refused(json!({"prompt": "p", "completion": "c", "label": true}), &["\"label\"", "not trained on"]);
    let shared = |turns: Value| json!({"conversations": turns});
    let good = || shared(json!([{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]));
    let call = shared(json!([{"from": "human", "value": "q"}, {"from": "function_call", "value": "{}"}]));
    assert_eq!(reason(good(), call), "turn 2: \"function_call\" is a call of a tool or its answer, which is not read");
    let nobody = shared(json!([{"from": "alien", "value": "q"}]));
    assert!(reason(good(), nobody).contains("\"alien\" is nobody who is known"));
    let two = json!({"conversations": [{"from": "system", "value": "A"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
        "system": "B"});
    assert!(reason(good(), two).contains("two different system turns"));
    let tools = json!({"conversations": good()["conversations"], "tools": "[{\"name\": \"f\"}]"});
    assert_eq!(reason(good(), tools), "\"tools\" is not read: a row is text alone here");
    let first = shared(json!([{"from": "gpt", "value": "a"}, {"from": "human", "value": "q"}]));
    assert!(reason(good(), first).contains("message 1 must be of user, found assistant"));
    let alpaca = |history: Value| json!({"instruction": "i", "output": "o", "history": history});
    assert!(reason(alpaca(json!([])), alpaca(json!([["q"]]))).contains("list of [question, answer] pairs"));
    let implicit = read_as(&CHOSEN, &[json!({"chosen": "Human: q Assistant: a", "rejected": "Human: q Assistant: b"})])
        .unwrap_err();
    assert!(implicit.what().contains("where its question ends is not said"), "{implicit}");
    let vision = json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "images": [{"bytes": null}]});
    let chat = json!({"messages": vision["messages"]});
    assert_eq!(reason(chat, vision), "\"images\" is not read: a row is text alone here");
}

#[test]
fn labels_of_good_and_bad_completions_are_refused_however_they_are_written() {
    for label in [json!(true), json!(0), json!(1.0), json!("True"), json!("0")] {
        let bad = json!({"prompt": "Q", "completion": "A", "label": label});
        let said = reason(json!({"prompt": "Q", "completion": "A"}), bad);
        assert!(said.contains("\"label\" says whether the completion is a good one"), "{label}: {said}");
    }
    let other = read(&[json!({"prompt": "Q", "completion": "A", "label": "cardiology"})]);
    assert_eq!(other.records.len(), 1);
}

#[test]
fn a_question_has_the_turns_before_it_that_its_row_names() {
    let row = json!({"question": "Q2", "answer": "A2", "think": "T", "system": "S", "history": [["Q1", "A1"]]});
    let long = said(&[("system", "S"), ("user", "Q1"), ("assistant", "A1"), ("user", "Q2"), ("assistant T", "A2")]);
    assert_eq!(turns(&read(&[row])), long);
    let said =
        reason(json!({"question": "Q", "answer": "A"}), json!({"question": "Q", "answer": "A", "history": "none"}));
    assert!(said.contains("\"history\" must be a list of [question, answer] pairs"), "{said}");
}

#[test]
fn what_other_tools_write_into_turns_and_rows_is_understood() {
    // axolotl's word for a turn that is not trained on; a null where other rows have a weight.
    let turn =
        |from: &str, value: &str, train: Value| json!({"from": from, "value": value, "train": train, "weight": null});
    let row = |last: bool| {
        let turns = [turn("human", "Q", Value::Null), turn("gpt", "A", json!(last))];
        json!({"conversations": turns, "tools": "[]", "id": 3.0})
    };
    let data = read(&[row(true)]);
    assert_eq!((data.records[0].id.as_str(), data.records[0].answer.as_str()), ("3", "A"));
    let data =
        read(&[json!({"conversations": [turn("human", "Q", Value::Null), turn("gpt", "A", Value::Null)]}), row(false)]);
    assert!(data.bad[0].reason.contains("leaves nothing to train on"), "{:?}", data.bad);
    // OpenAI's newer name of the system turn.
    let messages = json!([
        {"role": "developer", "content": "S"}, {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
    ]);
    assert_eq!(turns(&read(&[json!({"messages": messages})]))[0], ("system".to_string(), "S".to_string()));
}

#[test]
fn turns_that_a_table_holds_as_json_text_are_read() {
    let turns = json!([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]);
    let data = read(&[json!({"Messages": turns.to_string()})]);
    assert_eq!((data.records[0].question.as_str(), data.files[0].read_as), ("Q", Format::Messages));
    // Not those of Python's `str`, which is no JSON.
    let error = read_as(&AS_FOUND, &[json!({"messages": "[{'role': 'user'}]"})]).unwrap_err();
    assert!(error.what().contains("must be a list, found a string"), "{error}");
}

#[test]
fn columns_that_are_not_read_are_told() {
    let unread = |rows: &[Value]| read(rows).files[0].unread_columns();
    let asked = |more: Value| {
        let mut row = json!({"Question": "Q", "answer": "A", "think": "T", "id": 1, "metrics": {}, "system": "S"});
        more.as_object().unwrap().iter().for_each(|(key, value)| row[key] = value.clone());
        row
    };
    assert_eq!(unread(&[asked(json!({}))]), None);
    let rows = [
        asked(json!({"context": "C", "note": "", "tags": []})),
        asked(json!({"id": 2, "context": "D", "lang": "zh"})),
        // A bad row counts for nothing.
        json!({"question": "Q", "other": 1}),
    ];
    assert_eq!(unread(&rows).as_deref(), Some("context (2 rows), lang (1 rows)"));
    // An instruction is not shown to the model; one that repeats the question is no loss.
    let instructed = |text: &str| json!({"question": "Q", "instruction": text, "answer": "A"});
    assert_eq!(unread(&[instructed("Q")]), None);
    assert_eq!(unread(&[instructed("Translate.")]).as_deref(), Some("instruction (1 rows)"));
    let alpaca = json!({"instruction": "I", "input": "Q", "output": "A", "history": [["q", "a"]], "text": "I Q A"});
    assert_eq!(unread(&[alpaca]).as_deref(), Some("text (1 rows)"));
    let turns = json!([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]);
    assert_eq!(unread(&[json!({"messages": turns, "prompt": "Q"})]).as_deref(), Some("prompt (1 rows)"));
    let completion = json!({"prompt": "P", "completion": "C", "source": "s"});
    assert_eq!(unread(&[completion]).as_deref(), Some("source (1 rows)"));
}
