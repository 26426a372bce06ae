//! `config.json` of a checkpoint, as far as this backend computes it.

use std::path::Path;

use karat_backend::BackendError;
use karat_model::{ModelConfig, Supports};

/// Reads `config.json` of a model folder.
///
/// # Errors
/// As [`ModelConfig::read`]; unsupported for what the graph does not cover.
pub fn read(folder: &Path) -> Result<ModelConfig, BackendError> {
    let config = ModelConfig::read(folder)?;
    Supports::ONNXRUNTIME.check(&config)?;
    Ok(config)
}
