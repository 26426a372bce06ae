//! The forward pass with a KV cache: prefill of a prompt, then decode steps of a token.

use crate::device::{CacheBudget, CacheShape, Feed, KvCache, Qkv};
use crate::error::Result;
use crate::layer::Pass;
use crate::model::{Batch, Decoder};
use crate::tensor::{Angles, Tensor};

/// Sequences of up to `positions` that are decoded together where the caller leaves the choice.
pub fn sequences(model: &Decoder, positions: usize) -> usize {
    let CacheBudget { sequences, bytes, element } = model.device().cache_budget();
    let width = model.config.heads.keys * model.config.heads.dim;
    let of_position = 2 * model.layers.len() * width * element;
    sequences.min((bytes / (of_position * positions.max(1))).max(1))
}

/// A cache for `sequences` of up to `positions` each, with none in it.
///
/// # Errors
/// If the device has no room.
pub fn empty(model: &Decoder, sequences: usize, positions: usize) -> Result<Box<dyn KvCache>> {
    let (layers, heads) = (model.layers.len(), model.config.heads);
    model.device().kv_cache(CacheShape { layers, heads, sequences, positions })
}

/// Adds sequences that begin with `prompts` and will have up to `rooms` positions; logits
/// `[prompts, vocab]` after the last token of each.
///
/// # Errors
/// If the device fails.
pub fn prefill(model: &Decoder, prompts: &[&[u32]], rooms: &[usize], cache: &mut dyn KvCache) -> Result<Tensor> {
    let (device, first) = (model.device(), cache.lengths().len());
    rooms.iter().try_for_each(|room| cache.admit(*room))?;
    let batch = Batch::new(prompts.iter().copied());
    let table = model.table(prompts.iter().map(|p| p.len()).max().unwrap_or(0));
    let pass = Pass { starts: &batch.starts, positions: &batch.positions, table: &table, dropout: None };
    cache.extend(first, &batch.starts)?;
    let mut x = device.embed(&model.embedding, &batch.ids)?;
    for (l, layer) in model.layers.iter().enumerate() {
        let p = layer.project_for_cache(&x, pass)?;
        cache.append(l, &p.k, &p.v)?;
        let (attended, _) = device.attend(Qkv { q: &p.q, k: &p.k, v: &p.v, starts: &batch.starts }, layer.heads)?;
        x = layer.infer_mlp(&x, &attended)?;
    }
    let last: Vec<u32> = batch.starts[1..].iter().map(|end| *end as u32 - 1).collect();
    model.logits(&device.gather(&x, &last.into())?)
}

/// The forward pass of one token of each sequence, whose place the cache knows: logits
/// `[sequences, vocab]`.
///
/// # Errors
/// If the device fails.
pub fn feed(model: &Decoder, tokens: Feed<'_>, table: &Angles, cache: &mut dyn KvCache) -> Result<Tensor> {
    let pass = Pass { starts: tokens.starts, positions: tokens.positions, table, dropout: None };
    let mut x = model.device().embed(&model.embedding, tokens.ids)?;
    for (l, layer) in model.layers.iter().enumerate() {
        let p = layer.project_for_cache(&x, pass)?;
        cache.append(l, &p.k, &p.v)?;
        let attended = cache.attend(l, &p.q)?;
        x = layer.infer_mlp(&x, &attended)?;
    }
    model.logits(&x)
}
