//! The models, and how they were trained.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{AdapterCheck, Fingerprints, MetricValue};
use crate::eval::think::ThinkState;

/// What part a model plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Before fine-tuning.
    Base,
    /// Another model that the others are compared with.
    Baseline,
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
    /// SHA-256 over its checkpoint's files; empty, `null` in JSON, where nobody knows.
    #[serde(with = "super::unknown")]
    pub checkpoint_sha256: String,
    /// What it was asked, where that is not what [`Report::fingerprints`](super::Report) say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprints: Option<Fingerprints>,
    /// Parameters of the model without the adapter; none where nobody knows.
    pub parameters: Option<u64>,
    /// Parameters of the adapter, 0 without one; none where nobody knows.
    pub adapter_parameters: Option<u64>,
    /// Parameters that were trained, if it was trained here.
    pub trainable_parameters: Option<u64>,
    /// Element type it was run in; empty, `null` in JSON, where nobody knows.
    #[serde(with = "super::unknown")]
    pub dtype: String,
    /// Items with a result.
    pub items: usize,
    /// Items by state of the thinking: `closed`, `unclosed`, `close-only`, `none`.
    pub thinking: BTreeMap<ThinkState, usize>,
    /// Items that ended before a stop token (length or context), of those of which that is known;
    /// none where it is of none.
    pub truncated: Option<usize>,
    /// Of how many items it is known why they ended; only where not of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_known: Option<usize>,
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
    /// What the checkpoint was chosen by, where not by the loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<ChosenBy>,
    /// The checkpoints that were measured on the items, by rising step, the model's own among them;
    /// only where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checkpoints: Vec<CheckpointValues>,
    /// Whether the last evaluation is worse than the best by more than the margin; none where
    /// nothing was evaluated.
    pub overfitting: Option<bool>,
}

/// A checkpoint chosen by a metric of the validation part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChosenBy {
    /// The metric.
    pub metric: String,
    /// Items of the validation part.
    pub items: usize,
    /// The step that was chosen.
    pub step: usize,
    /// The value of each checkpoint that was kept, by its step.
    pub values: Vec<(usize, Option<f64>)>,
}

/// The metrics of a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckpointValues {
    /// After so many optimizer steps.
    pub step: usize,
    /// By metric name.
    pub metrics: BTreeMap<String, MetricValue>,
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
