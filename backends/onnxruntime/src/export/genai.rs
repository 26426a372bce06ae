//! `genai_config.json`, by which onnxruntime-genai finds its way in an export folder.

use serde_json::{Value, json};

use crate::config::{DecoderConfig, Family};

/// The configuration: names of inputs and outputs, sizes, greedy search over one shared key-value buffer.
pub fn config(c: &DecoderConfig) -> Value {
    let family = match c.family {
        Family::Qwen3 => "qwen3",
        Family::Qwen2 => "qwen2",
        Family::Llama => "llama",
    };
    let eos = match c.eos.as_slice() {
        [one] => json!(one),
        several => json!(several),
    };
    json!({
        "model": {
            "type": family,
            "bos_token_id": c.bos,
            "eos_token_id": eos,
            "pad_token_id": c.pad.or(c.eos.first().copied()),
            "context_length": c.max_positions,
            "vocab_size": c.vocab,
            "decoder": {
                "filename": super::MODEL,
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "head_size": c.head_dim,
                "hidden_size": c.hidden,
                "num_attention_heads": c.heads,
                "num_hidden_layers": c.layers,
                "num_key_value_heads": c.kv_heads,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": false,
            "max_length": c.max_positions,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": true,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    })
}
