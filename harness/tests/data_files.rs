//! One set of rows in every kind of file is the same records; folders, patterns and cards name files;
//! what is broken or made to do harm is one clear error.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::{Path, PathBuf};

use karat::ErrorKind;
use karat::data::fields::{Fields, Reading};
use karat::data::files::{self, Part, found};
use karat::data::format::Format;
use karat::data::pretraining::{read_texts, read_texts_of};
use karat::data::read::read_rows;
use karat::data::record::{Dataset, Record};
use karat::eval::think::ThinkTags;
use serde_json::{Value, json};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

fn read(path: &Path) -> karat::Result<Dataset> {
    read_rows(path, &Fields::default(), false)
}

fn rows() -> Vec<Value> {
    vec![
        json!({"id": "a", "question": "Why,\nthen?", "think": "h\t\"m\"", "answer": "因为 [1]"}),
        json!({"id": "b", "question": "{\"q\": \"\\\"\"}", "answer": "]}"}),
    ]
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

/// Without where they stood.
fn placeless(data: Dataset) -> Vec<Record> {
    assert!(data.bad.is_empty(), "{:?}", data.bad);
    data.records.into_iter().map(|record| Record { line: 0, ..record }).collect()
}

#[test]
fn the_same_rows_in_every_kind_of_file_are_the_same_records() {
    let folder = tempfile::tempdir().unwrap();
    let rows = rows();
    let table = |delimiter: &str| {
        let cell = |text: &Value| format!("\"{}\"", text.as_str().unwrap_or_default().replace('"', "\"\""));
        let row = |row: &Value| ["id", "question", "think", "answer"].map(|key| cell(&row[key])).join(delimiter);
        let head = ["id", "question", "think", "answer"].join(delimiter);
        format!("{head}\n{}\n", rows.iter().map(row).collect::<Vec<_>>().join("\r\n"))
    };
    let texts = [
        ("jsonl", lines(&rows)),
        ("ndjson", format!("\u{feff}{}", lines(&rows))),
        ("json", Value::Array(rows.clone()).to_string()),
        ("JSON", format!("\u{feff} \n{}\n\n", serde_json::to_string_pretty(&rows).unwrap())),
        ("csv", table(",")),
        ("tsv", table("\t")),
    ];
    let expected = placeless(read_rows_of(&folder, "rows.jsonl", texts[0].1.as_bytes()).unwrap());
    assert_eq!(expected.len(), 2);
    for (end, text) in &texts {
        for (pack, bytes) in
            [("", text.clone().into_bytes()), (".gz", gzip(text.as_bytes())), (".zst", zstd(text.as_bytes()))]
        {
            let name = format!("rows.{end}{pack}");
            let data = read_rows_of(&folder, &name, &bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(
                data.files[0].sha256,
                karat::fsio::sha256(&bytes),
                "{name}: the digest is of the file as it lies there"
            );
            assert_eq!((data.files[0].rows, data.files[0].read_as), (2, Format::Columns));
            assert_eq!(placeless(data), expected, "{name}");
        }
    }
    // Packed files that were joined are one.
    let (first, second) = (format!("{}\n", rows[0]), format!("{}\n", rows[1]));
    let joined = [gzip(first.as_bytes()), gzip(second.as_bytes())].concat();
    assert_eq!(placeless(read_rows_of(&folder, "joined.jsonl.gz", &joined).unwrap()), expected);
    let joined = [zstd(first.as_bytes()), zstd(second.as_bytes())].concat();
    assert_eq!(placeless(read_rows_of(&folder, "joined.jsonl.zst", &joined).unwrap()), expected);
}

fn read_rows_of(folder: &tempfile::TempDir, name: &str, bytes: &[u8]) -> karat::Result<Dataset> {
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    read(&path)
}

#[test]
fn rows_of_an_array_are_counted_and_what_ends_it_early_has_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let good = r#"{"question": "q", "answer": "a"}"#;
    let text = format!("[\n{good},\n\n {{\n\"question\": \"q\"\n}}, [1,\n2], {{\"question\": \"r\",}}\n,{good}\n]\n");
    let data = read_rows_of(&folder, "rows.json", text.as_bytes()).unwrap();
    assert_eq!(data.records.iter().map(|record| record.line).collect::<Vec<_>>(), [1, 5]);
    let bad: Vec<_> = data.bad.iter().map(|bad| (bad.line, bad.reason.split(" (").next().unwrap())).collect();
    let expected = [
        (2, "\"answer\" is missing"),
        (3, "expected a JSON object, found a list"),
        (4, "invalid JSON: trailing comma"),
    ];
    assert_eq!(bad, expected);
    for (text, words) in [
        (format!("[{good}"), "has no end: the file is cut off, on line 1"),
        (format!("[{good},\n{{\"question\": \""), "ends within the row that begins here, on line 2"),
        (format!("[{good}\n{good}]"), "neither a comma nor the end of the JSON array follows a row, on line 2"),
        (format!("[\n{good}]\n\n{good}"), "something follows the end of the JSON array, on line 4"),
        (format!("[{good},]"), "no object, on line 1"),
        (format!("[{good}, 1]"), "no object, on line 1"),
        ("[]".into(), "empty"),
        ("{\n \"data\": [\n {}\n ]\n}\n".into(), "one JSON object over many lines"),
    ] {
        let error = read_rows_of(&folder, "rows.json", text.as_bytes()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data, "{text}");
        assert!(error.what().contains(words) && error.place().unwrap().contains("rows.json"), "{text}: {error}");
        assert!(error.help_text().is_some(), "{text}");
    }
}

#[cfg(feature = "parquet")]
#[test]
fn parquet_keeps_lists_structs_and_nulls() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/parquet");
    let chats = read(&folder.join("chats.parquet")).unwrap();
    assert_eq!((chats.files[0].read_as, chats.records.len(), chats.bad.len()), (Format::Messages, 6, 0));
    let texts = |record: &Record| {
        (record.history.len(), record.question.clone(), record.think.clone(), record.answer.clone(), record.line)
    };
    assert_eq!(texts(&chats.records[3]), (1, "What is 3 and 3?".into(), "twice 3".into(), "6.".into(), 4));
    assert_eq!(texts(&chats.records[4]), (3, "你确定吗？".into(), String::new(), "确定。".into(), 5));
    let columns = read(&folder.join("columns.parquet")).unwrap();
    assert_eq!((columns.files[0].read_as, columns.records.len()), (Format::Columns, 7));
    assert_eq!((columns.bad[0].line, columns.bad[0].reason.as_str()), (4, "\"answer\" is missing"));
    assert_eq!((columns.records[0].id.as_str(), columns.records[0].think.as_str()), ("0", "the same thought"));
    assert_eq!((columns.records[5].id.as_str(), columns.records[5].think.as_str()), ("6", ""));
    assert!(columns.records.iter().all(|record| record.decision.is_some()));
    let choices = read(&folder.join("choices.parquet")).unwrap();
    let choice = |at: usize| choices.records[at].choice.as_ref().unwrap();
    assert_eq!((choice(0).options.len(), choice(0).gold, choice(1).gold), (3, 1, 1));
    assert_eq!(choices.files[0].sha256, karat::fsio::sha256_file(&folder.join("choices.parquet")).unwrap());
}

