//! ROUGE as the Python packages `rouge` 1.0.1 and `rouge-chinese` 1.0.3 compute it: for comparison
//! with published tables.
//!
//! Neither is ROUGE as defined by Lin (2004). What they do instead, and this reproduces:
//!
//! - n-grams are *sets*: a repetition loop costs nothing. In `rouge`, ROUGE-L is a set too: the
//!   distinct tokens on the common subsequences of all pairs of sentences, over the distinct tokens
//!   of each text.
//! - `rouge` takes text up to an ASCII full stop as a sentence, so `38.5` is two; a blank sentence
//!   counts as one empty token.
//! - `rouge-chinese` cuts sentences at `。！？` and the like; its ROUGE-L counts tokens, sentences
//!   ignored.
//! - Both split on white space, which Chinese has not: give them segmented text.
//! - A candidate or reference without a sentence raises `ValueError`; a long pair of sentences
//!   exceeds Python's recursion limit in `rouge` ([`RougeScores::recursion_depth`]).

use std::sync::LazyLock;

use regex::Regex;

use super::lcs::{self, Columns};
use super::python;
use super::tokens::TokenPair;

/// Recall, precision and F of one ROUGE variant, each in `0..=1`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rpf {
    /// Recall.
    pub r: f64,
    /// Precision.
    pub p: f64,
    /// F, with the 1e-8 that the packages add to its denominator.
    pub f: f64,
}

impl Rpf {
    fn from_counts(matched: usize, candidate: usize, reference: usize) -> Self {
        let share = |of: usize| if of == 0 { 0.0 } else { matched as f64 / of as f64 };
        let (p, r) = (share(candidate), share(reference));
        Rpf { r, p, f: 2.0 * ((p * r) / (p + r + 1e-8)) }
    }
}

/// The scores of one pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RougeScores {
    /// `rouge-1`.
    pub rouge1: Rpf,
    /// `rouge-2`.
    pub rouge2: Rpf,
    /// `rouge-l`.
    pub rouge_l: Rpf,
    /// How many nested calls the package's recursive back-tracking makes for its longest pair of
    /// sentences; above Python's limit (1000 by default, the caller's frames included) it raises
    /// `RecursionError`. 0 for `rouge-chinese`.
    pub recursion_depth: usize,
}

/// The package raised: which exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RougeError {
    /// `ValueError: Hypothesis is empty.`
    HypothesisIsEmpty,
    /// `ValueError: Reference is empty.`
    ReferenceIsEmpty,
}

impl RougeError {
    /// Python's exception name and message.
    pub fn python(self) -> (&'static str, &'static str) {
        match self {
            RougeError::HypothesisIsEmpty => ("ValueError", "Hypothesis is empty."),
            RougeError::ReferenceIsEmpty => ("ValueError", "Reference is empty."),
        }
    }
}

/// `rouge.Rouge().get_scores(candidate, reference)[0]`.
pub fn rouge(reference: &str, candidate: &str) -> Result<RougeScores, RougeError> {
    let sentences =
        |text: &'_ str| -> Vec<Vec<String>> { text.split('.').filter(|s| !s.is_empty()).map(words).collect() };
    let (reference, candidate) = both_filled(sentences(reference), sentences(candidate))?;
    let text = Sentences::new(&reference, &candidate);
    let (rouge1, rouge2) = n_gram_sets(&text.pair);

    let mut on_a_path = vec![false; text.pair.vocabulary];
    let mut recursion_depth = 0;
    for candidate in text.candidate() {
        let columns = Columns::new(candidate, text.pair.vocabulary);
        for reference in text.reference() {
            let steps = columns.path(reference, |row, _| on_a_path[reference[row] as usize] = true);
            recursion_depth = recursion_depth.max(steps + 1);
        }
    }
    let union = on_a_path.iter().filter(|on| **on).count();
    let sets = text.pair.set_overlap(1);
    let rouge_l = Rpf::from_counts(union, sets.candidate as usize, sets.reference as usize);
    Ok(RougeScores { rouge1, rouge2, rouge_l, recursion_depth })
}

