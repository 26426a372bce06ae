//! Memory for large tensors: the arena that activations and gradients lie in, and mapped files.

pub mod arena;
mod free_list;
pub mod mmap;
