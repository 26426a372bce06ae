//! Arguments of commands that work on a stored report.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{OpenArgs, values};

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
    /// What github-action-benchmark reads, for its tools customSmallerIsBetter and
    /// customBiggerIsBetter (see --better)
    GithubBenchmark,
    /// The published base-against-fine-tuned table as its script computes and prints it, of a run
    /// folder or of a published results file
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
    /// A run folder or report.json; with --format seed-compat a run folder or a published results
    /// file
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
    #[command(flatten)]
    pub open: OpenArgs,
    /// Splice the result table into this document instead, between <!-- karat:begin ID --> and <!--
    /// karat:end ID -->
    #[arg(long, value_name = "FILE")]
    pub splice: Option<PathBuf>,
    /// With --splice: only check that the document is current
    #[arg(long, requires = "splice")]
    pub check: bool,
    /// With --splice: the block's ID [default: the suite's name]
    #[arg(long, requires = "splice")]
    pub id: Option<String>,
    /// Attach the backend's certificate of determinism (karat --json doctor --determinism): the
    /// pages show it, and karat check subtracts what the backend changes by itself; with --out it
    /// is kept in report.json
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
    /// What to compare with: the name of a baseline, or the path of a baseline or a report; with
    /// :MODEL behind it, that model of it, whatever the one in question is called
    #[arg(long, value_name = "NAME|FILE", default_value = "main")]
    pub baseline: String,
    /// Where named baselines lie, as SUITE/NAME.json [default: the nearest reports/baselines]
    #[arg(long, value_name = "DIR")]
    pub baselines: Option<PathBuf>,
    /// Non-inferiority margin of a metric in its unit, e.g. --margin nll=0.05 (may be repeated)
    /// [default: those of the suite's [gate.margins], then those of the units]
    #[arg(long, value_name = "METRIC=X")]
    pub margin: Vec<String>,
    /// Check although this differs: data, prompts, template, decoding (separated by commas); the
    /// result says so
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = ["data", "prompts", "template", "decoding"])]
    pub allow: Vec<String>,
    /// The backend's certificate of determinism (karat --json doctor --determinism): what it
    /// changes by itself is subtracted from what the gate may conclude [default: the certificate in
    /// the report, if one was attached]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["flip_rate", "logprob_drift"])]
    pub determinism: Option<PathBuf>,
    /// Share of generated texts that a repeated run changes by itself: subtracted from what the
    /// gate may conclude
    #[arg(
        long,
        value_name = "SHARE",
        default_value_t = 0.0,
        value_parser = values::share,
        allow_negative_numbers = true
    )]
    pub flip_rate: f64,
    /// Largest change of a token's log-probability in a repeated run, in nats: subtracted likewise
    #[arg(
        long,
        value_name = "NATS",
        default_value_t = 0.0,
        value_parser = values::not_negative,
        allow_negative_numbers = true
    )]
    pub logprob_drift: f64,
    /// Keep the report as a new baseline of this name instead of checking
    #[arg(long, value_name = "NAME", conflicts_with_all = ["bless", "baseline"])]
    pub save_baseline: Option<String>,
    /// Accept the report as the baseline instead of checking: written with its provenance, appended
    /// to the history
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

#[derive(Args)]
pub struct PowerArgs {
    /// A suite's name, a run folder or a report.json [default: the only run below runs/]
    #[arg(value_name = "SUITE|REPORT")]
    pub what: Option<String>,
    /// Non-inferiority margin of a metric in its unit, e.g. --margin rougeL=0.02 (may be repeated)
    /// [default: those of the suite's [gate.margins], then those of the units]
    #[arg(long, value_name = "METRIC=X")]
    pub margin: Vec<String>,
    /// How often a true difference is to be found, and an equal model to pass
    #[arg(long, value_name = "SHARE", default_value_t = 0.8, value_parser = values::share)]
    pub power: f64,
    /// Compare every other model with this one [default: the report's own comparisons]
    #[arg(long, value_name = "MODEL")]
    pub baseline: Option<String>,
}