#[test]
fn several_files_are_one_data_set_with_ids_of_its_own_and_a_form_each() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str, text: String| {
        std::fs::write(folder.path().join(name), text).unwrap();
        folder.path().join(name)
    };
    let columns = |id: &str| json!({"id": id, "question": "q", "answer": "a"});
    let files = [
        path("b.jsonl", lines(&[columns("x"), columns("y")])),
        path(
            "a.json",
            json!([{"id": "z", "instruction": "i", "output": "o"}, {"id": "x", "instruction": "i", "output": "o"}])
                .to_string(),
        ),
    ];
    let (fields, tags) = (Fields::default(), ThinkTags::default());
    let data = Reading::new(&fields, &tags).read_files(&files).unwrap();
    let read: Vec<_> = data.files.iter().map(|file| (file.name(), file.read_as, file.rows)).collect();
    assert_eq!(read, [("b.jsonl".into(), Format::Columns, 2), ("a.json".into(), Format::Alpaca, 1)]);
    assert_eq!(
        data.records.iter().map(|r| (r.id.as_str(), r.file, r.line)).collect::<Vec<_>>(),
        [("x", 0, 1), ("y", 0, 2), ("z", 1, 1)]
    );
    assert!(
        data.bad[0].file.ends_with("a.json") && data.bad[0].reason.contains("already used on line 1 of "),
        "{:?}",
        data.bad
    );
    // A file without a good row is an error, whatever the others have.
    let empty = path("c.jsonl", "{}\n".into());
    let error = Reading::new(&fields, &tags).read_files(&[files[0].clone(), empty]).unwrap_err();
    assert!(error.place().unwrap().ends_with("c.jsonl"), "{error}");
}

