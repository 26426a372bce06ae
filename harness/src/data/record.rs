//! A row of a data set: question, reasoning and answer; a broken one is named, never skipped in
//! silence.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::format::Format;
use super::message::Message;
use crate::eval::{Choice, Decision, Item};
use crate::fsio::write_atomic;
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
    /// turns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<Message>,
    /// Which turns of the history are trained on as well as the last, ascending
    /// ([`TrainOn::All`](super::examples::TrainOn::All)).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trained: Vec<usize>,
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
    /// Which of the data set's files it is of.
    #[serde(skip)]
    pub file: usize,
    /// The line in the file on which it begins, or its number in a JSON array or a Parquet file; counts
    /// from 1.
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
    /// The line on which it begins, or its number in a JSON array or a Parquet file; counts from 1.
    pub line: usize,
    /// A lowercase fragment.
    pub reason: String,
}

/// A file of a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// As it was named.
    pub path: String,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
    /// The form of its rows.
    pub read_as: Format,
    /// Its good rows.
    pub rows: usize,
    /// Columns that say something in good rows and are not read, with the number of those rows, as
    /// they were met; the first of very many.
    pub unread: Vec<(String, usize)>,
}

impl SourceFile {
    /// The columns that are not read, in words; none if all are.
    pub fn unread_columns(&self) -> Option<String> {
        let columns: Vec<String> = self.unread.iter().map(|(name, rows)| format!("{name} ({rows} rows)")).collect();
        (!columns.is_empty()).then(|| columns.join(", "))
    }

    /// The last part of its path.
    pub fn name(&self) -> String {
        Path::new(&self.path).file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }
}

/// The rows of one file or several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// The good rows, in file order; at least one.
    pub records: Vec<Record>,
    /// The lines that are not rows, in file order.
    pub bad: Vec<BadRow>,
    /// Ids of those of them that have one.
    pub bad_ids: Vec<String>,
    /// The files, in the order in which they were read; at least one, each with a good row.
    pub files: Vec<SourceFile>,
    /// Rows of which an earlier turn asks to be trained on (`"weight": 1`) where only the last is.
    pub earlier_weights: usize,
    /// Rows of which earlier turns of the assistant are not trained on.
    pub untrained_turns: usize,
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
