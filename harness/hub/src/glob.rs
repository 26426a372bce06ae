//! Patterns of paths, as `--include` and a dataset's card write them.

use std::collections::BTreeSet;

/// Whether `path` is what `pattern` means: `*` and `?` stand for anything, `[abc]` for one of some
/// characters. Where `crosses` is set, `*` and `?` stand for a `/` too, as in Python's `fnmatch`;
/// else only `**` does, as in a shell.
pub fn matches(pattern: &str, path: &str, crosses: bool) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let path: Vec<char> = path.chars().collect();
    at(&pattern, &path, crosses, &mut BTreeSet::new())
}

/// Whether the rest of a path is what the rest of a pattern means. What was tried in vain is in
/// `failed`, by the lengths of both: a pattern is a stranger's, and must not take forever.
fn at(pattern: &[char], path: &[char], crosses: bool, failed: &mut BTreeSet<(usize, usize)>) -> bool {
    let key = (pattern.len(), path.len());
    if failed.contains(&key) {
        return false;
    }
    let found = step(pattern, path, crosses, failed);
    if !found {
        failed.insert(key);
    }
    found
}

fn step(pattern: &[char], path: &[char], crosses: bool, failed: &mut BTreeSet<(usize, usize)>) -> bool {
    match pattern {
        [] => path.is_empty(),
        ['*', '*', '/', rest @ ..] if !crosses => {
            // Any number of folders, none among them.
            at(rest, path, crosses, failed)
                || path.iter().enumerate().any(|(i, c)| *c == '/' && at(rest, &path[i + 1..], crosses, failed))
        }
        ['*', rest @ ..] => {
            let deep = crosses || rest.first() == Some(&'*');
            let behind = if rest.first() == Some(&'*') { &rest[1..] } else { rest };
            // It stands for nothing, or for one character and more.
            at(behind, path, crosses, failed)
                || matches!(path, [c, tail @ ..] if (deep || *c != '/') && at(pattern, tail, crosses, failed))
        }
        ['?', rest @ ..] => matches!(path, [c, tail @ ..] if (crosses || *c != '/') && at(rest, tail, crosses, failed)),
        ['[', rest @ ..] => match (class(rest), path) {
            (Some((one_of, rest)), [c, tail @ ..]) => one_of(*c) && at(rest, tail, crosses, failed),
            (None, ['[', tail @ ..]) => at(rest, tail, crosses, failed),
            _ => false,
        },
        [literal, rest @ ..] => matches!(path, [c, tail @ ..] if c == literal && at(rest, tail, crosses, failed)),
    }
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
            assert_eq!(matches(pattern, path, true), is, "{pattern} {path}");
        }
    }

    #[test]
    fn a_pattern_that_a_stranger_made_long_is_answered_at_once() {
        assert!(!matches(&format!("{}b", "*a".repeat(200)), &"a".repeat(2000), true));
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
            assert_eq!(matches(pattern, path, false), is, "{pattern} {path}");
        }
    }
}
