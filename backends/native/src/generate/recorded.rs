//! Steps of generation on a device, recorded once and played again as long as nothing but numbers changes.
//!
//! A step of a small model is some hundred launches, which take the host longer than the device. Its inputs lie in the same
//! places from step to step ([`crate::cuda::cache`]), its memory in an arena of its own, and attention is launched for a class
//! of lengths, so that steps of as many sequences of one class are the same launches. The first of such steps is done as it
//! comes, which also has the device load its kernels; the second is recorded and played, all others are played. What is
//! played are the launches that would have been made, on the same addresses: the numbers are the same.

use std::sync::Arc;

use karat_backend::{BackendError, GenerateConfig};

use super::cache::{self, Caches};
use crate::cuda::Device;
use crate::cuda::graph::Graph;
use crate::cuda::pool::Arena;
use crate::model::Decoder;
use crate::nn::{Angles, Result, Starts};

/// What a recording fits: [`crate::cuda::cache::Step::class`].
type Class = (usize, usize);

/// The steps of one generation.
pub struct Steps {
    device: Arc<Device>,
    /// Of the last recording; its memory goes after it.
    recording: Option<(Class, Graph)>,
    arena: Arena,
    /// Angles for the longest sequence: one table, in one place.
    table: Arc<Angles>,
    last: Option<Class>,
    /// Whether recordings are made.
    records: bool,
    complaint: Option<String>,
}

impl Steps {
    /// For sequences of up to `positions` on `device`.
    pub fn new(model: &Decoder, device: &Arc<Device>, positions: usize) -> Self {
        Steps {
            device: device.clone(),
            recording: None,
            arena: Arena::new(&device.gpu),
            table: model.table(positions),
            last: None,
            records: device.graphs,
            complaint: None,
        }
    }

    /// Feeds `ids`, the last token of each sequence, and picks the next, nothing where a logit is not a number; `places` are
    /// each row's number and how many tokens it has generated.
    ///
    /// # Errors
    /// If the device fails. That it cannot record is none: steps are then done as they come.
    pub fn take(
        &mut self,
        model: &Decoder,
        caches: &mut Caches,
        ids: &[u32],
        places: &[(usize, usize)],
        config: &GenerateConfig,
    ) -> Result<Vec<Option<u32>>> {
        let missing = || BackendError::failed("the sequences are on the CPU");
        let step = caches.slots().ok_or_else(missing)?.step(ids, places)?;
        let starts = Starts::default();
        let run = |caches: &mut Caches| {
            self.arena.within(|| {
                let logits = cache::feed(model, (&step.ids, &step.positions, &starts), &self.table, caches)?;
                caches.slots().ok_or_else(missing)?.pick(&logits, config)
            })
        };
        let fits = |recording: &Option<(Class, Graph)>| recording.as_ref().is_some_and(|(of, _)| *of == step.class);
        if self.records && self.last == Some(step.class) && !fits(&self.recording) {
            match Graph::record(&self.device.gpu, || run(caches)) {
                Ok(graph) => self.recording = Some((step.class, graph)),
                Err(e) => {
                    (self.records, self.recording) = (false, None);
                    self.complaint = Some(format!("the steps are not recorded as a CUDA graph: {}", e.message));
                }
            }
        }
        match &self.recording {
            Some((of, graph)) if *of == step.class => graph.play()?,
            _ => run(caches)?,
        }
        self.last = Some(step.class);
        caches.slots().ok_or_else(missing)?.picked()
    }

    /// Why steps are no longer recorded, said once.
    pub fn complaint(&mut self) -> Option<String> {
        self.complaint.take()
    }
}
