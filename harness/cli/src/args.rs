//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use karat::data::tokens::StopToken;

/// Exit codes, as printed by `karat --help`.
const EXIT_CODES: &str = "Exit codes:
    0  good
    1  unexpected failure
    2  the command line or the suite file makes no sense
    3  regression (karat check); backends that disagree (karat compare --backends)
    4  inconclusive (karat check)
    5  a backend cannot be loaded, or it failed
    6  bad input data
  130  interrupted; run the same command again to go on

Data goes to standard output, text for people to standard error.";

/// What did fine-tuning do to this model? Train, measure and compare base, LoRA and full checkpoints.
#[derive(Parser)]
#[command(name = "karat", version, after_help = EXIT_CODES, max_term_width = 110)]
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
}

#[derive(Subcommand)]
pub enum Command {
    /// Carry out a suite: train LoRA and full, evaluate base, LoRA and full, write the reports
    Run(RunArgs),
    /// Show what a suite's data becomes: counts, splits, bad lines, leaks, lengths, rendered items
    Data(DataArgs),
    /// Train one model: LoRA, full, or from scratch
    Train(TrainArgs),
    /// Log-probability of every token of given texts, as JSON lines
    Score(ScoreArgs),
    /// Continue given prompts, as JSON lines in the order in which they are complete
    Generate(GenerateArgs),
    /// Write a model in a backend's own format, e.g. ONNX
    Export(ExportArgs),
    /// Evaluate one model on a suite's held-out items
    Eval(EvalArgs),
    /// Compare two reports, or two models of one, item by item; or two backends on one model
    Compare(CompareArgs),
    /// Render a stored report, or splice its table into a document
    Report(ReportArgs),
    /// Gate a report against a baseline: exit code 0 pass, 3 regression, 4 inconclusive
    Check(CheckArgs),
    /// Fold an adapter into its model's weights and write the model that results
    Merge(MergeArgs),
    /// Compute metrics of (reference, candidate) pairs
    Metrics(MetricsArgs),
    /// Make a model folder (Hugging Face layout) of a GGUF file
    Import(ImportArgs),
    /// List the backends found, and where they were looked for
    Backends,
    /// Check this machine: backends and what they need, cores, memory; with --determinism, whether a backend repeats itself
    Doctor(DoctorArgs),
    /// Print shell completions
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}

#[derive(Args)]
pub struct SuiteArgs {
    /// A suite: its name, its folder or its file
    pub suite: String,
    /// Override a setting of the suite, e.g. --set train.lora.r=16; --set train.full=false leaves that run out
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Device for training and evaluation: cpu, cuda:0, auto
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
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
    /// The run folder [default: runs/SUITE]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Remove what an earlier run left in the run folder first
    #[arg(long)]
    pub fresh: bool,
    /// Also write the reports here
    #[arg(long, value_name = "DIR")]
    pub reports: Option<PathBuf>,
}

