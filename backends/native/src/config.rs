//! `config.json` of a model's folder, as far as this backend computes it.

use std::path::Path;

pub use karat_model::ModelConfig;
use karat_model::Supports;

use crate::error::Result;

/// Reads `config.json` in `folder`.
///
/// # Errors
/// As [`ModelConfig::read`]; unsupported for what this backend lacks.
pub fn read(folder: &Path) -> Result<ModelConfig> {
    let config = ModelConfig::read(folder)?;
    Supports::NATIVE.check(&config)?;
    Ok(config)
}
