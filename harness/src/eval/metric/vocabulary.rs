//! Overlap of vocabularies and of bags of words.

use super::definition::{Direction, MetricDef, Reads, SHARE};
use super::tokens::{Prf, TokenPair};

/// Precision, recall and F1 of the *sets* of tokens (the published comparison's "vocabulary"
/// metrics, over jieba words). Counts and order are ignored: a loop over the right words scores 1.
pub fn vocabulary(pair: &TokenPair) -> Prf {
    let sets = pair.set_overlap(1);
    Prf::from_counts(sets.common, sets.candidate, sets.reference)
}

/// Token F1 as SQuAD v1.1 computes it (Rajpurkar et al. 2016), over the multisets of tokens and
/// without its normalisation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenF1 {
    /// Tokens in common, with multiplicity.
    pub common: u64,
    /// Precision, recall, F1; all 0 where nothing is common.
    pub prf: Prf,
    /// F1 as SQuAD v2: where a side is empty, 1 if both are.
    pub f1_squad2: f64,
}

/// [`TokenF1`] of a pair.
pub fn token_f1(pair: &TokenPair) -> TokenF1 {
    let common = pair.clipped_matches(1)[0];
    let prf = Prf::from_counts(common, pair.candidate.len() as u64, pair.reference.len() as u64);
    let f1_squad2 = match (pair.reference.is_empty(), pair.candidate.is_empty()) {
        (true, true) => 1.0,
        (true, false) | (false, true) => 0.0,
        (false, false) => prf.f1,
    };
    TokenF1 { common, prf, f1_squad2 }
}

/// Metrics of this file.
pub(super) const METRICS: &[MetricDef] = &[
    MetricDef::of(
        "vocab_precision",
        SHARE,
        Direction::Higher,
        Reads::Answer,
        "distinct jieba words of the answer that the reference has",
        |s| s.answered(|| vocabulary(s.words()).precision),
    )
    .titled("Vocabulary precision", "词汇精确率"),
    MetricDef::of(
        "vocab_recall",
        SHARE,
        Direction::Higher,
        Reads::Answer,
        "distinct jieba words of the reference that the answer has",
        |s| s.answered(|| vocabulary(s.words()).recall),
    )
    .titled("Vocabulary recall", "词汇召回率"),
    MetricDef::of(
        "vocab_f1",
        SHARE,
        Direction::Higher,
        Reads::Answer,
        "harmonic mean of vocab_precision and vocab_recall",
        |s| s.answered(|| vocabulary(s.words()).f1),
    )
    .titled("Vocabulary F1", "词汇 F1")
    .headline(),
];
