//! Items: the values of all of them, the texts of a few.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::backend::StopReason;
use crate::eval::think::ThinkState;

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
    /// Why it ended; none where nobody knows.
    pub stop: Option<StopReason>,
    /// Generated tokens, the stop token included; none where nobody knows.
    pub tokens: Option<usize>,
    /// By metric name; none where undefined.
    pub metrics: BTreeMap<String, Option<f64>>,
    /// What the item weighs in metrics that are pooled over the items: scored tokens or bytes.
    /// Absent for means of items.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub weights: BTreeMap<String, f64>,
}

impl ItemValues {
    /// The value and the weight of a metric, the weight none where its corpus value is a mean of
    /// items.
    pub fn of(&self, metric: &str) -> Option<(f64, Option<f64>)> {
        Some((self.metrics.get(metric).copied()??, self.weights.get(metric).copied()))
    }
}

/// An item in full.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ItemExample {
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

/// A generated text of one model, split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExampleText {
    /// The reasoning, without its tags.
    pub think: String,
    /// The answer.
    pub answer: String,
    /// State of the thinking.
    pub thinking: ThinkState,
    /// Why it ended; none where nobody knows.
    pub stop: Option<StopReason>,
}
