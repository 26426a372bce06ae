//! Arguments of `karat train`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use karat::data::format::Format;

use super::{OpenArgs, TrackerArg, values};

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MethodArg {
    /// A low-rank adapter on frozen weights
    Lora,
    /// Every parameter
    Full,
}

#[derive(Args)]
pub struct TrainArgs {
    /// The model's folder (Hugging Face layout) or its id on a hub (hf:owner/name); with --from-scratch only its configuration and
    /// tokenizer are read
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// What to train
    #[arg(long, value_enum, default_value = "lora")]
    pub method: MethodArg,
    /// JSON Lines, a JSON array, CSV, TSV or Parquet, also .gz and .zst, a folder or a pattern:
    /// questions and answers in any usual form, {"text"} with --text, {"input_ids", "labels"} with
    /// --ids
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// Items for the evaluation loss, in the same form
    #[arg(long, value_name = "FILE")]
    pub eval_data: Option<PathBuf>,
    /// What a row is, instead of what its keys say: messages, prompt-completion, alpaca, sharegpt,
    /// question-answer, preference
    #[arg(long, value_name = "FORM", default_value_t = Format::Auto, hide_default_value = true)]
    pub format: Format,
    /// Of preference pairs, train on the chosen answers
    #[arg(long)]
    pub chosen: bool,
    /// Lines are {"input_ids", "labels"} and are taken as they are
    #[arg(long, conflicts_with = "text")]
    pub ids: bool,
    /// Lines are {"text"}: plain text, joined and cut into blocks, trained on throughout
    #[arg(long)]
    pub text: bool,
    /// Draw new weights instead of loading them
    #[arg(long)]
    pub from_scratch: bool,
    /// Keep the order of the file
    #[arg(long)]
    pub no_shuffle: bool,
    /// Start LoRA from this adapter (PEFT layout), with its own configuration; --set may change
    /// what is no part of its shape (lora_dropout)
    #[arg(long, value_name = "DIR")]
    pub init_adapter: Option<PathBuf>,
    /// Override a setting, e.g. --set learning_rate=1e-4 --set r=16 --set data.max_length=512 (may
    /// be repeated); --help lists the keys
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    #[command(flatten)]
    pub open: OpenArgs,
    /// Seed of everything random
    #[arg(long, value_name = "N", default_value_t = 42, value_parser = values::seed, allow_negative_numbers = true)]
    pub seed: u64,
    /// A bad line of data is an error
    #[arg(long)]
    pub strict: bool,
    /// Write for these trackers too, separated by commas: below `track` in --out
    #[arg(long, value_enum, value_delimiter = ',', value_name = "TRACKER")]
    pub track: Vec<TrackerArg>,
    /// Where checkpoints go; an interrupted training goes on from the last one there
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}
