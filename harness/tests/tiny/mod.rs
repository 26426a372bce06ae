//! A tiny model for tests of whole runs: a byte-level tokenizer and a bigram table.

#![allow(clippy::unwrap_used, dead_code)]

use std::path::Path;
use std::sync::Arc;

use karat::run::{Backends, LoadedBackend, Origin};
use karat_hostile::Bigram;
use serde_json::{Value, json};

/// The one backend of these tests.
pub struct Only;

impl Backends for Only {
    fn backend(&self, _: &str) -> karat::Result<LoadedBackend> {
        Ok(LoadedBackend { backend: Arc::new(Bigram), origin: Origin::default() })
    }
}

/// A byte-level tokenizer without merges, a template and a bigram table over its 258 tokens.
pub fn model(folder: &Path) {
    let mut vocab = serde_json::Map::new();
    // GPT-2's printable stand-ins for bytes.
    let printable = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut next = 256;
    for byte in 0..256u32 {
        let stand_in = if printable(byte) { byte } else { next };
        next += u32::from(!printable(byte));
        vocab.insert(char::from_u32(stand_in).unwrap().to_string(), byte.into());
    }
    let added: Vec<Value> = ["<|endoftext|>", "<|im_end|>"]
        .iter()
        .zip(256..)
        .map(|(token, id)| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let tokenizer = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": []}});
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    std::fs::create_dir_all(folder).unwrap();
    write("config.json", "{}");
    write("tokenizer.json", &tokenizer.to_string());
    write("tokenizer_config.json", r#"{"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}"#);
    write(
        "chat_template.jinja",
        "{% for m in messages %}{{ m.content }}|{% endfor %}{% if add_generation_prompt %}{% endif %}",
    );
    Bigram::write_model(folder, 258, 3).unwrap();
}
