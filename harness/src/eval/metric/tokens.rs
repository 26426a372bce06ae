//! Two token sequences over one vocabulary of dense ids, and what n-grams they share.
//!
//! Every overlap metric works on ids, not on strings: a text is looked up once and then compared as integers.

use std::hash::Hash;

use rustc_hash::{FxHashMap, FxHashSet};

/// A reference and a candidate as ids `0..vocabulary`; equal tokens have equal ids.
#[derive(Clone, Debug, Default)]
pub struct TokenPair {
    /// Ids of the reference, in order.
    pub reference: Vec<u32>,
    /// Ids of the candidate, in order.
    pub candidate: Vec<u32>,
    /// Number of distinct tokens in both together.
    pub vocabulary: usize,
}

impl TokenPair {
    /// Numbers the tokens of both texts in order of appearance.
    pub fn new<T: Hash + Eq>(reference: impl IntoIterator<Item = T>, candidate: impl IntoIterator<Item = T>) -> Self {
        let mut ids: FxHashMap<T, u32> = FxHashMap::default();
        let mut number = |tokens: &mut dyn Iterator<Item = T>| {
            tokens
                .map(|token| {
                    let next = ids.len() as u32;
                    *ids.entry(token).or_insert(next)
                })
                .collect()
        };
        let reference = number(&mut reference.into_iter());
        let candidate = number(&mut candidate.into_iter());
        TokenPair { reference, candidate, vocabulary: ids.len() }
    }

    /// Characters (Unicode scalar values) as tokens.
    pub fn characters(reference: &str, candidate: &str) -> Self {
        TokenPair::new(reference.chars(), candidate.chars())
    }

    /// Per order `1..=max_order`, how many n-grams of the candidate are matched by one of the reference, each n-gram of
    /// the reference being used once ("clipped": `sum over n-grams of min(count, count)`).
    ///
    /// Only positions whose (n-1)-grams are shared by both texts are looked at for order n, so unrelated texts cost
    /// little more than one pass.
    pub fn clipped_matches(&self, max_order: usize) -> Vec<u64> {
        const UNSHARED: u32 = u32::MAX;
        let mut matches = Vec::with_capacity(max_order);
        let mut reference = self.reference.clone();
        let mut candidate = self.candidate.clone();
        // Order 1 by counting; ids of tokens that only one side has become UNSHARED.
        let mut counts: Vec<[u32; 2]> = vec![[0; 2]; self.vocabulary];
        let mut ids = PairTable::with_room_for(self.reference.len());
        for order in 1..=max_order {
            if order > 1 {
                ids.clear();
                counts.clear();
                for (side, grams) in [(0, &mut reference), (1, &mut candidate)] {
                    let length = grams.len().saturating_sub(1);
                    for i in 0..length {
                        let (first, second) = (grams[i], grams[i + 1]);
                        grams[i] = if first == UNSHARED || second == UNSHARED {
                            UNSHARED
                        } else {
                            let key = u64::from(first) << 32 | u64::from(second);
                            if side == 0 {
                                let next = counts.len() as u32;
                                let id = ids.find_or_insert(key, next);
                                if id == next {
                                    counts.push([0; 2]);
                                }
                                id
                            } else {
                                ids.find(key)
                            }
                        };
                    }
                    grams.truncate(length);
                }
            }
            for (side, grams) in [(0, &reference), (1, &candidate)] {
                for &id in grams.iter().filter(|&&id| id != UNSHARED) {
                    counts[id as usize][side] += 1;
                }
            }
            matches.push(counts.iter().map(|[r, c]| u64::from(*r.min(c))).sum());
            for grams in [&mut reference, &mut candidate] {
                for id in grams.iter_mut().filter(|id| **id != UNSHARED) {
                    let [r, c] = counts[*id as usize];
                    if r == 0 || c == 0 {
                        *id = UNSHARED;
                    }
                }
            }
        }
        matches
    }

    /// Sets of n-grams: the sizes of reference, candidate and intersection.
    pub fn set_overlap(&self, order: usize) -> SetOverlap {
        let grams = |ids: &'_ [u32]| -> FxHashSet<Box<[u32]>> {
            ids.windows(order).map(|gram| gram.to_vec().into_boxed_slice()).collect()
        };
        match order {
            1 => overlap(&self.reference.iter().copied().collect(), &self.candidate.iter().copied().collect()),
            2 => {
                let pairs = |ids: &[u32]| ids.windows(2).map(|w| u64::from(w[0]) << 32 | u64::from(w[1])).collect();
                overlap::<u64>(&pairs(&self.reference), &pairs(&self.candidate))
            }
            _ => overlap(&grams(&self.reference), &grams(&self.candidate)),
        }
    }
}

