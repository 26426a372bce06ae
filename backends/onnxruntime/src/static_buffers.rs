//! Static buffers of a decode step, for a captured CUDA graph, which replays addresses and shapes
//! as they were.
//!
//! Ids, mask and logits have tensors of their own in the provider's memory. The mask is as wide as
//! the cache, so that the step's shapes are those of the cache alone: how long each row is stands
//! in its ones, and the attention operator takes the width only to tell a step from a prompt.
//! Before a step ids and mask are copied in, after it the logits out.

use karat_backend::BackendError;
use ort::memory::Allocator;
use ort::session::{IoBinding, RunOptions};
use ort::value::Tensor;

use crate::error::failed;

/// The run option that names a captured graph.
const GRAPH: &str = "gpu_graph_id";
/// Its value for a run that is not to be captured.
const UNCAPTURED: &str = "-1";

/// Run options of a run that is not to be captured, for a session that captures.
///
/// # Errors
/// If the runtime cannot make them.
pub fn uncaptured() -> ort::Result<RunOptions> {
    let mut options = RunOptions::new()?;
    options.set(GRAPH, UNCAPTURED)?;
    Ok(options)
}

/// The buffers of one number of slots.
pub struct StaticBuffers {
    ids: Tensor<i64>,
    mask: Tensor<i64>,
    first: Tensor<i64>,
    logits: Tensor<f32>,
    /// The logits again, where the host can read them.
    read: Tensor<f32>,
    /// Options of the captured run.
    pub options: RunOptions,
}

impl StaticBuffers {
    /// Buffers for steps of `slots` rows over a cache of `capacity` tokens; `graph` is a number no
    /// other buffers of the session have.
    ///
    /// # Errors
    /// If the runtime cannot provide the memory.
    pub fn new(
        allocator: &Allocator,
        slots: usize,
        capacity: usize,
        vocab: usize,
        graph: u64,
    ) -> Result<StaticBuffers, BackendError> {
        let made = || {
            let mut options = RunOptions::new()?;
            options.set(GRAPH, graph.to_string())?;
            let mut fixed = StaticBuffers {
                ids: Tensor::new(allocator, [slots, 1])?,
                mask: Tensor::new(allocator, [slots, capacity])?,
                first: Tensor::new(allocator, [1usize])?,
                logits: Tensor::new(allocator, [slots, 1, vocab])?,
                read: Tensor::new(&Allocator::default(), [slots, 1, vocab])?,
                options,
            };
            Tensor::from_array(([1usize], vec![-1i64]))?.copy_into(&mut fixed.first)?;
            Ok(fixed)
        };
        made().map_err(failed::<ort::Error>("could not allocate the buffers of a step"))
    }

    /// Copies in what a step is fed, and binds the buffers.
    ///
    /// # Errors
    /// If the runtime fails.
    pub fn feed(&mut self, binding: &mut IoBinding, ids: Vec<i64>, totals: &[usize]) -> ort::Result<()> {
        let slots = totals.len();
        let capacity = self.mask.shape()[1] as usize;
        let mut mask = vec![0i64; slots * capacity];
        for (row, &total) in mask.chunks_exact_mut(capacity).zip(totals) {
            row[..total].fill(1);
        }
        Tensor::from_array(([slots, 1], ids))?.copy_into(&mut self.ids)?;
        Tensor::from_array(([slots, capacity], mask))?.copy_into(&mut self.mask)?;
        binding.bind_input("input_ids", &self.ids)?;
        binding.bind_input("attention_mask", &self.mask)?;
        binding.bind_input("first_logit", &self.first)?;
        binding.bind_output("logits", &mut self.logits)
    }

    /// The logits of the step, `[slots, vocab]`.
    ///
    /// # Errors
    /// If the runtime fails.
    pub fn logits(&mut self) -> ort::Result<&[f32]> {
        self.logits.copy_into(&mut self.read)?;
        Ok(self.read.extract_tensor().1)
    }
}
