//! Items that share a source are not independent (several questions about one drug, one passage,
//! one patient): what is drawn, and what is flipped, is then the source with all its items.
//!
//! A standard error that ignores this can be several times too small (Miller, arXiv 2411.00640,
//! section 2.2). Where every item is its own source all of this equals, to the bit, what ignores
//! sources.

use std::collections::BTreeMap;

use super::{StatsOptions, sign_flip_p};

/// Sum and number of the values of each cluster, in the order in which clusters appear.
pub fn by_cluster<C: Ord>(terms: impl IntoIterator<Item = (C, (f64, f64))>) -> Vec<(f64, f64)> {
    let mut at = BTreeMap::new();
    let mut sums: Vec<(f64, f64)> = Vec::new();
    for (cluster, (value, weight)) in terms {
        let next = sums.len();
        let slot = *at.entry(cluster).or_insert(next);
        if slot == next {
            sums.push((value, weight));
        } else {
            sums[slot].0 += value;
            sums[slot].1 += weight;
        }
    }
    sums
}

/// How many clusters there are.
pub fn cluster_count<C: Ord>(clusters: &[C]) -> usize {
    clusters.iter().collect::<std::collections::BTreeSet<_>>().len()
}

fn sums<C: Ord>(values: &[f64], clusters: &[C]) -> Vec<(f64, f64)> {
    by_cluster(clusters.iter().zip(values.iter().map(|&v| (v, 1.0))))
}

/// Two-sided p of the sign-flip permutation test, a cluster's differences changing their sign
/// together. NaN below two clusters of several items.
pub fn clustered_sign_flip_p<C: Ord>(differences: &[f64], clusters: &[C], options: &StatsOptions) -> f64 {
    let sums = sums(differences, clusters);
    if sums.len() < 2 && differences.len() > 1 {
        return f64::NAN;
    }
    sign_flip_p(&sums.into_iter().map(|(sum, _)| sum).collect::<Vec<_>>(), options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::stats::{clustered_mean_interval, mean_interval};

    #[test]
    fn clusters_of_one_item_change_no_bit() {
        let values: Vec<f64> = (0..37).map(|i| f64::from(i * i % 11) / 7.0 - 0.5).collect();
        let alone: Vec<usize> = (0..values.len()).rev().collect();
        let options = StatsOptions { resamples: 500, ..StatsOptions::default() };
        assert_eq!(clustered_mean_interval(&values, &alone, &options), mean_interval(&values, &options));
        assert_eq!(clustered_sign_flip_p(&values, &alone, &options), sign_flip_p(&values, &options));
    }

    #[test]
    fn copies_of_an_item_are_no_evidence() {
        let options = StatsOptions { resamples: 2000, ..StatsOptions::default() };
        let once = [0.5, 0.4, 0.3, -0.2, 0.6];
        let copied: Vec<f64> = once.iter().flat_map(|v| [*v; 20]).collect();
        let sources: Vec<usize> = (0..copied.len()).map(|i| i / 20).collect();
        // Twenty copies of each say what one of each says; taken for items they would be highly
        // significant.
        assert_eq!(clustered_sign_flip_p(&copied, &sources, &options), sign_flip_p(&once, &options));
        assert!(sign_flip_p(&copied, &options) < 0.01);
        let (all, one) = (clustered_mean_interval(&copied, &sources, &options), mean_interval(&once, &options));
        assert!((all.low - one.low).abs() < 1e-12 && (all.high - one.high).abs() < 1e-12);
        assert!(clustered_mean_interval(&copied, &vec![0; 100], &options).low.is_nan(), "one source");
        assert_eq!(cluster_count(&sources), 5);
    }
}
