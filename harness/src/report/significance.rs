//! What may be said of a difference: pairing, Holm over the metrics of a comparison, marks and verdicts.

use std::collections::BTreeMap;

use crate::eval::stats::{
    self, Interval, StatsOptions, bootstrap_mean_ci, compare_paired, holm, minimum_detectable_difference,
};

use super::model::{Direction, MetricComparison, Verdict};

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
    let (a, b): (Vec<f64>, Vec<f64>) =
        metric.baseline.iter().zip(&metric.candidate).filter_map(|(a, b)| Some(((*a)?, (*b)?))).unzip();
    let sign = if metric.direction == Direction::Lower { -1.0 } else { 1.0 };
    let mut comparison = MetricComparison {
        n: a.len(),
        missing: metric.baseline.len() - a.len(),
        mean_baseline: None,
        mean_candidate: None,
        difference: None,
        ci_low: None,
        ci_high: None,
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
    // Only finite values get here, as many on one side as on the other.
    let Ok(paired) = compare_paired(&a, &b, options) else { return comparison };
    let (from, to) = metric.pooled.unwrap_or((paired.mean_a, paired.mean_b));
    comparison.improvement_percent = Some(100.0 * sign * (to - from) / from.abs()).filter(|x| x.is_finite());
    comparison.mean_baseline = Some(paired.mean_a);
    comparison.mean_candidate = Some(paired.mean_b);
    comparison.difference = Some(paired.difference);
    comparison.ci_low = Some(paired.ci_low);
    comparison.ci_high = Some(paired.ci_high);
    comparison.p_value = Some(paired.p_value);
    let differences: Vec<f64> = a.iter().zip(&b).map(|(a, b)| b - a).collect();
    let detectable = minimum_detectable_difference(&differences, options.confidence, POWER);
    // Without spread the approximation says 0, which no test can see.
    comparison.detectable = Some(detectable).filter(|d| d.is_finite() && *d > 0.0);
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

/// The mean of `values` and its bootstrap interval (none for a single value); none without values.
pub(super) fn mean_interval(values: &[f64], options: &StatsOptions) -> Option<(f64, Option<(f64, f64)>)> {
    match values {
        [] => None,
        [x] => Some((*x, None)),
        _ => {
            let Interval { low, high } = bootstrap_mean_ci(values, options);
            Some((stats::mean(values), Some((low, high))))
        }
    }
}
