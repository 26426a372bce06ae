//! Sampling: from logits to the next token, by one rule for every backend and device.
//!
//! A token is a function of the logits, the configuration, the number of the row in its call and
//! how many tokens the row has generated. Equal logits give equal tokens: on the CPU, on a GPU
//! (`native/cuda/sample.cu` follows the same steps), in any batch, on any number of threads.
//!
//! 1. A token with logit `l` weighs `floor(2^44 e^((l - max) / temperature))`. Weights are whole
//!    numbers, so that their sums are exact and the order of summing cannot matter.
//! 2. Tokens are ordered by falling logit, equal ones by rising id; the two zeros are equal.
//! 3. `top_k` keeps the first `k`. Of these, `top_p` keeps the shortest beginning that weighs at
//!    least `ceil(top_p * their weight)` (Holtzman et al., arXiv 1904.09751); transformers has the
//!    same order of the filters.
//! 4. `u` in `[0, 1)` comes from Philox4x32-10 under the seed, at the counter
//!    `(position, row, "SAMP")`. The token taken is the first at which the weight so far exceeds
//!    `floor(u * the weight of what is kept)`, in the order of 2, or by rising id where nothing was
//!    cut.

use karat_backend::{BackendError, GenerateConfig};
use karat_kernels::philox::Philox;
use karat_kernels::simd::{LANES, simd};

/// Stream of the generator that belongs to sampling: "SAMP".
const STREAM: u32 = 0x5341_4d50;
/// A weight of 1.
const ONE: f64 = (1u64 << 44) as f64;
/// Sums of weights fit into 64 bits for vocabularies below this.
const LARGEST_VOCABULARY: usize = 1 << 20;
/// A `top_p` above this cuts nothing that a draw could find: rounded, it may ask for more than
/// there is.
const ALL: f64 = 1.0 - 1.0 / (1u64 << 50) as f64;

/// The most probable token, the lowest id among equals; nothing if a logit is not a number.
pub fn argmax(logits: &[f32]) -> Option<usize> {
    simd(
        #[inline(always)]
        || {
            // Lanes side by side, without a branch: a vocabulary is long, and this is asked for
            // every token.
            let (mut highest, mut nans) = ([f32::NEG_INFINITY; LANES], [0u32; LANES]);
            for values in logits.chunks(LANES) {
                for ((highest, nans), &x) in highest.iter_mut().zip(&mut nans).zip(values) {
                    *highest = if x > *highest { x } else { *highest };
                    *nans |= u32::from(x.is_nan());
                }
            }
            if nans.iter().any(|&n| n > 0) {
                return None;
            }
            let highest = highest.into_iter().fold(f32::NEG_INFINITY, f32::max);
            Some(logits.iter().position(|&x| x == highest).unwrap_or_default())
        },
    )
}

/// Picks tokens as a configuration says.
#[derive(Clone, Debug)]
pub struct Sampler {
    config: GenerateConfig,
    generator: Philox,
}

impl Sampler {
    /// Checks the configuration for a model of `vocabulary` tokens.
    ///
    /// # Errors
    /// For a negative temperature or a `top_p` outside `(0, 1]`; for drawing from more than 2^20
    /// tokens.
    pub fn new(config: &GenerateConfig, vocabulary: usize) -> Result<Self, BackendError> {
        let GenerateConfig { temperature, top_p, seed, .. } = *config;
        if !(temperature.is_finite() && temperature >= 0.0) {
            return Err(BackendError::failed(format!("temperature must be 0 or more, not {temperature}")));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(BackendError::failed(format!("top_p must be above 0 and at most 1, not {top_p}")));
        }
        if temperature > 0.0 && vocabulary >= LARGEST_VOCABULARY {
            return Err(BackendError::unsupported(format!(
                "sampling from {vocabulary} tokens is not implemented (fewer than {LARGEST_VOCABULARY} are); use \
                 temperature 0"
            )));
        }
        let top_p = if top_p > ALL { 1.0 } else { top_p };
        Ok(Sampler { config: GenerateConfig { top_p, ..config.clone() }, generator: Philox::new(seed) })
    }

