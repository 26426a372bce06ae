//! Data files: JSON Lines, a JSON array, CSV, TSV or Parquet by the name's ending, each of the texts
//! also packed.

use std::io::BufRead;
use std::path::{Path, PathBuf};

use super::csv;
use super::fields::{Fields, Reading};
use super::gather::Gatherer;
use super::lines::{self, Broken, Stop, Take};
#[cfg(feature = "parquet")]
use super::parquet;
use super::record::Dataset;
use super::unpack;
use crate::eval::think::ThinkTags;
use crate::{Error, Result, fsio};

/// How the rows of a file are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// One object a line, or one array of them.
    Json,
    /// A table whose cells this byte parts.
    Table(u8),
    Parquet,
}

/// Endings of names of data files, without those of their packing.
pub(super) const ENDINGS: [&str; 7] = ["jsonl", "json", "ndjson", "csv", "tsv", "tab", "parquet"];

/// How the rows of a file are written, by its name.
pub(super) fn written(path: &Path) -> Written {
    match unpack::ending(path).0.as_str() {
        "csv" => Written::Table(b','),
        "tsv" | "tab" => Written::Table(b'\t'),
        "parquet" => Written::Parquet,
        _ => Written::Json,
    }
}

/// Hands on the rows of a file; its SHA-256.
///
/// # Errors
/// If it cannot be read or unpacked, or is no such file as its name says; what `take` says.
pub(super) fn each_row(path: &Path, take: Take<'_>) -> Result<String> {
    if written(path) == Written::Parquet {
        return parquet_rows(path, take);
    }
    let mut file = unpack::open(path)?;
    let read = match written(path) {
        Written::Table(delimiter) => csv::rows(&mut file.text, delimiter, take),
        _ => lines::rows(&mut file.text, take),
    };
    match read {
        Ok(()) => file.sha256(),
        Err(Stop::Io(error)) => Err(file.failed(error)),
        Err(stop) => Err(stopped(stop, &path.display().to_string())),
    }
}

#[cfg(feature = "parquet")]
fn parquet_rows(path: &Path, take: Take<'_>) -> Result<String> {
    if unpack::ending(path).1 {
        return Err(Error::data("a packed Parquet file is not read").at(path.display()).help("unpack it first"));
    }
    parquet::rows(path, take)?;
    fsio::sha256_file(path)
}

#[cfg(not(feature = "parquet"))]
fn parquet_rows(path: &Path, _: Take<'_>) -> Result<String> {
    let help = "build Karat with its feature `parquet`, or write the rows as JSON Lines";
    Err(Error::usage("this build reads no Parquet").at(path.display()).help(help))
}

/// Why the rows of the file `source` end early, as an error.
fn stopped(stop: Stop, source: &str) -> Error {
    match stop {
        Stop::Io(error) => Error::io("read the data set", source, error),
        Stop::Broken(Broken { line, what, help }) => {
            let place = line.map_or(source.to_string(), |line| format!("{source}:{line}"));
            Error::data(what).at(place).help(help)
        }
        Stop::Taker(error) => error,
    }
}

impl Reading<'_> {
    /// Reads a data file. The end of its name says how its rows are written: `.csv`, `.tsv`,
    /// `.parquet`, else JSON (an object a line, or one array of them), all but Parquet also with
    /// `.gz` or `.zst` behind. What a row is, its keys say ([`Format`](super::format::Format)).
    ///
    /// # Errors
    /// If the file cannot be read or unpacked, is empty, has rows of several forms or no good one;
    /// with `strict`, at the first bad row.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<Dataset> {
        self.read_files(&[path.as_ref().to_path_buf()])
    }

    /// [`Reading::read`] of several files as one data set: rows in the order of the files, ids unique
    /// over all of them. Each file has one form of rows.
    ///
    /// # Errors
    /// As there; without a file.
    pub fn read_files(&self, paths: &[PathBuf]) -> Result<Dataset> {
        let mut gatherer = Gatherer::new(self);
        for path in paths {
            gatherer.begin(&path.display().to_string());
            let sha256 = each_row(path, &mut |line, row| gatherer.take(line, row))?;
            gatherer.end(sha256)?;
        }
        gatherer.finish()
    }
}

/// The data set of bytes that are already here.
pub(super) fn parse(
    bytes: &[u8],
    source: &str,
    reading: &Reading<'_>,
    rows: impl FnOnce(&mut dyn BufRead, Take<'_>) -> Result<(), Stop>,
) -> Result<Dataset> {
    let mut gatherer = Gatherer::new(reading);
    gatherer.begin(source);
    let mut text = bytes;
    rows(&mut text, &mut |line, row| gatherer.take(line, row)).map_err(|stop| stopped(stop, source))?;
    gatherer.end(fsio::sha256(bytes))?;
    gatherer.finish()
}

/// [`Reading::read`] with the usual tags of reasoning.
///
/// # Errors
/// As there.
pub fn read_rows(path: impl AsRef<Path>, fields: &Fields, strict: bool) -> Result<Dataset> {
    Reading { strict, ..Reading::new(fields, &ThinkTags::default()) }.read(path)
}

/// Reads a file of JSON (UTF-8, with or without a byte-order mark, `\n` or `\r\n`): one object a
/// line, or one array of objects, with the usual tags of reasoning. Keys that [`Fields`] does not
/// name are ignored; blank lines at the end are fine, elsewhere they are bad rows, as is a row of
/// more than [`MOST_BYTES`](super::record::MOST_BYTES).
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
    let tags = ThinkTags::default();
    let reading = Reading { strict, ..Reading::new(fields, &tags) };
    parse(bytes, source, &reading, |text, take| lines::rows(text, take))
}
