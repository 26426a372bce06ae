//! A metric as the tables show it, and its value for each model.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Language;
use crate::eval::metric::Bounds;
pub use crate::eval::metric::Direction;

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
