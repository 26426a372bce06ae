//! Tokenizers of model folders: tokens that files beside `tokenizer.json` declare have the ids of
//! transformers or the folder is refused by name; files that are broken or made to do harm end with
//! an error. The expected ids in `vectors/added_tokens.json` were made with the real package by
//! `make_token_vectors.py`.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Instant;

use karat::ErrorKind;
use karat::data::tokens::{StopToken, Tokenizer, Unnamed};
use karat::eval::Prediction;
use karat::run::left_over;
use serde_json::{Value, json};

fn vectors() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/added_tokens.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn put(dir: &Path, name: &str, text: &str) {
    std::fs::write(dir.join(name), text).unwrap();
}

/// A byte-level tokenizer with the five usual control tokens, 256 to 260, for a model of 300 rows.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "tokenizer.json", &vectors()["tokenizers"]["none"].to_string());
    put(dir.path(), "tokenizer_config.json", r#"{"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}"#);
    put(dir.path(), "config.json", r#"{"vocab_size": 300}"#);
    dir
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn a_token_that_any_file_declares_encodes_to_the_id_of_transformers_or_is_refused_by_name() {
    let vectors = vectors();
    let texts: Vec<&str> = vectors["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    let (mut equal, mut refused, mut wrong) = (0, 0, Vec::new());
    for case in vectors["cases"].as_array().unwrap() {
        let dir = tempfile::tempdir().unwrap();
        let name = case["name"].as_str().unwrap();
        let label = case["normalizer"].as_str().unwrap();
        put(dir.path(), "tokenizer.json", &vectors["tokenizers"][label].to_string());
        put(dir.path(), "config.json", &json!({"vocab_size": vectors["rows"]}).to_string());
        for (file, value) in case["files"].as_object().unwrap() {
            put(dir.path(), file, &value.to_string());
        }
        match (case.get("contradicts").and_then(Value::as_str), Tokenizer::from_model_dir(dir.path())) {
            (Some(token), Err(error)) => {
                refused += 1;
                let place = error.place().unwrap_or_default();
                assert_eq!(error.kind(), ErrorKind::Data, "{name}");
                assert!(error.what().contains(token) && place.contains(".json"), "{name}: {error}");
            }
            (None, Ok(tokenizer)) => {
                for (at, text) in texts.iter().enumerate() {
                    let found = tokenizer.encode(text).unwrap();
                    let expected = ids(&case["ids"][at]);
                    let decoded = |skip| tokenizer.decode(&found, skip).unwrap();
                    if found != expected
                        || decoded(true) != case["skipped"][at].as_str().unwrap()
                        || decoded(false) != case["kept"][at].as_str().unwrap()
                    {
                        wrong.push(format!("{name}, {text:?}: {found:?}, transformers {expected:?}"));
                    }
                }
                let id = |key: &str| case[key].as_u64().map(|id| id as u32);
                assert_eq!((tokenizer.eos_id(), tokenizer.pad_id()), (id("eos"), id("pad")), "{name}");
                equal += 1;
            }
            (contradiction, result) => wrong.push(format!("{name}: {contradiction:?}, {:?}", result.err())),
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(equal >= 100 && refused >= 10, "{equal} equal, {refused} refused");
}

#[test]
fn a_declared_token_without_a_row_in_the_model_is_refused_by_name() {
    let dir = folder();
    put(dir.path(), "added_tokens.json", r#"{"<|zork|>": 261}"#);
    assert_eq!(Tokenizer::from_model_dir(dir.path()).unwrap().encode("a<|zork|>b").unwrap(), [97, 261, 98]);
    put(dir.path(), "config.json", r#"{"vocab_size": 261}"#);
    let error = Tokenizer::from_model_dir(dir.path()).unwrap_err();
    assert!(error.what().contains("<|zork|>") && error.what().contains("261 rows"), "{error}");
    assert!(error.place().unwrap().contains("added_tokens.json"), "{error}");

    let dir = folder();
    put(dir.path(), "generation_config.json", r#"{"eos_token_id": [258, 5000]}"#);
    let error = Tokenizer::from_model_dir(dir.path()).unwrap_err();
    assert!(error.what().contains("5000") && error.place().unwrap().ends_with("generation_config.json"), "{error}");
}

#[test]
fn tokens_of_other_files_are_part_of_the_digest() {
    let dir = folder();
    let digest = || Tokenizer::from_model_dir(dir.path()).unwrap().sha256().to_string();
    let before = digest();
    put(dir.path(), "added_tokens.json", r#"{"<think>": 259}"#);
    put(dir.path(), "tokenizer_config.json", r#"{"eos_token": "<|im_end|>"}"#);
    assert_ne!(digest(), before, "transformers matches it in normalized text from now on");
    put(dir.path(), "added_tokens.json", "{}");
    assert_eq!(digest(), before);
    put(dir.path(), "added_tokens.json", r#"{"<|zork|>": 261}"#);
    assert_ne!(digest(), before);
}

#[test]
fn a_value_of_a_wrong_type_is_refused_by_file_and_key() {
    let cases = [
        ("tokenizer_config.json", "null", "null"),
        ("tokenizer_config.json", "[]", "a list"),
        ("tokenizer_config.json", r#"{"eos_token": 5}"#, "eos_token"),
        ("tokenizer_config.json", r#"{"pad_token": ["<|endoftext|>"]}"#, "pad_token"),
        ("tokenizer_config.json", r#"{"eos_token": {"text": "x"}}"#, "eos_token"),
        ("tokenizer_config.json", r#"{"eos_token": {"content": "<|im_end|>", "lstrip": "yes"}}"#, "lstrip"),
        ("tokenizer_config.json", r#"{"added_tokens_decoder": []}"#, "added_tokens_decoder"),
        ("tokenizer_config.json", r#"{"added_tokens_decoder": {"x": {"content": "y"}}}"#, "added_tokens_decoder.x"),
        ("tokenizer_config.json", r#"{"added_tokens_decoder": {"261": "y"}}"#, "added_tokens_decoder.261"),
        ("tokenizer_config.json", r#"{"added_tokens_decoder": {"261": {"content": 3}}}"#, "added_tokens_decoder.261"),
        ("tokenizer_config.json", r#"{"extra_special_tokens": "x"}"#, "extra_special_tokens"),
        ("tokenizer_config.json", r#"{"extra_special_tokens": [1]}"#, "extra_special_tokens[0]"),
        ("tokenizer_config.json", r#"{"additional_special_tokens": [null]}"#, "extra_special_tokens[0]"),
        ("tokenizer_config.json", r#"{"split_special_tokens": "no"}"#, "split_special_tokens"),
        ("special_tokens_map.json", "[]", "a list"),
        ("special_tokens_map.json", r#"{"eos_token": 1}"#, "eos_token"),
        ("added_tokens.json", "[]", "a list"),
        ("added_tokens.json", r#"{"x": "261"}"#, "\"x\""),
        ("added_tokens.json", r#"{"x": 261, "y": 261}"#, "same id"),
        ("added_tokens.json", r#"{"x": -1}"#, "\"x\""),
        ("generation_config.json", "null", "null"),
        ("generation_config.json", "[]", "a list"),
        ("generation_config.json", r#"{"eos_token_id": "258"}"#, "eos_token_id"),
        ("generation_config.json", r#"{"eos_token_id": [258, null]}"#, "eos_token_id"),
        ("generation_config.json", r#"{"eos_token_id": 2.5}"#, "eos_token_id"),
        ("generation_config.json", r#"{"eos_token_id": -1}"#, "eos_token_id"),
        ("generation_config.json", r#"{"pad_token_id": {}}"#, "pad_token_id"),
        ("generation_config.json", r#"{"bos_token_id": true}"#, "bos_token_id"),
        ("config.json", r#"{"eos_token_id": true}"#, "eos_token_id"),
        ("config.json", "null", "null"),
    ];
    for (file, text, key) in cases {
        let dir = folder();
        put(dir.path(), file, text);
        let error = Tokenizer::from_model_dir(dir.path()).expect_err(&format!("{file}: {text}"));
        assert_eq!(error.kind(), ErrorKind::Data, "{file}: {text}");
        let place = error.place().unwrap_or_default();
        assert!(error.to_string().contains(key) && place.contains(file), "{text}: {error}");
    }
    // Old configurations say so that there is none.
    let dir = folder();
    put(dir.path(), "config.json", r#"{"pad_token_id": -1, "bos_token_id": null, "eos_token_id": [258]}"#);
    assert_eq!(Tokenizer::from_model_dir(dir.path()).unwrap().bos_id(), None);
}

#[test]
fn a_file_that_is_no_utf8_is_bad_data() {
    for file in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"] {
        let dir = folder();
        std::fs::write(dir.path().join(file), b"{\"a\": \"\xff\xfe\"}").unwrap();
        let error = Tokenizer::from_model_dir(dir.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data, "{file}");
        assert!(error.place().unwrap().contains(file), "{error}");
    }
}

#[test]
fn an_id_without_a_token_decodes_to_nothing_and_is_counted_by_item() {
    let dir = folder();
    let tokenizer = Tokenizer::from_model_dir(dir.path()).unwrap();
    assert_eq!(tokenizer.decode(&[97, 299, 98, 261, u32::MAX], false).unwrap(), "ab");
    assert_eq!(tokenizer.without_token(&[97, 299, 98, 261]).collect::<Vec<_>>(), [299, 261]);
    let mut unnamed = Unnamed::default();
    unnamed.look(&tokenizer, "first", &[97, 98]);
    assert_eq!(unnamed.warning(), None);
    unnamed.look(&tokenizer, "second", &[97, 299, 299]);
    unnamed.look(&tokenizer, "third", &[280]);
    let warning = unnamed.warning().unwrap();
    assert!(warning.starts_with("3 of") && warning.ends_with("in second, third"), "{warning}");
    assert!(warning.contains("280") && warning.contains("299"), "{warning}");
}

#[test]
fn a_special_token_that_is_left_in_an_answer_is_named_with_its_items() {
    let dir = folder();
    let tokenizer = Tokenizer::from_model_dir(dir.path()).unwrap();
    let text = |id: &str, text: &str| Prediction { id: id.into(), text: text.into(), ids: None, stop: None };
    let clean = [text("a", "<think>\n<|im_end|>\n</think>\n\nYes."), text("b", "No.")];
    assert_eq!(left_over("m", &clean, &tokenizer), None, "reasoning is no answer");
    let stray = [&clean[..], &[text("c", "Yes.<|im_end|>"), text("d", "<think>x</think>No.<|im_start|>")]].concat();
    let said = left_over("m", &stray, &tokenizer).unwrap();
    assert_eq!(said, "2 answers of m hold <|im_end|>, <|im_start|>, which metrics read as text: c, d");
}

#[test]
fn a_stop_is_the_text_or_the_id_of_a_token() {
    let dir = folder();
    let mut tokenizer = Tokenizer::from_model_dir(dir.path()).unwrap();
    assert_eq!(tokenizer.stop_ids(), [258]);
    tokenizer.stop_also_at(&["<|endoftext|>".parse().unwrap(), StopToken::Id(257), StopToken::Id(258)]).unwrap();
    assert_eq!(tokenizer.stop_ids(), [256, 257, 258]);
    for wrong in [StopToken::Text("<|nowhere|>".into()), StopToken::Id(290)] {
        let error = tokenizer.stop_also_at(std::slice::from_ref(&wrong)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.what().contains(&wrong.to_string()), "{error}");
    }
    let help = tokenizer.help_to_stop_at(259);
    assert!(help.contains("<think>") && help.contains("259") && help.contains("eos_token_id"), "{help}");
}

/// The file with one key changed.
fn with(change: impl FnOnce(&mut Value)) -> String {
    let mut tokenizer = vectors()["tokenizers"]["none"].take();
    change(&mut tokenizer);
    tokenizer.to_string()
}

#[test]
fn texts_that_take_too_long_cost_seconds_however_many_there_are() {
    let dir = folder();
    // In the second no repetition is repeated, and the cube of 30,000 would take hours all the
    // same.
    for regex in ["(a+)+$", r"a*a*!(?!$)"] {
        let step = json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        put(dir.path(), "tokenizer.json", &with(|t| t["pre_tokenizer"] = step));
        let tokenizer = Tokenizer::from_model_dir(dir.path()).unwrap();
        let text = format!("{}!", "a".repeat(30_000));
        let began = Instant::now();
        let refused = |error: &karat::Error| error.to_string().contains("no more are tried");
        let tried = (0..1000).take_while(|_| !tokenizer.encode(&text).is_err_and(|error| refused(&error))).count();
        for _ in 0..100 {
            let error = tokenizer.encode(&text).unwrap_err();
            assert!(refused(&error) && error_names_the_file(&error), "{error}");
        }
        let seconds = began.elapsed().as_secs();
        assert!(tried < 600 && seconds < 90, "{regex}: {tried} texts, {seconds} s");
        assert_eq!(
            tokenizer.encode("b").is_ok(),
            regex != "(a+)+$",
            "a short text needs no clock if the regex is tame"
        );
    }
}

fn error_names_the_file(error: &karat::Error) -> bool {
    error.kind() == ErrorKind::Data && error.place().is_some_and(|place| place.ends_with("tokenizer.json"))
}

#[test]
fn a_tokenizer_made_to_do_harm_ends_with_an_error_that_names_it() {
    let split = |regex: &str| {
        let step = json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        with(|t| t["pre_tokenizer"] = step)
    };
    let replace = |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
    let sequence = |steps: Vec<Value>| json!({"type": "Sequence", "normalizers": steps});
    let hundred = "a".repeat(100);
    let charsmap = |text: &str| json!({"type": "Precompiled", "precompiled_charsmap": text});
    let cases: Vec<(&str, String)> = vec![
        ("a regex that backtracks", split("(a+)+$")),
        ("alternatives that backtrack", split("(a|aa)+$")),
        ("repetitions of repetitions", split("(((a{90}){90}){90}){90}")),
        ("a long regex", split(&"(a?)".repeat(10_000))),
        ("an unclosed regex", split("(a")),
        ("deep groups", split(&format!("{}{}", "(".repeat(7_000), ")".repeat(7_000)))),
        ("a table of three bytes", with(|t| t["normalizer"] = charsmap("AAAA"))),
        ("a table that asks for 8 GB", with(|t| t["normalizer"] = charsmap("////fwAAAAA="))),
        ("no table", with(|t| t["normalizer"] = charsmap(""))),
        (
            "replacements that grow",
            with(|t| {
                t["normalizer"] = sequence(vec![replace(json!({"String": "a"}), &hundred); 6]);
            }),
        ),
        (
            "replacements by regex that grow",
            with(|t| {
                t["normalizer"] = sequence(vec![replace(json!({"Regex": "a"}), &hundred); 6]);
            }),
        ),
        (
            "a replacement of nothing",
            with(|t| {
                t["normalizer"] = sequence(vec![replace(json!({"String": ""}), &hundred); 6]);
            }),
        ),
        (
            "an added token that grows while it is read",
            with(|t| {
                t["normalizer"] = sequence(vec![replace(json!({"String": "a"}), &hundred); 6]);
                t["added_tokens"][0]["content"] = json!("aaaa");
                t["added_tokens"][0]["normalized"] = json!(true);
            }),
        ),
        ("pieces of length 0", with(|t| t["pre_tokenizer"] = json!({"type": "FixedLength", "length": 0}))),
        (
            "a template that repeats the text",
            with(|t| {
                let piece = json!({"Sequence": {"id": "A", "type_id": 0}});
                t["post_processor"] = json!({"type": "TemplateProcessing", "single": vec![piece.clone(); 100_000],
                "pair": [piece.clone(), piece], "special_tokens": {}});
            }),
        ),
        ("dropout", with(|t| t["model"]["dropout"] = json!(0.5))),
        (
            "a prefix longer than the tokens",
            with(|t| {
                t["model"]["continuing_subword_prefix"] = json!("#".repeat(50));
                t["model"]["merges"] = json!([["a", "b"]]);
            }),
        ),
        ("merges of unknown tokens", with(|t| t["model"]["merges"] = json!([["nowhere", "no"]]))),
        ("many steps", with(|t| t["normalizer"] = sequence(vec![json!({"type": "NFC"}); 5_000]))),
        ("an id that is no id", with(|t| t["added_tokens"][0]["id"] = json!(5_000_000_000u64))),
        ("an id of another token", with(|t| t["added_tokens"][0]["content"] = json!("a"))),
        ("a long prefix", with(|t| t["normalizer"] = json!({"type": "Prepend", "prepend": "a".repeat(2_000_000)}))),
        ("no object", "[]".into()),
        ("nothing", String::new()),
        ("deep JSON", format!("{}{}", "[".repeat(100_000), "]".repeat(100_000))),
        ("deep normalizers", {
            let open = r#"{"type": "Sequence", "normalizers": ["#;
            with(|t| t["normalizer"] = json!("HERE"))
                .replace(r#""HERE""#, &format!("{}{}", open.repeat(1_000), "]}".repeat(1_000)))
        }),
    ];
    let text = format!("hello {}! nowhere ab", "a".repeat(60));
    for (name, tokenizer) in cases {
        let dir = folder();
        put(dir.path(), "tokenizer.json", &tokenizer);
        let began = Instant::now();
        let result = Tokenizer::from_model_dir(dir.path()).and_then(|t| t.encode(&text));
        let error = result.expect_err(name);
        assert_eq!(error.kind(), ErrorKind::Data, "{name}: {error}");
        assert!(error.place().unwrap_or_default().contains("tokenizer.json"), "{name}: {error}");
        assert!(began.elapsed().as_secs() < 30, "{name} took {:?}", began.elapsed());
    }
}

#[test]
fn a_decoder_made_to_grow_is_stopped() {
    let dir = folder();
    let grow = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(100)});
    let decoder = json!({"type": "Sequence", "decoders": vec![grow; 6]});
    put(dir.path(), "tokenizer.json", &with(|t| t["decoder"] = decoder));
    let tokenizer = Tokenizer::from_model_dir(dir.path()).unwrap();
    let error = tokenizer.decode(&[97; 50], false).unwrap_err();
    assert!(error.what().contains("decoder") && error.place().unwrap().contains("tokenizer.json"), "{error}");
}

/// Steps of Knuth's MMIX generator: the same mutants every time.
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % n.max(1) as u64) as usize
    }
}

/// Changes one place of a JSON value: the way down is drawn, and what becomes of the end of it.
fn mutate(value: &mut Value, draw: &mut Draw, depth: usize) {
    let go_on = depth < 8 && draw.below(12) > 0;
    match value {
        Value::Object(map) if go_on && !map.is_empty() => {
            let key = map.keys().nth(draw.below(map.len())).unwrap().clone();
            match draw.below(12) {
                0 => drop(map.remove(&key)),
                1 => {
                    let other = map.keys().nth(draw.below(map.len())).unwrap().clone();
                    let (a, b) = (map[&key].clone(), map[&other].clone());
                    map.insert(key, b);
                    map.insert(other, a);
                }
                _ => mutate(map.get_mut(&key).unwrap(), draw, depth + 1),
            }
        }
        Value::Array(list) if go_on && !list.is_empty() => {
            let at = draw.below(list.len());
            match draw.below(8) {
                0 => drop(list.remove(at)),
                1 => list.insert(at, list[at].clone()),
                _ => mutate(&mut list[at], draw, depth + 1),
            }
        }
        _ => {
            let strange = [
                json!(null),
                json!(true),
                json!(-1),
                json!(0),
                json!(1),
                json!(258),
                json!(u32::MAX),
                json!(u64::MAX),
                json!(1e300),
                json!(0.5),
                json!(""),
                json!("a"),
                json!("▁"),
                json!("\u{0}"),
                json!("[UNK]"),
                json!([]),
                json!({}),
                json!([[]]),
                json!(["a", "b"]),
                json!({"String": ""}),
                json!({"Regex": "(a*)*b"}),
                json!({"Regex": "["}),
                json!({"type": "Lowercase"}),
                json!({"type": "WordPiece"}),
                json!("x".repeat(5_000)),
            ];
            *value = strange[draw.below(strange.len())].clone();
        }
    }
}

#[test]
fn a_mutated_tokenizer_is_read_or_refused_and_never_panics() {
    let mut base = vectors()["tokenizers"]["none"].take();
    base["model"]["vocab"]["th"] = json!(256);
    base["model"]["vocab"]["the"] = json!(257);
    for (id, token) in (258..).zip(base["added_tokens"].as_array_mut().unwrap()) {
        token["id"] = json!(id);
    }
    base["model"]["merges"] = json!([["t", "h"], ["th", "e"]]);
    base["normalizer"] = json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Prepend", "prepend": "a"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "_"}]});
    base["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": r"\p{L}+|\p{N}|\s+"}, "behavior": "Isolated", "invert": false},
        {"type": "Digits", "individual_digits": true}, base["pre_tokenizer"].clone()]});
    base["decoder"] = json!({"type": "Sequence", "decoders": [base["decoder"].clone(), {"type": "Strip", "content": "a",
        "start": 1, "stop": 0}, {"type": "Fuse"}]});
    let dir = folder();
    let mut draw = Draw(42);
    let (mut read, mut refused) = (0, 0);
    for _ in 0..1_500 {
        let mut mutant = base.clone();
        for _ in 0..=draw.below(6) / 4 {
            mutate(&mut mutant, &mut draw, 0);
        }
        put(dir.path(), "tokenizer.json", &mutant.to_string());
        let began = Instant::now();
        match Tokenizer::from_model_dir(dir.path()) {
            Ok(tokenizer) => {
                read += 1;
                for text in ["the other 12 <think>x</think>", "", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!", "é\u{0}问 \n"]
                {
                    if let Ok(ids) = tokenizer.encode(text) {
                        let _ = tokenizer.decode(&ids, true);
                    }
                    let _ = tokenizer.encode_with_spans(text);
                }
            }
            Err(error) => {
                refused += 1;
                assert_eq!(error.kind(), ErrorKind::Data, "{error}: {mutant}");
            }
        }
        assert!(began.elapsed().as_secs() < 60, "{mutant}");
    }
    assert!(read > 100 && refused > 100, "{read} read, {refused} refused");
}
