//! Kernels for the CPU: pure functions on slices, forward and backward, nothing of a model in them.
//!
//! Every function here gives the same bits on any number of threads. Work is split by the shape of
//! the data alone, never by the size of the pool, and sums are taken in a fixed order: over lanes
//! inside a row, over rows inside a fixed chunk, over chunks in order. A row of a batch also gets
//! the same bits whatever other rows surround it, so a text does not depend on how texts were
//! batched.
//!
//! GEMM, its throughput, and the arena that activations lie in are those of [`karat_kernels`].
//!
//! [`crate::cpu`] wraps these for tensors and is the only caller; a device with kernels of its own
//! implements [`crate::device::Device`] beside it.

pub mod adamw;
pub mod attention;
pub mod cross_entropy;
pub mod dora;
pub mod dropout;
pub mod elementwise;
pub mod embedding;
pub mod lora_down;
pub mod norm;
pub mod number;
pub mod rope;
pub mod swiglu;
#[cfg(test)]
pub(crate) mod testing;
