//! `genai_config.json`, by which onnxruntime-genai finds its way in an export folder.

use std::path::Path;

use karat_backend::BackendError;
use karat_model::{ModelConfig, end_tokens};
use serde_json::{Value, json};

/// The configuration: names of inputs and outputs, sizes, greedy search over one shared key-value
/// buffer.
///
/// The tokens that end a text are those of the checkpoint's `generation_config.json` where it names
/// any: chat models end their turns with more tokens than `config.json` says.
///
/// # Errors
/// A `generation_config.json` whose end tokens are none.
pub fn config(c: &ModelConfig, checkpoint: &Path) -> Result<Value, BackendError> {
    let named = end_tokens(checkpoint)?;
    let eos = match named.as_deref().unwrap_or(&c.eos) {
        [one] => json!(one),
        ids => json!(ids),
    };
    let first_eos = eos.as_array().map_or(eos.as_u64(), |ids| ids.first().and_then(Value::as_u64));
    let mut configuration = json!({"model": model(c, c.family.name()), "search": search(c)});
    // An id that is not there is left out: null is refused.
    if let Some(model) = configuration["model"].as_object_mut() {
        let mut put = |key: &str, id: Option<Value>| id.and_then(|id| model.insert(key.into(), id));
        put("bos_token_id", c.bos.map(Value::from));
        put("eos_token_id", first_eos.is_some().then_some(eos));
        put("pad_token_id", c.pad_token.map(u64::from).or(first_eos).map(Value::from));
    }
    Ok(configuration)
}

fn model(c: &ModelConfig, family: &str) -> Value {
    json!({
        "type": family,
        "context_length": c.max_positions,
        "vocab_size": c.vocab_size,
        "decoder": {
            "filename": super::MODEL,
            "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
            "head_size": c.heads.dim,
            "hidden_size": c.hidden_size,
            "num_attention_heads": c.heads.queries,
            "num_hidden_layers": c.layers,
            "num_key_value_heads": c.heads.keys,
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
    })
}

fn search(c: &ModelConfig) -> Value {
    json!({
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
    })
}
