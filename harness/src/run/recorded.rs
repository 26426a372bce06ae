//! Recorded results of one model, in one file: enough to make its part of a report again without
//! the model.
//!
//! `karat run` leaves a `results/NAME.json` for each model. From these,
//! [`report`](super::report_recorded) makes the whole report: new metrics over old predictions,
//! predictions made elsewhere, golden tests that need no model.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::backend::TrainSummary;
use crate::data::notes::Note;
use crate::error::{Error, Result};
use crate::eval::{Prediction, ReferenceScore};
use crate::fsio;
use crate::report::{AdapterCheck, Fingerprints, Role};
use crate::run::evaluate::Effort;
use crate::train::log::Curves;

/// One model's predictions, scores and training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recorded {
    /// Its name in the report.
    pub name: String,
    /// Its part.
    pub role: Role,
    /// SHA-256 over its checkpoint's files.
    pub checkpoint_sha256: String,
    /// What it was asked, where that is not what the suite asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprints: Option<Fingerprints>,
    /// Its texts were brought along: how they came about nobody knows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub brought: bool,
    /// What a reader must know of how its texts were matched to the items.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<Note>,
    /// What the evaluation took; none of texts that were brought along.
    pub effort: Option<Effort>,
    /// Bytes of its files, of an adapter those of the adapter alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// How it was trained, if in this run.
    pub training: Option<RecordedTraining>,
    /// What it generated.
    pub predictions: Vec<Prediction>,
    /// What it generated the second time and further, of a suite with `eval.samples`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<Vec<Prediction>>,
    /// How probable it found the references.
    pub references: Vec<ReferenceScore>,
    /// How probable it found the general text, window by window, if the suite has any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub general: Vec<ReferenceScore>,
    /// What was found of its adapter, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterCheck>,
}

/// A training run: its totals and its curves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedTraining {
    /// Totals.
    pub summary: TrainSummary,
    /// Steps and evaluations.
    pub curves: Curves,
    /// The step of the checkpoint that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<usize>,
    /// What it was chosen by, if not by the loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<RecordedChoice>,
    /// Other checkpoints that were measured, by rising step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checkpoints: Vec<RecordedCheckpoint>,
}

/// How a checkpoint was chosen by a metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedChoice {
    /// The metric.
    pub metric: String,
    /// Items of the validation part, which it was measured on.
    pub items: usize,
    /// The step that was chosen.
    pub step: usize,
    /// The value of each checkpoint; none where undefined.
    pub values: Vec<(usize, Option<f64>)>,
}

/// A checkpoint on the way of a training, measured on the same items.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedCheckpoint {
    /// After so many optimizer steps.
    pub step: usize,
    /// SHA-256 over its files.
    pub checkpoint_sha256: String,
    /// What it generated.
    pub predictions: Vec<Prediction>,
    /// How probable it found the references.
    pub references: Vec<ReferenceScore>,
}

impl Recorded {
    /// Writes `folder/NAME.json`.
    ///
    /// # Errors
    /// I/O.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let mut text = serde_json::to_string(self)
            .map_err(|e| Error::failed("could not write JSON").at(folder.display()).because(e))?;
        text.push('\n');
        fsio::write_atomic(&folder.join(format!("{}.json", self.name)), text.as_bytes())
    }

    /// Its place among models whose order nobody gave: base, lora, full, then those without an
    /// adapter, by name. The first is what the others are compared with.
    pub(super) fn place(&self) -> (Role, bool, &str) {
        (self.role, self.adapter.is_some(), &self.name)
    }

    /// Whether `folder` has a recording of another model under this name.
    pub(super) fn replaces(&self, folder: &Path) -> bool {
        let there: Result<Recorded> = fsio::read_json(&folder.join(format!("{}.json", self.name)));
        there.is_ok_and(|there| match self.checkpoint_sha256.is_empty() && there.checkpoint_sha256.is_empty() {
            true => there.predictions != self.predictions,
            false => there.checkpoint_sha256 != self.checkpoint_sha256,
        })
    }

    /// Reads all recordings of a folder: base, lora, full, then others by name.
    ///
    /// # Errors
    /// I/O, a broken file, an empty folder.
    pub fn read_all(folder: &Path) -> Result<Vec<Recorded>> {
        let entries = std::fs::read_dir(folder).map_err(|e| Error::io("read the folder", folder, e))?;
        let mut all: Vec<Recorded> = Vec::new();
        for entry in entries {
            let path = entry.map_err(|e| Error::io("read the folder", folder, e))?.path();
            if path.extension().is_some_and(|e| e == "json") {
                all.push(fsio::read_json(&path)?);
            }
        }
        if all.is_empty() {
            return Err(Error::data("there are no recorded results here")
                .at(folder.display())
                .help("give the `results` folder of a run"));
        }
        all.sort_by(|a, b| a.place().cmp(&b.place()));
        Ok(all)
    }
}
