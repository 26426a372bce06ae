//! Capabilities: the part of a configuration that a backend computes, and which backend computes
//! the rest.

use karat_backend::BackendError;

use crate::config::ModelConfig;

/// What a backend asks of a decoder beyond what [`ModelConfig`] checks for all.
#[derive(Clone, Copy, Debug)]
pub struct Supports {
    /// Its name.
    pub backend: &'static str,
    /// Its attention takes heads whose width is a multiple of this.
    pub head_dim_multiple: usize,
    /// The longest sequence it has tables for.
    pub max_positions: usize,
}

impl Supports {
    /// The engine that trains.
    pub const NATIVE: Supports = Supports { backend: "native", head_dim_multiple: 2, max_positions: usize::MAX };
    /// candle's tensors.
    pub const CANDLE: Supports = Supports { backend: "candle", head_dim_multiple: 2, max_positions: usize::MAX };
    /// Exported graphs: the attention operator's rule, and tables of angles that lie in the export.
    pub const ONNXRUNTIME: Supports =
        Supports { backend: "onnxruntime", head_dim_multiple: 16, max_positions: 1 << 21 };
    const ALL: [Supports; 3] = [Supports::NATIVE, Supports::CANDLE, Supports::ONNXRUNTIME];

    /// What of `config` it does not compute.
    fn lacks(&self, config: &ModelConfig) -> Option<String> {
        let (dim, longest) = (config.heads.dim, config.max_positions);
        if !dim.is_multiple_of(self.head_dim_multiple) {
            return Some(format!("head_dim {dim}: a multiple of {} is needed", self.head_dim_multiple));
        }
        if longest > self.max_positions {
            return Some(format!(
                "max_position_embeddings {longest}: at most {} (lower it in config.json)",
                self.max_positions
            ));
        }
        None
    }

    /// Refuses what this backend lacks by its name, and names the backend that has it.
    ///
    /// # Errors
    /// Unsupported.
    pub fn check(&self, config: &ModelConfig) -> Result<(), BackendError> {
        let Some(lack) = self.lacks(config) else { return Ok(()) };
        let elsewhere = Self::ALL.iter().find(|other| other.lacks(config).is_none());
        let elsewhere = elsewhere.map_or(String::new(), |other| format!("; the backend {} does", other.backend));
        Err(BackendError::unsupported(format!("the {} backend does not compute {lack}{elsewhere}", self.backend)))
    }
}
