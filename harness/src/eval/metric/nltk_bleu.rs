//! BLEU as `nltk.translate.bleu_score` computes it, with its smoothing methods.
//!
//! Formula: Papineni et al. 2002; smoothing: Chen and Cherry 2014, as nltk 3.10 has them (one
//! reference, weights of a quarter each). Kept to nltk to the last digit, oddities included:
//! without a matching unigram the score is 0 whatever the smoothing; method 4 leaves a precision of
//! 0 out of the mean where the candidate has one token, so that two equal one-token texts score 1;
//! methods 5 and 7 can exceed 1.

use super::tokens::{TokenPair, gram_count};

/// Smoothing of the n-gram precisions that are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Smoothing {
    /// None: the smallest positive double takes the place of 0.
    Method0,
    /// Adds 0.1 to a numerator of 0.
    Method1,
    /// Adds 1 to numerator and denominator of every order above 1 (Lin and Och 2004).
    Method2,
    /// NIST: the k-th precision of 0 becomes `1 / (2^k * denominator)`.
    Method3,
    /// As method 3, scaled by the logarithm of the candidate's length.
    Method4,
    /// Mean of the precisions of the orders n-1, n and n+1.
    Method5,
    /// Method 4, then method 5.
    Method7,
}

impl Smoothing {
    /// All, in the order of their numbers, with nltk's number.
    pub const ALL: [(Smoothing, &'static str); 7] = [
        (Smoothing::Method0, "m0"),
        (Smoothing::Method1, "m1"),
        (Smoothing::Method2, "m2"),
        (Smoothing::Method3, "m3"),
        (Smoothing::Method4, "m4"),
        (Smoothing::Method5, "m5"),
        (Smoothing::Method7, "m7"),
    ];
}

/// Clipped n-gram counts of one pair or, summed, of a corpus.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BleuCounts {
    /// Matches of the orders 1 to 4.
    pub matches: [u64; 4],
    /// N-grams of the candidate, at least 1 a pair (nltk avoids the division by 0 so).
    pub totals: [u64; 4],
    /// Tokens of the candidate.
    pub candidate: u64,
    /// Tokens of the reference.
    pub reference: u64,
    /// Matches and total of order 5, of the *last* pair added: nltk's method 5 takes it from there.
    pub order5: (u64, u64),
}

impl BleuCounts {
    /// Counts of one pair.
    pub fn of(pair: &TokenPair) -> Self {
        let matches = pair.clipped_matches(5);
        let total = |order| gram_count(pair.candidate.len(), order).max(1);
        BleuCounts {
            matches: [matches[0], matches[1], matches[2], matches[3]],
            totals: [total(1), total(2), total(3), total(4)],
            candidate: pair.candidate.len() as u64,
            reference: pair.reference.len() as u64,
            order5: (matches[4], total(5)),
        }
    }

    /// Adds the counts of the next pair of a corpus.
    pub fn add(&mut self, next: &BleuCounts) {
        for n in 0..4 {
            self.matches[n] += next.matches[n];
            self.totals[n] += next.totals[n];
        }
        self.candidate += next.candidate;
        self.reference += next.reference;
        self.order5 = next.order5;
    }

    /// The score (`sentence_bleu` of one pair, `corpus_bleu` of several), at least 0.
    pub fn score(&self, smoothing: Smoothing) -> f64 {
        if self.matches[0] == 0 {
            return 0.0;
        }
        let precisions = self.smoothed(smoothing);
        // nltk sums the logarithms exactly (math.fsum); four terms in double precision stay within
        // 1e-15 of that.
        let mean: f64 = precisions.iter().filter(|p| **p > 0.0).map(|p| 0.25 * p.ln()).sum();
        self.brevity_penalty() * mean.exp()
    }

    fn brevity_penalty(&self) -> f64 {
        if self.candidate > self.reference {
            1.0
        } else if self.candidate == 0 {
            0.0
        } else {
            (1.0 - self.reference as f64 / self.candidate as f64).exp()
        }
    }

    fn smoothed(&self, smoothing: Smoothing) -> [f64; 4] {
        let plain: [f64; 4] = std::array::from_fn(|n| self.matches[n] as f64 / self.totals[n] as f64);
        let if_zero = |n: usize, value: f64| if self.matches[n] == 0 { value } else { plain[n] };
        match smoothing {
            Smoothing::Method0 => std::array::from_fn(|n| if_zero(n, f64::MIN_POSITIVE)),
            Smoothing::Method1 => std::array::from_fn(|n| if_zero(n, 0.1 / self.totals[n] as f64)),
            Smoothing::Method2 => std::array::from_fn(|n| match n {
                0 => plain[0],
                _ => (self.matches[n] + 1) as f64 / (self.totals[n] + 1) as f64,
            }),
            Smoothing::Method3 => {
                let mut power = 1.0;
                std::array::from_fn(|n| {
                    if self.matches[n] > 0 {
                        return plain[n];
                    }
                    power *= 2.0;
                    1.0 / (power * self.totals[n] as f64)
                })
            }
            Smoothing::Method4 => self.method4(plain),
            Smoothing::Method5 => self.method5(plain),
            Smoothing::Method7 => self.method5(self.method4(plain)),
        }
    }

    fn method4(&self, plain: [f64; 4]) -> [f64; 4] {
        const K: f64 = 5.0;
        let mut power = 1.0;
        std::array::from_fn(|n| {
            if self.matches[n] > 0 || self.candidate <= 1 {
                return plain[n];
            }
            power *= 2.0;
            1.0 / (power * K / (self.candidate as f64).ln()) / self.totals[n] as f64
        })
    }

    fn method5(&self, precisions: [f64; 4]) -> [f64; 4] {
        let fifth = self.order5.0 as f64 / self.order5.1 as f64;
        let mut before = precisions[0] + 1.0;
        std::array::from_fn(|n| {
            let after = if n == 3 { fifth } else { precisions[n + 1] };
            before = (before + precisions[n] + after) / 3.0;
            before
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_one_token_texts_score_one_with_method_4_and_next_to_nothing_with_method_0() {
        let counts = BleuCounts::of(&TokenPair::characters("药", "药"));
        assert_eq!(counts.score(Smoothing::Method4), 1.0);
        assert!(counts.score(Smoothing::Method0) < 1e-200);
        assert_eq!(BleuCounts::of(&TokenPair::characters("药", "病")).score(Smoothing::Method4), 0.0);
    }
}
