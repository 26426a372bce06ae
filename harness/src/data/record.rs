//! Rows of question, reasoning and answer, read from JSON Lines or CSV; a broken line is named, never skipped in silence.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::eval::{Choice, Decision, Item, choice};
use crate::fsio::{self, write_atomic};
use crate::{Error, Result};

/// One row of a data set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Unique within its file: the `id` field as it stands, else `sha256:` and the first 16 hexadecimal digits of the
    /// SHA-256 over question, think and answer (with `#2`, `#3` ... on repeated content).
    pub id: String,
    /// The row's own instruction, if it has one; data like the recipe's repeats the question there, so it is not shown
    /// to the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instruction: Option<String>,
    /// Turns before the question, oldest first: an optional system turn, then user and assistant by turns. Only chat rows
    /// have any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<Turn>,
    /// What the user asks; never empty.
    pub question: String,
    /// The reference reasoning; empty if there is none.
    #[serde(default)]
    pub think: String,
    /// The reference answer; never empty.
    pub answer: String,
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

/// One earlier turn of a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
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

/// Which keys of a JSON row mean what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fields {
    /// How the row is laid out.
    pub layout: Layout,
    /// Key of the id (a string or an integer), optional in the data.
    pub id: String,
    /// Key of the instruction, optional in the data.
    pub instruction: String,
    /// Key of the question (of the optional input in [`Layout::Alpaca`]).
    pub question: String,
    /// Key of the reasoning, optional in the data.
    pub think: String,
    /// Key of the answer (of the output in [`Layout::Alpaca`]).
    pub answer: String,
    /// Key of the source that rows share (a string or an integer), optional in the data.
    pub cluster: String,
    /// Key of the list of chat turns in [`Layout::Messages`].
    pub messages: String,
    /// Key of the options of a multiple-choice row, optional in the data: a list of texts, or an object of texts under `A`, `B`, ...
    /// The answer is then a label, an option's text, or a text that names one option.
    #[serde(skip_serializing_if = "is_usual_options")]
    pub options: String,
}

/// Left out where nothing was asked for, so that a suite without choices is written as before there were any.
fn is_usual_options(key: &str) -> bool {
    key == "options"
}

/// The shapes of rows that are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// One key each for question, think and answer.
    #[default]
    Columns,
    /// `instruction` + optional `input` (joined by a newline) ask; `output` answers. A leading `<think>..</think>` of the
    /// output is the reasoning.
    Alpaca,
    /// A list of `{role, content}`: an optional system turn, then user and assistant in turn, an assistant last. Its
    /// `reasoning_content`, or a leading `<think>..</think>` of its content, is the reasoning.
    Messages,
}

impl Default for Fields {
    /// `question`, `think`, `answer`, with `id`, `instruction` and `cluster` if present.
    fn default() -> Self {
        Fields {
            layout: Layout::Columns,
            id: "id".into(),
            instruction: "instruction".into(),
            question: "question".into(),
            think: "think".into(),
            answer: "answer".into(),
            cluster: "cluster".into(),
            messages: "messages".into(),
            options: "options".into(),
        }
    }
}

impl Fields {
    /// `instruction`, `input`, `output`.
    pub fn alpaca() -> Self {
        Fields { layout: Layout::Alpaca, question: "input".into(), answer: "output".into(), ..Fields::default() }
    }
    /// `messages` of role and content.
    pub fn messages() -> Self {
        Fields { layout: Layout::Messages, ..Fields::default() }
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
    /// SHA-256 of the file's bytes, in hexadecimal.
    pub sha256: String,
    /// The file as it was named.
    pub source: String,
}

/// Reads a data set: CSV if the file's name ends in `.csv` ([`parse_csv`](super::csv::parse_csv)), else JSON Lines
/// ([`read_jsonl`]).
///
/// # Errors
/// As these two.
pub fn read_rows(path: impl AsRef<Path>, fields: &Fields, strict: bool) -> Result<Dataset> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(|e| Error::io("read the data set", path, e))?;
    let parse = match path.extension() {
        Some(end) if end.eq_ignore_ascii_case("csv") => super::csv::parse_csv,
        _ => parse_jsonl,
    };
    parse(&bytes, &path.display().to_string(), fields, strict)
}

