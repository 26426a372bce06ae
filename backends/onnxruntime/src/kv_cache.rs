//! The key-value cache: one buffer a layer and part, `[slots, kv_heads, capacity, head_dim]` in the
//! type of the activations, bound as past *and* as present, so that the attention operator appends
//! in place and nothing is copied from step to step.
//!
//! A slot is copied by the host where it can read the memory, and then only what is in it; else the
//! runtime copies it whole, device to device.

use half::{bf16, f16};
use karat_backend::{BackendError, Dtype};
use ort::memory::{Allocator, MemoryInfo};
use ort::session::{IoBinding, Session};
use ort::value::{DynTensor, PrimitiveTensorElementType, Shape, Tensor, TensorRefMut};

use crate::error::failed;
use crate::manifest::Manifest;
use crate::provider::Provider;
use crate::static_buffers::StaticBuffers;

/// Buffers of all layers and the binding that holds them.
pub struct KvCache {
    pub(crate) binding: IoBinding,
    /// Buffers of a step that must stay where they are.
    pub(crate) fixed: Option<StaticBuffers>,
    caches: Caches,
    /// The memory the buffers are in, if it is the runtime that copies slots.
    device: Option<MemoryInfo<'static>>,
    slots: usize,
    capacity: usize,
    kv_heads: usize,
    head_dim: usize,
}

/// The buffers, in the element type of the model's activations.
enum Caches {
    F32(Vec<Tensor<f32>>),
    F16(Vec<Tensor<f16>>),
    Bf16(Vec<Tensor<bf16>>),
}

impl KvCache {
    /// Buffers for `slots` rows of at most `capacity` tokens. With a number for `graph` steps are
    /// fed by buffers that stay where they are, and slots are copied by the runtime even where the
    /// host could.
    ///
    /// # Errors
    /// If the runtime cannot provide the memory.
    pub fn new(
        session: &Session,
        provider: Provider,
        model: &Manifest,
        slots: usize,
        capacity: usize,
        graph: Option<u64>,
    ) -> Result<Self, BackendError> {
        let allocate = failed("could not allocate the key-value cache");
        let allocator = provider.allocator(session).map_err(&allocate)?;
        let mut binding = session.create_binding().map_err(&allocate)?;
        let caches = match model.activations() {
            Dtype::F16 => Caches::F16(bound(&mut binding, &allocator, model, slots, capacity).map_err(&allocate)?),
            Dtype::Bf16 => Caches::Bf16(bound(&mut binding, &allocator, model, slots, capacity).map_err(&allocate)?),
            Dtype::F32 => Caches::F32(bound(&mut binding, &allocator, model, slots, capacity).map_err(&allocate)?),
        };
        let by_runtime = !provider.is_host() || graph.is_some();
        let device = if by_runtime { Some(provider.memory().map_err(&allocate)?) } else { None };
        let fixed =
            graph.map(|graph| StaticBuffers::new(&allocator, slots, capacity, model.vocab, graph)).transpose()?;
        let (kv_heads, head_dim) = (model.kv_heads, model.head_dim);
        Ok(KvCache { binding, fixed, caches, device, slots, capacity, kv_heads, head_dim })
    }

    /// Bytes that [`KvCache::new`] takes for each slot.
    pub fn bytes_per_slot(model: &Manifest, capacity: usize) -> usize {
        2 * model.layers * model.kv_heads * capacity * model.head_dim * element_bytes(model)
    }

    /// How many rows it holds.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Whether the host copies slots. The runtime copies only from caches of one slot.
    pub fn is_host(&self) -> bool {
        self.device.is_none()
    }