#[derive(Args)]
pub struct DataArgs {
    #[command(flatten)]
    pub suite: SuiteArgs,
    /// Print so many rendered training items
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub show: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MethodArg {
    /// A low-rank adapter on frozen weights
    Lora,
    /// Every parameter
    Full,
}

#[derive(Args)]
pub struct TrainArgs {
    /// The model's folder (Hugging Face layout); with --from-scratch only its configuration and tokenizer are read
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// What to train
    #[arg(long, value_enum, default_value = "lora")]
    pub method: MethodArg,
    /// JSON lines or CSV (.csv): question/think/answer items; JSON lines of {"text"} with --text, of {"input_ids", "labels"}
    /// with --ids
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// Items for the evaluation loss, in the same form
    #[arg(long, value_name = "FILE")]
    pub eval_data: Option<PathBuf>,
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
    /// Start LoRA from this adapter (PEFT layout)
    #[arg(long, value_name = "DIR")]
    pub init_adapter: Option<PathBuf>,
    /// Override a setting, e.g. --set learning_rate=1e-4 --set r=16 --set data.max_length=512
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// The backend
    #[arg(long, default_value = "candle")]
    pub backend: String,
    /// Device: cpu, cuda:0, auto
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Worker threads; 0 is all cores
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Seed of everything random
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// A bad line of data is an error
    #[arg(long)]
    pub strict: bool,
    /// Where checkpoints go; an interrupted training goes on from the last one there
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

#[derive(Args)]
pub struct ModelArgs {
    /// The model's folder (Hugging Face layout)
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// An adapter's folder (PEFT layout), applied on top
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// The backend
    #[arg(long, value_name = "NAME", default_value = "candle")]
    pub backend: String,
    /// Device: cpu, cuda:0, auto
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Worker threads; 0 is all cores
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
}

#[derive(Args)]
pub struct MergeArgs {
    /// The base model's folder (Hugging Face layout)
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// The adapter's folder (PEFT layout)
    #[arg(long, value_name = "DIR")]
    pub adapter: PathBuf,
    /// The backend that merges
    #[arg(long, value_name = "NAME", default_value = "candle")]
    pub backend: String,
    /// A new folder for the merged model
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

#[derive(Args)]
pub struct ScoreArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// JSON lines {"id", "ids": [..]} or {"id", "text"}; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub input: PathBuf,
}

#[derive(Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// JSON lines {"id", "ids": [..]}, {"id", "text"} or {"id", "messages": [..]}; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub input: PathBuf,
    /// Longest continuation
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_new_tokens: usize,
    /// The most probable token at every step (the default unless --temperature is given)
    #[arg(long, conflicts_with = "temperature")]
    pub greedy: bool,
    /// Sample at this temperature
    #[arg(long, value_name = "T")]
    pub temperature: Option<f64>,
    /// Sample from the smallest set of tokens with this probability
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub top_p: f64,
    /// Sample from the K most probable tokens; 0 is off
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: usize,
    /// Seed of sampling
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Rows decoded together; 0 lets the backend choose
    #[arg(long, default_value_t = 0)]
    pub batch_size: usize,
    /// Do not stop at the model's end tokens
    #[arg(long)]
    pub ignore_eos: bool,
    /// Stop at this token too, by its text or id; may be given several times
    #[arg(long, value_name = "TOKEN", conflicts_with = "ignore_eos")]
    pub stop: Vec<StopToken>,
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
    /// The model's folder (Hugging Face layout)
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// An adapter's folder (PEFT layout); with --adapter-mode runtime any number of them, each under its folder's name
    /// unless one is given
    #[arg(long, value_name = "[NAME=]DIR")]
    pub adapter: Vec<String>,
    /// The folder to write; there whole or not at all
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// What the weights become: f32, f16, bf16, int8, int4
    #[arg(long, default_value = "f32")]
    pub dtype: String,
    /// How adapters get in
    #[arg(long, value_enum, default_value = "merge")]
    pub adapter_mode: AdapterModeArg,
    /// The backend [default: the one that exports]
    #[arg(long, value_name = "NAME")]
    pub backend: Option<String>,
}

#[derive(Args)]
pub struct EvalArgs {
    #[command(flatten)]
    pub suite: SuiteArgs,
    /// The model's folder [default: the suite's base]
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// An adapter's folder, applied on top
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Measure texts that are there already, without a model: a run's `results` folder or one of its files, a store
    /// (predictions.jsonl), or JSON lines {"id", "candidate"}; NAME=PATH names the model (may be repeated)
    #[arg(long, value_name = "[NAME=]PATH", conflicts_with_all = ["model", "adapter"])]
    pub predictions: Vec<String>,
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

#[derive(Args)]
pub struct CompareArgs {
    /// A run folder or report.json (`PATH:MODEL` picks a model), a store of predictions, or JSON lines {"id", "reference",
    /// "candidate"} of any origin
    #[arg(required_unless_present = "backends")]
    pub a: Option<String>,
    /// Another, or another model of the same
    #[arg(required_unless_present = "backends")]
    pub b: Option<String>,
    /// A third: each is compared with those before it
    pub c: Option<String>,
    /// Compare although this differs: data, prompts, template, decoding, items (separated by commas); the result says so
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = karat::report::compare::MUST_BE_EQUAL)]
    pub allow: Vec<String>,
    /// Compare two backends on one model instead, e.g. candle,onnxruntime: drift of log-probabilities, greedy texts
    #[arg(long, value_name = "A,B", value_delimiter = ',', conflicts_with_all = ["a", "b", "allow"])]
    pub backends: Vec<String>,
    #[command(flatten)]
    pub parity: ParityArgs,
}

