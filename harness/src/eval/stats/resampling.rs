//! Bootstrap intervals and the sign-flip permutation test.

use rayon::prelude::*;

use super::random::Random;
use super::summary::{quantile, sum};
use super::{Interval, StatsOptions};

/// Below this number of differences that are not 0 all sign patterns are enumerated.
pub const EXACT_UP_TO: usize = 14;

/// Streams of the permutation test start here, those of the bootstrap at 0.
const PERMUTATION_STREAMS: u64 = 1 << 63;

/// Percentile bootstrap interval of the mean (Efron 1979): items are drawn with replacement; the
/// ends are quantiles of the resamples' means. NaN below two values.
pub fn bootstrap_mean_ci(values: &[f64], options: &StatsOptions) -> Interval {
    if values.is_empty() || options.resamples == 0 {
        return Interval { low: f64::NAN, high: f64::NAN };
    }
    resample(values.len(), options, |draw| draw.iter().map(|&i| values[i]).sum::<f64>() / draw.len() as f64)
}

/// Percentile bootstrap interval of a pooled value `sum(value * weight) / sum(weight)` over
/// `(value * weight, weight)` of each item: whole items are drawn, numerator and denominator
/// together. NaN below two items, or of no weight.
pub fn bootstrap_ratio_ci(terms: &[(f64, f64)], options: &StatsOptions) -> Interval {
    if options.resamples == 0 || terms.iter().all(|t| t.1 == 0.0) {
        return Interval { low: f64::NAN, high: f64::NAN };
    }
    resample(terms.len(), options, |draw| {
        let (value, weight) = draw.iter().fold((0.0, 0.0), |(v, w), &i| (v + terms[i].0, w + terms[i].1));
        value / weight
    })
}

/// The percentile interval of a statistic over resamples of `n` items. NaN below two items: one
/// drawn again and again is always itself, which says nothing of others.
fn resample(n: usize, options: &StatsOptions, statistic: impl Fn(&[usize]) -> f64 + Sync) -> Interval {
    if n < 2 {
        return Interval { low: f64::NAN, high: f64::NAN };
    }
    let values = resampled(n, options, statistic);
    let tail = (1.0 - options.confidence) / 2.0;
    Interval { low: quantile(&values, tail), high: quantile(&values, 1.0 - tail) }
}

/// The values, sorted, of a statistic over resamples of `n` items, which are at least one; stream k
/// of the seed draws resample k, so threads do not matter.
pub(super) fn resampled(n: usize, options: &StatsOptions, statistic: impl Fn(&[usize]) -> f64 + Sync) -> Vec<f64> {
    let mut values: Vec<f64> = (0..options.resamples as u64)
        .into_par_iter()
        .map_init(
            || vec![0; n],
            |draw, stream| {
                let mut random = Random::stream(options.seed, stream);
                draw.iter_mut().for_each(|i| *i = random.below(n as u64) as usize);
                statistic(draw)
            },
        )
        .collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Two-sided p of the hypothesis that differences are as likely positive as negative: the share of
/// sign patterns whose mean is at least as far from 0.
///
/// Differences of 0 have no sign and are left out. Exact up to [`EXACT_UP_TO`] differences; above,
/// `(k + 1) / (N + 1)` over N random patterns (Phipson and Smyth 2010). 1 if there is no
/// difference.
pub fn sign_flip_p(differences: &[f64], options: &StatsOptions) -> f64 {
    let signed: Vec<f64> = differences.iter().copied().filter(|d| *d != 0.0).collect();
    let m = signed.len();
    if m == 0 {
        return 1.0;
    }
    let observed = sum(signed.iter().copied()).abs();
    // Patterns with the same sum in another order of additions count as equal.
    let reach = observed - 1e-12 * sum(signed.iter().map(|d| d.abs()));
    let flipped = |pattern: &dyn Fn(usize) -> bool| -> f64 {
        signed.iter().enumerate().map(|(i, d)| if pattern(i) { -d } else { *d }).sum()
    };
    if m <= EXACT_UP_TO {
        let patterns = 1u64 << m;
        let far = (0..patterns).filter(|bits| flipped(&|i| bits >> i & 1 == 1).abs() >= reach).count();
        return far as f64 / patterns as f64;
    }
    let far = (0..options.resamples as u64)
        .into_par_iter()
        .filter(|stream| {
            let mut random = Random::stream(options.seed, PERMUTATION_STREAMS | stream);
            let signs: Vec<u64> = (0..m.div_ceil(64)).map(|_| random.bits()).collect();
            flipped(&|i| signs[i / 64] >> (i % 64) & 1 == 1).abs() >= reach
        })
        .count();
    (far as f64 + 1.0) / (options.resamples as f64 + 1.0)
}

/// How many items the second model wins, loses and ties.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Outcomes {
    /// Items with a greater value for the second model.
    pub greater: usize,
    /// Items with a smaller value for the second model.
    pub smaller: usize,
    /// Items with equal values.
    pub equal: usize,
}

/// Counts [`Outcomes`]; greater is "more", not "better".
pub fn outcomes(a: &[f64], b: &[f64]) -> Outcomes {
    a.iter().zip(b).fold(Outcomes::default(), |mut counts, (a, b)| {
        match b.total_cmp(a) {
            std::cmp::Ordering::Greater if a != b => counts.greater += 1,
            std::cmp::Ordering::Less if a != b => counts.smaller += 1,
            _ => counts.equal += 1,
        }
        counts
    })
}
