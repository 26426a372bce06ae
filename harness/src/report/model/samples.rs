//! Items that were answered several times.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What several sampled answers to each item show.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Samples {
    /// Answers to each item.
    pub count: usize,
    /// By model and metric; only metrics that read what was generated.
    pub models: BTreeMap<String, BTreeMap<String, SampleValues>>,
}

/// One metric of one model over all samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampleValues {
    /// Items with a value in every sample.
    pub n: usize,
    /// Mean over items and samples.
    pub mean: f64,
    /// Variance between samples of one item, the mean over items.
    pub between_samples: f64,
    /// Variance between items, of their means over all samples there might be.
    pub between_items: f64,
    /// By k, the probability that one of k answers is right (pass@k, Chen et al. 2021), where the
    /// metric has a notion of right.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pass_at: BTreeMap<u64, f64>,
}
