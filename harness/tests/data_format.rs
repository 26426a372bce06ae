//! Token ids and loss masks: the recipe's to the id, the template's with its prefix rule,
//! truncation, and the borders between prompt, reasoning and answer.

#![allow(clippy::unwrap_used)]

mod byte_model;

use std::path::{Path, PathBuf};

use byte_model::byte_model;
use karat::backend::IGNORE;
use karat::data::examples::{End, Example, FormatOptions, Formatter, OutputFormat, RECIPE_SYSTEM};
use karat::data::fields::Fields;
use karat::data::pretraining::{read_ids_jsonl, read_texts, text_examples};
use karat::data::read::read_jsonl;
use karat::data::record::Record;
use karat::data::template::{ChatTemplate, Message};
use karat::data::tokens::{SpecialTokens, Tokenizer};
use serde_json::Value;

fn shipped_template() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../suites/medical-r1/base/chat_template.jinja");
    std::fs::read_to_string(path).unwrap()
}

fn record(think: &str, answer: &str) -> Record {
    Record {
        id: "r1".into(),
        instruction: Some("not shown".into()),
        history: Vec::new(),
        trained: Vec::new(),
        question: "问?".into(),
        question_keys: Default::default(),
        think: think.into(),
        answer: answer.into(),
        answer_keys: Default::default(),
        cluster: "r1".into(),
        choice: None,
        decision: None,
        file: 0,
        line: 1,
    }
}

fn recipe(options: FormatOptions) -> Formatter {
    let dir = byte_model(None);
    Formatter::new(ChatTemplate::chatml_recipe(), Tokenizer::from_model_dir(dir.path()).unwrap(), options).unwrap()
}

fn templated(template: &str, options: FormatOptions) -> Formatter {
    let dir = byte_model(Some(template));
    let options = FormatOptions { output: OutputFormat::Template, ..options };
    let template = ChatTemplate::from_model_dir(dir.path()).unwrap();
    Formatter::new(template, Tokenizer::from_model_dir(dir.path()).unwrap(), options).unwrap()
}

fn text(formatter: &Formatter, ids: &[u32]) -> String {
    formatter.tokenizer().decode(ids, false).unwrap()
}

/// What holds of every example.
fn check_parts(example: &Example) {
    assert_eq!(example.ids.len(), example.labels.len());
    assert!(example.labels[..example.prompt_len].iter().all(|&label| label == IGNORE));
    for (id, label) in example.ids.iter().zip(&example.labels).skip(example.prompt_len) {
        assert_eq!(*label, *id as i32);
    }
    assert_eq!(example.think.start, example.prompt_len);
    assert_eq!(example.think.end, example.answer.start);
    assert_eq!(example.answer.end, example.ids.len());
}

#[test]
fn encoding_adds_no_special_token_and_ignores_stored_truncation_and_padding() {
    let dir = byte_model(None);
    let tokenizer = Tokenizer::from_model_dir(dir.path()).unwrap();
    assert_eq!(tokenizer.encode("abc").unwrap(), [97, 98, 99]);
    assert_eq!(tokenizer.encode("<think>a<|im_end|>").unwrap(), [259, 97, 258]);
    assert_eq!(tokenizer.encode(&"x".repeat(100)).unwrap().len(), 100);
    let encoded = tokenizer.encode_with_spans("a问<think>").unwrap();
    assert_eq!(encoded.ids, [97, 0xe9, 0x97, 0xae, 259]);
    assert_eq!(encoded.spans, [0..1, 1..4, 1..4, 1..4, 4..11]);
    assert_eq!(tokenizer.decode(&[97, 258, 259, 98], true).unwrap(), "a<think>b");
    assert_eq!(tokenizer.decode(&[97, 258, 259, 98], false).unwrap(), "a<|im_end|><think>b");
    assert_eq!(tokenizer.decode(&[0xe9, 0x97], false).unwrap(), "\u{fffd}");
    assert_eq!(tokenizer.decode(&[300, 97], false).unwrap(), "a", "an id without a token is no text");
    assert_eq!((tokenizer.vocab_size(), tokenizer.sha256().len()), (261, 64));
}

