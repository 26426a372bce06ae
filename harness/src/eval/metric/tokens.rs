//! Two token sequences over one vocabulary of dense ids, and what n-grams they share.
//!
//! Every overlap metric works on ids, not on strings: a text is looked up once and then compared as
//! integers.

use std::cell::RefCell;
use std::hash::Hash;

use rustc_hash::{FxHashMap, FxHashSet};

use super::python;

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
        TokenPair::of_characters(reference.chars(), candidate.chars())
    }

    /// Characters without white space as tokens.
    pub fn visible(reference: &str, candidate: &str) -> Self {
        TokenPair::of_characters(python::visible(reference), python::visible(candidate))
    }

    /// Some characters of two texts as tokens.
    pub fn of_characters(reference: impl Iterator<Item = char>, candidate: impl Iterator<Item = char>) -> Self {
        CharacterNumbers::begin(|numbers| {
            let reference = reference.map(|c| numbers.of(c)).collect();
            let candidate = candidate.map(|c| numbers.of(c)).collect();
            TokenPair { reference, candidate, vocabulary: numbers.next as usize }
        })
    }

    /// Per order `1..=max_order`, how many n-grams of the candidate are matched by one of the
    /// reference, each n-gram of the reference being used once ("clipped":
    /// `sum over n-grams of min(count, count)`).
    ///
    /// Only positions whose (n-1)-grams are shared by both texts are looked at for order n, so
    /// unrelated texts cost little more than one pass.
    pub fn clipped_matches(&self, max_order: usize) -> Vec<u64> {
        let mut matches = Vec::with_capacity(max_order);
        // Where an n-gram begins that both sides have, and its id; order 1 by counting.
        let place = |ids: &[u32]| ids.iter().enumerate().map(|(at, &id)| (at as u32, id)).collect();
        let mut shared: [Vec<(u32, u32)>; 2] = [place(&self.reference), place(&self.candidate)];
        let mut counts: Vec<[u32; 2]> = vec![[0; 2]; self.vocabulary];
        let mut ids = PairTable::with_room_for(self.reference.len());
        for order in 1..=max_order {
            if order > 1 {
                ids.clear(shared[0].len());
                counts.clear();
                extend(&mut shared[0], |key| {
                    let next = counts.len() as u32;
                    let id = ids.find_or_insert(key, next);
                    if id == next {
                        counts.push([0; 2]);
                    }
                    id
                });
                extend(&mut shared[1], |key| ids.find(key));
            }
            for (side, grams) in shared.iter().enumerate() {
                grams.iter().for_each(|&(_, id)| counts[id as usize][side] += 1);
            }
            matches.push(counts.iter().map(|[r, c]| u64::from(*r.min(c))).sum());
            for grams in &mut shared {
                grams.retain(|&(_, id)| counts[id as usize].iter().all(|&n| n > 0));
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

/// n-grams to (n+1)-grams: where the next position has one too, `id` says what number the two have
/// together; [`PairTable::NONE`] drops it.
fn extend(grams: &mut Vec<(u32, u32)>, mut id: impl FnMut(u64) -> u32) {
    let mut kept = 0;
    for i in 1..grams.len() {
        let ((at, first), (next, second)) = (grams[i - 1], grams[i]);
        if next == at + 1 {
            let id = id(u64::from(first) << 32 | u64::from(second));
            if id != PairTable::NONE {
                // Never ahead of what is still read: `kept` is below `i`.
                grams[kept] = (at, id);
                kept += 1;
            }
        }
    }
    grams.truncate(kept);
}

/// Numbers for characters in order of appearance. A table of the Basic Multilingual Plane per
/// thread, its entries of earlier texts made void by a stamp: a character costs one look at memory.
struct CharacterNumbers {
    stamp: u32,
    next: u32,
    /// Stamp and number.
    plane: Vec<(u32, u32)>,
    others: FxHashMap<char, u32>,
}

thread_local! {
    static NUMBERS: RefCell<CharacterNumbers> =
        RefCell::new(CharacterNumbers { stamp: 0, next: 0, plane: vec![(0, 0); 1 << 16], others: FxHashMap::default() });
}

impl CharacterNumbers {
    fn begin<R>(number: impl FnOnce(&mut CharacterNumbers) -> R) -> R {
        NUMBERS.with_borrow_mut(|numbers| {
            if numbers.stamp == u32::MAX {
                numbers.plane.fill((0, 0));
                numbers.stamp = 0;
            }
            numbers.stamp += 1;
            numbers.next = 0;
            numbers.others.clear();
            number(numbers)
        })
    }

    fn of(&mut self, c: char) -> u32 {
        let next = self.next;
        let number = match self.plane.get_mut(c as usize) {
            Some((stamp, number)) if *stamp == self.stamp => *number,
            Some(entry) => {
                *entry = (self.stamp, next);
                next
            }
            None => *self.others.entry(c).or_insert(next),
        };
        self.next += u32::from(number == next);
        number
    }
}

/// Pairs of ids to ids: open addressing, at most half full, so that most look-ups touch one cache
/// line.
struct PairTable {
    cells: Vec<(u64, u32)>,
    /// Cells in use, less 1.
    mask: usize,
}

impl PairTable {
    /// No pair of ids below `u32::MAX` looks like this.
    const EMPTY: (u64, u32) = (u64::MAX, Self::NONE);
    /// The id of a pair that has none.
    const NONE: u32 = u32::MAX;

    fn with_room_for(pairs: usize) -> Self {
        // One side puts pairs in; the other looks its own up, which leaves an empty cell as it was.
        let cells = vec![Self::EMPTY; Self::cells_for(pairs)];
        PairTable { mask: cells.len() - 1, cells }
    }

    fn cells_for(pairs: usize) -> usize {
        (2 * pairs).next_power_of_two().max(8)
    }

    /// Empty again, for at most `pairs` pairs, which may not be more than there was room for at
    /// first.
    fn clear(&mut self, pairs: usize) {
        let cells = Self::cells_for(pairs);
        self.cells[..cells].fill(Self::EMPTY);
        self.mask = cells - 1;
    }

    /// The cell of a pair, or the empty one where it belongs.
    fn cell(&self, key: u64) -> usize {
        let mask = self.mask;
        // Fibonacci hashing: the upper bits of the product are well mixed.
        let mut at = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & mask;
        while self.cells[at].0 != key && self.cells[at] != Self::EMPTY {
            at = (at + 1) & mask;
        }
        at
    }

    /// The id of a pair, [`Self::NONE`] if it has none.
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

/// Share of distinct n-grams among all n-grams of a sequence (Li et al. 2016, "distinct-n"); `None`
/// if it has none.
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
