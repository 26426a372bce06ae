//! Broken files, by the hundred and always the same ones: every row is good or bad, and nothing
//! panics.

#![allow(clippy::unwrap_used)]

mod byte_model;

use byte_model::byte_model;
use karat::data::csv::parse_csv;
use karat::data::examples::{FormatOptions, Formatter, OutputFormat};
use karat::data::fields::Fields;
use karat::data::read::parse_jsonl;
use karat::data::record::Dataset;
use karat::data::template::ChatTemplate;
use karat::data::tokens::Tokenizer;
use serde_json::{Value, json};

const PLAIN: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Steele and Vigna's SplitMix64: the same mutants on every machine.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
    fn pick<'t, T>(&mut self, list: &'t [T]) -> &'t T {
        &list[self.below(list.len())]
    }
}

/// Values that stand where another was meant.
fn strange(dice: &mut Dice) -> Value {
    let values = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(1e308),
        json!(-0.0),
        json!(1.0),
        json!(18_446_744_073_709_551_615_u64),
        json!(""),
        json!(" \n\t"),
        json!("\u{0}"),
        json!("\u{feff}x"),
        json!("\u{202e}x\u{8}\u{1b}[31m"),
        json!("<think>"),
        json!("</think>"),
        json!("<think>a</think>b</think>c"),
        json!("<|im_end|>"),
        json!("= 1 + 1"),
        json!("\n\n"),
        json!("長".repeat(3000)),
        json!("i".repeat(2000)),
        json!([]),
        json!({}),
        json!([[[{}]]]),
        json!([{"role": "user"}]),
        json!({"A": "x", "C": "y"}),
        json!([{"type": "text", "text": "x"}]),
    ];
    dice.pick(&values).clone()
}

fn base(layout: usize, i: usize) -> Value {
    match layout {
        0 => {
            json!({"id": i, "question": format!("q{i}"), "think": "t", "answer": "a", "cluster": "c", "options": ["a", "b"]})
        }
        1 => json!({"instruction": format!("q{i}"), "input": "x", "output": "<think>t</think>a"}),
        _ => json!({"messages": [
            {"role": "system", "content": "s"}, {"role": "user", "content": format!("q{i}")},
            {"role": "assistant", "content": "a", "reasoning_content": "t", "weight": 1}]}),
    }
}

/// Puts a strange value somewhere into a value.
fn twist(value: &mut Value, dice: &mut Dice) {
    match value {
        Value::Object(map) if !map.is_empty() && dice.below(6) > 0 => {
            let key = map.keys().nth(dice.below(map.len())).unwrap().clone();
            match dice.below(8) {
                0 => drop(map.remove(&key)),
                1 => drop(map.insert("name".into(), strange(dice))),
                2 => drop(map.insert("tool_calls".into(), strange(dice))),
                _ => twist(map.get_mut(&key).unwrap(), dice),
            }
        }
        Value::Array(list) if !list.is_empty() && dice.below(4) > 0 => {
            let at = dice.below(list.len());
            if dice.below(5) == 0 { drop(list.remove(at)) } else { twist(&mut list[at], dice) }
        }
        other => *other = strange(dice),
    }
}

/// Breaks the bytes of one row, which stays one line.
fn damage(row: &mut Vec<u8>, dice: &mut Dice) {
    let at = dice.below(row.len());
    match dice.below(9) {
        0 => row.truncate(at),
        1 => row[at] = *dice.pick(&[0, 0xff, 0xc3, b'"', b'{', b'\\', b'\r']),
        2 => drop(row.splice(at..at, "\u{feff}".bytes())),
        3 => drop(row.splice(at..at, *b"\\ud800")),
        4 => drop(row.splice(at..at, *b"\\u0000")),
        5 => row.push(b'\r'),
        6 => *row = [b"[".repeat(300), row.clone()].concat(),
        7 => *row = format!("{{\"question\": {}1{}}}", "[".repeat(200), "]".repeat(200)).into_bytes(),
        _ => row.clear(),
    }
}

fn formatter() -> Formatter {
    let dir = byte_model(Some(PLAIN));
    let options = FormatOptions { output: OutputFormat::Template, ..FormatOptions::default() };
    let template = ChatTemplate::from_model_dir(dir.path()).unwrap();
    Formatter::new(template, Tokenizer::from_model_dir(dir.path()).unwrap(), options).unwrap()
}

/// Good and bad rows are all rows, each named once; so are examples and bad records all records.
fn check(data: karat::Result<Dataset>, rows: usize, formatter: &Formatter, what: &str) -> (usize, usize) {
    let data = match data {
        Ok(data) => data,
        Err(error) => {
            let all = format!("none of the {rows} lines is a usable row");
            assert!(error.what().starts_with(&all) || error.what() == "the data set is empty", "{what}: {error}");
            return (0, rows);
        }
    };
    assert_eq!(data.records.len() + data.bad.len(), rows, "{what}");
    let mut lines: Vec<usize> = data.records.iter().map(|r| r.line).chain(data.bad.iter().map(|b| b.line)).collect();
    lines.sort_unstable();
    lines.dedup();
    assert_eq!(lines.len(), rows, "{what}: every line is named once");
    assert!(data.bad.iter().all(|bad| !bad.reason.is_empty() && bad.reason.chars().count() <= 401), "{what}");
    if let Ok(examples) = formatter.examples(&data.records) {
        let all = examples.examples.len() + examples.dropped.len() + examples.bad.len();
        assert_eq!(all, data.records.len(), "{what}");
    }
    (data.records.len(), data.bad.len())
}