#[test]
fn folders_and_patterns_name_files_in_the_order_of_their_paths() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let write = |names: &[&str]| {
        for name in names {
            std::fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            std::fs::write(root.join(name), "{}\n").unwrap();
        }
    };
    let names = |paths: &[PathBuf]| -> Vec<String> {
        paths.iter().map(|p| p.strip_prefix(root).unwrap().to_str().unwrap().to_string()).collect()
    };
    let of = |part: Part| found(root, part).map(|found| (names(&found.files), found.note));
    write(&["z.jsonl", "a.jsonl", "sub/m.csv", ".hidden.jsonl", "notes.md", "dataset_infos.json"]);
    for part in [Part::Train, Part::Validation, Part::Test] {
        assert_eq!(of(part).unwrap(), (vec!["a.jsonl".to_string(), "sub/m.csv".into(), "z.jsonl".into()], None));
    }
    assert_eq!(names(&found(&root.join("*.jsonl"), Part::Train).unwrap().files), ["a.jsonl", "z.jsonl"]);
    assert_eq!(names(&found(&root.join("**/*.csv"), Part::Train).unwrap().files), ["sub/m.csv"]);
    write(&["data/train-00001.jsonl", "data/train-00000.jsonl", "val/x.jsonl.gz"]);
    let (train, note) = of(Part::Train).unwrap();
    assert_eq!(train, ["data/train-00000.jsonl", "data/train-00001.jsonl"]);
    assert!(note.unwrap().ends_with("only the part train is read, not validation (1), other files (3)"));
    assert_eq!(of(Part::Validation).unwrap().0, ["val/x.jsonl.gz"]);
    assert_eq!(of(Part::Test).unwrap().0, ["val/x.jsonl.gz"], "held out is the test part, else the validation part");
    // A card counts before names.
    std::fs::write(
        root.join("README.md"),
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: [z.jsonl, a.jsonl]\n  - split: test\n    path: \"sub/*\"\n---\n",
    )
    .unwrap();
    assert_eq!(of(Part::Train).unwrap().0, ["z.jsonl", "a.jsonl"]);
    assert_eq!(of(Part::Test).unwrap().0, ["sub/m.csv"]);
    let none = of(Part::Validation).unwrap_err();
    assert_eq!(none.kind(), ErrorKind::Usage);
    assert!(none.what().contains("no files of the part validation, only train (2), test (1)"), "{none}");
    for (path, words) in
        [("no.jsonl", "no such data file"), ("*.parquet", "no file matches"), ("no/*.csv", "no file matches")]
    {
        let error = found(&root.join(path), Part::Train).unwrap_err();
        assert!(
            error.kind() == ErrorKind::Usage && error.what().contains(words) && error.help_text().is_some(),
            "{error}"
        );
    }
    let cards = files::parts(
        Some("---\nconfigs:\n- config_name: a\n  data_files: a.csv\n- config_name: b\n  data_files: b.csv\n---\n"),
        &[],
    );
    assert!(cards.unwrap_err().what().contains("several configurations, a, b"));
    // Two splits that are both training data are a choice that is the user's.
    let card = |splits: &str| {
        let card = format!("---\nconfigs:\n- config_name: default\n  data_dir: sub\n  data_files:\n{splits}---\n");
        std::fs::write(root.join("README.md"), card).unwrap();
        of(Part::Train)
    };
    let error = card("  - split: train_sft\n    path: m*\n  - split: train_gen\n    path: n*\n").unwrap_err();
    assert!(error.what().ends_with("several splits that are the part train: train_sft, train_gen"), "{error}");
    assert!(error.help_text().unwrap().contains("sub/m*"), "{error}");
    assert_eq!(card("  - split: train_sft\n    path: m*\n").unwrap().0, ["sub/m.csv"]);
    assert_eq!(card("  - split: train_gen\n    path: n*\n  - split: train\n    path: m*\n").unwrap().0, ["sub/m.csv"]);
}

