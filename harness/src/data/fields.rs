//! The fields of a row: which keys of a file mean what, and how rows are read by them.

use serde::{Deserialize, Serialize};

use crate::eval::think::ThinkTags;

/// Which keys of a JSON row mean what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fields {
    /// How the row is laid out.
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

/// How the rows of a file are read.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// Which keys mean what.
    pub fields: &'a Fields,
    /// Which tags part reasoning from answers.
    pub tags: &'a ThinkTags,
    /// A bad row is an error.
    pub strict: bool,
}
