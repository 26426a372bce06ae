//! What every checkpoint is compared with, and the settings that all of a history has in common.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Watch;
use crate::error::{Error, Result};
use crate::fsio::{self, sha256};
use crate::report::gate::check;
use crate::report::{Language, Report};
use crate::run::{Prepared, comparable};

/// The settings of a watch, in its folder.
pub const SETTINGS: &str = "settings.json";
/// The report of the baseline, in the folder of a watch.
pub const BASELINE: &str = "baseline.json";

/// What must stay as it is for the lines of a history to be of one curve.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    settings_version: u32,
    /// The trainer's output folder.
    folder: PathBuf,
    /// SHA-256 over the suite without words and places.
    pub suite: String,
    /// Of a baseline that was given, what it holds; none where it is the suite's base.
    baseline: Option<String>,
    margins: BTreeMap<String, f64>,
    allow: Vec<String>,
}

impl Settings {
    /// Those of `watch`.
    ///
    /// # Errors
    /// I/O; a report or suite that cannot be written as text.
    pub fn of(watch: &Watch<'_>) -> Result<Settings> {
        let mut suite = watch.suite.clone();
        // Words for people, and the gate's rules, which stand beside.
        suite.title.clear();
        suite.description.clear();
        suite.language = Language::English;
        suite.gate = Default::default();
        let folder = std::path::absolute(&watch.folder).map_err(|e| Error::io("resolve", &watch.folder, e))?;
        let baseline = match &watch.baseline {
            Some(report) => Some(sha256(report.without_environment().to_json()?.as_bytes())),
            None => None,
        };
        Ok(Settings {
            settings_version: 1,
            folder,
            suite: sha256(comparable(&suite)?.as_bytes()),
            baseline,
            margins: watch.rules.margins.clone(),
            allow: watch.rules.allow.clone(),
        })
    }

    /// Writes them into the folder of a watch, or holds them against those that are there, unless
    /// this is the `first` line that is made with any.
    ///
    /// # Errors
    /// Usage, if lines of the history were made with others; I/O.
    pub fn hold(&self, out: &Path, first: bool) -> Result<()> {
        let path = out.join(SETTINGS);
        if first || !path.is_file() {
            return fsio::write_sealed_json(&path, self);
        }
        let earlier: Settings = fsio::read_sealed_json(&path)?;
        let refused = |what: &str| {
            Err(Error::usage(format!("the history in this folder is of {what}, and its lines make one curve"))
                .at(out.display())
                .help("give --out another folder, or go on as it was begun"))
        };
        // A training that was moved is still that training.
        if earlier.folder != self.folder && earlier.folder.exists() {
            return refused(&format!("another training, {}", earlier.folder.display()));
        }
        if earlier.suite != self.suite {
            return refused("another suite, or of other settings of it (data, base, device, decoding)");
        }
        if earlier.baseline != self.baseline {
            return refused("another baseline");
        }
        if (&earlier.margins, &earlier.allow) != (&self.margins, &self.allow) {
            return refused("other rules of the gate (--margin, --allow, [gate.margins])");
        }
        Ok(())
    }
}

/// The report of a baseline, and of what it is.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    key: String,
    report: Report,
}

/// The report that was kept in the folder of a watch under `key`.
pub fn kept(out: &Path, key: &str) -> Option<Report> {
    // A broken one is made again.
    let kept: Kept = fsio::read_sealed_json(&out.join(BASELINE)).ok()?;
    (kept.key == key).then_some(kept.report)
}

/// The weights that the kept baseline is of, under whatever key.
pub fn kept_weights(out: &Path) -> Option<String> {
    let kept: Kept = fsio::read_sealed_json(&out.join(BASELINE)).ok()?;
    Some(kept.report.models.first()?.checkpoint_sha256.clone())
}

/// Keeps a report in the folder of a watch.
///
/// # Errors
/// I/O.
pub fn keep(out: &Path, key: &str, report: &Report) -> Result<()> {
    let kept = Kept { key: key.into(), report: report.without_environment() };
    fsio::write_sealed_json(&out.join(BASELINE), &kept)
}

/// `report` with one of its models alone: `model`, or the only one there is.
///
/// # Errors
/// Usage, for a name that it has not, and where several could be meant.
pub fn only(mut report: Report, model: Option<&str>, named: &str) -> Result<Report> {
    let names: Vec<String> = report.models.iter().map(|model| model.name.clone()).collect();
    let refused = |what: String| {
        let example = names.first().map_or_else(|| "NAME".into(), String::clone);
        Err(Error::usage(what)
            .at(named)
            .help(format!("it has {}; name one behind a colon, as --baseline {named}:{example}", names.join(", "))))
    };
    let name = match (model, names.as_slice()) {
        (Some(model), _) if names.iter().any(|name| name == model) => model.to_string(),
        (Some(model), _) => return refused(format!("the baseline has no model {model:?}")),
        (None, [only]) => only.clone(),
        (None, _) => return refused(format!("the baseline has {} models, and one is compared with", names.len())),
    };
    report.models.retain(|model| model.name == name);
    report.metrics.iter_mut().for_each(|metric| metric.models.retain(|model, _| *model == name));
    report.items.iter_mut().for_each(|item| item.models.retain(|model, _| *model == name));
    report.examples.clear();
    report.comparisons.clear();
    report.flips.clear();
    report.flipped.clear();
    report.general = None;
    Ok(report)
}

/// The report of one model, as if the model were called `name`: a gate compares models of one name.
pub fn renamed(report: &Report, name: &str) -> Report {
    let mut report = report.clone();
    for model in &mut report.models {
        model.name = name.into();
    }
    for item in &mut report.items {
        item.models = std::mem::take(&mut item.models).into_values().map(|values| (name.into(), values)).collect();
    }
    report
}

/// Refuses a baseline that no checkpoint could be held against, before hours are spent: one of
/// other data, prompts or template, or without a metric that has a margin.
///
/// # Errors
/// Usage, with what differs.
pub fn fits(report: &Report, watch: &Watch<'_>, prepared: Option<&Prepared>) -> Result<()> {
    let mut baseline = report.clone();
    // What is compared is the origin; the items are many.
    baseline.items.truncate(1);
    let mut ours = baseline.clone();
    if let Some(prepared) = prepared {
        ours.fingerprints.data = prepared.data_fingerprint();
        ours.fingerprints.prompts = prepared.prompts_fingerprint();
        ours.fingerprints.template = prepared.template_fingerprint();
    }
    check(&ours, &baseline, &watch.rules).map(drop)
}
