//! Granite: Llama with four multipliers.

use karat_backend::BackendError;

use super::reader::{Defaults, Reader};
use super::{Activation, Architecture};

pub fn read(reader: &Reader<'_>) -> Result<Architecture, BackendError> {
    let mut decoder = reader.decoder(&Defaults::default())?;
    decoder.activation = reader.activation("hidden_act", Activation::Silu)?;
    let bias = reader.flag_or("attention_bias", false)?;
    (decoder.attention.qkv_bias, decoder.attention.o_bias) = (bias, bias);
    decoder.mlp_bias = reader.flag_or("mlp_bias", false)?;
    decoder.attention.scale = reader.number_or("attention_multiplier", 1.0)?;
    decoder.embedding_scale = reader.number_or("embedding_multiplier", 1.0)?;
    decoder.residual_scale = reader.number_or("residual_multiplier", 1.0)?;
    decoder.logits_divisor = reader.number_or("logits_scaling", 1.0)?;
    Ok(decoder)
}
