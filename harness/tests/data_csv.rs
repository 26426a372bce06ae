//! CSV rows are JSON Lines rows in other clothes.

#![allow(clippy::unwrap_used)]

use karat::ErrorKind;
use karat::data::csv::parse_csv;
use karat::data::fields::{Fields, RowLayout};
use karat::data::read::{parse_jsonl, read_rows};

const CSV: &str = "\u{feff}id,question,think,answer,note\r\n\
    1,\"Why, exactly?\",\"two\nlines, one \"\"quoted\"\"\",因为,x\r\n\
    2,What?,,That.,\r\n";
const LINES: &str = concat!(
    r#"{"id": 1, "question": "Why, exactly?", "think": "two\nlines, one \"quoted\"", "answer": "因为"}"#,
    "\n\n",
    r#"{"id": 2, "question": "What?", "answer": "That."}"#,
);

#[test]
fn quoted_cells_and_empty_ones_are_the_rows_of_json_lines() {
    let fields = Fields::default();
    let mut csv = parse_csv(CSV.as_bytes(), "a.csv", &fields, true).unwrap();
    let lines = parse_jsonl(LINES.as_bytes(), "a.jsonl", &fields, false).unwrap();
    // The second row stands on line 4: the first takes two.
    assert_eq!(csv.records.iter().map(|r| r.line).collect::<Vec<_>>(), [2, 4]);
    csv.records.iter_mut().zip(&lines.records).for_each(|(a, b)| a.line = b.line);
    assert_eq!(csv.records, lines.records);
    assert_eq!(csv.files[0].sha256, karat::fsio::sha256(CSV.as_bytes()));

    // Without quotes a line ends the row, and with it the reasoning.
    let alpaca = "instruction,input,output\nAdd,1 + 1,<think>\nhm\n</think>\n2\n";
    let error = parse_csv(alpaca.as_bytes(), "a.csv", &Fields::alpaca(), false).unwrap_err();
    assert!(error.what().contains("none of the 4 lines") && error.what().contains("never closes it"), "{error}");
    let quoted = "instruction,input,output\nAdd,1 + 1,\"<think>\nhm\n</think>\n2\"\n";
    let read = parse_csv(quoted.as_bytes(), "a.csv", &Fields::alpaca(), true).unwrap();
    let record = &read.records[0];
    assert_eq!((record.question.as_str(), record.think.as_str(), record.answer.as_str()), ("Add\n1 + 1", "hm", "2"));
}

#[test]
fn the_end_of_the_name_decides() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [("a.csv", CSV), ("b.CSV", CSV), ("c.jsonl", LINES), ("d.txt", LINES)] {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        assert_eq!(read_rows(&path, &Fields::default(), false).unwrap().records.len(), 2, "{name}");
    }
    assert_eq!(read_rows(folder.path().join("no.csv"), &Fields::default(), false).unwrap_err().kind(), ErrorKind::Data);
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    let bad = |text: &[u8], fields: &Fields| {
        let error = parse_csv(text, "a.csv", fields, true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        error.to_string()
    };
    let fields = Fields::default();
    let says = |said: String, words: &str| assert!(said.contains(words), "{said:?} does not say {words:?}");
    says(bad(b"", &fields), "empty");
    says(bad(b"question,answer\n", &fields), "empty");
    says(bad(b"question,question\nx,y\n", &fields), "two columns are named \"question\"");
    says(bad(b"question,answer\na,b\nc\n", &fields), "a.csv:3: 1 cells, the first line names 2 columns");
    says(bad(b"question,answer\na,\n", &fields), "a.csv:2: \"answer\" is missing");
    says(bad(b"frage,answer\na,b\n", &fields), "\"question\" is missing");
    says(bad(b"question,answer\n\xff,b\n", &fields), "\"question\" is not UTF-8");
    says(bad(b"id,question,answer\n1,a,b\n1,c,d\n", &fields), "a.csv:3: the id \"1\" was already used on line 2");
    says(bad(b"messages\nhi\n", &Fields { layout: RowLayout::Messages, ..Fields::default() }), "must be a list");
    // Long cells and many columns.
    let names: Vec<String> = (0..200).map(|i| format!("c{i}")).collect();
    let wide = format!("question,answer,{}\n\n{},b{}\n", names.join(","), "长".repeat(5000), ",".repeat(200));
    let read = parse_csv(wide.as_bytes(), "a.csv", &fields, true).unwrap();
    assert_eq!((read.records[0].question.chars().count(), read.records[0].line), (5000, 3));
    // Without --strict the others are kept.
    let read = parse_csv(b"question,answer\na,b\nc\nd,e\n", "a.csv", &fields, false).unwrap();
    assert_eq!((read.records.len(), read.bad.len(), read.bad[0].line), (2, 1, 3));
}
