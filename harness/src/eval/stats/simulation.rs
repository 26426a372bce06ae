//! Pairs of models whose true difference is known, drawn again and again: what intervals, tests,
//! gates and `detectable` keep of their promises. `docs/statistics.md` holds a table of it, made by
//! `karat-tools statistics`; a test holds it to account.

use rayon::prelude::*;

use super::random::Random;
use super::{
    Agreement, Interval, PairedSpread, PooledScale, StatsOptions, bootstrap_ratio_ci, by_cluster,
    clustered_mean_interval, clustered_sign_flip_p, compare_pooled, difference_interval, quantile, ratio_interval,
};

/// The level of the tests.
pub const LEVEL: f64 = 0.05;
/// The power that `detectable` promises.
pub const POWER: f64 = 0.8;

/// What an item's values are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Normal, correlated between the models.
    Continuous,
    /// Exponential: a long tail above.
    Skewed,
    /// Lognormal: a tail so long that a sample seldom shows it.
    Heavy,
    /// Half of the texts score 0, the others anything up to 100, most of it low: BLEU of sentences.
    Overlap,
    /// Uniform, and the same for both models on seven items of ten.
    Sparse,
    /// Right or wrong, 70 % right, three pairs of ten discordant.
    Binary,
    /// Right or wrong, 10 % right, one pair of eight discordant.
    Rare,
    /// Log-likelihood per token of texts of very different length.
    Pooled,
    /// `exp` of that.
    Perplexity,
    /// Normal, three items a source.
    Clustered,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 10] = [
        Kind::Continuous,
        Kind::Skewed,
        Kind::Heavy,
        Kind::Overlap,
        Kind::Sparse,
        Kind::Binary,
        Kind::Rare,
        Kind::Pooled,
        Kind::Perplexity,
        Kind::Clustered,
    ];

    /// What a table calls it.
    pub fn title(self) -> &'static str {
        match self {
            Kind::Continuous => "continuous",
            Kind::Skewed => "skewed (exponential)",
            Kind::Heavy => "heavy tail (lognormal)",
            Kind::Overlap => "half zeros (BLEU)",
            Kind::Sparse => "seven of ten equal",
            Kind::Binary => "binary, 70 %",
            Kind::Rare => "binary, 10 %",
            Kind::Pooled => "pooled (NLL)",
            Kind::Perplexity => "pooled (perplexity)",
            Kind::Clustered => "three items a source",
        }
    }

    /// The true value of a model.
    fn truth(self) -> f64 {
        match self {
            Kind::Continuous | Kind::Clustered => 0.0,
            Kind::Skewed => 1.0,
            Kind::Heavy => 0.5f64.exp(),
            // 0.7 * 0.75 of the texts, whose squared uniform has the mean 1/3.
            Kind::Overlap => 100.0 * 0.7 * 0.75 / 3.0,
            Kind::Sparse => 0.5,
            Kind::Binary => 0.7,
            Kind::Rare => 0.1,
            Kind::Pooled => NLL,
            Kind::Perplexity => NLL.exp(),
        }
    }

    /// Of right-or-wrong metrics, the share right and the share of discordant pairs.
    fn shares(self) -> Option<(f64, f64)> {
        match self {
            Kind::Binary => Some((0.7, 0.3)),
            Kind::Rare => Some((0.1, 0.125)),
            _ => None,
        }
    }
}

/// Mean log-likelihood per token.
const NLL: f64 = 1.2;

/// A pair of models on the same items: value and weight of each, and the items' sources.
struct Pair {
    a: Vec<(f64, f64)>,
    b: Vec<(f64, f64)>,
    sources: Vec<usize>,
}

struct Draw(Random);

impl Draw {
    fn uniform(&mut self) -> f64 {
        (self.0.below(1 << 52) as f64 + 0.5) / (1u64 << 52) as f64
    }

    /// By Box and Muller.
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    fn chance(&mut self, share: f64) -> bool {
        self.uniform() < share
    }

    /// Values of two models that truly differ by `difference`.
    fn pair(&mut self, kind: Kind, n: usize, difference: f64) -> Pair {
        let mut pair = Pair { a: Vec::new(), b: Vec::new(), sources: Vec::new() };
        let mut source = 0.0;
        for i in 0..n {
            if i % 3 == 0 {
                source = self.normal();
            }
            let (a, b, weight) = self.item(kind, source, difference);
            pair.a.push((a, weight));
            pair.b.push((b, weight));
            pair.sources.push(if kind == Kind::Clustered { i / 3 } else { i });
        }
        pair
    }

