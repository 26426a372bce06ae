use super::*;

#[test]
fn only_expressions_of_models_in_use_are_believed_to_end_soon_for_a_long_text() {
    let of = |regex: &str| {
        let mut outline = Outline::default();
        outline.walk(&serde_json::json!({"pattern": {"Regex": regex}}), false, &mut 0).unwrap();
        outline
    };
    for regex in KNOWN.into_iter().chain([crate::data::bpe::SPLIT]) {
        assert!(!of(regex).is_timed(1 << 20), "{regex}");
    }
    // Each takes the square or the cube of a text of `a`.
    for regex in ["a*b", "a*a*b"] {
        assert!(!of(regex).is_timed(60) && of(regex).is_timed(60_000), "{regex}");
    }
    assert!(of("(a+)+$").is_timed(1));
    assert!(!Outline::default().is_timed(1 << 20));
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
