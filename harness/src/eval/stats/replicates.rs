//! Several trainings of one recipe, which differ by their seed alone: what two recipes differ by,
//! beside what two seeds do.
//!
//! A value `y` of item `i` under seed `s` of a recipe is taken as
//! `y = mean + item_i + seed_s + (item x seed)_is`, items crossed with the seeds of either side and
//! the seeds of one side unrelated to those of the other (Searle, Casella and McCulloch, Variance
//! Components, 1992, chapter 4). The items are the same on both sides, so that what they have in
//! common cancels.

use std::hash::Hash;

use rayon::prelude::*;

use super::interval::{Drawn, Jackknife, unit_standard_error};
use super::random::Random;
use super::summary::{mean, standard_deviation, sum};
use super::{PairedComparison, StatsOptions, by_cluster, cluster_count, compare_paired, student};
use crate::{Error, Result};

/// Streams of the draws of seeds start here, beside those of items.
const SEED_STREAMS: u64 = 1 << 62;

/// Variance components of one recipe's values.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Components {
    /// Variance between items, of their means over all seeds there might be.
    pub item: f64,
    /// Variance between seeds, of their means over all items there might be.
    pub seed: f64,
    /// What is left: items that one seed does well and another does not.
    pub item_by_seed: f64,
}

/// Two recipes compared over items and seeds.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ReplicatedComparison {
    /// The difference with its interval and p-value. Of one seed a side it is [`compare_paired`]'s,
    /// to the bit, and says nothing of other seeds.
    pub comparison: PairedComparison,
    /// Seeds of the first and of the second side.
    pub seeds: [usize; 2],
    /// Components of either side; none of one seed, or below two items.
    pub components: [Option<Components>; 2],
    /// The part of the difference's variance that is the choice of seeds, 0 to 1. None where no side
    /// has two seeds.
    pub seed_share: Option<f64>,
    /// By how much two seeds of one recipe differ on these items: the root of the mean square, which
    /// is `sqrt(2)` times the standard deviation of the seeds' means, over both sides.
    pub seed_difference: Option<f64>,
}

impl ReplicatedComparison {
    /// Whether the recipes differ by less than two seeds of one recipe do; none where that is not
    /// known.
    pub fn within_seeds(&self) -> Option<bool> {
        self.seed_difference.map(|seeds| self.comparison.difference.abs() < seeds)
    }
}

/// One side: per item its value under every seed.
struct Side<'a> {
    rows: &'a [Vec<f64>],
    seeds: usize,
    /// Means over the seeds, by item.
    items: Vec<f64>,
    /// Means over the items, by seed.
    means: Vec<f64>,
}

impl<'a> Side<'a> {
    fn new(rows: &'a [Vec<f64>]) -> Self {
        let seeds = rows[0].len();
        let means = (0..seeds).map(|s| mean(&rows.iter().map(|row| row[s]).collect::<Vec<_>>())).collect();
        Side { rows, seeds, items: rows.iter().map(|row| mean(row)).collect(), means }
    }

    /// Variance between the seeds' means on these items; none of one seed.
    fn between(&self) -> Option<f64> {
        (self.seeds > 1).then(|| standard_deviation(&self.means).powi(2))
    }

    /// The part of that which is chance of the items: the variance of a seed's mean that comes from
    /// items it does well or badly, items of a source together.
    fn chance<C: Ord>(&self, clusters: &[C]) -> Option<f64> {
        if self.seeds < 2 {
            return None;
        }
        let all = mean(&self.means);
        let of_seed = |s: usize| {
            let left: Vec<f64> =
                self.rows.iter().zip(&self.items).map(|(row, item)| row[s] - item - self.means[s] + all).collect();
            unit_standard_error(&left, clusters).powi(2)
        };
        // Over S - 1: so much of a seed's residuals its item means have not taken.
        Some((0..self.seeds).map(of_seed).sum::<f64>() / (self.seeds - 1) as f64)
    }

    fn components(&self) -> Option<Components> {
        let (n, seeds) = (self.rows.len() as f64, self.seeds as f64);
        let alone: Vec<usize> = (0..self.rows.len()).collect();
        let (between, chance) = (self.between()?, self.chance(&alone)?);
        let item_by_seed = chance * n;
        let item = standard_deviation(&self.items).powi(2) - item_by_seed / seeds;
        item.is_finite().then(|| Components { item: item.max(0.0), seed: (between - chance).max(0.0), item_by_seed })
    }
}

