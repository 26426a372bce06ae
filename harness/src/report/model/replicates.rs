//! Recipes that were trained with several seeds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Two recipes compared over items and seeds, or one with a model of which there is one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecipeComparison {
    /// The recipe, or model, that is compared with.
    pub baseline: String,
    /// The recipe in question.
    pub candidate: String,
    /// Seeds of the baseline.
    pub baseline_seeds: usize,
    /// Seeds of the candidate.
    pub candidate_seeds: usize,
    /// By metric name; none of metrics that are no mean of items.
    pub metrics: BTreeMap<String, RecipeMetric>,
}

/// One metric of two recipes, over the items that every replicate has a value for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecipeMetric {
    /// Items.
    pub n: usize,
    /// Mean of the baseline over items and seeds.
    pub mean_baseline: f64,
    /// The same of the candidate.
    pub mean_candidate: f64,
    /// Candidate minus baseline.
    pub difference: f64,
    /// Lower end of its two-level interval: of other items and of other seeds.
    pub ci_low: Option<f64>,
    /// Upper end.
    pub ci_high: Option<f64>,
    /// Two-sided p-value.
    pub p_value: Option<f64>,
    /// The same, Holm-adjusted over the metrics of the comparison.
    pub p_adjusted: Option<f64>,
    /// The part of the difference's variance that is the choice of seeds, 0 to 1.
    pub seed_share: Option<f64>,
    /// By how much two seeds of one recipe differ: the root of the mean square.
    pub seed_difference: Option<f64>,
    /// The recipes differ by less than two seeds of one recipe do.
    pub within_seeds: Option<bool>,
}
