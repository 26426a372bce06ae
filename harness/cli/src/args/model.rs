//! Arguments that name a model and its backend: the same for every command that opens one.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::values;

/// What weights are computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ComputeDtype {
    /// 32-bit float: the most exact and the slowest
    F32,
    /// bfloat16: half the memory; what GPUs and newer CPUs are fast in
    Bf16,
    /// IEEE half
    F16,
    /// 8-bit weights (onnxruntime)
    Int8,
    /// 4-bit weights (onnxruntime)
    Int4,
}

/// On what, and in what, a model is computed.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub struct ComputeArgs {
    /// Device: cpu, cuda:0, auto [default: cpu, or the suite's]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Element type to compute in [default: f32, or the suite's]
    #[arg(long, value_enum, value_name = "TYPE")]
    pub dtype: Option<ComputeDtype>,
    /// An option of the backend, by its own name, e.g. --option spin=true (may be repeated); a
    /// wrong name lists them
    #[arg(long, value_name = "KEY=VALUE", value_parser = values::option)]
    pub option: Vec<(String, Value)>,
}

/// Who computes a model, and how.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub struct OpenArgs {
    /// The backend (karat backends lists them), or auto: the fastest that does what is asked
    /// [default: native, or the suite's]
    #[arg(long, value_name = "NAME")]
    pub backend: Option<String>,
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Worker threads; 0 is all cores [default: 0, or the suite's]
    #[arg(long, value_name = "N", value_parser = values::threads, allow_negative_numbers = true)]
    pub threads: Option<usize>,
}

/// The backend where nobody names one.
const BACKEND: &str = "native";

impl OpenArgs {
    /// The backend's name.
    pub fn backend(&self) -> &str {
        self.backend.as_deref().unwrap_or(BACKEND)
    }
}

#[derive(Args)]
pub struct ModelArgs {
    /// The model's folder (Hugging Face layout) or its id on a hub (hf:owner/name, ms:owner/name), an
    /// adapter's (PEFT layout), which is opened on its base, or a GGUF file (--backend candle)
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// An adapter's folder (PEFT layout), applied on top
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    #[command(flatten)]
    pub open: OpenArgs,
}
