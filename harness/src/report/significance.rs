//! Significance of a difference: pairing, Holm over all that is tested together, marks and verdicts.

use std::collections::BTreeMap;
use std::hash::Hash;

use crate::eval::metric::{self, Corpus};
use crate::eval::stats::{
    self, Agreement, Interval, PairedSpread, PooledComparison, PooledScale, StatsOptions, adjusted_level,
    cluster_count, clustered_mean_interval, clustered_sign_flip_p, clustered_standard_error, compare_pooled,
    difference_interval, holm,
};

use super::model::{Direction, MetricComparison, PairedTest, Verdict};

/// Adjusted p-values below this are called significant.
pub(super) const ALPHA: f64 = 0.05;
/// A true difference of the reported size is found four times out of five.
const POWER: f64 = 0.8;

/// An item's value of a metric and, if the metric is pooled, its weight.
pub(super) type Weighted = (f64, Option<f64>);

/// The values without their weights.
pub(super) fn values(items: &[Weighted]) -> Vec<f64> {
    items.iter().map(|item| item.0).collect()
}

/// One metric of two models, item by item.
pub(super) struct Paired<'a> {
    pub metric: &'a str,
    pub direction: Direction,
    /// None for an item without a value.
    pub baseline: Vec<Option<Weighted>>,
    pub candidate: Vec<Option<Weighted>>,
    /// The source of each item.
    pub clusters: Vec<&'a str>,
}

/// Two sides' pooled values compared, if every item has a weight on both: else there is but the
/// mean of items.
pub(super) fn compare_pooled_metric<C: Ord + Hash>(
    metric: &str,
    [baseline, candidate]: [&[Weighted]; 2],
    clusters: &[C],
    options: &StatsOptions,
) -> Option<PooledComparison> {
    let exp = metric::info(metric).is_some_and(|m| m.corpus == Corpus::ExpOfPooled);
    let scale = if exp { PooledScale::Exp } else { PooledScale::Linear };
    let terms = |side: &[Weighted]| {
        side.iter().map(|(v, w)| Some((if exp { v.ln() } else { *v }, (*w)?))).collect::<Option<Vec<_>>>()
    };
    Some(compare_pooled(&terms(baseline)?, &terms(candidate)?, clusters, scale, options))
}

/// The difference of two sides' values of a metric, candidate minus baseline, and what a test of it
/// has to work with.
pub(super) fn spread<C: Ord + Hash>(
    metric: &str,
    [baseline, candidate]: [&[Weighted]; 2],
    clusters: &[C],
) -> (f64, PairedSpread) {
    // One resample: of the interval nothing is asked.
    let options = StatsOptions { resamples: 1, ..StatsOptions::default() };
    match compare_pooled_metric(metric, [baseline, candidate], clusters, &options) {
        Some(pooled) => (pooled.candidate - pooled.baseline, pooled.spread),
        None => {
            let (a, b) = (values(baseline), values(candidate));
            (stats::mean(&b) - stats::mean(&a), PairedSpread::of(&a, &b, clusters))
        }
    }
}

/// Compares every metric of every pair of models on the items that both have a value for, then
/// adjusts the p-values together; what is detectable follows from how many those are. Many models
/// are many chances to find a difference that is none.
pub(super) fn compare_all(
    pairs: Vec<Vec<Paired<'_>>>,
    options: &StatsOptions,
) -> Vec<BTreeMap<String, MetricComparison>> {
    let mut found = vec![BTreeMap::new(); pairs.len()];
    let mut compared: Vec<(usize, &str, Direction, MetricComparison, Option<PairedSpread>)> = Vec::new();
    for (pair, metrics) in pairs.into_iter().enumerate() {
        for m in metrics {
            let (comparison, spread) = one(&m, options);
            compared.push((pair, m.metric, m.direction, comparison, spread));
        }
    }
    let tested: Vec<usize> = (0..compared.len()).filter(|&i| compared[i].3.p_value.is_some()).collect();
    let p: Vec<f64> = tested.iter().filter_map(|&i| compared[i].3.p_value).collect();
    let level = adjusted_level(ALPHA, tested.len());
    for (&i, adjusted) in tested.iter().zip(holm(&p)) {
        let (_, _, direction, c, spread) = &mut compared[i];
        c.p_adjusted = Some(adjusted);
        c.mark = mark(adjusted).to_string();
        c.verdict = verdict(*direction, adjusted, c.difference.unwrap_or(0.0));
        let Some(spread) = spread else { continue };
        match spread.detectable(level, POWER, options) {
            Ok(difference) => c.detectable = Some(difference),
            Err(reason) => c.undetectable = Some(reason),
        }
        let open = c.difference.filter(|_| c.verdict == Verdict::Unclear);
        c.needed = open.and_then(|difference| spread.needed(difference, level, POWER));
    }
    for (pair, name, _, c, _) in compared {
        found[pair].insert(name.to_string(), c);
    }
    found
}

