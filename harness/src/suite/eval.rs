//! `[eval]`, `[stats]` and `[gate]`: what is measured and how it is judged.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::CheckpointChoice;
use crate::data::tokens::StopToken;

fn is_one(count: &usize) -> bool {
    *count == 1
}

/// The `[eval]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvalConfig {
    /// The backend that evaluates; empty is the one that trained.
    pub backend: String,
    /// Held-out items to use, drawn as Python's `random.sample` draws; 0 is all.
    pub items: usize,
    /// Longest generation. Where this and the three that follow are absent, the base model's
    /// `generation_config.json` says, if it does; else 2048 and greedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_new_tokens: Option<usize>,
    /// 0 is greedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Nucleus; 1 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// Most probable tokens kept; 0 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// Answers that every item gets; above 1 with a temperature above 0 alone, for greedy ones are
    /// all the same.
    #[serde(skip_serializing_if = "is_one")]
    pub samples: usize,
    /// Rows decoded together; 0 lets the backend choose.
    pub batch_size: usize,
    /// The device that evaluates; absent, the one that trains.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Options of the backend that evaluates, by its own names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, serde_json::Value>,
    /// What the template is told of thinking; absent, nothing.
    pub enable_thinking: Option<bool>,
    /// Tokens that end a text besides those that the model's files name, by text or id:
    /// `stop = ["<|im_end|>"]`. Training examples end there too.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<StopToken>,
    /// Metrics, in the order of the report.
    pub metrics: Vec<String>,
    /// Which checkpoints of a training are measured: `"best"` or `"last"` (over `checkpoint` of
    /// `[train]`), and beside that one all that were kept (`"all"`), or those of some steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoints: Option<Checkpoints>,
    /// What may differ between how models of the suite are asked: names of
    /// [`MUST_BE_EQUAL`](crate::report::compare::MUST_BE_EQUAL). What does is told in the report.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// Items shown in full.
    pub show: usize,
    /// Plain text that is not the task, to see what is forgotten.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub general: Option<GeneralConfig>,
}

/// Checkpoints of a training that are measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected \"best\", \"last\", \"all\" or a list of steps")]
pub enum Checkpoints {
    /// By a word.
    Named(NamedCheckpoints),
    /// Those of these optimizer steps, beside the one that the table speaks of.
    Steps(Vec<usize>),
}

/// Checkpoints by a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NamedCheckpoints {
    /// The one with the lowest evaluation loss.
    Best,
    /// The last.
    Last,
    /// Every one that was kept.
    All,
}

impl Checkpoints {
    /// Which one the tables speak of, if this says.
    pub fn measured(&self) -> Option<CheckpointChoice> {
        match self {
            Checkpoints::Named(NamedCheckpoints::Best) => Some(CheckpointChoice::Best),
            Checkpoints::Named(NamedCheckpoints::Last) => Some(CheckpointChoice::Last),
            _ => None,
        }
    }

    /// Whether several of a training are measured.
    pub fn over_time(&self) -> bool {
        self.measured().is_none()
    }

    /// The steps that are named.
    pub fn steps(&self) -> &[usize] {
        match self {
            Checkpoints::Steps(steps) => steps,
            Checkpoints::Named(_) => &[],
        }
    }

    /// Whether the checkpoint of `step` is one of them.
    pub fn asks_for(&self, step: usize) -> bool {
        match self {
            Checkpoints::Steps(steps) => steps.contains(&step),
            Checkpoints::Named(named) => *named == NamedCheckpoints::All,
        }
    }
}

/// The `[eval.general]` table: texts that every model is scored on beside the items.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GeneralConfig {
    /// The texts: of a `.jsonl` file the `text` of every line, of any other the paragraphs.
    pub file: PathBuf,
    /// Use only the first so many; 0 is all.
    #[serde(default)]
    pub limit: usize,
}

impl Default for EvalConfig {
    fn default() -> Self {
        EvalConfig {
            backend: String::new(),
            items: 0,
            max_new_tokens: None,
            temperature: None,
            top_p: None,
            top_k: None,
            samples: 1,
            batch_size: 0,
            device: None,
            options: BTreeMap::new(),
            enable_thinking: None,
            stop: Vec::new(),
            metrics: DEFAULT_METRICS.map(String::from).to_vec(),
            checkpoints: None,
            allow: Vec::new(),
            show: 5,
            general: None,
        }
    }
}

/// The metrics of a report unless the suite names others.
pub const DEFAULT_METRICS: [&str; 17] = [
    "nll",
    "nll_think",
    "nll_answer",
    "perplexity",
    "bits_per_byte",
    "bleu",
    "rouge1",
    "rouge2",
    "rougeL",
    "vocab_precision",
    "vocab_recall",
    "vocab_f1",
    "key_points",
    "exact_match",
    "format",
    "truncated",
    "repetition",
];

/// The `[stats]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StatsConfig {
    /// Resamples of the bootstrap and of the permutation test: 100 to
    /// [`MOST_RESAMPLES`](crate::eval::stats::StatsOptions::MOST_RESAMPLES).
    pub resamples: usize,
    /// Coverage of intervals.
    pub confidence: f64,
}

impl Default for StatsConfig {
    fn default() -> Self {
        StatsConfig { resamples: 10_000, confidence: 0.95 }
    }
}

/// The `[gate]` table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GateConfig {
    /// Non-inferiority margins by metric, in the metric's unit: a model may be worse than its
    /// baseline by at most this.
    pub margins: BTreeMap<String, f64>,
}

/// The `[verdict]` table: which model one would ship.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerdictConfig {
    /// The metric that decides.
    pub primary: String,
    /// By metric, how much worse than the baseline a model may be at most, in the metric's unit;
    /// `general_bits_per_byte` and `general_nll` are those of general text.
    #[serde(default)]
    pub floors: BTreeMap<String, f64>,
}