    /// Copies at least the first `length` tokens of a slot of `other`, whose capacity is the same,
    /// into a slot of this one.
    ///
    /// # Errors
    /// If the runtime fails, or is asked to copy from a cache of several slots.
    pub fn copy_slot(
        &mut self,
        slot: usize,
        other: &KvCache,
        other_slot: usize,
        length: usize,
    ) -> Result<(), BackendError> {
        if !self.is_host() && other.slots != 1 {
            return Err(BackendError::failed("a slot of several cannot be copied on a device"));
        }
        let rows = Rows {
            heads: self.kv_heads,
            capacity: self.capacity,
            head_dim: self.head_dim,
            length,
            to: slot,
            from: other_slot,
        };
        let device = self.device.as_ref();
        let copied = match (&mut self.caches, &other.caches) {
            (Caches::F32(to), Caches::F32(from)) => rows.copy(to, from, device),
            (Caches::F16(to), Caches::F16(from)) => rows.copy(to, from, device),
            (Caches::Bf16(to), Caches::Bf16(from)) => rows.copy(to, from, device),
            _ => unreachable!("both caches are of one model"),
        };
        copied.map_err(failed("could not copy a slot of the key-value cache"))
    }
}

fn element_bytes(model: &Manifest) -> usize {
    if model.activations() == Dtype::F32 { size_of::<f32>() } else { size_of::<f16>() }
}

/// A past of no tokens for `rows` rows.
///
/// # Errors
/// If the runtime cannot make a tensor.
pub fn empty(model: &Manifest, rows: usize) -> ort::Result<DynTensor> {
    let shape = [rows, model.kv_heads, 0, model.head_dim];
    match model.activations() {
        Dtype::F16 => Tensor::from_array((shape, Vec::<f16>::new())).map(Tensor::upcast),
        Dtype::Bf16 => Tensor::from_array((shape, Vec::<bf16>::new())).map(Tensor::upcast),
        Dtype::F32 => Tensor::from_array((shape, Vec::<f32>::new())).map(Tensor::upcast),
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

/// A slot in each of two caches.
struct Rows {
    heads: usize,
    capacity: usize,
    head_dim: usize,
    /// Tokens in it.
    length: usize,
    to: usize,
    from: usize,
}

impl Rows {
    fn copy<T: PrimitiveTensorElementType + std::fmt::Debug + Copy>(
        &self,
        to: &mut [Tensor<T>],
        from: &[Tensor<T>],
        device: Option<&MemoryInfo<'static>>,
    ) -> ort::Result<()> {
        let head = self.capacity * self.head_dim;
        for (to, from) in to.iter_mut().zip(from) {
            if let Some(memory) = device {
                // A source that is a view would be cloned first, by the copier that is waiting for
                // it.
                from.copy_into(self.slot::<T>(to.data_ptr_mut(), self.to, memory)?)?;
                continue;
            }
            let (_, to) = to.extract_tensor_mut();
            let (_, from) = from.extract_tensor();
            for h in 0..self.heads {
                let (to_start, from_start) = ((self.to * self.heads + h) * head, (self.from * self.heads + h) * head);
                let values = self.length * self.head_dim;
                to[to_start..to_start + values].copy_from_slice(&from[from_start..from_start + values]);
            }
        }
        Ok(())
    }

    /// One slot `[1, kv_heads, capacity, head_dim]` of a buffer that begins at `start`.
    #[allow(unsafe_code)]
    fn slot<T: PrimitiveTensorElementType + std::fmt::Debug>(
        &self,
        start: *mut std::ffi::c_void,
        slot: usize,
        memory: &MemoryInfo<'static>,
    ) -> ort::Result<TensorRefMut<'static, T>> {
        let values = self.heads * self.capacity * self.head_dim;
        let shape = Shape::new([1, self.heads as i64, self.capacity as i64, self.head_dim as i64]);
        let begin = start.wrapping_byte_add(slot * values * size_of::<T>());
        // SAFETY: the buffer is in `memory` and has more than `slot` slots of `values` numbers;
        // what is made of it here is used up, by a copy that is finished when it returns, before
        // the buffer that it is borrowed from is touched again.
        unsafe { TensorRefMut::from_raw(memory.clone(), begin, shape) }
    }
}
