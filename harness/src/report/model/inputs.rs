//! Inputs of an evaluation: the suite, its data, and the fingerprints that two reports must share
//! to be compared.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Language;
use crate::backend::GenerateConfig;

/// The experiment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suite {
    /// Its name, as in `karat run NAME`.
    pub name: String,
    /// A line for the top of the page; the name where empty.
    #[serde(default)]
    pub title: String,
    /// A sentence or two under the title.
    #[serde(default)]
    pub description: String,
    /// SHA-256 of the suite file, empty where there is none.
    #[serde(default, with = "super::unknown")]
    pub sha256: String,
    /// What models and data came from a hub, with the commit and the hash of every file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<crate::hub::Source>,
}

/// SHA-256 (hex) of the things that must agree before two models may be compared. An empty one,
/// `null` in JSON, is unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprints {
    /// Ids, questions and references of the evaluated items, in order.
    #[serde(with = "super::unknown")]
    pub data: String,
    /// The token ids of all rendered prompts, in order.
    #[serde(with = "super::unknown")]
    pub prompts: String,
    /// The chat template's source and switches.
    #[serde(with = "super::unknown")]
    pub template: String,
    /// Everything about decoding that changes the text.
    #[serde(with = "super::unknown")]
    pub decoding: String,
}

/// The data behind the items.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Data {
    /// The files read.
    pub files: Vec<DataFile>,
    /// Rows of each part, e.g. `train`, `validation`, `test`.
    pub splits: BTreeMap<String, u64>,
    /// How the parts were cut; none where nobody knows.
    pub split_rule: Option<SplitRule>,
    /// Rows that could not be used; at most [`Data::LISTED_BAD_ROWS`] are listed.
    pub bad_rows: Vec<BadRow>,
    /// How many there were.
    pub bad_row_count: u64,
    /// Items of one part that also stand, or nearly so, in another; at most [`Data::LISTED_LEAKS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leaks: Vec<Leak>,
    /// What the audit counted, by name: `exact_leaks`, `near_leaks`, `duplicates`, `truncated_rows`
    /// ...
    pub audit: BTreeMap<String, u64>,
}

impl Data {
    /// How many bad rows a report lists one by one.
    pub const LISTED_BAD_ROWS: usize = 20;
    /// How many leaks a report lists one by one.
    pub const LISTED_LEAKS: usize = 20;
}

/// How data was cut into parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum SplitRule {
    /// One file, after Python's shuffle.
    Shuffled {
        /// Of the shuffle.
        seed: u64,
        /// Of train and held-out, or of train, validation and held-out: `9:1`, `8:1:1`.
        shares: String,
        /// Whether the held-out part also gives the loss during training.
        heldout_gives_loss: bool,
    },
    /// Held-out items have their own file; validation is cut off the training file, after Python's
    /// shuffle.
    HeldoutFile {
        /// Of the shuffle.
        seed: u64,
        /// Of train and validation.
        shares: String,
    },
    /// Each part has its own file.
    OwnFiles,
    /// Held-out items alone: nothing is trained.
    HeldoutAlone,
}

impl SplitRule {
    /// The rule in words.
    pub fn describe(&self, language: Language) -> String {
        let english = language == Language::English;
        match self {
            SplitRule::Shuffled { seed, shares, heldout_gives_loss } => match (english, heldout_gives_loss) {
                (true, false) => format!("Python shuffle, seed {seed}, {shares}"),
                (true, true) => format!("Python shuffle, seed {seed}, {shares}; the held-out part also gives the loss"),
                (false, false) => format!("Python 洗牌，随机种子 {seed}，{shares}"),
                (false, true) => format!("Python 洗牌，随机种子 {seed}，{shares}；留出部分同时用于计算损失"),
            },
            SplitRule::HeldoutFile { seed, shares } if english => format!(
                "held-out items have their own file; validation cut off the training file: Python shuffle, seed {seed}, {shares}"
            ),
            SplitRule::HeldoutFile { seed, shares } => {
                format!("留出条目有单独的文件；验证集从训练文件中切出：Python 洗牌，随机种子 {seed}，{shares}")
            }
            SplitRule::OwnFiles if english => "train, validation and held-out items have their own files".into(),
            SplitRule::OwnFiles => "训练、验证与留出条目各有单独的文件".into(),
            SplitRule::HeldoutAlone if english => "held-out items alone; nothing is trained".into(),
            SplitRule::HeldoutAlone => "仅有留出条目；不做训练".into(),
        }
    }
}

/// Two items of different parts that ask the same, or nearly so.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Leak {
    /// Part and id of the one, as `train m-001`.
    pub first: String,
    /// Part and id of the other.
    pub second: String,
    /// Jaccard index of their character n-grams.
    pub similarity: f64,
    /// Equal after normalisation.
    pub exact: bool,
}

/// One data file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFile {
    /// Its name relative to the suite (never a machine's path).
    pub name: String,
    /// SHA-256 of its bytes.
    pub sha256: String,
    /// Usable rows.
    pub rows: u64,
    /// The form of its rows ([`Format`](crate::data::format::Format)), but for question and answer under
    /// keys of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_as: Option<String>,
}

/// A row that could not be used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadRow {
    /// The file's name.
    pub file: String,
    /// Its line, from 1.
    pub line: u64,
    /// Why.
    pub reason: String,
}

/// How prompts were made and continued.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decoding {
    /// The chat template's name: a file's, or a built-in's.
    pub template: String,
    /// The template's thinking switch, where it has one.
    pub enable_thinking: Option<bool>,
    /// Longest prompt and reference together, in tokens.
    pub max_length: usize,
    /// The sampling settings.
    pub generate: GenerateConfig,
}