/// Reads a JSON Lines file (UTF-8, with or without a byte-order mark, `\n` or `\r\n`). Keys that [`Fields`] does not name
/// are ignored; blank lines at the end are fine, elsewhere they are bad rows.
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
    let rows = lines(bytes).map(|(line, text)| (line, parse_object(text)));
    collect(bytes, source, fields, strict, rows)
}

/// A row as it was read, or why it is none.
pub(super) type Parsed = Result<Map<String, Value>, String>;

/// The data set of a file's `bytes` whose rows are read, with their lines.
pub(super) fn collect(
    bytes: &[u8],
    source: &str,
    fields: &Fields,
    strict: bool,
    parsed: impl Iterator<Item = (usize, Parsed)>,
) -> Result<Dataset> {
    let sha256 = fsio::sha256(bytes);
    let mut rows = Rows { seen: BTreeMap::new(), taken: BTreeSet::new(), records: Vec::new() };
    let mut bad = Vec::new();
    for (line, row) in parsed {
        if let Err(reason) = row.and_then(|row| rows.take(line, row, fields)) {
            if strict {
                return Err(Error::data(reason).at(format_args!("{source}:{line}")).help(
                    "mend the line, or read without --strict: bad lines are then left out, counted and listed in the report",
                ));
            }
            bad.push(BadRow { file: source.into(), line, reason });
        }
    }
    if rows.records.is_empty() {
        return Err(no_rows(source, bytes, &bad));
    }
    Ok(Dataset { records: rows.records, bad, sha256, source: source.into() })
}

/// Writes rows as JSON Lines under the default field names, through a temporary file in the same folder.
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
            // serde_json counts lines within the row, where there is only one: keep the column alone.
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

struct Rows {
    /// Explicit id to the line that had it first.
    seen: BTreeMap<String, usize>,
    taken: BTreeSet<String>,
    records: Vec<Record>,
}

