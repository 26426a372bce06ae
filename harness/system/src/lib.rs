//! Files and memory, as the harness and the backends of Karat need them of the operating system,
//! and the error that names a place and a remedy.
//!
//! - [`dataset`]: splits and cards of data sets (feature `cards`);
//! - [`fsio`]: files and folders that are there whole under their final name or not at all, locks,
//!   digests;
//! - [`glob`]: patterns of paths;
//! - [`safetensors`]: files of tensors, their headers read and checked, written a piece at a time;
//! - [`cache_root`]: the folder for what can be made again;
//! - [`memory`]: what this process takes and could still take;
//! - [`Error`]: what happened, where, what to do next.

mod cache;
#[cfg(feature = "cards")]
pub mod dataset;
pub mod error;
pub mod exit;
pub mod fsio;
pub mod glob;
pub mod memory;
pub mod safetensors;

pub use cache::cache_root;
pub use error::{Error, ErrorKind, Result};
