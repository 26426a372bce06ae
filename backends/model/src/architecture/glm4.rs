//! GLM-4: neighbours are rotated as pairs, in a part of each head; one tensor for the
//! feed-forward's gate and up projections. `glm4` (0414) has norms after both halves of a layer
//! too, `glm` (9B and its chat model) has none there.

use karat_backend::BackendError;

use super::reader::{Defaults, Reader};
use super::{Activation, Architecture, Norms};

pub fn read(reader: &Reader<'_>) -> Result<Architecture, BackendError> {
    let defaults = Defaults {
        key_heads: Some(2),
        head_dim: Some(128),
        max_positions: 131_072,
        norm_eps: 1.5625e-7,
        partial_rotary: Some(0.5),
        ..Defaults::default()
    };
    let mut decoder = reader.decoder(&defaults)?;
    if reader.family == "glm4" {
        decoder.norms = Norms {
            after_attention: Some("post_self_attn_layernorm"),
            after_mlp: Some("post_mlp_layernorm"),
            ..Norms::LLAMA
        };
    }
    decoder.activation = reader.activation("hidden_act", Activation::Silu)?;
    decoder.attention.qkv_bias = reader.flag_or("attention_bias", true)?;
    decoder.fused_mlp = true;
    decoder.rotations.iter_mut().for_each(|rotation| rotation.interleaved = true);
    Ok(decoder)
}
