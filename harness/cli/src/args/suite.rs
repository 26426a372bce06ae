//! Arguments of commands that work on a suite.

use std::path::PathBuf;

use clap::Args;

use super::{LanguageArg, OpenArgs};

#[derive(Args)]
pub struct SuiteArgs {
    /// A suite: its name, its folder or its file
    pub suite: String,
    /// Override a setting of the suite, e.g. --set train.lora.r=16 (may be repeated); --set
    /// train.full=false leaves that run out; a wrong key lists those there are
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Language of the report [default: the suite's]
    #[arg(long, value_enum)]
    pub language: Option<LanguageArg>,
    /// A bad line of data is an error
    #[arg(long)]
    pub strict: bool,
}

#[derive(Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub suite: SuiteArgs,
    #[command(flatten)]
    pub open: OpenArgs,
    /// The run folder [default: runs/SUITE]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Remove what an earlier run left in the run folder first
    #[arg(long)]
    pub fresh: bool,
    /// Also write the reports here
    #[arg(long, value_name = "DIR")]
    pub reports: Option<PathBuf>,
    /// Say what would be done - models, steps, tokens, items - and do nothing
    #[arg(long, conflicts_with_all = ["fresh", "reports"])]
    pub plan: bool,
}

#[derive(Args)]
pub struct DataArgs {
    #[command(flatten)]
    pub suite: SuiteArgs,
    /// Print so many rendered training items
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub show: usize,
    /// Write the items that are evaluated as JSON lines {"id", "messages", "prompt", "ids"}, for
    /// any other system to answer; `karat eval --predictions` measures its texts
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
}

#[derive(Args)]
pub struct EvalArgs {
    #[command(flatten)]
    pub suite: SuiteArgs,
    /// The model's folder, or an adapter's, which is opened on its base [default: the suite's base]
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// An adapter's folder, applied on top
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Measure texts that are there already, without a model: a run's `results` folder or one of
    /// its files, a store (predictions.jsonl), or JSON lines {"id", "candidate"}; NAME=PATH names
    /// the model (may be repeated)
    #[arg(long, value_name = "[NAME=]PATH", conflicts_with_all = ["model", "adapter"])]
    pub predictions: Vec<String>,
    #[command(flatten)]
    pub open: OpenArgs,
    /// Also write the reports here
    #[arg(long, value_name = "DIR")]
    pub reports: Option<PathBuf>,
    /// The model's name in the report
    #[arg(long, default_value = "model")]
    pub name: String,
    /// The run folder [default: runs/SUITE]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}
