//! Intervals of shares and of paired differences of shares, by inverting a score test: right also
//! where few items, or none, have the property, where a bootstrap sees no spread at all.

use std::hash::Hash;

use super::contingency::Agreement;
use super::interval::unit_standard_error;
use super::summary::standard_error;
use super::{Interval, cluster_count, normal, student};

/// Wilson's interval (1927; Brown, Cai and DasGupta 2001) of a share of `ones` in `n`, with `z` the
/// normal quantile of its level:
/// `(p + z^2/2n ± z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2/n)`.
///
/// Neither need be whole: an effective number of items is none. NaN of nothing.
pub fn wilson(ones: f64, n: f64, z: f64) -> Interval {
    let (p, z2) = (ones / n, z * z);
    let middle = p + z2 / (2.0 * n);
    let half = z * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).max(0.0).sqrt();
    let scale = 1.0 + z2 / n;
    // Where there is none, or nothing else, the end is the edge, and not its last bit.
    let low = if ones == 0.0 { 0.0 } else { (middle - half) / scale };
    let high = if ones == n { 1.0 } else { (middle + half) / scale };
    Interval { low, high }
}

/// Tango's score interval (1998, Statistics in Medicine 17) of a paired difference of shares, `b` of
/// `n` pairs having the property on the second side alone and `c` on the first alone: all `d` with
/// `|b - c - n d| <= z sqrt(n (2 q + d (1 - d)))`, where `q`, the share of pairs of the first side
/// alone if `d` is true, solves `2n q^2 - (b + c - (2n - b + c) d) q - c d (1 - d) = 0`.
///
/// Without a discordant pair it reaches `z^2 / (n + z^2)` each way. Neither number need be whole.
pub fn tango(b: f64, c: f64, n: f64, z: f64) -> Interval {
    let score = |d: f64| {
        // Tango's q21, the share of pairs in which the first side alone has the property.
        let half = (b + c - (2.0 * n - b + c) * d) / (4.0 * n);
        let q = half + (half * half + c * d * (1.0 - d) / (2.0 * n)).max(0.0).sqrt();
        let spread = (n * (2.0 * q + d * (1.0 - d))).max(0.0).sqrt();
        let away = b - c - n * d;
        if spread > 0.0 { away / spread } else { away.signum() * f64::INFINITY }
    };
    let observed = (b - c) / n;
    // The score falls as the difference rises.
    let end = |mut outside: f64| {
        let mut inside = observed;
        loop {
            let middle = f64::midpoint(inside, outside);
            if middle == inside || middle == outside {
                return inside;
            }
            if score(middle).abs() <= z {
                inside = middle;
            } else {
                outside = middle;
            }
        }
    };
    Interval { low: end(-1.0), high: end(1.0) }
}

/// What `values` of related items are worth in unrelated ones (Korn and Graubard 1998, Survey
/// Methodology 24): `n` over the design effect, the squared ratio of clustered and plain standard
/// error, and over `(t / z)^2`, for the design effect is known from so many clusters only. Between
/// the number of clusters, which is also the answer where nothing varies, and `n`.
///
/// None below two clusters of several items.
fn worth<C: Ord + Hash>(values: &[f64], clusters: &[C], confidence: f64) -> Option<f64> {
    let (n, sources) = (values.len() as f64, cluster_count(clusters) as f64);
    if sources == n {
        return Some(n);
    }
    if sources < 2.0 {
        return None;
    }
    let upper = f64::midpoint(1.0, confidence);
    let unknown = normal::quantile(upper) / student::quantile(upper, sources - 1.0);
    let effect = (unit_standard_error(values, clusters) / standard_error(values)).powi(2);
    let worth = if effect.is_finite() { n / effect.max(1.0) * unknown * unknown } else { sources };
    Some(worth.clamp(sources.min(n), n))
}

/// [`wilson`] of values that are all 0 or 1, with as many items as they are worth where they share
/// sources. None of other values, of one item and of one source.
pub(super) fn share_interval<C: Ord + Hash>(values: &[f64], clusters: &[C], confidence: f64) -> Option<Interval> {
    if values.len() < 2 || values.iter().any(|v| *v != 0.0 && *v != 1.0) {
        return None;
    }
    let worth = worth(values, clusters, confidence)?;
    let ones = values.iter().sum::<f64>() * (worth / values.len() as f64);
    let all = values.iter().all(|v| *v == 1.0);
    Some(wilson(if all { worth } else { ones }, worth, z(confidence)))
}

/// [`tango`] of two sides whose values are all 0 or 1, the second less the first, likewise.
pub(super) fn share_difference_interval<C: Ord + Hash>(
    a: &[f64],
    b: &[f64],
    clusters: &[C],
    confidence: f64,
) -> Option<Interval> {
    let counts = Agreement::of(a, b).filter(|_| a.len() > 1)?;
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| b - a).collect();
    let worth = worth(&differences, clusters, confidence)?;
    let scale = worth / a.len() as f64;
    Some(tango(counts.only_b as f64 * scale, counts.only_a as f64 * scale, worth, z(confidence)))
}

