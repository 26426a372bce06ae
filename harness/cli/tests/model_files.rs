//! Tokenizers and templates of model folders as the command line meets them: an adapter's own, ids
//! that no token has, end tokens that the template does not write, files made to do harm.

#![allow(clippy::unwrap_used)]
#![cfg(unix)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// A drawn model of 400 rows with a tokenizer of 261 tokens.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Place { folder: tempfile::tempdir().unwrap() };
        let shape = json!({
            "model_type": "qwen3", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 400,
            "max_position_embeddings": 128, "tie_word_embeddings": true, "initializer_range": 0.2
        });
        std::fs::create_dir(place.path("shape")).unwrap();
        place.put("shape/config.json", &shape.to_string());
        place.put("shape/tokenizer.json", &tokenizer().to_string());
        place.put("shape/tokenizer_config.json", r#"{"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}"#);
        place.put("shape/chat_template.jinja", TEMPLATE);
        let rows: String = (0..9u32)
            .map(|row| {
                let ids: Vec<u32> = (0..8 + row).map(|i| (row * 37 + i * i * 11) % 260).collect();
                json!({"input_ids": ids, "labels": ids}).to_string() + "\n"
            })
            .collect();
        place.put("ids.jsonl", &rows);
        place.put("chat.jsonl", "{\"id\": \"a\", \"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}\n");
        let model = place.train(&["--from-scratch", "--method", "full"], "drawn");
        std::fs::rename(model, place.path("model")).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn karat(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_karat")).args(args).current_dir(self.folder.path()).output().unwrap()
    }

    /// Trains one step on ids; the checkpoint's folder.
    fn train(&self, more: &[&str], out: &str) -> PathBuf {
        let model = if more.contains(&"--from-scratch") { "shape" } else { "model" };
        let mut args = vec!["train", "--model", model, "--data", "ids.jsonl", "--ids", "--out", out];
        args.extend(["--set", "max_steps=1"]);
        args.extend(more);
        let output = self.karat(&args);
        assert!(output.status.success(), "{}", said(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        self.path(text.lines().next().unwrap())
    }
}

fn tokenizer() -> Value {
    let mut vocab = serde_json::Map::new();
    let printable = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut next = 256;
    for byte in 0..256u32 {
        let stand_in = if printable(byte) { byte } else { next };
        next += u32::from(!printable(byte));
        vocab.insert(char::from_u32(stand_in).unwrap().to_string(), byte.into());
    }
    let added: Vec<Value> = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
        .iter()
        .zip(256..)
        .map(|(token, id)| added(token, id, id < 259))
        .collect();
    let cut = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": cut, "post_processor": null, "decoder": cut,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": []},
    })
}

fn added(token: &str, id: u32, special: bool) -> Value {
    json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": special})
}

