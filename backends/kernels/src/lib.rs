//! CPU kernels: GEMM in f32 and bf16, the memory it works in, and counter-based random numbers;
//! nothing of a model is in here.
//!
//! Every function gives the same bits on any number of threads and any instruction set (AMX sums
//! bf16 in an order of its own: see [`gemm::amx`]). Work is split by the shape of the data alone,
//! never by the size of the pool, and a row's result does not depend on the other rows.

pub mod gemm;
pub mod lora;
pub mod memory;
pub mod philox;
pub mod simd;
pub mod speed;
#[doc(hidden)]
pub mod testing;
