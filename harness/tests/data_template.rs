//! Chat templates render as transformers renders them. The expected texts in
//! `vectors/templates.json` were made with the real package by `make_vectors.py`.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use karat::data::template::{ChatTemplate, Message, RenderOptions};
use karat::data::tokens::SpecialTokens;
use serde_json::Value;

/// The material beside the repository, if it is here.
fn shared() -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os("KARAT_SHARED") {
        return Some(dir.into());
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().map(|dir| dir.join("shared")).find(|dir| dir.join("reference").is_dir())
}

fn vectors() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/templates.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn messages(value: &Value) -> Vec<Message> {
    serde_json::from_value(value.clone()).unwrap()
}

/// A folder whose tokenizer configuration names the special tokens of the Python side.
fn model_dir(template: Option<&str>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let config = r#"{"eos_token": {"content": "<|im_end|>"}, "pad_token": "<|endoftext|>"}"#;
    std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    if let Some(template) = template {
        std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    }
    dir
}

fn check_cases(name: &str, source: &str) {
    let vectors = vectors();
    let dir = model_dir(Some(source));
    let template = ChatTemplate::from_model_dir(dir.path()).unwrap();
    let mut checked = 0;
    for case in vectors["cases"].as_array().unwrap().iter().filter(|case| case["template"] == name) {
        let key = case["messages"].as_str().unwrap();
        let options = RenderOptions {
            add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
            enable_thinking: case["enable_thinking"].as_bool(),
            ..RenderOptions::default()
        };
        let text = template.render(&messages(&vectors["conversations"][key]), &options).unwrap();
        assert_eq!(text, case["text"].as_str().unwrap(), "{name}, {key}, {options:?}");
        checked += 1;
    }
    assert_eq!(checked, 72, "12 conversations, 3 settings of thinking, with and without a generation prompt");
}

#[test]
fn the_shipped_template_renders_as_in_transformers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../suites/medical-r1/base/chat_template.jinja");
    check_cases("shipped", &std::fs::read_to_string(path).unwrap());
}

#[test]
fn the_reference_template_renders_as_in_transformers() {
    let Some(shared) = shared() else {
        eprintln!("skipped: no shared/reference beside the repository");
        return;
    };
    let path = shared.join("reference/qwen3-tiny/chat_template.jinja");
    check_cases("reference", &std::fs::read_to_string(path).unwrap());
}

