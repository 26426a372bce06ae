//! Chinese word segmentation, token for token that of Python jieba 0.42.1 with its default
//! dictionary.
//!
//! The route through the dictionary and the hidden Markov model are jieba-rs's; four things about
//! it differ from the Python package and are put right here:
//!
//! - **Blocks.** Python segments runs of `[一-鿕a-zA-Z0-9+#&._%-]`; the Han range stops at U+9FD5,
//!   jieba-rs goes on to U+9FFF and the extension blocks. So the text is cut into Python's blocks
//!   first.
//! - **Between blocks** every character is a token of its own, but `\r\n` is one.
//! - **Total frequency.** Python's dictionary lists `B超` twice and counts both, jieba-rs's lists
//!   it once: its sum is 3 less, which moves every log-probability. An entry that no text can
//!   contain makes up for it.
//! - **Joined runs.** Where the Markov model meets Latin text, jieba-rs joins `a-b`, `a_b` and
//!   `1.2.3`; Python takes `[a-zA-Z0-9]+(?:\.\d+)?%?`. Tokens that jieba-rs joined are cut again.

use std::sync::LazyLock;

use jieba_rs::Jieba;

/// The segmenter: about 350,000 words, loaded at first use (a fraction of a second) and shared by
/// all threads.
static JIEBA: LazyLock<Jieba> = LazyLock::new(|| {
    let mut jieba = Jieba::new();
    // A noncharacter outside every block, so the entry is never looked up; the tag says what it is
    // for.
    jieba.add_word("\u{10ffff}", Some(3), Some("total"));
    jieba
});

/// The tokens of `text` as `jieba.cut(text, HMM=hmm)` yields them; joined they are the text again.
///
/// `hmm` is jieba's default; without it unknown words fall into single characters.
pub fn segment(text: &str, hmm: bool) -> Vec<&str> {
    let mut tokens = Vec::with_capacity(text.len() / 4);
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c| !in_block(c)).unwrap_or(rest.len());
        let (block, after) = rest.split_at(end);
        for token in JIEBA.cut(block, hmm) {
            push_token(token.word, hmm, &mut tokens);
        }
        let end = after.find(in_block).unwrap_or(after.len());
        let (between, after) = after.split_at(end);
        split_between(between, &mut tokens);
        rest = after;
    }
    tokens
}

/// Python's `re_han_default`.
fn in_block(c: char) -> bool {
    matches!(c, '\u{4e00}'..='\u{9fd5}' | 'a'..='z' | 'A'..='Z' | '0'..='9' | '+' | '#' | '&' | '.' | '_' | '%' | '-')
}

fn split_between<'a>(between: &'a str, tokens: &mut Vec<&'a str>) {
    let mut rest = between;
    while let Some(c) = rest.chars().next() {
        let length = if rest.starts_with("\r\n") { 2 } else { c.len_utf8() };
        let (token, after) = rest.split_at(length);
        tokens.push(token);
        rest = after;
    }
}

/// Adds a token of jieba-rs, cut again if jieba-rs joined it across a connector that Python does
/// not.
fn push_token<'a>(token: &'a str, hmm: bool, tokens: &mut Vec<&'a str>) {
    let joined = hmm
        && token.len() > 2
        && token.as_bytes()[0].is_ascii_alphanumeric()
        && token.bytes().any(|b| matches!(b, b'.' | b'_' | b'-'))
        && token.is_ascii()
        && !JIEBA.has_word(token);
    if !joined {
        tokens.push(token);
        return;
    }
    let mut rest = token;
    while !rest.is_empty() {
        let length = match number_or_word(rest.as_bytes()) {
            0 => rest.bytes().position(|b| b.is_ascii_alphanumeric()).unwrap_or(rest.len()),
            length => length,
        };
        let (head, tail) = rest.split_at(length);
        tokens.push(head);
        rest = tail;
    }
}

/// Length of `[a-zA-Z0-9]+(?:\.\d+)?%?` at the start of ASCII text, 0 if it does not match.
fn number_or_word(text: &[u8]) -> usize {
    let run = |from: usize, of: fn(&u8) -> bool| text[from..].iter().take_while(|b| of(b)).count();
    let mut end = run(0, u8::is_ascii_alphanumeric);
    if end == 0 {
        return 0;
    }
    if text.get(end) == Some(&b'.') {
        let digits = run(end + 1, u8::is_ascii_digit);
        if digits > 0 {
            end += 1 + digits;
        }
    }
    if text.get(end) == Some(&b'%') {
        end += 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segmentation_covers_the_text() {
        let text = "使用CT检查，血压140/90mmHg。\r\n a-b_c 1.2.3%　二〇二四年鿖";
        for hmm in [true, false] {
            assert_eq!(segment(text, hmm).concat(), text);
        }
    }

    #[test]
    fn connectors_and_blocks_follow_python_and_not_jieba_rs() {
        // Values of jieba 0.42.1.
        assert_eq!(segment("a-b", true), ["a", "-", "b"]);
        assert_eq!(segment("1.2.3", true), ["1.2", ".", "3"]);
        assert_eq!(segment("3.14", true), ["3.14"]);
        assert_eq!(segment("3.14", false), ["3", ".", "14"]);
        assert_eq!(segment("甲\r\n\n乙", true), ["甲", "\r\n", "\n", "乙"]);
        assert_eq!(segment("〇號", true), ["〇", "號"]);
        assert_eq!(segment("", true), Vec::<&str>::new());
    }
}
