//! ROUGE as Google's package `rouge_score` 0.1.2 computes it: clipped counts, but a default
//! tokenizer that keeps only `[a-z0-9]`. Chinese is dropped: "使用CT检查" against "禁止CT检查"
//! scores 1.0.

use super::lcs::Columns;
use super::tokens::{Prf, TokenPair};
use super::{porter, rouge};

/// The four scores of the package.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RougeScore {
    /// `rouge1`.
    pub rouge1: Prf,
    /// `rouge2`.
    pub rouge2: Prf,
    /// `rougeL`.
    pub rouge_l: Prf,
    /// `rougeLsum`: summary level, a sentence a line.
    pub rouge_l_sum: Prf,
}

/// `RougeScorer([...], use_stemmer=stem).score(reference, candidate)` with the default tokenizer.
pub fn score(reference: &str, candidate: &str, stem: bool) -> RougeScore {
    let pair = TokenPair::new(tokenize(reference, stem), tokenize(candidate, stem));
    let rouge::Rouge { rouge1, rouge2, rouge_l } = rouge::score(&pair);
    RougeScore { rouge1, rouge2, rouge_l, rouge_l_sum: summary_level(reference, candidate, stem) }
}

/// Lower case; every run of other characters than `[a-z0-9]` separates; words of more than 3
/// characters are stemmed.
fn tokenize(text: &str, stem: bool) -> Vec<String> {
    text.to_lowercase()
        .split(|c: char| !matches!(c, 'a'..='z' | '0'..='9'))
        .filter(|word| !word.is_empty())
        .map(|word| if stem && word.len() > 3 { porter::stem(word) } else { word.to_string() })
        .filter(|word| !word.is_empty())
        .collect()
}

/// Summary-level ROUGE-L (Lin 2004, section 3.2): for each line of the reference the union of its
/// common subsequences with all lines of the candidate, each token counted no more often than
/// either text has it.
fn summary_level(reference: &str, candidate: &str, stem: bool) -> Prf {
    let lines = |text: &'_ str| -> Vec<Vec<String>> {
        text.split('\n').filter(|line| !line.is_empty()).map(|line| tokenize(line, stem)).collect()
    };
    let (reference, candidate) = (lines(reference), lines(candidate));
    let pair = TokenPair::new(reference.iter().flatten(), candidate.iter().flatten());
    let mut left = vec![[0u32; 2]; pair.vocabulary];
    for (side, tokens) in [&pair.reference, &pair.candidate].into_iter().enumerate() {
        for &t in tokens {
            left[t as usize][side] += 1;
        }
    }
    let mut hits = 0;
    let mut reference_rest = pair.reference.as_slice();
    for line in &reference {
        let (line, rest) = reference_rest.split_at(line.len());
        reference_rest = rest;
        let columns = Columns::new(line, pair.vocabulary);
        let mut on_a_path = vec![false; line.len()];
        let mut candidate_rest = pair.candidate.as_slice();
        for other in &candidate {
            let (other, rest) = candidate_rest.split_at(other.len());
            candidate_rest = rest;
            columns.path(other, |_, column| on_a_path[column] = true);
        }
        for (&t, _) in line.iter().zip(&on_a_path).filter(|(_, on)| **on) {
            let [r, c] = &mut left[t as usize];
            if *r > 0 && *c > 0 {
                hits += 1;
                *r -= 1;
                *c -= 1;
            }
        }
    }
    Prf::from_counts(hits, pair.candidate.len() as u64, pair.reference.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_tokenizer_drops_chinese_and_with_it_the_contradiction() {
        assert_eq!(score("使用CT检查", "禁止CT检查", false).rouge1.f1, 1.0);
        let characters = rouge::score(&TokenPair::characters("使用CT检查", "禁止CT检查"));
        assert!(characters.rouge1.f1 < 1.0);
    }
}
