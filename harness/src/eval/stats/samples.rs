//! Several answers of one model to each item, sampled at a temperature above 0.

use super::summary::{mean, standard_deviation};
use crate::{Error, Result};

/// The unbiased estimate of pass@k (Chen et al. 2021, arXiv 2107.03374, equation 1): the
/// probability that one of `k` samples is right, from `right` of `samples`:
/// `1 - C(samples - right, k) / C(samples, k)`, as a product. None for `k` of 0 or above `samples`,
/// and for more right ones than samples.
pub fn pass_at_k(samples: u64, right: u64, k: u64) -> Option<f64> {
    if k == 0 || k > samples || right > samples {
        return None;
    }
    if samples - right < k {
        return Some(1.0);
    }
    let missed: f64 = (samples - right + 1..=samples).map(|i| 1.0 - k as f64 / i as f64).product();
    Some(1.0 - missed)
}

/// Mean and spread of sampled answers.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SampleSpread {
    /// Mean of the items' means.
    pub mean: f64,
    /// Variance between samples of one item, the mean over items.
    pub between_samples: f64,
    /// Variance between items, of their means over all samples there might be: that of the means
    /// less what sampling adds, at least 0.
    pub between_items: f64,
}

/// What samples of each item show: `values[item][sample]`, the one-way random model's analysis of
/// variance (Searle, Casella and McCulloch 1992, section 3.5).
///
/// # Errors
/// Data, below two items or two samples, rows of unequal length or a value that is not finite.
pub fn sample_spread(values: &[Vec<f64>]) -> Result<SampleSpread> {
    let samples = values.first().map_or(0, Vec::len);
    let whole = values.iter().all(|row| row.len() == samples && row.iter().all(|v| v.is_finite()));
    if values.len() < 2 || samples < 2 || !whole {
        let what = format!("{} items of {samples} samples have no spread, or some lack a value", values.len());
        return Err(Error::data(what).help("give at least two items, each with the same two samples or more"));
    }
    let means: Vec<f64> = values.iter().map(|row| mean(row)).collect();
    let between_samples = mean(&values.iter().map(|row| standard_deviation(row).powi(2)).collect::<Vec<_>>());
    let between_items = (standard_deviation(&means).powi(2) - between_samples / samples as f64).max(0.0);
    Ok(SampleSpread { mean: mean(&means), between_samples, between_items })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pass_at_k_is_the_share_of_draws_with_a_right_one() {
        // Every draw of k of n, counted.
        for (n, right) in [(5u32, 2u32), (6, 0), (6, 6), (7, 1), (8, 5)] {
            for k in 1..=n {
                let draws: Vec<u32> = (0..1u32 << n).filter(|set| set.count_ones() == k).collect();
                let with = draws.iter().filter(|set| **set & ((1 << right) - 1) != 0).count();
                let ours = pass_at_k(u64::from(n), u64::from(right), u64::from(k)).unwrap();
                assert!((ours - with as f64 / draws.len() as f64).abs() < 1e-12, "{n} {right} {k}: {ours}");
            }
        }
        assert_eq!((pass_at_k(4, 2, 5), pass_at_k(4, 2, 0), pass_at_k(4, 5, 1)), (None, None, None));
        assert_eq!(pass_at_k(4, 1, 1), Some(0.25));
    }

    #[test]
    fn spread_is_taken_apart() {
        let spread = sample_spread(&[vec![1.0, 3.0], vec![5.0, 7.0], vec![3.0, 3.0]]).unwrap();
        assert!((spread.mean - 11.0 / 3.0).abs() < 1e-12);
        assert!((spread.between_samples - 4.0 / 3.0).abs() < 1e-12);
        // Means 2, 6, 3: variance 13/3, of which sampling is 2/3.
        assert!((spread.between_items - 11.0 / 3.0).abs() < 1e-12);
        assert!(sample_spread(&[vec![1.0, 2.0]]).is_err() && sample_spread(&[vec![1.0], vec![2.0]]).is_err());
        assert!(sample_spread(&[vec![1.0, 2.0], vec![1.0]]).is_err());
    }
}
