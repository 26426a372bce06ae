//! Power: the smallest difference that a test of this size finds, and how many items would find a
//! given one.
//!
//! All of it is for the test that is used and the level that it must reach: the exact McNemar test
//! by its exact, unconditional power; the sign-flip test by that of the `t` test, which it equals
//! but for its steps (Lehmann and Romano, Testing Statistical Hypotheses, section 15.2), at the
//! highest level that its steps reach.

use std::hash::Hash;

use super::contingency::Agreement;
use super::interval::unit_standard_error;
use super::mcnemar::{least_one_way, mcnemar_power, probability};
use super::normal::quantile as normal_quantile;
use super::resampling::EXACT_UP_TO;
use super::student::{self, power_beyond, t_test_power};
use super::summary::{standard_deviation, standard_error};
use super::{StatsOptions, by_cluster, cluster_count};

/// The level of each of `tested` metrics whose p-values are adjusted together: `alpha / tested`.
/// Holm's adjustment asks this of the least p-value and less of the others, so it is the worst case:
/// what is found at it is marked whatever the other metrics show.
pub fn adjusted_level(alpha: f64, tested: usize) -> f64 {
    alpha / tested.max(1) as f64
}

/// Why there is no difference, however large, that a test would find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum Undetectable {
    /// Too few items, or sources, or too few of them that differ: even if all pointed one way, p
    /// would not be below the level.
    TooFew {
        /// How many differ; where all are 0 or 1, how many there are.
        differ: u64,
        /// How many would have to.
        needed: u64,
    },
    /// Too few random sign patterns: p cannot be so small.
    FewResamples {
        /// The least number of them.
        needed: u64,
    },
    /// A single source, which says nothing of others.
    OneSource,
    /// All differences are the same: how far others would spread is not known.
    NoSpread,
}

/// What a paired test has to work with: how many units there are and how far they spread.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "test", rename_all = "kebab-case")]
pub enum PairedSpread {
    /// The sign-flip test of a mean or pooled difference.
    SignFlip {
        /// What is flipped: items, or sources with all their items.
        units: u64,
        /// Units whose difference is not 0.
        differ: u64,
        /// Standard deviation of the differences of those, over their share of the units.
        deviation: f64,
        /// Standard error of the difference, of so many units.
        standard_error: f64,
        /// Relative standard error of the units' weights, 0 of equal ones: a difference that all
        /// items share is larger in heavy ones, which the test takes for spread.
        weights: f64,
        /// The value compared with, where the differences are of logarithms and what is asked for of
        /// their `exp`.
        anchor: Option<f64>,
    },
    /// McNemar's exact test of values that are 0 or 1.
    Mcnemar {
        /// Pairs.
        units: u64,
        /// Pairs of which one side alone is 1.
        differ: u64,
    },
}

