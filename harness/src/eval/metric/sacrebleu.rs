//! BLEU as sacrebleu 2.6.0 computes it (one reference, four orders, smoothing `exp`).
//!
//! Formula: Post 2018 over Papineni et al. 2002. `effective_order` is off in the class `BLEU` (and
//! for a corpus) and on in the function `sentence_bleu`: with it off, a candidate of one to three
//! tokens scores 0. The [`signature`] names every choice; print it beside every score.

use super::definition::{Direction, MetricDef, PERCENT, Reads};
use super::sacrebleu_tokenizers::BleuTokenizer;
use super::tokens::{TokenPair, gram_count};

/// The version of sacrebleu whose numbers these are.
pub const VERSION: &str = "2.6.0";

/// Sums that a score is computed from: of one pair or, added up, of a corpus.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Clipped matches of the orders 1 to 4.
    pub matches: [u64; 4],
    /// N-grams of the candidate.
    pub totals: [u64; 4],
    /// Tokens of the candidate.
    pub candidate: u64,
    /// Tokens of the reference.
    pub reference: u64,
}

/// A score with its parts, as sacrebleu's `BLEUScore`.
#[derive(Clone, Debug, PartialEq)]
pub struct Bleu {
    /// `0..=100`.
    pub score: f64,
    /// Percent, smoothed, by order.
    pub precisions: [f64; 4],
    /// Brevity penalty.
    pub brevity_penalty: f64,
    /// What it was computed from.
    pub counts: Counts,
}

impl Counts {
    /// Counts of one pair.
    pub fn of(reference: &str, candidate: &str, tokenizer: BleuTokenizer) -> Self {
        let (reference, candidate) = (tokenizer.tokenize(reference), tokenizer.tokenize(candidate));
        let pair = TokenPair::new(tokenizer.split(&reference), tokenizer.split(&candidate));
        Self::of_tokens(&pair)
    }

    fn of_tokens(pair: &TokenPair) -> Self {
        let matches = pair.clipped_matches(4);
        Counts {
            matches: std::array::from_fn(|n| matches[n]),
            totals: std::array::from_fn(|n| gram_count(pair.candidate.len(), n + 1)),
            candidate: pair.candidate.len() as u64,
            reference: pair.reference.len() as u64,
        }
    }

    /// Adds the next pair of a corpus.
    pub fn add(&mut self, next: &Counts) {
        for n in 0..4 {
            self.matches[n] += next.matches[n];
            self.totals[n] += next.totals[n];
        }
        self.candidate += next.candidate;
        self.reference += next.reference;
    }

    /// The score.
    pub fn score(&self, effective_order: bool) -> Bleu {
        let brevity_penalty = if self.candidate >= self.reference {
            1.0
        } else if self.candidate == 0 {
            0.0
        } else {
            (1.0 - self.reference as f64 / self.candidate as f64).exp()
        };
        let mut bleu = Bleu { score: 0.0, precisions: [0.0; 4], brevity_penalty, counts: self.clone() };
        if self.matches == [0; 4] {
            return bleu;
        }
        let mut smoothing = 1.0;
        let mut order = 4;
        for n in 0..4 {
            if self.totals[n] == 0 {
                break;
            }
            if effective_order {
                order = n + 1;
            }
            bleu.precisions[n] = if self.matches[n] == 0 {
                smoothing *= 2.0;
                100.0 / (smoothing * self.totals[n] as f64)
            } else {
                100.0 * self.matches[n] as f64 / self.totals[n] as f64
            };
        }
        // An order without n-grams counts as a precision of 0, whose logarithm sacrebleu sets to
        // -9999999999.
        let ln = |p: &f64| if *p == 0.0 { -9_999_999_999.0 } else { p.ln() };
        let mean = bleu.precisions[..order].iter().map(ln).sum::<f64>() / order as f64;
        bleu.score = brevity_penalty * mean.exp();
        bleu
    }
}

/// sacrebleu's signature of a score.
pub fn signature(tokenizer: BleuTokenizer, effective_order: bool) -> String {
    let effective = if effective_order { "yes" } else { "no" };
    format!("nrefs:1|case:mixed|eff:{effective}|tok:{}|smooth:exp|version:{VERSION}", tokenizer.name())
}

/// Metrics of this file.
pub(super) const METRICS: &[MetricDef] = &[MetricDef::of(
    "bleu",
    PERCENT,
    Direction::Higher,
    Reads::Answer,
    "sentence BLEU of sacrebleu, tokenizer zh, effective order, smoothing exp",
    |s| s.answered(|| Counts::of(s.reference_answer(), s.answer(), BleuTokenizer::Zh).score(true).score.min(100.0)),
)
.titled("BLEU (zh)", "BLEU (zh)")
.decimals(2)
.headline()];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_equal_tokens_score_0_unless_the_order_is_the_effective_one() {
        let counts = Counts::of("多饮水", "多饮水", BleuTokenizer::Zh);
        assert_eq!(counts.score(false).score, 0.0);
        assert!((counts.score(true).score - 100.0).abs() < 1e-9);
    }

    #[test]
    fn the_default_tokenizer_is_blind_to_chinese() {
        let text = "患者应注意休息，多饮水。";
        assert_eq!(Counts::of(text, text, BleuTokenizer::V13a).score(false).score, 0.0);
        assert!((Counts::of(text, text, BleuTokenizer::Zh).score(false).score - 100.0).abs() < 1e-9);
    }
}
