//! Keys and values of the sequences being decoded, in place: a slot for each, from its first position to its last.

use std::sync::Arc;

use karat::backend::BackendError;

use super::device::Element;
use super::kernels::decode::{self, Cache};
use super::tensor::Indices;
use super::{Device, Tensor, here};
use crate::nn::{self, Result};
use crate::ops::attention::Heads;

/// Slots for as many sequences as are decoded at once.
#[derive(Debug)]
pub struct Slots {
    device: Arc<Device>,
    /// For each layer, `[slots, positions, width]` of keys and of values.
    layers: Vec<[Tensor; 2]>,
    positions: usize,
    heads: Heads,
    /// The slot of each sequence.
    taken: Vec<u32>,
    free: Vec<u32>,
    /// Positions of each sequence, those of the pass under way included.
    lengths: Vec<u32>,
    pass: Option<Feed>,
}

/// Where the tokens of a pass go, and what its queries see.
#[derive(Debug)]
struct Feed {
    /// Slot and position of each token.
    to: [Indices; 2],
    tokens: usize,
    /// Slot and length of each sequence.
    sequences: [Indices; 2],
    longest: usize,
}

impl Slots {
    /// Slots for `most` sequences of up to `positions`.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn new(device: &Arc<Device>, layers: usize, heads: Heads, [most, positions]: [usize; 2]) -> Result<Self> {
        let part = || Tensor::activation(device, &[most, positions, heads.keys * heads.dim]);
        let layers = (0..layers).map(|_| Ok([part()?, part()?])).collect::<Result<_>>()?;
        let (taken, lengths, pass) = (Vec::new(), Vec::new(), None);
        let free = (0..most as u32).rev().collect();
        Ok(Slots { device: device.clone(), layers, positions, heads, taken, free, lengths, pass })
    }

    /// Positions of each sequence.
    pub fn lengths(&self) -> &[u32] {
        &self.lengths
    }

    /// Gives the next sequence a slot.
    ///
    /// # Errors
    /// If all are taken.
    pub fn admit(&mut self) -> Result<()> {
        let slot = self.free.pop().ok_or_else(|| BackendError::failed("more sequences than slots of the cache"))?;
        self.taken.push(slot);
        self.lengths.push(0);
        Ok(())
    }

    /// Frees the slot of sequence `i`; the last sequence takes its place.
    pub fn swap_remove(&mut self, i: usize) {
        self.free.push(self.taken.swap_remove(i));
        self.lengths.swap_remove(i);
    }

    /// Gives the tokens of a pass their places: `starts[i]..starts[i + 1]` go to sequence `first + i`.
    ///
    /// # Errors
    /// If a sequence outgrows its slot, or the device fails.
    pub fn extend(&mut self, first: usize, starts: &[usize]) -> Result<()> {
        let (mut slots, mut positions) = (Vec::new(), Vec::new());
        for (i, w) in starts.windows(2).enumerate() {
            let (slot, length) = (self.taken[first + i], &mut self.lengths[first + i]);
            let more = (w[1] - w[0]) as u32;
            slots.extend((0..more).map(|_| slot));
            positions.extend(*length..*length + more);
            *length += more;
            if *length as usize > self.positions {
                return Err(BackendError::failed(format!("{length} tokens in a slot for {}", self.positions)));
            }
        }
        let upload = |host: &[u32]| Indices::upload(&self.device, host);
        self.pass = Some(Feed {
            tokens: slots.len(),
            to: [upload(&slots)?, upload(&positions)?],
            longest: self.lengths.iter().max().map_or(0, |l| *l as usize),
            sequences: [upload(&self.taken)?, upload(&self.lengths)?],
        });
        Ok(())
    }

    fn layer(&self, l: usize) -> Cache<'_> {
        let [keys, values] = &self.layers[l];
        let slot_stride = self.positions * self.heads.keys * self.heads.dim;
        Cache { keys: keys.arg(), values: values.arg(), slot_stride, heads: self.heads }
    }

    fn feed(&self) -> Result<&Feed> {
        self.pass.as_ref().ok_or_else(|| BackendError::failed("keys without a place in the cache"))
    }

    /// Puts the keys and values of layer `l`, `[tokens, width]`, into their places.
    ///
    /// # Errors
    /// If the device fails.
    pub fn remember(&self, l: usize, k: &nn::Tensor, v: &nn::Tensor) -> Result<()> {
        let feed = self.feed()?;
        let (k, v) = (here(k)?, here(v)?);
        let arguments = [k.arg(), v.arg(), feed.to[0].arg(), feed.to[1].arg()];
        let strides = [self.heads.keys * self.heads.dim; 2];
        decode::append(&*self.device.gpu, k.element(), arguments, &self.layer(l), feed.tokens, strides)
    }

    /// One query of each sequence, `[sequences, queries * dim]`, against its slot.
    ///
    /// # Errors
    /// If the device fails.
    pub fn attend(&self, l: usize, q: &nn::Tensor) -> Result<nn::Tensor> {
        let (feed, q) = (self.feed()?, here(q)?);
        let (sequences, width) = q.matrix_dims();
        let out = Tensor::activation(&self.device, &[sequences, width])?;
        let scratch = decode::scratch(sequences, feed.longest, self.heads);
        let partial = Tensor::any(&self.device, Element::F32, &[scratch])?;
        let [slots, lengths] = &feed.sequences;
        let arguments = [q.arg(), slots.arg(), lengths.arg(), out.arg(), partial.arg()];
        let shape = (sequences, feed.longest, width);
        decode::decode(&*self.device.gpu, q.element(), arguments, &self.layer(l), shape)?;
        Ok(out.into())
    }
}
