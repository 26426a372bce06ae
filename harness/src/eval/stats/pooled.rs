//! Two pooled values on the same items. A ratio of sums, such as a negative log-likelihood per
//! token, is no mean of its items, so neither is the difference of two: long items weigh more on
//! both sides.
//!
//! With `f_i = n w_i / sum(w)` the pooled value is the mean of `t_i = f_i v_i`, and of two sides
//! the mean of the differences of these. Where all weights are 1 everything here is what the plain
//! mean's interval, test and error are.

use std::hash::Hash;

use super::interval::{Statistic, covering};
use super::{
    Interval, PairedSpread, StatsOptions, by_cluster, clustered_sign_flip_p, clustered_standard_error, mean, sum,
};

/// What becomes of a pooled value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PooledScale {
    /// It is the value.
    Linear,
    /// Its `exp` is: items' values are logarithms (of perplexities).
    Exp,
}

impl PooledScale {
    fn value(self, pooled: f64) -> f64 {
        match self {
            PooledScale::Linear => pooled,
            PooledScale::Exp => pooled.exp(),
        }
    }
    fn slope(self, pooled: f64) -> f64 {
        match self {
            PooledScale::Linear => 1.0,
            PooledScale::Exp => pooled.exp(),
        }
    }
}

/// What can be said of two pooled values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PooledComparison {
    /// The first side's value.
    pub baseline: f64,
    /// The second side's.
    pub candidate: f64,
    /// Interval of the second less the first, whole clusters being drawn with numerators and
    /// denominators. NaN below two clusters.
    pub interval: Interval,
    /// Two-sided p of the sign-flip permutation test of the items' shares in the difference, a
    /// cluster's together; before `exp`.
    pub p_value: f64,
    /// Standard error of the difference, by linearisation (Cochran, Sampling Techniques, section
    /// 6.4) and clustered.
    pub standard_error: f64,
    /// What the test has to work with.
    pub spread: PairedSpread,
}

/// Compares the pooled values of two sides, each given as `(value, weight)` of the same items. NaN
/// of no items or no weight.
pub fn compare_pooled<C: Ord + Hash>(
    baseline: &[(f64, f64)],
    candidate: &[(f64, f64)],
    clusters: &[C],
    scale: PooledScale,
    options: &StatsOptions,
) -> PooledComparison {
    let (a, b) = (shares(baseline), shares(candidate));
    let (from, to) = (pooled(&a), pooled(&b));
    let (differences, residuals) = influence(&a, &b, scale);
    let spread = {
        let plain = influence(&a, &b, PooledScale::Linear).1;
        let weights: Vec<f64> = a.iter().zip(&b).map(|(a, b)| f64::midpoint(a.1, b.1)).collect();
        let anchor = (scale == PooledScale::Exp).then(|| scale.value(from));
        PairedSpread::sign_flip(&differences, &plain, &weights, anchor, clusters)
    };
    PooledComparison {
        baseline: scale.value(from),
        candidate: scale.value(to),
        interval: interval(&a, &b, clusters, scale, options),
        p_value: clustered_sign_flip_p(&differences, clusters, options),
        standard_error: clustered_standard_error(&residuals, clusters),
        spread,
    }
}

/// The mean of the shares: the pooled value, before `exp`.
fn pooled(shares: &[(f64, f64)]) -> f64 {
    mean(&shares.iter().map(|s| s.0).collect::<Vec<_>>())
}

/// Of every item what it adds to the difference, before `exp`, which is what signs are flipped of;
/// and what it adds beyond its share of both values, of which the mean is 0 and the spread that of
/// the difference.
fn influence(a: &[(f64, f64)], b: &[(f64, f64)], scale: PooledScale) -> (Vec<f64>, Vec<f64>) {
    let (from, to) = (pooled(a), pooled(b));
    let both = || a.iter().zip(b);
    let differences = both().map(|(a, b)| b.0 - a.0).collect();
    let residuals =
        both().map(|(a, b)| scale.slope(to) * (b.0 - b.1 * to) - scale.slope(from) * (a.0 - a.1 * from)).collect();
    (differences, residuals)
}

/// `(f_i v_i, f_i)` of every `(v_i, w_i)`.
fn shares(items: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let total: f64 = items.iter().map(|i| i.1).sum();
    let n = items.len() as f64;
    items.iter().map(|&(value, weight)| (value * (weight * n / total), weight * n / total)).collect()
}

