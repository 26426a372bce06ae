//! A row of a data set: question, reasoning and answer; a broken one is named, never skipped in
//! silence.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::fields::Reading;
use super::layout::{self, Body};
use super::message::{Message, kind};
use crate::eval::{Choice, Decision, Item};
use crate::fsio::{self, write_atomic};
use crate::{Error, Result};

/// One row of a data set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Unique within its file: the `id` field as it stands, else `sha256:` and the first 16
    /// hexadecimal digits of the SHA-256 over question, think and answer (with `#2`, `#3` ... on
    /// repeated content).
    pub id: String,
    /// The row's own instruction, if it has one; data like the recipe's repeats the question there,
    /// so it is not shown to the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instruction: Option<String>,
    /// Turns before the question, oldest first: an optional system turn, then user and assistant by
    /// turns. Only chat rows have any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<Message>,
    /// What the user asks; never empty.
    pub question: String,
    /// What else a chat row says of that turn, for the template to read ([`Message::keys`]).
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub question_keys: Map<String, Value>,
    /// The reference reasoning; empty if there is none.
    #[serde(default)]
    pub think: String,
    /// The reference answer; never empty.
    pub answer: String,
    /// What else a chat row says of the last turn.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub answer_keys: Map<String, Value>,
    /// Rows that share a source (for clustered standard errors); the id where the data names none.
    pub cluster: String,
    /// What there is to choose from, if it is a multiple-choice row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choice: Option<Choice>,
    /// What a right answer decides: `decision` within the row's `metrics`, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// Where it stood in the file; counts from 1.
    pub line: usize,
}

impl Record {
    /// The same row as an evaluation item.
    pub fn to_item(&self) -> Item {
        Item {
            id: self.id.clone(),
            question: self.question.clone(),
            think: self.think.clone(),
            answer: self.answer.clone(),
            cluster: self.cluster.clone(),
            choice: self.choice.clone(),
            decision: self.decision,
        }
    }
}

/// A line that is not a row, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadRow {
    /// The file as it was named.
    pub file: String,
    /// Counts from 1.
    pub line: usize,
    /// A lowercase fragment.
    pub reason: String,
}

/// The rows of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// The good rows, in file order; at least one.
    pub records: Vec<Record>,
    /// The lines that are not rows, in file order.
    pub bad: Vec<BadRow>,
    /// Ids of those of them that have one.
    pub bad_ids: Vec<String>,
    /// SHA-256 of the file's bytes, in hexadecimal.
    pub sha256: String,
    /// The file as it was named.
    pub source: String,
    /// Rows of which an earlier turn asks to be trained on (`"weight": 1`); only the last turn of a
    /// row is.
    pub earlier_weights: usize,
}

/// Longest row that is read, in bytes as it stands in the file. Tokenizers need up to 300 times a
/// text's length, so one row of 32 MB would take the machine's memory; half a million tokens of
/// English fit in here.
pub const MOST_BYTES: usize = 2 << 20;

/// Whether a row, or a text, of so many bytes is read.
///
/// # Errors
/// The reason why not.
pub fn fits(bytes: usize) -> Result<(), String> {
    match bytes <= MOST_BYTES {
        true => Ok(()),
        false => Err(format!("{bytes} bytes of text are more than the {MOST_BYTES} that are read at once: part it")),
    }
}

/// A row as it was read, or why it is none.
pub(super) type Parsed = Result<Map<String, Value>, String>;

/// The data set of a file's `bytes` whose rows are read, with their lines.
pub(super) fn collect(
    bytes: &[u8],
    source: &str,
    reading: &Reading<'_>,
    parsed: impl Iterator<Item = (usize, Parsed)>,
) -> Result<Dataset> {
    let sha256 = fsio::sha256(bytes);
    let mut rows = Rows::default();
    let (mut bad, mut bad_ids) = (Vec::new(), Vec::new());
    for (line, row) in parsed {
        let id = row.as_ref().ok().and_then(|row| layout::label(row, &reading.fields.id).ok().flatten());
        if let Err(reason) = row.and_then(|row| rows.take(line, row, reading)) {
            let row = BadRow { file: source.into(), line, reason: short(reason) };
            if reading.strict {
                return Err(row.into());
            }
            bad.push(row);
            bad_ids.extend(id);
        }
    }
    if rows.records.is_empty() {
        return Err(no_rows(source, bytes, &bad));
    }
    Ok(Dataset {
        records: rows.records,
        bad,
        bad_ids,
        sha256,
        source: source.into(),
        earlier_weights: rows.earlier_weights,
    })
}

/// A reason that quotes at most a few lines of data.
pub(super) fn short(reason: String) -> String {
    const MOST: usize = 400;
    match reason.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &reason[..end]),
        None => reason,
    }
}

impl From<BadRow> for Error {
    /// What a bad row is where none is allowed.
    fn from(row: BadRow) -> Self {
        Error::data(row.reason).at(format_args!("{}:{}", row.file, row.line)).help(
            "mend the line, or read without --strict: bad lines are then left out, counted and listed in the report",
        )
    }
}

