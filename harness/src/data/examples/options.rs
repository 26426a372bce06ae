//! Options of rendering: how the assistant's turn is written, what becomes of reasoning, what ends
//! an example.

use serde::{Deserialize, Serialize};

use crate::data::tokens::StopToken;
use crate::eval::think::ThinkTags;

/// How the assistant's turn is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutputFormat {
    /// The recipe's `<think>{think}</think> \n {answer}`.
    #[default]
    Recipe,
    /// The other recipe's `<think>{think}</think>\n{answer}`.
    RecipeNewline,
    /// As the chat template renders an assistant's turn with `reasoning_content`.
    Template,
}

/// What becomes of reasoning with [`OutputFormat::Template`]. The recipe's outputs have a place for
/// it in every row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reasoning {
    /// It goes where the template writes `reasoning_content`; where the template does not, it is
    /// written into the answer as `<think>\n{think}\n</think>\n\n{answer}`, which is told
    /// ([`Rendered::Written`]).
    #[default]
    Auto,
    /// A template that drops it is an error.
    Template,
    /// It is left out, with every output.
    Drop,
}

impl Reasoning {
    /// Whether it is the default, which is not written: what has a place for reasoning is written
    /// as before there was a choice.
    pub(crate) fn is_usual(&self) -> bool {
        *self == Reasoning::default()
    }
}

/// Which turns of the assistant a conversation is trained on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrainOn {
    /// The last.
    #[default]
    Last,
    /// Every one, but for those with `"weight": 0` and those of a prompt whose completion is given
    /// apart. Where the template marks them (`{% generation %}`), what it marks is what is trained on,
    /// as with TRL's `assistant_only_loss`; else each from where its turn begins to the token that ends
    /// it. An example ends with the token that ends its last turn, whatever is marked behind it.
    All,
}

impl TrainOn {
    /// Whether it is the default, which is not written.
    pub(crate) fn is_usual(&self) -> bool {
        *self == TrainOn::default()
    }
}

/// What became of a record's reasoning in its rendered text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rendered {
    /// The record has none.
    #[default]
    None,
    /// It stands where the template or the recipe has its place.
    InPlace,
    /// The template has no place for it: it was written into the answer.
    Written,
    /// It was left out, as [`Reasoning::Drop`] says.
    Dropped,
}

impl Rendered {
    /// Whether the text holds reasoning.
    pub(super) fn is_there(self) -> bool {
        matches!(self, Rendered::InPlace | Rendered::Written)
    }
}

/// What ends a training example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// One padding token, as the recipe does. A model trained so must stop at it, see
    /// [`Formatter::stop_ids`](super::Formatter::stop_ids).
    Pad,
    /// The tokenizer's end token.
    Eos,
    /// The first stop id that the template writes after the answer; what follows it is left out.
    Template,
}

/// How rows become text and ids. Everything here shows in results, so it belongs into the report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FormatOptions {
    /// The system turn, also in place of one that a chat row brings; `None` keeps the row's, if it
    /// has one.
    pub system: Option<String>,
    /// How the assistant's turn is written.
    pub output: OutputFormat,
    /// What ends an example; by default [`End::Template`] with [`OutputFormat::Template`], else
    /// [`End::Pad`].
    pub end: Option<End>,
    /// Examples are cut to so many tokens, keeping the start; at least 1.
    pub max_length: usize,
    /// Qwen3's switch, told to the template where set.
    pub enable_thinking: Option<bool>,
    /// The time that templates are told, for those that print the date.
    pub now: Option<i64>,
    /// How the options of a multiple-choice row are asked.
    #[serde(skip_serializing_if = "Choices::is_usual")]
    pub choices: Choices,
    /// What becomes of reasoning that the template has no place for.
    #[serde(skip_serializing_if = "Reasoning::is_usual")]
    pub reasoning: Reasoning,
    /// Which turns of a conversation are trained on.
    #[serde(skip_serializing_if = "TrainOn::is_usual")]
    pub train_on: TrainOn,
    /// Which tags part reasoning from answers; the first is the one that is written.
    #[serde(skip_serializing_if = "ThinkTags::is_usual")]
    pub think_tags: ThinkTags,
    /// Tokens that end a turn besides those that the model's files name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<StopToken>,
}

/// How the options of a multiple-choice row are asked, and what of them is scored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choices {
    /// They stand below the question as `A. ...`, `B. ...`; the labels are scored.
    #[default]
    Letter,
    /// They are not shown; their texts are scored, each as the answer to the question alone.
    Text,
}

impl Choices {
    /// Whether it is the default, which is not written: what has no choices is written as before
    /// there were any.
    pub(crate) fn is_usual(&self) -> bool {
        *self == Choices::default()
    }
}

impl Default for FormatOptions {
    /// The recipe's, without a system turn: 2048 tokens, `<think>{think}</think> \n {answer}`, a
    /// padding token as the end.
    fn default() -> Self {
        FormatOptions {
            system: None,
            output: OutputFormat::Recipe,
            end: None,
            max_length: 2048,
            enable_thinking: None,
            now: None,
            choices: Choices::default(),
            reasoning: Reasoning::default(),
            train_on: TrainOn::default(),
            think_tags: ThinkTags::default(),
            stop: Vec::new(),
        }
    }
}

/// The system turn of the recipe.
pub const RECIPE_SYSTEM: &str = "你是一个医学专家，你需要根据用户的问题，给出带有思考的回答。";
