//! KV cache on a GPU, in place: a slot for each sequence, from its first position to its last.

use karat_backend::{BackendError, GenerateConfig};

use super::device::Element;
use super::kernels::decode::{self, Cache};
use super::{Cuda, CudaStorage, DeviceIndices, here, sample};
use crate::device::CacheShape;
use crate::error::Result;
use crate::ops::attention::Heads;
use crate::tensor::{DeviceCopy, Indices, Tensor};

/// Slots for as many sequences as are decoded at once.
#[derive(Debug)]
pub struct Slots {
    device: Cuda,
    /// For each layer, `[slots, positions, width]` of keys and of values.
    layers: Vec<[CudaStorage; 2]>,
    positions: usize,
    heads: Heads,
    /// The slot of each sequence.
    taken: Vec<u32>,
    free: Vec<u32>,
    /// Positions of each sequence, those of the pass under way included.
    lengths: Vec<u32>,
    /// Where the tokens of the pass under way go.
    pass: Option<Feed>,
    numbers: Numbers,
}

/// Where the tokens of a pass go, and what its queries see.
#[derive(Debug)]
struct Feed {
    slots: DeviceIndices,
    positions: DeviceIndices,
    tokens: usize,
    /// In a step: the length of each sequence with its new token, and a bound of them all.
    lengths: Option<(DeviceIndices, usize)>,
}

/// State that changes from one decode step to the next, always in the same places: so steps can be
/// recorded. The kernels of a step count on and leave the token they picked, so that the host has
/// nothing to say until sequences come or go.
#[derive(Debug)]
struct Numbers {
    /// One row of `most` numbers for each of [`Number`].
    all: DeviceIndices,
    most: usize,
    /// They are those of the sequences that there are.
    current: bool,
}

/// Counters of each sequence. Those that count on stand last.
#[derive(Clone, Copy, Debug)]
enum Number {
    /// The token to be fed, then the one picked.
    Id,
    /// Its slot.
    Slot,
    /// Its number for the generator of draws.
    Row,
    /// Where its token goes.
    Position,
    /// How long it is then.
    Length,
    /// Tokens it has generated.
    Place,
}

const NUMBERS: usize = 6;
const COUNTING: usize = 3;

impl Numbers {
    fn of(&self, which: Number) -> DeviceIndices {
        self.all.part(which as usize * self.most)
    }
}

/// The inputs of a step, on the device.
#[derive(Debug)]
pub struct Step {
    /// The token of each sequence.
    pub ids: Indices,
    /// Where it stands.
    pub positions: Indices,
    /// Sequences, and what [`decode::length_class`] says of the longest: steps that agree in both
    /// are the same launches.
    pub class: (usize, usize),
}

