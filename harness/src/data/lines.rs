//! Rows written as JSON: one object a line, or one array of objects.
//!
//! Both are read as they come: of a file only the row at hand is in memory, and of a row that is
//! longer than what is read not even that.

use std::io::{self, BufRead};

use serde_json::{Map, Value};

use super::message::kind;
use super::record::{MOST_BYTES, Parsed, fits};

/// What a reader of rows met that ends the file: at which line, where that is its place, what, and what
/// to do.
pub(super) struct Broken {
    pub(super) line: Option<usize>,
    pub(super) what: String,
    pub(super) help: &'static str,
}

/// Why the rows of a file end early.
pub(super) enum Stop {
    /// The bytes cannot be had.
    Io(io::Error),
    /// They are no rows from here on.
    Broken(Broken),
    /// Who takes the rows wants no more.
    Taker(crate::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Stop::Io(error)
    }
}

impl From<crate::Error> for Stop {
    fn from(error: crate::Error) -> Self {
        Stop::Taker(error)
    }
}

/// Who takes rows: the line on which one begins, or of an array or a Parquet file its number, from 1, and
/// the row.
pub(super) type Take<'a> = &'a mut dyn FnMut(usize, Parsed) -> crate::Result<()>;

/// Skips a byte-order mark.
pub(super) fn skip_mark(text: &mut dyn BufRead) -> io::Result<()> {
    // A buffer of one file is longer than the mark, unless the file is not.
    if text.fill_buf()?.starts_with(b"\xef\xbb\xbf") {
        text.consume(3);
    }
    Ok(())
}

/// The rows of a JSON file: of an array if it begins with `[` and an object, a list's end or nothing,
/// else one a line.
pub(super) fn rows(text: &mut dyn BufRead, take: Take<'_>) -> Result<(), Stop> {
    skip_mark(text)?;
    let start = text.fill_buf()?.trim_ascii_start();
    let is_array = start.strip_prefix(b"[").is_some_and(|rest| {
        let rest = rest.trim_ascii_start();
        rest.first().is_none_or(|byte| matches!(byte, b'{' | b']'))
    }) && !is_bad_row(start);
    // No row on a line of its own begins so; its rows would be read as far as they happen to stand
    // on lines.
    let is_object = start.strip_prefix(b"{").is_some_and(|rest| {
        let end = rest.iter().position(|&b| b == b'\n');
        end.is_some_and(|end| rest[..end].trim_ascii().is_empty())
    });
    if is_object {
        return Err(Stop::Broken(Broken {
            line: Some(1),
            what: "this is one JSON object over many lines, not rows".into(),
            help: "write one object a line with `jq -c .`; if the rows are a list in it, with `jq -c '.data[]'`",
        }));
    }
    if is_array { array(text, take) } else { lines(text, take) }
}

/// Whether the first line is a list by itself, with more lines behind: a bad row of many.
fn is_bad_row(start: &[u8]) -> bool {
    let Some(end) = start.iter().position(|&b| b == b'\n') else { return false };
    let (first, rest) = (start[..end].trim_ascii_end(), start[end..].trim_ascii());
    first.ends_with(b"]") && !rest.is_empty() && serde_json::from_slice::<serde::de::IgnoredAny>(first).is_ok()
}

/// Numbered lines without their ends; blank ones at the end are none.
fn lines(text: &mut dyn BufRead, take: Take<'_>) -> Result<(), Stop> {
    let (mut number, mut blank, mut line) = (0, 0, Vec::new());
    while let Some(bytes) = read_line(text, &mut line)? {
        number += 1;
        let shown = line.strip_suffix(b"\r").unwrap_or(&line);
        if bytes <= MOST_BYTES && shown.trim_ascii().is_empty() {
            blank += 1;
            continue;
        }
        for before in number - blank..number {
            take(before, Err("the line is blank".into()))?;
        }
        blank = 0;
        let end = usize::from(shown.len() < line.len());
        take(number, fits(bytes - if bytes > MOST_BYTES { 0 } else { end }).and_then(|()| parse_object(shown)))?;
    }
    Ok(())
}

/// Reads a line without its `\n` into `line`, at most [`MOST_BYTES`] and one more of it; how long it
/// is, none at the end.
fn read_line(text: &mut dyn BufRead, line: &mut Vec<u8>) -> io::Result<Option<usize>> {
    line.clear();
    let (mut bytes, mut any) = (0, false);
    loop {
        let buffer = match text.fill_buf() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            buffer => buffer?,
        };
        if buffer.is_empty() {
            return Ok(any.then_some(bytes));
        }
        any = true;
        let end = buffer.iter().position(|&b| b == b'\n');
        let part = &buffer[..end.unwrap_or(buffer.len())];
        line.extend(&part[..part.len().min((MOST_BYTES + 1).saturating_sub(line.len()))]);
        bytes += part.len();
        let read = part.len() + usize::from(end.is_some());
        text.consume(read);
        if end.is_some() {
            return Ok(Some(bytes));
        }
    }
}