#[test]
fn texts_come_from_every_kind_of_file() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let texts = ["one", "two\nlines"];
    let rows: Vec<Value> = texts.iter().map(|text| json!({"text": text, "n": 1})).collect();
    let files = [
        write("a.jsonl", lines(&rows).as_bytes()),
        write("b.json.gz", &gzip(Value::Array(rows.clone()).to_string().as_bytes())),
        write("c.csv", b"Text\none\n\"two\nlines\"\n"),
        write("d.txt.zst", &zstd(b"one\n\ntwo\nlines\n")),
    ];
    for file in &files {
        assert_eq!(read_texts(file).unwrap(), texts, "{}", file.display());
    }
    assert_eq!(read_texts_of(&files).unwrap().len(), 8);
    let error = read_texts(write("e.csv", b"body\none\n")).unwrap_err();
    assert!(
        error.what().contains("the columns are \"body\"") && error.place().unwrap().ends_with("e.csv:2"),
        "{error}"
    );
}

#[test]
fn broken_and_hostile_files_are_one_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let good = lines(&rows());
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let whole = gzip(good.repeat(50).as_bytes());
    let mut turned = whole.clone();
    let at = turned.len() / 2;
    turned[at] ^= 0x55;
    // 400 MiB of the same; some kilobytes packed.
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let line = format!("{}\n", json!({"question": "q", "answer": "a", "x": " ".repeat(1 << 20)}));
    (0..400).for_each(|_| bomb.write_all(line.as_bytes()).unwrap());
    let bomb = bomb.finish().unwrap();
    let mut wide = zstd::Encoder::new(Vec::new(), 1).unwrap();
    (0..400).for_each(|_| wide.write_all(&vec![b' '; 1 << 20]).unwrap());
    let wide = wide.finish().unwrap();
    let parquet =
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/parquet/chats.parquet")).unwrap();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("cut.jsonl.gz", whole[..whole.len() / 2].to_vec(), "cannot be unpacked"),
        ("turned.jsonl.gz", turned, ""),
        ("plain.jsonl.gz", good.clone().into_bytes(), "cannot be unpacked"),
        ("plain.jsonl.zst", good.clone().into_bytes(), "cannot be unpacked"),
        ("cut.jsonl.zst", zstd(good.repeat(500).as_bytes())[..60].to_vec(), "cannot be unpacked"),
        ("bomb.jsonl.gz", bomb, "more than 200 times its size"),
        ("wide.json.zst", wide, "more than 200 times its size"),
        ("deep.jsonl", format!("{{\"question\": {deep}}}").into_bytes(), "recursion limit"),
        ("deep.json", format!("[{{\"question\": {deep}}}]").into_bytes(), "recursion limit"),
        ("open.json", format!("[{{\"a\": {}", "[".repeat(1 << 22)).into_bytes(), "ends within the row"),
        ("quote.csv", format!("question,answer\n\"{}", "x".repeat(5 << 20)).into_bytes(), "more than the 2097152"),
        ("cells.csv", format!("question,answer\n{}", ",".repeat(5 << 20)).into_bytes(), "line 2"),
        ("none.parquet", good.into_bytes(), "does not end as one does"),
        ("empty.parquet", Vec::new(), "does not end as one does"),
        ("cut.parquet", parquet[..parquet.len() - 20].to_vec(), "does not end as one does"),
        ("footer.parquet", [&[0u8; 100][..], &u32::MAX.to_le_bytes(), b"PAR1"].concat(), "footer would have"),
        ("nothing.parquet", [&[0u8; 100][..], &8u32.to_le_bytes(), b"PAR1"].concat(), "cannot be read"),
        ("packed.parquet.gz", gzip(&parquet), "packed Parquet"),
    ];
    for (name, bytes, words) in cases {
        if name.contains("parquet") && !cfg!(feature = "parquet") {
            continue;
        }
        let error = read_rows_of(&folder, name, &bytes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data, "{name}: {error}");
        let said = format!("{error}");
        assert!(said.contains(words) && error.help_text().is_some(), "{name}: {said}");
        assert!(said.len() < 2_000, "{name}: {} bytes", said.len());
    }
}

