//! Arguments of commands that work on texts.

use std::path::PathBuf;

use clap::Args;
use karat::data::tokens::StopToken;

use super::{ModelArgs, SamplingArgs, values};

/// The texts to work on: typed, or in a file.
#[derive(Args)]
pub struct RowsArgs {
    /// Texts, in place of --input
    #[arg(value_name = "TEXT", conflicts_with = "input")]
    pub texts: Vec<String>,
    /// Each TEXT is a user's turn, rendered with the model's chat template; without this it is
    /// continued as it stands
    #[arg(long, requires = "texts", conflicts_with = "input")]
    pub chat: bool,
    /// JSON lines {"id", "ids": [..]}, {"id", "text"} or {"id", "messages": [..]}; `-` is standard
    /// input
    #[arg(long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// A bad line is an error; without, it is named, the others are done, and the exit code is 6
    #[arg(long)]
    pub strict: bool,
}

#[derive(Args)]
pub struct ScoreArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub rows: RowsArgs,
}

#[derive(Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub rows: RowsArgs,
    /// Longest continuation
    #[arg(
        long,
        value_name = "N",
        default_value_t = 256,
        value_parser = values::max_new_tokens,
        allow_negative_numbers = true
    )]
    pub max_new_tokens: usize,
    /// The most probable token at every step (the default unless --temperature is given)
    #[arg(long, conflicts_with = "temperature")]
    pub greedy: bool,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Rows decoded together; 0 lets the backend choose
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        value_parser = values::decode_batch,
        allow_negative_numbers = true
    )]
    pub batch_size: usize,
    /// Do not stop at the model's end tokens
    #[arg(long)]
    pub ignore_eos: bool,
    /// Stop at this token too, by its text or id; may be given several times
    #[arg(long, value_name = "TOKEN", conflicts_with = "ignore_eos")]
    pub stop: Vec<StopToken>,
}

#[derive(Args)]
pub struct MetricsArgs {
    /// JSON lines {"id", "reference", "candidate"}; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub input: PathBuf,
    /// Metrics, separated by commas: the packages' (chrf, rouge_jieba.rouge-l.f) and a suite's
    /// (rougeL, key_points) [default: all of the packages]
    #[arg(long, value_delimiter = ',')]
    pub metrics: Vec<String>,
}
