//! What the maximum length cuts off, before anything is trained: how many items and references, which,
//! and the length that would keep them.

use std::fmt::Write;
use std::path::Path;

use serde::Serialize;

use crate::data::examples::Examples;
use crate::report::Warning;

/// From this share of a part's items cut a report warns.
const NOTABLE: f64 = 0.05;
/// Cut items that are named, the longest first.
const NAMED: usize = 5;

/// The lengths of a suite's items.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lengths {
    /// What items are cut to (`data.max_length`).
    pub max_length: usize,
    /// The shortest `data.max_length` that cuts nothing.
    pub keeps_all: usize,
    /// Positions that the model has, where its configuration says it.
    pub holds: Option<usize>,
    /// By part, those with rows.
    pub parts: Vec<PartLengths>,
}

/// What is cut of a part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PartLengths {
    /// `train`, `validation`, `heldout`.
    pub part: String,
    /// How many items it has.
    pub items: usize,
    /// How many of them are cut.
    pub cut: usize,
    /// How many of these keep no token of their answer.
    pub without_answer: usize,
    /// The longest of the cut ones: id and tokens.
    pub longest: Vec<(String, usize)>,
}

impl Lengths {
    pub(super) fn of(max_length: usize, model: &Path, parts: &[(&str, &Examples)]) -> Self {
        let mut lengths = Lengths { max_length, holds: positions(model), ..Lengths::default() };
        for (name, examples) in parts {
            let items = examples.examples.len() + examples.dropped.len();
            let mut longest: Vec<(String, usize)> =
                examples.truncated.iter().cloned().zip(examples.full_lens.iter().copied()).collect();
            longest.sort_by_key(|item| std::cmp::Reverse(item.1));
            let whole = examples.examples.iter().map(|example| example.full_len).max().unwrap_or(0);
            lengths.keeps_all = lengths.keeps_all.max(whole).max(longest.first().map_or(0, |item| item.1));
            let cut = longest.len();
            longest.truncate(NAMED);
            let without_answer = examples.dropped.len();
            lengths.parts.push(PartLengths { part: (*name).into(), items, cut, without_answer, longest });
        }
        lengths.parts.retain(|part| part.items > 0);
        lengths
    }

    /// Whether anything is cut.
    pub fn cuts(&self) -> bool {
        self.parts.iter().any(|part| part.cut > 0)
    }

    /// In words, with the ids of the longest that are cut.
    pub fn describe(&self) -> String {
        let holds = self.holds.map_or(String::new(), |n| format!("; the model holds {n}"));
        let Lengths { max_length, keeps_all, .. } = self;
        if !self.cuts() {
            return format!("max_length {max_length} keeps all: the longest item has {keeps_all} tokens{holds}");
        }
        let of = |part: &PartLengths| {
            let share = 100.0 * part.cut as f64 / part.items.max(1) as f64;
            let lost = match part.without_answer {
                0 => String::new(),
                n => format!(", {n} of them before the answer"),
            };
            format!("{} {} of {} ({share:.1} %{lost})", part.part, part.cut, part.items)
        };
        let cut: Vec<String> = self.parts.iter().filter(|part| part.cut > 0).map(of).collect();
        let mut text =
            format!("max_length {max_length} cuts {}; data.max_length = {keeps_all} keeps all{holds}", cut.join(", "));
        if self.holds.is_some_and(|holds| holds < *keeps_all) {
            text.push_str(", so that the longest must be shortened or left out");
        }
        for part in &self.parts {
            for (id, tokens) in &part.longest {
                let _ = write!(text, "\n  {} {id}: {tokens} tokens", part.part);
            }
            if part.cut > part.longest.len() {
                let _ = write!(text, "\n  {} and {} more", part.part, part.cut - part.longest.len());
            }
        }
        text
    }

    /// The parts of which a notable share is cut.
    pub(super) fn warnings(&self) -> impl Iterator<Item = Warning> {
        let notable = |part: &&PartLengths| part.cut as f64 > NOTABLE * part.items as f64;
        self.parts.iter().filter(notable).map(|part| Warning::Cut {
            part: part.part.clone(),
            cut: part.cut as u64,
            of: part.items as u64,
            max_length: self.max_length,
            keeps_all: self.keeps_all,
            holds: self.holds,
        })
    }

    /// What is to be said where more is kept than the model holds.
    pub(super) fn beyond(&self) -> Option<(usize, usize)> {
        let holds = self.holds?;
        let longest = self.keeps_all.min(self.max_length);
        (longest > holds).then_some((longest, holds))
    }
}

/// How many positions a model folder's configuration says that it has.
fn positions(model: &Path) -> Option<usize> {
    let config: serde_json::Value = crate::fsio::read_json(&model.join("config.json")).ok()?;
    let of = |config: &serde_json::Value| config.get("max_position_embeddings")?.as_u64();
    of(&config).or_else(|| of(config.get("text_config")?)).and_then(|n| usize::try_from(n).ok())
}
