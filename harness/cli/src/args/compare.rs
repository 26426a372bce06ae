//! Arguments of `karat compare`.

use std::path::PathBuf;

use clap::Args;

use super::{ComputeArgs, SamplingArgs, values};

#[derive(Args)]
pub struct CompareArgs {
    /// A run folder or report.json (`PATH:MODEL` picks a model), a store of predictions, or JSON
    /// lines {"id", "reference", "candidate"} of any origin
    #[arg(required_unless_present = "backends")]
    pub a: Option<String>,
    /// Another, or another model of the same
    #[arg(required_unless_present = "backends")]
    pub b: Option<String>,
    /// A third: each is compared with those before it
    pub c: Option<String>,
    /// Compare although this differs: data, prompts, template, decoding, items (separated by
    /// commas); the result says so
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = karat::report::compare::MUST_BE_EQUAL)]
    pub allow: Vec<String>,
    /// Compare two backends on one model instead, e.g. native,onnxruntime: drift of
    /// log-probabilities, texts
    #[arg(long, value_name = "A,B", value_delimiter = ',', conflicts_with_all = ["a", "b", "allow"])]
    pub backends: Vec<String>,
    #[command(flatten)]
    pub parity: ParityArgs,
}

#[derive(Args)]
#[command(next_help_heading = "With --backends", mut_arg("temperature", |arg| arg.requires("backends")))]
pub struct ParityArgs {
    /// The model's folder, or an adapter's, which is opened on its base [default: the suite's base]
    #[arg(long, value_name = "DIR", requires = "backends")]
    pub model: Option<PathBuf>,
    /// An adapter's folder, applied on top
    #[arg(long, value_name = "DIR", requires = "backends")]
    pub adapter: Option<PathBuf>,
    /// Ask what this suite asks: its references are scored, its prompts continued
    #[arg(long, value_name = "SUITE", requires = "backends", conflicts_with = "input")]
    pub suite: Option<String>,
    /// Override a setting of the suite, e.g. --set eval.items=12
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "suite")]
    pub set: Vec<String>,
    /// Score and continue these: JSON lines {"id", "ids": [..]}, {"id", "text"} or {"id",
    /// "messages": [..]}
    #[arg(long, value_name = "FILE", requires = "backends")]
    pub input: Option<PathBuf>,
    /// Longest continuation [default: the suite's, else 64]
    #[arg(
        long,
        value_name = "N",
        value_parser = values::max_new_tokens,
        allow_negative_numbers = true,
        requires = "backends"
    )]
    pub max_new_tokens: Option<usize>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// How far two log-probabilities of a token may be apart, in nats; beyond it the exit code is 3
    /// [default: 0.001]
    #[arg(
        long,
        value_name = "X",
        value_parser = values::not_negative,
        allow_negative_numbers = true,
        requires = "backends"
    )]
    pub tolerance: Option<f64>,
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Worker threads; 0 is all cores [default: 0]
    #[arg(
        long,
        value_name = "N",
        value_parser = values::threads,
        allow_negative_numbers = true,
        requires = "backends"
    )]
    pub threads: Option<usize>,
}

impl ParityArgs {
    /// A flag that was typed and has no meaning without `--backends`. What `requires` says is not
    /// asked where a report is named, which excludes `--backends`.
    pub fn typed(&self) -> Option<&'static str> {
        let ParityArgs { model, adapter, suite, input, max_new_tokens, sampling, tolerance, threads, .. } = self;
        let ComputeArgs { device, dtype, option } = &self.compute;
        let typed = [
            ("--model", model.is_some()),
            ("--adapter", adapter.is_some()),
            ("--suite", suite.is_some()),
            ("--set", !self.set.is_empty()),
            ("--input", input.is_some()),
            ("--max-new-tokens", max_new_tokens.is_some()),
            ("--temperature", sampling.temperature.is_some()),
            ("--tolerance", tolerance.is_some()),
            ("--threads", threads.is_some()),
            ("--device", device.is_some()),
            ("--dtype", dtype.is_some()),
            ("--option", !option.is_empty()),
        ];
        typed.into_iter().find_map(|(flag, is)| is.then_some(flag))
    }
}
