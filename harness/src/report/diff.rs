//! Differences of a text and its reference, word by word.

use similar::{Algorithm, ChangeTag, TextDiff};

/// Texts with less in common than this share are not marked: marks everywhere tell nothing.
const ENOUGH: f64 = 0.5;
/// Longer texts (in words and characters together) are not compared: the time grows with length
/// times difference.
const LONGEST: usize = 6000;

/// A stretch of text and what it is.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(super) struct Piece {
    /// `same`, `added` (not in the reference) or `missing` (only in the reference).
    pub kind: &'static str,
    /// The stretch.
    pub text: String,
}

/// `text` against `reference`; one unmarked piece where they have too little in common.
pub(super) fn pieces(reference: &str, text: &str) -> Vec<Piece> {
    let plain = || vec![Piece { kind: "same", text: text.to_string() }];
    let (old, new) = (words(reference), words(text));
    if old.is_empty() || old.len() + new.len() > LONGEST {
        return plain();
    }
    let diff = TextDiff::configure().algorithm(Algorithm::Myers).diff_slices(&old, &new);
    let mut pieces: Vec<Piece> = Vec::new();
    let mut shared = 0;
    for change in diff.iter_all_changes() {
        let kind = match change.tag() {
            ChangeTag::Equal => "same",
            ChangeTag::Insert => "added",
            ChangeTag::Delete => "missing",
        };
        shared += usize::from(kind == "same" && says_something(change.value()));
        match pieces.last_mut() {
            Some(last) if last.kind == kind => last.text.push_str(change.value()),
            _ => pieces.push(Piece { kind, text: change.value().to_string() }),
        }
    }
    let count = |words: &[&str]| words.iter().filter(|w| says_something(w)).count();
    if 2.0 * (shared as f64) < ENOUGH * (count(&old) + count(&new)) as f64 {
        return plain();
    }
    joined(pieces)
}

/// Not just white space and punctuation, which any two texts share.
fn says_something(word: &str) -> bool {
    word.chars().any(char::is_alphanumeric)
}

/// Changes with nothing but a space between them are one change: `[do not use](may be used)`, not
/// word by word.
fn joined(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut out: Vec<Piece> = Vec::new();
    let (mut missing, mut added) = (String::new(), String::new());
    let mut rest = pieces.into_iter().peekable();
    while let Some(piece) = rest.next() {
        match piece.kind {
            "missing" => missing.push_str(&piece.text),
            "added" => added.push_str(&piece.text),
            _ => {
                let inside = !(missing.is_empty() && added.is_empty()) && rest.peek().is_some();
                if inside && piece.text.chars().all(char::is_whitespace) {
                    missing.push_str(&piece.text);
                    added.push_str(&piece.text);
                } else {
                    flush(&mut out, &mut missing, &mut added);
                    out.push(piece);
                }
            }
        }
    }
    flush(&mut out, &mut missing, &mut added);
    out
}

fn flush(out: &mut Vec<Piece>, missing: &mut String, added: &mut String) {
    for (kind, text) in [("missing", missing), ("added", added)] {
        if !text.is_empty() {
            out.push(Piece { kind, text: std::mem::take(text) });
        }
    }
}

/// Runs of letters and digits of scripts with spaces, every other character for itself (Chinese by
/// the character).
fn words(text: &str) -> Vec<&str> {
    let joins = |c: char| c.is_alphanumeric() && (c as u32) < 0x2e80;
    let mut words = Vec::new();
    let mut start = 0;
    let mut previous = None;
    for (at, c) in text.char_indices() {
        if at > 0 && !(joins(c) && previous.is_some_and(joins)) {
            words.push(&text[start..at]);
            start = at;
        }
        previous = Some(c);
    }
    if start < text.len() {
        words.push(&text[start..]);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_keep_every_byte() {
        let text = "每日2次, 50 mg\nper os。";
        assert_eq!(words(text).concat(), text);
        assert_eq!(words("每日50mg x"), ["每", "日", "50mg", " ", "x"]);
    }

    #[test]
    fn a_negation_stands_out() {
        let marks = pieces("孕妇不可使用该药", "孕妇可使用该药");
        assert!(marks.contains(&Piece { kind: "missing", text: "不".into() }), "{marks:?}");
        assert!(marks.iter().all(|p| p.kind != "added"));
    }

    #[test]
    fn neighbouring_changes_are_one() {
        let marks = pieces("Caution: do not use it when eGFR is low.", "Caution: may be used when eGFR is low.");
        let kinds: Vec<&str> = marks.iter().map(|p| p.kind).collect();
        assert_eq!(kinds, ["same", "missing", "added", "same"], "{marks:?}");
        let text: String = marks.iter().filter(|p| p.kind != "missing").map(|p| p.text.as_str()).collect();
        assert_eq!(text, "Caution: may be used when eGFR is low.");
    }

    #[test]
    fn strangers_are_not_marked() {
        assert_eq!(pieces("完全不同的参考", "abc def"), vec![Piece { kind: "same", text: "abc def".into() }]);
        let marks =
            pieces("It blocks angiotensin. It is for hypertension.", "This is a common pill, and it is good daily.");
        assert_eq!(marks.len(), 1, "shared spaces and full stops are no likeness: {marks:?}");
        assert_eq!(pieces("", "x"), vec![Piece { kind: "same", text: "x".into() }]);
    }
}