#[derive(Args)]
#[command(next_help_heading = "With --backends")]
pub struct ParityArgs {
    /// The model's folder [default: the suite's base]
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
    /// Score and continue these: JSON lines {"id", "ids": [..]}, {"id", "text"} or {"id", "messages": [..]}
    #[arg(long, value_name = "FILE", requires = "backends")]
    pub input: Option<PathBuf>,
    /// Longest continuation [default: the suite's, else 64]
    #[arg(long, value_name = "N", requires = "backends")]
    pub max_new_tokens: Option<usize>,
    /// How far two log-probabilities of a token may be apart, in nats; beyond it the exit code is 3
    #[arg(long, value_name = "X", default_value_t = 1e-3, requires = "backends")]
    pub tolerance: f64,
    /// Device: cpu, cuda:0, auto
    #[arg(long, default_value = "cpu", requires = "backends")]
    pub device: String,
    /// Worker threads; 0 is all cores
    #[arg(long, default_value_t = 0, requires = "backends")]
    pub threads: usize,
    /// An option of one of the two, e.g. --option onnxruntime.spin=true (may be repeated)
    #[arg(long, value_name = "BACKEND.KEY=VALUE", requires = "backends")]
    pub option: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Markdown
    Md,
    /// One self-contained page
    Html,
    /// The report itself
    Json,
    /// One line per item and model
    Csv,
    /// One line per metric and model, with intervals and the difference to the base
    CsvMetrics,
    /// The result table for a paper (booktabs)
    Latex,
    /// A case per comparison and metric: significantly worse is a failure
    Junit,
    /// What github-action-benchmark reads, for its tools customSmallerIsBetter and customBiggerIsBetter (see --better)
    GithubBenchmark,
    /// The published base-against-fine-tuned table as its script computes and prints it, of a run folder or of a published
    /// results file
    SeedCompat,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Better {
    /// Metrics of which less is better (customSmallerIsBetter)
    Lower,
    /// Metrics of which more is better (customBiggerIsBetter)
    Higher,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LanguageArg {
    /// English
    En,
    /// Simplified Chinese
    Zh,
}

impl From<LanguageArg> for karat::report::Language {
    fn from(language: LanguageArg) -> Self {
        match language {
            LanguageArg::En => karat::report::Language::English,
            LanguageArg::Zh => karat::report::Language::Chinese,
        }
    }
}

#[derive(Args)]
pub struct ReportArgs {
    /// A run folder or report.json; with --format seed-compat a run folder or a published results file
    pub report: PathBuf,
    /// What to print
    #[arg(long, value_enum, default_value = "md")]
    pub format: Format,
    /// Language of the pages [default: the report's]
    #[arg(long, value_enum)]
    pub language: Option<LanguageArg>,
    /// With --format github-benchmark: which metrics
    #[arg(long, value_enum, default_value = "lower")]
    pub better: Better,
    /// With --format seed-compat: the base model, for its perplexity of its own texts
    #[arg(long, value_name = "DIR")]
    pub base_model: Option<PathBuf>,
    /// With --format seed-compat: the fine-tuned model [default: the base model with the adapter]
    #[arg(long, value_name = "DIR", requires = "base_model")]
    pub finetuned_model: Option<PathBuf>,
    /// With --format seed-compat: the fine-tuned model's adapter
    #[arg(long, value_name = "DIR", requires = "base_model")]
    pub finetuned_adapter: Option<PathBuf>,
    /// With --format seed-compat: the backend that computes perplexities
    #[arg(long, value_name = "NAME", default_value = "candle")]
    pub backend: String,
    /// Splice the result table into this document instead, between <!-- karat:begin ID --> and <!-- karat:end ID -->
    #[arg(long, value_name = "FILE")]
    pub splice: Option<PathBuf>,
    /// With --splice: only check that the document is current
    #[arg(long, requires = "splice")]
    pub check: bool,
    /// With --splice: the block's ID [default: the suite's name]
    #[arg(long, requires = "splice")]
    pub id: Option<String>,
    /// Attach the backend's certificate of determinism (karat --json doctor --determinism): the pages show it, and
    /// karat check subtracts what the backend changes by itself; with --out it is kept in report.json
    #[arg(long, value_name = "FILE", conflicts_with = "splice")]
    pub determinism: Option<PathBuf>,
    /// Write report.json, report.md, report.html and the plots into this folder
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CheckFormat {
    /// A table
    Text,
    /// GitHub's workflow commands (with GITHUB_ACTIONS=true they also go to standard error)
    Github,
    /// A Markdown table (with GITHUB_STEP_SUMMARY it is also appended to that file)
    Markdown,
}

#[derive(Args)]
pub struct CheckArgs {
    /// A suite's name, a run folder or a report.json [default: the only run below runs/]
    #[arg(value_name = "SUITE|REPORT")]
    pub what: Option<String>,
    /// What to compare with: the name of a baseline, or the path of a baseline or a report
    #[arg(long, value_name = "NAME|FILE", default_value = "main")]
    pub baseline: String,
    /// Where named baselines lie, as SUITE/NAME.json [default: the nearest reports/baselines]
    #[arg(long, value_name = "DIR")]
    pub baselines: Option<PathBuf>,
    /// Non-inferiority margin of a metric in its unit, e.g. --margin nll=0.05 (may be repeated) [default: those of the
    /// suite's [gate.margins], then those of the units]
    #[arg(long, value_name = "METRIC=X")]
    pub margin: Vec<String>,
    /// The backend's certificate of determinism (karat --json doctor --determinism): what it changes by itself is
    /// subtracted from what the gate may conclude [default: the certificate in the report, if one was attached]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["flip_rate", "logprob_drift"])]
    pub determinism: Option<PathBuf>,
    /// Share of generated texts that a repeated run changes by itself: subtracted from what the gate may conclude
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    pub flip_rate: f64,
    /// Largest change of a token's log-probability in a repeated run, in nats: subtracted likewise
    #[arg(long, value_name = "NATS", default_value_t = 0.0, value_parser = not_negative)]
    pub logprob_drift: f64,
    /// Keep the report as a new baseline of this name instead of checking
    #[arg(long, value_name = "NAME", conflicts_with_all = ["bless", "baseline"])]
    pub save_baseline: Option<String>,
    /// Accept the report as the baseline instead of checking: written with its provenance, appended to the history
    #[arg(long, requires = "reason")]
    pub bless: bool,
    /// Why it is accepted
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Who accepts it
    #[arg(long, value_name = "NAME")]
    pub by: Option<String>,
    /// When, in any notation; nothing is taken from the clock
    #[arg(long, value_name = "TIME")]
    pub at: Option<String>,
    /// What to print
    #[arg(long, value_enum, default_value = "text")]
    pub format: CheckFormat,
    /// Write JUnit XML into this file as well
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
}

fn share(text: &str) -> Result<f64, String> {
    match not_negative(text)? {
        x if x <= 1.0 => Ok(x),
        _ => Err("a share is between 0 and 1".to_string()),
    }
}

fn not_negative(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x.is_finite() && x >= 0.0 => Ok(x),
        _ => Err("give a number of at least 0".to_string()),
    }
}

#[derive(Args)]
pub struct MetricsArgs {
    /// JSON lines {"id", "reference", "candidate"}; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub input: PathBuf,
    /// Metrics, separated by commas [default: all]
    #[arg(long, value_delimiter = ',')]
    pub metrics: Vec<String>,
}

#[derive(Args)]
pub struct DoctorArgs {
    /// Fetch what a backend lacks (the ONNX Runtime library, with pip, into Karat's cache; with --device cuda the one for CUDA,
    /// 256 MB)
    #[arg(long, conflicts_with = "determinism")]
    pub fix: bool,
    /// Continue and score the same texts again, one by one and on one thread: exit code 0 if texts and, but for the batch,
    /// every bit stay the same, else 5
    #[arg(long)]
    pub determinism: bool,
    /// The model to try [default: the base of medical-r1]
    #[arg(long, value_name = "DIR", requires = "determinism")]
    pub model: Option<PathBuf>,
    /// An adapter's folder (PEFT layout), applied on top
    #[arg(long, value_name = "DIR", requires = "model")]
    pub adapter: Option<PathBuf>,
    /// The backend to try
    #[arg(long, value_name = "NAME", default_value = "candle")]
    pub backend: String,
    /// Device: cpu, cuda:0, auto
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Threads of the first pass, compared with 1
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(2..))]
    pub threads: u16,
    /// Rows together in the first pass, compared with 1
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(2..))]
    pub batch_size: u16,
    /// Tokens each text is continued by
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub max_new_tokens: usize,
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
    /// The GGUF file
    #[arg(long, value_name = "FILE")]
    pub gguf: PathBuf,
    /// The folder to make
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Element type of the written weights
    #[arg(long, value_enum, default_value = "f32")]
    pub dtype: DtypeArg,
    /// Cut weight files larger than this into shards: bytes, or a number with KB, MB or GB
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = bytes)]
    pub max_shard: u64,
}

/// A size in bytes: `500000`, `500KB`, `2GB`.
fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        other => return Err(format!("unknown unit {other:?}; KB, MB and GB are known")),
    };
    let number: u64 = digits.trim().parse().map_err(|e| format!("{e}"))?;
    number.checked_mul(unit).filter(|&n| n > 0).ok_or_else(|| "out of range".into())
}
