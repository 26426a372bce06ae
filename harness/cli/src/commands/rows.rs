//! Input rows of `score` and `generate`: JSON lines with ids, text or messages.

use std::io::Read;
use std::path::Path;

use karat::data::companions;
use karat::data::template::{ChatTemplate, Message, RenderOptions};
use karat::data::tokens::Tokenizer;
use karat::{Error, Result};
use serde::Deserialize;
use serde_json::{Value, json};

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

/// Reads rows. The tokenizer and template of the model, or of its adapter, are only read if a row needs them, so that a model
/// without a tokenizer can be scored by ids.
///
/// # Errors
/// A broken line with its number.
pub fn read(path: &Path, model: &Path, adapter: Option<&Path>, output: &Output) -> Result<Vec<Row>> {
    let mut tokenizer: Option<Tokenizer> = None;
    let mut template: Option<ChatTemplate> = None;
    let say = |note: Option<String>| note.into_iter().for_each(|note| output.say(note));
    let mut rows = Vec::new();
    for (number, text) in read_lines(path)? {
        let here = || format!("{}:{number}", path.display());
        let line: Line = serde_json::from_str(&text).map_err(|e| {
            Error::data("broken input line")
                .at(here())
                .because(e)
                .help(r#"lines are {"id", "ids": [..]}, {"id", "text"} or {"id", "messages": [{"role", "content"}]}"#)
        })?;
        let mut tokenizer = || -> Result<Tokenizer> {
            if tokenizer.is_none() {
                let chosen = companions::tokenizer(model, adapter)?;
                say(chosen.note);
                tokenizer = Some(chosen.value);
            }
            tokenizer.clone().ok_or_else(|| Error::failed("no tokenizer"))
        };
        let ids = match (line.ids, line.text, line.messages) {
            (Some(ids), None, None) => ids,
            (None, Some(text), None) => tokenizer()?.encode(&text)?,
            (None, None, Some(messages)) => {
                if template.is_none() {
                    let chosen = companions::template(model, adapter)?;
                    say(chosen.note);
                    template = Some(chosen.value);
                }
                let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
                let text = match &template {
                    Some(template) => template.render(&messages, &options)?,
                    None => String::new(),
                };
                tokenizer()?.encode(&text)?
            }
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

/// Prints every row as soon as it is complete. With `--json` all wait for the end and make one object, in the order of the
/// input.
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

    /// Row `row` is complete; one that was put before stays as it was. False once nobody reads any more.
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
