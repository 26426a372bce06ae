//! White space as Python defines it, and the string methods that depend on it.
//!
//! The packages whose numbers Karat reproduces split and strip with `str.split()`, `str.strip()`
//! and `\s`. Python counts U+001C to U+001F as white space, Unicode's `White_Space` (and so Rust)
//! does not.

/// `str.isspace()` of one character.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// The characters of a text but its white space.
pub fn visible(text: &str) -> impl Iterator<Item = char> {
    text.chars().filter(|c| !is_space(*c))
}

/// `text.split()`: the runs of characters that are not white space.
pub fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

/// `text.strip()`.
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `text.rstrip()`.
pub fn strip_end(text: &str) -> &str {
    text.trim_end_matches(is_space)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn information_separators_are_white_space_as_in_python() {
        assert_eq!(
            split("甲\u{1c}乙\u{1d}丙\u{1f}丁\u{85}戊\u{a0}己").collect::<Vec<_>>(),
            ["甲", "乙", "丙", "丁", "戊", "己"]
        );
        assert_eq!(strip("\u{1e}a b\u{2028}"), "a b");
        assert_eq!(split("高\u{200b}血\u{feff}压").count(), 1, "zero-width characters are no white space");
    }
}
