//! The key-value cache: one buffer a layer and part, `[slots, kv_heads, capacity, head_dim]` in f32 or f16, bound as past *and* as
//! present, so that the attention operator appends in place and nothing is copied from step to step.

use half::f16;
use karat::backend::{BackendError, Dtype};
use ort::memory::Allocator;
use ort::session::{IoBinding, Session};
use ort::value::PrimitiveTensorElementType;
use ort::value::{DynTensor, Tensor};

use crate::decoder::failed;
use crate::export::Manifest;
use crate::provider::Provider;

/// Buffers of all layers and the binding that holds them.
pub struct Kv {
    pub(crate) binding: IoBinding,
    caches: Caches,
    slots: usize,
    capacity: usize,
    kv_heads: usize,
    head_dim: usize,
}

/// The buffers, in the element type of the model's activations.
enum Caches {
    F32(Vec<Tensor<f32>>),
    F16(Vec<Tensor<f16>>),
}

impl Kv {
    /// Buffers for `slots` rows of at most `capacity` tokens.
    ///
    /// # Errors
    /// If the runtime cannot provide the memory.
    pub fn new(
        session: &Session,
        provider: Provider,
        model: &Manifest,
        slots: usize,
        capacity: usize,
    ) -> Result<Self, BackendError> {
        let allocate = failed("could not allocate the key-value cache");
        let allocator = provider.allocator(session).map_err(&allocate)?;
        let mut binding = session.create_binding().map_err(&allocate)?;
        let caches = match model.weights.activations() {
            Dtype::F16 => Caches::F16(bound(&mut binding, &allocator, model, slots, capacity).map_err(&allocate)?),
            _ => Caches::F32(bound(&mut binding, &allocator, model, slots, capacity).map_err(&allocate)?),
        };
        Ok(Kv { binding, caches, slots, capacity, kv_heads: model.kv_heads, head_dim: model.head_dim })
    }

    /// Bytes that [`Kv::new`] takes for each slot.
    pub fn bytes_per_slot(model: &Manifest, capacity: usize) -> usize {
        2 * model.layers * model.kv_heads * capacity * model.head_dim * element_bytes(model)
    }

    /// How many rows it holds.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Copies the first `length` tokens of a slot of `other` into a slot of this one. Both must be in memory of the host.
    pub fn copy_slot(&mut self, slot: usize, other: &Kv, other_slot: usize, length: usize) {
        let rows = Rows {
            heads: self.kv_heads,
            to: (slot * self.kv_heads, self.capacity * self.head_dim),
            from: (other_slot * self.kv_heads, other.capacity * self.head_dim),
            values: length * self.head_dim,
        };
        match (&mut self.caches, &other.caches) {
            (Caches::F32(to), Caches::F32(from)) => rows.copy(to, from),
            (Caches::F16(to), Caches::F16(from)) => rows.copy(to, from),
            _ => unreachable!("both caches are of one model"),
        }
    }
}

fn element_bytes(model: &Manifest) -> usize {
    if model.weights.activations() == Dtype::F16 { size_of::<f16>() } else { size_of::<f32>() }
}

/// A past of no tokens for `rows` rows.
///
/// # Errors
/// If the runtime cannot make a tensor.
pub fn empty(model: &Manifest, rows: usize) -> ort::Result<DynTensor> {
    let shape = [rows, model.kv_heads, 0, model.head_dim];
    match model.weights.activations() {
        Dtype::F16 => Tensor::from_array((shape, Vec::<f16>::new())).map(Tensor::upcast),
        _ => Tensor::from_array((shape, Vec::<f32>::new())).map(Tensor::upcast),
    }
}

/// One buffer a layer and part, bound.
fn bound<T: PrimitiveTensorElementType + std::fmt::Debug>(
    binding: &mut IoBinding,
    allocator: &Allocator,
    model: &Manifest,
    slots: usize,
    capacity: usize,
) -> ort::Result<Vec<Tensor<T>>> {
    let mut caches = Vec::with_capacity(2 * model.layers);
    for layer in 0..model.layers {
        for part in ["key", "value"] {
            let shape = [slots, model.kv_heads, capacity, model.head_dim].map(|n| n as i64);
            let mut cache = Tensor::<T>::new(allocator, shape)?;
            binding.bind_input(format!("past_key_values.{layer}.{part}"), &cache)?;
            binding.bind_output(format!("present.{layer}.{part}"), &mut cache)?;
            caches.push(cache);
        }
    }
    Ok(caches)
}

/// The place of a slot in both caches: its first head, and numbers a head.
struct Rows {
    heads: usize,
    to: (usize, usize),
    from: (usize, usize),
    values: usize,
}

impl Rows {
    fn copy<T: PrimitiveTensorElementType + std::fmt::Debug + Copy>(&self, to: &mut [Tensor<T>], from: &[Tensor<T>]) {
        for (to, from) in to.iter_mut().zip(from) {
            let (_, to) = to.extract_tensor_mut();
            let (_, from) = from.extract_tensor();
            for head in 0..self.heads {
                let (to_start, from_start) = ((self.to.0 + head) * self.to.1, (self.from.0 + head) * self.from.1);
                to[to_start..to_start + self.values].copy_from_slice(&from[from_start..from_start + self.values]);
            }
        }
    }
}
