//! Writing a model in a backend's own format.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What [`Backend::export`](super::Backend::export) is to write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportConfig {
    /// A folder in the Hugging Face layout: `config.json`, `model.safetensors` or its shards.
    pub model: PathBuf,
    /// Adapters in the PEFT layout, by name. Merged, there is at most one.
    #[serde(default)]
    pub adapters: Vec<NamedAdapter>,
    /// How adapters get in.
    #[serde(default)]
    pub adapter_mode: AdapterMode,
    /// What the weights are stored as, in the backend's words (`f32`, `f16`, `bf16`, `int8`,
    /// `int4`): an unknown one is an error that lists the known.
    #[serde(default = "f32")]
    pub weights: String,
    /// The folder to write. It must not hold anything else; it is there whole or not at all.
    pub out: PathBuf,
}

fn f32() -> String {
    "f32".into()
}

impl ExportConfig {
    /// The base model alone in f32.
    pub fn new(model: impl Into<PathBuf>, out: impl Into<PathBuf>) -> Self {
        ExportConfig {
            model: model.into(),
            adapters: Vec::new(),
            adapter_mode: AdapterMode::Merge,
            weights: f32(),
            out: out.into(),
        }
    }
}

/// An adapter and what it is called in the exported folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedAdapter {
    /// Its name there.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
}

/// How an adapter gets into an exported model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdapterMode {
    /// Added to the weights when they are written. The fastest, and every variant of LoRA can be
    /// had so.
    #[default]
    Merge,
    /// Fed beside the input ids: one resident base serves any number of adapters, one at a time.
    Runtime,
}

impl AdapterMode {
    /// Reads `merge` or `runtime`.
    pub fn parse(text: &str) -> Option<Self> {
        [AdapterMode::Merge, AdapterMode::Runtime].into_iter().find(|mode| mode.name() == text)
    }

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            AdapterMode::Merge => "merge",
            AdapterMode::Runtime => "runtime",
        }
    }
}

/// Summary of what was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportSummary {
    /// Files of the folder and their bytes.
    pub files: BTreeMap<String, u64>,
    /// Parameters of the base model, a tied head once.
    pub parameters: u64,
    /// Parameters of the adapters.
    pub adapter_parameters: u64,
    /// Whether the folder already held this very export.
    pub reused: bool,
}