/// Writes rows as JSON Lines under the default field names, through a temporary file in the same
/// folder.
///
/// # Errors
/// If the folder cannot be written to.
pub fn write_jsonl<'a>(path: impl AsRef<Path>, records: impl IntoIterator<Item = &'a Record>) -> Result<()> {
    let path = path.as_ref();
    let mut text = String::new();
    for record in records {
        let mut row = serde_json::to_value(record)
            .map_err(|e| Error::failed("could not write JSON").at(path.display()).because(e))?;
        // The line is where the row stood in *its* file, not in this one.
        if let Some(row) = row.as_object_mut() {
            row.remove("line");
            if let Some(decision) = row.remove("decision") {
                row.insert("metrics".into(), Map::from_iter([("decision".to_string(), decision)]).into());
            }
        }
        text.push_str(&format!("{row}\n"));
    }
    write_atomic(path, text.as_bytes())
}

/// Numbered lines without their ends, blank ones at the end left out.
pub(super) fn lines(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let body = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let end = body.iter().rposition(|b| !b.is_ascii_whitespace()).map_or(0, |last| last + 1);
    let body = &body[..end];
    let count = if body.is_empty() { 0 } else { usize::MAX };
    body.split(|&b| b == b'\n')
        .take(count)
        .enumerate()
        .map(|(i, line)| (i + 1, line.strip_suffix(b"\r").unwrap_or(line)))
}

/// One line as a JSON object.
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
            // serde_json counts lines within the row, where there is only one: keep the column
            // alone.
            let reason = reason.split(" at line ").next().unwrap_or(&reason);
            Err(format!("invalid JSON: {reason} (column {})", e.column()))
        }
    }
}

fn no_rows(source: &str, bytes: &[u8], bad: &[BadRow]) -> Error {
    let Some(first) = bad.first() else {
        return Error::data("the data set is empty")
            .at(source)
            .help("give a file with one JSON object a line, or a .csv");
    };
    let help = if bytes.trim_ascii().first() == Some(&b'[') {
        "this looks like one JSON array; write one object a line instead, e.g. with `jq -c '.[]'`"
    } else {
        "check that the file is JSON Lines (or a .csv) and that the suite's field names are the file's"
    };
    let what = format!("none of the {} lines is a usable row; line {}: {}", bad.len(), first.line, first.reason);
    Error::data(what).at(source).help(help)
}

#[derive(Default)]
struct Rows {
    /// Explicit id to the line that had it first.
    seen: BTreeMap<String, usize>,
    taken: BTreeSet<String>,
    records: Vec<Record>,
    earlier_weights: usize,
}

impl Rows {
    fn take(&mut self, line: usize, row: Map<String, Value>, reading: &Reading<'_>) -> Result<(), String> {
        let fields = reading.fields;
        let body = layout::read(&row, reading)?;
        for (name, text) in [("question", &body.question), ("think", &body.think), ("answer", &body.answer)]
            .into_iter()
            .chain(body.instruction.iter().map(|text| ("instruction", text)))
            .chain(body.history.iter().map(|turn| ("message", &turn.content)))
            .chain(body.history.iter().filter_map(|turn| Some(("message", turn.reasoning_content.as_ref()?))))
        {
            if text.contains('\0') {
                return Err(format!("the {name} contains a NUL character"));
            }
        }
        let choice = match layout::options(&row, &fields.options)? {
            Some(options) => Some(Choice::new(options, &body.answer)?),
            None => None,
        };
        let (given, cluster) = (layout::label(&row, &fields.id)?, layout::label(&row, &fields.cluster)?);
        let id = match given {
            Some(id) => {
                if let Some(first) = self.seen.get(&id) {
                    return Err(format!("the id {id:?} was already used on line {first}"));
                }
                self.seen.insert(id.clone(), line);
                id
            }
            None => self.content_id(&body),
        };
        let decision = decision(&row)?;
        self.taken.insert(id.clone());
        let cluster = cluster.unwrap_or_else(|| id.clone());
        self.earlier_weights += usize::from(body.earlier_weight);
        let Body { instruction, history, question, question_keys, think, answer, answer_keys, .. } = body;
        self.records.push(Record {
            id,
            instruction,
            history,
            question,
            question_keys,
            think,
            answer,
            answer_keys,
            cluster,
            choice,
            decision,
            line,
        });
        Ok(())
    }

    fn content_id(&self, body: &Body) -> String {
        let content = [body.question.as_str(), &body.think, &body.answer].join("\0");
        let digest = fsio::sha256(content.as_bytes());
        let base = format!("sha256:{}", &digest[..16]);
        if !self.taken.contains(&base) {
            return base;
        }
        (2..).map(|n| format!("{base}#{n}")).find(|id| !self.taken.contains(id)).unwrap_or(base)
    }
}

/// What a right answer decides, if the row says so under `metrics.decision`.
fn decision(row: &Map<String, Value>) -> Result<Option<Decision>, String> {
    match row.get("metrics").and_then(|metrics| metrics.get("decision")) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => Decision::from_value(value)
            .map(Some)
            .ok_or_else(|| format!("\"metrics.decision\" must be \"yes\" or \"no\", found {value}")),
    }
}
