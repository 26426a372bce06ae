//! A backend's description, and the opening of a session.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

#[cfg(doc)]
use crate::{Backend, Evaluator, Session, Trainer};

/// A backend's description of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// Short name: `native`, `candle`, `onnxruntime`, `replay`.
    pub name: String,
    /// The backend's own version.
    pub version: String,
    /// What its sessions offer.
    pub capabilities: Vec<Capability>,
    /// Devices it was built for, in order of preference; whether one is present shows at
    /// [`Backend::open`].
    pub devices: Vec<String>,
    /// Element types it computes in.
    pub dtypes: Vec<Dtype>,
    /// `model_type`s of Hugging Face configurations it implements.
    pub model_families: Vec<String>,
    /// Free facts for the report: library versions, build features, CPU kernels.
    #[serde(default)]
    pub build: BTreeMap<String, String>,
}

/// Something a session can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Capability {
    /// [`Evaluator::score`].
    Score,
    /// [`Evaluator::generate`].
    Generate,
    /// [`Trainer::train`] of all parameters.
    TrainFull,
    /// [`Trainer::train`] of a LoRA adapter.
    TrainLora,
    /// [`OpenConfig::adapter`] is applied.
    Adapter,
    /// [`OpenConfig::merge_into`] is carried out.
    Merge,
    /// [`Weights::Random`]: a model without weights can be opened for pretraining.
    FromScratch,
    /// [`Backend::export`].
    Export,
    /// [`Session::set_adapter`], perhaps only with an option of the backend's.
    ExchangeAdapter,
    /// A model folder that holds a GGUF file instead of safetensors is run as it is, quantized.
    Gguf,
}

/// Element type of weights and activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit float.
    #[default]
    F32,
    /// bfloat16 with f32 accumulation.
    Bf16,
    /// IEEE half with f32 accumulation.
    F16,
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dtype::F32 => "f32",
            Dtype::Bf16 => "bf16",
            Dtype::F16 => "f16",
        })
    }
}

/// Where the weights come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weights {
    /// From the safetensors files of the model folder.
    #[default]
    Load,
    /// Drawn anew: `N(0, initializer_range)` for matrices, ones for norms; the folder needs only
    /// `config.json`.
    Random,
}

/// Prefix of temporary model folders, which are deleted again: a backend should keep nothing of
/// such a model elsewhere.
pub const TEMPORARY_MODEL: &str = ".karat-merged-";

/// How to open a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenConfig {
    /// A folder in the Hugging Face layout: `config.json`, `model.safetensors` or its shards.
    pub model: PathBuf,
    /// A folder in the PEFT layout, applied on top of the model.
    #[serde(default)]
    pub adapter: Option<PathBuf>,
    /// Fold the adapter into the weights (in f32, rounded once) and write the model that results
    /// into this folder, in the layout of `model`; the session is that model's. For backends with
    /// [`Capability::Merge`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge_into: Option<PathBuf>,
    /// Load weights or draw them.
    #[serde(default)]
    pub weights: Weights,
    /// `cpu`, `cuda:0`, `auto`.
    #[serde(default = "cpu")]
    pub device: String,
    /// Element type to compute in.
    #[serde(default)]
    pub dtype: Dtype,
    /// Worker threads; 0 means all cores. The numbers do not depend on it.
    #[serde(default)]
    pub threads: usize,
    /// Seeds everything random in the session that no call seeds itself.
    #[serde(default)]
    pub seed: u64,
    /// Options of this backend alone; an unknown key is an error. One that names code to load is
    /// called `library` or ends in `_library`, one that names a folder to write ends in `_dir`: a
    /// suite file cannot give them, only the command line.
    #[serde(default)]
    pub options: BTreeMap<String, serde_json::Value>,
}

fn cpu() -> String {
    "cpu".into()
}

impl OpenConfig {
    /// Defaults for `model`: CPU, f32, all cores, seed 0, weights loaded, no adapter.
    pub fn new(model: impl Into<PathBuf>) -> Self {
        OpenConfig {
            model: model.into(),
            adapter: None,
            merge_into: None,
            weights: Weights::Load,
            device: cpu(),
            dtype: Dtype::F32,
            threads: 0,
            seed: 0,
            options: BTreeMap::new(),
        }
    }
}

/// The device, types and kernels that a session really runs with; goes into the report's
/// `environment`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    /// The device that runs, e.g. `cpu`.
    pub device: String,
    /// The element type.
    pub dtype: Dtype,
    /// Threads in use.
    pub threads: usize,
    /// Kernels chosen at run time, e.g. `matmul: gemm f32 avx512`.
    pub kernels: Vec<String>,
    /// Parameters of the model without the adapter.
    pub parameters: u64,
    /// Parameters of the adapter, 0 without one.
    pub adapter_parameters: u64,
    /// Size of the vocabulary, the number of logits.
    pub vocab_size: usize,
    /// Longest sequence the model was made for.
    pub max_positions: usize,
    /// What the user should know of how the model or its adapter was read, each a sentence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}
