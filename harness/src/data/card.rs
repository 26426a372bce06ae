//! A dataset's card: which files are of which part, in the YAML head of its `README.md`.
//!
//! Only what `configs` needs is read: mappings, lists and scalars by indentation, as the hub writes
//! them. What is written otherwise is told as unclear, never guessed.

use serde_json::{Map, Value};

use super::files::Part;

/// Why a card says nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// It has several configurations, and none is the default.
    Several(Vec<String>),
    /// In words.
    Unclear(String),
}

/// The head is read up to so many lines, nested so deep.
const LINES: usize = 4_000;
const DEEPEST: usize = 16;

/// Parts and the patterns of their files, in order; none if the card names no files.
pub(super) fn data_files(card: &str) -> Result<Option<Vec<(Part, String)>>, Unread> {
    let unclear = |what: &str| Unread::Unclear(what.into());
    let mut lines = card.trim_start_matches('\u{feff}').lines();
    if lines.next().is_none_or(|line| line.trim_end() != "---") {
        return Ok(None);
    }
    let head: Vec<&str> = lines.take_while(|line| line.trim_end() != "---").take(LINES).collect();
    let Some(start) = head.iter().position(|line| line.trim_end() == "configs:") else { return Ok(None) };
    let rest = &head[start + 1..];
    // The list may stand at the key's own indentation.
    let end = rest.iter().position(|line| line.starts_with(|c: char| !c.is_whitespace() && c != '-' && c != '#'));
    let lines: Vec<(usize, &str)> = rest[..end.unwrap_or(rest.len())]
        .iter()
        .map(|line| (line.len() - line.trim_start().len(), line.trim()))
        .filter(|(_, text)| !text.is_empty() && !text.starts_with('#'))
        .collect();
    let mut at = 0;
    let configs = block(&lines, &mut at, 0).map_err(Unread::Unclear)?;
    if at < lines.len() {
        return Err(unclear("lines of configs are indented unevenly"));
    }
    let Value::Array(configs) = configs else { return Err(unclear("configs is no list")) };
    let with_files: Vec<&Map<String, Value>> =
        configs.iter().filter_map(Value::as_object).filter(|config| config.contains_key("data_files")).collect();
    let name =
        |config: &Map<String, Value>| config.get("config_name").and_then(Value::as_str).unwrap_or("").to_string();
    let chosen = match with_files[..] {
        [] => return Ok(None),
        [only] => only,
        _ => {
            let default = with_files.iter().find(|c| c.get("default").and_then(Value::as_str) == Some("true"));
            let default = default.or_else(|| with_files.iter().find(|c| name(c) == "default"));
            *default.ok_or_else(|| Unread::Several(with_files.iter().map(|c| name(c)).collect()))?
        }
    };
    let mut files = Vec::new();
    let texts = |value: &Value| -> Result<Vec<String>, Unread> {
        let list = match value {
            Value::String(text) => return Ok(vec![text.clone()]),
            Value::Array(list) => list,
            _ => return Err(unclear("a path is no text")),
        };
        list.iter().map(|v| v.as_str().map(String::from).ok_or_else(|| unclear("a path is no text"))).collect()
    };
    match &chosen["data_files"] {
        Value::Array(list) if list.iter().any(Value::is_object) => {
            for entry in list {
                let (Some(split), Some(path)) = (entry.get("split").and_then(Value::as_str), entry.get("path")) else {
                    return Err(unclear("data_files has an entry without split and path"));
                };
                // Parts of other names (`train_sft`) are told by their words.
                let part = split.split(|c: char| !c.is_alphanumeric()).find_map(Part::of_word);
                let Some(part) = part else { continue };
                files.extend(texts(path)?.into_iter().map(|path| (part, path)));
            }
        }
        other => files.extend(texts(other)?.into_iter().map(|path| (Part::Train, path))),
    }
    Ok(Some(files))
}

/// The value that begins at a line, whose lines are all indented as that one or deeper.
fn block(lines: &[(usize, &str)], at: &mut usize, depth: usize) -> Result<Value, String> {
    if depth > DEEPEST {
        return Err("it nests too deep".into());
    }
    let Some(&(indent, first)) = lines.get(*at) else { return Ok(Value::Null) };
    match item(first) {
        Some(_) => sequence(lines, at, indent, depth),
        None => mapping(lines, at, indent, depth, Map::new()),
    }
}

/// The text of a list's item.
fn item(text: &str) -> Option<&str> {
    if text == "-" { Some("") } else { text.strip_prefix("- ") }
}

fn sequence(lines: &[(usize, &str)], at: &mut usize, indent: usize, depth: usize) -> Result<Value, String> {
    let mut list = Vec::new();
    while let Some(&(here, text)) = lines.get(*at).filter(|(here, text)| *here == indent && item(text).is_some()) {
        let inner = item(text).unwrap_or_default();
        let trimmed = inner.trim_start();
        let inner_indent = here + (text.len() - trimmed.len());
        *at += 1;
        if trimmed.is_empty() {
            list.push(if lines.get(*at).is_some_and(|(next, _)| *next > here) {
                block(lines, at, depth + 1)?
            } else {
                Value::Null
            });
        } else if key(trimmed).is_some() {
            // A mapping that begins on the item's own line.
            let mut map = Map::new();
            entry(trimmed, lines, at, inner_indent, depth, &mut map)?;
            list.push(mapping(lines, at, inner_indent, depth + 1, map)?);
        } else {
            list.push(scalar(trimmed)?);
        }
    }
    Ok(Value::Array(list))
}

