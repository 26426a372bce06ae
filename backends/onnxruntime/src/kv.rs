//! The key-value cache: one buffer a layer and part, `[slots, kv_heads, capacity, head_dim]` in f32, bound as past *and* as
//! present, so that the attention operator appends in place and nothing is copied from step to step.

use karat::backend::BackendError;
use ort::memory::Allocator;
use ort::session::{IoBinding, Session};
use ort::value::Tensor;

use crate::decoder::failed;
use crate::export::Manifest;

/// Buffers of all layers and the binding that holds them.
pub struct Kv {
    pub(crate) binding: IoBinding,
    caches: Vec<Tensor<f32>>,
    slots: usize,
    capacity: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Kv {
    /// Zeroed buffers for `slots` rows of at most `capacity` tokens.
    ///
    /// # Errors
    /// If the runtime cannot provide the memory.
    pub fn new(session: &Session, model: &Manifest, slots: usize, capacity: usize) -> Result<Self, BackendError> {
        let allocate = failed("could not allocate the key-value cache");
        let mut binding = session.create_binding().map_err(&allocate)?;
        let mut caches = Vec::with_capacity(2 * model.layers);
        for layer in 0..model.layers {
            for part in ["key", "value"] {
                let shape = [slots, model.kv_heads, capacity, model.head_dim].map(|n| n as i64);
                let mut cache = Tensor::<f32>::new(&Allocator::default(), shape).map_err(&allocate)?;
                binding.bind_input(format!("past_key_values.{layer}.{part}"), &cache).map_err(&allocate)?;
                binding.bind_output(format!("present.{layer}.{part}"), &mut cache).map_err(&allocate)?;
                caches.push(cache);
            }
        }
        Ok(Kv { binding, caches, slots, capacity, kv_heads: model.kv_heads, head_dim: model.head_dim })
    }

    /// Bytes that [`Kv::new`] takes for each slot.
    pub fn bytes_per_slot(model: &Manifest, capacity: usize) -> usize {
        2 * model.layers * model.kv_heads * capacity * model.head_dim * size_of::<f32>()
    }

    /// How many rows it holds.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Copies the first `length` tokens of a slot of `other` into a slot of this one.
    pub fn copy_slot(&mut self, slot: usize, other: &Kv, other_slot: usize, length: usize) {
        let (to_stride, from_stride) = (self.capacity * self.head_dim, other.capacity * self.head_dim);
        for (to, from) in self.caches.iter_mut().zip(&other.caches) {
            let (_, to) = to.extract_tensor_mut();
            let (_, from) = from.extract_tensor();
            for head in 0..self.kv_heads {
                let to_start = (slot * self.kv_heads + head) * to_stride;
                let from_start = (other_slot * self.kv_heads + head) * from_stride;
                let values = length * self.head_dim;
                to[to_start..to_start + values].copy_from_slice(&from[from_start..from_start + values]);
            }
        }
    }
}
