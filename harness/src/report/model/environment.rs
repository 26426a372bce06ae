//! The environment, which is volatile: where and when a report was made, and its costs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::eval::determinism::Certificate;

/// Everything that may differ between two equal runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// Karat's version.
    #[serde(default)]
    pub karat: String,
    /// The machine: `os`, `cpu`, `cores`, `memory` ...
    #[serde(default)]
    pub machine: BTreeMap<String, String>,
    /// The backends used.
    #[serde(default)]
    pub plugins: Vec<PluginInfo>,
    /// Cost by model name.
    #[serde(default)]
    pub costs: BTreeMap<String, Cost>,
    /// Seconds by stage: `train lora`, `generate base` ...
    #[serde(default)]
    pub seconds: BTreeMap<String, f64>,
    /// Paths by what they hold.
    #[serde(default)]
    pub paths: BTreeMap<String, String>,
    /// How far the backend repeats itself, if somebody tried (`karat report --determinism FILE`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub determinism: Option<Certificate>,
    /// Anything else worth keeping.
    #[serde(default)]
    pub notes: BTreeMap<String, String>,
}

/// A backend that was loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginInfo {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of the shared library; empty, `null` in JSON, of a backend that is none.
    #[serde(with = "super::unknown")]
    pub sha256: String,
    /// Where it was found; likewise.
    #[serde(with = "super::unknown")]
    pub path: String,
}

/// What one model cost on this machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Seconds of training.
    #[serde(default)]
    pub train_seconds: Option<f64>,
    /// Seconds of scoring the references.
    #[serde(default)]
    pub score_seconds: Option<f64>,
    /// Seconds of generating.
    #[serde(default)]
    pub generate_seconds: Option<f64>,
    /// Generated tokens.
    #[serde(default)]
    pub generated_tokens: Option<u64>,
    /// Peak memory in bytes.
    #[serde(default)]
    pub peak_memory: Option<u64>,
    /// Bytes of its files: of the adapter alone where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// The device it ran on; empty, `null` in JSON, where nobody knows.
    #[serde(default, with = "super::unknown")]
    pub device: String,
    /// Threads used; none where nobody knows.
    #[serde(default)]
    pub threads: Option<usize>,
    /// Kernels chosen at run time.
    #[serde(default)]
    pub kernels: Vec<String>,
}

impl Cost {
    /// Generated tokens a second.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let seconds = self.generate_seconds.filter(|s| *s > 0.0)?;
        Some(self.generated_tokens? as f64 / seconds)
    }
}
