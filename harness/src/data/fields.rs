//! The fields of a row: which keys of a file mean what, and how rows are read by them.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::examples::TrainOn;
use super::format::{Format, Preference};
use crate::eval::think::ThinkTags;

/// Which keys of a row mean what. A key that is not there as it is written is looked for in any
/// letter case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fields {
    /// How the row is laid out, where [`Format`] does not say it: `columns` leaves it to the keys
    /// that are found.
    pub layout: RowLayout,
    /// Key of the id (a string or an integer), optional in the data.
    pub id: String,
    /// Key of the instruction, optional in the data.
    pub instruction: String,
    /// Key of the question (of the optional input in [`RowLayout::Alpaca`]).
    pub question: String,
    /// Key of the reasoning, optional in the data.
    pub think: String,
    /// Key of the answer (of the output in [`RowLayout::Alpaca`]).
    pub answer: String,
    /// Key of the source that rows share (a string or an integer), optional in the data.
    pub cluster: String,
    /// Key of the list of chat turns in [`RowLayout::Messages`].
    pub messages: String,
    /// Key of the options of a multiple-choice row, optional in the data: a list of texts, or an
    /// object of texts under `A`, `B`, ... The answer is then a label, an option's text, or a text
    /// that names one option.
    #[serde(skip_serializing_if = "is_usual_options")]
    pub options: String,
}

/// Left out where nothing was asked for, so that a suite without choices is written as before there
/// were any.
fn is_usual_options(key: &str) -> bool {
    key == "options"
}

/// The shapes of rows that are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RowLayout {
    /// One key each for question, think and answer. Where a row has no think, the reasoning that
    /// its answer holds in tags is.
    #[default]
    Columns,
    /// `instruction` + optional `input` (joined by a newline) ask; `output` answers. What the
    /// output holds in tags of reasoning ([`ThinkTags::cut`]) is the reasoning.
    Alpaca,
    /// A list of [`Message`](super::message::Message)s: an optional system turn (an empty one is none), then user and
    /// assistant in turn, an assistant last. Its `reasoning_content`, or what its content holds in
    /// tags, is the reasoning. `"weight": 0` of a turn says that it is not to be trained on; a row
    /// whose last turn has it is a bad one.
    Messages,
}

impl Default for Fields {
    /// `question`, `think`, `answer`, with `id`, `instruction` and `cluster` if present.
    fn default() -> Self {
        Fields {
            layout: RowLayout::Columns,
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
        Fields { layout: RowLayout::Alpaca, question: "input".into(), answer: "output".into(), ..Fields::default() }
    }
    /// `messages` of role and content.
    pub fn messages() -> Self {
        Fields { layout: RowLayout::Messages, ..Fields::default() }
    }
}

impl Fields {
    /// Whether a file's own names for question or answer are given.
    pub(super) fn names_columns(&self) -> bool {
        let usual = Fields::default();
        self.layout == RowLayout::Columns && (self.question != usual.question || self.answer != usual.answer)
    }
}

/// How the rows of a file are read.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// Which keys mean what.
    pub fields: &'a Fields,
    /// What a row is.
    pub format: Format,
    /// What is made of preference pairs.
    pub preference: Preference,
    /// Which turns of a conversation are trained on.
    pub train_on: TrainOn,
    /// Which tags part reasoning from answers.
    pub tags: &'a ThinkTags,
    /// A bad row is an error.
    pub strict: bool,
}

impl<'a> Reading<'a> {
    /// Rows whose form is found by their keys, of which the last turn is trained on and bad ones are
    /// left out.
    pub fn new(fields: &'a Fields, tags: &'a ThinkTags) -> Self {
        let (format, preference, train_on) = Default::default();
        Reading { fields, format, preference, train_on, tags, strict: false }
    }
}

/// The value of `key` in a row, none of null: under that key, else under the only one that differs
/// in letter case alone.
///
/// # Errors
/// The names, if several do.
pub(super) fn value<'r>(row: &'r Map<String, Value>, key: &str) -> Result<Option<&'r Value>, String> {
    if let Some(value) = row.get(key) {
        return Ok(Some(value).filter(|value| !value.is_null()));
    }
    let mut found = row.iter().filter(|(name, _)| same_name(name, key));
    match (found.next(), found.next()) {
        (Some((first, _)), Some((second, _))) => {
            Err(format!("{first:?} and {second:?} differ in letter case alone, and neither is {key:?}"))
        }
        (found, _) => Ok(found.map(|(_, value)| value).filter(|value| !value.is_null())),
    }
}

/// Whether a column's name is a key's, in any letter case.
pub(super) fn same_name(name: &str, key: &str) -> bool {
    name.eq_ignore_ascii_case(key) || (!name.is_ascii() && name.to_lowercase() == key.to_lowercase())
}
