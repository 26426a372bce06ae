//! The suites Karat ships: definitions, small data and models, golden reports.
//!
//! A shipped suite is a TOML file in [`dir`] with a folder of the same name beside it. The data of
//! `medical-r1` is made by [`medical_r1`] from a table of facts, so that it can be made again, byte
//! for byte, and checked.

use std::path::PathBuf;

pub mod medical_r1;

/// The folder of the shipped suites, as it lay when this crate was compiled.
pub fn dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
