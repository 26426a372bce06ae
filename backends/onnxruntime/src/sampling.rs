//! Choosing the next token. A draw depends on the seed, the row and the position alone, so a row's text does not depend
//! on which rows happen to be decoded beside it.

use std::cmp::Ordering;

use karat_backend::{BackendError, GenerateConfig};

use crate::logits::argmax;

/// The token after `logits` (`[vocab]`), for the `position`-th new token of `row`.
///
/// Greedy at temperature 0. Otherwise softmax of `logits / temperature`, restricted to the `top_k` most probable tokens,
/// then to the smallest set of these that holds `top_p` of what is left (Holtzman et al., arXiv 1904.09751), in
/// transformers' order of the filters.
///
/// # Errors
/// If a logit is not a number.
pub fn choose(logits: &[f32], config: &GenerateConfig, row: usize, position: usize) -> Result<u32, BackendError> {
    let best = argmax(logits)?;
    if config.temperature == 0.0 {
        return Ok(best);
    }
    let highest = f64::from(logits[best as usize]);
    let weight = |id: u32| ((f64::from(logits[id as usize]) - highest) / config.temperature).exp();
    let mut candidates: Vec<(u32, f64)> = (0..logits.len() as u32).map(|id| (id, weight(id))).collect();
    let descending = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0));
    if config.top_k > 0 && config.top_k < candidates.len() {
        candidates.select_nth_unstable_by(config.top_k - 1, descending);
        candidates.truncate(config.top_k);
        // The order after a selection is arbitrary; sums must not depend on it.
        candidates.sort_unstable_by(descending);
    }
    if config.top_p < 1.0 {
        candidates.sort_unstable_by(descending);
        let total: f64 = candidates.iter().map(|c| c.1).sum();
        let mut kept = 0.0;
        let needed = candidates.iter().position(|c| {
            kept += c.1;
            kept >= config.top_p * total
        });
        candidates.truncate(needed.map_or(candidates.len(), |n| n + 1));
    }
    let total: f64 = candidates.iter().map(|c| c.1).sum();
    let mut left = uniform(config.seed, row as u64, position as u64) * total;
    for &(id, weight) in &candidates {
        left -= weight;
        if left.partial_cmp(&0.0) == Some(Ordering::Less) {
            return Ok(id);
        }
    }
    // Rounding may leave a crumb; it belongs to the last candidate that has any probability.
    Ok(candidates.iter().rev().find(|c| c.1 > 0.0).map_or(best, |c| c.0))
}

/// A number in `[0, 1)` from three words: a SplitMix64 step for each (Steele, Lea and Flood, OOPSLA 2014).
fn uniform(seed: u64, row: u64, position: u64) -> f64 {
    let mix = |state: u64, word: u64| {
        let mut z = (state ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let bits = [seed, row, position].into_iter().fold(0x6b61_7261_7400_0001, mix);
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(temperature: f64, top_p: f64, top_k: usize) -> GenerateConfig {
        GenerateConfig { temperature, top_p, top_k, seed: 7, ..GenerateConfig::greedy(1, vec![]) }
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits = [0.0f32, 1.0, 2.0, -1.0];
        let draws = 40_000;
        let mut counts = [0usize; 4];
        for row in 0..draws {
            counts[choose(&logits, &config(1.0, 1.0, 0), row, 3).unwrap() as usize] += 1;
        }
        let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
        for (count, &x) in counts.iter().zip(&logits) {
            let p = f64::from(x).exp() / total;
            // Five standard deviations of a binomial share.
            let band = 5.0 * (p * (1.0 - p) / draws as f64).sqrt();
            assert!((*count as f64 / draws as f64 - p).abs() < band, "{counts:?}");
        }
    }

    #[test]
    fn filters_keep_the_most_probable_only() {
        let logits = [0.0f32, 1.0, 2.0, -1.0];
        for row in 0..500 {
            assert_eq!(choose(&logits, &config(1.0, 0.5, 0), row, 0).unwrap(), 2);
            assert_eq!(choose(&logits, &config(5.0, 1.0, 1), row, 0).unwrap(), 2);
            assert!([1, 2].contains(&choose(&logits, &config(5.0, 1.0, 2), row, 0).unwrap()));
        }
    }
}