    /// The configuration, for a device that draws by the same rule.
    pub fn config(&self) -> &GenerateConfig {
        &self.config
    }

    /// The token after `logits` (`[vocab]`), for the `position`-th new token of `row`, both counted
    /// from 0.
    ///
    /// # Errors
    /// If a logit is not a number.
    pub fn pick(&self, logits: &[f32], row: usize, position: usize) -> Result<u32, BackendError> {
        let best = argmax(logits).ok_or_else(|| not_a_number(row, position))?;
        let GenerateConfig { temperature, top_k, top_p, .. } = self.config;
        let top = f64::from(logits[best]);
        if temperature == 0.0 || !top.is_finite() {
            return Ok(best as u32);
        }
        let weight = |id: usize| weight((f64::from(logits[id]) - top) / temperature);
        let drawn = self.generator.uniform(position as u64, row as u32, STREAM);
        let vocabulary = logits.len();
        let cut = top_k > 0 && top_k < vocabulary;
        if !cut && top_p >= 1.0 {
            let weights: Vec<u64> = (0..vocabulary).map(weight).collect();
            let limit = limit(drawn, weights.iter().sum());
            let mut sum = 0;
            let reaches = |weight: &u64| {
                sum += weight;
                sum >= limit
            };
            return Ok(weights.iter().position(reaches).unwrap_or(best) as u32);
        }
        let mut order = Order::new(logits);
        let mut mass = match cut {
            true => (0..top_k).map(|nth| weight(order.id(nth))).sum::<u64>(),
            false => (0..vocabulary).map(weight).sum(),
        };
        if top_p < 1.0 {
            let least = (top_p * mass as f64).ceil() as u64;
            mass = order.reach(least.clamp(1, mass), weight).1;
        }
        Ok(order.reach(limit(drawn, mass), weight).0 as u32)
    }
}

/// `floor(2^44 e^x)`. The exponential is a library's, not the system's: one seed gives one text on
/// every machine.
fn weight(x: f64) -> u64 {
    // Far tokens of a large vocabulary need no exponential: 2^44 e^-31 is below 1.
    if x < -31.0 { 0 } else { (libm::exp(x) * ONE) as u64 }
}

/// The weight to reach: one more than `drawn` of `mass`, at most the whole.
fn limit(drawn: f64, mass: u64) -> u64 {
    ((drawn * mass as f64) as u64).min(mass - 1) + 1
}

/// The error of a logit that is not a number, at the `position`-th new token of `row`.
pub fn not_a_number(row: usize, position: usize) -> BackendError {
    BackendError::failed(format!("row {row}: a logit of new token {} is not a number", position + 1))
}

/// Ids by falling logit, equal ones by rising id, sorted as far as somebody has looked: few draws
/// look far.
struct Order {
    /// The logit's rank from above in the upper half, the id in the lower; the first
    /// [`Order::sorted`] in their places.
    keys: Vec<u64>,
    sorted: usize,
}

impl Order {
    fn new(logits: &[f32]) -> Self {
        let key = |(id, x): (u32, &f32)| {
            // Both zeros are one. Floats of one sign are ordered as their bits are.
            let bits = (x + 0.0).to_bits();
            let from_below = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
            u64::from(!from_below) << 32 | u64::from(id)
        };
        Order { keys: (0..).zip(logits).map(key).collect(), sorted: 0 }
    }

    /// The id at place `nth`.
    fn id(&mut self, nth: usize) -> usize {
        while self.sorted <= nth {
            let rest = &mut self.keys[self.sorted..];
            let more = (3 * self.sorted).max(256).min(rest.len());
            if more < rest.len() {
                rest.select_nth_unstable(more);
            }
            rest[..more].sort_unstable();
            self.sorted += more;
        }
        self.keys[nth] as u32 as usize
    }