#[test]
fn stop_ids_come_from_every_configuration() {
    let dir = byte_model(None);
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let read = || Tokenizer::from_model_dir(dir.path());
    assert_eq!(read().unwrap().stop_ids(), [256, 258]);
    assert_eq!((read().unwrap().eos_id(), read().unwrap().pad_id()), (Some(258), Some(256)));
    write("generation_config.json", r#"{"eos_token_id": 257}"#);
    write("config.json", r#"{"eos_token_id": 256, "bos_token_id": 5, "pad_token_id": null}"#);
    assert_eq!(read().unwrap().stop_ids(), [256, 257, 258]);
    assert_eq!(read().unwrap().bos_id(), Some(5));
    write("tokenizer_config.json", "{}");
    assert_eq!(read().unwrap().pad_id(), Some(257), "without a padding token the end token pads");
    write("special_tokens_map.json", r#"{"pad_token": {"content": "<|endoftext|>"}}"#);
    assert_eq!(read().unwrap().pad_id(), Some(256));
    write("tokenizer_config.json", r#"{"eos_token": "<|nowhere|>"}"#);
    assert!(read().unwrap_err().what().contains("<|nowhere|>"));
    write("tokenizer_config.json", "{\n oops");
    assert!(read().unwrap_err().place().unwrap().ends_with("tokenizer_config.json:2"));
    let nothing = tempfile::tempdir().unwrap();
    assert!(Tokenizer::from_model_dir(nothing.path()).unwrap_err().what().contains("no tokenizer.json"));
}

#[test]
fn the_recipe_masks_the_prompt_and_ends_with_one_padding_token() {
    let formatter = recipe(FormatOptions { system: Some(RECIPE_SYSTEM.into()), ..FormatOptions::default() });
    let record = record("想", "答案");
    let prompt = formatter.prompt(&record).unwrap();
    let expected = format!(
        "<|im_start|>system\n{RECIPE_SYSTEM}<|im_end|>\n<|im_start|>user\n问?<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(prompt.text, expected);
    let example = formatter.example(&record).unwrap();
    check_parts(&example);
    assert_eq!(example.ids[..example.prompt_len], prompt.ids);
    assert_eq!(text(&formatter, &example.ids[example.prompt_len..]), "<think>想</think> \n 答案<|endoftext|>");
    assert_eq!(text(&formatter, &example.ids[example.think.clone()]), "<think>想</think>");
    assert_eq!(text(&formatter, &example.ids[example.answer.clone()]), " \n 答案<|endoftext|>");
    assert_eq!((example.think_bytes, example.answer_bytes), ("<think>想</think>".len(), " \n 答案".len()));
    assert!(!example.truncated && example.has_labels());
    assert_eq!(formatter.stop_ids(), [256, 258], "generation must stop at the padding token");

    let other =
        recipe(FormatOptions { output: OutputFormat::RecipeNewline, end: Some(End::Eos), ..FormatOptions::default() });
    let example = other.example(&record).unwrap();
    assert_eq!(
        text(&other, &example.ids),
        "<|im_start|>user\n问?<|im_end|>\n<|im_start|>assistant\n<think>想</think>\n答案<|im_end|>"
    );
}

#[test]
fn truncation_keeps_the_start_and_is_counted() {
    let whole = recipe(FormatOptions::default()).example(&record("想", "答案")).unwrap();
    for max_length in 1..=whole.ids.len() {
        let formatter = recipe(FormatOptions { max_length, ..FormatOptions::default() });
        let example = formatter.example(&record("想", "答案")).unwrap();
        check_parts(&example);
        assert_eq!(example.ids, whole.ids[..max_length]);
        assert_eq!(example.labels, whole.labels[..max_length]);
        assert_eq!(example.truncated, max_length < whole.ids.len());
        assert_eq!(example.full_len, whole.ids.len());
        assert_eq!(example.has_labels(), max_length > whole.prompt_len);
        assert_eq!(example.think, whole.think.start.min(max_length)..whole.think.end.min(max_length));
        assert!(example.think_bytes <= whole.think_bytes && example.answer_bytes <= whole.answer_bytes);
        if example.answer.is_empty() {
            assert_eq!(example.answer_bytes, 0);
        }
    }
}

#[test]
fn a_record_whose_labels_are_all_cut_away_is_left_out_and_named() {
    let long = Record { id: "long".into(), question: "问".repeat(100), ..record("想", "答") };
    let formatter = recipe(FormatOptions { max_length: 60, ..FormatOptions::default() });
    let result = formatter.examples(&[record("想", &"答".repeat(99)), long.clone(), record("", "a")]).unwrap();
    assert_eq!(result.examples.iter().map(|e| e.ids.len()).collect::<Vec<_>>(), [60, 30]);
    assert_eq!((result.truncated, result.dropped), (vec!["r1".to_string(), "long".into()], vec!["long".to_string()]));
    let error = formatter.examples(&[long]).unwrap_err();
    assert!(error.what().contains("max_length = 60") && error.help_text().is_some());
}

#[test]
fn the_template_writes_the_assistants_turn_and_ends_it_once() {
    let formatter = templated(&shipped_template(), FormatOptions::default());
    let example = formatter.example(&record("想</think>", "答")).unwrap();
    check_parts(&example);
    assert_eq!(
        text(&formatter, &example.ids[example.prompt_len..]),
        "<think>\n想</think>\n</think>\n\n答<|im_end|>",
        "what the template writes after the end of the turn is no target"
    );
    assert_eq!(text(&formatter, &example.ids[example.think.clone()]), "<think>\n想</think>\n</think>");
    assert_eq!(example.answer_bytes, "\n\n答".len());
    let plain = formatter.example(&record("", "答")).unwrap();
    check_parts(&plain);
    assert!(plain.think.is_empty());
    assert_eq!(text(&formatter, &plain.ids[plain.prompt_len..]), "答<|im_end|>");
}

#[test]
fn with_thinking_off_the_prompt_still_begins_the_conversation() {
    let options = FormatOptions { enable_thinking: Some(false), ..FormatOptions::default() };
    let formatter = templated(&shipped_template(), options.clone());
    let example = formatter.example(&record("", "答")).unwrap();
    assert!(text(&formatter, &example.ids[..example.prompt_len]).ends_with("assistant\n<think>\n\n</think>\n\n"));
    assert_eq!(text(&formatter, &example.ids[example.prompt_len..]), "答<|im_end|>");
    let error = formatter.example(&record("想", "答")).unwrap_err();
    assert!(error.what().contains("record \"r1\" (line 1)") && error.what().contains("not the beginning"), "{error}");
    assert!(error.help_text().unwrap().contains("enable_thinking"));
}

#[test]
fn a_template_that_ends_no_turn_is_refused() {
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
    let error = templated(template, FormatOptions::default()).example(&record("", "答")).unwrap_err();
    assert!(error.what().contains("no stop id"), "{error}");
}

#[test]
fn a_chat_rows_system_turn_is_kept_unless_the_options_set_one() {
    let turn = |role: &str, content: &str| Message::new(role, content);
    let history = vec![turn("system", "S"), turn("user", "Q1"), turn("assistant", "A1")];
    let record = Record { history, ..record("", "答") };
    let own = recipe(FormatOptions::default()).prompt(&record).unwrap().text;
    assert!(
        own.starts_with("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\nA1")
    );
    let set = recipe(FormatOptions { system: Some("T".into()), ..FormatOptions::default() });
    assert!(set.prompt(&record).unwrap().text.starts_with("<|im_start|>system\nT<|im_end|>\n<|im_start|>user\nQ1"));
}

#[test]
fn senseless_formats_are_refused() {
    let dir = byte_model(None);
    let tokenizer = Tokenizer::from_model_dir(dir.path()).unwrap();
    let try_new =
        |options| Formatter::new(ChatTemplate::chatml_recipe(), tokenizer.clone(), options).err().map(|e| e.kind());
    assert_eq!(try_new(FormatOptions { max_length: 0, ..FormatOptions::default() }), Some(karat::ErrorKind::Usage));
    assert_eq!(
        try_new(FormatOptions { end: Some(End::Template), ..FormatOptions::default() }),
        Some(karat::ErrorKind::Usage)
    );
    assert_eq!(try_new(FormatOptions::default()), None);
}

#[test]
fn text_is_cut_into_full_blocks_with_every_token_labelled() {
    let dir = byte_model(None);
    let tokenizer = Tokenizer::from_model_dir(dir.path()).unwrap();
    let rows = text_examples(&tokenizer, ["abc", "defg"], 4, 256).unwrap();
    let view = rows.view();
    let blocks: Vec<Vec<u32>> = view.tokens().iter().map(<[u32]>::to_vec).collect();
    assert_eq!(blocks, [vec![97, 98, 99, 256], vec![100, 101, 102, 103]], "a last block of one token teaches nothing");
    assert_eq!(view.row_labels(0), [97, 98, 99, 256]);
    assert!(text_examples(&tokenizer, ["a"], 1, 256).is_err());

    let file = dir.path().join("text.txt");
    std::fs::write(&file, "\u{feff}one\r\ntwo\r\n\r\n\r\nthree\n").unwrap();
    assert_eq!(read_texts(&file).unwrap(), ["one\ntwo", "three"]);
    let rows = dir.path().join("text.jsonl");
    std::fs::write(&rows, "{\"text\": \"one\"}\n{\"txt\": 1}\n").unwrap();
    assert!(read_texts(&rows).unwrap_err().place().unwrap().ends_with("text.jsonl:2"));
}

#[test]
fn id_rows_are_taken_as_they_are_and_bad_ones_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ids.jsonl");
    let lines = [
        r#"{"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "attention_mask": [1, 1, 1]}"#,
        r#"{"input_ids": [1, 2]}"#,
        r#"{"input_ids": [1, 2], "labels": [1]}"#,
        r#"{"input_ids": [1, -2]}"#,
        r#"{"input_ids": [1, 2], "labels": [1, -5]}"#,
        r#"{"input_ids": [1, 2], "labels": [1, -100]}"#,
        r#"{"labels": [1]}"#,
        r#"{"input_ids": [1]}"#,
        r#"{"input_ids": [1, 2147483648]}"#,
    ];
    std::fs::write(&file, lines.join("\n")).unwrap();
    let data = read_ids_jsonl(&file, false).unwrap();
    assert_eq!(data.rows.len(), 2);
    assert_eq!((data.rows.view().row_labels(0), data.rows.view().row_labels(1)), (&[-100, 2, 3][..], &[1, 2][..]));
    let bad: Vec<_> = data.bad.iter().map(|b| (b.line, b.reason.as_str())).collect();
    assert_eq!(
        bad,
        [
            (3, "1 labels for 2 ids"),
            (4, "-2 is not a token id"),
            (5, "-5 is not a label: give a token id or -100"),
            (6, "every label is -100: nothing to train on"),
            (7, "\"input_ids\" is missing"),
            (8, "\"input_ids\" has 1 ids; at least 2 are needed"),
            (9, "2147483648 is not a token id"),
        ]
    );
    assert!(read_ids_jsonl(&file, true).unwrap_err().place().unwrap().ends_with("ids.jsonl:3"));
    std::fs::write(&file, "").unwrap();
    assert!(read_ids_jsonl(&file, false).is_err());
}

fn shared() -> Option<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let given = std::env::var_os("KARAT_SHARED").map(PathBuf::from);
    given.into_iter().chain(here.ancestors().map(|dir| dir.join("shared"))).find(|dir| dir.join("reference").is_dir())
}

#[test]
fn the_recipes_ids_and_labels_are_those_of_the_reference_training_run() {
    let Some(shared) = shared() else {
        eprintln!("skipped: no shared/reference beside the repository");
        return;
    };
    let bytes = std::fs::read(shared.join("reference/qwen3_tiny_sft_samples.json")).unwrap();
    let reference: Value = serde_json::from_slice(&bytes).unwrap();
    let samples = reference["samples"].as_array().unwrap();
    let records = read_jsonl(shared.join("data/medical-r1/val.jsonl"), &Fields::default(), true).unwrap().records;
    let options = FormatOptions {
        system: Some(RECIPE_SYSTEM.into()),
        max_length: reference["max_length"].as_u64().unwrap() as usize,
        ..FormatOptions::default()
    };
    let tokenizer = Tokenizer::from_model_dir(shared.join("reference/qwen3-tiny")).unwrap();
    assert_eq!(tokenizer.stop_ids(), [4091, 4093]);
    let formatter = Formatter::new(ChatTemplate::chatml_recipe(), tokenizer, options).unwrap();
    let examples = formatter.examples(&records[..samples.len()]).unwrap().examples;
    assert_eq!(examples.len(), 80);
    for (row, (example, sample)) in examples.iter().zip(samples).enumerate() {
        let ids: Vec<u32> = serde_json::from_value(sample["input_ids"].clone()).unwrap();
        let labels: Vec<i32> = serde_json::from_value(sample["labels"].clone()).unwrap();
        assert_eq!(example.ids, ids, "row {row}");
        assert_eq!(example.labels, labels, "row {row}");
        check_parts(example);
    }
}

#[test]
fn think_and_answer_borders_are_right_on_real_rows_in_both_formats() {
    let Some(shared) = shared() else {
        eprintln!("skipped: no shared/reference beside the repository");
        return;
    };
    let dir = shared.join("reference/qwen3-tiny");
    let records = read_jsonl(shared.join("data/medical-r1/val.jsonl"), &Fields::default(), true).unwrap().records;
    let tokenizer = Tokenizer::from_model_dir(&dir).unwrap();
    let special = SpecialTokens::from_model_dir(&dir).unwrap();
    let shipped = ChatTemplate::new(&shipped_template(), "shipped", special).unwrap();
    for (template, output) in [(ChatTemplate::chatml_recipe(), OutputFormat::Recipe), (shipped, OutputFormat::Template)]
    {
        let options = FormatOptions { output, max_length: 1 << 20, ..FormatOptions::default() };
        let formatter = Formatter::new(template, tokenizer.clone(), options).unwrap();
        for (example, record) in formatter.examples(&records).unwrap().examples.iter().zip(&records) {
            check_parts(example);
            let think = text(&formatter, &example.ids[example.think.clone()]);
            assert!(think.starts_with("<think>") && think.ends_with("</think>"), "{think}");
            let answer = text(&formatter, &example.ids[example.answer.start..example.answer.end - 1]);
            let wanted: String = unicode_normalization::UnicodeNormalization::nfc(record.answer.trim()).collect();
            assert_eq!(answer.trim(), wanted);
            assert!(example.answer_bytes >= record.answer.trim().len());
        }
    }
}
