use super::*;

#[test]
fn expressions_of_models_in_use_are_tame_and_nested_repetitions_are_not() {
    let llama = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let o200k = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let deepseek = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
    for regex in [llama, o200k, deepseek, crate::data::bpe::SPLIT, " {2,}", "[0-9][0-9][0-9]"] {
        assert_eq!(is_tame(regex), Ok(true), "{regex}");
    }
    for regex in ["(a+)+$", "(a|aa)*b", "(?:a*){3,}b", r"(a*)\1", "(?<=a+)b", "a*a*a*b"] {
        assert_eq!(is_tame(regex), Ok(false), "{regex}");
    }
    for regex in ["(((a{99}){99}){99}){99}", &"a".repeat(20_000)] {
        assert!(is_tame(regex).is_err());
    }
}

#[test]
fn growth_is_told_before_it_happens() {
    let replace = |pattern: &str, content: String| (Some(pattern.to_string()), content.len());
    let bomb = vec![replace("a", "a".repeat(100)); 6];
    let outline = Outline { replacements: bomb, ..Outline::default() };
    assert!(outline.admit(&"a".repeat(50)).is_err());
    assert!(outline.admit("bcd").is_ok(), "nothing is replaced here");
    let usual = Outline { replacements: vec![replace(" ", "▁".into())], ..Outline::default() };
    assert!(usual.admit(&" ".repeat(10_000_000)).is_ok());
}