#[test]
fn good_and_bad_rows_are_all_rows_of_any_mutant() {
    let formatter = formatter();
    let fields = [Fields::default(), Fields::alpaca(), Fields::messages()];
    let (mut good, mut bad) = (0, 0);
    for seed in 0..600 {
        let mut dice = Dice(seed);
        let layout = dice.below(3);
        let mut rows: Vec<Value> = (0..6).map(|i| base(layout, i)).collect();
        for _ in 0..dice.below(4) {
            let at = dice.below(rows.len());
            twist(&mut rows[at], &mut dice);
        }
        let mut lines: Vec<Vec<u8>> = rows.iter().map(|row| row.to_string().into_bytes()).collect();
        for _ in 0..dice.below(3) {
            // The last line stays, so that no line falls off the end as a blank one.
            let at = dice.below(lines.len() - 1);
            if !lines[at].is_empty() {
                damage(&mut lines[at], &mut dice);
            }
        }
        let end = *dice.pick(&[&b"\n"[..], b"\r\n"]);
        let text = lines.join(end);
        let what = format!("seed {seed}: {}", String::from_utf8_lossy(&text).chars().take(3000).collect::<String>());
        let (g, b) = check(parse_jsonl(&text, "f", &fields[layout], false), rows.len(), &formatter, &what);
        (good, bad) = (good + g, bad + b);
    }
    assert!(good > 1500 && bad > 300, "{good} good and {bad} bad: the mutants are too tame or too wild");
}

#[test]
fn good_and_bad_rows_are_all_rows_of_any_table() {
    let formatter = formatter();
    let fields = Fields::default();
    let cells = [
        "",
        "x",
        "1",
        "-0",
        "1e308",
        "= 1 + 1",
        "two\nlines",
        "quoted \"so\"",
        "a,b",
        "\u{feff}",
        "<think>t</think>a",
        "\u{0}",
        "長",
        "<|im_end|>",
        "\r\n",
        " ",
    ];
    for seed in 0..300 {
        let mut dice = Dice(seed);
        let mut text = Vec::new();
        if dice.below(2) == 0 {
            text.extend("\u{feff}".bytes());
        }
        text.extend(b"id,question,think,answer");
        let rows = 1 + dice.below(6);
        for row in 0..rows {
            text.extend(*dice.pick(&[&b"\n"[..], b"\r\n", b"\n\n"]));
            let mut written = vec![format!("\"i{row}\"").into_bytes()];
            // Too few, too many, not UTF-8, huge.
            for _ in 0..*dice.pick(&[2, 3, 3, 3, 3, 4]) {
                let cell = format!("\"{}\"", dice.pick(&cells).replace('"', "\"\""));
                written.push(if dice.below(20) == 0 { vec![b'"', 0xff, b'"'] } else { cell.into_bytes() });
            }
            if dice.below(30) == 0 {
                written[1] = b"x".repeat(100_000);
            }
            text.extend(written.join(&b","[..]));
        }
        let what = format!("seed {seed}: {}", String::from_utf8_lossy(&text).chars().take(3000).collect::<String>());
        check(parse_csv(&text, "f.csv", &fields, false), rows, &formatter, &what);
        // Any bytes at all: nothing panics.
        for _ in 0..3 {
            let at = dice.below(text.len());
            text[at] = dice.below(256) as u8;
        }
        text.truncate(text.len() - dice.below(text.len() / 2 + 1));
        let _ = parse_csv(&text, "f.csv", &fields, false);
    }
}

#[test]
fn ids_are_texts_and_whole_numbers_of_a_sensible_length() {
    let row = |id: &str| format!("{{\"id\": {id}, \"question\": \"q\", \"answer\": \"a\"}}\n");
    let text: String = ["1", "\"1.0\"", "2.0", "2.5", "1e308", "-0", "-1", "18446744073709551616", "{}", "[1]", "true"]
        .map(row)
        .concat();
    let long = row(&format!("\"{}\"", "i".repeat(1025)));
    let data = parse_jsonl(format!("{text}{long}").as_bytes(), "f", &Fields::default(), false).unwrap();
    assert_eq!(data.records.iter().map(|r| r.id.as_str()).collect::<Vec<_>>(), ["1", "1.0", "2", "0", "-1"]);
    let reasons: Vec<&str> = data.bad.iter().map(|bad| bad.reason.as_str()).collect();
    assert!(reasons[..6].iter().all(|reason| reason.contains("must be a string or an integer")), "{reasons:?}");
    assert_eq!(reasons[6], "\"id\" has 1025 bytes, more than 1024");
}

#[test]
fn a_row_of_more_than_two_mebibytes_is_a_bad_line_that_says_so() {
    let row = |answer: &str| json!({"question": "q", "answer": answer}).to_string();
    let text = format!("{}\n{}\n{}\n", row("a"), row(&"x y ".repeat(600_000)), row("b"));
    let data = parse_jsonl(text.as_bytes(), "f", &Fields::default(), false).unwrap();
    assert_eq!((data.records.len(), data.bad.len(), data.bad[0].line), (2, 1, 2));
    assert!(data.bad[0].reason.contains("more than the 2097152"), "{}", data.bad[0].reason);
    let table = format!("question,answer\nq,{}\nq,a\n", "x y ".repeat(600_000));
    let data = parse_csv(table.as_bytes(), "f.csv", &Fields::default(), false).unwrap();
    assert_eq!((data.records.len(), data.bad.len(), data.bad[0].line), (1, 1, 2));
}
