//! OLMo 2: norms after both halves of a layer and none before, one norm on all query heads of a
//! token and one on all keys.

use karat_backend::BackendError;

use super::reader::{Defaults, Reader};
use super::{Activation, Architecture, Norms, QkNorm};

pub fn read(reader: &Reader<'_>) -> Result<Architecture, BackendError> {
    let mut decoder = reader.decoder(&Defaults { norm_eps: 1e-5, ..Defaults::default() })?;
    decoder.norms = Norms {
        before_attention: None,
        after_attention: Some("post_attention_layernorm"),
        before_mlp: None,
        after_mlp: Some("post_feedforward_layernorm"),
    };
    decoder.activation = reader.activation("hidden_act", Activation::Silu)?;
    let bias = reader.flag_or("attention_bias", false)?;
    (decoder.attention.qkv_bias, decoder.attention.o_bias) = (bias, bias);
    decoder.attention.qk_norm = QkNorm::Whole;
    reader.nothing("clip_qkv")?;
    Ok(decoder)
}
