//! `[data]`: where items come from and what is made of them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::data::examples::{Choices, End, OutputFormat, Reasoning, TrainOn};
use crate::data::fields::{Fields, Reading};
use crate::data::files::Part;
use crate::data::format::{Format, Preference};
use crate::data::split::SplitParts;
use crate::eval::think::ThinkTags;

use super::{Paths, TemplateChoice};

/// The `[data]` table.
///
/// `file`, `train`, `validation` and `heldout` are each a path or a list of paths: files, folders or
/// patterns (`*`, `**`, `?`). A file is JSON Lines, a JSON array, CSV or TSV with a first line of
/// column names, or Parquet, by the end of its name; all but the last also with `.gz` or `.zst` behind.
/// Of a folder the files of the part are read ([`files`](crate::data::files)).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Rows to be split; of a folder, its part `train`. Here and below, a dataset of a hub may stand
    /// instead (`hf:owner/name`): its `train` files, as `validation` those of that split, as `heldout`
    /// those of `test`.
    #[serde(default)]
    pub file: Option<Paths>,
    /// How `file` is split after Python's shuffle: `"9:1"` is train and held-out (which then also
    /// serves the loss during training, as the recipe does), `"8:1:1"` train, validation and
    /// held-out. Where `train` and `heldout` are files and `validation` is not given, the first two
    /// shares cut it off `train`.
    #[serde(default = "default_split")]
    pub split: SplitParts,
    /// Training items, where they have their own file.
    #[serde(default)]
    pub train: Option<Paths>,
    /// Items for the loss during training, where they have their own file.
    #[serde(default)]
    pub validation: Option<Paths>,
    /// Held-out items, where they have their own file; alone in a suite that trains nothing.
    #[serde(default)]
    pub heldout: Option<Paths>,
    /// What a row is; `auto` finds it by the keys and says it.
    #[serde(default, skip_serializing_if = "Format::is_usual")]
    pub format: Format,
    /// What is made of preference pairs: `refuse`, or `chosen` to train on the chosen answers.
    #[serde(default, skip_serializing_if = "Preference::is_usual")]
    pub preference: Preference,
    /// Which turns of a conversation are trained on: `last`, or `all` of the assistant's.
    #[serde(default, skip_serializing_if = "TrainOn::is_usual")]
    pub train_on: TrainOn,
    /// Names of the fields in the rows.
    #[serde(default)]
    pub fields: Fields,
    /// The system turn; empty for none.
    #[serde(default)]
    pub system_prompt: String,
    /// Which chat template renders prompts.
    #[serde(default)]
    pub template: TemplateChoice,
    /// How reasoning and answer become the response.
    #[serde(default = "default_output")]
    pub output: OutputFormat,
    /// What ends a training example; by default what goes with `output`.
    #[serde(default)]
    pub end: Option<End>,
    /// How the options of multiple-choice items are asked: `letter` lists them in the prompt and
    /// scores the labels, `text` scores their texts as answers to the question alone.
    #[serde(default, skip_serializing_if = "Choices::is_usual")]
    pub choices: Choices,
    /// What becomes of reasoning that the chat template has no place for: `auto` writes it into the
    /// answer as `<think>..</think>` and says so, `template` makes that an error, `drop` leaves all
    /// reasoning out.
    #[serde(default, skip_serializing_if = "Reasoning::is_usual")]
    pub reasoning: Reasoning,
    /// Names of the tags that part reasoning from answers, in the data and in what models write, in
    /// any letter case; the first is the one that is written. With none, no text is taken apart.
    #[serde(default, skip_serializing_if = "ThinkTags::is_usual")]
    pub think_tags: ThinkTags,
    /// Examples are cut to so many tokens (the end is lost).
    #[serde(default = "default_max_length")]
    pub max_length: usize,
    /// A bad line is an error, not a count.
    #[serde(default)]
    pub strict: bool,
    /// Use only the first so many training items; 0 is all.
    #[serde(default)]
    pub train_limit: usize,
}

impl DataConfig {
    /// All paths of rows.
    pub fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.file, &self.train, &self.validation, &self.heldout].into_iter().flatten().flat_map(Paths::iter)
    }

    /// The paths by the part that they are read as.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (Part, &Paths)> {
        let DataConfig { file, train, validation, heldout, .. } = self;
        let (rows, own) = ((Part::Train, file), (Part::Train, train));
        let parts = [rows, own, (Part::Validation, validation), (Part::Test, heldout)];
        parts.into_iter().filter_map(|(part, paths)| Some((part, paths.as_ref()?)))
    }

    pub(crate) fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let DataConfig { file, train, validation, heldout, .. } = self;
        [file, train, validation, heldout].into_iter().flatten().flat_map(|paths| &mut paths.0)
    }

    /// How the rows are read.
    pub fn reading(&self) -> Reading<'_> {
        Reading {
            fields: &self.fields,
            format: self.format,
            preference: self.preference,
            train_on: self.train_on,
            tags: &self.think_tags,
            strict: self.strict,
        }
    }
}

fn default_split() -> SplitParts {
    SplitParts::NINE_ONE
}

fn default_output() -> OutputFormat {
    OutputFormat::Template
}

fn default_max_length() -> usize {
    2048
}