    /// The first id at which the sum of weights is `limit` or more, and that sum. All weights
    /// together reach it.
    fn reach(&mut self, limit: u64, weight: impl Fn(usize) -> u64) -> (usize, u64) {
        let (mut nth, mut sum) = (0, 0);
        loop {
            let id = self.id(nth);
            sum += weight(id);
            if sum >= limit {
                return (id, sum);
            }
            nth += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(temperature: f64, top_k: usize, top_p: f64) -> GenerateConfig {
        GenerateConfig { temperature, top_k, top_p, seed: 5, ..GenerateConfig::greedy(1, vec![]) }
    }

    /// Logits with many equal ones, zeros of both signs and impossible tokens.
    fn logits(count: usize, seed: u64) -> Vec<f32> {
        let generator = Philox::new(seed);
        let mut logits: Vec<f32> = (0..count as u64).map(|i| generator.normal(i, 1, 2) as f32 * 3.0).collect();
        logits.iter_mut().step_by(3).for_each(|x| *x = x.round());
        logits.iter_mut().skip(1).step_by(50).for_each(|x| *x = -0.0);
        logits.iter_mut().skip(2).step_by(50).for_each(|x| *x = f32::NEG_INFINITY);
        logits
    }

    /// The rule as its four points say it, without a thought for time.
    fn by_the_rule(logits: &[f32], config: &GenerateConfig, row: usize, position: usize) -> u32 {
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |x: f32| (libm::exp((f64::from(x) - f64::from(top)) / config.temperature) * ONE) as u64;
        let mut all: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
        let cuts = config.top_k > 0 && config.top_k < all.len();
        if cuts || config.top_p < 1.0 {
            all.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap());
        }
        if cuts {
            all.truncate(config.top_k);
        }
        let sums = |all: &[(u32, f32)]| -> Vec<u64> {
            let mut sum = 0;
            all.iter().map(|(_, x)| (sum += weight(*x), sum).1).collect()
        };
        if config.top_p < 1.0 {
            let sums = sums(&all);
            let least = (config.top_p * *sums.last().unwrap() as f64).ceil() as u64;
            all.truncate(1 + sums.iter().position(|sum| *sum >= least).unwrap());
        }
        let sums = sums(&all);
        let u = Philox::new(config.seed).uniform(position as u64, row as u32, STREAM);
        let drawn = (u * *sums.last().unwrap() as f64) as u64;
        all[sums.iter().position(|sum| *sum > drawn).unwrap()].0
    }

    #[test]
    fn tokens_are_those_of_the_rule() {
        for (vocabulary, rows) in [(1, 3), (9, 300), (700, 60), (40_000, 3)] {
            for (temperature, top_k, top_p) in [
                (1.0, 0, 1.0),
                (0.7, 5, 1.0),
                (1.3, 0, 0.8),
                (0.6, 20, 0.95),
                (5.0, 300, 0.999),
                (5.0, 1, 0.5),
                (100.0, 0, 1e-9),
                (f64::MIN_POSITIVE, 0, 0.9),
            ] {
                let config = config(temperature, top_k, top_p);
                let sampler = Sampler::new(&config, vocabulary).unwrap();
                for row in 0..rows {
                    let logits = logits(vocabulary, row as u64);
                    let got = sampler.pick(&logits, row, row % 7).unwrap();
                    assert_eq!(got, by_the_rule(&logits, &config, row, row % 7), "{vocabulary} {row} {config:?}");
                }
            }
        }
    }

    #[test]
    fn a_seed_gives_these_tokens_whoever_draws() {
        let logits = logits(1000, 3);
        let pick = |config: &GenerateConfig| -> Vec<u32> {
            let sampler = Sampler::new(config, 1000).unwrap();
            (0..8).map(|position| sampler.pick(&logits, 2, position).unwrap()).collect()
        };
        let found = [config(1.0, 0, 1.0), config(0.7, 40, 0.95)].map(|config| pick(&config));
        assert_eq!(found, [[964, 275, 192, 725, 145, 312, 106, 30], [315, 145, 145, 106, 145, 145, 145, 145]]);
    }

    fn shares(config: GenerateConfig, logits: &[f32]) -> Vec<f64> {
        let sampler = Sampler::new(&config, logits.len()).unwrap();
        let mut counts = vec![0f64; logits.len()];
        for position in 0..40_000 {
            counts[sampler.pick(logits, 3, position).unwrap() as usize] += 1.0 / 40_000.0;
        }
        counts
    }

    #[test]
    fn samples_follow_the_softmax_at_the_temperature() {
        let logits = [1.0f32, 0.0, 2.0, -1.0];
        let weights: Vec<f64> = logits.iter().map(|l| (f64::from(*l) / 0.7).exp()).collect();
        let total: f64 = weights.iter().sum();
        for (share, weight) in shares(config(0.7, 0, 1.0), &logits).iter().zip(weights) {
            let p = weight / total;
            // Five standard deviations of a binomial share.
            assert!((share - p).abs() < 5.0 * (p * (1.0 - p) / 40_000.0).sqrt(), "{share} {p}");
        }
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let logits = [3.0f32, 1.0, 2.0, 0.0];
        assert_eq!(shares(config(1.0, 1, 1.0), &logits)[0].round(), 1.0);
        let two = shares(config(1.0, 2, 1.0), &logits);
        assert!(two[1] == 0.0 && two[3] == 0.0 && two[2] > 0.2);
        // 0.64, 0.24, 0.09, 0.03: two tokens reach 0.7.
        let nucleus = shares(config(1.0, 0, 0.7), &logits);
        assert!(nucleus[1] == 0.0 && nucleus[3] == 0.0 && (nucleus[2] - 0.269).abs() < 0.01);
    }

    #[test]
    fn of_equal_tokens_the_lowest_ids_are_kept() {
        let kept = |top_k, top_p| -> Vec<bool> {
            shares(config(1.0, top_k, top_p), &[0.0, -0.0, 1.0, 0.0, -0.0]).iter().map(|share| *share > 0.0).collect()
        };
        assert_eq!(kept(3, 1.0), [true, true, true, false, false]);
        // e of e + 4, then 1 each: 0.405, 0.554, 0.702.
        assert_eq!(kept(0, 0.6), [true, true, true, false, false]);
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals_wherever_it_stands() {
        let sampler = Sampler::new(&config(0.0, 0, 1.0), 100).unwrap();
        assert_eq!(sampler.pick(&[1.0, 4.0, 4.0], 0, 0).unwrap(), 1);
        assert_eq!(sampler.pick(&[f32::NEG_INFINITY; 5], 0, 0).unwrap(), 0);
        for at in [0, 15, 16, 31, 99] {
            let mut logits: Vec<f32> = (0..100).map(|i| -(i as f32)).collect();
            logits[at] = 7.0;
            assert_eq!(sampler.pick(&logits, 0, 0).unwrap(), at as u32);
        }
    }

    #[test]
    fn what_gives_no_token_is_refused() {
        for temperature in [0.0, 1.0] {
            let sampler = Sampler::new(&config(temperature, 0, 1.0), 2).unwrap();
            let error = sampler.pick(&[1.0, f32::NAN], 2, 4).unwrap_err();
            assert_eq!(error.message, "row 2: a logit of new token 5 is not a number");
        }
        for (temperature, top_p, named) in
            [(-1.0, 1.0, "temperature"), (f64::NAN, 1.0, "temperature"), (1.0, 0.0, "top_p"), (1.0, 1.5, "top_p")]
        {
            let error = Sampler::new(&config(temperature, 0, top_p), 2).unwrap_err();
            assert!(error.message.contains(named), "{error}");
        }
        assert!(Sampler::new(&config(1.0, 0, 1.0), LARGEST_VOCABULARY).unwrap_err().message.contains("1048576"));
        assert!(Sampler::new(&config(0.0, 0, 1.0), LARGEST_VOCABULARY).is_ok());
    }
}