/// `rouge_chinese.Rouge().get_scores(candidate, reference)[0]`.
pub fn rouge_chinese(reference: &str, candidate: &str) -> Result<RougeScores, RougeError> {
    let sentences = |text: &'_ str| -> Vec<Vec<String>> {
        let cut = cut_sentences(text);
        cut.split('\n').filter(|s| !s.is_empty()).map(words).collect()
    };
    let (reference, candidate) = both_filled(sentences(reference), sentences(candidate))?;
    let pair = Sentences::new(&reference, &candidate).pair;
    let (rouge1, rouge2) = n_gram_sets(&pair);
    let common = lcs::length(&pair.reference, &pair.candidate, pair.vocabulary);
    let rouge_l = Rpf::from_counts(common, pair.candidate.len(), pair.reference.len());
    Ok(RougeScores { rouge1, rouge2, rouge_l, recursion_depth: 0 })
}

type Texts = (Vec<Vec<String>>, Vec<Vec<String>>);

fn both_filled(reference: Vec<Vec<String>>, candidate: Vec<Vec<String>>) -> Result<Texts, RougeError> {
    if candidate.is_empty() {
        return Err(RougeError::HypothesisIsEmpty);
    }
    if reference.is_empty() {
        return Err(RougeError::ReferenceIsEmpty);
    }
    Ok((reference, candidate))
}

/// `" ".join(sentence.split()).split(" ")`: a blank sentence is one empty word.
fn words(sentence: &str) -> Vec<String> {
    let mut words: Vec<String> = python::split(sentence).map(str::to_string).collect();
    if words.is_empty() {
        words.push(String::new());
    }
    words
}

fn n_gram_sets(pair: &TokenPair) -> (Rpf, Rpf) {
    let score = |order| {
        let sets = pair.set_overlap(order);
        Rpf::from_counts(sets.common as usize, sets.candidate as usize, sets.reference as usize)
    };
    (score(1), score(2))
}

/// Words of both texts as ids, with the lengths of the sentences.
struct Sentences {
    pair: TokenPair,
    reference: Vec<usize>,
    candidate: Vec<usize>,
}

impl Sentences {
    fn new(reference: &[Vec<String>], candidate: &[Vec<String>]) -> Self {
        let flat = |text: &'_ [Vec<String>]| text.iter().map(Vec::len).collect();
        Sentences {
            pair: TokenPair::new(reference.iter().flatten(), candidate.iter().flatten()),
            reference: flat(reference),
            candidate: flat(candidate),
        }
    }

    fn reference(&self) -> impl Iterator<Item = &[u32]> {
        cut_by(&self.pair.reference, &self.reference)
    }

    fn candidate(&self) -> impl Iterator<Item = &[u32]> {
        cut_by(&self.pair.candidate, &self.candidate)
    }
}

fn cut_by<'a>(tokens: &'a [u32], lengths: &'a [usize]) -> impl Iterator<Item = &'a [u32]> {
    lengths.iter().scan(tokens, |rest, &length| {
        let (sentence, after) = rest.split_at(length);
        *rest = after;
        Some(sentence)
    })
}

/// The four substitutions by which `rouge-chinese` ends sentences, in its order.
static SENTENCE_ENDS: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
    let rule = |pattern: &str| Regex::new(pattern).expect("the pattern is a constant");
    [
        (rule("([。！？?])([^”’])"), "$1\n$2"),
        (rule(r"(\.{6})([^”’])"), "$1\n$2"),
        (rule("(…{2})([^”’])"), "$1\n$2"),
        (rule("([。！？?][”’])([^，。！？?])"), "$1\n$2"),
    ]
});

fn cut_sentences(text: &str) -> String {
    let mut text = text.to_string();
    for (end, with_newline) in SENTENCE_ENDS.iter() {
        text = end.replace_all(&text, *with_newline).into_owned();
    }
    python::strip_end(&text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_candidate_of_dots_raises_value_error() {
        assert_eq!(rouge("甲 乙", "..."), Err(RougeError::HypothesisIsEmpty));
        assert_eq!(rouge("", "甲"), Err(RougeError::ReferenceIsEmpty));
    }

    #[test]
    fn repetition_goes_unpunished() {
        let once = rouge("头痛 发热", "头痛 发热").expect("scored");
        let looped = rouge("头痛 发热", "头痛 发热 头痛 发热 头痛 发热").expect("scored");
        assert_eq!(once.rouge1, looped.rouge1);
    }

    #[test]
    fn a_blank_sentence_is_one_empty_token() {
        // Two tokens on the left: the word and the empty one.
        assert_eq!(rouge("甲. ", "甲").expect("scored").rouge1.r, 0.5);
    }
}
