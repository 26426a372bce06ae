//! Rows from CSV: the first record names the columns, every other one is a row whose cells are texts.
//!
//! RFC 4180 as spreadsheets and pandas write it: commas, double quotes doubled within quotes, line breaks within quotes. A cell
//! that is empty is absent. What a row means is decided by [`Fields`] as for JSON lines.

use serde_json::{Map, Value};

use super::record::{Dataset, Fields, Parsed, collect};
use crate::{Error, Result};

/// Rows of a CSV file that is already here; `source` names it in errors.
///
/// # Errors
/// If the first record cannot name columns (missing, not UTF-8, a name twice) or there is no good row; with `strict`, at
/// the first bad row.
pub fn parse_csv(bytes: &[u8], source: &str, fields: &Fields, strict: bool) -> Result<Dataset> {
    let body = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    // A row of another length than the header is named below, with its line.
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(body);
    let mut records = reader.byte_records();
    let header = match records.next() {
        None => {
            return Err(Error::data("the data set is empty")
                .at(source)
                .help("give a file whose first line names the columns"));
        }
        Some(header) => header.map_err(|e| broken(source, &e))?,
    };
    let mut names = Vec::new();
    for name in &header {
        let name = std::str::from_utf8(name)
            .map_err(|_| Error::data("a column's name is not UTF-8").at(format!("{source}:1")))?;
        if names.contains(&name.trim()) {
            return Err(Error::data(format!("two columns are named {:?}", name.trim())).at(format!("{source}:1")));
        }
        names.push(name.trim());
    }
    let mut rows = Vec::new();
    for record in records {
        let record = record.map_err(|e| broken(source, &e))?;
        let line = record.position().map_or(0, |p| p.line() as usize);
        rows.push((line, object(&names, &record)));
    }
    collect(bytes, source, fields, strict, rows.into_iter())
}

fn object(names: &[&str], record: &csv::ByteRecord) -> Parsed {
    if record.len() != names.len() {
        return Err(format!("{} cells, the first line names {} columns", record.len(), names.len()));
    }
    let mut row = Map::new();
    for (name, cell) in names.iter().zip(record) {
        let text = std::str::from_utf8(cell).map_err(|_| format!("{name:?} is not UTF-8"))?;
        if !text.is_empty() {
            row.insert(name.to_string(), Value::from(text));
        }
    }
    Ok(row)
}

fn broken(source: &str, error: &csv::Error) -> Error {
    let line = error.position().map_or(1, |p| p.line());
    Error::data(format!("broken CSV: {error}")).at(format!("{source}:{line}"))
}