impl PairedSpread {
    /// Of two sides' values of the same items: McNemar's where all are 0 or 1 and no two items share
    /// a source.
    pub fn of<C: Ord + Hash>(a: &[f64], b: &[f64], clusters: &[C]) -> Self {
        let sources = cluster_count(clusters);
        if let Some(counts) = Agreement::of(a, b) {
            let differ = counts.only_a + counts.only_b;
            // Where nothing differs the two tests are one, over sources.
            if sources == a.len() || (differ == 0 && sources > 1) {
                return PairedSpread::Mcnemar { units: sources as u64, differ };
            }
        }
        let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| b - a).collect();
        let even = vec![1.0; differences.len()];
        PairedSpread::sign_flip(&differences, &differences, &even, None, clusters)
    }

    /// Of the items' shares in a difference, whose signs are flipped; of `residuals` with its
    /// spread; of the items' weights, of which the mean is 1.
    pub(super) fn sign_flip<C: Ord>(
        differences: &[f64],
        residuals: &[f64],
        weights: &[f64],
        anchor: Option<f64>,
        clusters: &[C],
    ) -> Self {
        let terms = by_cluster(clusters.iter().zip(differences.iter().zip(weights).map(|(&d, &w)| (d, w))));
        let differing: Vec<f64> = terms.iter().map(|t| t.0).filter(|d| *d != 0.0).collect();
        // Of the mean over items: a unit's share in it is its sum over all items.
        let scale = terms.len() as f64 / differences.len() as f64;
        let rate = differing.len() as f64 / terms.len() as f64;
        // What is left of equal differences by rounding is no spread.
        let greatest = differences.iter().chain(residuals).fold(0.0f64, |most, d| most.max(d.abs()));
        let spread = Some(unit_standard_error(residuals, clusters))
            .filter(|e| *e > 1e-13 * greatest || e.is_nan())
            .unwrap_or(0.0);
        let sizes: Vec<f64> = terms.iter().map(|t| t.1 * scale).collect();
        PairedSpread::SignFlip {
            units: terms.len() as u64,
            differ: differing.len() as u64,
            deviation: standard_deviation(&differing) * scale * rate,
            standard_error: spread,
            weights: Some(standard_error(&sizes)).filter(|w| w.is_finite()).unwrap_or(0.0),
            anchor,
        }
    }

    /// How many units there are.
    pub fn units(&self) -> u64 {
        match *self {
            PairedSpread::SignFlip { units, .. } | PairedSpread::Mcnemar { units, .. } => units,
        }
    }

    /// The smallest true difference that a two-sided test at `level` finds with probability `power`.
    ///
    /// Of shares: at the observed rate of discordant pairs, or where that is less than the
    /// difference itself, all discordant pairs going one way. Of means: spread as these differences
    /// are.
    ///
    /// # Errors
    /// Why there is none.
    pub fn detectable(&self, level: f64, power: f64, options: &StatsOptions) -> Result<f64, Undetectable> {
        match *self {
            PairedSpread::Mcnemar { units, differ } => {
                let needed = least_one_way(level);
                if units < needed {
                    return Err(Undetectable::TooFew { differ: units, needed });
                }
                let rate = differ as f64 / units as f64;
                Ok(least(1.0, |d| mcnemar_power(units, rate.max(d), d, level) >= power))
            }
            PairedSpread::SignFlip { units, .. } if units < 2 => Err(Undetectable::OneSource),
            PairedSpread::SignFlip { standard_error, differ, .. }
                if differ > 0 && (standard_error.is_nan() || standard_error <= 0.0) =>
            {
                Err(Undetectable::NoSpread)
            }
            PairedSpread::SignFlip { units, differ, deviation, standard_error, weights, anchor } => {
                let reached = reached_level(differ, level, options.resamples)?;
                let rate = differ as f64 / units as f64;
                let effect = if rate < 1.0 && differ < FEW {
                    sparse_effect(units, rate, deviation / standard_error, level, power, options)
                } else {
                    let freedom = differ as f64 - 1.0;
                    let t = -student::quantile(reached / 2.0, freedom);
                    Some(least(1e6, |effect| power_beyond(effect, freedom, t) >= power))
                };
                // The share of the spread that the difference itself adds by the weights.
                let left = effect.map_or(0.0, |effect| 1.0 - (effect * weights).powi(2));
                if left <= 0.0 {
                    return Err(Undetectable::TooFew { differ, needed: least_one_way(level).max(differ + 1) });
                }
                let difference = effect.unwrap_or(f64::NAN) * standard_error / left.sqrt();
                Ok(anchor.map_or(difference, |value| value * difference.exp_m1()))
            }
        }
    }

    /// How many units a two-sided test at `level` needs to find a true difference of this size with
    /// probability `power`, spread as here. None for no difference, or no spread.
    pub fn needed(&self, difference: f64, level: f64, power: f64) -> Option<u64> {
        let difference = difference.abs();
        let (z, found) = (normal_quantile(1.0 - level / 2.0), normal_quantile(power));
        match *self {
            PairedSpread::Mcnemar { units, differ } => {
                let rate = (differ as f64 / units as f64).max(difference);
                // Connor 1987 (Biometrics 43), which is exact enough where enumeration takes long.
                let about = (z * rate.sqrt() + found * (rate - difference * difference).max(0.0).sqrt()) / difference;
                from_about(about * about, |n| mcnemar_power(n, rate, difference, level) >= power)
            }
            PairedSpread::SignFlip { units, standard_error, weights, anchor, .. } => {
                let difference = anchor.map_or(difference, |value| (difference / value).ln_1p());
                let deviation =
                    (standard_error.powi(2) + (difference * weights).powi(2)).sqrt() * (units as f64).sqrt();
                let about = (z + found) * deviation / difference;
                let effect = |n: u64| difference / deviation * (n as f64).sqrt();
                // Without spread nobody can say.
                let about = if standard_error > 0.0 { about } else { f64::NAN };
                from_about(about * about, |n| {
                    n >= least_one_way(level) && t_test_power(effect(n), n as f64 - 1.0, level) >= power
                })
            }
        }
    }

    /// How many units a gate needs to pass a model that is as good as its baseline with probability
    /// `power`: to have its interval of this `confidence` above `-margin`. None for no margin, or no
    /// spread to tell it from.
    ///
    /// Of shares by the score statistic's variance at the margin and at 0 (Nam and Blackwelder 2002,
    /// Statistics in Medicine 21), of means by the one-sided `t` test.
    pub fn needed_for_margin(&self, margin: f64, confidence: f64, power: f64) -> Option<u64> {
        let tail = (1.0 - confidence) / 2.0;
        let (z, found) = (-normal_quantile(tail), normal_quantile(power));
        match *self {
            PairedSpread::Mcnemar { units, differ } => {
                let rate = differ as f64 / units as f64;
                // The share of pairs that the baseline has alone, were the loss the margin: Tango's q
                // at as many discordant pairs each way.
                let half = (rate + 2.0 * margin) / 4.0;
                let q = half + (half * half - rate * margin * (1.0 + margin) / 4.0).max(0.0).sqrt();
                let at_margin = (2.0 * q - margin * (1.0 + margin)).max(0.0);
                let about = (z * at_margin.sqrt() + found * rate.sqrt()) / margin;
                let n = (about * about).ceil();
                (margin > 0.0 && n.is_finite()).then_some(n as u64)
            }
            PairedSpread::SignFlip { units, standard_error, anchor, .. } => {
                let margin = anchor.map_or(margin, |value| (margin / value).ln_1p());
                let deviation = standard_error * (units as f64).sqrt();
                let about = (z + found) * deviation / margin;
                let effect = |n: u64| margin / deviation * (n as f64).sqrt();
                from_about(about * about, |n| {
                    n >= 2 && student::one_sided_t_test_power(effect(n), n as f64 - 1.0, tail) >= power
                })
            }
        }
    }
}

