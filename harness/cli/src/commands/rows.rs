//! Input rows of `score` and `generate`: JSON lines with ids, text or messages.

use std::io::Read;
use std::path::Path;

use karat::backend::{OpenConfig, SessionInfo};
use karat::data::companions;
use karat::data::examples::{of_the_record, reason_of};
use karat::data::record::{BadRow, fits};
use karat::data::template::{ChatTemplate, Message, RenderOptions};
use karat::data::tokens::Tokenizer;
use karat::model_dir::given_file;
use karat::{Error, Result, exit};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::args::RowsArgs;
use crate::output::Output;

/// One row to work on.
pub struct Row {
    /// As given (a string or a number); the line number where there is none.
    pub id: Value,
    /// Token ids.
    pub ids: Vec<u32>,
    /// Where it stood.
    line: usize,
}

/// The rows of an input: those to work on, and the lines that are none.
pub struct Rows {
    source: String,
    strict: bool,
    /// At least one.
    pub rows: Vec<Row>,
    /// Named on standard error; the exit code says that there were some.
    pub bad: Vec<BadRow>,
    /// The model's tokenizer, if a row took it: reading one takes a second.
    pub tokenizer: Option<Tokenizer>,
}

/// What is done with rows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Their tokens are scored.
    Score,
    /// They are continued.
    Generate,
}

impl Rows {
    /// Leaves out what an opened model cannot work on, as a bad line: one such row would end the
    /// others.
    ///
    /// # Errors
    /// If no row is left; with `--strict` the first that is left out.
    pub fn fit(&mut self, work: Work, model: &SessionInfo, output: &Output) -> Result<()> {
        let before = self.bad.len();
        let longest = model.max_positions;
        let (fitting, others): (Vec<Row>, Vec<(Row, String)>) =
            std::mem::take(&mut self.rows).into_iter().fold(Default::default(), |(mut good, mut bad), row| {
                let outside =
                    row.ids.iter().copied().find(|&id| model.vocab_size > 0 && id as usize >= model.vocab_size);
                match outside {
                    Some(id) => {
                        bad.push((row, format!("the id {id} is not one of the model's {} tokens", model.vocab_size)))
                    }
                    None if work == Work::Generate && row.ids.is_empty() => {
                        bad.push((row, "the prompt is empty, there is nothing to continue".into()));
                    }
                    None if longest > 0 && row.ids.len() > longest => {
                        let reason = format!("{} tokens, the model has room for {longest}", row.ids.len());
                        bad.push((row, reason));
                    }
                    None => good.push(row),
                }
                (good, bad)
            });
        self.rows = fitting;
        self.bad.extend(others.into_iter().map(|(row, reason)| BadRow {
            file: self.source.clone(),
            line: row.line,
            reason,
        }));
        if self.strict
            && let Some(first) = self.bad.get(before)
        {
            return Err(Error::data(&*first.reason).at(format!("{}:{}", first.file, first.line)).help(FORM));
        }
        if self.rows.is_empty() {
            return Err(none_usable(&self.source, &self.bad));
        }
        say_bad(&self.bad[before..], output);
        Ok(())
    }
}

