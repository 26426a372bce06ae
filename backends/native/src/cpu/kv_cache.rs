//! KV cache on the CPU, in f32.

use karat_model::sampling::Sampler;

use crate::device::{CacheShape, Feed, Forward, KvCache};
use crate::error::Result;
use crate::ops::attention::{self, Heads};
use crate::tensor::{Indices, Starts, Tensor, activation, view};
use karat_kernels::memory::arena;

/// Keys and values of one sequence: for each layer `[positions, keys * dim]`.
type Sequence = Vec<[Vec<f32>; 2]>;

/// The sequences, in their order.
pub struct Sequences {
    layers: usize,
    heads: Heads,
    sequences: Vec<Sequence>,
    lengths: Vec<u32>,
    /// The first sequence of the pass under way, and where the tokens of each start.
    pass: (usize, Vec<usize>),
}

impl Sequences {
    /// No sequence yet.
    pub fn new(CacheShape { layers, heads, .. }: CacheShape) -> Self {
        Sequences { layers, heads, sequences: Vec::new(), lengths: Vec::new(), pass: (0, Vec::new()) }
    }
}

impl KvCache for Sequences {
    fn admit(&mut self, positions: usize) -> Result<()> {
        let room = positions * self.heads.keys * self.heads.dim;
        self.sequences.push((0..self.layers).map(|_| [0; 2].map(|_| Vec::with_capacity(room))).collect());
        self.lengths.push(0);
        Ok(())
    }

    fn swap_remove(&mut self, i: usize) {
        self.sequences.swap_remove(i);
        self.lengths.swap_remove(i);
    }

    fn lengths(&self) -> &[u32] {
        &self.lengths
    }

    fn extend(&mut self, first: usize, starts: &[usize]) -> Result<()> {
        for (length, w) in self.lengths[first..].iter_mut().zip(starts.windows(2)) {
            *length += (w[1] - w[0]) as u32;
        }
        self.pass = (first, starts.to_vec());
        Ok(())
    }

    fn append(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> Result<()> {
        let (width, (first, starts)) = (k.dims()[1], &self.pass);
        let (k, v) = (view(k)?, view(v)?);
        for (sequence, w) in self.sequences[*first..].iter_mut().zip(starts.windows(2)) {
            let [keys, values] = &mut sequence[layer];
            keys.extend_from_slice(&k[w[0] * width..w[1] * width]);
            values.extend_from_slice(&v[w[0] * width..w[1] * width]);
        }
        Ok(())
    }

    fn attend(&self, layer: usize, q: &Tensor) -> Result<Tensor> {
        let views: Vec<(&[f32], &[f32])> =
            self.sequences.iter().map(|sequence| (&sequence[layer][0][..], &sequence[layer][1][..])).collect();
        let qs = view(q)?;
        let mut out = arena::alloc(qs.len());
        attention::decode(&qs, &views, self.heads, &mut out);
        activation(out, q.dims())
    }

    fn step(
        &mut self,
        ids: &[u32],
        places: &[(usize, usize)],
        sampler: &Sampler,
        forward: &mut Forward<'_>,
    ) -> Result<Vec<u32>> {
        let starts = Starts::from((0..=ids.len()).collect::<Vec<_>>());
        let (positions, ids) = (Indices::from(self.lengths.clone()), Indices::from(ids.to_vec()));
        self.extend(0, &starts)?;
        let logits = forward(self, Feed { ids: &ids, positions: &positions, starts: &starts })?;
        super::pick(&logits, places, sampler)
    }
}
