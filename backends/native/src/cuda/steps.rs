//! Decode steps as CUDA graphs, recorded once and replayed as long as nothing but numbers changes.
//!
//! A step of a small model is some hundred launches, which take the host longer than the device.
//! Its inputs lie in the same places from step to step ([`super::cache`]), its memory in an arena
//! of its own, and attention is launched for a class of lengths, so that steps of as many sequences
//! of one class are the same launches. The first of such steps is done as it comes, which also has
//! the device load its kernels; the second is recorded and played, all others are played. What is
//! played are the launches that would have been made, on the same addresses: the numbers are the
//! same.

use std::sync::Arc;

use karat_model::sampling::Sampler;

use super::arena::Arena;
use super::cache::Slots;
use super::graph::CudaGraph;
use super::sample;
use crate::device::{Feed, Forward, KvCache};
use crate::error::Result;
use crate::tensor::{Starts, Tensor};

/// The class of steps that a recording fits: [`super::cache::Step::class`].
type Class = (usize, usize);

/// The cache of keys and values of one generation with its steps.
pub struct Steps {
    slots: Slots,
    /// Of the last recording; its memory goes after it.
    recording: Option<(Class, CudaGraph)>,
    arena: Arc<Arena>,
    last: Option<Class>,
    /// Whether recordings are made.
    records: bool,
    complaint: Option<String>,
}

impl Steps {
    /// Of sequences in `slots`.
    pub fn new(slots: Slots) -> Self {
        let device = slots.device();
        let (arena, records) = (Arc::new(Arena::new(&device.gpu)), device.graphs);
        Steps { slots, recording: None, arena, last: None, records, complaint: None }
    }

    fn recorded(&self, class: Class) -> Option<&CudaGraph> {
        self.recording.as_ref().filter(|(of, _)| *of == class).map(|(_, graph)| graph)
    }
}

impl KvCache for Steps {
    fn admit(&mut self, _positions: usize) -> Result<()> {
        self.slots.admit()
    }
    fn swap_remove(&mut self, i: usize) {
        self.slots.swap_remove(i);
    }
    fn lengths(&self) -> &[u32] {
        self.slots.lengths()
    }
    fn extend(&mut self, first: usize, starts: &[usize]) -> Result<()> {
        self.slots.extend(first, starts)
    }
    fn append(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> Result<()> {
        self.slots.remember(layer, k, v)
    }
    fn attend(&self, layer: usize, q: &Tensor) -> Result<Tensor> {
        self.slots.attend(layer, q)
    }

    /// That the device cannot record is no error: steps are then done as they come.
    fn step(
        &mut self,
        ids: &[u32],
        places: &[(usize, usize)],
        sampler: &Sampler,
        forward: &mut Forward<'_>,
    ) -> Result<Vec<u32>> {
        let step = self.slots.step(ids, places)?;
        let (class, starts, arena) = (step.class, Starts::default(), self.arena.clone());
        let feed = Feed { ids: &step.ids, positions: &step.positions, starts: &starts };
        let mut run = |steps: &mut Self| {
            arena.within(|| {
                let logits = forward(steps, feed)?;
                steps.slots.pick(&logits, sampler.config())
            })
        };
        if self.records && self.last == Some(class) && self.recorded(class).is_none() {
            let gpu = self.slots.device().gpu.clone();
            match CudaGraph::record(&gpu, || run(self)) {
                Ok(graph) => self.recording = Some((class, graph)),
                Err(e) => {
                    (self.records, self.recording) = (false, None);
                    self.complaint = Some(format!("the steps are not recorded as a CUDA graph: {}", e.message));
                }
            }
        }
        match self.recorded(class) {
            Some(graph) => graph.play()?,
            None => run(self)?,
        }
        self.last = Some(class);
        sample::tokens(self.slots.picked()?, places)
    }

    fn complaint(&mut self) -> Option<String> {
        self.complaint.take()
    }
}
