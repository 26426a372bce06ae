//! Rows from Parquet: every column a key, lists and structs as JSON has them.
//!
//! Rows are read group by group; a file says of itself how large it is, so what it makes is counted
//! as it is made.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaDataReader;
use parquet::file::reader::SerializedFileReader;
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::{Map, Value};

use super::lines::Take;
use super::record::{Parsed, fits};
use super::unpack::sensible;
use super::untrusted::{caught, on_large_stack};
use crate::{Error, Result};

/// Bytes of a footer that are read: it is parsed in memory, level by level on the stack.
const FOOTER: u32 = 32 << 20;
/// Stack for a footer that is nothing but levels.
const STACK: usize = 1 << 30;
/// Levels of lists and structs.
const DEEPEST: usize = 64;

/// Hands on the rows of a Parquet file, numbered from 1.
///
/// # Errors
/// If it cannot be read or is broken; what `take` says.
pub(super) fn rows(path: &Path, take: Take<'_>) -> Result<()> {
    let fail = |e| Error::io("read the data set", path, e);
    let broken = |what: String| {
        Error::data(format!("the Parquet file cannot be read: {what}"))
            .at(path.display())
            .help("copy or write it again; Snappy, gzip and Zstandard are the compressions that are read")
    };
    let mut file = File::open(path).map_err(fail)?;
    let bytes = file.metadata().map_err(fail)?.len();
    check_footer(&mut file, bytes).map_err(broken)?;
    let of_schema = file.try_clone().map_err(fail)?;
    let depth = on_large_stack(STACK, move || {
        let metadata = ParquetMetaDataReader::new().parse_and_finish(&of_schema)?;
        let levels = levels(metadata.file_metadata().schema());
        // Freed here, for that goes level by level too.
        drop(metadata);
        Ok(levels)
    })
    .and_then(|read: Result<usize, ParquetError>| read.map_err(|e| e.to_string()))
    .map_err(broken)?;
    if depth > DEEPEST {
        return Err(broken(format!("its columns nest {depth} levels deep, more than {DEEPEST}")));
    }
    let open = || SerializedFileReader::new(file).map(|reader| RowIter::from_file_into(Box::new(reader)));
    let mut rows = caught(open).and_then(|opened| opened.map_err(|e| e.to_string())).map_err(broken)?;
    let (mut number, mut made) = (0, 0);
    loop {
        let row = match caught(|| rows.next()) {
            Ok(None) => return Ok(()),
            Ok(Some(Ok(row))) => row,
            Ok(Some(Err(e))) => return Err(broken(format!("row {}: {e}", number + 1))),
            Err(panic) => return Err(broken(format!("row {}: {panic}", number + 1))),
        };
        number += 1;
        let mut size = 0;
        let row = object(&row, &mut size);
        made += size as u64;
        if !sensible(made, bytes) {
            return Err(broken(format!("row {number}: its rows are more than they could be by the size of the file")));
        }
        let row: Parsed = fits(size).map(|()| row);
        take(number, row)?;
    }
}

/// Refuses what is no Parquet file, and one whose footer is larger than any.
fn check_footer(file: &mut File, bytes: u64) -> Result<(), String> {
    let mut end = [0; 8];
    let read = file.seek(SeekFrom::End(-8)).and_then(|_| file.read_exact(&mut end));
    if bytes < 12 || read.is_err() || &end[4..] != b"PAR1" {
        return Err("it does not end as one does, so that it is none or is cut off".into());
    }
    let footer = u32::from_le_bytes([end[0], end[1], end[2], end[3]]);
    match footer <= FOOTER && u64::from(footer) <= bytes - 8 {
        true => Ok(()),
        false => Err(format!("its footer would have {footer} bytes")),
    }
}

/// How many levels a schema has.
fn levels(schema: &Type) -> usize {
    match schema.is_group() {
        true => 1 + schema.get_fields().iter().map(|field| levels(field)).max().unwrap_or(0),
        false => 1,
    }
}

/// A row as JSON has it; the bytes of its texts are added to `size`.
fn object(row: &Row, size: &mut usize) -> Map<String, Value> {
    row.get_column_iter().map(|(name, field)| (name.clone(), json(field, size))).collect()
}

fn json(field: &Field, size: &mut usize) -> Value {
    *size += 8;
    match field {
        Field::Bool(value) => Value::from(*value),
        Field::Byte(value) => Value::from(*value),
        Field::Short(value) => Value::from(*value),
        Field::Int(value) | Field::Date(value) | Field::TimeMillis(value) => Value::from(*value),
        Field::Long(value)
        | Field::TimeMicros(value)
        | Field::TimestampMillis(value)
        | Field::TimestampMicros(value) => Value::from(*value),
        Field::UByte(value) => Value::from(*value),
        Field::UShort(value) => Value::from(*value),
        Field::UInt(value) => Value::from(*value),
        Field::ULong(value) => Value::from(*value),
        Field::Float16(value) => Value::from(value.to_f32()),
        Field::Float(value) => Value::from(*value),
        Field::Double(value) => Value::from(*value),
        Field::Str(text) => {
            *size += text.len();
            Value::from(text.as_str())
        }
        // Old writers do not say that a column is text.
        Field::Bytes(bytes) => std::str::from_utf8(bytes.data()).map_or(Value::Null, |text| {
            *size += text.len();
            Value::from(text)
        }),
        Field::Group(row) => Value::Object(object(row, size)),
        Field::ListInternal(list) => list.elements().iter().map(|field| json(field, size)).collect(),
        Field::MapInternal(map) => {
            let pairs = map.entries().iter().map(|(key, value)| {
                let key = match key {
                    Field::Str(text) => text.clone(),
                    other => other.to_string(),
                };
                (key, json(value, size))
            });
            Value::Object(pairs.collect())
        }
        other @ Field::Decimal(_) => Value::from(other.to_string()),
        _ => Value::Null,
    }
}
