//! sacrebleu's tokenizers `zh`, `13a`, `char` and `intl`.
//!
//! They are rewriting rules that put spaces around tokens. `zh` is kept with its malformed range:
//! `'\u20000'` is in Python the string U+2000 `0`, so that *all* of U+2001 to U+2A6D counts as
//! Chinese (dashes, curly quotes, ℃, ≥), and the ideographs of plane 2 do not.

use std::sync::LazyLock;

use regex::Regex;

use super::python;

/// A tokenizer by sacrebleu's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BleuTokenizer {
    /// `zh`: Chinese characters apart, the rest as `13a`.
    Zh,
    /// `13a`: mteval-v13a, the default; blind to Chinese.
    V13a,
    /// `char`: characters.
    Char,
    /// `intl`: Unicode punctuation and symbols apart.
    Intl,
}

impl BleuTokenizer {
    /// All of them.
    pub const ALL: [BleuTokenizer; 4] =
        [BleuTokenizer::Zh, BleuTokenizer::V13a, BleuTokenizer::Char, BleuTokenizer::Intl];

    /// sacrebleu's name.
    pub fn name(self) -> &'static str {
        match self {
            BleuTokenizer::Zh => "zh",
            BleuTokenizer::V13a => "13a",
            BleuTokenizer::Char => "char",
            BleuTokenizer::Intl => "intl",
        }
    }

    /// The text with white space between tokens (and for `char`, as it is: every character is one).
    pub fn tokenize(self, text: &str) -> String {
        let text = python::strip_end(text);
        match self {
            BleuTokenizer::Zh => {
                let mut spaced = String::with_capacity(text.len() * 2);
                for c in python::strip(text).chars() {
                    if is_chinese(c) {
                        spaced.extend([' ', c, ' ']);
                    } else {
                        spaced.push(c);
                    }
                }
                western(&spaced)
            }
            BleuTokenizer::V13a => western(&format!(" {} ", unescape(text))),
            BleuTokenizer::Char => text.to_string(),
            BleuTokenizer::Intl => {
                let mut text = text.to_string();
                for (pattern, spaced) in INTERNATIONAL.iter() {
                    text = pattern.replace_all(&text, *spaced).into_owned();
                }
                text
            }
        }
    }

    /// The tokens of a text returned by [`BleuTokenizer::tokenize`].
    pub fn split(self, tokenized: &str) -> impl Iterator<Item = &str> {
        let by_character = self == BleuTokenizer::Char;
        let characters = tokenized.char_indices().filter(|(_, c)| !python::is_space(*c));
        let characters = characters.map(|(at, c)| &tokenized[at..at + c.len_utf8()]);
        let (words, characters) =
            if by_character { (None, Some(characters)) } else { (Some(python::split(tokenized)), None) };
        words.into_iter().flatten().chain(characters.into_iter().flatten())
    }
}

fn is_chinese(c: char) -> bool {
    matches!(c,
        '\u{2001}'..='\u{2a6d}' // the malformed range; it contains U+2600 to U+27BF
        | '\u{2e80}'..='\u{2fdf}' // radicals (with the gap up to U+2EFF / U+2F00 closed: it is empty)
        | '\u{2ff0}'..='\u{303f}'
        | '\u{3100}'..='\u{312f}'
        | '\u{31a0}'..='\u{31bf}'
        | '\u{31c0}'..='\u{31ef}'
        | '\u{3200}'..='\u{4db5}'
        | '\u{4e00}'..='\u{9fbb}'
        | '\u{f900}'..='\u{fa2d}'
        | '\u{fa30}'..='\u{fa6a}'
        | '\u{fa70}'..='\u{fad9}'
        | '\u{fe10}'..='\u{fe1f}'
        | '\u{fe30}'..='\u{fe4f}'
        | '\u{ff00}'..='\u{ffef}')
}

/// What `13a` does before its rules: joins hyphenated lines, drops `<skipped>`, unescapes four
/// entities.
fn unescape(text: &str) -> String {
    let text = text.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    if !text.contains('&') {
        return text;
    }
    text.replace("&quot;", "\"").replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")
}

/// The four rules of `13a` and `zh`: symbols apart; full stop and comma apart unless between
/// digits; a dash after a digit apart.
fn western(text: &str) -> String {
    western_symbols_and_stops(text, |spaced| spaced)
}

/// [`western`] with a step of one's own after the symbols (TER's possessives).
pub(super) fn western_symbols_and_stops(text: &str, after_symbols: impl Fn(String) -> String) -> String {
    let mut spaced = String::with_capacity(text.len() * 2);
    for c in text.chars() {
        if is_western_symbol(c) {
            spaced.extend([' ', c, ' ']);
        } else {
            spaced.push(c);
        }
    }
    let spaced = after_symbols(spaced);
    let stop = |c: char| c == '.' || c == ',';
    let no_digit = |c: char| !c.is_ascii_digit();
    let text = rewrite_pairs(&spaced, no_digit, stop, |a, b, out| out.extend([a, ' ', b, ' ']));
    let text = rewrite_pairs(&text, stop, no_digit, |a, b, out| out.extend([' ', a, ' ', b]));
    rewrite_pairs(&text, |c| c.is_ascii_digit(), |c| c == '-', |a, b, out| out.extend([a, ' ', b, ' ']))
}