fn z(confidence: f64) -> f64 {
    normal::quantile(f64::midpoint(1.0, confidence))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::stats::{StatsOptions, clustered_mean_interval, difference_interval};

    const Z: f64 = 1.959_963_984_540_054;

    fn near(found: Interval, low: f64, high: f64, tolerance: f64) {
        assert!((found.low - low).abs() <= tolerance && (found.high - high).abs() <= tolerance, "{found:?}");
    }

    #[test]
    fn wilson_is_that_of_statsmodels() {
        // proportion_confint(k, n, method="wilson")
        near(wilson(0.0, 14.0, Z), 0.0, 0.215_310_802_737_635_86, 1e-12);
        near(wilson(3.0, 14.0, Z), 0.075_713_867_126_931_92, 0.475_892_305_866_002_95, 1e-12);
        near(wilson(14.0, 14.0, Z), 0.784_689_197_262_364_1, 1.0, 1e-12);
        near(wilson(37.0, 60.0, Z), 0.490_175_958_240_999_24, 0.729_117_276_259_179_8, 1e-12);
    }

    #[test]
    fn tango_is_that_of_the_literature_and_solves_its_equation() {
        // Fagerland, Lydersen and Laake 2014 (Statistics in Medicine 33), table VIII: 1 and 7 of 21.
        near(tango(1.0, 7.0, 21.0, Z), -0.517, -0.026, 5e-4);
        let Interval { low, high } = tango(7.0, 1.0, 21.0, Z);
        near(tango(1.0, 7.0, 21.0, Z), -high, -low, 1e-12);
        // Nothing discordant: z^2 / (n + z^2) each way.
        let alone = Z * Z / (14.0 + Z * Z);
        near(tango(0.0, 0.0, 14.0, Z), -alone, alone, 1e-12);
        near(tango(20.0, 0.0, 20.0, Z), (20.0 - Z * Z) / (20.0 + Z * Z), 1.0, 1e-12);
        for (b, c, n) in [(3.0, 2.0, 20.0), (0.0, 5.0, 20.0), (11.5, 0.25, 60.0), (19.0, 1.0, 20.0)] {
            for d in [tango(b, c, n, Z).low, tango(b, c, n, Z).high] {
                // The constrained likelihood's maximum, by its derivative: b/(q+d) + c/q = (n-b-c)/(1-2q-d) * 2.
                let slope = |q: f64| b / (q + d) + c / q - 2.0 * (n - b - c) / (1.0 - 2.0 * q - d);
                let (mut low, mut high) = ((-d).max(0.0), (1.0 - d) / 2.0);
                for _ in 0..200 {
                    let q = f64::midpoint(low, high);
                    if slope(q) > 0.0 { low = q } else { high = q }
                }
                let z = (b - c - n * d) / (n * (2.0 * low + d * (1.0 - d))).sqrt();
                assert!((z.abs() - Z).abs() < 1e-6, "{b} {c} {n}: {d} has {z}");
            }
        }
    }

    #[test]
    fn equal_outcomes_claim_no_certainty() {
        let options = StatsOptions::default();
        let alone: Vec<usize> = (0..14).collect();
        for same in [[0.0; 14], [1.0; 14]] {
            let one = clustered_mean_interval(&same, &alone, &options);
            assert!((one.high - one.low - 0.215_31).abs() < 1e-4, "{one:?}");
            let both = difference_interval(&same, &same, &alone, &options);
            assert!(both.low < -0.2 && both.high > 0.2, "{both:?}");
            // Seven sources of two items each know less, one knows nothing.
            let pairs: Vec<usize> = (0..14).map(|i| i / 2).collect();
            let fewer = clustered_mean_interval(&same, &pairs, &options);
            let seven = if same[0] == 0.0 { wilson(0.0, 7.0, Z) } else { wilson(7.0, 7.0, Z) };
            near(fewer, seven.low, seven.high, 1e-12);
            assert!(clustered_mean_interval(&same, &[3; 14], &options).low.is_nan());
        }
    }

    #[test]
    fn copies_of_an_item_are_worth_one() {
        let options = StatsOptions::default();
        let once: Vec<f64> = (0..30).map(|i| f64::from(u8::from(i % 3 == 0))).collect();
        let copied: Vec<f64> = once.iter().flat_map(|v| [*v; 4]).collect();
        let sources: Vec<usize> = (0..120).map(|i| i / 4).collect();
        let all = clustered_mean_interval(&copied, &sources, &options);
        near(all, wilson(10.0, 30.0, Z).low, wilson(10.0, 30.0, Z).high, 1e-3);
        let unrelated = clustered_mean_interval(&copied, &(0..120).collect::<Vec<_>>(), &options);
        near(unrelated, wilson(40.0, 120.0, Z).low, wilson(40.0, 120.0, Z).high, 1e-12);
    }
}
