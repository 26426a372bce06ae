//! Regular expressions of tokenizers: which of them surely take about as long as a text is.

/// Longest regular expression in bytes.
const REGEX_BYTES: usize = 16 << 10;
/// The counted repetitions of an expression, multiplied.
const REPETITIONS: u64 = 20_000;
/// Expressions of models in use, for which the time is about as long as the text is: GPT-2, Llama
/// 3, Qwen, o200k, DeepSeek.
pub(super) const KNOWN: [&str; 5] = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];

/// Whether an expression surely takes about as long as the text is: nothing that repeats is
/// repeated, and there are no references back. The expressions of GPT-2, Llama 3, Qwen, o200k,
/// DeepSeek and Karat's own are of this kind.
///
/// # Errors
/// If it is too long or counts too far: compiling it takes memory for each repetition.
pub(super) fn is_tame(regex: &str) -> Result<bool, String> {
    if regex.len() > REGEX_BYTES {
        return Err(format!("a regular expression has more than {REGEX_BYTES} bytes"));
    }
    let (mut tame, mut class, mut after_group) = (true, 0usize, false);
    let (mut unbounded, mut repetitions) = (0, 1u64);
    let mut chars = regex.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let closes_group = std::mem::take(&mut after_group);
        match c {
            '\\' => {
                let escaped = chars.next().map_or('\\', |(_, c)| c);
                tame &= class > 0 || !matches!(escaped, '1'..='9' | 'k' | 'g' | 'K' | 'X' | 'R' | 'y' | 'Y');
            }
            '[' => class += 1,
            ']' => class = class.saturating_sub(1),
            _ if class > 0 => {}
            ')' => after_group = true,
            '(' => {
                let rest = &regex[at..];
                tame &= !rest.starts_with("(?<") && !rest.starts_with("(?~") && !rest.starts_with("(*");
            }
            '|' => unbounded = 0,
            '*' | '+' => {
                unbounded += 1;
                tame &= !closes_group && unbounded <= 2;
            }
            '{' => {
                let inside: String = regex[at + 1..].chars().take_while(|&c| c != '}').collect();
                let numbers = inside.split(',').filter_map(|n| n.trim().parse::<u64>().ok());
                repetitions = repetitions.saturating_mul(numbers.max().unwrap_or(1).max(1));
                unbounded += usize::from(inside.ends_with(','));
                tame &= !closes_group && unbounded <= 2;
            }
            _ => {}
        }
    }
    match repetitions > REPETITIONS {
        true => Err(format!("a regular expression repeats more than {REPETITIONS} times")),
        false => Ok(tame),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_of_models_in_use_are_tame_and_nested_repetitions_are_not() {
        for regex in KNOWN.into_iter().chain([crate::data::bpe::SPLIT, " {2,}", "[0-9][0-9][0-9]"]) {
            assert_eq!(is_tame(regex), Ok(true), "{regex}");
        }
        for regex in ["(a+)+$", "(a|aa)*b", "(?:a*){3,}b", r"(a*)\1", "(?<=a+)b", "a*a*a*b"] {
            assert_eq!(is_tame(regex), Ok(false), "{regex}");
        }
        for regex in ["(((a{99}){99}){99}){99}", &"a".repeat(20_000)] {
            assert!(is_tame(regex).is_err());
        }
    }
}
