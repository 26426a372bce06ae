//! Checkpoints over time: what `karat watch` found of each, on pages that are pure functions of it.
//!
//! ```text
//! watch.json   this module's data: the baseline, the metrics, one entry a checkpoint
//! watch.md     the same as Markdown
//! watch.html   the same as a page, with a curve of each headline metric over the steps
//! steps.svg    the curves
//! ```

mod html;
mod markdown;
mod rows;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::gate::Checks;
use super::model::{Language, Metric, MetricValue, Report, Suite};
use super::plot;
use crate::error::{Error, Result};
use crate::eval::stats::MarginVerdict;
use crate::fsio::write_atomic;

pub use html::render as html;
pub use markdown::{render as markdown, results_table};
pub use rows::line;

/// The version of `watch.json` and of the history's lines; raised even when a field is only added.
pub const TIMELINE_VERSION: u32 = 1;
/// The file with the data.
pub const TIMELINE_JSON: &str = "watch.json";

/// The checkpoints of one training, measured as they came.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timeline {
    /// [`TIMELINE_VERSION`].
    pub timeline_version: u32,
    /// The language of the pages.
    pub language: Language,
    /// Which experiment this is.
    pub suite: Suite,
    /// The trainer's output folder, as it was named.
    pub folder: String,
    /// What every checkpoint is compared with: its name.
    pub baseline: String,
    /// Items that every checkpoint is asked.
    pub items: usize,
    /// Coverage of the intervals.
    pub confidence: f64,
    /// The metrics, in the order of the columns, each with the value of the baseline.
    pub metrics: Vec<Metric>,
    /// In the order in which they were found.
    pub checkpoints: Vec<Entry>,
}

/// What became of one checkpoint: a line of the history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its folder's name; `final` for a model in the output folder itself.
    pub name: String,
    /// Optimizer steps before it; none where nobody says.
    pub step: Option<u64>,
    /// What became of it.
    pub status: Status,
    /// SHA-256 over all that a model is read from: weights, configuration, tokenizer.
    pub digest: String,
    /// Names, sizes and times of these files, in short: while they are the same they are not read.
    pub stamp: String,
    /// What the gate says; none of what was not measured, or could not be compared.
    pub verdict: Option<MarginVerdict>,
    /// Values with their intervals, by metric.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, MetricValue>,
    /// What the verdict rests on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<Checks>,
    /// The checkpoint that has the same bytes and was measured before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_as: Option<String>,
    /// The digest that the checkpoint of this name had before it was overwritten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<String>,
    /// Why it was not measured, or not judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    /// The folder of its own report, from the folder of the watch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<String>,
    /// Seconds that it took, from the first byte read to the verdict.
    pub seconds: f64,
    /// When it was done, in UTC: `2026-11-30T09:30:00Z`.
    pub at: String,
}

/// What became of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// It was measured.
    Measured,
    /// One of the same bytes was measured before.
    Same,
    /// It could not be measured.
    Failed,
    /// It went away before it was measured.
    Vanished,
}

/// An error, as the history keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// The exit code of its kind.
    pub exit_code: u8,
    /// What happened and why, in one line.
    pub what: String,
}

impl Entry {
    /// Whether numbers of it are known.
    pub fn has_values(&self) -> bool {
        matches!(self.status, Status::Measured | Status::Same)
    }

    /// The metrics by which it regresses.
    pub fn regressed(&self) -> Vec<&str> {
        let checks = self.gate.iter().flat_map(|gate| &gate.checks);
        checks.filter(|check| check.verdict == MarginVerdict::Regress).map(|check| check.metric.as_str()).collect()
    }
}

impl Timeline {
    /// What `entries`, the lines of a history, say beside `baseline`, the report of one model.
    pub fn new(baseline: &Report, folder: &str, language: Language, entries: &[Entry]) -> Timeline {
        Timeline {
            timeline_version: TIMELINE_VERSION,
            language,
            suite: baseline.suite.clone(),
            folder: folder.into(),
            baseline: baseline.models.first().map(|model| model.name.clone()).unwrap_or_default(),
            items: baseline.items.len(),
            confidence: baseline.statistics.confidence,
            metrics: baseline.metrics.clone(),
            checkpoints: entries.to_vec(),
        }
    }

    /// The newest entry of each checkpoint, by step, of unknown step last: what was overwritten is
    /// history.
    pub fn current(&self) -> Vec<&Entry> {
        let newest: BTreeMap<&str, usize> =
            self.checkpoints.iter().enumerate().map(|(i, entry)| (entry.name.as_str(), i)).collect();
        let all = self.checkpoints.iter().enumerate();
        let mut current: Vec<&Entry> =
            all.filter(|(i, entry)| newest[entry.name.as_str()] == *i).map(|(_, entry)| entry).collect();
        current.sort_by_key(|entry| (entry.step.is_none(), entry.step));
        current
    }

    /// What tables call the metrics by which a checkpoint regresses.
    pub(super) fn regressed(&self, entry: &Entry) -> Vec<String> {
        let title =
            |name: &str| self.metrics.iter().find(|m| m.name == name).map(|m| m.title(self.language).to_string());
        entry.regressed().into_iter().map(|name| title(name).unwrap_or_else(|| name.to_string())).collect()
    }

    /// The metrics that are drawn and stand in the table: the headline metrics, or all.
    pub(super) fn shown(&self) -> Vec<&Metric> {
        let headline: Vec<&Metric> = self.metrics.iter().filter(|metric| metric.headline).collect();
        if headline.is_empty() { self.metrics.iter().collect() } else { headline }
    }

    /// The JSON text: sorted keys, two spaces, a final line break.
    ///
    /// # Errors
    /// If serde cannot represent it, which nothing built here runs into.
    pub fn to_json(&self) -> Result<String> {
        let mut value = serde_json::to_value(self).map_err(|e| Error::failed("could not write JSON").because(e))?;
        value.sort_all_objects();
        Ok(format!("{value:#}\n"))
    }

    /// Writes `watch.json`, `watch.md`, `watch.html` and, where there is something to draw,
    /// `steps.svg` into `folder`. Each file is replaced whole; `watch.json` comes last.
    ///
    /// # Errors
    /// I/O, with the path.
    pub fn write(&self, folder: &Path) -> Result<()> {
        if let Some(svg) = plot::steps(self) {
            write_atomic(&folder.join("steps.svg"), svg.as_bytes())?;
        }
        write_atomic(&folder.join("watch.md"), markdown(self).as_bytes())?;
        write_atomic(&folder.join("watch.html"), html(self)?.as_bytes())?;
        write_atomic(&folder.join(TIMELINE_JSON), self.to_json()?.as_bytes())
    }
}
