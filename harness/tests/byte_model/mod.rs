//! A model folder whose tokens are bytes.

use serde_json::Value;

/// A byte-level tokenizer without merges: one token a byte, then the special ones. Written like the
/// files of real models, with a stored truncation and a post-processor that would add a BOS, both
/// of which must not show.
pub fn byte_model(template: Option<&str>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut vocab = serde_json::Map::new();
    // GPT-2's printable stand-ins for bytes.
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
        .map(|(token, id)| {
            serde_json::json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": id < 259})
        })
        .collect();
    let bos = serde_json::json!({"<|endoftext|>": {"id": "<|endoftext|>", "ids": [256], "tokens": ["<|endoftext|>"]}});
    let tokenizer = serde_json::json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 256,
            "pad_type_id": 0, "pad_token": "<|endoftext|>"},
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": bos},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": []},
    });
    let write = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
    write("tokenizer.json", tokenizer.to_string());
    write("tokenizer_config.json", r#"{"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}"#.into());
    write("generation_config.json", r#"{"eos_token_id": [258, 256], "pad_token_id": 256}"#.into());
    if let Some(template) = template {
        write("chat_template.jinja", template.into());
    }
    dir
}
