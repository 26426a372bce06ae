//! What a text says that its reference does not, and the other way round.

use similar::{Algorithm, ChangeTag, TextDiff};

/// Texts with less in common than this share are not marked: marks everywhere tell nothing.
const ENOUGH: f32 = 0.4;
/// Longer texts (in words and characters together) are not compared: the time grows with length times difference.
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
    if diff.ratio() < ENOUGH {
        return plain();
    }
    let mut pieces: Vec<Piece> = Vec::new();
    for change in diff.iter_all_changes() {
        let kind = match change.tag() {
            ChangeTag::Equal => "same",
            ChangeTag::Insert => "added",
            ChangeTag::Delete => "missing",
        };
        match pieces.last_mut() {
            Some(last) if last.kind == kind => last.text.push_str(change.value()),
            _ => pieces.push(Piece { kind, text: change.value().to_string() }),
        }
    }
    pieces
}

/// Runs of letters and digits of scripts with spaces, every other character for itself (Chinese by the character).
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
    fn strangers_are_not_marked() {
        assert_eq!(pieces("完全不同的参考", "abc def"), vec![Piece { kind: "same", text: "abc def".into() }]);
        assert_eq!(pieces("", "x"), vec![Piece { kind: "same", text: "x".into() }]);
    }
}
