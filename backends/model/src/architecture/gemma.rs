//! Gemma 2 and Gemma 3 (text): norms of 1 + weight before and after both halves of a layer, windows
//! in some layers, soft caps, a scale of attention of their own; Gemma 3 norms heads and rotates
//! its windowed layers over another base.

use karat_backend::BackendError;
use serde_json::{Map, Value, json};

use super::reader::{Defaults, Reader};
use super::{Activation, Architecture, Norms, QkNorm, Rotation};
use crate::keys::{Keys, wrong};

pub fn read(reader: &Reader<'_>) -> Result<Architecture, BackendError> {
    let third = reader.family == "gemma3_text";
    let defaults = Defaults {
        key_heads: Some(4),
        head_dim: Some(256),
        max_positions: if third { 131_072 } else { 8192 },
        tied: true,
        rotations: !third,
        ..Defaults::default()
    };
    let mut decoder = reader.decoder(&defaults)?;
    decoder.norms = Norms {
        before_attention: Some("input_layernorm"),
        after_attention: Some("post_attention_layernorm"),
        before_mlp: Some("pre_feedforward_layernorm"),
        after_mlp: Some("post_feedforward_layernorm"),
    };
    decoder.norm_offset = true;
    // Older files name the function twice; transformers reads this one.
    reader.ask("hidden_act");
    decoder.activation = reader.activation("hidden_activation", Activation::GeluTanh)?;
    // In f32, in which transformers multiplies.
    decoder.embedding_scale = f64::from((decoder.hidden_size as f64).sqrt() as f32);
    let bias = reader.flag_or("attention_bias", false)?;
    let attention = &mut decoder.attention;
    (attention.qkv_bias, attention.o_bias) = (bias, bias);
    attention.scale = reader.number_or("query_pre_attn_scalar", 256.0)?.powf(-0.5);
    let (of_attention, of_logits) = if third { (None, None) } else { (Some(50.0), Some(30.0)) };
    attention.softcap = reader.number_or_null("attn_logit_softcapping", of_attention)?;
    decoder.logits_softcap = reader.number_or_null("final_logit_softcapping", of_logits)?;
    let window = reader.size_or_null("sliding_window", Some(4096))?;
    let layers = decoder.layers.len();
    let slides = match third {
        true => {
            attention.qk_norm = QkNorm::Heads;
            let pattern = reader.size_or("sliding_window_pattern", 6)?;
            reader.windows(layers, window, |i| !(i + 1).is_multiple_of(pattern))?
        }
        false => reader.windows(layers, window, |i| i.is_multiple_of(2))?,
    };
    if third {
        decoder.rotations = rotations(reader, decoder.attention.heads.dim, decoder.max_positions)?;
    }
    for (layer, slides) in decoder.layers.iter_mut().zip(slides) {
        layer.window = window.filter(|_| slides);
        layer.rotation = usize::from(third && slides);
    }
    Ok(decoder)
}

/// The rotary embeddings of Gemma 3's full and of its windowed layers. transformers 5 nests them by
/// the kind of layer; before, the windowed ones had a base alone.
fn rotations(reader: &Reader<'_>, dim: usize, max_positions: usize) -> Result<Vec<Rotation>, BackendError> {
    let keys = reader.ask("rope_parameters");
    let given = |key: &'static str| reader.ask(key).some(key);
    let kinds = [("full_attention", "rope_theta", 1e6), ("sliding_attention", "rope_local_base_freq", 1e4)];
    let nested = match keys.some("rope_parameters") {
        None => None,
        Some(Value::Object(map)) if map.keys().all(|key| kinds.iter().any(|(kind, ..)| key == kind)) => Some(map),
        Some(other) => {
            return Err(wrong("rope_parameters", "an object of full_attention and sliding_attention", other));
        }
    };
    let rotation = |(kind, base, default): (&str, &'static str, f64)| {
        let mut section = match nested.and_then(|map| map.get(kind)) {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(section)) => section.clone(),
            Some(other) => return Err(wrong(kind, "an object", other)),
        };
        if let (Some(scaling), "full_attention") = (given("rope_scaling"), kind) {
            let scaling = scaling.as_object().ok_or_else(|| wrong("rope_scaling", "an object or null", scaling))?;
            section.extend(scaling.clone());
        }
        if let Some(base) = given(base) {
            section.entry("rope_theta").or_insert_with(|| base.clone());
        }
        section.entry("rope_type").or_insert_with(|| json!("default"));
        let keys = Map::from_iter([("rope_parameters".to_owned(), Value::Object(section))]);
        reader.rotation_of(Keys(&keys), dim, max_positions, (default, None))
    };
    kinds.into_iter().map(rotation).collect()
}
