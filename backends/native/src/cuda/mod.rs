//! The CUDA device: kernels of our own, matrix products of cuBLAS, both found at run time.
//!
//! Nothing here is linked: the plugin loads on a machine without a driver, and what is missing is said by name when a
//! device is opened. [`device::Gpu`] is what is asked of a device; the driver is one, and an emulator that runs the same
//! kernel sources on the CPU is the other, so that all that is written above it is tested where there is no GPU.
//!
//! Activations, their gradients and the operands of products are bf16, or f32 where a run asks for that; what is trained
//! is kept in f32, a matrix split in what products read of it and the rest; statistics, losses, sums of gradients and moments are
//! f32, and no sum depends on the order in which blocks happen to run. The gradient of a matrix that one product gives, which no
//! other micro-batch adds to, is kept as bf16, as autocast's is.

pub mod cache;
pub mod device;
pub mod driver;
#[cfg(feature = "emulator")]
pub mod emulator;
pub mod graph;
pub mod kernels;
pub mod memory;
pub mod open;
pub mod ops;
pub mod optimizer;
pub mod pool;
pub mod ptx;
pub mod sample;
mod tensor;

use karat::backend::BackendError;

pub use self::tensor::{Angles, Device, Indices, Rows, Tensor, join, split};
use crate::nn::{self, Result, Stored};

/// A tensor that must lie on a device because the one beside it does.
///
/// # Errors
/// If it lies on the CPU: a mistake in the layers above.
pub fn here(t: &nn::Tensor) -> Result<&Tensor> {
    t.cuda().ok_or_else(|| BackendError::failed("a tensor of the CPU reached a kernel of the GPU"))
}

/// As [`here`], for a weight.
///
/// # Errors
/// As [`here`].
pub fn stored(w: &impl Stored) -> Result<&Tensor> {
    w.on_cuda().ok_or_else(|| BackendError::failed("a weight of the CPU reached a kernel of the GPU"))
}
