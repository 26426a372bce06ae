//! Phi-3 and Phi-4 mini: one tensor for queries, keys and values and one for gate and up, a rotated
//! part of each head, and frequencies that change for rows beyond the length of the first training
//! (LongRoPE).

use karat_backend::BackendError;
use serde_json::{Map, Value};

use super::reader::{Defaults, Reader};
use super::{Activation, Architecture, Rotation};
use crate::keys::{Keys, wrong};
use crate::rope::{DEFAULT_THETA, Rope, Scaling};

pub fn read(reader: &Reader<'_>) -> Result<Architecture, BackendError> {
    let defaults = Defaults { max_positions: 4096, norm_eps: 1e-5, rotations: false, ..Defaults::default() };
    let mut decoder = reader.decoder(&defaults)?;
    decoder.activation = reader.activation("hidden_act", Activation::Silu)?;
    for key in ["attention_bias", "resid_pdrop", "embd_pdrop"] {
        reader.nothing(key)?;
    }
    (decoder.attention.fused, decoder.fused_mlp) = (true, true);
    decoder.rotations = vec![rotation(reader, decoder.attention.heads.dim, decoder.max_positions)?];
    let window = reader.size_or_null("sliding_window", None)?;
    decoder.layers.iter_mut().for_each(|layer| layer.window = window);
    Ok(decoder)
}

/// The rotary embedding: plain, or LongRoPE with a list of divisors for rows of up to the first
/// length and one for longer ones (transformers'
/// `modeling_rope_utils._compute_longrope_parameters`).
fn rotation(reader: &Reader<'_>, dim: usize, max_positions: usize) -> Result<Rotation, BackendError> {
    for key in ["rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"] {
        reader.ask(key);
    }
    let original = reader.size_or("original_max_position_embeddings", 4096)?;
    let keys = reader.ask("rope_parameters");
    let is_long = |key: &&str| {
        let section = keys.some(key).and_then(Value::as_object);
        let kind = section.and_then(|map| map.get("rope_type").or_else(|| map.get("type")));
        kind.and_then(Value::as_str) == Some("longrope")
    };
    let Some(name) = ["rope_scaling", "rope_parameters"].into_iter().find(is_long) else {
        return match Rope::read_part(keys, max_positions, DEFAULT_THETA, &mut Vec::new())? {
            (Rope { scaling: Scaling::Default, .. }, _) => {
                reader.rotation_of(keys, dim, max_positions, (DEFAULT_THETA, Some(1.0)))
            }
            _ => Err(BackendError::unsupported("the rope types of a phi3 are default and longrope")),
        };
    };
    let empty = Map::new();
    let long = keys.some(name).and_then(Value::as_object).unwrap_or(&empty);
    // The base and the rotated part, as a plain embedding has them.
    let mut plain = keys.0.clone();
    plain.remove("rope_parameters");
    plain.remove("rope_scaling");
    for key in ["rope_theta", "partial_rotary_factor"] {
        if let Some(value) = long.get(key) {
            plain.insert(key.into(), value.clone());
        }
    }
    let (rope, part) = Rope::read_part(Keys(&plain), max_positions, DEFAULT_THETA, &mut Vec::new())?;
    let dim = reader.rotated(dim, part.factor.unwrap_or(1.0))?;
    let frequencies = |key: &str| {
        let value = long.get(key).ok_or_else(|| BackendError::failed(format!("{name}: \"{key}\" is missing")))?;
        let want = || wrong(key, &format!("a list of {} positive numbers", dim / 2), value);
        let divisors: Option<Vec<f64>> = value.as_array().and_then(|list| list.iter().map(Value::as_f64).collect());
        let divisors = divisors.filter(|list| list.len() == dim / 2 && list.iter().all(|x| *x > 0.0 && *x < 1e9));
        let divisors = divisors.ok_or_else(want)?;
        let frequency = |(j, divisor): (usize, f64)| (rope.theta.powf(-2.0 * j as f64 / dim as f64) / divisor) as f32;
        Ok::<Vec<f32>, BackendError>(divisors.into_iter().enumerate().map(frequency).collect())
    };
    let number = |key: &str| Keys(long).number_that(key, "a number above 0 and at most 1e9", |x| x > 0.0 && x <= 1e9);
    let stretch = number("factor")?.unwrap_or(max_positions as f64 / original as f64);
    let factor = match number("attention_factor")? {
        Some(factor) => factor,
        None if stretch <= 1.0 => 1.0,
        None => (1.0 + stretch.ln() / (original as f64).ln()).sqrt(),
    };
    Ok(Rotation {
        dim,
        interleaved: false,
        frequencies: frequencies("short_factor")?,
        factor: factor as f32,
        long: Some((original, frequencies("long_factor")?)),
    })
}
