//! What `report.json` says. Everything else (Markdown, HTML, plots, README tables) is made from this alone.
//!
//! Keys are sorted and floats are written in their shortest exact form, so that equal reports are equal bytes. All
//! that may differ between two equal runs (timings, memory, versions, paths) lives under `environment`; a golden test
//! drops that key ([`Report::without_environment`]) and compares the rest. A value that is not a finite number is
//! `null`.

mod adapter;
mod flips;
mod general;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::backend::{GenerateConfig, StopReason};
use crate::error::{Error, Result};
use crate::eval::determinism::Certificate;
use crate::eval::metric::Bounds;
use crate::eval::stats::StatsOptions;
use crate::eval::think::ThinkState;

use super::warning::Warning;

pub use adapter::{AdapterCheck, MergedCheck};
pub use flips::{Divergence, FlipTable, FlippedItem, Token};
pub use general::General;

/// The version of the JSON this build writes and reads; raised even when a field is only added.
pub const SCHEMA_VERSION: u32 = 1;

/// The whole report of one run: one set of items, one or more models, compared in pairs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The language of its pages.
    pub language: Language,
    /// Which experiment this is.
    pub suite: Suite,
    /// Every seed of the run by purpose: `split`, `train`, `bootstrap`.
    pub seeds: BTreeMap<String, u64>,
    /// Hashes of what must be equal for two reports to be compared.
    pub fingerprints: Fingerprints,
    /// Where the items come from.
    pub data: Data,
    /// How texts were generated.
    pub decoding: Decoding,
    /// How intervals and p-values were drawn.
    pub statistics: StatsOptions,
    /// The models, in the order of the columns of every table.
    pub models: Vec<Model>,
    /// The metrics, in the order of the rows of every table.
    pub metrics: Vec<Metric>,
    /// Paired comparisons: LoRA against base, full against base, full against LoRA.
    pub comparisons: Vec<Comparison>,
    /// General text beside the target, if the suite has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub general: Option<General>,
    /// Items that changed sides, by comparison and metric; only where an item did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flips: Vec<FlipTable>,
    /// The items of `flips` in full, those that became wrong first; at most [`Report::LISTED_FLIPS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flipped: Vec<FlippedItem>,
    /// Every item's values.
    pub items: Vec<ItemRow>,
    /// A few items in full.
    pub examples: Vec<Example>,
    /// What a reader should know before believing a number.
    pub warnings: Vec<Warning>,
    /// Everything volatile.
    pub environment: Environment,
}

/// The language of a report's pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Language {
    /// English.
    #[default]
    #[serde(rename = "en")]
    English,
    /// Simplified Chinese.
    #[serde(rename = "zh")]
    Chinese,
}

/// The experiment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suite {
    /// Its name, as in `karat run NAME`.
    pub name: String,
    /// A line for the top of the page; the name where empty.
    #[serde(default)]
    pub title: String,
    /// A sentence or two under the title.
    #[serde(default)]
    pub description: String,
    /// SHA-256 of the suite file, empty where there is none.
    #[serde(default)]
    pub sha256: String,
}

/// SHA-256 (hex) of the things that must agree before two models may be compared. An empty one is unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprints {
    /// Ids, questions and references of the evaluated items, in order.
    pub data: String,
    /// The token ids of all rendered prompts, in order.
    pub prompts: String,
    /// The chat template's source and switches.
    pub template: String,
    /// Everything about decoding that changes the text.
    pub decoding: String,
}

/// The data behind the items.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Data {
    /// The files read.
    pub files: Vec<DataFile>,
    /// Rows of each part, e.g. `train`, `validation`, `test`.
    pub splits: BTreeMap<String, u64>,
    /// How the parts were cut, in words: `seed 42, shuffled, 9:1`.
    pub split_rule: String,
    /// Rows that could not be used; at most [`Data::LISTED_BAD_ROWS`] are listed.
    pub bad_rows: Vec<BadRow>,
    /// How many there were.
    pub bad_row_count: u64,
    /// Items of one part that also stand, or nearly so, in another; at most [`Data::LISTED_LEAKS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leaks: Vec<Leak>,
    /// What the audit counted, by name: `exact_leaks`, `near_leaks`, `duplicates`, `truncated_rows` ...
    pub audit: BTreeMap<String, u64>,
}

impl Data {
    /// How many bad rows a report lists one by one.
    pub const LISTED_BAD_ROWS: usize = 20;
    /// How many leaks a report lists one by one.
    pub const LISTED_LEAKS: usize = 20;
}

/// Two items of different parts that ask the same, or nearly so.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Leak {
    /// Part and id of the one, as `train m-001`.
    pub first: String,
    /// Part and id of the other.
    pub second: String,
    /// Jaccard index of their character n-grams.
    pub similarity: f64,
    /// Equal after normalisation.
    pub exact: bool,
}

