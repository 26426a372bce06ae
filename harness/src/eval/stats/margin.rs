//! The verdict of a gate: non-inferiority with a stated margin.

use std::hash::Hash;

use super::power::PairedSpread;
use super::summary::mean;
use super::{Interval, PooledComparison, StatsOptions, difference_interval};

/// A gate promises to decide four times out of five.
const POWER: f64 = 0.8;

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
    /// Interval of the gain.
    pub interval: Interval,
    /// Loss that is accepted, at least 0.
    pub margin: f64,
    /// The smallest true difference that a test at the interval's level finds four times out of
    /// five ([`PairedSpread::detectable`]); none where there is none.
    pub minimum_detectable: Option<f64>,
    /// How many items, or sources where some share one, would pass a model that is as good as its
    /// baseline four times out of five ([`PairedSpread::needed_for_margin`]); none where nobody can
    /// say.
    #[serde(default)]
    pub needed: Option<u64>,
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

/// [`non_inferiority`] where items share sources: whole `clusters` are drawn for the interval and
/// counted for what is detectable. Items that are all of one source are inconclusive.
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
    let Interval { low, high } = difference_interval(baseline, candidate, clusters, options);
    let interval = if higher_is_better { Interval { low, high } } else { Interval { low: -high, high: -low } };
    let margin = margin.abs();
    let comparable =
        baseline.len() == candidate.len() && clusters.len() == gains.len() && gains.iter().all(|g| g.is_finite());
    let verdict = if comparable { decide(interval, margin) } else { MarginVerdict::Inconclusive };
    let spread = PairedSpread::of(baseline, candidate, clusters);
    Gate { verdict, ..Gate::undecided(gains.len(), mean(&gains), interval, margin, &spread, options) }
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
    Gate { verdict, ..Gate::undecided(n, gain, interval, margin, &compared.spread, options) }
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
    fn undecided(
        n: usize,
        gain: f64,
        interval: Interval,
        margin: f64,
        spread: &PairedSpread,
        options: &StatsOptions,
    ) -> Gate {
        let minimum_detectable = spread.detectable(1.0 - options.confidence, POWER, options).ok();
        let needed = spread.needed_for_margin(margin, options.confidence, POWER);
        Gate { verdict: MarginVerdict::Inconclusive, n, gain, interval, margin, minimum_detectable, needed }
    }

    /// The same with each end of the interval moved out by `by`, at least 0: what a backend that
    /// does not repeat itself would change on its own. A verdict can only become inconclusive by
    /// it, and the items needed become more, or without number.
    #[must_use]
    pub fn widened(self, by: f64) -> Gate {
        let interval = Interval { low: self.interval.low - by, high: self.interval.high + by };
        let decided = decide(interval, self.margin);
        let verdict = if decided == self.verdict { decided } else { MarginVerdict::Inconclusive };
        // The margin is less by what the backend may take of it; the number goes with its square.
        let left = self.margin - by;
        let more = |needed: u64| (needed as f64 * (self.margin / left).powi(2)).ceil() as u64;
        let needed = self.needed.filter(|_| left > 0.0).map(more);
        Gate { interval, verdict, needed, ..self }
    }
}
