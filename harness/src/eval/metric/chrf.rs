//! chrF and chrF++ as sacrebleu 2.6.0 computes them (Popović 2015, 2017): beta 2, character orders
//! 1 to 6, for chrF++ also word orders 1 and 2; white space removed; precision and recall averaged
//! over the orders that both texts have.

use super::python;
use super::tokens::{TokenPair, gram_count};

/// Candidate, reference and matched n-grams of each order: characters 1 to 6, then words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChrfCounts {
    orders: Vec<[u64; 3]>,
}

const CHARACTER_ORDERS: usize = 6;

impl ChrfCounts {
    /// Counts of one pair; `word_orders` is 0 for chrF, 2 for chrF++.
    pub fn of(reference: &str, candidate: &str, word_orders: usize) -> Self {
        let mut orders = Vec::with_capacity(CHARACTER_ORDERS + word_orders);
        count_orders(
            &TokenPair::of_characters(python::visible(reference), python::visible(candidate)),
            CHARACTER_ORDERS,
            &mut orders,
        );
        if word_orders > 0 {
            count_orders(&TokenPair::new(words(reference), words(candidate)), word_orders, &mut orders);
        }
        ChrfCounts { orders }
    }

    /// Adds the next pair of a corpus; an empty sum takes the orders of the first.
    pub fn add(&mut self, next: &ChrfCounts) {
        self.orders.resize(next.orders.len(), [0; 3]);
        for (sum, order) in self.orders.iter_mut().zip(&next.orders) {
            for (s, n) in sum.iter_mut().zip(order) {
                *s += n;
            }
        }
    }

    /// `0..=100`.
    pub fn score(&self) -> f64 {
        const FACTOR: f64 = 4.0; // beta squared
        let (mut precision, mut recall, mut effective) = (0.0, 0.0, 0);
        for &[candidate, reference, matched] in &self.orders {
            if candidate > 0 && reference > 0 {
                precision += matched as f64 / candidate as f64;
                recall += matched as f64 / reference as f64;
                effective += 1;
            }
        }
        if effective == 0 || precision + recall == 0.0 {
            return 0.0;
        }
        let (precision, recall) = (precision / f64::from(effective), recall / f64::from(effective));
        100.0 * (1.0 + FACTOR) * precision * recall / (FACTOR * precision + recall)
    }
}

fn count_orders(pair: &TokenPair, orders: usize, counts: &mut Vec<[u64; 3]>) {
    for (n, matched) in pair.clipped_matches(orders).into_iter().enumerate() {
        let reference = gram_count(pair.reference.len(), n + 1);
        let candidate = gram_count(pair.candidate.len(), n + 1);
        // sacrebleu does not count an order that the reference lacks.
        counts.push([if reference > 0 { candidate } else { 0 }, reference, matched]);
    }
}

/// Words with one leading or trailing ASCII punctuation character split off (the trailing one
/// first; `(hi)` becomes `(hi` and `)`, as in the package).
fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    for word in python::split(text) {
        let mut chars = word.chars();
        let (first, last) = (chars.next(), chars.next_back());
        match (first, last) {
            (Some(_), Some(last)) if last.is_ascii_punctuation() => {
                let (head, tail) = word.split_at(word.len() - 1);
                words.extend([head, tail]);
            }
            (Some(first), Some(_)) if first.is_ascii_punctuation() => {
                let (head, tail) = word.split_at(1);
                words.extend([head, tail]);
            }
            _ => words.push(word),
        }
    }
    words
}

/// sacrebleu's signature of a score.
pub fn signature(word_orders: usize) -> String {
    format!("nrefs:1|case:mixed|eff:yes|nc:6|nw:{word_orders}|space:no|version:{}", super::sacrebleu::VERSION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn punctuation_is_split_off_one_side_only() {
        assert_eq!(words("(hi) x, .y 药。"), ["(hi", ")", "x", ",", ".", "y", "药。"]);
    }
}