fn one(metric: &Paired<'_>, options: &StatsOptions) -> (MetricComparison, Option<PairedSpread>) {
    let both = metric.baseline.iter().zip(&metric.candidate).zip(&metric.clusters);
    let (sides, clusters): ((Vec<_>, Vec<_>), Vec<&str>) =
        both.filter_map(|((a, b), cluster)| Some((((*a)?, (*b)?), *cluster))).unzip();
    let (a, b) = (values(&sides.0), values(&sides.1));
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
        undetectable: None,
        needed: None,
        wins: a.iter().zip(&b).filter(|(a, b)| sign * (**b - **a) > 0.0).count(),
        losses: a.iter().zip(&b).filter(|(a, b)| sign * (**b - **a) < 0.0).count(),
        verdict: Verdict::Undefined,
    };
    if a.is_empty() {
        return (comparison, None);
    }
    let count = cluster_count(&clusters);
    comparison.clusters = Some(count).filter(|count| *count < a.len());
    let sign_flip = if comparison.clusters.is_some() { PairedTest::ClusteredSignFlip } else { PairedTest::SignFlip };
    let pooled = compare_pooled_metric(metric.metric, [&sides.0, &sides.1], &clusters, options);
    let (from, to, difference, interval, (test, p), error, spread) = match pooled {
        Some(p) => {
            let difference = p.candidate - p.baseline;
            (p.baseline, p.candidate, difference, p.interval, (sign_flip, p.p_value), p.standard_error, p.spread)
        }
        None => {
            let differences: Vec<f64> = a.iter().zip(&b).map(|(a, b)| b - a).collect();
            let test = match Agreement::of(&a, &b).filter(|_| comparison.clusters.is_none()) {
                Some(agreement) => (PairedTest::Mcnemar, agreement.p_value()),
                None => (sign_flip, clustered_sign_flip_p(&differences, &clusters, options)),
            };
            // Where every item is its own source these are the plain interval, test and error, to
            // the bit.
            let unit = share_unit(metric.metric, a.iter().chain(&b));
            let [shares_a, shares_b] = [&a, &b].map(|side| side.iter().map(|v| v / unit).collect::<Vec<f64>>());
            let Interval { low, high } = difference_interval(&shares_a, &shares_b, &clusters, options);
            let interval = Interval { low: low * unit, high: high * unit };
            let error = clustered_standard_error(&differences, &clusters);
            let spread = PairedSpread::of(&a, &b, &clusters);
            (stats::mean(&a), stats::mean(&b), stats::mean(&differences), interval, test, error, spread)
        }
    };
    let finite = |x: f64| Some(x).filter(|x| x.is_finite());
    comparison.improvement_percent = finite(100.0 * sign * (to - from) / from.abs());
    (comparison.mean_baseline, comparison.mean_candidate) = (Some(from), Some(to));
    comparison.difference = Some(difference);
    (comparison.ci_low, comparison.ci_high) = (finite(interval.low), finite(interval.high));
    comparison.test = test;
    comparison.p_value = finite(p);
    comparison.standard_error = finite(error);
    (comparison, Some(spread))
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

/// What a share of 1 is in the metric's unit, where all `values` lie at the ends of its range: 100 of
/// one in per cent. Score intervals are of shares. Else 1, which changes no bit.
fn share_unit<'v>(metric: &str, values: impl IntoIterator<Item = &'v f64>) -> f64 {
    let top = metric::info(metric).map_or(1.0, |m| m.range.1);
    match top.is_finite() && values.into_iter().all(|v| *v == 0.0 || *v == top) {
        true => top,
        false => 1.0,
    }
}

/// The mean of a metric's values and its interval within the metric's range, whole `clusters` being
/// drawn (none for a single one); none without values.
pub(super) fn mean_interval(
    metric: &str,
    values: &[f64],
    clusters: &[&str],
    options: &StatsOptions,
) -> Option<(f64, Option<(f64, f64)>)> {
    match values {
        [] => None,
        [x] => Some((*x, None)),
        _ => {
            let unit = share_unit(metric, values);
            let shares: Vec<f64> = values.iter().map(|v| v / unit).collect();
            let Interval { low, high } = clustered_mean_interval(&shares, clusters, options);
            let interval = Interval { low: low * unit, high: high * unit };
            let Interval { low, high } = metric::info(metric).map_or(interval, |m| m.within_range(interval));
            Some((stats::mean(values), Some((low, high)).filter(|i| i.0.is_finite() && i.1.is_finite())))
        }
    }
}
