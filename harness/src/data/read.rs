//! Data files: JSON Lines or CSV by the name's ending.

use std::path::Path;

use super::csv;
use super::fields::{Fields, Reading};
use super::record::{Dataset, collect, fits, lines, parse_object};
use crate::eval::think::ThinkTags;
use crate::{Error, Result};

impl Reading<'_> {
    /// Reads a data set: CSV if the file's name ends in `.csv`, else JSON Lines.
    ///
    /// # Errors
    /// As [`parse_csv`](csv::parse_csv) and [`read_jsonl`].
    pub fn read(&self, path: impl AsRef<Path>) -> Result<Dataset> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|e| Error::io("read the data set", path, e))?;
        let source = path.display().to_string();
        match path.extension() {
            Some(end) if end.eq_ignore_ascii_case("csv") => csv::parse(&bytes, &source, self),
            _ => self.jsonl(&bytes, &source),
        }
    }

    fn jsonl(&self, bytes: &[u8], source: &str) -> Result<Dataset> {
        let rows = lines(bytes).map(|(line, text)| (line, fits(text.len()).and_then(|()| parse_object(text))));
        collect(bytes, source, self, rows)
    }
}

/// [`Reading::read`] with the usual tags of reasoning.
///
/// # Errors
/// As there.
pub fn read_rows(path: impl AsRef<Path>, fields: &Fields, strict: bool) -> Result<Dataset> {
    Reading { fields, tags: &ThinkTags::default(), strict }.read(path)
}

/// Reads a JSON Lines file (UTF-8, with or without a byte-order mark, `\n` or `\r\n`) with the
/// usual tags of reasoning. Keys that [`Fields`] does not name are ignored; blank lines at the end
/// are fine, elsewhere they are bad rows, as is a row of more than
/// [`MOST_BYTES`](super::record::MOST_BYTES).
///
/// # Errors
/// If the file cannot be read, is empty or has no good row; with `strict`, at the first bad row.
pub fn read_jsonl(path: impl AsRef<Path>, fields: &Fields, strict: bool) -> Result<Dataset> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(|e| Error::io("read the data set", path, e))?;
    parse_jsonl(&bytes, &path.display().to_string(), fields, strict)
}

/// [`read_jsonl`] of bytes that are already here; `source` names them in errors.
///
/// # Errors
/// As [`read_jsonl`], but for reading.
pub fn parse_jsonl(bytes: &[u8], source: &str, fields: &Fields, strict: bool) -> Result<Dataset> {
    Reading { fields, tags: &ThinkTags::default(), strict }.jsonl(bytes, source)
}
