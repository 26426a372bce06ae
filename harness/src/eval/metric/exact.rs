//! Exact match after a normalisation that cannot change a meaning.

use unicode_normalization::UnicodeNormalization;

use super::definition::{Direction, MetricDef, Reads, SHARE};
use super::python;

/// Whether two answers are the same after [`normalise`]. Two empty answers are no match: nothing
/// was answered.
pub fn exact_match(reference: &str, candidate: &str) -> bool {
    let reference = normalise(reference);
    !reference.is_empty() && reference == normalise(candidate)
}

/// NFKC (full-width forms become ASCII), lower case, sentence punctuation dropped, white space kept
/// only between two ASCII letters or digits, as one space, and not between a number and its unit.
///
/// A comma or full stop between digits stays, and so does every sign with a meaning of its own
/// (`-`, `%`, `/`, `<`, `≥`, `+`): `1.5` does not become `15`.
pub fn normalise(text: &str) -> String {
    let chars: Vec<char> = text.nfkc().flat_map(char::to_lowercase).collect();
    let mut out = String::with_capacity(text.len());
    let mut gap = false;
    for (at, &c) in chars.iter().enumerate() {
        let between_digits = || {
            let before = at.checked_sub(1).map(|i| chars[i]);
            let after = chars.get(at + 1).copied();
            [before, after].iter().all(|c| c.is_some_and(|c| c.is_ascii_digit()))
        };
        if python::is_space(c) {
            gap = true;
        } else if !is_sentence_punctuation(c) || (matches!(c, '.' | ',' | ':') && between_digits()) {
            let before = out.chars().next_back().filter(char::is_ascii_alphanumeric);
            let number_and_unit = before.is_some_and(|b| b.is_ascii_digit()) && c.is_ascii_alphabetic();
            if gap && before.is_some() && c.is_ascii_alphanumeric() && !number_and_unit {
                out.push(' ');
            }
            gap = false;
            out.push(c);
        } else if c.is_ascii() {
            // "a,b" is two words.
            gap = true;
        }
    }
    out
}

fn is_sentence_punctuation(c: char) -> bool {
    matches!(
        c,
        '。' | '，'
            | '、'
            | '；'
            | '：'
            | '！'
            | '？'
            | '“'
            | '”'
            | '‘'
            | '’'
            | '「'
            | '」'
            | '『'
            | '』'
            | '《'
            | '》'
            | '…'
            | '·'
    ) || matches!(c, '.' | ',' | ';' | ':' | '!' | '?' | '"' | '\'' | '*' | '`')
}

/// Metrics of this file.
pub(super) const METRICS: &[MetricDef] = &[MetricDef::of(
    "exact_match",
    SHARE,
    Direction::Higher,
    Reads::Answer,
    "answers equal after normalising width, case, white space and sentence punctuation",
    |s| s.answered(|| f64::from(u8::from(exact_match(s.reference_answer(), s.answer())))),
)
.titled("Exact match", "完全匹配")
.headline()
.yes_or_no()];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn form_does_not_matter_and_meaning_does() {
        assert!(exact_match("血压：140／90 mmHg。", "血压:140/90mmHg"));
        assert!(exact_match("Use CT.", "use  ct"));
        assert!(!exact_match("剂量1.5g", "剂量15g"));
        assert!(!exact_match("<5", ">5"));
        assert!(!exact_match("a b", "ab"));
        assert!(!exact_match("", ""));
    }
}