    fn item(&mut self, kind: Kind, source: f64, difference: f64) -> (f64, f64, f64) {
        if let Some((right, discordant)) = kind.shares() {
            let (a, b) = self.outcomes(right, discordant, difference);
            return (f64::from(u8::from(a)), f64::from(u8::from(b)), 1.0);
        }
        match kind {
            Kind::Continuous => {
                let item = self.normal();
                (item + 0.5 * self.normal(), item + 0.5 * self.normal() + difference, 1.0)
            }
            Kind::Skewed => {
                // Half a squared normal and another are exponential together.
                let [item, a, b] = [(); 3].map(|()| self.normal().powi(2) / 2.0);
                (item + a, item + b + difference, 1.0)
            }
            Kind::Heavy => {
                let item = 0.8 * self.normal();
                let mut value = || (item + 0.6 * self.normal()).exp();
                (value(), value() + difference, 1.0)
            }
            Kind::Overlap => {
                let hard = self.chance(0.3);
                let mut score = || if hard || self.chance(0.25) { 0.0 } else { 100.0 * self.uniform().powi(2) };
                (score(), score() + difference, 1.0)
            }
            Kind::Sparse => {
                let item = self.uniform();
                let other = if self.chance(0.7) { item } else { self.uniform() };
                // Only items that differ can differ more: the others' share of it is theirs.
                (item, if other == item { other } else { other + difference / 0.3 }, 1.0)
            }
            Kind::Clustered => {
                let (a, b) = (0.5 * source + self.normal(), self.normal());
                (a, a + 0.4 * source + 0.5 * b + difference, 1.0)
            }
            Kind::Pooled | Kind::Perplexity => {
                let weight = (4.0 + 0.6 * self.normal()).exp().ceil();
                let item = NLL + 0.3 * self.normal();
                (item + 0.2 * self.normal(), item + 0.2 * self.normal() + difference, weight)
            }
            Kind::Binary | Kind::Rare => unreachable!("drawn above"),
        }
    }

    /// Whether either model is right, discordant pairs going the second one's way more often by
    /// `difference`.
    fn outcomes(&mut self, right: f64, discordant: f64, difference: f64) -> (bool, bool) {
        let rate = discordant.max(difference.abs());
        if self.chance(rate) {
            let second = self.chance((1.0 + difference / rate) / 2.0);
            return (!second, second);
        }
        let both = self.chance((right - discordant / 2.0) / (1.0 - discordant));
        (both, both)
    }
}

/// What is said of one pair.
struct Said {
    single: Interval,
    percentile: Interval,
    difference: Interval,
    p: f64,
    spread: PairedSpread,
}

fn judge(kind: Kind, pair: &Pair, options: &StatsOptions) -> Said {
    let values = |side: &[(f64, f64)]| side.iter().map(|t| t.0).collect::<Vec<f64>>();
    let terms: Vec<(f64, f64)> =
        by_cluster(pair.sources.iter().zip(pair.a.iter().map(|(value, weight)| (value * weight, *weight))));
    let percentile = bootstrap_ratio_ci(&terms, options);
    if !matches!(kind, Kind::Pooled | Kind::Perplexity) {
        let (a, b) = (values(&pair.a), values(&pair.b));
        let differences: Vec<f64> = a.iter().zip(&b).map(|(a, b)| b - a).collect();
        let p = match Agreement::of(&a, &b) {
            Some(agreement) => agreement.p_value(),
            None => clustered_sign_flip_p(&differences, &pair.sources, options),
        };
        return Said {
            single: clustered_mean_interval(&a, &pair.sources, options),
            percentile,
            difference: difference_interval(&a, &b, &pair.sources, options),
            p,
            spread: PairedSpread::of(&a, &b, &pair.sources),
        };
    }
    let (scale, of): (_, fn(f64) -> f64) =
        if kind == Kind::Perplexity { (PooledScale::Exp, f64::exp) } else { (PooledScale::Linear, |x| x) };
    let back = |Interval { low, high }: Interval| Interval { low: of(low), high: of(high) };
    let compared = compare_pooled(&pair.a, &pair.b, &pair.sources, scale, options);
    Said {
        single: back(ratio_interval(&terms, options)),
        percentile: back(percentile),
        difference: compared.interval,
        p: compared.p_value,
        spread: compared.spread,
    }
}

