//! Texts of strangers, made safe to set among our own.

/// `text` with what cannot be seen made visible as U+FFFD: control characters other than line breaks and tabs, and
/// the bidirectional controls that would turn the words around it about. Right-to-left scripts need none of them.
pub(super) fn visible(text: &str) -> String {
    let unseen = |c: char| (c.is_control() && !matches!(c, '\n' | '\r' | '\t')) || crate::escape::turns(c);
    text.chars().map(|c| if unseen(c) { '\u{fffd}' } else { c }).collect()
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
