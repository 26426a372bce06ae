//! What may be said of a difference: pairing, Holm over the metrics of a comparison, marks and verdicts.

use std::collections::BTreeMap;

use crate::eval::stats::{
    self, Agreement, Interval, StatsOptions, cluster_count, clustered_mean_ci, clustered_sign_flip_p,
    clustered_standard_error, detectable_with, holm,
};

use super::model::{Direction, MetricComparison, PairedTest, Verdict};

/// Adjusted p-values below this are called significant.
const ALPHA: f64 = 0.05;
/// A true difference of the reported size is found four times out of five.
const POWER: f64 = 0.8;

/// One metric of two models, item by item.
pub(super) struct Paired<'a> {
    pub metric: &'a str,
    pub direction: Direction,
    pub baseline: Vec<Option<f64>>,
    pub candidate: Vec<Option<f64>>,
    /// The source of each item.
    pub clusters: Vec<&'a str>,
    /// The corpus values of a pooled metric: its improvement in percent is theirs, not that of the means of items.
    pub pooled: Option<(f64, f64)>,
}

/// Compares every metric on the items that both models have a value for, then adjusts the p-values together.
pub(super) fn compare(metrics: Vec<Paired<'_>>, options: &StatsOptions) -> BTreeMap<String, MetricComparison> {
    let mut compared: Vec<(&str, Direction, MetricComparison)> =
        metrics.into_iter().map(|m| (m.metric, m.direction, one(&m, options))).collect();
    let tested: Vec<usize> = (0..compared.len()).filter(|&i| compared[i].2.p_value.is_some()).collect();
    let p: Vec<f64> = tested.iter().filter_map(|&i| compared[i].2.p_value).collect();
    for (&i, adjusted) in tested.iter().zip(holm(&p)) {
        let (_, direction, c) = &mut compared[i];
        c.p_adjusted = Some(adjusted);
        c.mark = mark(adjusted).to_string();
        c.verdict = verdict(*direction, adjusted, c.difference.unwrap_or(0.0));
    }
    compared.into_iter().map(|(name, _, c)| (name.to_string(), c)).collect()
}

fn one(metric: &Paired<'_>, options: &StatsOptions) -> MetricComparison {
    let both = metric.baseline.iter().zip(&metric.candidate).zip(&metric.clusters);
    let ((a, b), clusters): ((Vec<f64>, Vec<f64>), Vec<&str>) =
        both.filter_map(|((a, b), cluster)| Some((((*a)?, (*b)?), *cluster))).unzip();
    let sign = if metric.direction == Direction::Lower { -1.0 } else { 1.0 };
    let mut comparison = MetricComparison {
        n: a.len(),
        missing: metric.baseline.len() - a.len(),
        mean_baseline: None,
        mean_candidate: None,
        difference: None,
        ci_low: None,
        ci_high: None,
        standard_error: None,
        clusters: None,
        test: PairedTest::SignFlip,
        p_value: None,
        p_adjusted: None,
        mark: String::new(),
        improvement_percent: None,
        detectable: None,
        wins: a.iter().zip(&b).filter(|(a, b)| sign * (**b - **a) > 0.0).count(),
        losses: a.iter().zip(&b).filter(|(a, b)| sign * (**b - **a) < 0.0).count(),
        verdict: Verdict::Undefined,
    };
    if a.is_empty() {
        return comparison;
    }
    let (mean_a, mean_b) = (stats::mean(&a), stats::mean(&b));
    let (from, to) = metric.pooled.unwrap_or((mean_a, mean_b));
    comparison.improvement_percent = Some(100.0 * sign * (to - from) / from.abs()).filter(|x| x.is_finite());
    comparison.mean_baseline = Some(mean_a);
    comparison.mean_candidate = Some(mean_b);
    let differences: Vec<f64> = a.iter().zip(&b).map(|(a, b)| b - a).collect();
    comparison.difference = Some(stats::mean(&differences));
    let finite = |x: f64| Some(x).filter(|x| x.is_finite());
    // Where every item is its own source these are the plain interval, test and error, to the bit.
    let count = cluster_count(&clusters);
    comparison.clusters = Some(count).filter(|count| *count < a.len());
    let Interval { low, high } = clustered_mean_ci(&differences, &clusters, options);
    (comparison.ci_low, comparison.ci_high) = (finite(low), finite(high));
    let (test, p) = match (comparison.clusters, Agreement::of(&a, &b)) {
        (Some(_), _) => (PairedTest::ClusteredSignFlip, clustered_sign_flip_p(&differences, &clusters, options)),
        (None, Some(agreement)) => (PairedTest::Mcnemar, agreement.p_value()),
        (None, None) => (PairedTest::SignFlip, clustered_sign_flip_p(&differences, &clusters, options)),
    };
    comparison.test = test;
    comparison.p_value = finite(p);
    let error = clustered_standard_error(&differences, &clusters);
    comparison.standard_error = finite(error);
    // Without spread the approximation says 0, which no test can see.
    comparison.detectable = finite(detectable_with(error, options.confidence, POWER)).filter(|d| *d > 0.0);
    comparison
}

fn mark(p: f64) -> &'static str {
    match p {
        p if p < 0.001 => "***",
        p if p < 0.01 => "**",
        p if p < ALPHA => "*",
        _ => "",
    }
}

fn verdict(direction: Direction, p: f64, difference: f64) -> Verdict {
    match direction {
        _ if p >= ALPHA || difference == 0.0 => Verdict::Unclear,
        Direction::Neutral => Verdict::Different,
        Direction::Higher if difference > 0.0 => Verdict::Better,
        Direction::Lower if difference < 0.0 => Verdict::Better,
        _ => Verdict::Worse,
    }
}

/// The mean of `values` and its bootstrap interval, whole `clusters` being drawn (none for a single one); none without
/// values.
pub(super) fn mean_interval(
    values: &[f64],
    clusters: &[&str],
    options: &StatsOptions,
) -> Option<(f64, Option<(f64, f64)>)> {
    match values {
        [] => None,
        [x] => Some((*x, None)),
        _ => {
            let Interval { low, high } = clustered_mean_ci(values, clusters, options);
            Some((stats::mean(values), Some((low, high)).filter(|i| i.0.is_finite() && i.1.is_finite())))
        }
    }
}
