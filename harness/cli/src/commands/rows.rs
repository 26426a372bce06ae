//! Input rows of `score` and `generate`: JSON lines with ids, text or messages.

use std::io::Read;
use std::path::Path;

use karat::backend::OpenConfig;
use karat::data::template::{ChatTemplate, Message, RenderOptions};
use karat::data::tokens::Tokenizer;
use karat::model_dir::given_file;
use karat::{Error, Result};
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
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: Option<Value>,
    ids: Option<Vec<u32>>,
    text: Option<String>,
    messages: Option<Vec<Message>>,
}

/// The lines of a file, or of standard input for `-`, with their numbers; blank lines are left out.
pub fn read_lines(path: &Path) -> Result<Vec<(usize, String)>> {
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|e| Error::data("could not read the input").at("standard input").because(e))?;
    } else {
        given_file(path)?;
        let bytes =
            std::fs::read(path).map_err(|e| Error::data("could not read the input").at(path.display()).because(e))?;
        text = String::from_utf8(bytes).map_err(|e| {
            let line = e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|&&b| b == b'\n').count() + 1;
            Error::data("invalid UTF-8").at(format!("{}:{line}", path.display())).because(e)
        })?;
    }
    // A byte-order mark, as some editors write it, is no part of the first line.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let lines = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty());
    Ok(lines.map(|(i, l)| (i + 1, l.to_string())).collect())
}

/// What turns texts into ids: the model's tokenizer and template, read when the first row needs
/// them, so that a model without a tokenizer can be scored by ids.
struct Words<'a> {
    model: &'a OpenConfig,
    tokenizer: Option<Tokenizer>,
    template: Option<ChatTemplate>,
}

impl<'a> Words<'a> {
    fn new(model: &'a OpenConfig) -> Self {
        Words { model, tokenizer: None, template: None }
    }

    fn encode(&mut self, text: &str) -> Result<Vec<u32>> {
        if self.tokenizer.is_none() {
            self.tokenizer = Some(tokenizer(self.model)?);
        }
        self.tokenizer.as_ref().map_or_else(|| Ok(Vec::new()), |tokenizer| tokenizer.encode(text))
    }

    fn render(&mut self, messages: &[Message]) -> Result<Vec<u32>> {
        if self.template.is_none() {
            self.template = Some(ChatTemplate::from_model_dir(&self.model.model)?);
        }
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        let text = match &self.template {
            Some(template) => template.render(messages, &options)?,
            None => String::new(),
        };
        self.encode(&text)
    }
}

/// The tokenizer of a model that is to be opened.
///
/// # Errors
/// There is none, or it is broken.
pub fn tokenizer(model: &OpenConfig) -> Result<Tokenizer> {
    Tokenizer::from_model_dir(&model.model)
}

/// Whether a model that is to be opened has a tokenizer.
pub fn has_tokenizer(model: &OpenConfig) -> bool {
    model.model.join("tokenizer.json").is_file()
}

/// The rows that were typed, or those of the file.
///
/// # Errors
/// As [`read`]; usage, for a text that means standard input.
pub fn asked(args: &RowsArgs, model: &OpenConfig, output: &Output) -> Result<Vec<Row>> {
    if let Some(input) = &args.input {
        return read(input, model);
    }
    if args.texts.is_empty() {
        return Err(Error::usage("there is no text to work on")
            .help("give TEXT behind the flags, or JSON lines with --input FILE (- is standard input)"));
    }
    let mut words = Words::new(model);
    let mut rows = Vec::with_capacity(args.texts.len());
    for (number, text) in args.texts.iter().enumerate() {
        if text == "-" {
            return Err(Error::usage("`-` is no text").help("standard input is read, as JSON lines, with --input -"));
        }
        if Path::new(text).is_file() {
            output.say(format!("note: {text:?} is taken as a text; --input {text} reads the file"));
        }
        let ids = match args.chat {
            true => words.render(&[Message::new("user", text.as_str())])?,
            false => words.encode(text)?,
        };
        rows.push(Row { id: Value::from(number + 1), ids });
    }
    Ok(rows)
}

/// Reads rows.
///
/// # Errors
/// A broken line with its number.
pub fn read(path: &Path, model: &OpenConfig) -> Result<Vec<Row>> {
    let mut words = Words::new(model);
    let mut rows = Vec::new();
    for (number, text) in read_lines(path)? {
        let here = || format!("{}:{number}", path.display());
        let line: Line = serde_json::from_str(&text).map_err(|e| {
            Error::data("broken input line")
                .at(here())
                .because(e)
                .help(r#"lines are {"id", "ids": [..]}, {"id", "text"} or {"id", "messages": [{"role", "content"}]}"#)
        })?;
        let ids = match (line.ids, line.text, line.messages) {
            (Some(ids), None, None) => ids,
            (None, Some(text), None) => words.encode(&text).map_err(|e| in_line(e, here()))?,
            (None, None, Some(messages)) if messages.is_empty() => {
                return Err(Error::data("messages has no turn").at(here()));
            }
            (None, None, Some(messages)) => words.render(&messages).map_err(|e| in_line(e, here()))?,
            _ => {
                return Err(Error::data("a line needs exactly one of ids, text and messages").at(here()));
            }
        };
        rows.push(Row { id: line.id.unwrap_or_else(|| Value::from(number)), ids });
    }
    if rows.is_empty() {
        return Err(Error::data("the input has no lines").at(path.display()));
    }
    Ok(rows)
}

/// What went wrong with the text of a line, and which line that is.
fn in_line(error: Error, place: String) -> Error {
    let help = error.help_text().map(String::from);
    let named = Error::new(error.kind(), "this line could not be turned into ids").at(place).because(error);
    match help {
        Some(help) => named.help(help),
        None => named,
    }
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
