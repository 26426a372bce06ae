//! Rows from CSV: the first record names the columns, every other one is a row whose cells are
//! texts.
//!
//! RFC 4180 as spreadsheets and pandas write it: commas, double quotes doubled within quotes, line
//! breaks within quotes. A cell that is empty is absent. What a row means is decided by [`Fields`]
//! as for JSON lines.

use csv_core::ReadRecordResult;
use serde_json::{Map, Value};

use super::fields::{Fields, Reading};
use super::record::{Dataset, Parsed, collect, fits};
use crate::eval::think::ThinkTags;
use crate::{Error, Result};

/// Rows of a CSV file that is already here; `source` names it in errors.
///
/// # Errors
/// If the first record cannot name columns (missing, not UTF-8, a name twice) or there is no good
/// row; with `strict`, at the first bad row.
pub fn parse_csv(bytes: &[u8], source: &str, fields: &Fields, strict: bool) -> Result<Dataset> {
    parse(bytes, source, &Reading { fields, tags: &ThinkTags::default(), strict })
}

/// [`parse_csv`] with other tags of reasoning.
pub(super) fn parse(bytes: &[u8], source: &str, reading: &Reading<'_>) -> Result<Dataset> {
    let body = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut records = records(body).into_iter();
    let Some((_, header)) = records.next() else {
        return Err(Error::data("the data set is empty")
            .at(source)
            .help("give a file whose first line names the columns"));
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
    let rows = records.map(|(line, record)| (line, object(&names, &record)));
    collect(bytes, source, reading, rows)
}

/// The cells of one record.
type Cells = Vec<Vec<u8>>;

/// All records, each with the line on which it begins; blank lines are none.
fn records(mut rest: &[u8]) -> Vec<(usize, Cells)> {
    let mut reader = csv_core::Reader::new();
    let (mut text, mut ends) = (vec![0; 4096], vec![0; 64]);
    let mut records = Vec::new();
    let mut line = 1;
    let newlines = |bytes: &[u8]| bytes.iter().filter(|&&b| b == b'\n').count();
    loop {
        let blank = rest.iter().take_while(|b| matches!(b, b'\n' | b'\r')).count();
        line += newlines(&rest[..blank]);
        rest = &rest[blank..];
        let begin = line;
        let (mut written, mut cells) = (0, 0);
        loop {
            let (result, read, wrote, ended) = reader.read_record(rest, &mut text[written..], &mut ends[cells..]);
            line += newlines(&rest[..read]);
            rest = &rest[read..];
            (written, cells) = (written + wrote, cells + ended);
            match result {
                // Called again with nothing, it says how the last record ends.
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull => text.resize(text.len() * 2, 0),
                ReadRecordResult::OutputEndsFull => ends.resize(ends.len() * 2, 0),
                ReadRecordResult::Record => break,
                ReadRecordResult::End => return records,
            }
        }
        let starts = [0].into_iter().chain(ends[..cells].iter().copied());
        let cells = starts.zip(&ends[..cells]).map(|(from, &to)| text[from..to].to_vec()).collect();
        records.push((begin, cells));
    }
}

fn object(names: &[&str], record: &Cells) -> Parsed {
    if record.len() != names.len() {
        return Err(format!("{} cells, the first line names {} columns", record.len(), names.len()));
    }
    fits(record.iter().map(Vec::len).sum())?;
    let mut row = Map::new();
    for (name, cell) in names.iter().zip(record) {
        let text = std::str::from_utf8(cell).map_err(|_| format!("{name:?} is not UTF-8"))?;
        if !text.is_empty() {
            row.insert(name.to_string(), Value::from(text));
        }
    }
    Ok(row)
}