/// Compares two recipes, each given as the values of its items (the same, in the same order) under
/// each of its seeds: `a[item][seed]`. Items of one cluster are related.
///
/// With `n` items and `S` seeds of a side, the variance of the difference of the means is
/// `V = v + sum over sides of (b - c) / S`: `v` the squared standard error of the items' mean
/// differences, `b` the variance between the seeds' means and `c` the part of it that is chance of
/// the items and already in `v` (the analysis of variance of the two-way random model; Searle and
/// others, section 4.4). Degrees of freedom are Satterthwaite's (1946, Biometrics Bulletin 2). The
/// variance between seeds is pooled over both sides, for two or three seeds say little of it.
///
/// The interval is the further, end by end, of Student's and of a two-level bootstrap: items are
/// drawn for both sides together and, crossed with them, seeds of each side (the pigeonhole
/// bootstrap: Owen 2007, Annals of Applied Statistics 1), `S - 1` of `S` so that their variance is
/// not too small (Rao and Wu 1988, JASA 83); bias and acceleration as of every
/// [`mean_interval`](super::mean_interval).
///
/// A side that is not `seeded` is one model that is what it is, such as the base: no seed of it was
/// drawn, and it adds nothing to the variance that is the seeds'.
///
/// Values of pooled metrics go in as shares: `n w_i / sum(w)` times the value.
///
/// # Errors
/// Data, if there is no item, no seed, rows of unequal length, sides or clusters of other lengths, or
/// a value that is not finite.
pub fn compare_replicated<C: Ord + Hash + Sync>(
    a: &[Vec<f64>],
    b: &[Vec<f64>],
    seeded: [bool; 2],
    clusters: &[C],
    options: &StatsOptions,
) -> Result<ReplicatedComparison> {
    check(a, b, clusters.len())?;
    let sides = [Side::new(a), Side::new(b)];
    let seeds = sides.each_ref().map(|side| side.seeds);
    if seeds == [1, 1] {
        let first = |side: &[Vec<f64>]| side.iter().map(|row| row[0]).collect::<Vec<f64>>();
        let comparison = one_seed(&first(a), &first(b), clusters, options)?;
        let components = [None, None];
        return Ok(ReplicatedComparison { comparison, seeds, components, seed_share: None, seed_difference: None });
    }
    let differences: Vec<f64> = sides[0].items.iter().zip(&sides[1].items).map(|(a, b)| b - a).collect();
    let difference = mean(&differences);
    let between = pooled(&sides, |side| side.between());
    let chance = pooled(&sides, |side| side.chance(clusters));
    let drawn = |side: usize| if seeded[side] || seeds[side] > 1 { 1.0 / seeds[side] as f64 } else { 0.0 };
    let variance = Variance::of(&differences, clusters, between, chance, seeds, drawn(0) + drawn(1));
    let standard_error = variance.total().sqrt();
    let freedom = variance.freedom();
    let interval = Drawn {
        units: cluster_count(clusters),
        drawn: two_level(&sides, clusters, options),
        estimate: difference,
        standard_error,
        freedom,
        acceleration: acceleration_of(&differences, clusters),
    };
    let units = interval.units;
    let interval = if units < 2 || options.resamples == 0 { None } else { Some(interval.interval(options)) };
    let p_value = match () {
        () if units < 2 => f64::NAN,
        () if standard_error > 0.0 => 2.0 * student::cumulative(-(difference / standard_error).abs(), freedom),
        () => f64::from(u8::from(difference == 0.0)),
    };
    Ok(ReplicatedComparison {
        comparison: PairedComparison {
            n: a.len(),
            mean_a: mean(&sides[0].items),
            mean_b: mean(&sides[1].items),
            difference,
            ci_low: interval.map_or(f64::NAN, |i| i.low),
            ci_high: interval.map_or(f64::NAN, |i| i.high),
            p_value,
        },
        seeds,
        components: sides.each_ref().map(Side::components),
        seed_share: Some(variance.seeds() / variance.total()).filter(|share| share.is_finite()),
        seed_difference: Some((2.0 * between).sqrt()),
    })
}