/// One data file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFile {
    /// Its name relative to the suite (never a machine's path).
    pub name: String,
    /// SHA-256 of its bytes.
    pub sha256: String,
    /// Usable rows.
    pub rows: u64,
}

/// A row that could not be used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadRow {
    /// The file's name.
    pub file: String,
    /// Its line, from 1.
    pub line: u64,
    /// Why.
    pub reason: String,
}

/// How prompts were made and continued.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decoding {
    /// The chat template's name: a file's, or a built-in's.
    pub template: String,
    /// The template's thinking switch, where it has one.
    pub enable_thinking: Option<bool>,
    /// Longest prompt and reference together, in tokens.
    pub max_length: usize,
    /// The sampling settings.
    pub generate: GenerateConfig,
}

/// What part a model plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Before fine-tuning.
    Base,
    /// With a LoRA adapter.
    Lora,
    /// All parameters trained.
    Full,
    /// Brought along for comparison.
    Other,
}

/// One model of the report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// Unique within the report.
    pub name: String,
    /// Its part.
    pub role: Role,
    /// SHA-256 over its checkpoint's files.
    pub checkpoint_sha256: String,
    /// Parameters of the model without the adapter.
    pub parameters: u64,
    /// Parameters of the adapter, 0 without one.
    pub adapter_parameters: u64,
    /// Parameters that were trained, if it was trained here.
    pub trainable_parameters: Option<u64>,
    /// Element type it was run in.
    pub dtype: String,
    /// Items with a result.
    pub items: usize,
    /// Items by state of the thinking: `closed`, `unclosed`, `close-only`, `none`.
    pub thinking: BTreeMap<ThinkState, usize>,
    /// Items that ended before a stop token (length or context).
    pub truncated: usize,
    /// How it was trained, if here.
    pub training: Option<Training>,
    /// What was found of its adapter, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterCheck>,
}

/// A training run: its totals and its curves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// Optimizer steps.
    pub steps: usize,
    /// Tokens fed.
    pub tokens: u64,
    /// One point per optimizer step.
    pub curve: Vec<CurvePoint>,
    /// Evaluations during training.
    pub evaluations: Vec<Evaluation>,
    /// The evaluation with the lowest loss (the first of equals).
    pub best: Option<Evaluation>,
    /// Name of the best checkpoint's folder.
    pub best_checkpoint: Option<String>,
    /// Whether the last evaluation is worse than the best by more than the margin.
    pub overfitting: bool,
}

/// One optimizer step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Counts from 1.
    pub step: usize,
    /// Epochs completed after it.
    pub epoch: f64,
    /// Mean negative log-likelihood of a labelled token, in nats.
    pub loss: Option<f64>,
    /// The learning rate used.
    pub learning_rate: Option<f64>,
    /// Global L2 norm of the gradient before clipping.
    pub grad_norm: Option<f64>,
}

/// An evaluation during training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// After this optimizer step.
    pub step: usize,
    /// Mean negative log-likelihood of a labelled token, in nats.
    pub loss: Option<f64>,
}

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// Higher is better (↑).
    Higher,
    /// Lower is better (↓).
    Lower,
    /// Neither: it describes.
    Neutral,
}

/// One metric of all models.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// The name in JSON and on the command line.
    pub name: String,
    /// What a table calls it, in English.
    pub title_en: String,
    /// What a table calls it, in Chinese.
    pub title_zh: String,
    /// Its unit, empty for a plain number.
    pub unit: String,
    /// Which way is better.
    pub direction: Direction,
    /// Decimals in tables.
    pub decimals: usize,
    /// Named in the verdict and drawn in `metrics.svg`.
    pub headline: bool,
    /// What sacrebleu would print beside its scores, of the metrics that are sacrebleu's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// By model name.
    pub models: BTreeMap<String, MetricValue>,
    /// The best model or models (equal values), empty where nothing can be said.
    pub best: Vec<String>,
}

/// One metric of one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricValue {
    /// The value in the table; none where it is undefined.
    pub value: Option<f64>,
    /// Pooled over the items (as corpus BLEU is), not a mean of items.
    pub pooled: bool,
    /// Items with a value.
    pub n: usize,
    /// Items without one.
    pub missing: usize,
    /// Lower end of the interval, where there is one.
    pub ci_low: Option<f64>,
    /// Upper end of the interval.
    pub ci_high: Option<f64>,
    /// What reasoning that was never closed can have done to it; only where some was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncation: Option<Bounds>,
}

/// A candidate against a baseline, over all metrics. p-values are Holm-adjusted over the metrics of one comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The model compared with.
    pub baseline: String,
    /// The model in question.
    pub candidate: String,
    /// By metric name.
    pub metrics: BTreeMap<String, MetricComparison>,
    /// What the two sides differ in although it should be equal, by the leave of whoever compared them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed: Vec<super::compare::Mismatch>,
}

