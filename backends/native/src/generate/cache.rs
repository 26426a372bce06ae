//! The forward pass with keys and values remembered: a prompt at once, then a token at a time.

use crate::cuda::cache::Slots;
use crate::layer::{Pass, Projected};
use crate::model::{Batch, Decoder};
use crate::nn::{self, Angles, Indices, Result, Starts, Tensor};
use crate::ops::attention::Heads;

/// Keys and values of one sequence on the CPU: for each layer `[positions, keys * dim]`.
struct Cache {
    layers: Vec<[Vec<f32>; 2]>,
    len: usize,
}

/// Keys and values of the sequences being decoded, in their order.
pub struct Caches(Place);

enum Place {
    Cpu(Vec<Cache>),
    Cuda(Box<Slots>),
}

/// Elements that one position takes in each of the two parts of a layer.
fn width(model: &Decoder) -> usize {
    model.config.heads.keys * model.config.heads.dim
}

/// Bytes that one position of one sequence takes.
pub fn bytes_per_position(model: &Decoder) -> usize {
    let element = model.device().map_or(size_of::<f32>(), |device| device.activations.size());
    2 * model.layers.len() * width(model) * element
}

impl Caches {
    /// No sequence yet, and room for `most` of up to `positions` each.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn new(model: &Decoder, most: usize, positions: usize) -> Result<Self> {
        Ok(Caches(match model.device() {
            None => Place::Cpu(Vec::new()),
            Some(device) => {
                Place::Cuda(Box::new(Slots::new(device, model.layers.len(), model.config.heads, [most, positions])?))
            }
        }))
    }

    /// Adds a sequence that will have up to `positions`.
    ///
    /// # Errors
    /// If there is no room for one more.
    fn admit(&mut self, model: &Decoder, positions: usize) -> Result<()> {
        match &mut self.0 {
            Place::Cuda(slots) => slots.admit(),
            Place::Cpu(caches) => {
                let room = positions * width(model);
                let layers = (0..model.layers.len()).map(|_| [0; 2].map(|_| Vec::with_capacity(room))).collect();
                caches.push(Cache { layers, len: 0 });
                Ok(())
            }
        }
    }

    /// Takes sequence `i` off; the last takes its place.
    pub fn swap_remove(&mut self, i: usize) {
        match &mut self.0 {
            Place::Cpu(caches) => drop(caches.swap_remove(i)),
            Place::Cuda(slots) => slots.swap_remove(i),
        }
    }

    /// The slots on a device, if they are there.
    pub fn slots(&mut self) -> Option<&mut Slots> {
        match &mut self.0 {
            Place::Cpu(_) => None,
            Place::Cuda(slots) => Some(slots),
        }
    }

    /// Positions that each sequence has.
    fn lengths(&self) -> Vec<u32> {
        match &self.0 {
            Place::Cpu(caches) => caches.iter().map(|cache| cache.len as u32).collect(),
            Place::Cuda(slots) => slots.lengths().to_vec(),
        }
    }

    /// Says that the sequences from `first` on get as many tokens more as `rows` says, before any layer has seen them.
    fn extend(&mut self, first: usize, rows: &[usize]) -> Result<()> {
        match &mut self.0 {
            Place::Cpu(_) => Ok(()),
            Place::Cuda(slots) => slots.extend(first, rows),
        }
    }

    /// Says that all layers have seen the tokens of [`Caches::extend`].
    fn extended(&mut self, first: usize, rows: &[usize]) {
        if let Place::Cpu(caches) = &mut self.0 {
            caches[first..].iter_mut().zip(rows.windows(2)).for_each(|(cache, w)| cache.len += w[1] - w[0]);
        }
    }

    /// Remembers the keys and values of layer `l` for the tokens of [`Caches::extend`].
    fn remember(&mut self, l: usize, first: usize, starts: &[usize], p: &Projected) -> Result<()> {
        let caches = match &mut self.0 {
            Place::Cpu(caches) => caches,
            Place::Cuda(slots) => return slots.remember(l, &p.k, &p.v),
        };
        let (k, v, width) = (nn::view(&p.k)?, nn::view(&p.v)?, p.k.dims()[1]);
        for (cache, w) in caches[first..].iter_mut().zip(starts.windows(2)) {
            let [keys, values] = &mut cache.layers[l];
            keys.extend_from_slice(&k[w[0] * width..w[1] * width]);
            values.extend_from_slice(&v[w[0] * width..w[1] * width]);
        }
        Ok(())
    }

    /// One query per sequence against what layer `l` remembers, its own position included.
    fn attend(&self, l: usize, q: &Tensor, heads: Heads) -> Result<Tensor> {
        match &self.0 {
            Place::Cuda(slots) => slots.attend(l, q),
            Place::Cpu(caches) => {
                let views: Vec<(&[f32], &[f32])> =
                    caches.iter().map(|cache| (&cache.layers[l][0][..], &cache.layers[l][1][..])).collect();
                nn::attend_cached(q, &views, heads)
            }
        }
    }
}