/// Up to so many units that differ, how many of them there would be next time matters.
const FEW: u64 = 40;

/// The effect, in standard errors of the difference, that the sign-flip test finds with probability
/// `power` where a unit differs with probability `rate` only: the test's power given those that
/// differ, over their binomial number. None if there are too few of them too often. `relative` is
/// their deviation over that standard error, which is of all units.
fn sparse_effect(units: u64, rate: f64, relative: f64, level: f64, power: f64, options: &StatsOptions) -> Option<f64> {
    // Of so many that differ: their probability, degrees of freedom, critical value, and their effect
    // per effect.
    let given: Vec<(f64, f64, f64, f64)> = (2..=units)
        .filter_map(|k| {
            let mass = probability(k, units, rate);
            let reached = reached_level(k, level, options.resamples).ok().filter(|_| mass > 1e-9)?;
            let freedom = k as f64 - 1.0;
            Some((mass, freedom, -student::quantile(reached / 2.0, freedom), (k as f64).sqrt() / relative))
        })
        .collect();
    let found = |effect: f64| {
        given.iter().map(|(mass, freedom, t, per)| mass * power_beyond(effect * per, *freedom, *t)).sum::<f64>()
    };
    let all: f64 = given.iter().map(|g| g.0).sum();
    (all > power && found(1e3) >= power).then(|| least(1e3, |effect| found(effect) >= power))
}

/// The highest level up to `level` that the steps of the sign-flip test's p-values reach.
fn reached_level(differ: u64, level: f64, resamples: usize) -> Result<f64, Undetectable> {
    // p is below the level, not at it.
    let below = |steps: f64| (level * steps).ceil() - 1.0;
    if differ <= EXACT_UP_TO as u64 {
        // Patterns come in pairs of opposite sums.
        let pairs = 2f64.powi(differ as i32 - 1);
        match below(pairs) {
            reached if reached >= 1.0 => Ok(reached / pairs),
            _ => Err(Undetectable::TooFew { differ, needed: least_one_way(level) }),
        }
    } else {
        let steps = resamples as f64 + 1.0;
        match below(steps) {
            reached if reached >= 1.0 => Ok(reached / steps),
            _ => Err(Undetectable::FewResamples { needed: (1.0 / level).ceil() as u64 }),
        }
    }
}

