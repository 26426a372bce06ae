//! Spelling suggestions for mistyped names, by edit distance.

/// The known name that is nearest to `name`, if one is near enough to be meant: half of it may
/// differ.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let (distance, known) = known.into_iter().map(|k| (distance(name, k), k)).min()?;
    (distance == 0 || (known.len() > 1 && 2 * distance <= name.len())).then_some(known)
}

/// Levenshtein distance of two names, case ignored; what one contains of the other counts for
/// little, unless it is so short that any name might contain it.
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.to_lowercase(), b.to_lowercase());
    if a.len().min(b.len()) >= 3 && (b.contains(&a) || a.contains(&b)) {
        return (1 + a.len().abs_diff(b.len()) / 8).min(a.len().abs_diff(b.len()));
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_understood_and_another_word_is_not() {
        let known = ["epochs", "max_steps", "learning_rate", "r"];
        for (typed, meant) in [
            ("epoch", "epochs"),
            ("learnin_rate", "learning_rate"),
            ("max-steps", "max_steps"),
            ("R", "r"),
            ("num_train_epochs", "epochs"),
        ] {
            assert_eq!(nearest(typed, known), Some(meant));
        }
        assert_eq!(nearest("temperature", known), None);
        assert_eq!(nearest("lr", known), None, "one letter is in many names");
        assert_eq!(nearest("anything", []), None);
    }
}