/// Where a reader of an array is.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// Before the `[`.
    Start,
    /// Before an element; whether the list may end here.
    Element { may_end: bool },
    /// Within an element that began on this line.
    Within(usize),
    /// Behind an element.
    Behind,
    /// Behind the `]`.
    End,
}

/// An element as it is read.
#[derive(Default)]
struct Element {
    /// At most [`MOST_BYTES`] and one more of it.
    text: Vec<u8>,
    bytes: usize,
    /// Brackets that are open.
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Element {
    fn clear(&mut self) {
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        *self = Element { text, ..Element::default() };
    }

    /// Takes bytes up to the element's last; how many, and whether that was among them.
    fn push(&mut self, bytes: &[u8]) -> (usize, bool) {
        let mut taken = 0;
        let mut is_whole = false;
        for &byte in bytes {
            taken += 1;
            match (self.in_string, byte) {
                (true, _) if self.escaped => self.escaped = false,
                (true, b'\\') => self.escaped = true,
                (_, b'"') => self.in_string = !self.in_string,
                (false, b'{' | b'[') => self.depth += 1,
                (false, b'}' | b']') => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
            if self.depth == 0 && !self.in_string {
                is_whole = true;
                break;
            }
        }
        let kept = taken.min((MOST_BYTES + 1).saturating_sub(self.text.len()));
        self.text.extend(&bytes[..kept]);
        self.bytes += taken;
        (taken, is_whole)
    }
}

/// The elements of one array, numbered from 1: several may stand on one line.
fn array(text: &mut dyn BufRead, take: Take<'_>) -> Result<(), Stop> {
    let (mut place, mut element) = (Place::Start, Element::default());
    let (mut line, mut number) = (1, 0);
    let broken = |line: usize, what: &str| {
        let help = "write one JSON object a line instead, e.g. with `jq -c '.[]'`, which names what is wrong";
        Stop::Broken(Broken { line: None, what: format!("{what}, on line {line}"), help })
    };
    loop {
        let buffer = match text.fill_buf() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            buffer => buffer?,
        };
        let read = buffer.len();
        let mut rest = buffer;
        while let Some((&byte, behind)) = rest.split_first() {
            if let Place::Within(_) = place {
                let (taken, is_whole) = element.push(rest);
                line += rest[..taken].iter().filter(|&&b| b == b'\n').count();
                rest = &rest[taken..];
                if is_whole {
                    number += 1;
                    take(number, fits(element.bytes).and_then(|()| parse_object(&element.text)))?;
                    place = Place::Behind;
                }
                continue;
            }
            let next = match (place, byte) {
                (_, b'\n') => {
                    line += 1;
                    place
                }
                (_, byte) if byte.is_ascii_whitespace() => place,
                (Place::Start, _) => Place::Element { may_end: true },
                (Place::Element { .. }, b'{' | b'[' | b'"') => {
                    element.clear();
                    place = Place::Within(line);
                    continue;
                }
                (Place::Element { may_end: true } | Place::Behind, b']') => Place::End,
                (Place::Behind, b',') => Place::Element { may_end: false },
                (Place::Element { .. }, _) => return Err(broken(line, "a row of the JSON array is no object")),
                (Place::End, _) => return Err(broken(line, "something follows the end of the JSON array")),
                _ => return Err(broken(line, "neither a comma nor the end of the JSON array follows a row")),
            };
            place = next;
            rest = behind;
        }
        text.consume(read);
        if read == 0 {
            return match place {
                Place::End => Ok(()),
                Place::Within(begun) => Err(broken(begun, "the JSON array ends within the row that begins here")),
                _ => Err(broken(line, "the JSON array has no end: the file is cut off")),
            };
        }
    }
}

/// One line, or one element, as a JSON object.
pub(super) fn parse_object(text: &[u8]) -> Result<Map<String, Value>, String> {
    if text.trim_ascii().is_empty() {
        return Err("the line is blank".into());
    }
    let text = std::str::from_utf8(text).map_err(|e| format!("invalid UTF-8 at byte {}", e.valid_up_to() + 1))?;
    match serde_json::from_str(text) {
        Ok(Value::Object(row)) => Ok(row),
        Ok(other) => Err(format!("expected a JSON object, found {}", kind(&other))),
        Err(e) => {
            let reason = e.to_string();
            // serde_json counts lines within the row, where there is mostly one: keep the column
            // alone.
            let reason = reason.split(" at line ").next().unwrap_or(&reason);
            match e.line() {
                0 | 1 => Err(format!("invalid JSON: {reason} (column {})", e.column())),
                n => Err(format!("invalid JSON: {reason} (line {n} of the row, column {})", e.column())),
            }
        }
    }
}
