//! Matrix products on the CPU, in f32 and bf16, the memory they work in, and random numbers by counter; nothing of a
//! model is in here.
//!
//! Every function gives the same bits on any number of threads and any instruction set (AMX sums bf16 in an order of its
//! own: see [`matmul::amx`]). Work is split by the shape of the data alone, never by the size of the pool, and a row's
//! result does not depend on the other rows.

pub mod buffers;
pub mod low_rank;
pub mod mapped;
pub mod matmul;
pub mod philox;
mod places;
pub mod simd;
pub mod speed;
#[doc(hidden)]
pub mod testing;