/// Shares of replications.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Calibration {
    /// In which the interval of one model's value holds the true one.
    pub single: f64,
    /// The same of the percentile bootstrap.
    pub percentile: f64,
    /// In which the interval of the difference of equal models holds 0.
    pub paired: f64,
    /// In which the test calls equal models different.
    pub null: f64,
    /// In which a gate without margin calls an equal model a regression.
    pub alarm: f64,
    /// The true difference that is called detectable, the median over replications; none where half
    /// of them have none.
    pub detectable: Option<f64>,
    /// In which the test finds that difference.
    pub power: Option<f64>,
    /// In which a gate passes a model that is worse by exactly the margin, which is that difference.
    pub passed: Option<f64>,
}

/// Replications of `n` items of a kind: first of equal models, then of models that differ by what
/// was called detectable. The seed of `options` numbers them.
pub fn calibrate(kind: Kind, n: usize, replications: u64, options: &StatsOptions) -> Calibration {
    let draw = |stream: u64, difference: f64| {
        let mut draw = Draw(Random::stream(options.seed ^ (kind as u64) << 32 ^ (n as u64) << 40, stream));
        let options = StatsOptions { seed: options.seed.wrapping_add(stream), ..options.clone() };
        judge(kind, &draw.pair(kind, n, difference), &options)
    };
    let equal: Vec<Said> = (0..replications).into_par_iter().map(|stream| draw(stream, 0.0)).collect();
    let share = |said: &[Said], holds: &dyn Fn(&Said) -> bool| {
        said.iter().filter(|s| holds(s)).count() as f64 / replications as f64
    };
    let holds = |interval: Interval, truth: f64| interval.low <= truth && truth <= interval.high;
    let mut detectable: Vec<f64> =
        equal.iter().filter_map(|s| s.spread.detectable(LEVEL, POWER, options).ok()).collect();
    detectable.sort_by(f64::total_cmp);
    // Where half of the replications have none, there is none.
    let detectable = (2 * detectable.len() as u64 > replications).then(|| quantile(&detectable, 0.5));
    // Of perplexities the difference is one of logarithms.
    let drawn = detectable.map(|d| if kind == Kind::Perplexity { (1.0 + d / kind.truth()).ln() } else { d });
    let differing: Option<Vec<Said>> =
        drawn.map(|d| (0..replications).into_par_iter().map(|stream| draw(replications + stream, d)).collect());
    Calibration {
        single: share(&equal, &|s| holds(s.single, kind.truth())),
        percentile: share(&equal, &|s| holds(s.percentile, kind.truth())),
        paired: share(&equal, &|s| holds(s.difference, 0.0)),
        null: share(&equal, &|s| s.p < LEVEL),
        alarm: share(&equal, &|s| s.difference.high < 0.0),
        detectable,
        power: differing.as_ref().map(|said| share(said, &|s| s.p < LEVEL)),
        // Less is better: worse by the margin, and the gain's lower end is the difference's upper one.
        passed: differing.as_ref().zip(detectable).map(|(said, d)| share(said, &|s| s.difference.high <= d)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_has_the_true_values() {
        for kind in Kind::ALL {
            let mut draw = Draw(Random::stream(3, kind as u64));
            let n = 60_000;
            let pair = draw.pair(kind, n, 0.0);
            let pooled = |side: &[(f64, f64)]| {
                side.iter().map(|(v, w)| v * w).sum::<f64>() / side.iter().map(|t| t.1).sum::<f64>()
            };
            for side in [&pair.a, &pair.b] {
                let value = if kind == Kind::Perplexity { pooled(side).exp() } else { pooled(side) };
                let near = 0.02 * kind.truth().abs().max(1.0);
                assert!((value - kind.truth()).abs() < near, "{kind:?}: {value} for {}", kind.truth());
            }
            let by = 0.05;
            let moved = draw.pair(kind, n, by);
            let found = pooled(&moved.b) - pooled(&moved.a);
            let near = if kind == Kind::Overlap { 0.6 } else { 0.02 };
            assert!((found - by).abs() < near, "{kind:?}: {found}");
        }
    }
}