fn mapping(
    lines: &[(usize, &str)],
    at: &mut usize,
    indent: usize,
    depth: usize,
    mut map: Map<String, Value>,
) -> Result<Value, String> {
    if depth > DEEPEST {
        return Err("it nests too deep".into());
    }
    while let Some(&(_, text)) = lines.get(*at).filter(|(here, text)| *here == indent && item(text).is_none()) {
        *at += 1;
        entry(text, lines, at, indent, depth, &mut map)?;
    }
    Ok(Value::Object(map))
}

/// Reads `key: value`, whose value may stand on the lines below.
fn entry(
    text: &str,
    lines: &[(usize, &str)],
    at: &mut usize,
    indent: usize,
    depth: usize,
    map: &mut Map<String, Value>,
) -> Result<(), String> {
    let (name, rest) = key(text).ok_or_else(|| format!("{text:?} is no key"))?;
    let below = lines.get(*at).is_some_and(|(next, text)| *next > indent || (*next == indent && item(text).is_some()));
    let value = match rest {
        "" if below => block(lines, at, depth + 1)?,
        "" => Value::Null,
        rest => scalar(rest)?,
    };
    map.insert(name.into(), value);
    Ok(())
}

/// Key and rest of a line `key: rest`.
fn key(text: &str) -> Option<(&str, &str)> {
    if text.starts_with(['"', '\'', '[', '{']) {
        return None;
    }
    text.strip_suffix(':').map(|name| (name, "")).or_else(|| text.split_once(": ")).map(|(k, v)| (k.trim(), v.trim()))
}

/// A scalar, or a list of them within brackets.
fn scalar(text: &str) -> Result<Value, String> {
    if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let parts = inner.split(',').map(str::trim).filter(|part| !part.is_empty());
        return parts.map(|part| plain(part).map(Value::String)).collect::<Result<_, _>>().map(Value::Array);
    }
    plain(text).map(Value::String)
}

fn plain(text: &str) -> Result<String, String> {
    for quote in ['"', '\''] {
        if let Some(rest) = text.strip_prefix(quote) {
            let inner = rest.strip_suffix(quote).filter(|inner| !inner.contains([quote, '\\']));
            return inner.map(String::from).ok_or_else(|| format!("{text} is quoted in a way that is not read"));
        }
    }
    if text.starts_with(['{', '[', '|', '>', '&', '*', '!', '%', '@'])
        && !text.starts_with("**")
        && !text.starts_with("*.")
    {
        return Err(format!("{text:?} is not read"));
    }
    Ok(text.split(" #").next().unwrap_or(text).trim_end().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(yaml: &str) -> Result<Option<Vec<(Part, String)>>, Unread> {
        data_files(&format!("---\nlicense: mit\n{yaml}tags:\n- x\n---\n# Text\nconfigs:\n"))
    }

    #[test]
    fn files_of_the_only_or_the_default_configuration_are_named() {
        let one = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n  - split: test\n    \
                   path:\n    - \"a.jsonl\"\n    - b.jsonl\n";
        let (train, test) = (Part::Train, Part::Test);
        let files = vec![(train, "data/train-*".to_string()), (test, "a.jsonl".into()), (test, "b.jsonl".into())];
        assert_eq!(read(one), Ok(Some(files)));
        let own = "configs:\n  - config_name: a\n    data_files: \"a/*.csv\"\n  - config_name: b\n    default: true\n    data_files:\n      \
                   - b.csv\n      - c.csv\n";
        assert_eq!(read(own), Ok(Some(vec![(train, "b.csv".into()), (train, "c.csv".into())])));
        let named = "configs:\n- config_name: a\n  data_files:\n  - split: train_sft\n    path: [x.csv, 'y.csv']\n";
        assert_eq!(read(named), Ok(Some(vec![(train, "x.csv".into()), (train, "y.csv".into())])));
        let several = read("configs:\n- config_name: a\n  data_files: a.csv\n- config_name: b\n  data_files: b.csv\n");
        assert_eq!(several, Err(Unread::Several(vec!["a".into(), "b".into()])));
        assert_eq!(read(""), Ok(None));
        assert_eq!(data_files("# no head\n"), Ok(None));
    }

    #[test]
    fn what_is_written_otherwise_is_unclear_and_never_guessed() {
        for other in
            ["configs:\n  a: b\n", "configs:\n- data_files:\n  - split: train\n", "configs:\n- data_files: &x y\n"]
        {
            assert!(matches!(read(other), Err(Unread::Unclear(_))), "{other}: {:?}", read(other));
        }
        let deep: String = (0..100).map(|n| format!("{}- a:\n", "  ".repeat(n))).collect();
        assert!(read(&format!("configs:\n{deep}")).is_err());
    }
}