fn said(output: &Output) -> String {
    format!(
        "{:?}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn rows(output: &Output) -> Vec<Value> {
    String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn ids_of_a_padded_vocabulary_end_no_generation() {
    let place = Place::new();
    let lines: String = (0..5).map(|i| format!("{{\"id\": \"row{i}\", \"text\": \"hello {i}\"}}\n")).collect();
    place.put("text.jsonl", &lines);
    let args =
        ["generate", "--model", "model", "--input", "text.jsonl", "--max-new-tokens", "24", "--temperature", "9"];
    let output = place.karat(&args);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let rows = rows(&output);
    assert_eq!(rows.len(), 5);
    let unnamed = |row: &Value| row["ids"].as_array().unwrap().iter().any(|id| id.as_u64().unwrap() > 260);
    assert!(rows.iter().any(unnamed), "the model wrote no such id: {}", said(&output));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(told.matches("have no token").count(), 1, "{told}");
    assert!(rows.iter().filter(|row| unnamed(row)).all(|row| told.contains(row["id"].as_str().unwrap())), "{told}");
}

#[test]
fn the_template_and_tokenizer_of_an_adapter_are_used_and_carried_into_the_merged_model() {
    let place = Place::new();
    let adapter = place.train(&["--method", "lora"], "lora");
    let adapter = adapter.to_str().unwrap();
    let generate =
        ["generate", "--model", "model", "--adapter", adapter, "--input", "chat.jsonl", "--max-new-tokens", "2"];
    let merge = |out: &str| place.karat(&["merge", "--model", "model", "--adapter", adapter, "--out", out]);
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap();

    // What Karat itself puts beside an adapter is the model's.
    let output = place.karat(&generate);
    assert!(!String::from_utf8_lossy(&output.stderr).contains("own"), "{}", said(&output));
    let output = merge("same");
    assert!(output.status.success() && !said(&output).contains("own"), "{}", said(&output));

    let own = TEMPLATE.replace("<|im_start|>", "<|im_start|> ");
    std::fs::write(Path::new(adapter).join("chat_template.jinja"), &own).unwrap();
    let output = place.karat(&generate);
    assert!(String::from_utf8_lossy(&output.stderr).contains("the adapter's own chat template"), "{}", said(&output));
    let output = merge("merged");
    assert!(said(&output).contains("with the adapter's own chat template"), "{}", said(&output));
    assert_eq!(read(place.path("merged/chat_template.jinja")), own);
    assert_eq!(read(place.path("merged/tokenizer.json")), read(place.path("model/tokenizer.json")));

    // A token of the padded vocabulary: it has a row.
    let mut changed = tokenizer();
    changed["added_tokens"].as_array_mut().unwrap().push(added("<|call|>", 261, true));
    std::fs::write(Path::new(adapter).join("tokenizer.json"), changed.to_string()).unwrap();
    let output = merge("both");
    assert!(said(&output).contains("own chat template and tokenizer"), "{}", said(&output));
    assert_eq!(read(place.path("both/tokenizer.json")), changed.to_string());

    // Tokens for which the embeddings were resized have none.
    for id in 262..401u32 {
        changed["added_tokens"].as_array_mut().unwrap().push(added(&format!("<|t{id}|>"), id, true));
    }
    std::fs::write(Path::new(adapter).join("tokenizer.json"), changed.to_string()).unwrap();
    let output = merge("resized");
    assert_eq!(output.status.code(), Some(6), "{}", said(&output));
    assert!(said(&output).contains("<|t400|>") && said(&output).contains("400 rows"), "{}", said(&output));
    assert!(!place.path("resized").exists());
}

#[test]
fn a_base_model_whose_end_is_not_the_templates_is_told_how_to_end_and_ends_so() {
    let place = Place::new();
    place.put("model/tokenizer_config.json", r#"{"eos_token": "<|endoftext|>"}"#);
    place.put("model/generation_config.json", r#"{"eos_token_id": 256}"#);
    let row = r#"{"question": "Hi", "answer": "Ho"}"#;
    place.put("rows.jsonl", &format!("{row}\n").repeat(4));
    let train = |out: &str, more: &[&str]| {
        let mut args = vec!["train", "--model", "model", "--data", "rows.jsonl", "--method", "lora", "--out", out];
        args.extend(["--set", "max_steps=1"]);
        args.extend(more);
        place.karat(&args)
    };
    let output = train("no", &[]);
    assert_eq!(output.status.code(), Some(6), "{}", said(&output));
    let told = said(&output);
    for word in ["<|im_end|>", "258", "eos_token_id", "generation_config.json", "[256, 258]", "stop = "] {
        assert!(told.contains(word), "{word}: {told}");
    }
    let output = train("yes", &["--set", "data.stop=[\"<|im_end|>\"]"]);
    assert!(output.status.success(), "{}", said(&output));
    let output = train("wrong", &["--set", "data.stop=[\"<|nowhere|>\"]"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));

    let generate = |stop: &str| {
        let output = place.karat(&[
            "generate",
            "--model",
            "model",
            "--input",
            "chat.jsonl",
            "--max-new-tokens",
            "8",
            "--stop",
            stop,
        ]);
        assert!(output.status.success(), "{}", said(&output));
        rows(&output)[0].clone()
    };
    // Whatever the model writes first ends the text once it is a stop.
    let free = generate("<|im_end|>");
    let first = free["ids"][0].as_u64().unwrap().to_string();
    if first.parse::<u32>().unwrap() < 261 {
        let ended = generate(&first);
        assert_eq!((ended["ids"].as_array().unwrap().len(), ended["stop"].as_str()), (1, Some("stop")), "{ended}");
    }
}

/// Runs with an address space of so many MiB: what would take the machine's memory is killed there.
fn limited(place: &Place, mib: u32, args: &[&str]) -> Output {
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("ulimit -v {}; ulimit -c 0; exec \"$0\" \"$@\"", mib * 1024));
    command.arg(env!("CARGO_BIN_EXE_karat")).args(args).current_dir(place.folder.path()).output().unwrap()
}

#[test]
fn templates_and_tokenizers_made_to_do_harm_end_with_exit_6_in_one_gib() {
    let place = Place::new();
    let generate = ["generate", "--model", "model", "--input", "chat.jsonl", "--max-new-tokens", "2", "--threads", "1"];
    let whole = limited(&place, 1024, &generate);
    assert!(whole.status.success(), "one GiB is not enough for anything: {}", said(&whole));
    for source in [
        "{{ 'x' | indent(10000000000) }}".to_string(),
        "{{ messages | tojson(indent=9999999999) }}".into(),
        "{% set ns = namespace(a='x'*1000) %}{% for i in range(40) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}".into(),
        "{{ ('x'*100000) | replace('x','y'*100000) }}".into(),
        "{% set ns = namespace(l=[1]) %}{% for i in range(100000) %}{% for j in range(9) %}{% set ns.l = [ns.l] %}{% endfor %}{% endfor %}".into(),
        "{% for i in range(100000) %}{% for j in range(100000) %}short text {% endfor %}{% endfor %}".into(),
        format!("{{{{ 1{} }}}}", "+1".repeat(50_000)),
        format!("{{{{ a{} }}}}", "[0]".repeat(50_000)),
    ] {
        place.put("model/chat_template.jinja", &format!("{{{{ messages[0].content }}}}{source}"));
        let output = limited(&place, 1024, &generate);
        assert_eq!(output.status.code(), Some(6), "{}: {}", &source[..60.min(source.len())], said(&output));
        assert!(String::from_utf8_lossy(&output.stderr).contains("chat_template.jinja"), "{}", said(&output));
    }
    for constant in ["", "null", "[]", "{}", "always the same", "{{ 'x' * -1 }}"] {
        place.put("model/chat_template.jinja", constant);
        let output = limited(&place, 1024, &generate);
        assert_eq!(output.status.code(), Some(6), "{constant:?}: {}", said(&output));
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains("chat_template.jinja") && told.contains("never reads"), "{constant:?}: {told}");
    }
    place.put("text.jsonl", &json!({"text": format!("hello {}!", "a".repeat(60))}).to_string());
    let score = ["score", "--model", "model", "--input", "text.jsonl", "--threads", "1"];
    let change = |key: &str, value: Value| {
        let mut changed = tokenizer();
        changed[key] = value;
        changed.to_string()
    };
    let grow = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(100)});
    let table = |base64: &str| json!({"type": "Precompiled", "precompiled_charsmap": base64});
    for text in [
        change(
            "pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": false}),
        ),
        change("normalizer", table("AAAA")),
        change("normalizer", table("////fwAAAAA=")),
        change("normalizer", json!({"type": "Sequence", "normalizers": vec![grow; 6]})),
    ] {
        place.put("model/tokenizer.json", &text);
        let output = limited(&place, 1024, &score);
        assert_eq!(output.status.code(), Some(6), "{}", said(&output));
        assert!(String::from_utf8_lossy(&output.stderr).contains("tokenizer.json"), "{}", said(&output));
    }
}