#[cfg(feature = "parquet")]
#[test]
fn no_byte_of_a_parquet_file_makes_reading_panic() {
    let folder = tempfile::tempdir().unwrap();
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/parquet");
    let (mut refused, mut read) = (0, 0);
    for name in ["chats.parquet", "columns.parquet", "choices.parquet"] {
        let whole = std::fs::read(vectors.join(name)).unwrap();
        let path = folder.path().join(name);
        for at in (0..whole.len()).step_by(2) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            if at % 6 == 0 {
                bytes[at] = 0xff;
            }
            std::fs::write(&path, &bytes).unwrap();
            match self::read(&path) {
                Ok(_) => read += 1,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Data, "{name}, byte {at}: {error}");
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 500 && read > 50, "{refused} refused, {read} read");
}

#[cfg(feature = "parquet")]
#[test]
fn a_footer_that_is_nothing_but_levels_is_refused() {
    // Thrift compact: version 1, then a schema of groups with one child each.
    let levels = 200_000u32;
    let mut footer = vec![0x15, 0x02, 0x19, 0xfc];
    let varint = |mut n: u32| {
        let mut bytes = Vec::new();
        while n >= 0x80 {
            bytes.push((n as u8 & 0x7f) | 0x80);
            n >>= 7;
        }
        bytes.push(n as u8);
        bytes
    };
    footer.extend(varint(levels));
    for level in 0..levels {
        // repetition required, name "a", one child.
        footer.extend(if level + 1 < levels {
            vec![0x35, 0x00, 0x18, 0x01, b'a', 0x15, 0x02, 0x00]
        } else {
            vec![0x15, 0x02, 0x25, 0x00, 0x18, 0x01, b'a', 0x00]
        });
    }
    footer.extend([0x16, 0x00, 0x19, 0x0c, 0x00]);
    let mut bytes = b"PAR1".to_vec();
    bytes.extend(&footer);
    bytes.extend((footer.len() as u32).to_le_bytes());
    bytes.extend(b"PAR1");
    let folder = tempfile::tempdir().unwrap();
    let error = read_rows_of(&folder, "deep.parquet", &bytes).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data, "{error}");
    assert!(error.what().contains("levels deep") || error.what().contains("cannot be read"), "{error}");
}