/// Adds sequences that begin with `prompts` and will have up to `rooms` positions; logits `[prompts, vocab]` after the last
/// token of each.
///
/// # Errors
/// If the device fails.
pub fn prefill(model: &Decoder, prompts: &[&[u32]], rooms: &[usize], caches: &mut Caches) -> Result<Tensor> {
    let first = caches.lengths().len();
    rooms.iter().try_for_each(|room| caches.admit(model, *room))?;
    let batch = Batch::new(prompts.iter().copied());
    let table = model.table(prompts.iter().map(|p| p.len()).max().unwrap_or(0));
    let pass = Pass { starts: &batch.starts, positions: &batch.positions, table: &table, dropout: None };
    caches.extend(first, &batch.starts)?;
    let mut x = nn::embed(&model.embedding, &batch.ids)?;
    for (l, layer) in model.layers.iter().enumerate() {
        let p = layer.project(&x, pass)?;
        caches.remember(l, first, &batch.starts, &p)?;
        let (attended, _) = nn::attend(layer.o.precision, [&p.q, &p.k, &p.v], &batch.starts, layer.heads)?;
        x = layer.finish(&x, &attended)?;
    }
    caches.extended(first, &batch.starts);
    let last: Vec<u32> = batch.starts[1..].iter().map(|end| *end as u32 - 1).collect();
    model.logits(&nn::gather(&x, &last.into())?)
}

/// Feeds one token to each sequence of the CPU's caches; logits `[sequences, vocab]`.
///
/// # Errors
/// If the device fails.
pub fn step(model: &Decoder, ids: &[u32], caches: &mut Caches) -> Result<Tensor> {
    let positions = caches.lengths();
    let starts = Starts::from((0..=ids.len()).collect::<Vec<_>>());
    let table = model.table(positions.iter().max().map_or(0, |p| *p as usize + 1));
    let (positions, ids) = (Indices::from(positions), Indices::from(ids.to_vec()));
    caches.extend(0, &starts)?;
    let logits = feed(model, (&ids, &positions, &starts), &table, caches)?;
    caches.extended(0, &starts);
    Ok(logits)
}

/// The forward pass of one token of each sequence, whose place the caches know.
///
/// # Errors
/// If the device fails.
pub fn feed(
    model: &Decoder,
    (ids, positions, starts): (&Indices, &Indices, &Starts),
    table: &Angles,
    caches: &mut Caches,
) -> Result<Tensor> {
    let pass = Pass { starts, positions, table, dropout: None };
    let mut x = nn::embed(&model.embedding, ids)?;
    for (l, layer) in model.layers.iter().enumerate() {
        let p = layer.project(&x, pass)?;
        caches.remember(l, 0, starts, &p)?;
        let attended = caches.attend(l, &p.q, layer.heads)?;
        x = layer.finish(&x, &attended)?;
    }
    model.logits(&x)
}
