//! Arguments of commands that make one model folder of another.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{ComputeDtype, OpenArgs, values};

#[derive(Args)]
pub struct MergeArgs {
    /// The base model's folder (Hugging Face layout); or the adapter's, whose base is found by what
    /// its configuration says
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// The adapter's folder (PEFT layout), unless --model names it
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    #[command(flatten)]
    pub open: OpenArgs,
    /// A new folder for the merged model
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AdapterModeArg {
    /// Add the adapter to the weights
    Merge,
    /// Let adapters be fed to the exported base, and write those given beside it
    Runtime,
}

#[derive(Args)]
pub struct ExportArgs {
    /// The model's folder (Hugging Face layout), or an adapter's, which is exported on its base
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// An adapter's folder (PEFT layout); with --adapter-mode runtime any number of them, each
    /// under its folder's name unless one is given
    #[arg(long, value_name = "[NAME=]DIR")]
    pub adapter: Vec<String>,
    /// The folder to write; there whole or not at all
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Element type of the exported weights
    #[arg(long, value_enum, value_name = "TYPE", default_value = "f32")]
    pub dtype: ComputeDtype,
    /// How adapters get in
    #[arg(long, value_enum, default_value = "merge")]
    pub adapter_mode: AdapterModeArg,
    /// The backend [default: the one that exports]
    #[arg(long, value_name = "NAME")]
    pub backend: Option<String>,
}

/// Element type of weights.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DtypeArg {
    /// 32-bit float: every dequantized value as it is
    F32,
    /// bfloat16: half the size, 8 bits of precision
    Bf16,
    /// IEEE half: half the size, 11 bits of precision, up to 65504
    F16,
}

#[derive(Args)]
pub struct ImportArgs {
    /// The GGUF file, or its id on a hub (hf:owner/name/FILE.gguf)
    #[arg(long, value_name = "FILE")]
    pub gguf: PathBuf,
    /// The folder to make
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Element type of the written weights
    #[arg(long, value_enum, default_value = "f32")]
    pub dtype: DtypeArg,
    /// Cut weight files larger than this into shards: bytes, or a number with KB, MB or GB
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = values::bytes)]
    pub max_shard: u64,
}
