//! What may be said of a difference: pairing, Holm over the metrics of a comparison, marks and verdicts.

use std::collections::BTreeMap;

use crate::eval::stats::{PairedComparison, StatsOptions};

use super::model::{Direction, MetricComparison, Verdict};

/// Adjusted p-values below this are called significant.
const ALPHA: f64 = 0.05;
/// `z(0.975) + z(0.80)`: a true difference of so many standard errors is found four times out of five.
const POWER_80: f64 = 1.959_963_984_540_054 + 0.841_621_233_572_914_3;

/// One metric of two models, item by item.
pub(super) struct Paired<'a> {
    pub metric: &'a str,
    pub direction: Direction,
    pub baseline: Vec<Option<f64>>,
    pub candidate: Vec<Option<f64>>,
    /// The values in the table, for the improvement in percent.
    pub table: Option<(f64, f64)>,
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
    let improvement = metric.table.filter(|t| t.0 != 0.0).map(|(from, to)| 100.0 * sign * (to - from) / from.abs());
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
        improvement_percent: improvement,
        detectable: None,
        wins: a.iter().zip(&b).filter(|(a, b)| sign * (**b - **a) > 0.0).count(),
        losses: a.iter().zip(&b).filter(|(a, b)| sign * (**b - **a) < 0.0).count(),
        verdict: Verdict::Undefined,
    };
    if a.is_empty() {
        return comparison;
    }
    let paired = paired(&a, &b, options);
    comparison.mean_baseline = Some(paired.mean_a);
    comparison.mean_candidate = Some(paired.mean_b);
    comparison.difference = Some(paired.difference);
    comparison.ci_low = Some(paired.ci_low);
    comparison.ci_high = Some(paired.ci_high);
    comparison.p_value = Some(paired.p_value);
    comparison.detectable = detectable(&a, &b);
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

/// The smallest detectable mean difference, from the spread of the paired differences.
fn detectable(a: &[f64], b: &[f64]) -> Option<f64> {
    let n = a.len() as f64;
    if a.len() < 2 {
        return None;
    }
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| b - a).collect();
    let mean = differences.iter().sum::<f64>() / n;
    let variance = differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (n - 1.0);
    Some(POWER_80 * (variance / n).sqrt())
}

/// The mean of `values` and its bootstrap interval (none for a single value); none without values.
pub(super) fn mean_interval(values: &[f64], options: &StatsOptions) -> Option<(f64, Option<(f64, f64)>)> {
    let zero = vec![0.0; values.len()];
    match values {
        [] => None,
        [x] => Some((*x, None)),
        _ => {
            let paired = paired(&zero, values, options);
            Some((paired.mean_b, Some((paired.ci_low, paired.ci_high))))
        }
    }
}

/// Holm's step-down adjustment (Holm 1979), in the order given.
fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&i, &j| p[i].total_cmp(&p[j]).then(i.cmp(&j)));
    let mut adjusted = vec![0.0; p.len()];
    let mut floor = 0.0_f64;
    for (rank, &i) in order.iter().enumerate() {
        floor = floor.max(((p.len() - rank) as f64 * p[i]).min(1.0));
        adjusted[i] = floor;
    }
    adjusted
}

/// STAND-IN until `eval::stats::compare_paired` lands: seeded percentile bootstrap, Monte Carlo sign flips.
fn paired(a: &[f64], b: &[f64], options: &StatsOptions) -> PairedComparison {
    let n = a.len();
    let mut state = options.seed;
    let mut next = || {
        // splitmix64 (Steele, Lea, Flood 2014)
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let d: Vec<f64> = a.iter().zip(b).map(|(a, b)| b - a).collect();
    let mean = |x: &[f64]| x.iter().sum::<f64>() / n as f64;
    let observed = mean(&d);
    let mut means: Vec<f64> = (0..options.resamples)
        .map(|_| (0..n).map(|_| d[(next() % n as u64) as usize]).sum::<f64>() / n as f64)
        .collect();
    means.sort_by(f64::total_cmp);
    let quantile = |q: f64| {
        let at = q * (means.len().max(1) - 1) as f64;
        let low = means.get(at.floor() as usize).copied().unwrap_or(observed);
        let high = means.get(at.ceil() as usize).copied().unwrap_or(observed);
        low + (high - low) * at.fract()
    };
    let tail = (1.0 - options.confidence) / 2.0;
    let (ci_low, ci_high) = (quantile(tail), quantile(1.0 - tail));
    let threshold = observed.abs() * (1.0 - 1e-12);
    let extreme = (0..options.resamples)
        .filter(|_| {
            let flipped = d.iter().map(|x| if next() & 1 == 0 { *x } else { -*x }).sum::<f64>() / n as f64;
            flipped.abs() >= threshold
        })
        .count();
    PairedComparison {
        n,
        mean_a: mean(a),
        mean_b: mean(b),
        difference: observed,
        ci_low,
        ci_high,
        p_value: (extreme + 1) as f64 / (options.resamples + 1) as f64,
    }
}
