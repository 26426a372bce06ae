//! Model folders as every decoder backend reads and writes them, once: two readers of one file
//! disagree sooner or later, and then two backends compute two models under one name.
//!
//! - [`ModelConfig`]: `config.json` of Qwen3, Qwen2 and Llama, checked, as transformers 5
//!   understands it;
//! - [`Architecture`]: that of decoders beyond those three, described by what is computed;
//! - [`end_tokens`]: the tokens that end a text, where `generation_config.json` names any;
//! - [`checkpoint`]: where its tensors lie;
//! - [`Rope`]: the frequencies of its rotary embedding;
//! - [`Supports`]: what a backend computes of it, and which backend computes the rest;
//! - [`peft`]: LoRA adapters, read under whatever names their tensors have, as factors or merged
//!   into a weight;
//! - [`sampling`]: the next token from logits, by one rule on every device;
//! - [`Rounding`]: what merged weights lose in the element type of their checkpoint;
//! - [`publish`]: model folders written whole;
//! - [`draw`]: weights and adapters to begin with, the same on every backend;
//! - [`train`]: the training loop, its checks and its checkpoints, around the gradients of a
//!   backend.
//!
//! A key that changes numbers is either done or refused by its name; a value that no model can have
//! is refused before anything is allocated for it.

mod adapter;
pub mod architecture;
pub mod checkpoint;
mod config;
pub mod draw;
mod generation;
mod head;
mod keys;
pub mod peft;
pub mod publish;
mod rope;
mod rounding;
pub mod rows;
pub mod sampling;
mod supports;
pub mod tensors;
mod threads;
pub mod train;

pub use adapter::adapter_tensors;
pub use architecture::Architecture;
pub use config::{Family, Heads, ModelConfig};
pub use generation::end_tokens;
pub use rope::{Rope, Scaling};
pub use rounding::Rounding;
pub use supports::Supports;
pub use threads::thread_pool;

/// The embedding's tensor.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// The output projection's tensor.
pub const HEAD: &str = "lm_head.weight";
