//! Which tokens are trained on: those that TRL's `assistant_only_loss` trains on, token by token.
//! The vectors are made by `backends/tools/python/make_mask_vectors.py`.

#![allow(clippy::unwrap_used)]

mod byte_model;

use std::path::Path;

use byte_model::byte_model;
use karat::backend::IGNORE;
use karat::data::examples::{Example, FormatOptions, Formatter, OutputFormat, Reasoning, TrainOn};
use karat::data::fields::{Fields, Reading};
use karat::data::record::Record;
use karat::data::template::ChatTemplate;
use karat::data::tokens::{SpecialTokens, Tokenizer};
use karat::eval::think::ThinkTags;
use serde_json::{Value, json};

fn records(rows: &[Value], train_on: TrainOn) -> Vec<Record> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows.jsonl");
    std::fs::write(&file, rows.iter().map(|row| format!("{}\n", json!({"messages": row}))).collect::<String>())
        .unwrap();
    let (fields, tags) = (Fields::default(), ThinkTags::default());
    let data = Reading { train_on, ..Reading::new(&fields, &tags) }.read(file).unwrap();
    assert!(data.bad.is_empty(), "{:?}", data.bad);
    data.records
}

fn options(train_on: TrainOn) -> FormatOptions {
    FormatOptions { output: OutputFormat::Template, train_on, ..FormatOptions::default() }
}

fn shipped(template: &str, train_on: TrainOn) -> Formatter {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../suites/medical-r1/base");
    let special = SpecialTokens::from_model_dir(&folder).unwrap();
    let template = ChatTemplate::new(template, "test", special).unwrap();
    Formatter::new(template, Tokenizer::from_model_dir(&folder).unwrap(), options(train_on)).unwrap()
}

/// What is trained on, as zeros and ones.
fn mask(example: &Example) -> String {
    example.labels.iter().map(|&label| if label == IGNORE { '0' } else { '1' }).collect()
}

#[test]
fn every_turn_is_trained_on_token_by_token_as_trl_does() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/assistant_masks.json");
    let vectors: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let cases = vectors["cases"].as_array().unwrap();
    assert!(cases.len() >= 20);
    for case in cases {
        let template = vectors["templates"][case["template"].as_str().unwrap()].as_str().unwrap();
        let what = format!("{}: {}", case["template"], case["messages"]);
        let ids: Vec<u32> = case["ids"].as_str().unwrap().split(' ').map(|id| id.parse().unwrap()).collect();
        let theirs = case["mask"].as_str().unwrap();
        let all = shipped(template, TrainOn::All);
        let record = &records(&[case["messages"].clone()], TrainOn::All)[0];
        let example = all.example(record).unwrap_or_else(|e| panic!("{what}: {e}"));
        // Karat ends an example with the token that ends the turn; what TRL has behind it, it does
        // not train on.
        assert_eq!(example.ids, ids[..example.ids.len()], "{what}");
        assert_eq!(mask(&example), theirs[..example.ids.len()], "{what}");
        assert!(!theirs[example.ids.len()..].contains('1'), "{what}");
        // The last turn alone is the last run of ones.
        let last = shipped(template, TrainOn::Last);
        let example = last.example(&records(&[case["messages"].clone()], TrainOn::Last)[0]).unwrap();
        let start = theirs.rfind("01").unwrap() + 1;
        let alone: String = theirs.char_indices().map(|(i, c)| if i < start { '0' } else { c }).collect();
        assert_eq!(mask(&example), alone[..example.ids.len()], "{what}");
        // Without marks the turns are found by rendering what is before them.
        let unmarked =
            template.replace("{% generation %}", "{% if true %}").replace("{% endgeneration %}", "{% endif %}");
        let unmarked =
            unmarked.replace("{%- generation %}", "{%- if true %}").replace("{%- endgeneration %}", "{%- endif %}");
        assert!(!unmarked.contains("generation %}"));
        let example = shipped(&unmarked, TrainOn::All).example(record).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(mask(&example), theirs[..example.ids.len()], "unmarked {what}");
    }
}