/// [`compare_paired`], items of a source being drawn and flipped together.
fn one_seed<C: Ord + Hash>(a: &[f64], b: &[f64], clusters: &[C], options: &StatsOptions) -> Result<PairedComparison> {
    let mut comparison = compare_paired(a, b, options)?;
    if cluster_count(clusters) < a.len() {
        let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| b - a).collect();
        let interval = super::difference_interval(a, b, clusters, options);
        (comparison.ci_low, comparison.ci_high) = (interval.low, interval.high);
        comparison.p_value = super::clustered_sign_flip_p(&differences, clusters, options);
    }
    Ok(comparison)
}

fn check(a: &[Vec<f64>], b: &[Vec<f64>], clusters: usize) -> Result<()> {
    let what = if a.is_empty() || a.len() != b.len() || clusters != a.len() {
        format!("the sides have {} and {} items, and sources are given of {clusters}", a.len(), b.len())
    } else if [a, b].iter().any(|side| side[0].is_empty() || side.iter().any(|row| row.len() != side[0].len())) {
        "an item has not a value under every seed of its side".to_string()
    } else if let Some(item) = (0..a.len()).find(|&i| a[i].iter().chain(&b[i]).any(|v| !v.is_finite())) {
        format!("a value of item {item} is not finite")
    } else {
        return Ok(());
    };
    Err(Error::data(format!("replicates cannot be compared: {what}"))
        .help("leave items without a value under some seed out of both sides"))
}

/// A variance over both sides, weighted by their degrees of freedom.
fn pooled(sides: &[Side<'_>; 2], of: impl Fn(&Side<'_>) -> Option<f64>) -> f64 {
    let (mut total, mut weight) = (0.0, 0.0);
    for side in sides {
        if let Some(variance) = of(side) {
            total += (side.seeds - 1) as f64 * variance;
            weight += (side.seeds - 1) as f64;
        }
    }
    total / weight
}

/// What the variance of a difference consists of.
struct Variance {
    items: f64,
    between: f64,
    chance: f64,
    units: f64,
    seed_freedom: f64,
}

impl Variance {
    /// `per_seed` is the sum over the sides of one over the seeds that were drawn.
    fn of<C: Ord>(
        differences: &[f64],
        clusters: &[C],
        between: f64,
        chance: f64,
        seeds: [usize; 2],
        per_seed: f64,
    ) -> Self {
        let [a, b] = seeds.map(|s| s as f64);
        let units = cluster_count(clusters) as f64;
        let items = unit_standard_error(differences, clusters).powi(2);
        Variance { items, between: between * per_seed, chance: chance * per_seed, units, seed_freedom: a + b - 2.0 }
    }

    /// The part that is the choice of seeds.
    fn seeds(&self) -> f64 {
        (self.between - self.chance).max(0.0)
    }

    fn total(&self) -> f64 {
        self.items + self.seeds()
    }

    /// Satterthwaite's degrees of freedom of the total, chance among the seeds' included: so few of
    /// them as there are decide what is subtracted.
    fn freedom(&self) -> f64 {
        let (items, between) = (self.items, self.between);
        let parts = items.powi(2) / (self.units - 1.0) + between.powi(2) / self.seed_freedom;
        let freedom = (items + between).powi(2) / parts;
        if freedom.is_finite() { freedom.max(1.0) } else { (self.units - 1.0).max(1.0) }
    }
}

/// Acceleration of the items' mean difference.
fn acceleration_of<C: Ord>(differences: &[f64], clusters: &[C]) -> f64 {
    let terms = by_cluster(clusters.iter().zip(differences.iter().map(|&d| (d, 1.0))));
    let (total, weight) = (sum(terms.iter().map(|t| t.0)), differences.len() as f64);
    Jackknife::of(terms.iter().map(|t| (total - t.0) / (weight - t.1)).collect()).acceleration
}

