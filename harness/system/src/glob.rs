//! Patterns of paths: `*`, `**`, `?` and classes of characters.

/// What a pattern's characters mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// As Python's `fnmatch`: `*` and `?` stand for a `/` too, `[abc]` and `[!a-z]` for one character.
    Fnmatch,
    /// As a shell with `globstar`: only `**` stands for a `/`, and `**/` also for no folder at all;
    /// classes as in [`Style::Fnmatch`].
    Globstar,
    /// As [`Style::Globstar`], but a bracket is a bracket.
    Literal,
}

/// Whether `path` is what `pattern` means. It takes the product of both lengths at most: a pattern
/// may be a stranger's.
pub fn matches(pattern: &str, path: &str, style: Style) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let path: Vec<char> = path.chars().collect();
    let crosses = style == Style::Fnmatch;
    // The lengths of the path that the pattern so far fits: no backtracking.
    let mut ends = vec![false; path.len() + 1];
    ends[0] = true;
    let mut rest = &pattern[..];
    while let [first, behind @ ..] = rest {
        rest = behind;
        ends = match first {
            '*' => {
                let across = !crosses && rest.first() == Some(&'*');
                if across {
                    rest = &rest[1..];
                }
                let mut open = false;
                let grown = (0..=path.len()).map(|i| {
                    open = ends[i] || (open && (crosses || across || path[i - 1] != '/'));
                    open
                });
                let grown: Vec<bool> = grown.collect();
                match rest {
                    ['/', behind @ ..] if across => {
                        rest = behind;
                        (0..=path.len()).map(|i| ends[i] || (i > 0 && grown[i - 1] && path[i - 1] == '/')).collect()
                    }
                    _ => grown,
                }
            }
            '?' => one(&ends, &path, |c| crosses || c != '/'),
            '[' if style != Style::Literal => match class(rest) {
                Some((one_of, behind)) => {
                    rest = behind;
                    one(&ends, &path, one_of)
                }
                None => one(&ends, &path, |c| c == '['),
            },
            literal => one(&ends, &path, |c| c == *literal),
        };
    }
    ends[path.len()]
}

/// The ends after one character more, which `fits`.
fn one(ends: &[bool], path: &[char], fits: impl Fn(char) -> bool) -> Vec<bool> {
    std::iter::once(false).chain(ends.iter().zip(path).map(|(end, c)| *end && fits(*c))).collect()
}

/// A class of characters behind its `[`, and what follows it; none where it does not end.
fn class(pattern: &[char]) -> Option<(impl Fn(char) -> bool, &[char])> {
    let negated = pattern.first() == Some(&'!');
    let body = &pattern[usize::from(negated)..];
    // A `]` at once is one of the characters.
    let end = body.iter().skip(1).position(|c| *c == ']')? + 1;
    let (members, rest) = (body[..end].to_vec(), &body[end + 1..]);
    let is_in = move |c: char| {
        let mut i = 0;
        while i < members.len() {
            if i + 2 < members.len() && members[i + 1] == '-' {
                if (members[i]..=members[i + 2]).contains(&c) {
                    return true;
                }
                i += 3;
            } else if members[i] == c {
                return true;
            } else {
                i += 1;
            }
        }
        false
    };
    Some((move |c| is_in(c) != negated, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_of_a_command_line_is_one_of_fnmatch() {
        for (pattern, path, is) in [
            ("*.json", "a/b.json", true),
            ("*.json", "a.jsonl", false),
            ("data/*", "data/x/y", true),
            ("train-[0-9].csv", "train-3.csv", true),
            ("train-[!0-9].csv", "train-3.csv", false),
            ("a?c", "abc", true),
            ("[]]x", "]x", true),
            ("[x", "[x", true),
            ("", "", true),
        ] {
            assert_eq!(matches(pattern, path, Style::Fnmatch), is, "{pattern} {path}");
        }
    }

    #[test]
    fn a_pattern_that_a_stranger_made_long_is_answered_at_once() {
        assert!(!matches(&format!("{}b", "*a".repeat(200)), &"a".repeat(2000), Style::Fnmatch));
    }

    #[test]
    fn a_pattern_of_a_card_stays_in_its_folder_unless_it_says_so() {
        for (pattern, path, is) in [
            ("data/train-*", "data/train-00000-of-00001.parquet", true),
            ("data/*.csv", "data/x/y.csv", false),
            ("**/train.csv", "train.csv", true),
            ("**/train.csv", "a/b/train.csv", true),
            ("data/**", "data/a/b.csv", true),
            ("**", "a/b", true),
            ("*.csv", "a/b.csv", false),
        ] {
            assert_eq!(matches(pattern, path, Style::Globstar), is, "{pattern} {path}");
        }
    }
}
