//! Texts of strangers, made safe to set among our own.

use crate::escape;

/// `text` with what cannot be seen made visible as U+FFFD: control characters other than line
/// breaks and tabs, and the bidirectional controls that would turn the words around it about.
/// Right-to-left scripts need none of them.
pub(super) fn visible(text: &str) -> String {
    let unseen = |c: char| (c.is_control() && !matches!(c, '\n' | '\r' | '\t')) || escape::turns(c);
    text.chars().map(|c| if unseen(c) { '\u{fffd}' } else { c }).collect()
}

/// `text` with what cannot be seen, or would move a terminal's cursor, written out: `\u{1b}`,
/// `\u{202e}`, `\n`. Unlike `visible` two texts that differ stay two.
pub fn legible(text: &str) -> String {
    escape::visible(text).into_owned()
}

/// [`legible`], but line breaks and tabs stay.
pub(super) fn legible_lines(text: &str) -> String {
    escape::visible_lines(text).into_owned()
}

/// `text` for XML and HTML, in elements and in attributes with double quotes.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in visible(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}
