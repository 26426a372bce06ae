//! Arguments of `karat watch`.

use std::path::PathBuf;

use clap::Args;

use super::{LanguageArg, OpenArgs, values};

#[derive(Args)]
pub struct WatchArgs {
    /// The trainer's output folder: checkpoint-N folders (models, or adapters in the PEFT layout),
    /// and perhaps a final model in the folder itself
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// The suite whose held-out items every checkpoint is asked: its name, its folder or its file
    #[arg(long, value_name = "SUITE")]
    pub suite: String,
    /// What checkpoints are compared with: the name of a baseline, or the path of a baseline, a
    /// report or a run; :MODEL behind it names one of several models [default: the suite's base,
    /// evaluated first]
    #[arg(long, value_name = "NAME|FILE")]
    pub baseline: Option<String>,
    /// Where named baselines lie, as SUITE/NAME.json [default: the nearest reports/baselines]
    #[arg(long, value_name = "DIR", requires = "baseline")]
    pub baselines: Option<PathBuf>,
    /// Evaluate the whole checkpoints that are there, and end: for cron and CI
    #[arg(long)]
    pub once: bool,
    /// End at the first checkpoint that regresses, with exit code 3
    #[arg(long)]
    pub fail_fast: bool,
    /// Time between two looks at the folder
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = values::seconds, allow_negative_numbers = true)]
    pub interval: std::time::Duration,
    /// How long nothing of a checkpoint must have changed before it is read
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = values::seconds, allow_negative_numbers = true)]
    pub quiet_time: std::time::Duration,
    /// The model that adapters lie on, whatever base they name [default: the suite's base, if it is
    /// the one they name]
    #[arg(long, value_name = "DIR")]
    pub adapter_base: Option<PathBuf>,
    /// Non-inferiority margin of a metric in its unit, e.g. --margin nll=0.05 (may be repeated)
    /// [default: those of the suite's [gate.margins], then those of the units]
    #[arg(long, value_name = "METRIC=X")]
    pub margin: Vec<String>,
    /// Judge although this differs: data, prompts, template, decoding (separated by commas)
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = ["data", "prompts", "template", "decoding"])]
    pub allow: Vec<String>,
    /// Override a setting of the suite, e.g. --set eval.items=100 (may be repeated)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Language of the pages [default: the suite's]
    #[arg(long, value_enum)]
    pub language: Option<LanguageArg>,
    /// A bad line of data is an error
    #[arg(long)]
    pub strict: bool,
    #[command(flatten)]
    pub open: OpenArgs,
    /// The folder of the watch: the history, its pages, a report of each checkpoint [default:
    /// runs/SUITE-DIR]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}
