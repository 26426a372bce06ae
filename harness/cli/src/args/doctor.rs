//! Arguments of `karat doctor`.

use std::path::PathBuf;

use clap::Args;

use super::{ComputeArgs, values};

#[derive(Args)]
pub struct DoctorArgs {
    /// Fetch what a backend lacks (the ONNX Runtime library, with pip, into Karat's cache; with
    /// --device cuda the one for CUDA, 256 MB)
    #[arg(long, conflicts_with = "determinism")]
    pub fix: bool,
    /// Measure what the products of a model reach on this machine, in GFLOP/s, beside what its
    /// registers could do; some seconds
    #[arg(long, conflicts_with = "determinism")]
    pub speed: bool,
    /// Continue and score the same texts again, one by one and on one thread: exit code 0 if texts
    /// and, but for the batch, every bit stay the same, else 5
    #[arg(long)]
    pub determinism: bool,
    /// The model to try [default: the base of medical-r1]
    #[arg(long, value_name = "DIR", requires = "determinism")]
    pub model: Option<PathBuf>,
    /// An adapter's folder (PEFT layout), applied on top
    #[arg(long, value_name = "DIR", requires = "model")]
    pub adapter: Option<PathBuf>,
    /// The backend to try [default: native]
    #[arg(long, value_name = "NAME", requires = "determinism")]
    pub backend: Option<String>,
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Threads of the first pass, compared with 1
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = values::several_threads)]
    pub threads: usize,
    /// Rows together in the first pass, compared with 1
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(2..))]
    pub batch_size: u16,
    /// Tokens each text is continued by
    #[arg(
        long,
        value_name = "N",
        default_value_t = 32,
        value_parser = values::max_new_tokens,
        allow_negative_numbers = true
    )]
    pub max_new_tokens: usize,
}