fn is_western_symbol(c: char) -> bool {
    matches!(c, '{'..='~' | '['..='`' | ' '..='&' | '('..='+' | ':'..='@' | '/')
}

/// `re.sub` of a pattern of two characters: matches do not overlap.
fn rewrite_pairs(
    text: &str,
    first: impl Fn(char) -> bool,
    second: impl Fn(char) -> bool,
    write: impl Fn(char, char, &mut String),
) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    let mut chars = text.chars().peekable();
    while let Some(a) = chars.next() {
        match chars.peek() {
            Some(&b) if first(a) && second(b) => {
                write(a, b, &mut out);
                chars.next();
            }
            _ => out.push(a),
        }
    }
    out
}

/// The rules of mteval-v14 (`intl`): `P` punctuation, `N` numbers, `S` symbols.
static INTERNATIONAL: LazyLock<[(Regex, &str); 3]> = LazyLock::new(|| {
    let [p, n, s] = [NEW_PUNCTUATION, NEW_NUMBERS, NEW_SYMBOLS].map(|ranges| ranges.concat());
    let rule = |pattern: &str| Regex::new(pattern).expect("the pattern is a constant");
    [
        (rule(&format!(r"([^\p{{N}}{n}])([\p{{P}}{p}])")), "$1 $2 "),
        (rule(&format!(r"([\p{{P}}{p}])([^\p{{N}}{n}])")), " $1 $2"),
        (rule(&format!(r"([\p{{S}}{s}])")), " $1 "),
    ]
});

// What the Unicode tables of Python's `regex` 2026.11.15 have and those of the Rust crate (Unicode
// 16) lack.
const NEW_PUNCTUATION: &[&str] = &[r"\u{2e60}-\u{2e63}\u{10ed0}"];
const NEW_NUMBERS: &[&str] =
    &[r"\u{11de0}-\u{11de9}\u{1246f}\u{12475}-\u{1247f}\u{12550}-\u{12686}\u{16ff4}-\u{16ff6}"];
#[rustfmt::skip]
const NEW_SYMBOLS: &[&str] = &[
    r"\u{20c1}-\u{20c4}\u{2b96}\u{fbc3}-\u{fbd2}\u{fd90}-\u{fd91}\u{fdc8}-\u{fdce}\u{10ec9}-\u{10eca}",
    r"\u{10ed1}-\u{10ed8}\u{1ccfa}-\u{1ccfc}\u{1ceba}-\u{1ced0}\u{1ced2}-\u{1ced4}\u{1cedd}-\u{1cefd}",
    r"\u{1d1eb}-\u{1d1ff}\u{1d253}-\u{1d25a}\u{1d25d}-\u{1d25e}\u{1d260}-\u{1d27f}\u{1db00}-\u{1db1c}",
    r"\u{1f1ae}\u{1f6d8}-\u{1f6d9}\u{1f777}-\u{1f77a}\u{1f7da}-\u{1f7db}\u{1f7f1}-\u{1f7ff}",
    r"\u{1f8d0}-\u{1f8d8}\u{1fa54}-\u{1fa57}\u{1fa8a}-\u{1fa8e}\u{1fac8}\u{1facc}-\u{1facd}\u{1fadd}",
    r"\u{1faea}-\u{1faeb}\u{1faef}\u{1faf9}-\u{1fafa}\u{1fbfa}",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(tokenizer: BleuTokenizer, text: &str) -> Vec<String> {
        let tokenized = tokenizer.tokenize(text);
        tokenizer.split(&tokenized).map(str::to_string).collect()
    }

    #[test]
    fn the_tokenizers_agree_with_sacrebleu() {
        // Values of sacrebleu 2.6.0.
        assert_eq!(
            tokens(BleuTokenizer::Zh, "血压≥140/90，38.5℃。"),
            ["血", "压", "≥", "140", "/", "90", "，", "38.5", "℃", "。"]
        );
        assert_eq!(
            tokens(BleuTokenizer::V13a, "a-b 1-2, 3.5, x&lt;y."),
            ["a-b", "1", "-", "2", ",", "3.5", ",", "x", "<", "y", "."]
        );
        assert_eq!(tokens(BleuTokenizer::Char, "a 药"), ["a", "药"]);
        assert_eq!(tokens(BleuTokenizer::Intl, "血压≥140，好。"), ["血压", "≥", "140", "，", "好", "。"]);
    }
}
