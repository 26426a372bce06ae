//! The CUDA device: kernels of our own, matrix products of cuBLAS, both found at run time.
//!
//! Nothing here is linked: the plugin loads on a machine without a driver, and what is missing is
//! said by name when a device is opened. [`device::Gpu`] is what is asked of a GPU; the driver is
//! one, and an emulator that runs the same kernel sources on the CPU is the other (the cargo
//! feature `emulator`), so that all that is written above it is tested where there is no GPU.
//! [`Cuda`] makes a [`crate::device::Device`] of either.
//!
//! Activations, their gradients and the operands of products are bf16, or f32 where a run asks for
//! that; what is trained is kept in f32, a matrix split in what products read of it and the rest;
//! statistics, losses, sums of gradients and moments are f32, and no sum depends on the order in
//! which blocks happen to run. The gradient of a matrix that one product gives, which no other
//! micro-batch adds to, is kept as bf16, as autocast's is.

pub mod arena;
mod cache;
pub mod device;
pub mod discovery;
pub mod driver;
#[cfg(feature = "emulator")]
pub mod emulator;
pub mod graph;
pub mod kernels;
pub mod ops;
mod optimizer;
pub mod pool;
pub mod ptx;
mod raw;
mod sample;
mod steps;
mod storage;

use std::fmt;
use std::sync::Arc;

use karat_backend::BackendError;
use karat_model::sampling::Sampler;

use self::device::{Element, Gpu};
pub use self::storage::{CudaStorage, DeviceAngles, DeviceIndices, DeviceRows, join, split};
use crate::device::{CacheBudget, CacheShape, Device, KvCache, Optimizer, Parameter, Precision};
use crate::error::Result;
use crate::tensor::{Gradient, StoredWeight, Tensor, view};
use karat_kernels::memory::mmap::Elements;

/// Sequences decoded together where the caller leaves the choice.
const SEQUENCES: usize = 128;
/// The caches of all sequences together should not need more, or than a quarter of the memory.
const CACHE_BYTES: usize = 4 << 30;

/// A GPU with the element type that activations and products have on it; clones share the GPU.
#[derive(Clone)]
pub struct Cuda {
    /// The GPU.
    pub gpu: Arc<dyn Gpu>,
    /// Of activations, their gradients, and the operands of products.
    pub activations: Element,
    /// Whether steps of generation are recorded and played again: [`graph`].
    pub graphs: bool,
}

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {:?}", self.gpu.facts().name, self.activations)
    }
}

/// A tensor that must lie on the GPU because the one beside it does.
///
/// # Errors
/// If it lies on the CPU: a mistake in the layers above.
pub fn here(t: &Tensor) -> Result<&CudaStorage> {
    t.storage_as().ok_or_else(|| BackendError::failed("a tensor of the CPU reached a kernel of the GPU"))
}

/// As [`here`], for a weight.
///
/// # Errors
/// As [`here`].
pub fn stored(w: &dyn StoredWeight) -> Result<&CudaStorage> {
    let on_gpu = w.tensor().and_then(Tensor::storage_as);
    on_gpu.ok_or_else(|| BackendError::failed("a weight of the CPU reached a kernel of the GPU"))
}

impl Device for Cuda {
    fn precision(&self) -> Precision {
        match self.activations {
            Element::F32 => Precision::F32,
            Element::Bf16 => Precision::Bf16,
        }
    }
    fn is_host(&self) -> bool {
        false
    }
    fn peak_memory(&self) -> Option<u64> {
        Some(self.gpu.peak_memory(false))
    }
    fn memory(&self) -> Option<u64> {
        self.peak_memory()
    }
    fn trim(&self) {
        arena::trim(&*self.gpu);
    }

    fn place(&self, t: &Tensor) -> Result<Tensor> {
        match t.storage_as::<CudaStorage>() {
            Some(_) => Ok(t.clone()),
            None => CudaStorage::master(self, &view(t)?, t.dims()).map(Tensor::from),
        }
    }
    fn frozen(&self, numbers: Elements<'_>, shape: &[usize]) -> Result<Option<Tensor>> {
        CudaStorage::frozen(self, numbers, shape).map(|t| Some(t.into()))
    }
    /// Where a step has one micro-batch, the gradient of a matrix is there from when it is written,
    /// and in bf16 if the device computes so: one product gives it, whose sums are f32. It and the
    /// logits then take turns with the same memory.
    fn gradient(&self, t: &Tensor, one_batch: bool) -> Result<Gradient> {
        match one_batch && t.dims().len() == 2 {
            true => Ok(Gradient::lent(t.dims())),
            false => t.storage().zeros_like().map(Gradient::placed),
        }
    }
    fn optimizer(&self, parameters: Vec<Parameter>) -> Result<Box<dyn Optimizer>> {
        Ok(Box::new(optimizer::AdamW::new(self, parameters)?))
    }

    fn cache_budget(&self) -> CacheBudget {
        let bytes = CACHE_BYTES.max((self.gpu.facts().memory / 4) as usize);
        CacheBudget { sequences: SEQUENCES, bytes, element: self.activations.size() }
    }
    fn kv_cache(&self, shape: CacheShape) -> Result<Box<dyn KvCache>> {
        Ok(Box::new(steps::Steps::new(cache::Slots::new(self, shape)?)))
    }
    fn pick(&self, logits: &Tensor, places: &[(usize, usize)], sampler: &Sampler) -> Result<Vec<u32>> {
        sample::pick(here(logits)?, places, sampler.config())
    }
}