const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Drops the reasoning of every turn but the last, as Qwen3's does.
const LAST_ONLY: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}\
    {% if loop.last and m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}\
    {{ m.content.split('</think>')[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

fn formatter(template: &str, options: FormatOptions) -> Formatter {
    let dir = byte_model(Some(template));
    let template = ChatTemplate::from_model_dir(dir.path()).unwrap();
    Formatter::new(template, Tokenizer::from_model_dir(dir.path()).unwrap(), options).unwrap()
}

/// What is trained on of the only row, as text, a bar between what is not joined.
fn trained(formatter: &Formatter, record: &Record) -> karat::Result<String> {
    let example = formatter.example(record)?;
    let (mut text, mut run) = (Vec::new(), Vec::new());
    for &label in &example.labels {
        match u32::try_from(label) {
            Ok(id) => run.push(id),
            Err(_) if run.is_empty() => {}
            Err(_) => text.push(formatter.tokenizer().decode(&std::mem::take(&mut run), false)?),
        }
    }
    text.push(formatter.tokenizer().decode(&run, false)?);
    Ok(text.join("|"))
}

#[test]
fn reasoning_of_earlier_turns_is_written_or_refused_and_never_dropped() {
    let rows = [
        json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning_content": "because"},
            {"role": "user", "content": "r"}, {"role": "assistant", "content": "b", "reasoning_content": "so"}]),
        json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>because</think>a"},
            {"role": "user", "content": "r"}, {"role": "assistant", "content": "b", "reasoning_content": "so"}]),
    ];
    for (row, record) in records(&rows, TrainOn::All).iter().enumerate() {
        let all = options(TrainOn::All);
        // No place of its own: into the text.
        let written = trained(&formatter(CHATML, all.clone()), record).unwrap();
        let expected = ["<think>\nbecause\n</think>\n\na<|im_end|>", "<think>because</think>a<|im_end|>"][row];
        assert_eq!(written, format!("{expected}|<think>\nso\n</think>\n\nb<|im_end|>"));
        // Dropped wherever it stands: an error that names the turn.
        let error = formatter(LAST_ONLY, all.clone()).example(record).unwrap_err();
        assert!(error.what().contains("drops the reasoning of turn 2"), "{error}");
        assert!(error.help_text().unwrap().contains("train_on = \"last\""), "{error}");
        // Asked for: left out.
        let drop = FormatOptions { reasoning: Reasoning::Drop, ..all.clone() };
        let mut record = record.clone();
        assert_eq!(trained(&formatter(CHATML, drop.clone()), &record).unwrap(), "a<|im_end|>|b<|im_end|>");
        assert_eq!(trained(&formatter(LAST_ONLY, drop), &record).unwrap(), "a<|im_end|>|b<|im_end|>");
        // The recipe's form, in every turn.
        let recipe = FormatOptions { output: OutputFormat::Recipe, ..all.clone() };
        assert_eq!(
            trained(&formatter(CHATML, recipe), &record).unwrap(),
            "<think>because</think> \n a<|im_end|>|<think>so</think> \n b<|endoftext|>"
        );
        // Not trained on, an earlier turn is what the template makes of it.
        record.trained.clear();
        let last = options(TrainOn::Last);
        assert_eq!(trained(&formatter(LAST_ONLY, last), &record).unwrap(), "<think>\nso\n</think>\n\nb<|im_end|>");
        // A template that must have its own place for it.
        let strict = FormatOptions { reasoning: Reasoning::Template, ..all };
        let with_text = records(&rows[..1], TrainOn::All).remove(0);
        assert!(formatter(CHATML, strict).example(&with_text).is_err());
    }
}

#[test]
fn a_template_whose_turns_begin_otherwise_than_its_generation_prompt_is_refused_by_name() {
    let opened = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}");
    let row = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"},
        {"role": "user", "content": "r"}, {"role": "assistant", "content": "b"}]);
    let record = &records(&[row], TrainOn::All)[0];
    let error = formatter(&opened, options(TrainOn::All)).example(record).unwrap_err();
    assert_eq!(error.kind(), karat::ErrorKind::Data);
    assert!(error.help_text().is_some(), "{error}");
    // A mark that covers nothing of the last turn.
    let marked = CHATML.replace(
        "{{ m.content }}<",
        "{% if m.role == 'assistant' %}{% generation %}{% endgeneration %}{% endif %}{{ m.content }}<",
    );
    let error = formatter(&marked, options(TrainOn::All)).example(record).unwrap_err();
    assert!(error.what().contains("marks no token of the last turn"), "{error}");
}
