//! Texts of strangers, made safe to show on a terminal and in a log.
//!
//! An error quotes ids, names and lines of data. Printed as they are they could move the cursor,
//! colour or rename a terminal, turn the words around them about, or begin a line of their own that
//! a CI server takes for a command.

use std::borrow::Cow;

/// Whether `c` turns the direction of the words around it. Right-to-left scripts need none of
/// these.
pub fn turns(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{61c}')
}

/// `text` as one line, in which control characters, line ends and bidirectional controls are
/// written as Rust writes them: `\n`, `\u{1b}`. Everything else stays as it is.
pub fn visible(text: &str) -> Cow<'_, str> {
    written_out(text, |_| false)
}

/// [`visible`], but line ends and tabs stay.
pub fn visible_lines(text: &str) -> Cow<'_, str> {
    written_out(text, |c| matches!(c, '\n' | '\r' | '\t'))
}

fn written_out(text: &str, kept: impl Fn(char) -> bool) -> Cow<'_, str> {
    // The two separators end a line for some readers.
    let unseen = |c: char| (c.is_control() || turns(c) || matches!(c, '\u{2028}' | '\u{2029}')) && !kept(c);
    if !text.chars().any(unseen) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match unseen(c) {
            true => out.extend(c.escape_default()),
            false => out.push(c),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_written_out_and_every_script_stays_as_it_is() {
        assert_eq!(visible("x\n::error title=a::b\r\n"), "x\\n::error title=a::b\\r\\n");
        assert_eq!(
            visible("\u{1b}]0;t\u{7}\u{1b}[31m\u{0}\u{9b}\u{7f}"),
            "\\u{1b}]0;t\\u{7}\\u{1b}[31m\\u{0}\\u{9b}\\u{7f}"
        );
        assert_eq!(visible("a\u{202e}b\u{2066}c\u{2028}d"), "a\\u{202e}b\\u{2066}c\\u{2028}d");
        for text in ["糖尿病的诊断标准", "שלום", "مرحبا", "e\u{301} 👩\u{200d}⚕️ \\n C:\\new", "ñ\u{a0}—"]
        {
            assert!(matches!(visible(text), Cow::Borrowed(same) if same == text), "{text}");
        }
    }
}
