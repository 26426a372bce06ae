//! ROUGE as defined: clipped n-gram counts and the longest common subsequence of the whole text
//! (Lin 2004), over characters or jieba words.
//!
//! - ROUGE-N: `sum over n-grams of min(count in candidate, count in reference)`, over the
//!   candidate's n-grams for precision and the reference's for recall. Repeating a matched n-gram
//!   therefore lowers precision.
//! - ROUGE-L: length of the longest common subsequence over the two lengths.
//!
//! White space is no token of either kind, so formatting does not score. F is the harmonic mean
//! (beta = 1).

use super::definition::{Direction, MetricDef, Reads, SHARE};
use super::lcs;
use super::tokens::{Prf, TokenPair, gram_count};

/// ROUGE-1, -2 and -L of one pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rouge {
    /// Unigrams.
    pub rouge1: Prf,
    /// Bigrams.
    pub rouge2: Prf,
    /// Longest common subsequence.
    pub rouge_l: Prf,
}

/// Scores a pair of token sequences; a side without tokens scores 0.
pub fn score(pair: &TokenPair) -> Rouge {
    let matches = pair.clipped_matches(2);
    let count = |tokens: &[u32], order| gram_count(tokens.len(), order);
    let n_gram = |order: usize| {
        Prf::from_counts(matches[order - 1], count(&pair.candidate, order), count(&pair.reference, order))
    };
    let common = lcs::length(&pair.reference, &pair.candidate, pair.vocabulary) as u64;
    Rouge {
        rouge1: n_gram(1),
        rouge2: n_gram(2),
        rouge_l: Prf::from_counts(common, pair.candidate.len() as u64, pair.reference.len() as u64),
    }
}

/// Metrics of this file.
pub(super) const METRICS: &[MetricDef] = &[
    MetricDef::of("rouge1", SHARE, Direction::Higher, Reads::Answer, "F1 of clipped characters", |s| {
        s.answered(|| s.characters().rouge1.f1)
    })
    .titled("ROUGE-1 (char)", "ROUGE-1（字）"),
    MetricDef::of("rouge2", SHARE, Direction::Higher, Reads::Answer, "F1 of clipped character pairs", |s| {
        s.answered(|| s.characters().rouge2.f1)
    })
    .titled("ROUGE-2 (char)", "ROUGE-2（字）"),
    MetricDef::of(
        "rougeL",
        SHARE,
        Direction::Higher,
        Reads::Answer,
        "F1 of the longest common subsequence of characters",
        |s| s.answered(|| s.characters().rouge_l.f1),
    )
    .titled("ROUGE-L (char)", "ROUGE-L（字）")
    .headline(),
    MetricDef::of("rouge1_jieba", SHARE, Direction::Higher, Reads::Answer, "F1 of clipped jieba words", |s| {
        s.answered(|| score(s.words()).rouge1.f1)
    })
    .titled("ROUGE-1 (jieba)", "ROUGE-1（词）"),
    MetricDef::of("rouge2_jieba", SHARE, Direction::Higher, Reads::Answer, "F1 of clipped pairs of jieba words", |s| {
        s.answered(|| score(s.words()).rouge2.f1)
    })
    .titled("ROUGE-2 (jieba)", "ROUGE-2（词）"),
    MetricDef::of(
        "rougeL_jieba",
        SHARE,
        Direction::Higher,
        Reads::Answer,
        "F1 of the longest common subsequence of jieba words",
        |s| s.answered(|| score(s.words()).rouge_l.f1),
    )
    .titled("ROUGE-L (jieba)", "ROUGE-L（词）"),
    MetricDef::of(
        "think_rougeL",
        SHARE,
        Direction::Higher,
        Reads::Think,
        "F1 of the longest common subsequence of characters, of the reasoning",
        |s| s.reasoned(|| score(&TokenPair::visible(s.reference_think(), s.parts.think)).rouge_l.f1),
    )
    .titled("ROUGE-L, reasoning (char)", "ROUGE-L（思考，字）"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_lowers_precision_and_keeps_recall() {
        let looped = score(&TokenPair::characters("头痛发热", "头痛发热头痛发热"));
        assert_eq!((looped.rouge1.precision, looped.rouge1.recall), (0.5, 1.0));
        assert_eq!((looped.rouge_l.precision, looped.rouge_l.recall), (0.5, 1.0));
        assert_eq!((looped.rouge2.precision, looped.rouge2.recall), (3.0 / 7.0, 1.0));
    }
}
