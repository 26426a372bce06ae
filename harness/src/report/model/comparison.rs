//! Comparisons of two models, metric by metric.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::eval::stats::Undetectable;
use crate::report::compare::Mismatch;

/// A candidate against a baseline, over all metrics. p-values are Holm-adjusted over the metrics of
/// one comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The model compared with.
    pub baseline: String,
    /// The model in question.
    pub candidate: String,
    /// By metric name.
    pub metrics: BTreeMap<String, MetricComparison>,
    /// What the two sides differ in although it should be equal, by the leave of whoever compared
    /// them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed: Vec<Mismatch>,
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
    /// Standard error of the difference; clustered where items share a source (Miller, arXiv
    /// 2411.00640).
    #[serde(default)]
    pub standard_error: Option<f64>,
    /// Sources of these items, where some share one: whole sources are drawn for the interval and
    /// flipped for the p-value.
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
    /// The difference in percent of the baseline's value; positive where it is better, or larger if
    /// the metric has no direction. None where the baseline is zero.
    pub improvement_percent: Option<f64>,
    /// The smallest true difference that this test of these items finds four times out of five at
    /// the level of Holm's worst case: two-sided 5 % over the metrics tested together.
    pub detectable: Option<f64>,
    /// Why no difference, however large, would be found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undetectable: Option<Undetectable>,
    /// How many items (sources, where some share one) would find a true difference of the size
    /// observed four times out of five, at that level; only where the verdict is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needed: Option<u64>,
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
