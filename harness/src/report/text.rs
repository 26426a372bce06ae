//! Texts of strangers, made safe to set among our own.

/// `text` with what cannot be seen made visible as U+FFFD: control characters other than line breaks and tabs, and
/// the bidirectional controls that would turn the words around it about. Right-to-left scripts need none of them.
pub(super) fn visible(text: &str) -> String {
    text.chars().map(|c| if unseen(c) && !is_layout(c) { '\u{fffd}' } else { c }).collect()
}

/// `text` with what cannot be seen, or would move a terminal's cursor, written out: `\u{1b}`, `\u{202e}`, `\n`. Unlike [`visible`] two texts
/// that differ stay two.
pub fn legible(text: &str) -> String {
    written_out(text, |_| false)
}

/// [`legible`], but line breaks and tabs stay.
pub(super) fn legible_lines(text: &str) -> String {
    written_out(text, is_layout)
}

fn written_out(text: &str, kept: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if !unseen(c) || kept(c) => out.push(c),
            '\n' | '\r' | '\t' => out.extend(c.escape_default()),
            c => out.extend(c.escape_unicode()),
        }
    }
    out
}

fn unseen(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{61c}')
}

fn is_layout(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\t')
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
