//! Measuring a model: items, predictions, metrics, statistics.

pub mod metric;
pub mod stats;
pub mod think;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::backend::StopReason;

/// One held-out item: what is asked and what a right answer looks like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// Stable within a data set.
    pub id: String,
    /// The question, as the user's turn.
    pub question: String,
    /// The reference reasoning, empty if the data has none.
    pub think: String,
    /// The reference answer.
    pub answer: String,
    /// Items that share a source (clustered standard errors); the id where there is none.
    pub cluster: String,
}

/// What one model generated for one item.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// The item's id.
    pub id: String,
    /// The text as generated, special tokens such as `<think>` kept, the stop token removed.
    pub text: String,
    /// The generated ids, the stop id included.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub stop: StopReason,
}

/// Teacher-forced log-likelihood of one item's reference under one model, think and answer apart.
///
/// The sums are over the tokens of each part; `bytes` is the UTF-8 length of the part's text, so that
/// `-sum / ln 2 / bytes` is bits per byte and `-sum / tokens` nats per token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReferenceScore {
    /// The item's id.
    pub id: String,
    /// The reasoning, with its tags.
    pub think: PartScore,
    /// The answer, with the end-of-turn token.
    pub answer: PartScore,
}

/// A sum of log-probabilities over one part of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PartScore {
    /// Sum of natural-log probabilities (at most 0).
    pub logprob: f64,
    /// Tokens in it.
    pub tokens: u64,
    /// UTF-8 bytes in it.
    pub bytes: u64,
    /// Tokens that were the most probable one.
    pub greedy: u64,
}

/// One model's result on one item: the text and its metrics. A metric that is undefined for the item is `None`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ItemResult {
    /// The prediction.
    pub prediction: Prediction,
    /// The reference under this model, if scored.
    pub reference: Option<ReferenceScore>,
    /// Metric name to value.
    pub metrics: BTreeMap<String, Option<f64>>,
}
