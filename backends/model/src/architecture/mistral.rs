//! Mistral: Llama with a sliding window in every layer.

use karat_backend::BackendError;

use super::reader::{Defaults, Reader};
use super::{Activation, Architecture};

pub fn read(reader: &Reader<'_>) -> Result<Architecture, BackendError> {
    let defaults = Defaults { key_heads: Some(8), max_positions: 4096 * 32, ..Defaults::default() };
    let mut decoder = reader.decoder(&defaults)?;
    decoder.activation = reader.activation("hidden_act", Activation::Silu)?;
    let window = reader.size_or_null("sliding_window", Some(4096))?;
    decoder.layers.iter_mut().for_each(|layer| layer.window = window);
    Ok(decoder)
}