/// What can be said of one metric of two models on the items that both have a value for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricComparison {
    /// Items with a value on both sides.
    pub n: usize,
    /// Items left out because a side has none.
    pub missing: usize,
    /// Value of the baseline over these items: their mean, or pooled where the metric is.
    pub mean_baseline: Option<f64>,
    /// The same of the candidate.
    pub mean_candidate: Option<f64>,
    /// Candidate minus baseline.
    pub difference: Option<f64>,
    /// Lower end of the difference's interval.
    pub ci_low: Option<f64>,
    /// Upper end of the difference's interval.
    pub ci_high: Option<f64>,
    /// Standard error of the difference; clustered where items share a source (Miller, arXiv 2411.00640).
    #[serde(default)]
    pub standard_error: Option<f64>,
    /// Sources of these items, where some share one: whole sources are drawn for the interval and flipped for the p-value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clusters: Option<usize>,
    /// Which test the p-value is of.
    #[serde(default)]
    pub test: PairedTest,
    /// Two-sided p of that test.
    pub p_value: Option<f64>,
    /// The same, Holm-adjusted over the metrics of the comparison.
    pub p_adjusted: Option<f64>,
    /// `***` below 0.001, `**` below 0.01, `*` below 0.05 (adjusted), else empty.
    pub mark: String,
    /// The difference in percent of the baseline's value; positive where it is better, or larger if the metric has no
    /// direction. None where the baseline is zero.
    pub improvement_percent: Option<f64>,
    /// The smallest true difference found four times out of five with these items (two-sided 5 %, normal approximation).
    pub detectable: Option<f64>,
    /// Items on which the candidate is better.
    pub wins: usize,
    /// Items on which it is worse.
    pub losses: usize,
    /// What follows.
    pub verdict: Verdict,
}

/// Where a paired p-value comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PairedTest {
    /// The sign-flip permutation test.
    #[default]
    SignFlip,
    /// The same, the differences of a source changing their sign together.
    ClusteredSignFlip,
    /// McNemar's exact test, where every value is 0 or 1.
    Mcnemar,
}

/// What a comparison says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Better, significantly (adjusted p below 0.05).
    Better,
    /// Worse, significantly.
    Worse,
    /// Significantly different in a metric without direction.
    Different,
    /// These items cannot tell.
    Unclear,
    /// Nothing to compare.
    Undefined,
}

/// One item's values, without texts (which are in the predictions).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ItemRow {
    /// Its id.
    pub id: String,
    /// Its question.
    pub question: String,
    /// The source that it shares with other items, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// By model name; a model without a result is absent.
    pub models: BTreeMap<String, ItemValues>,
}

/// One model's values on one item.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ItemValues {
    /// State of the thinking.
    pub thinking: ThinkState,
    /// Why it ended.
    pub stop: StopReason,
    /// Generated tokens, the stop token included.
    pub tokens: usize,
    /// By metric name; none where undefined.
    pub metrics: BTreeMap<String, Option<f64>>,
    /// What the item weighs in metrics that are pooled over the items: scored tokens or bytes. Absent for means of items.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub weights: BTreeMap<String, f64>,
}

impl ItemValues {
    /// The value and the weight of a metric, the weight none where its corpus value is a mean of items.
    pub fn of(&self, metric: &str) -> Option<(f64, Option<f64>)> {
        Some((self.metrics.get(metric).copied()??, self.weights.get(metric).copied()))
    }
}

/// An item in full.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// Its id.
    pub id: String,
    /// The question.
    pub question: String,
    /// The reference's reasoning.
    pub think: String,
    /// The reference's answer.
    pub answer: String,
    /// By model name.
    pub models: BTreeMap<String, ExampleText>,
}

/// What one model generated, taken apart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExampleText {
    /// The reasoning, without its tags.
    pub think: String,
    /// The answer.
    pub answer: String,
    /// State of the thinking.
    pub thinking: ThinkState,
    /// Why it ended.
    pub stop: StopReason,
}

/// Everything that may differ between two equal runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// Karat's version.
    #[serde(default)]
    pub karat: String,
    /// The machine: `os`, `cpu`, `cores`, `memory` ...
    #[serde(default)]
    pub machine: BTreeMap<String, String>,
    /// The backends used.
    #[serde(default)]
    pub plugins: Vec<Plugin>,
    /// Cost by model name.
    #[serde(default)]
    pub costs: BTreeMap<String, Cost>,
    /// Seconds by stage: `train lora`, `generate base` ...
    #[serde(default)]
    pub seconds: BTreeMap<String, f64>,
    /// Paths by what they hold.
    #[serde(default)]
    pub paths: BTreeMap<String, String>,
    /// How far the backend repeats itself, if somebody tried (`karat report --determinism FILE`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub determinism: Option<Certificate>,
    /// Anything else worth keeping.
    #[serde(default)]
    pub notes: BTreeMap<String, String>,
}

