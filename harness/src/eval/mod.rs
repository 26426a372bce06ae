//! Measuring a model: items, predictions, metrics, statistics.

pub mod choice;
pub mod decision;
pub mod determinism;
pub mod flips;
pub mod metric;
pub mod stats;
pub mod think;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::backend::StopReason;

pub use choice::Choice;
pub use decision::Decision;

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
    /// What there is to choose from, if it is a multiple-choice item.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choice: Option<Choice>,
    /// What a right answer decides, if the question is one of yes or no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
}

/// What one model generated for one item.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// The item's id.
    pub id: String,
    /// The text as generated, special tokens such as `<think>` kept, the stop token removed.
    pub text: String,
    /// The generated ids, the stop id included; none where nobody knows them (a text from
    /// elsewhere).
    pub ids: Option<Vec<u32>>,
    /// Why it ended; none where nobody knows.
    pub stop: Option<StopReason>,
}

/// Teacher-forced log-likelihood of one item's reference under one model, think and answer apart.
///
/// The sums are over the tokens of each part; `bytes` is the UTF-8 length of the part's text, so
/// that `-sum / ln 2 / bytes` is bits per byte and `-sum / tokens` nats per token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReferenceScore {
    /// The item's id.
    pub id: String,
    /// The reasoning, with its tags.
    pub think: PartScore,
    /// The answer, with the end-of-turn token.
    pub answer: PartScore,
    /// The options of a multiple-choice item, in order; empty if it is none, or an option did not
    /// fit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<OptionScore>,
}

impl ReferenceScore {
    /// Think and answer together.
    pub fn whole(&self) -> PartScore {
        let (think, answer) = (&self.think, &self.answer);
        PartScore {
            logprob: think.logprob + answer.logprob,
            tokens: think.tokens + answer.tokens,
            bytes: think.bytes + answer.bytes,
            greedy: think.greedy + answer.greedy,
        }
    }
}

/// The log-likelihood of one option as the whole answer; the tokens of the option's text alone
/// count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OptionScore {
    /// Sum of natural-log probabilities (at most 0).
    pub logprob: f64,
    /// Tokens in it.
    pub tokens: u64,
    /// Characters (Unicode scalar values) of its text.
    pub characters: u64,
    /// UTF-8 bytes of its text.
    pub bytes: u64,
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

/// One model's result on one item: the text and its metrics. A metric that is undefined for the
/// item is `None`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ItemResult {
    /// The prediction.
    pub prediction: Prediction,
    /// The reference under this model, if scored.
    pub reference: Option<ReferenceScore>,
    /// Metric name to value.
    pub metrics: BTreeMap<String, Option<f64>>,
}
