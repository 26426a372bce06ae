//! Statistics of a comparison: always paired, always with its uncertainty, and the same bytes for
//! the same seed on any number of threads.
//!
//! Below a few hundred items the central limit theorem flatters (Bowyer et al., arXiv 2503.01747):
//! intervals are the wider of Student's and an accelerated bootstrap ([`mean_interval`]), of shares
//! score intervals ([`wilson`], [`tango`]); p-values are exact or by permutation. A gate is
//! non-inferiority with a stated margin ([`non_inferiority`]), not "p > 0.05". What all of it keeps
//! of its promises, simulated, stands in `docs/statistics.md`.

pub mod normal;
pub mod random;
pub mod simulation;
pub mod student;

mod clustered;
mod contingency;
mod interval;
mod margin;
mod mcnemar;
mod pooled;
mod power;
mod replicates;
mod resampling;
mod samples;
mod shares;
mod summary;

pub use clustered::{by_cluster, cluster_count, clustered_sign_flip_p};
pub use contingency::{Agreement, holm, mcnemar_exact};
pub use interval::{clustered_mean_interval, difference_interval, mean_interval, ratio_interval};
pub use margin::{Gate, MarginVerdict, clustered_non_inferiority, non_inferiority, pooled_non_inferiority};
pub use mcnemar::mcnemar_power;
pub use pooled::{PooledComparison, PooledScale, compare_pooled};
pub use power::{PairedSpread, Undetectable, adjusted_level};
pub use replicates::{Components, ReplicatedComparison, compare_replicated};
pub use resampling::{EXACT_UP_TO, Outcomes, bootstrap_mean_ci, bootstrap_ratio_ci, outcomes, sign_flip_p};
pub use samples::{SampleSpread, pass_at_k, sample_spread};
pub use shares::{tango, wilson};
pub use summary::{clustered_standard_error, mean, quantile, standard_deviation, standard_error, sum};

use crate::{Error, Result};

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
    /// Resamples of the bootstrap, and permutations where they are not enumerated; at most
    /// [`StatsOptions::MOST_RESAMPLES`], for each is kept until its quantiles are taken.
    pub resamples: usize,
    /// Coverage of the interval, e.g. 0.95.
    pub confidence: f64,
}

impl StatsOptions {
    /// Most resamples that a suite or a report may ask for: 8 MB an interval, and p-values down to
    /// a millionth.
    pub const MOST_RESAMPLES: usize = 1_000_000;

    /// What is wrong with the options, as the key and a lowercase fragment; `None` if nothing is.
    pub fn fault(&self) -> Option<(&'static str, String)> {
        let StatsOptions { resamples, confidence, .. } = *self;
        if !(1..=Self::MOST_RESAMPLES).contains(&resamples) {
            return Some(("resamples", format!("{resamples} must be between 1 and {}", Self::MOST_RESAMPLES)));
        }
        if !(confidence > 0.5 && confidence < 1.0) {
            return Some(("confidence", format!("{confidence} must be between 0.5 and 1")));
        }
        None
    }
}

impl Default for StatsOptions {
    /// Seed 42, 10,000 resamples, 95 %.
    fn default() -> Self {
        StatsOptions { seed: 42, resamples: 10_000, confidence: 0.95 }
    }
}

/// Two ends of an interval.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Compares two models by the values of one metric on the same items, in the same order.
///
/// # Errors
/// Data, if the lengths differ, there is no item, or a value is not finite: an item without a value
/// must be left out of *both*, by the caller, who then says so.
pub fn compare_paired(a: &[f64], b: &[f64], options: &StatsOptions) -> Result<PairedComparison> {
    if a.len() != b.len() || a.is_empty() {
        let what = format!("a paired comparison needs the same items on both sides, got {} and {}", a.len(), b.len());
        return Err(Error::data(what).help("leave items without a value out of both sides"));
    }
    if let Some(at) = a.iter().zip(b).position(|(a, b)| !(a.is_finite() && b.is_finite())) {
        let what = format!("the values of item {at} of a paired comparison are {} and {}", a[at], b[at]);
        return Err(Error::data(what).help("leave items without a finite value out of both sides"));
    }
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| b - a).collect();
    let interval = difference_interval(a, b, &(0..a.len()).collect::<Vec<_>>(), options);
    Ok(PairedComparison {
        n: a.len(),
        mean_a: mean(a),
        mean_b: mean(b),
        difference: mean(&differences),
        ci_low: interval.low,
        ci_high: interval.high,
        p_value: sign_flip_p(&differences, options),
    })
}
