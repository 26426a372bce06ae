//! The forward pass with keys and values remembered: a prompt at once, then a token at a time.

use crate::layer::Pass;
use crate::model::{Batch, Decoder};
use crate::nn::{self, Indices, Result, Starts, Tensor};

/// Keys and values of one sequence: for each layer `[positions, keys * dim]`.
pub struct Cache {
    layers: Vec<[Vec<f32>; 2]>,
    len: usize,
}

impl Cache {
    /// An empty cache with room for `positions`.
    pub fn new(model: &Decoder, positions: usize) -> Self {
        let room = positions * width(model);
        Cache { layers: (0..model.layers.len()).map(|_| [0; 2].map(|_| Vec::with_capacity(room))).collect(), len: 0 }
    }
}

/// Elements that one position takes in each of the two parts of a layer.
fn width(model: &Decoder) -> usize {
    model.config.heads.keys * model.config.heads.dim
}

/// Bytes that one position of one sequence takes.
pub fn bytes_per_position(model: &Decoder) -> usize {
    2 * model.layers.len() * width(model) * size_of::<f32>()
}

/// Feeds whole `prompts` into their empty caches; logits `[prompts, vocab]` after the last token of each.
///
/// # Errors
/// If the device fails.
pub fn prefill(model: &Decoder, prompts: &[&[u32]], caches: &mut [Cache]) -> Result<Tensor> {
    let batch = Batch::new(prompts.iter().copied());
    let table = model.table(prompts.iter().map(|p| p.len()).max().unwrap_or(0));
    let pass = Pass { starts: &batch.starts, positions: &batch.positions, table: &table, dropout: None };
    let mut x = nn::embed(&model.embedding, &batch.ids)?;
    for (l, layer) in model.layers.iter().enumerate() {
        let p = layer.project(&x, pass)?;
        remember(model, l, &batch.starts, &p.k, &p.v, caches)?;
        let (attended, _) = nn::attend(layer.o.precision, [&p.q, &p.k, &p.v], &batch.starts, layer.heads)?;
        x = layer.finish(&x, &attended, None)?.0;
    }
    caches.iter_mut().zip(prompts).for_each(|(cache, prompt)| cache.len += prompt.len());
    let last: Vec<u32> = batch.starts[1..].iter().map(|end| *end as u32 - 1).collect();
    model.logits(&nn::gather(&x, &last.into())?)
}

/// Feeds one token into each cache; logits `[sequences, vocab]`.
///
/// # Errors
/// If the device fails.
pub fn step(model: &Decoder, ids: &[u32], caches: &mut [Cache]) -> Result<Tensor> {
    let positions: Vec<u32> = caches.iter().map(|cache| cache.len as u32).collect();
    let starts = Starts::from((0..=ids.len()).collect::<Vec<_>>());
    let table = model.table(positions.iter().max().map_or(0, |p| *p as usize + 1));
    let (positions, ids) = (Indices::from(positions), Indices::from(ids.to_vec()));
    let pass = Pass { starts: &starts, positions: &positions, table: &table, dropout: None };
    let mut x = nn::embed(&model.embedding, &ids)?;
    for (l, layer) in model.layers.iter().enumerate() {
        let p = layer.project(&x, pass)?;
        remember(model, l, &starts, &p.k, &p.v, caches)?;
        let views: Vec<(&[f32], &[f32])> =
            caches.iter().map(|cache| (&cache.layers[l][0][..], &cache.layers[l][1][..])).collect();
        let attended = nn::attend_cached(&p.q, &views, layer.heads)?;
        x = layer.finish(&x, &attended, None)?.0;
    }
    caches.iter_mut().for_each(|cache| cache.len += 1);
    model.logits(&x)
}

fn remember(model: &Decoder, l: usize, starts: &[usize], k: &Tensor, v: &Tensor, caches: &mut [Cache]) -> Result<()> {
    let (k, v, width) = (nn::view(k)?, nn::view(v)?, width(model));
    for (cache, w) in caches.iter_mut().zip(starts.windows(2)) {
        let [keys, values] = &mut cache.layers[l];
        keys.extend_from_slice(&k[w[0] * width..w[1] * width]);
        values.extend_from_slice(&v[w[0] * width..w[1] * width]);
    }
    Ok(())
}
