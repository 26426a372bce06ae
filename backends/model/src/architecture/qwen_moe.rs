//! Qwen2-MoE and Qwen3-MoE: experts instead of feed-forwards in some layers, with an expert that
//! every token has beside them in the former.

use karat_backend::BackendError;
use serde_json::Value;

use super::reader::{Defaults, Reader};
use super::{Activation, Architecture, Experts, QkNorm};
use crate::keys::wrong;

pub fn read(reader: &Reader<'_>) -> Result<Architecture, BackendError> {
    let third = reader.family == "qwen3_moe";
    let key_heads = Some(if third { 4 } else { 16 });
    let mut decoder = reader.decoder(&Defaults { key_heads, max_positions: 32768, ..Defaults::default() })?;
    decoder.activation = reader.activation("hidden_act", Activation::Silu)?;
    let attention = &mut decoder.attention;
    match third {
        true => {
            let bias = reader.flag_or("attention_bias", false)?;
            (attention.qkv_bias, attention.o_bias) = (bias, bias);
            attention.qk_norm = QkNorm::Heads;
        }
        false => attention.qkv_bias = reader.flag_or("qkv_bias", true)?,
    }
    windows(reader, &mut decoder, third)?;

    // transformers writes the number of experts under either name.
    let name = if third && reader.ask("num_experts").get("num_experts").is_none() {
        "num_local_experts"
    } else {
        "num_experts"
    };
    let count = reader.count_or(name, if third { 128 } else { 60 })?;
    let per_token = reader.size_or("num_experts_per_tok", if third { 8 } else { 4 })?;
    let step = reader.size_or("decoder_sparse_step", 1)?;
    let dense = layers_of(reader, "mlp_only_layers")?;
    if count > 0 {
        if per_token > count {
            return Err(BackendError::failed(format!(
                "\"num_experts_per_tok\" {per_token} is more than the {count} of \"{name}\""
            )));
        }
        decoder.experts = Some(Experts {
            count,
            per_token,
            inner: reader.size_or("moe_intermediate_size", if third { 768 } else { 1408 })?,
            normalized: reader.flag_or("norm_topk_prob", false)?,
            shared: match third {
                true => None,
                false => Some(reader.size_or("shared_expert_intermediate_size", 5632)?),
            },
        });
        for (i, layer) in decoder.layers.iter_mut().enumerate() {
            layer.sparse = !dense.contains(&(i as u64)) && (i + 1).is_multiple_of(step);
        }
    }
    Ok(decoder)
}

/// Which layers see a window: all of a Qwen3-MoE that is told to, every second one of the first of
/// a Qwen2-MoE.
fn windows(reader: &Reader<'_>, decoder: &mut Architecture, third: bool) -> Result<(), BackendError> {
    let uses = reader.flag_or("use_sliding_window", false)?;
    let window = reader.size_or_null("sliding_window", Some(4096))?.filter(|_| uses);
    let first = reader.count_or("max_window_layers", 28)?;
    let layers = decoder.layers.len();
    let slides = match third {
        true => vec![uses; layers],
        false => reader.windows(layers, window, |i| uses && i.is_multiple_of(2) && i < first)?,
    };
    for (layer, slides) in decoder.layers.iter_mut().zip(slides) {
        layer.window = window.filter(|_| slides);
    }
    Ok(())
}

/// The numbers of layers that `key` lists.
fn layers_of(reader: &Reader<'_>, key: &'static str) -> Result<Vec<u64>, BackendError> {
    let Some(value) = reader.ask(key).some(key) else { return Ok(Vec::new()) };
    let list = value.as_array().and_then(|list| list.iter().map(Value::as_u64).collect());
    list.ok_or_else(|| wrong(key, "a list of the numbers of layers", value))
}