/// No line of an input is a row.
fn none_usable(source: &str, bad: &[BadRow]) -> Error {
    match bad.first() {
        None => Error::data("the input has no lines").at(source),
        Some(first) => {
            let what = format!("none of the {} lines is usable; line {}: {}", bad.len(), first.line, first.reason);
            Error::data(what).at(source).help(FORM)
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: Option<Value>,
    ids: Option<Vec<u32>>,
    text: Option<String>,
    messages: Option<Vec<Message>>,
}

const FORM: &str = r#"lines are {"id", "ids": [..]}, {"id", "text"} or {"id", "messages": [{"role", "content"}]}"#;

/// The bytes of a file, or of standard input for `-`.
fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    if path != Path::new("-") {
        given_file(path)?;
        return std::fs::read(path).map_err(|e| Error::data("could not read the input").at(path.display()).because(e));
    }
    let mut bytes = Vec::new();
    std::io::stdin()
        .read_to_end(&mut bytes)
        .map_err(|e| Error::data("could not read the input").at("standard input").because(e))?;
    Ok(bytes)
}

/// The lines of some bytes, with their numbers; blank lines are left out.
fn numbered(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    // A byte-order mark, as some editors write it, is no part of the first line.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let lines = bytes.split(|&b| b == b'\n').enumerate().map(|(i, line)| (i + 1, line.trim_ascii()));
    lines.filter(|(_, line)| !line.is_empty())
}

/// The lines of a file, or of standard input for `-`, with their numbers; blank lines are left out.
pub fn read_lines(path: &Path) -> Result<Vec<(usize, String)>> {
    let bytes = read_bytes(path)?;
    let text = |(line, text): (usize, &[u8])| match String::from_utf8(text.to_vec()) {
        Ok(text) => Ok((line, text)),
        Err(e) => Err(Error::data("invalid UTF-8").at(format!("{}:{line}", path.display())).because(e)),
    };
    numbered(&bytes).map(text).collect()
}

/// The tokenizer of a model that is to be opened: its adapter's own, where it brings one.
///
/// # Errors
/// There is none, or it is broken.
pub fn tokenizer(model: &OpenConfig) -> Result<Tokenizer> {
    Ok(companions::tokenizer(&model.model, model.adapter.as_deref())?.value)
}

/// Whether a model that is to be opened has a tokenizer.
pub fn has_tokenizer(model: &OpenConfig) -> bool {
    let folders = [Some(&model.model), model.adapter.as_ref()];
    folders.into_iter().flatten().any(|folder| folder.join("tokenizer.json").is_file())
}

/// The rows that were typed, or those of the file.
///
/// # Errors
/// As [`read`]; usage, for a text that means standard input.
pub fn asked(args: &RowsArgs, model: &OpenConfig, output: &Output) -> Result<Rows> {
    if let Some(input) = &args.input {
        return read(input, model, args.strict, output);
    }
    if args.texts.is_empty() {
        return Err(Error::usage("there is no text to work on")
            .help("give TEXT behind the flags, or JSON lines with --input FILE (- is standard input)"));
    }
    let mut reader = Reader::new(model, output);
    let mut rows = Vec::with_capacity(args.texts.len());
    for (number, text) in (1..).zip(&args.texts) {
        if text == "-" {
            return Err(Error::usage("`-` is no text").help("standard input is read, as JSON lines, with --input -"));
        }
        if Path::new(text).is_file() {
            output.say(format!("note: {text:?} is taken as a text; --input {text} reads the file"));
        }
        // A text that was typed is wanted: nothing else is worked on without it.
        let ids = match args.chat {
            true => reader.rendered(&[Message::new("user", text.as_str())])?,
            false => reader.encoded(text)?,
        };
        let ids = ids.map_err(|reason| Error::data(reason).at(format!("text {number}")))?;
        rows.push(Row { id: Value::from(number), ids, line: number });
    }
    Ok(Rows { source: "text".into(), strict: true, rows, bad: Vec::new(), tokenizer: reader.tokenizer })
}

/// Reads rows. The tokenizer and template of the model, or of its adapter, are only read if a row
/// needs them, so that a model without a tokenizer can be scored by ids. A line that is no row, or
/// cannot be rendered, is told on standard error, and the others are worked on; with `strict` it is
/// an error.
///
/// # Errors
/// The model's files; no usable line; with `strict` the first bad one.
pub fn read(path: &Path, model: &OpenConfig, strict: bool, output: &Output) -> Result<Rows> {
    let mut reader = Reader::new(model, output);
    let (mut rows, mut bad) = (Vec::new(), Vec::new());
    for (line, text) in numbered(&read_bytes(path)?) {
        match reader.row(line, text)? {
            Ok(row) => rows.push(row),
            Err(reason) => {
                let row = BadRow { file: path.display().to_string(), line, reason };
                if strict {
                    return Err(Error::data(row.reason).at(format!("{}:{line}", row.file)).help(FORM));
                }
                bad.push(row);
            }
        }
    }
    let source = path.display().to_string();
    if rows.is_empty() {
        return Err(none_usable(&source, &bad));
    }
    say_bad(&bad, output);
    Ok(Rows { source, strict, rows, bad, tokenizer: reader.tokenizer })
}

/// Names bad rows on standard error.
pub fn say_bad(bad: &[BadRow], output: &Output) {
    for row in bad.iter().take(10) {
        output.say(format!("warning: {}:{}: {}", row.file, row.line, row.reason));
    }
    if !bad.is_empty() {
        output.say(format!("warning: {} bad lines left out; --strict makes them an error", bad.len()));
    }
}

/// The exit code of work on the rows of an input: bad data, if lines were left out.
pub fn exit_code(bad: &[BadRow]) -> u8 {
    if bad.is_empty() { exit::GOOD } else { exit::DATA }
}

/// Lines to rows, with what of the model that takes.
struct Reader<'a> {
    model: &'a OpenConfig,
    output: &'a Output,
    tokenizer: Option<Tokenizer>,
    template: Option<ChatTemplate>,
}

