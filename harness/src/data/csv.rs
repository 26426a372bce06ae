//! Rows from CSV and TSV: the first record names the columns, every other one is a row whose cells
//! are texts.
//!
//! RFC 4180 as spreadsheets and pandas write it: commas (or tabs), double quotes doubled within
//! quotes, line breaks within quotes. A cell that is empty is absent. What a row means is decided by
//! its columns as for JSON lines.

use std::io::{self, BufRead};

use csv_core::ReadRecordResult;
use serde_json::{Map, Value};

use super::fields::{Fields, Reading};
use super::lines::{Broken, Stop, Take, skip_mark};
use super::read;
use super::record::{Dataset, MOST_BYTES, Parsed, fits};
use crate::Result;
use crate::eval::think::ThinkTags;

/// Rows of a CSV file that is already here; `source` names it in errors.
///
/// # Errors
/// If the first record cannot name columns (missing, not UTF-8, a name twice) or there is no good
/// row; with `strict`, at the first bad row.
pub fn parse_csv(bytes: &[u8], source: &str, fields: &Fields, strict: bool) -> Result<Dataset> {
    let tags = ThinkTags::default();
    let reading = Reading { strict, ..Reading::new(fields, &tags) };
    read::parse(bytes, source, &reading, |text, take| rows(text, b',', take))
}

/// Hands on the rows of a table whose cells `delimiter` parts.
pub(super) fn rows(text: &mut dyn BufRead, delimiter: u8, take: Take<'_>) -> Result<(), Stop> {
    skip_mark(text)?;
    let mut records = Records::new(delimiter);
    let Some(header) = records.next(text)? else { return Ok(()) };
    let help = "give a file whose first line names the columns";
    let broken = |what: String| Stop::Broken(Broken { line: Some(1), what, help });
    let mut names: Vec<String> = Vec::new();
    if header.is_too_long() {
        return Err(broken("the first line is too long to name columns".into()));
    }
    for name in header.cells() {
        let name = std::str::from_utf8(name).map_err(|_| broken("a column's name is not UTF-8".into()))?.trim();
        if names.iter().any(|known| known == name) {
            return Err(broken(format!("two columns are named {name:?}")));
        }
        names.push(name.into());
    }
    while let Some(record) = records.next(text)? {
        take(record.line, object(&names, &record))?;
    }
    Ok(())
}

/// One record.
struct Cells<'a> {
    /// Where it begins; counts from 1.
    line: usize,
    /// Of its cells, all together.
    bytes: usize,
    text: &'a [u8],
    /// Where each cell ends.
    ends: &'a [usize],
}

impl Cells<'_> {
    fn cells(&self) -> impl Iterator<Item = &[u8]> {
        let starts = [0].into_iter().chain(self.ends.iter().copied());
        starts.zip(self.ends).map(|(from, &to)| &self.text[from..to])
    }

    fn is_too_long(&self) -> bool {
        self.bytes > MOST_BYTES
    }
}

/// Reads records one by one; blank lines are none.
struct Records {
    reader: csv_core::Reader,
    line: usize,
    text: Vec<u8>,
    ends: Vec<usize>,
}

impl Records {
    fn new(delimiter: u8) -> Self {
        let reader = csv_core::ReaderBuilder::new().delimiter(delimiter).build();
        Records { reader, line: 1, text: vec![0; 4096], ends: vec![0; 64] }
    }

    /// The next record, none at the end. Of one that is longer than what is read, only the length is
    /// right.
    fn next(&mut self, input: &mut dyn BufRead) -> io::Result<Option<Cells<'_>>> {
        let newlines = |bytes: &[u8]| bytes.iter().filter(|&&b| b == b'\n').count();
        loop {
            let buffer = filled(input)?;
            let blank = buffer.iter().take_while(|b| matches!(b, b'\n' | b'\r')).count();
            let all = blank == buffer.len() && blank > 0;
            self.line += newlines(&buffer[..blank]);
            input.consume(blank);
            if !all {
                break;
            }
        }
        let begin = self.line;
        let (mut written, mut cells, mut bytes) = (0, 0, 0);
        loop {
            let buffer = filled(input)?;
            let (result, read, wrote, ended) =
                self.reader.read_record(buffer, &mut self.text[written..], &mut self.ends[cells..]);
            self.line += newlines(&buffer[..read]);
            input.consume(read);
            (written, cells, bytes) = (written + wrote, cells + ended, bytes + wrote);
            match result {
                // Called again with nothing, it says how the last record ends.
                ReadRecordResult::InputEmpty => {}
                // What is too long is read over: a quote that never ends would fill the memory.
                ReadRecordResult::OutputFull | ReadRecordResult::OutputEndsFull if bytes > MOST_BYTES => {
                    (written, cells) = (0, 0);
                }
                ReadRecordResult::OutputFull => self.text.resize(self.text.len() * 2, 0),
                ReadRecordResult::OutputEndsFull if cells > MOST_BYTES => (written, cells, bytes) = (0, 0, cells),
                ReadRecordResult::OutputEndsFull => self.ends.resize(self.ends.len() * 2, 0),
                ReadRecordResult::Record => break,
                ReadRecordResult::End => return Ok(None),
            }
        }
        let long = bytes > MOST_BYTES;
        let ends = if long { &[] } else { &self.ends[..cells] };
        Ok(Some(Cells { line: begin, bytes, text: &self.text, ends }))
    }
}

fn filled(input: &mut dyn BufRead) -> io::Result<&[u8]> {
    // A borrow that is returned ends no loop: interruptions are waited out first.
    while let Err(e) = input.fill_buf() {
        if e.kind() != io::ErrorKind::Interrupted {
            return Err(e);
        }
    }
    input.fill_buf()
}

fn object(names: &[String], record: &Cells<'_>) -> Parsed {
    fits(record.bytes)?;
    if record.ends.len() != names.len() {
        return Err(format!("{} cells, the first line names {} columns", record.ends.len(), names.len()));
    }
    let mut row = Map::new();
    for (name, cell) in names.iter().zip(record.cells()) {
        let text = std::str::from_utf8(cell).map_err(|_| format!("{name:?} is not UTF-8"))?;
        if !text.is_empty() {
            row.insert(name.clone(), Value::from(text));
        }
    }
    Ok(row)
}