/// The differences of two-level resamples, sorted. Items are drawn as of every bootstrap.
fn two_level<C: Ord>(sides: &[Side<'_>; 2], clusters: &[C], options: &StatsOptions) -> Vec<f64> {
    // Per source: items, and each side's sums under every seed.
    let units: Vec<(f64, [Vec<f64>; 2])> = {
        let counts = by_cluster(clusters.iter().zip(std::iter::repeat((0.0, 1.0))));
        let under =
            |side: &Side<'_>, s: usize| by_cluster(clusters.iter().zip(side.rows.iter().map(|row| (row[s], 1.0))));
        let sums = sides.each_ref().map(|side| (0..side.seeds).map(|s| under(side, s)).collect::<Vec<_>>());
        let of = |i: usize| sums.each_ref().map(|side| side.iter().map(|seed| seed[i].0).collect());
        (0..counts.len()).map(|i| (counts[i].1, of(i))).collect()
    };
    let n = units.len();
    let mut drawn: Vec<f64> = (0..options.resamples as u64)
        .into_par_iter()
        .map(|stream| {
            let mut random = Random::stream(options.seed, stream);
            let items: Vec<usize> = (0..n).map(|_| random.below(n as u64) as usize).collect();
            let weight: f64 = items.iter().map(|&i| units[i].0).sum();
            let mut random = Random::stream(options.seed, SEED_STREAMS | stream);
            let mut side_mean = |side: usize| {
                let seeds = sides[side].seeds;
                // S - 1 of S; the only one where there is but one.
                let times = seeds.saturating_sub(1).max(1);
                let total: f64 = (0..times)
                    .map(|_| {
                        let seed = random.below(seeds as u64) as usize;
                        items.iter().map(|&i| units[i].1[side][seed]).sum::<f64>()
                    })
                    .sum();
                total / (times as f64 * weight)
            };
            let first = side_mean(0);
            side_mean(1) - first
        })
        .collect();
    drawn.sort_by(f64::total_cmp);
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::stats::normal;

    fn normal(random: &mut Random) -> f64 {
        normal::quantile((random.below(1 << 40) as f64 + 0.5) / (1u64 << 40) as f64)
    }

    /// Standard deviations: of what items have on both sides, of what they have on one, of a side's
    /// seeds, and of items under a seed.
    struct World {
        shared: f64,
        item: f64,
        seed: f64,
        rest: f64,
    }

    impl World {
        fn draw(&self, n: usize, seeds: [usize; 2], stream: u64) -> [Vec<Vec<f64>>; 2] {
            let mut random = Random::stream(11, stream);
            let shared: Vec<f64> = (0..n).map(|_| self.shared * normal(&mut random)).collect();
            seeds.map(|count| {
                let of_seeds: Vec<f64> = (0..count).map(|_| self.seed * normal(&mut random)).collect();
                let row = |common: &f64| {
                    let item = common + self.item * normal(&mut random);
                    of_seeds.iter().map(|seed| item + seed + self.rest * normal(&mut random)).collect()
                };
                shared.iter().map(row).collect()
            })
        }
    }

    fn alone(n: usize) -> Vec<usize> {
        (0..n).collect()
    }

    #[test]
    fn one_seed_a_side_is_the_ordinary_comparison_to_the_bit() {
        let options = StatsOptions { resamples: 500, ..StatsOptions::default() };
        let [a, b] = World { shared: 1.0, item: 0.5, seed: 0.2, rest: 0.1 }.draw(17, [1, 1], 0);
        let ours = compare_replicated(&a, &b, [true; 2], &alone(17), &options).unwrap();
        let flat = |side: &[Vec<f64>]| side.iter().map(|row| row[0]).collect::<Vec<f64>>();
        assert_eq!(ours.comparison, compare_paired(&flat(&a), &flat(&b), &options).unwrap());
        assert_eq!((ours.seeds, ours.seed_share, ours.within_seeds()), ([1, 1], None, None));
        let sources: Vec<usize> = (0..17).map(|i| i / 2).collect();
        let clustered = compare_replicated(&a, &b, [true; 2], &sources, &options).unwrap().comparison;
        let interval = super::super::difference_interval(&flat(&a), &flat(&b), &sources, &options);
        assert_eq!((clustered.ci_low, clustered.ci_high), (interval.low, interval.high));
    }

    #[test]
    fn known_components_are_found() {
        let options = StatsOptions { resamples: 1, ..StatsOptions::default() };
        let world = World { shared: 0.8, item: 0.6, seed: 0.3, rest: 0.5 };
        let (mut item, mut seed, mut rest, mut share) = (0.0, 0.0, 0.0, 0.0);
        const RUNS: u64 = 400;
        for stream in 0..RUNS {
            let [a, b] = world.draw(60, [4, 4], stream);
            let found = compare_replicated(&a, &b, [true; 2], &alone(60), &options).unwrap();
            let of = found.components[0].unwrap();
            (item, seed, rest) = (item + of.item, seed + of.seed, rest + of.item_by_seed);
            share += found.seed_share.unwrap();
        }
        let mean = |total: f64| total / RUNS as f64;
        assert!((mean(item) - 1.0).abs() < 0.04, "{}", mean(item));
        assert!((mean(seed) - 0.09).abs() < 0.008, "{}", mean(seed));
        assert!((mean(rest) - 0.25).abs() < 0.01, "{}", mean(rest));
        // Of the difference: seeds 2 * 0.09 / 4, items (2 * 0.36 + 2 * 0.25 / 4) / 60.
        assert!((mean(share) - 0.045 / (0.045 + 0.845 / 60.0)).abs() < 0.06, "{}", mean(share));
    }

    #[test]
    fn intervals_of_recipes_cover_where_those_of_one_seed_do_not() {
        let options = StatsOptions { resamples: 200, ..StatsOptions::default() };
        const RUNS: u64 = 400;
        for (seed, seeds) in [(0.0, [3, 3]), (0.2, [3, 3]), (0.2, [5, 5]), (0.2, [3, 1])] {
            let world = World { shared: 1.0, item: 0.5, seed, rest: 0.4 };
            let (mut covered, mut alone_covered) = (0, 0);
            for stream in 0..RUNS {
                let [a, b] = world.draw(40, seeds, stream);
                let found = compare_replicated(&a, &b, [true; 2], &alone(40), &options).unwrap().comparison;
                covered += u64::from(found.ci_low <= 0.0 && 0.0 <= found.ci_high);
                let first = |side: &[Vec<f64>]| side.iter().map(|row| row[..1].to_vec()).collect::<Vec<_>>();
                let one =
                    compare_replicated(&first(&a), &first(&b), [true; 2], &alone(40), &options).unwrap().comparison;
                alone_covered += u64::from(one.ci_low <= 0.0 && 0.0 <= one.ci_high);
            }
            let (covered, one) = (covered as f64 / RUNS as f64, alone_covered as f64 / RUNS as f64);
            println!("seed {seed}, {seeds:?}: {covered}, of one seed {one}");
            assert!(covered >= 0.93, "seed {seed}, {seeds:?}: {covered}");
            assert!(seed == 0.0 || one < 0.8, "{one}");
        }
    }

    #[test]
    fn a_model_that_exists_adds_nothing_to_the_variance_of_seeds() {
        let options = StatsOptions { resamples: 50, ..StatsOptions::default() };
        let [a, b] = World { shared: 1.0, item: 0.5, seed: 0.4, rest: 0.3 }.draw(40, [1, 3], 5);
        let odds = |seeded| {
            let share = compare_replicated(&a, &b, seeded, &alone(40), &options).unwrap().seed_share.unwrap();
            share / (1.0 - share)
        };
        // One over three seeds, against that and one over one.
        assert!((odds([true, true]) / odds([false, true]) - 4.0).abs() < 1e-9);
    }

    #[test]
    fn a_difference_within_two_seeds_is_called_so_and_no_spread_is_no_trouble() {
        let options = StatsOptions { resamples: 100, ..StatsOptions::default() };
        let a: Vec<Vec<f64>> = (0..20).map(|i| vec![f64::from(i) + 0.5, f64::from(i) - 0.5]).collect();
        let b: Vec<Vec<f64>> = a.iter().map(|row| row.iter().map(|v| v + 0.3).collect()).collect();
        let found = compare_replicated(&a, &b, [true; 2], &alone(20), &options).unwrap();
        assert_eq!(found.seed_difference, Some(1.0));
        assert_eq!(found.within_seeds(), Some(true));
        assert!((found.seed_share.unwrap() - 1.0).abs() < 1e-9, "items differ by the same: {found:?}");
        assert!(found.comparison.ci_low < 0.0 && found.comparison.p_value > 0.3, "{found:?}");
        let same = vec![vec![0.5, 0.5]; 20];
        let equal = compare_replicated(&same, &same, [true; 2], &alone(20), &options).unwrap();
        assert_eq!((equal.comparison.p_value, equal.seed_share), (1.0, None));
        assert_eq!((equal.comparison.ci_low, equal.comparison.ci_high), (0.0, 0.0));
        assert!(
            compare_replicated(&a, &b, [true; 2], &[0; 20], &options).unwrap().comparison.ci_low.is_nan(),
            "one source"
        );
        assert!(compare_replicated(&a, &b[..9], [true; 2], &alone(20), &options).is_err());
        assert!(
            compare_replicated(&[vec![1.0], vec![]], &[vec![1.0], vec![1.0]], [true; 2], &alone(2), &options).is_err()
        );
    }
}
