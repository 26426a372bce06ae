//! Power: the smallest difference that a comparison of this size detects, and the verdict of a
//! gate.

use std::hash::Hash;

use super::normal::quantile as normal_quantile;
use super::summary::{clustered_standard_error, mean, standard_error};
use super::{Interval, PooledComparison, StatsOptions, clustered_mean_ci};

/// The smallest true mean difference that a two-sided test at level `1 - confidence` finds with
/// probability `power`: `(z(1 - alpha/2) + z(power)) * standard error of the differences`.
///
/// By the normal approximation, which flatters below some 30 items. NaN below two differences.
pub fn minimum_detectable_difference(differences: &[f64], confidence: f64, power: f64) -> f64 {
    detectable_with(standard_error(differences), confidence, power)
}

/// The same from a standard error, such as a clustered one.
pub fn detectable_with(standard_error: f64, confidence: f64, power: f64) -> f64 {
    let alpha = 1.0 - confidence;
    (normal_quantile(1.0 - alpha / 2.0) + normal_quantile(power)) * standard_error
}

/// What a gate says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MarginVerdict {
    /// The whole interval is above minus the margin: not worse by more than the margin.
    Pass,
    /// The interval holds minus the margin: this many items cannot tell.
    Inconclusive,
    /// The whole interval is below minus the margin: worse by more than the margin.
    Regress,
}

/// A gate's verdict with what it rests on.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Gate {
    /// The verdict.
    pub verdict: MarginVerdict,
    /// Items compared.
    pub n: usize,
    /// Mean gain of the candidate over the baseline; negative is worse.
    pub gain: f64,
    /// Bootstrap interval of the gain.
    pub interval: Interval,
    /// Loss that is accepted, at least 0.
    pub margin: f64,
    /// [`minimum_detectable_difference`] at a power of 0.8.
    pub minimum_detectable: f64,
}

/// Non-inferiority of a candidate to a baseline on the same items: pass if the interval of the mean
/// gain lies above `-margin`.
///
/// `higher_is_better` orients the metric. "Not significantly worse" is no pass: too few items are
/// inconclusive, as is an empty comparison or one with a value that is not finite.
pub fn non_inferiority(
    baseline: &[f64],
    candidate: &[f64],
    higher_is_better: bool,
    margin: f64,
    options: &StatsOptions,
) -> Gate {
    let alone: Vec<usize> = (0..baseline.len()).collect();
    clustered_non_inferiority(baseline, candidate, &alone, higher_is_better, margin, options)
}

/// [`non_inferiority`] where items share sources: whole `clusters` are drawn for the interval, and
/// the minimum detectable difference follows from the clustered standard error. Items that are all
/// of one source are inconclusive.
pub fn clustered_non_inferiority<C: Ord + Hash>(
    baseline: &[f64],
    candidate: &[f64],
    clusters: &[C],
    higher_is_better: bool,
    margin: f64,
    options: &StatsOptions,
) -> Gate {
    let sign = if higher_is_better { 1.0 } else { -1.0 };
    let gains: Vec<f64> = baseline.iter().zip(candidate).map(|(b, c)| sign * (c - b)).collect();
    let interval = clustered_mean_ci(&gains, clusters, options);
    let margin = margin.abs();
    let comparable =
        baseline.len() == candidate.len() && clusters.len() == gains.len() && gains.iter().all(|g| g.is_finite());
    let verdict = if comparable { decide(interval, margin) } else { MarginVerdict::Inconclusive };
    let minimum_detectable = detectable_with(clustered_standard_error(&gains, clusters), options.confidence, 0.8);
    Gate { verdict, n: gains.len(), gain: mean(&gains), interval, margin, minimum_detectable }
}

/// [`clustered_non_inferiority`] of pooled values of `n` items, already compared.
pub fn pooled_non_inferiority(
    compared: &PooledComparison,
    n: usize,
    higher_is_better: bool,
    margin: f64,
    options: &StatsOptions,
) -> Gate {
    let Interval { low, high } = compared.interval;
    let difference = compared.candidate - compared.baseline;
    let (gain, interval) = match higher_is_better {
        true => (difference, Interval { low, high }),
        false => (-difference, Interval { low: -high, high: -low }),
    };
    let margin = margin.abs();
    let verdict = if gain.is_finite() { decide(interval, margin) } else { MarginVerdict::Inconclusive };
    let minimum_detectable = detectable_with(compared.standard_error, options.confidence, 0.8);
    Gate { verdict, n, gain, interval, margin, minimum_detectable }
}

/// Ends that are not numbers decide nothing.
fn decide(interval: Interval, margin: f64) -> MarginVerdict {
    if interval.low >= -margin {
        MarginVerdict::Pass
    } else if interval.high < -margin {
        MarginVerdict::Regress
    } else {
        MarginVerdict::Inconclusive
    }
}

impl Gate {
    /// The same with each end of the interval moved out by `by`, at least 0: what a backend that
    /// does not repeat itself would change on its own. A verdict can only become inconclusive by
    /// it.
    #[must_use]
    pub fn widened(self, by: f64) -> Gate {
        let interval = Interval { low: self.interval.low - by, high: self.interval.high + by };
        let decided = decide(interval, self.margin);
        let verdict = if decided == self.verdict { decided } else { MarginVerdict::Inconclusive };
        Gate { interval, verdict, ..self }
    }
}