/// A backend that was loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plugin {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of the shared library.
    pub sha256: String,
    /// Where it was found.
    pub path: String,
}

/// What one model cost on this machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Seconds of training.
    #[serde(default)]
    pub train_seconds: Option<f64>,
    /// Seconds of scoring the references.
    #[serde(default)]
    pub score_seconds: Option<f64>,
    /// Seconds of generating.
    #[serde(default)]
    pub generate_seconds: Option<f64>,
    /// Generated tokens.
    #[serde(default)]
    pub generated_tokens: Option<u64>,
    /// Peak memory in bytes.
    #[serde(default)]
    pub peak_memory: Option<u64>,
    /// The device it ran on.
    #[serde(default)]
    pub device: String,
    /// Threads used.
    #[serde(default)]
    pub threads: usize,
    /// Kernels chosen at run time.
    #[serde(default)]
    pub kernels: Vec<String>,
}

impl Report {
    /// How many flipped items a report shows in full.
    pub const LISTED_FLIPS: usize = 300;

    /// The JSON text: sorted keys, two spaces, a final line break.
    ///
    /// # Errors
    /// If serde cannot represent it, which no report built here runs into.
    pub fn to_json(&self) -> Result<String> {
        let mut value =
            serde_json::to_value(self).map_err(|e| Error::failed("could not write the report as JSON").because(e))?;
        value.sort_all_objects();
        Ok(format!("{value:#}\n"))
    }

    /// Reads the JSON text; `place` (a file name) is for errors.
    ///
    /// # Errors
    /// Text that is no JSON, no report, or a report of another schema version.
    pub fn from_json(text: &str, place: &str) -> Result<Report> {
        let no_report = || {
            Error::data("this is no report: it is not JSON with a whole number `schema_version`")
                .at(place)
                .help("point at the report.json that `karat run` wrote")
        };
        let value: serde_json::Value = serde_json::from_str(text).map_err(|e| no_report().because(e))?;
        let found = value.get("schema_version").and_then(serde_json::Value::as_u64).ok_or_else(no_report)?;
        if found != u64::from(SCHEMA_VERSION) {
            let remedy = if found > u64::from(SCHEMA_VERSION) {
                "it was made by a newer karat: use that one to read it"
            } else {
                "it was made by an older karat: make it again with `karat run`"
            };
            return Err(Error::data(format!(
                "the report has schema version {found}, this karat reads version {SCHEMA_VERSION}"
            ))
            .at(place)
            .help(remedy));
        }
        serde_json::from_str(text).map_err(|e| {
            Error::data("the report is damaged").at(format!("{place}:{}:{}", e.line(), e.column())).because(e)
        })
    }

    /// The same report without what is volatile: what a golden test compares and a README quotes.
    #[must_use]
    pub fn without_environment(&self) -> Report {
        Report { environment: Environment::default(), ..self.clone() }
    }

    /// The model of that name.
    pub fn model(&self, name: &str) -> Option<&Model> {
        self.models.iter().find(|m| m.name == name)
    }

    /// The metric of that name.
    pub fn metric(&self, name: &str) -> Option<&Metric> {
        self.metrics.iter().find(|m| m.name == name)
    }

    /// The comparison of `candidate` with `baseline`.
    pub fn comparison(&self, baseline: &str, candidate: &str) -> Option<&Comparison> {
        self.comparisons.iter().find(|c| c.baseline == baseline && c.candidate == candidate)
    }

    /// The comparisons with the base model, or all where there is no base: the improvement columns of a table.
    pub fn against_base(&self) -> Vec<&Comparison> {
        self.against_base_of(&self.comparisons)
    }

    /// Those of `comparisons` that are with the base model.
    pub fn against_base_of<'a>(&self, comparisons: &'a [Comparison]) -> Vec<&'a Comparison> {
        let base = self.models.iter().find(|m| m.role == Role::Base);
        comparisons.iter().filter(|c| base.is_none_or(|b| b.name == c.baseline)).collect()
    }
}

impl Metric {
    /// The title in `language`.
    pub fn title(&self, language: Language) -> &str {
        let title = match language {
            Language::English => &self.title_en,
            Language::Chinese => &self.title_zh,
        };
        if title.is_empty() { &self.name } else { title }
    }

    /// `↑`, `↓` or nothing.
    pub fn arrow(&self) -> &'static str {
        match self.direction {
            Direction::Higher => "↑",
            Direction::Lower => "↓",
            Direction::Neutral => "",
        }
    }
}

impl Cost {
    /// Generated tokens a second.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let seconds = self.generate_seconds.filter(|s| *s > 0.0)?;
        Some(self.generated_tokens? as f64 / seconds)
    }
}
