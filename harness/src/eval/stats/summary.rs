//! Mean, deviation and standard errors.

use std::collections::BTreeMap;
use std::hash::Hash;

/// Sum with Neumaier's compensation: the error does not grow with the number of terms.
pub fn sum(values: impl IntoIterator<Item = f64>) -> f64 {
    let (mut sum, mut lost) = (0.0f64, 0.0f64);
    for value in values {
        let next = sum + value;
        lost += if sum.abs() >= value.abs() { (sum - next) + value } else { (value - next) + sum };
        sum = next;
    }
    sum + lost
}

/// Mean; NaN of nothing.
pub fn mean(values: &[f64]) -> f64 {
    sum(values.iter().copied()) / values.len() as f64
}

/// Standard deviation of a sample (n - 1); NaN below two values.
pub fn standard_deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return f64::NAN;
    }
    let mean = mean(values);
    (sum(values.iter().map(|v| (v - mean).powi(2))) / (values.len() - 1) as f64).sqrt()
}

/// Standard error of the mean, items being independent: `sd / sqrt(n)`.
pub fn standard_error(values: &[f64]) -> f64 {
    standard_deviation(values) / (values.len() as f64).sqrt()
}

/// Standard error of the mean where items of one cluster are related (Miller, arXiv 2411.00640):
/// `sqrt(SE^2 + 1/n^2 * sum over clusters of sum over i != j of (s_i - m)(s_j - m))`.
///
/// Equal to [`standard_error`] where every item is its own cluster. NaN below two values, or if
/// `clusters` is of another length.
pub fn clustered_standard_error<C: Ord + Hash>(values: &[f64], clusters: &[C]) -> f64 {
    if values.len() != clusters.len() || values.len() < 2 {
        return f64::NAN;
    }
    let n = values.len() as f64;
    let mean = mean(values);
    let mut by_cluster: BTreeMap<&C, Vec<f64>> = BTreeMap::new();
    for (value, cluster) in values.iter().zip(clusters) {
        by_cluster.entry(cluster).or_default().push(value - mean);
    }
    // sum over i != j of d_i d_j = (sum of d)^2 - sum of d^2
    let cross = sum(by_cluster
        .values()
        .map(|deviations| sum(deviations.iter().copied()).powi(2) - sum(deviations.iter().map(|d| d * d))));
    (standard_error(values).powi(2) + cross / (n * n)).max(0.0).sqrt()
}

/// The q-quantile of sorted values, linear between neighbours (numpy's default); NaN of nothing.
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = q.clamp(0.0, 1.0) * last as f64;
    let below = at.floor() as usize;
    let share = at - below as f64;
    let (low, high) = (sorted[below], sorted[(below + 1).min(last)]);
    low + (high - low) * share
}
