//! Paired statistics.

/// A paired comparison of one metric of two models on the same items.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct PairedComparison {
    /// Items compared.
    pub n: usize,
    /// Mean over the items of the first model.
    pub mean_a: f64,
    /// Mean over the items of the second model.
    pub mean_b: f64,
    /// `mean_b - mean_a`.
    pub difference: f64,
    /// Lower end of the interval of the difference.
    pub ci_low: f64,
    /// Upper end of the interval of the difference.
    pub ci_high: f64,
    /// Two-sided p-value of the sign-flip permutation test.
    pub p_value: f64,
}

/// How the paired statistics are drawn; part of every report, so that it can be made again.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct StatsOptions {
    /// Seed of the bootstrap and of the permutations.
    pub seed: u64,
    /// Resamples of the percentile bootstrap, and permutations where they are not enumerated.
    pub resamples: usize,
    /// Coverage of the interval, e.g. 0.95.
    pub confidence: f64,
}