fn overlap<T: Hash + Eq>(reference: &FxHashSet<T>, candidate: &FxHashSet<T>) -> SetOverlap {
    let common = candidate.iter().filter(|gram| reference.contains(gram)).count() as u64;
    SetOverlap { reference: reference.len() as u64, candidate: candidate.len() as u64, common }
}

/// Pairs of ids to ids: open addressing, at most half full, so that most look-ups touch one cache line.
struct PairTable {
    cells: Vec<(u64, u32)>,
}

impl PairTable {
    /// No pair of ids below `u32::MAX` looks like this.
    const EMPTY: (u64, u32) = (u64::MAX, u32::MAX);

    fn with_room_for(pairs: usize) -> Self {
        // One side puts pairs in; the other looks its own up, which leaves an empty cell as it was.
        PairTable { cells: vec![Self::EMPTY; (2 * pairs).next_power_of_two().max(8)] }
    }

    fn clear(&mut self) {
        self.cells.fill(Self::EMPTY);
    }

    /// The cell of a pair, or the empty one where it belongs.
    fn cell(&self, key: u64) -> usize {
        let mask = self.cells.len() - 1;
        // Fibonacci hashing: the upper bits of the product are well mixed.
        let mut at = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & mask;
        while self.cells[at].0 != key && self.cells[at] != Self::EMPTY {
            at = (at + 1) & mask;
        }
        at
    }

    /// The id of a pair, `u32::MAX` if it has none.
    fn find(&self, key: u64) -> u32 {
        self.cells[self.cell(key)].1
    }

    /// The id of a pair; it gets `next` if it has none.
    fn find_or_insert(&mut self, key: u64, next: u32) -> u32 {
        let cell = self.cell(key);
        if self.cells[cell] == Self::EMPTY {
            self.cells[cell] = (key, next);
        }
        self.cells[cell].1
    }
}

/// Sizes of two sets and of their intersection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetOverlap {
    /// Distinct n-grams of the reference.
    pub reference: u64,
    /// Distinct n-grams of the candidate.
    pub candidate: u64,
    /// Distinct n-grams of both.
    pub common: u64,
}

/// Precision, recall and their harmonic mean, each in `0..=1`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Prf {
    /// Matched share of the candidate.
    pub precision: f64,
    /// Matched share of the reference.
    pub recall: f64,
    /// `2pr / (p + r)`, 0 where both are 0.
    pub f1: f64,
}

impl Prf {
    /// From counts; a side without tokens scores 0.
    pub fn from_counts(matched: u64, candidate: u64, reference: u64) -> Self {
        let share = |of: u64| if of == 0 { 0.0 } else { matched as f64 / of as f64 };
        let (precision, recall) = (share(candidate), share(reference));
        let f1 = if precision + recall > 0.0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 };
        Prf { precision, recall, f1 }
    }
}

/// Number of n-grams in a sequence of `length` tokens.
pub fn gram_count(length: usize, order: usize) -> u64 {
    (length + 1).saturating_sub(order) as u64
}

/// Share of distinct n-grams among all n-grams of a sequence (Li et al. 2016, "distinct-n"); `None` if it has none.
pub fn distinct<T: Hash + Eq>(tokens: &[T], order: usize) -> Option<f64> {
    let total = gram_count(tokens.len(), order);
    if total == 0 {
        return None;
    }
    let unique: FxHashSet<&[T]> = tokens.windows(order).collect();
    Some(unique.len() as f64 / total as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn clipped_by_definition(pair: &TokenPair, order: usize) -> u64 {
        let mut left: Vec<&[u32]> = pair.reference.windows(order).collect();
        let mut matched = 0;
        for gram in pair.candidate.windows(order) {
            if let Some(at) = left.iter().position(|g| *g == gram) {
                left.swap_remove(at);
                matched += 1;
            }
        }
        matched
    }

    proptest! {
        #[test]
        fn clipped_matches_are_those_of_the_definition(a in "[abc]{0,40}", b in "[abcd]{0,40}") {
            let pair = TokenPair::characters(&a, &b);
            let expected: Vec<u64> = (1..=6).map(|n| clipped_by_definition(&pair, n)).collect();
            prop_assert_eq!(pair.clipped_matches(6), expected);
        }

        #[test]
        fn set_overlap_of_every_order_agrees_with_sorted_sets(a in "[ab]{0,30}", b in "[abc]{0,30}", n in 1usize..5) {
            use std::collections::BTreeSet;
            let pair = TokenPair::characters(&a, &b);
            let r: BTreeSet<&[u32]> = pair.reference.windows(n).collect();
            let c: BTreeSet<&[u32]> = pair.candidate.windows(n).collect();
            let expected = SetOverlap { reference: r.len() as u64, candidate: c.len() as u64, common: r.intersection(&c).count() as u64 };
            prop_assert_eq!(pair.set_overlap(n), expected);
        }
    }
}
