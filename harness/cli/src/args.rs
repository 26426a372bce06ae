//! Arguments of the command line, a file a subject.

mod compare;
mod convert;
mod doctor;
mod examples;
mod hub;
mod model;
mod report;
mod sampling;
mod suite;
mod text;
mod track;
mod train;
mod values;
mod watch;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub use compare::{CompareArgs, ParityArgs};
pub use convert::{AdapterModeArg, DtypeArg, ExportArgs, ImportArgs, MergeArgs};
pub use doctor::DoctorArgs;
pub use hub::{CacheArgs, DownloadArgs};
pub use model::{ComputeArgs, ComputeDtype, ModelArgs, OpenArgs};
pub use report::{Better, CheckArgs, CheckFormat, Format, LanguageArg, PowerArgs, ReportArgs};
pub use sampling::SamplingArgs;
pub use suite::{DataArgs, EvalArgs, RunArgs, SuiteArgs};
pub use text::{GenerateArgs, MetricsArgs, RowsArgs, ScoreArgs};
pub use track::{TrackArgs, TrackerArg};
pub use train::{MethodArg, TrainArgs};
pub use watch::WatchArgs;

/// What stands below `karat --help`.
fn after_help() -> String {
    format!(
        "Exit codes:\n{}\nData goes to standard output, text for people to standard error.\n\n\
         To begin with: `karat doctor`, `karat run medical-r1`; `karat COMMAND --help` ends with examples.",
        karat::exit::help()
    )
}

/// What did fine-tuning do to this model? Train, measure and compare base, LoRA and full
/// checkpoints.
#[derive(Parser)]
#[command(name = "karat", version, after_help = after_help(), max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Args)]
pub struct Global {
    /// One JSON object on standard output instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// Only errors on standard error
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Look for backends here first (a folder or a plugin file; may be repeated)
    #[arg(long = "backend-path", value_name = "PATH", global = true)]
    pub backend_path: Vec<PathBuf>,
    /// Ask nothing of the network: models and data of the hubs come from their caches
    #[arg(long, global = true)]
    pub offline: bool,
    /// What the arguments named on a hub.
    #[arg(skip)]
    pub sources: Vec<karat::hub::Source>,
}

#[derive(Subcommand)]
pub enum Command {
    /// Carry out a suite: train LoRA and full, evaluate base, LoRA and full, write the reports
    #[command(after_help = examples::RUN)]
    Run(RunArgs),
    /// Show what a suite's data becomes: counts, splits, bad lines, leaks, lengths, rendered items
    #[command(after_help = examples::DATA)]
    Data(DataArgs),
    /// Train one model: LoRA, full, or from scratch
    #[command(after_help = examples::TRAIN, after_long_help = examples::train_long())]
    Train(TrainArgs),
    /// Log-probability of every token of given texts, as JSON lines
    #[command(after_help = examples::SCORE)]
    Score(ScoreArgs),
    /// Continue given prompts, as JSON lines in the order in which they are complete
    #[command(after_help = examples::GENERATE)]
    Generate(GenerateArgs),
    /// Write a model in a backend's own format, e.g. ONNX
    #[command(after_help = examples::EXPORT)]
    Export(ExportArgs),
    /// Evaluate one model on a suite's held-out items
    #[command(after_help = examples::EVAL)]
    Eval(EvalArgs),
    /// Compare two reports, or two models of one, item by item; or two backends on one model
    #[command(after_help = examples::COMPARE)]
    Compare(CompareArgs),
    /// Render a stored report, or splice its table into a document
    #[command(after_help = examples::REPORT)]
    Report(ReportArgs),
    /// Gate a report against a baseline: exit code 0 pass, 3 regression, 4 inconclusive
    #[command(after_help = examples::CHECK)]
    Check(CheckArgs),
    /// Follow a training of any trainer: evaluate and gate each checkpoint as it comes, in one
    /// history
    #[command(after_help = examples::WATCH)]
    Watch(WatchArgs),
    /// Write a run for experiment trackers: TensorBoard, SwanLab
    #[command(after_help = examples::TRACK)]
    Track(TrackArgs),
    /// Show what a report's items can tell, and how many items would decide what they leave open
    #[command(after_help = examples::POWER)]
    Power(PowerArgs),
    /// Fold an adapter into its model's weights and write the model that results
    #[command(after_help = examples::MERGE)]
    Merge(MergeArgs),
    /// Compute metrics of (reference, candidate) pairs
    #[command(after_help = examples::METRICS)]
    Metrics(MetricsArgs),
    /// Make a model folder (Hugging Face layout) of a GGUF file
    #[command(after_help = examples::IMPORT)]
    Import(ImportArgs),
    /// Fetch a model or a dataset of a hub into the cache that the hubs' own clients share
    #[command(after_help = examples::DOWNLOAD)]
    Download(DownloadArgs),
    /// List what the caches of the hubs hold, and how large it is
    Cache(CacheArgs),
    /// List the backends found, and where they were looked for
    Backends,
    /// Check this machine: backends and what they need, cores, memory; with --determinism, whether
    /// a backend repeats itself
    #[command(after_help = examples::DOCTOR)]
    Doctor(DoctorArgs),
    /// Print shell completions
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}
