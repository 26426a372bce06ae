//! Rows that are no questions: plain text for pretraining, and ids that were tokenized elsewhere.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::examples::LabelledRows;
use super::fields::value;
use super::read::{self, ENDINGS};
use super::record::{BadRow, Parsed, fits};
use super::tokens::Tokenizer;
use super::unpack;
use crate::backend::IGNORE;
use crate::{Error, Result};

/// Reads documents: from a file of rows (`.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`) the `text` of
/// every row, from any other file the paragraphs, which blank lines part; also packed (`.gz`, `.zst`).
///
/// # Errors
/// If the file cannot be read, is not UTF-8, holds no document, or a row has no `text`.
pub fn read_texts(path: impl AsRef<Path>) -> Result<Vec<String>> {
    let path = path.as_ref();
    let mut texts = Vec::new();
    if ENDINGS.contains(&unpack::ending(path).0.as_str()) {
        read::each_row(path, &mut |line, row| {
            texts.push(
                text_of(row).map_err(|reason| Error::data(reason).at(format_args!("{}:{line}", path.display())))?,
            );
            Ok(())
        })?;
    } else {
        let mut file = unpack::open(path)?;
        let mut bytes = Vec::new();
        if let Err(error) = file.text.read_to_end(&mut bytes) {
            return Err(file.failed(error));
        }
        let text = std::str::from_utf8(&bytes).map_err(|e| {
            let line = bytes[..e.valid_up_to()].iter().filter(|&&b| b == b'\n').count() + 1;
            Error::data("invalid UTF-8").at(format_args!("{}:{line}", path.display())).because(e)
        })?;
        texts = paragraphs(text.strip_prefix('\u{feff}').unwrap_or(text), path)?;
    }
    if texts.iter().all(|text| text.trim().is_empty()) {
        return Err(Error::data("the file holds no text").at(path.display()).help("give a file with text to train on"));
    }
    Ok(texts)
}

/// [`read_texts`] of several files, one after the other.
///
/// # Errors
/// As there.
pub fn read_texts_of(paths: &[PathBuf]) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for path in paths {
        texts.extend(read_texts(path)?);
    }
    Ok(texts)
}

/// The text of a row.
fn text_of(row: Parsed) -> Result<String, String> {
    let row = row?;
    match value(&row, "text")? {
        Some(Value::String(text)) => {
            fits(text.len())?;
            Ok(text.clone())
        }
        _ => {
            let names: Vec<String> = row.keys().take(24).map(|name| format!("{name:?}")).collect();
            Err(format!("\"text\" is missing or not a string; the columns are {}", names.join(", ")))
        }
    }
}

/// What blank lines part.
fn paragraphs(text: &str, path: &Path) -> Result<Vec<String>> {
    let text = text.replace("\r\n", "\n");
    let (mut texts, mut paragraph) = (Vec::new(), String::new());
    for (number, line) in text.lines().chain([""]).enumerate() {
        if !line.trim().is_empty() {
            if !paragraph.is_empty() {
                paragraph.push('\n');
            }
            paragraph.push_str(line);
            fits(paragraph.len()).map_err(|reason| {
                Error::data(reason)
                    .at(format_args!("{}:{}", path.display(), number + 1))
                    .help("blank lines part a text into documents")
            })?;
        } else if !paragraph.is_empty() {
            texts.push(std::mem::take(&mut paragraph));
        }
    }
    Ok(texts)
}

/// Tokenizes documents for pretraining: each followed by `eos`, all joined, cut into blocks of
/// `max_length` tokens with every token labelled. The last block may be shorter; it is dropped if
/// it has one token, of which nothing can be learned.
///
/// # Errors
/// If `max_length` is below 2 or a text cannot be tokenized.
pub fn text_examples<'a>(
    tokenizer: &Tokenizer,
    texts: impl IntoIterator<Item = &'a str>,
    max_length: usize,
    eos: u32,
) -> Result<LabelledRows> {
    if max_length < 2 {
        return Err(Error::usage(
            "max_length must be at least 2 for text: the first token of a block is not predicted",
        ));
    }
    let mut stream = Vec::new();
    for text in texts {
        stream.extend(tokenizer.encode(text)?);
        stream.push(eos);
    }
    let mut rows = LabelledRows::default();
    for block in stream.chunks(max_length).filter(|block| block.len() > 1) {
        let labels: Vec<i32> = block.iter().map(|&id| id as i32).collect();
        rows.push(block, &labels)?;
    }
    Ok(rows)
}

/// Rows of [`read_ids_jsonl`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdRows {
    /// The good rows, in file order.
    pub rows: LabelledRows,
    /// The lines that are not rows.
    pub bad: Vec<BadRow>,
}

/// Reads rows `{"input_ids": [..], "labels": [..]}` as they are; without `labels` every token is
/// trained on. A label is an id or -100.
///
/// # Errors
/// If the file cannot be read or has no good row; with `strict`, at the first bad row.
pub fn read_ids_jsonl(path: impl AsRef<Path>, strict: bool) -> Result<IdRows> {
    let path = path.as_ref();
    let mut result = IdRows::default();
    read::each_row(path, &mut |line, row| {
        let taken = row
            .and_then(|row| ids_row(&row))
            .and_then(|(ids, labels)| result.rows.push(&ids, &labels).map_err(|e| e.what().into()));
        match taken {
            Ok(()) => {}
            Err(reason) if strict => {
                return Err(Error::data(reason).at(format_args!("{}:{line}", path.display())));
            }
            Err(reason) => result.bad.push(BadRow { file: path.display().to_string(), line, reason }),
        }
        Ok(())
    })?;
    if result.rows.is_empty() {
        let what = match result.bad.first() {
            Some(bad) => format!("none of the {} lines is usable; line {}: {}", result.bad.len(), bad.line, bad.reason),
            None => "the data set is empty".into(),
        };
        let help = "give lines like {\"input_ids\": [1, 2], \"labels\": [-100, 2]}";
        return Err(Error::data(what).at(path.display()).help(help));
    }
    Ok(result)
}

fn ids_row(row: &Map<String, Value>) -> Result<(Vec<u32>, Vec<i32>), String> {
    let list = |key: &str| match row.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(list)) => Ok(Some(list)),
        Some(_) => Err(format!("{key:?} must be a list")),
    };
    // Ids fit i32 because labels are i32.
    let id = |value: &Value| value.as_u64().and_then(|id| i32::try_from(id).ok());
    let ids: Vec<u32> = list("input_ids")?
        .ok_or("\"input_ids\" is missing")?
        .iter()
        .map(|value| id(value).map(|id| id as u32).ok_or_else(|| format!("{value} is not a token id")))
        .collect::<Result<_, _>>()?;
    if ids.len() < 2 {
        return Err(format!("\"input_ids\" has {} ids; at least 2 are needed", ids.len()));
    }
    let labels: Vec<i32> = match list("labels")? {
        None => ids.iter().map(|&id| id as i32).collect(),
        Some(labels) => labels
            .iter()
            .map(|value| match value.as_i64() {
                Some(-100) => Ok(IGNORE),
                _ => id(value).ok_or_else(|| format!("{value} is not a label: give a token id or -100")),
            })
            .collect::<Result<_, _>>()?,
    };
    if labels.len() == ids.len() && labels.iter().skip(1).all(|&label| label == IGNORE) {
        return Err("every label is -100: nothing to train on".into());
    }
    Ok((ids, labels))
}