#[test]
fn what_templates_use_of_python_and_jinja2_renders_as_in_transformers() {
    let vectors = vectors();
    let mut wrong = Vec::new();
    let snippets = vectors["snippets"].as_array().unwrap();
    assert!(snippets.len() >= 18);
    for snippet in snippets {
        let (name, source) = (snippet["name"].as_str().unwrap(), snippet["source"].as_str().unwrap());
        let dir = model_dir(Some(source));
        let options = RenderOptions {
            extra: BTreeMap::from([("data".to_string(), vectors["data"].clone())]),
            ..RenderOptions::default()
        };
        let rendered = ChatTemplate::from_model_dir(dir.path())
            .and_then(|t| t.render(&messages(&vectors["conversations"]["full_reasoning"]), &options))
            .unwrap_or_else(|e| format!("ERROR {e}"));
        if rendered != snippet["text"].as_str().unwrap() {
            wrong.push(format!("{name}:\n  karat        {rendered:?}\n  transformers {}", snippet["text"]));
        }
    }
    assert!(wrong.is_empty(), "{} snippets differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_recipe_text_is_literal_chatml() {
    let turns =
        [Message::new("system", "你是"), Message::new("user", " <b>\n"), Message::new("assistant", "<think>x</think>")];
    let options =
        RenderOptions { add_generation_prompt: true, enable_thinking: Some(false), ..RenderOptions::default() };
    let template = ChatTemplate::chatml_recipe();
    assert_eq!(
        template.render(&turns[..2], &options).unwrap(),
        "<|im_start|>system\n你是<|im_end|>\n<|im_start|>user\n <b>\n<|im_end|>\n<|im_start|>assistant\n"
    );
    let whole = template.render(&turns, &RenderOptions::default()).unwrap();
    assert!(whole.ends_with("<|im_start|>assistant\n<think>x</think><|im_end|>\n"));
}

#[test]
fn templates_are_found_where_transformers_finds_them() {
    let say = |dir: &Path, name: &str| {
        ChatTemplate::named_in_model_dir(dir, name).and_then(|t| t.render(&[], &RenderOptions::default()))
    };
    let dir = model_dir(None);
    let config = dir.path().join("tokenizer_config.json");
    let missing = say(dir.path(), "default").unwrap_err();
    assert!(missing.what().contains("no chat template") && missing.help_text().is_some());

    std::fs::write(&config, r#"{"chat_template": "one {{ eos_token is defined }}"}"#).unwrap();
    assert_eq!(say(dir.path(), "default").unwrap(), "one False");

    let named =
        r#"{"chat_template": [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "two"}]}"#;
    std::fs::write(&config, named).unwrap();
    assert_eq!(say(dir.path(), "default").unwrap(), "two");
    assert_eq!(say(dir.path(), "tool_use").unwrap(), "tools");
    assert!(say(dir.path(), "rag").unwrap_err().what().contains("only tool_use, default"));

    std::fs::create_dir(dir.path().join("additional_chat_templates")).unwrap();
    std::fs::write(dir.path().join("additional_chat_templates/rag.jinja"), "rag").unwrap();
    std::fs::write(dir.path().join("chat_template.jinja"), "three").unwrap();
    assert_eq!(say(dir.path(), "rag").unwrap(), "rag");
    assert_eq!(say(dir.path(), "default").unwrap(), "three", "the file wins over the configuration");
}

#[test]
fn a_template_can_refuse_and_a_broken_one_names_its_line() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../suites/medical-r1/base/chat_template.jinja");
    let source = std::fs::read_to_string(shipped).unwrap();
    let template = ChatTemplate::new(&source, "shipped", SpecialTokens::default()).unwrap();
    let refused = template.render(&[Message::new("tool", "x")], &RenderOptions::default()).unwrap_err();
    assert!(refused.what().contains("unknown role tool"), "{refused}");
    assert_eq!(refused.kind(), karat::ErrorKind::Data);

    let broken = ChatTemplate::new("a\n{% if %}", "broken.jinja", SpecialTokens::default()).unwrap_err();
    assert_eq!(broken.place(), Some("broken.jinja:2"));
}

#[test]
fn a_template_that_never_ends_is_stopped() {
    let source = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}";
    let template = ChatTemplate::new(source, "endless", SpecialTokens::default()).unwrap();
    assert!(template.render(&[], &RenderOptions::default()).is_err());
}

#[test]
fn the_date_is_what_the_options_say() {
    let source = "{{ strftime_now('%d %b %Y|%Y-%m-%d %H:%M:%S|%A %j %-d %y') }}";
    let template = ChatTemplate::new(source, "date", SpecialTokens::default()).unwrap();
    let at = |now| template.render(&[], &RenderOptions { now: Some(now), ..RenderOptions::default() }).unwrap();
    // As `datetime.fromtimestamp(n, UTC).strftime(...)` gives them.
    assert_eq!(at(0), "01 Jan 1970|1970-01-01 00:00:00|Thursday 001 1 70");
    assert_eq!(at(1_709_210_096), "29 Feb 2024|2024-02-29 12:34:56|Thursday 060 29 24");
    assert_eq!(at(951_868_799), "29 Feb 2000|2000-02-29 23:59:59|Tuesday 060 29 00");
    assert_eq!(at(4_107_542_399), "28 Feb 2100|2100-02-28 23:59:59|Sunday 059 28 00");
    assert_eq!(at(-86_400), "31 Dec 1969|1969-12-31 00:00:00|Wednesday 365 31 69");
    let unknown = ChatTemplate::new("{{ strftime_now('%Q') }}", "date", SpecialTokens::default()).unwrap();
    assert!(unknown.render(&[], &RenderOptions::default()).unwrap_err().what().contains("%Q"));
}
