//! Every CUDA kernel against the same in f64 and against the CPU's own, on the emulator always and
//! on a GPU where one is.
//!
//! On the emulator each computation runs three times with the threads of a block in different
//! orders, on a GPU twice: the bits must not show it.
#![allow(clippy::unwrap_used)]

mod attention;
mod bench;
mod elementwise;
mod generation;
mod norm;
mod ptx;
mod tokens;
mod training;
