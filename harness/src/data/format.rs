//! Forms of rows: question and answer, chats, instructions, pairs of texts, found by their keys.
//!
//! The form is a file's, not a row's: the first row that has one decides, a row of another form is
//! an error, and a row that has none is a bad one. What a file was read as is
//! told.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::fields::{Fields, Reading, RowLayout, value};
use crate::Error;

/// What a row is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// What its keys say.
    #[default]
    Auto,
    /// A list of chat turns with `role` and `content` (OpenAI, TRL).
    Messages,
    /// `prompt` and `completion`: two texts, or two lists of chat turns (TRL).
    PromptCompletion,
    /// `instruction`, `input`, `output`, with `history` and `system` if there are any.
    Alpaca,
    /// `conversations` of `from` and `value`, with `system` if there is one.
    Sharegpt,
    /// `question`, `think`, `answer`, each under a key of its own.
    #[serde(rename = "question-answer")]
    Columns,
    /// `chosen` and `rejected`, with `prompt` or beginning alike.
    Preference,
    /// `text` alone.
    Text,
}

impl Format {
    /// All of them.
    pub const ALL: [Format; 8] = [
        Format::Auto,
        Format::Messages,
        Format::PromptCompletion,
        Format::Alpaca,
        Format::Sharegpt,
        Format::Columns,
        Format::Preference,
        Format::Text,
    ];

    /// The name, as it is written in a suite.
    pub fn name(self) -> &'static str {
        match self {
            Format::Auto => "auto",
            Format::Messages => "messages",
            Format::PromptCompletion => "prompt-completion",
            Format::Alpaca => "alpaca",
            Format::Sharegpt => "sharegpt",
            Format::Columns => "question-answer",
            Format::Preference => "preference",
            Format::Text => "text",
        }
    }

    /// Whether it is the default, which is not written: what was read without a choice is written as
    /// before there was one.
    pub(crate) fn is_usual(&self) -> bool {
        *self == Format::Auto
    }
}

impl FromStr for Format {
    type Err = String;
    /// # Errors
    /// What there is, for a name of none.
    fn from_str(name: &str) -> Result<Self, String> {
        let all = Self::ALL.into_iter();
        all.clone().find(|format| format.name() == name).ok_or_else(|| {
            let names: Vec<&str> = all.map(Format::name).collect();
            format!("{name:?} is no form of rows: there are {}", names.join(", "))
        })
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is made of rows with a chosen and a rejected answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preference {
    /// They are refused: nothing here learns from a comparison.
    #[default]
    Refuse,
    /// The chosen answer is the answer; the rejected one is left out.
    Chosen,
}

impl Preference {
    /// Whether it is the default, which is not written.
    pub(crate) fn is_usual(&self) -> bool {
        *self == Preference::default()
    }
}

/// Keys of the list of turns of a chat, besides the one that the fields name.
pub(super) const CHATS: [&str; 3] = ["messages", "conversations", "conversation"];

/// The forms in words, for who has another.
pub(super) const KNOWN: &str = "known are question + answer (+ think), messages, conversations (from, value), instruction + output, \
    prompt + completion, prompt + chosen + rejected and text; other names of question, think and answer are given as data.fields";

/// What the reading says that every row is; `Auto` where the keys are to tell.
pub(super) fn forced(reading: &Reading<'_>) -> Format {
    match (reading.format, reading.fields.layout) {
        (Format::Auto, RowLayout::Alpaca) => Format::Alpaca,
        (Format::Auto, RowLayout::Messages) => Format::Messages,
        (format, _) => format,
    }
}

/// The form that a row has by its keys; none if it lacks something of each.
pub(super) fn detect(row: &Map<String, Value>, fields: &Fields) -> Option<Format> {
    let both = |a: &str, b: &str| has(row, a) && has(row, b);
    let columns = || both(&fields.question, &fields.answer);
    if fields.names_columns() && columns() {
        return Some(Format::Columns);
    }
    if let Some(format) = chat(row, fields) {
        return Some(format);
    }
    let forms = [
        (columns(), Format::Columns),
        (both("instruction", "output"), Format::Alpaca),
        (both("prompt", "completion"), Format::PromptCompletion),
        (both("chosen", "rejected"), Format::Preference),
        (has(row, "text"), Format::Text),
    ];
    forms.into_iter().find(|(fits, _)| *fits).map(|(_, format)| format)
}

/// The form that a row without one comes nearest to, for what is said of it.
pub(super) fn nearest(row: &Map<String, Value>, fields: &Fields) -> Option<Format> {
    let any = |keys: &[&str]| keys.iter().any(|key| has(row, key));
    let forms = [
        (any(&[&fields.messages]), Format::Messages),
        (any(&CHATS[1..]), Format::Sharegpt),
        (any(&["instruction", "output"]) && !any(&[&fields.question, &fields.answer]), Format::Alpaca),
        (any(&["prompt", "completion"]), Format::PromptCompletion),
        (any(&["chosen", "rejected"]), Format::Preference),
    ];
    let found = forms.into_iter().find(|(fits, _)| *fits).map(|(_, format)| format);
    found.or((row.is_empty() || any(&[&fields.question, &fields.answer])).then_some(Format::Columns))
}

fn has(row: &Map<String, Value>, key: &str) -> bool {
    // Of several names that differ in letter case alone, reading says which.
    value(row, key).map_or(true, |value| value.is_some())
}

/// The form of a list of turns, by its first turn.
fn chat(row: &Map<String, Value>, fields: &Fields) -> Option<Format> {
    [fields.messages.as_str()].into_iter().chain(CHATS).find_map(|key| {
        let first = value(row, key).ok()??.as_array()?.first()?.as_object()?;
        match (first.contains_key("from"), first.contains_key("role")) {
            (true, false) => Some(Format::Sharegpt),
            (_, true) => Some(Format::Messages),
            _ => None,
        }
    })
}

/// Why rows of a form are not read, if they are not.
pub(super) fn refused(format: Format, reading: &Reading<'_>) -> Option<Error> {
    match format {
        Format::Preference if reading.preference == Preference::Refuse => Some(
            Error::data("the rows are preference pairs (chosen, rejected), which are not trained on as pairs")
                .help("to train on the chosen answers alone, set data.preference = \"chosen\" (karat train: --chosen)"),
        ),
        Format::Text => Some(
            Error::data("the rows are plain texts (text), which ask and answer nothing")
                .help("train on them with `karat train --text --data FILE`, or measure them as [eval.general] file"),
        ),
        _ => None,
    }
}