fn interval<C: Ord>(
    a: &[(f64, f64)],
    b: &[(f64, f64)],
    clusters: &[C],
    scale: PooledScale,
    options: &StatsOptions,
) -> Interval {
    let units = |side: &[(f64, f64)]| by_cluster(clusters.iter().zip(side.iter().copied()));
    let (a, b) = (units(a), units(b));
    let whole = |side: &[(f64, f64)]| (sum(side.iter().map(|t| t.0)), sum(side.iter().map(|t| t.1)));
    let (all_a, all_b) = (whole(&a), whole(&b));
    let value = |(value, weight): (f64, f64)| scale.value(value / weight);
    let without = |all: (f64, f64), one: (f64, f64)| value((all.0 - one.0, all.1 - one.1));
    covering(
        &Statistic {
            units: a.len(),
            estimate: value(all_b) - value(all_a),
            of: |draw: &[usize]| {
                let drawn =
                    |side: &[(f64, f64)]| draw.iter().fold((0.0, 0.0), |(v, w), &i| (v + side[i].0, w + side[i].1));
                value(drawn(&b)) - value(drawn(&a))
            },
            without: |i: usize| without(all_b, b[i]) - without(all_a, a[i]),
        },
        options,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::stats::{clustered_mean_interval, sign_flip_p};

    fn options() -> StatsOptions {
        StatsOptions { resamples: 4000, ..StatsOptions::default() }
    }

    fn items(seed: u32, n: u32) -> Vec<f64> {
        (0..n).map(|i| f64::from((i * 7 + seed * 13) % 23) / 5.0).collect()
    }

    #[test]
    fn weights_of_one_are_the_plain_mean() {
        let (a, b) = (items(1, 40), items(2, 40));
        let weighted = |v: &[f64]| v.iter().map(|v| (*v, 1.0)).collect::<Vec<_>>();
        let clusters: Vec<usize> = (0..40).map(|i| i / 3).collect();
        let ours = compare_pooled(&weighted(&a), &weighted(&b), &clusters, PooledScale::Linear, &options());
        let differences: Vec<f64> = a.iter().zip(&b).map(|(a, b)| b - a).collect();
        let near = |x: f64, y: f64| (x - y).abs() < 1e-12;
        let plain = clustered_mean_interval(&differences, &clusters, &options());
        assert!(near(ours.candidate - ours.baseline, mean(&differences)));
        assert!(near(ours.interval.low, plain.low) && near(ours.interval.high, plain.high), "{ours:?} {plain:?}");
        assert_eq!(ours.p_value, clustered_sign_flip_p(&differences, &clusters, &options()));
        assert!(near(ours.standard_error, clustered_standard_error(&differences, &clusters)));
    }

    #[test]
    fn the_difference_is_that_of_the_pooled_values_and_lies_in_its_interval() {
        // The short items gain much, the long ones little: the mean of items would say 1.0.
        let (a, b): (Vec<_>, Vec<_>) =
            (0..30).map(|i| if i % 2 == 0 { ((3.0, 1.0), (1.1, 1.0)) } else { ((2.0, 99.0), (1.9, 99.0)) }).unzip();
        let clusters: Vec<usize> = (0..30).collect();
        let c = compare_pooled(&a, &b, &clusters, PooledScale::Linear, &options());
        assert!((c.candidate - c.baseline + 0.118).abs() < 1e-12, "{c:?}");
        assert!(c.interval.low <= -0.118 && -0.118 <= c.interval.high && c.interval.low > -0.2, "{c:?}");
        let e = compare_pooled(&a, &b, &clusters, PooledScale::Exp, &options());
        assert_eq!((e.baseline, e.candidate), (c.baseline.exp(), c.candidate.exp()));
        assert!(e.interval.low <= e.candidate - e.baseline && e.candidate - e.baseline <= e.interval.high, "{e:?}");
        assert_eq!(e.p_value, c.p_value, "the test is of the logarithms");
    }

    #[test]
    fn the_standard_error_is_near_the_spread_of_the_resamples() {
        let weights = items(5, 200);
        let side =
            |seed| items(seed, 200).into_iter().zip(&weights).map(|(v, w)| (v / 3.0, 1.0 + w)).collect::<Vec<_>>();
        let clusters: Vec<usize> = (0..200).collect();
        for scale in [PooledScale::Linear, PooledScale::Exp] {
            let c = compare_pooled(&side(1), &side(4), &clusters, scale, &options());
            let half = (c.interval.high - c.interval.low) / 2.0;
            assert!((half / (1.96 * c.standard_error) - 1.0).abs() < 0.1, "{scale:?} {c:?}");
        }
    }

    #[test]
    fn one_source_says_nothing_of_others() {
        let side: Vec<(f64, f64)> = items(1, 9).into_iter().map(|v| (v, 2.0)).collect();
        let c = compare_pooled(&side, &side, &[0; 9], PooledScale::Linear, &options());
        assert!(c.interval.low.is_nan() && c.p_value.is_nan());
        let alone = compare_pooled(&side, &side, &(0..9).collect::<Vec<_>>(), PooledScale::Linear, &options());
        assert_eq!((alone.p_value, alone.interval.low, alone.interval.high), (1.0, 0.0, 0.0));
        assert_eq!(sign_flip_p(&[0.0; 9], &options()), 1.0);
    }
}