impl Rows {
    fn take(&mut self, line: usize, row: Map<String, Value>, fields: &Fields) -> Result<(), String> {
        let body = match fields.layout {
            Layout::Columns => columns(&row, fields)?,
            Layout::Alpaca => alpaca(&row, fields)?,
            Layout::Messages => messages(&row, fields)?,
        };
        for (name, text) in [("question", &body.question), ("think", &body.think), ("answer", &body.answer)]
            .into_iter()
            .chain(body.instruction.iter().map(|text| ("instruction", text)))
            .chain(body.history.iter().map(|turn| ("message", &turn.content)))
        {
            if text.contains('\0') {
                return Err(format!("the {name} contains a NUL character"));
            }
        }
        let id = match label(&row, &fields.id)? {
            Some(id) => {
                if let Some(first) = self.seen.get(&id) {
                    return Err(format!("the id {id:?} was already used on line {first}"));
                }
                self.seen.insert(id.clone(), line);
                id
            }
            None => self.content_id(&body),
        };
        let choice = match options(&row, &fields.options)? {
            Some(options) => Some(Choice::new(options, &body.answer)?),
            None => None,
        };
        let decision = decision(&row)?;
        self.taken.insert(id.clone());
        let cluster = label(&row, &fields.cluster)?.unwrap_or_else(|| id.clone());
        let Body { instruction, history, question, think, answer } = body;
        self.records.push(Record {
            id,
            instruction,
            history,
            question,
            think,
            answer,
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

struct Body {
    instruction: Option<String>,
    history: Vec<Turn>,
    question: String,
    think: String,
    answer: String,
}

fn columns(row: &Map<String, Value>, fields: &Fields) -> Result<Body, String> {
    Ok(Body {
        instruction: optional(row, &fields.instruction)?,
        history: Vec::new(),
        question: required(row, &fields.question)?,
        think: optional(row, &fields.think)?.unwrap_or_default(),
        answer: required(row, &fields.answer)?,
    })
}

fn alpaca(row: &Map<String, Value>, fields: &Fields) -> Result<Body, String> {
    let instruction = required(row, &fields.instruction)?;
    let question = match optional(row, &fields.question)?.filter(|input| !input.trim().is_empty()) {
        Some(input) => format!("{instruction}\n{input}"),
        None => instruction,
    };
    let (think, answer) = part_reasoning(required(row, &fields.answer)?, &fields.answer)?;
    Ok(Body { instruction: None, history: Vec::new(), question, think, answer })
}

fn messages(row: &Map<String, Value>, fields: &Fields) -> Result<Body, String> {
    let key = &fields.messages;
    let turns = match row.get(key) {
        Some(Value::Array(turns)) => turns,
        Some(other) => return Err(format!("{key:?} must be a list, found {}", kind(other))),
        None => return Err(format!("{key:?} is missing")),
    };
    let mut parsed = Vec::with_capacity(turns.len());
    for (i, turn) in turns.iter().enumerate() {
        let place = |reason: String| format!("message {}: {reason}", i + 1);
        let turn = turn.as_object().ok_or_else(|| place(format!("expected an object, found {}", kind(turn))))?;
        let (role, content) = (required(turn, "role").map_err(place)?, required(turn, "content").map_err(place)?);
        parsed.push((role, content, optional(turn, "reasoning_content").map_err(place)?));
    }
    let mut parsed = parsed.into_iter().peekable();
    let system = parsed.next_if(|(role, ..)| role == "system").map(|(role, content, _)| Turn { role, content });
    let mut turns: Vec<_> = parsed.collect();
    for (i, (role, ..)) in turns.iter().enumerate() {
        let expected = if i % 2 == 0 { "user" } else { "assistant" };
        if role != expected {
            return Err(format!(
                "after the optional system message, message {} must be of {expected}, found {role}",
                i + 1
            ));
        }
    }
    if turns.len() % 2 == 1 {
        return Err("the last message must be of assistant".into());
    }
    let (Some((_, content, reasoning)), Some((_, question, _))) = (turns.pop(), turns.pop()) else {
        return Err(format!("{key:?} has no question and answer"));
    };
    let (think, answer) = match reasoning {
        Some(reasoning) => (reasoning, content),
        None => part_reasoning(content, "content")?,
    };
    let history =
        system.into_iter().chain(turns.into_iter().map(|(role, content, _)| Turn { role, content })).collect();
    Ok(Body { instruction: None, history, question, think, answer })
}

/// `<think>a</think> b` in one text, as two.
fn part_reasoning(text: String, key: &str) -> Result<(String, String), String> {
    let Some((think, answer)) = text.trim_start().strip_prefix("<think>").and_then(|rest| rest.split_once("</think>"))
    else {
        return Ok((String::new(), text));
    };
    let (think, answer) = (think.trim_matches('\n').to_string(), answer.trim_start().to_string());
    if answer.is_empty() { Err(format!("{key:?} has reasoning but no answer")) } else { Ok((think, answer)) }
}

fn required(row: &Map<String, Value>, key: &str) -> Result<String, String> {
    match optional(row, key)? {
        None => Err(format!("{key:?} is missing")),
        Some(text) if text.trim().is_empty() => Err(format!("{key:?} is empty")),
        Some(text) => Ok(text),
    }
}

fn optional(row: &Map<String, Value>, key: &str) -> Result<Option<String>, String> {
    match row.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(format!("{key:?} must be a string, found {}", kind(other))),
    }
}

/// The options, if the row has any.
fn options(row: &Map<String, Value>, key: &str) -> Result<Option<Vec<String>>, String> {
    let text = |name: String, value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        other => Err(format!("option {name} of {key:?} must be a string, found {}", kind(other))),
    };
    match row.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(list)) => {
            list.iter().enumerate().map(|(i, v)| text((i + 1).to_string(), v)).collect::<Result<_, _>>().map(Some)
        }
        Some(Value::Object(by_label)) => {
            let mut sorted: Vec<(&String, &Value)> = by_label.iter().collect();
            sorted.sort_by_key(|(label, _)| label.as_str());
            for (i, (found, _)) in sorted.iter().enumerate() {
                let expected = choice::label(i);
                if i >= choice::MOST || **found != expected.to_string() {
                    return Err(format!("{key:?} must have the labels A, B, ... without a gap, found {found:?}"));
                }
            }
            sorted.into_iter().map(|(label, v)| text(label.clone(), v)).collect::<Result<_, _>>().map(Some)
        }
        Some(other) => Err(format!("{key:?} must be a list or an object of strings, found {}", kind(other))),
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

fn label(row: &Map<String, Value>, key: &str) -> Result<Option<String>, String> {
    match row.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.trim().is_empty() => Err(format!("{key:?} is empty")),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Number(n)) if !n.is_f64() => Ok(Some(n.to_string())),
        Some(other) => Err(format!("{key:?} must be a string or an integer, found {}", kind(other))),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