impl<'a> Reader<'a> {
    fn new(model: &'a OpenConfig, output: &'a Output) -> Self {
        Reader { model, output, tokenizer: None, template: None }
    }

    /// A row, or why the line is none.
    ///
    /// # Errors
    /// The model's files.
    fn row(&mut self, number: usize, text: &[u8]) -> Result<Result<Row, String>> {
        let Line { id, ids, text, messages } = match fits(text.len()).and_then(|()| parse(text)) {
            Ok(line) => line,
            Err(reason) => return Ok(Err(reason)),
        };
        if id.as_ref().is_some_and(|id| !(id.is_string() || id.is_number())) {
            return Ok(Err("\"id\" must be a text or a number".into()));
        }
        let id = id.unwrap_or_else(|| Value::from(number));
        let ids = match (ids, text, messages) {
            (Some(ids), None, None) => Ok(ids),
            (None, Some(text), None) => self.encoded(&text)?,
            (None, None, Some(messages)) if messages.is_empty() => Err("\"messages\" is empty".into()),
            (None, None, Some(messages)) => self.rendered(&messages)?,
            _ => Err("a line needs exactly one of ids, text and messages".into()),
        };
        Ok(ids.map(|ids| Row { id, ids, line: number }))
    }

    /// The ids of a conversation as the template renders it, or why it does not.
    fn rendered(&mut self, messages: &[Message]) -> Result<Result<Vec<u32>, String>> {
        let template = match &self.template {
            Some(template) => template,
            None => {
                let chosen = companions::template(&self.model.model, self.model.adapter.as_deref())?;
                chosen.note.iter().for_each(|note| self.output.say(note));
                self.template.insert(chosen.value)
            }
        };
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        match template.render(messages, &options) {
            Ok(text) => self.encoded(&text),
            Err(error) if of_the_record(&error) => Ok(Err(placed(&error))),
            Err(error) => Err(error),
        }
    }

    /// The ids of a text, or why it has none.
    fn encoded(&mut self, text: &str) -> Result<Result<Vec<u32>, String>> {
        let tokenizer = match &self.tokenizer {
            Some(tokenizer) => tokenizer,
            None => {
                let chosen = companions::tokenizer(&self.model.model, self.model.adapter.as_deref())?;
                chosen.note.iter().for_each(|note| self.output.say(note));
                self.tokenizer.insert(chosen.value)
            }
        };
        Ok(tokenizer.encode(text).map_err(|error| placed(&error)))
    }
}

/// Why a line is no row, with the file of the model that says so.
fn placed(error: &Error) -> String {
    match error.place() {
        Some(file) => format!("{file}: {}", reason_of(error)),
        None => reason_of(error),
    }
}

/// A line as it stands.
fn parse(text: &[u8]) -> std::result::Result<Line, String> {
    let text = std::str::from_utf8(text).map_err(|e| format!("invalid UTF-8 at byte {}", e.valid_up_to() + 1))?;
    serde_json::from_str(text).map_err(|e| {
        let reason = e.to_string();
        // There is only one line to count within a line: keep the column alone.
        let reason = reason.split(" at line ").next().unwrap_or(&reason);
        format!("broken input line: {reason} (column {})", e.column())
    })
}

/// Prints every row as soon as it is complete. With `--json` all wait for the end and make one
/// object, in the order of the input.
pub struct Printer<'a> {
    output: &'a Output,
    /// By the input's order: whether a row was put, and with `--json` the row.
    rows: Vec<Option<Value>>,
}

impl<'a> Printer<'a> {
    /// For so many rows.
    pub fn new(output: &'a Output, rows: usize) -> Self {
        Printer { output, rows: vec![None; rows] }
    }

    /// Row `row` is complete; one that was put before stays as it was. False once nobody reads any
    /// more.
    pub fn put(&mut self, row: usize, line: Value) -> Result<bool> {
        if self.rows[row].is_some() {
            return Ok(true);
        }
        let json = self.output.json();
        let read = json || self.output.row(&line)?;
        self.rows[row] = Some(if json { line } else { Value::Null });
        Ok(read)
    }

    /// All rows are there: the object with `--json`.
    pub fn finish(self) -> Result<()> {
        match self.output.json() {
            true => self.output.data(&json!({ "rows": self.rows }).to_string()),
            false => Ok(()),
        }
    }
}