impl Slots {
    /// Slots of `shape`.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn new(device: &Cuda, CacheShape { layers, heads, sequences: most, positions }: CacheShape) -> Result<Self> {
        let part = || CudaStorage::activation(device, &[most, positions, heads.keys * heads.dim]);
        let layers = (0..layers).map(|_| Ok([part()?, part()?])).collect::<Result<_>>()?;
        let (taken, lengths, pass) = (Vec::new(), Vec::new(), None);
        let free = (0..most as u32).rev().collect();
        let numbers = Numbers { all: DeviceIndices::any(device, NUMBERS * most)?, most, current: false };
        Ok(Slots { device: device.clone(), layers, positions, heads, taken, free, lengths, pass, numbers })
    }

    /// Where they lie.
    pub fn device(&self) -> &Cuda {
        &self.device
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
        self.numbers.current = false;
        Ok(())
    }

    /// Frees the slot of sequence `i`; the last sequence takes its place.
    pub fn swap_remove(&mut self, i: usize) {
        self.free.push(self.taken.swap_remove(i));
        self.lengths.swap_remove(i);
        self.numbers.current = false;
    }

    fn outgrown(&self) -> Result<()> {
        match self.lengths.iter().find(|length| **length as usize > self.positions) {
            Some(length) => Err(BackendError::failed(format!("{length} tokens in a slot for {}", self.positions))),
            None => Ok(()),
        }
    }

    /// Gives the tokens of prompts their places: `starts[i]..starts[i + 1]` go to sequence
    /// `first + i`.
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
        }
        self.outgrown()?;
        let upload = |host: &[u32]| DeviceIndices::upload(&self.device, host);
        let (tokens, slots, positions) = (slots.len(), upload(&slots)?, upload(&positions)?);
        self.pass = Some(Feed { slots, positions, tokens, lengths: None });
        Ok(())
    }

    /// Gives each sequence the place of one token more, `ids`; `places` are its number for the
    /// generator of draws and how many tokens it has generated. Nothing goes to the device where
    /// the sequences are those of the step before and `ids` what it picked.
    ///
    /// # Errors
    /// As [`Slots::extend`].
    pub fn step(&mut self, ids: &[u32], places: &[(usize, usize)]) -> Result<Step> {
        let (n, positions) = (self.taken.len(), self.lengths.clone());
        self.lengths.iter_mut().for_each(|length| *length += 1);
        self.outgrown()?;
        let numbers = &mut self.numbers;
        if !std::mem::replace(&mut numbers.current, true) {
            let mut host = vec![0u32; NUMBERS * numbers.most];
            for i in 0..n {
                let (row, place) = places[i];
                let of_sequence = [ids[i], self.taken[i], row as u32, positions[i], self.lengths[i], place as u32];
                of_sequence.into_iter().enumerate().for_each(|(which, x)| host[which * numbers.most + i] = x);
            }
            numbers.all.set(&self.device, &host)?;
        }
        let longest = self.lengths.iter().max().map_or(0, |length| *length as usize);
        let longest = decode::length_class(longest, self.positions);
        let [at, lengths] = [Number::Position, Number::Length].map(|which| numbers.of(which));
        self.pass = Some(Feed {
            slots: numbers.of(Number::Slot),
            positions: at.clone(),
            tokens: n,
            lengths: Some((lengths, longest)),
        });
        Ok(Step {
            ids: Indices::placed(ids.to_vec(), DeviceCopy::made(numbers.of(Number::Id))),
            positions: Indices::placed(positions, DeviceCopy::made(at)),
            class: (n, longest),
        })
    }

    /// Picks the next token of each sequence by its `logits` and counts on, all on the device: the
    /// last launches of a step.
    ///
    /// # Errors
    /// If the device fails.
    pub fn pick(&self, logits: &Tensor, config: &GenerateConfig) -> Result<()> {
        let numbers = &self.numbers;
        let [row, place, id] = [Number::Row, Number::Place, Number::Id].map(|which| numbers.of(which));
        sample::pick_into(here(logits)?, [row.arg(), place.arg(), id.arg()], config)?;
        decode::increment(&*self.device.gpu, numbers.of(Number::Position).arg(), COUNTING * numbers.most)
    }

    /// Tokens that [`Slots::pick`] has picked, none where a logit was not a number.
    ///
    /// # Errors
    /// If the device fails.
    pub fn picked(&self) -> Result<Vec<Option<u32>>> {
        Ok(sample::picked(self.numbers.of(Number::Id).get(self.taken.len())?))
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
    pub fn remember(&self, l: usize, k: &Tensor, v: &Tensor) -> Result<()> {
        let feed = self.feed()?;
        let (k, v) = (here(k)?, here(v)?);
        let arguments = [k.arg(), v.arg(), feed.slots.arg(), feed.positions.arg()];
        let strides = [self.heads.keys * self.heads.dim; 2];
        decode::append(&*self.device.gpu, k.element(), arguments, &self.layer(l), feed.tokens, strides)
    }

    /// One query of each sequence, `[sequences, queries * dim]`, against its slot.
    ///
    /// # Errors
    /// If the device fails, or this is no step.
    pub fn attend(&self, l: usize, q: &Tensor) -> Result<Tensor> {
        let (feed, q) = (self.feed()?, here(q)?);
        let Some((lengths, longest)) = &feed.lengths else {
            return Err(BackendError::failed("a prompt attends to itself, not to the cache"));
        };
        let (sequences, width) = q.matrix_dims();
        let out = CudaStorage::activation(&self.device, &[sequences, width])?;
        let scratch = decode::scratch(sequences, *longest, self.heads);
        let partial = CudaStorage::any(&self.device, Element::F32, &[scratch])?;
        let arguments = [q.arg(), feed.slots.arg(), lengths.arg(), out.arg(), partial.arg()];
        let shape = (sequences, *longest, width);
        decode::decode(&*self.device.gpu, q.element(), arguments, &self.layer(l), shape)?;
        Ok(out.into())
    }
}
