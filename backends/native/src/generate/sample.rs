//! From logits to the next token.

use karat_backend::{BackendError, GenerateConfig};

use crate::error::Result;
use crate::rng::Philox;
use crate::tensor::{self as nn, Tensor};

/// Stream of the generator that belongs to sampling.
const STREAM: u32 = 0x5341_4d50;

/// Picks tokens as a configuration says.
pub struct Sampler {
    temperature: f64,
    top_k: usize,
    top_p: f64,
    generator: Philox,
}

impl Sampler {
    /// Checks the configuration.
    ///
    /// # Errors
    /// For a negative temperature or a `top_p` outside `(0, 1]`.
    pub fn new(config: &GenerateConfig) -> Result<Self> {
        let GenerateConfig { temperature, top_k, top_p, seed, .. } = *config;
        if !(temperature >= 0.0 && temperature.is_finite() && top_p > 0.0 && top_p <= 1.0) {
            return Err(BackendError::failed(format!(
                "temperature {temperature} must be at least 0 and top_p {top_p} above 0 and at most 1"
            )));
        }
        Ok(Sampler { temperature, top_k, top_p, generator: Philox::new(seed) })
    }

    /// The next token of each row of `logits` `[rows, vocab]`; `places` are the row's number and how many tokens it has
    /// generated.
    ///
    /// # Errors
    /// If a logit is not a number.
    pub fn pick_all(&self, logits: &Tensor, places: &[(usize, usize)]) -> Result<Vec<u32>> {
        let (view, vocab) = (nn::view(logits)?, logits.dims()[1]);
        let rows = view.chunks_exact(vocab).zip(places);
        rows.map(|(logits, &(row, place))| self.pick(logits, row, place)).collect()
    }

    /// The token after `place` generated ones of `row`. Greedy takes the largest logit, the lowest id among equals.
    ///
    /// # Errors
    /// If a logit is not a number.
    pub fn pick(&self, logits: &[f32], row: usize, place: usize) -> Result<u32> {
        let mut best = 0;
        for (id, l) in logits.iter().enumerate() {
            if l.is_nan() {
                return Err(not_a_number(row, place));
            }
            if *l > logits[best] {
                best = id;
            }
        }
        if self.temperature == 0.0 {
            return Ok(best as u32);
        }
        let top = f64::from(logits[best]);
        let mut kept: Vec<(u32, f64)> =
            (0..).zip(logits).map(|(id, l)| (id, ((f64::from(*l) - top) / self.temperature).exp())).collect();
        if (self.top_k > 0 && self.top_k < kept.len()) || self.top_p < 1.0 {
            kept.sort_by(|a, b| b.1.total_cmp(&a.1));
            if self.top_k > 0 {
                kept.truncate(self.top_k);
            }
            let mut left = self.top_p * kept.iter().map(|k| k.1).sum::<f64>();
            let enough = kept.iter().position(|k| {
                left -= k.1;
                left <= 0.0
            });
            kept.truncate(enough.map_or(kept.len(), |i| i + 1));
        }
        let total: f64 = kept.iter().map(|k| k.1).sum();
        let mut left = self.generator.uniform(place as u64, row as u32, STREAM) * total;
        for (id, weight) in &kept {
            left -= weight;
            if left < 0.0 {
                return Ok(*id);
            }
        }
        // Rounding can leave a sliver above the last token; tokens of weight 0 are never picked.
        Ok(kept.iter().rev().find(|k| k.1 > 0.0).map_or(best as u32, |k| k.0))
    }
}

/// The tokens that a device picked for `places`.
///
/// # Errors
/// If a logit was not a number.
pub fn numbers(picked: Vec<Option<u32>>, places: &[(usize, usize)]) -> Result<Vec<u32>> {
    let checked = picked.into_iter().zip(places).map(|(id, &(row, place))| id.ok_or_else(|| not_a_number(row, place)));
    checked.collect()
}

fn not_a_number(row: usize, place: usize) -> BackendError {
    BackendError::failed(format!("row {row}: a logit of new token {} is not a number", place + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(config: GenerateConfig, logits: &[f32]) -> Vec<f64> {
        let sampler = Sampler::new(&config).unwrap();
        let mut counts = vec![0f64; logits.len()];
        for place in 0..40_000 {
            counts[sampler.pick(logits, 3, place).unwrap() as usize] += 1.0 / 40_000.0;
        }
        counts
    }

    fn config(temperature: f64, top_k: usize, top_p: f64) -> GenerateConfig {
        GenerateConfig { temperature, top_k, top_p, seed: 5, ..GenerateConfig::greedy(1, vec![]) }
    }

    #[test]
    fn samples_follow_the_softmax_at_the_temperature() {
        let logits = [1.0f32, 0.0, 2.0, -1.0];
        let weights: Vec<f64> = logits.iter().map(|l| (f64::from(*l) / 0.7).exp()).collect();
        let total: f64 = weights.iter().sum();
        for (share, weight) in shares(config(0.7, 0, 1.0), &logits).iter().zip(weights) {
            assert!((share - weight / total).abs() < 0.01, "{share} {}", weight / total);
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
    fn greedy_takes_the_lowest_of_equals_and_refuses_nan() {
        let sampler = Sampler::new(&config(0.0, 0, 1.0)).unwrap();
        assert_eq!(sampler.pick(&[1.0, 4.0, 4.0], 0, 0).unwrap(), 1);
        assert!(sampler.pick(&[1.0, f32::NAN], 2, 0).unwrap_err().message.contains("row 2"));
        assert!(Sampler::new(&config(-1.0, 0, 1.0)).is_err());
        assert!(Sampler::new(&config(1.0, 0, 0.0)).is_err());
    }
}