/// The least number up to `most` for which `holds`, which once it does goes on to.
fn least(most: f64, holds: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (0.0, most);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if holds(middle) {
            high = middle;
        } else {
            low = middle;
        }
        if high - low <= 1e-10 * high {
            break;
        }
    }
    high
}

/// The least count for which `holds`, near what a formula for large numbers says; that itself where
/// it is large. None where it says nothing.
fn from_about(about: f64, holds: impl Fn(u64) -> bool) -> Option<u64> {
    const LARGE: f64 = 5000.0;
    if !(about.is_finite() && about > 0.0) {
        return None;
    }
    if about > LARGE {
        return Some(about.ceil() as u64);
    }
    let (mut low, mut high) = (0, (about.ceil() as u64).max(2));
    while !holds(high) {
        (low, high) = (high, high * 2);
        if high as f64 > 1e6 {
            return None;
        }
    }
    while high - low > 1 {
        let middle = (low + high) / 2;
        if holds(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    Some(high)
}

#[cfg(test)]
mod tests {
    use super::super::contingency::mcnemar_exact;
    use super::*;
    use crate::eval::stats::random::Random;
    use crate::eval::stats::{sign_flip_p, standard_error};

    #[test]
    fn mcnemars_power_is_that_of_every_table() {
        for (n, rate, difference, level) in [
            (14, 0.4, 0.3, 0.05),
            (30, 0.5, 0.2, 0.05),
            (25, 0.6, 0.6, 0.01),
            (20, 0.3, 0.0, 0.05),
            (9, 1.0, 0.4, 0.05),
        ] {
            let (p, q) = ((rate + difference) / 2.0, (rate - difference) / 2.0);
            let mut exact = 0.0;
            for b in 0..=n {
                for c in 0..=n - b {
                    if mcnemar_exact(b, c) < level {
                        exact +=
                            probability(b, n, p) * if p < 1.0 { probability(c, n - b, q / (1.0 - p)) } else { 1.0 };
                    }
                }
            }
            let ours = mcnemar_power(n, rate, difference, level);
            assert!((ours - exact).abs() < 1e-10, "{n} {rate} {difference}: {ours} for {exact}");
        }
        assert_eq!(mcnemar_power(40, 0.0, 0.0, 0.05), 0.0);
        // Of thousands the approximation holds.
        let large = mcnemar_power(4000, 0.2, 0.02, 0.05);
        let expected = super::super::normal::cumulative(
            0.02 * (4000f64 / (0.2 - 0.0004)).sqrt() - 1.959_964 * (0.2f64 / 0.1996).sqrt(),
        );
        assert!((large - expected).abs() < 0.01, "{large} {expected}");
    }

    #[test]
    fn fewer_than_six_pairs_can_show_nothing_and_more_metrics_ask_for_more() {
        let options = StatsOptions::default();
        let found = |units, level| PairedSpread::Mcnemar { units, differ: 0 }.detectable(level, 0.8, &options);
        assert_eq!(found(5, 0.05), Err(Undetectable::TooFew { differ: 5, needed: 6 }));
        assert!(found(6, 0.05).unwrap() > 0.9);
        assert_eq!(found(9, adjusted_level(0.05, 23)), Err(Undetectable::TooFew { differ: 9, needed: 10 }));
        let (few, many) = (found(14, 0.05).unwrap(), found(14, adjusted_level(0.05, 23)).unwrap());
        assert!(few > 0.5 && many > few + 0.2, "{few} {many}");
        let flips = |units, differ| PairedSpread::SignFlip {
            units,
            differ,
            deviation: 0.1 * (units as f64).sqrt(),
            standard_error: 0.1,
            weights: 0.0,
            anchor: None,
        };
        assert_eq!(flips(14, 5).detectable(0.05, 0.8, &options), Err(Undetectable::TooFew { differ: 5, needed: 6 }));
        assert!(flips(6, 6).detectable(0.05, 0.8, &options).is_ok());
        // Six of 14 differ: often enough fewer would.
        assert!(
            flips(14, 6).detectable(0.05, 0.8, &options).is_err()
                && flips(14, 12).detectable(0.05, 0.8, &options).is_ok()
        );
        let coarse = StatsOptions { resamples: 100, ..options };
        assert_eq!(flips(60, 60).detectable(0.005, 0.8, &coarse), Err(Undetectable::FewResamples { needed: 200 }));
        assert_eq!(flips(1, 1).detectable(0.05, 0.8, &coarse), Err(Undetectable::OneSource));
        let same = PairedSpread::of(&[0.5; 9], &[0.75; 9], &(0..9).collect::<Vec<_>>());
        assert_eq!(same.detectable(0.05, 0.8, &coarse), Err(Undetectable::NoSpread));
    }

    #[test]
    fn what_is_called_detectable_is_found_four_times_out_of_five() {
        let options = StatsOptions { resamples: 400, ..StatsOptions::default() };
        let normal = |random: &mut Random| {
            let unit = |r: &mut Random| (r.below(1 << 40) as f64 + 0.5) / (1u64 << 40) as f64;
            normal_quantile(unit(random))
        };
        for (n, level) in [(10, 0.05), (11, 0.05 / 8.0), (40, 0.05)] {
            let spread = PairedSpread::SignFlip {
                units: n,
                differ: n,
                deviation: 1.0,
                standard_error: 1.0 / (n as f64).sqrt(),
                weights: 0.0,
                anchor: None,
            };
            let difference = spread.detectable(level, 0.8, &options).unwrap();
            let found = (0..1500u64)
                .filter(|stream| {
                    let mut random = Random::stream(5, *stream);
                    let values: Vec<f64> = (0..n).map(|_| difference + normal(&mut random)).collect();
                    sign_flip_p(&values, &StatsOptions { seed: *stream, ..options }) < level
                })
                .count() as f64
                / 1500.0;
            assert!((found - 0.8).abs() < 0.035, "{n} at {level}: {found}");
        }
    }

    #[test]
    fn so_many_items_as_are_needed_find_the_difference() {
        let values: Vec<f64> = (0..50).map(|i| f64::from(i * 37 % 50) / 50.0 - 0.4).collect();
        let spread = PairedSpread::of(&[0.0; 50], &values, &(0..50).collect::<Vec<_>>());
        assert_eq!(spread.units(), 50);
        let deviation = standard_error(&values) * 50f64.sqrt();
        let n = spread.needed(0.1, 0.05, 0.8).unwrap();
        assert!((n as f64 / (2.8 * deviation / 0.1).powi(2) - 1.0).abs() < 0.05, "{n}");
        assert!(spread.needed(0.0, 0.05, 0.8).is_none());
        let pairs = PairedSpread::Mcnemar { units: 60, differ: 12 };
        let n = pairs.needed(0.1, 0.05, 0.8).unwrap();
        assert!(mcnemar_power(n, 0.2, 0.1, 0.05) >= 0.8 && (140..200).contains(&n), "{n}");
        assert!(pairs.needed(1e-4, 0.05, 0.8).unwrap() > 100_000_000, "{:?}", pairs.needed(1e-4, 0.05, 0.8));
    }

    #[test]
    fn a_gate_of_so_many_items_as_are_needed_decides() {
        use crate::eval::stats::{MarginVerdict, non_inferiority, tango};
        // Nothing discordant: as many as the score interval asks for.
        let none = PairedSpread::Mcnemar { units: 60, differ: 0 };
        let n = none.needed_for_margin(0.02, 0.95, 0.8).unwrap();
        assert_eq!(n, 189);
        assert!(tango(0.0, 0.0, n as f64, 1.959_964).low >= -0.02 && tango(0.0, 0.0, 188.0, 1.959_964).low < -0.02);
        assert!(none.needed_for_margin(0.0, 0.95, 0.8).is_none());
        let some = PairedSpread::Mcnemar { units: 60, differ: 6 };
        let n = some.needed_for_margin(0.05, 0.95, 0.8).unwrap() as usize;
        let passes = (0..500u64)
            .filter(|stream| {
                let mut random = Random::stream(6, *stream);
                let (a, b): (Vec<f64>, Vec<f64>) = (0..n)
                    .map(|_| match random.below(20) {
                        0 => (1.0, 0.0),
                        1 => (0.0, 1.0),
                        k => (f64::from(u8::from(k < 9)), f64::from(u8::from(k < 9))),
                    })
                    .unzip();
                let options = StatsOptions { resamples: 1, ..StatsOptions::default() };
                non_inferiority(&a, &b, true, 0.05, &options).verdict == MarginVerdict::Pass
            })
            .count() as f64
            / 500.0;
        assert!((passes - 0.8).abs() < 0.06, "{n}: {passes}");
    }
}
