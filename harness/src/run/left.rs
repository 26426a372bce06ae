//! The record of a training and its files: the settings by name and SHA-256 of every file of its
//! checkpoints.
//!
//! A checkpoint is hashed when it is written (its files are in memory then), and held against that
//! when it is resumed, reused or evaluated. A checkpoint that was changed meanwhile would be
//! reported as what the training made.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::backend::state::checkpoint_step;
use crate::backend::{Method, Weights};
use crate::error::{Error, Result};
use crate::fsio::{self, Digests, sha256};
use crate::run::TrainJob;
use crate::track::Extent;
use crate::train::plan::rows_sha256;

/// Where it stands in a stage's folder.
pub(super) const FILE: &str = "training.json";

/// A training, as its folder keeps it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Left {
    /// The plan's fingerprint.
    pub fingerprint: String,
    /// Everything the fingerprint is over, by name; what has no short form as its SHA-256.
    pub settings: BTreeMap<String, String>,
    /// How much it is; nothing where an earlier version did not say.
    #[serde(default)]
    pub extent: Extent,
    /// The files of each checkpoint, by the checkpoint's name.
    pub checkpoints: BTreeMap<String, Digests>,
}

impl Left {
    /// What `folder` keeps; none if it keeps nothing.
    ///
    /// # Errors
    /// I/O; a broken file.
    pub fn read(folder: &Path) -> Result<Option<Left>> {
        let path = folder.join(FILE);
        if path.is_file() { fsio::read_json(&path).map(Some) } else { Ok(None) }
    }

    /// Hashes the checkpoint in `path` and writes all into `folder`; checkpoints that are gone are
    /// left out.
    ///
    /// # Errors
    /// I/O.
    pub fn keep(&mut self, folder: &Path, path: &Path) -> Result<()> {
        self.checkpoints.insert(name(path), fsio::digests(path, |_| true)?);
        self.checkpoints.retain(|name, _| folder.join(name).is_dir());
        self.write(folder)
    }

    /// Writes it into `folder`.
    ///
    /// # Errors
    /// I/O.
    pub fn write(&self, folder: &Path) -> Result<()> {
        fsio::write_json(&folder.join(FILE), self)
    }

    /// What differs between this training and one of other `settings`, as words; those that follow
    /// from others are left out.
    pub fn differences(&self, settings: &BTreeMap<String, String>) -> Vec<String> {
        let is_digest = |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let names: std::collections::BTreeSet<&String> = self.settings.keys().chain(settings.keys()).collect();
        let (mut plain, mut content, mut following) = (Vec::new(), Vec::new(), Vec::new());
        for name in names {
            let (was, is) = (self.settings.get(name), settings.get(name));
            if was == is {
                continue;
            }
            let said = |value: Option<&String>| value.map_or("not there", String::as_str).to_string();
            let of_digest = [was, is].into_iter().flatten().any(|value| is_digest(value));
            match FOLLOWING.contains(&name.as_str()) {
                true => following.push(name.clone()),
                false if of_digest => content.push(format!("another {name}")),
                false => plain.push(format!("{name} = {} (was {})", said(is), said(was))),
            }
        }
        let all = [content, plain].concat();
        if all.is_empty() { following } else { all }
    }
}

/// Settings that follow from others, and say something only where no other differs.
const FOLLOWING: [&str; 2] = ["learning rates", "order of the rows"];

/// Everything that a training's fingerprint is over, by the names that people set it by.
pub(super) fn settings(job: &TrainJob<'_>) -> Result<BTreeMap<String, String>> {
    let TrainJob { backend, base, train, eval, plan, .. } = job;
    let mut settings = BTreeMap::new();
    let mut set = |name: &str, value: String| drop(settings.insert(name.to_string(), value));
    let broken = |e| Error::failed("could not write the settings as JSON").because(e);
    let json = |value: serde_json::Result<serde_json::Value>| value.map_err(broken);
    let mut table = |prefix: &str, value: serde_json::Value| {
        for (key, value) in value.as_object().into_iter().flatten() {
            set(&format!("{prefix}{key}"), value.to_string());
        }
    };
    if let Method::Lora(config) = &plan.method {
        table("", json(serde_json::to_value(config))?);
    }
    table("optimizer.", json(serde_json::to_value(&plan.optimizer))?);
    set("method", if plan.method == Method::Full { "full".into() } else { "lora".into() });
    let micros = || plan.steps.iter().flatten();
    set("steps (max_steps, epochs)", plan.steps.len().to_string());
    set("batch_size", micros().map(Vec::len).max().unwrap_or(0).to_string());
    set("accumulation", plan.steps.iter().map(Vec::len).max().unwrap_or(0).to_string());
    set("learning_rate", plan.learning_rates.iter().copied().fold(0.0, f64::max).to_string());
    set("learning rates", sha256(format!("{:?}", plan.learning_rates).as_bytes()));
    set("order of the rows", sha256(format!("{:?}", plan.steps).as_bytes()));
    set("max_grad_norm", plan.max_grad_norm.to_string());
    set("eval_every", plan.eval_every.to_string());
    set("save_every", plan.save_every.to_string());
    set("save_total_limit", plan.save_total_limit.to_string());
    set("recompute", plan.recompute.to_string());
    if let Some(stopping) = &plan.early_stopping {
        set("early_stopping_patience", stopping.patience.to_string());
        set("early_stopping_threshold", stopping.threshold.to_string());
    }
    if let Some(adapter) = &plan.init_adapter {
        set("adapter to start from", fsio::sha256_model(adapter)?);
    }
    set("seed", plan.seed.to_string());
    for (name, rows) in [("training data", train), ("evaluation data", eval)] {
        set(name, rows_sha256(rows.view()));
    }
    let descriptor = backend.backend.describe();
    set("model", base.sha256.clone());
    set("from scratch", (base.open.weights == Weights::Random).to_string());
    set("backend", format!("{} {}", descriptor.name, descriptor.version));
    set("device", base.open.device.clone());
    set("dtype", base.open.dtype.to_string());
    Ok(settings)
}

/// The checkpoint with the highest step in `folder`.
///
/// # Errors
/// If the folder cannot be read.
pub fn last_checkpoint(folder: &Path) -> Result<Option<(usize, PathBuf)>> {
    Ok(checkpoints(folder)?.pop())
}

/// The checkpoints in `folder` with their steps, by rising step; none where there is no folder.
/// Checkpoints appear under their final name only when complete, so the name is enough.
///
/// # Errors
/// If the folder cannot be read.
pub(super) fn checkpoints(folder: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("read the folder", folder, e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Error::io("read the folder", folder, e))?.path();
        if let Some(step) = step(&path).filter(|_| path.is_dir()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// The step of a checkpoint's folder, by its name.
pub(super) fn step(folder: &Path) -> Option<usize> {
    folder.file_name().and_then(|name| name.to_str()).and_then(checkpoint_step)
}

/// The name of a folder.
pub(super) fn name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned())
}

/// The first file of `folder` that is not what was `left` there; files that came since do not
/// count.
pub(super) fn changed(left: &Digests, found: &Digests) -> Option<String> {
    left.iter().find_map(|(name, sha256)| match found.get(name) {
        Some(there) if there == sha256 => None,
        Some(_) => Some(format!("{name} was changed")),
        None => Some(format!("{name} is gone")),
    })
}

/// Holds those files of the checkpoint in `folder` that `wanted` takes against what training `left`
/// there.
///
/// # Errors
/// Data, if one differs, with `help`; I/O.
pub(super) fn hold(folder: &Path, left: &Digests, wanted: fn(&str) -> bool, help: &str) -> Result<Digests> {
    let left: Digests = left.iter().filter(|(name, _)| wanted(name)).map(|(n, s)| (n.clone(), s.clone())).collect();
    let found = fsio::digests(folder, wanted)?;
    match changed(&left, &found) {
        None => Ok(found),
        Some(what) => Err(Error::data(format!("this checkpoint is not what training left: {what}"))
            .at(folder.display())
            .help(help)),
    }
}

/// What is known of a checkpoint or adapter that is brought along from a training's folder: whether
/// it is still what was left there, and the base it was trained from.
pub(super) fn known(checkpoint: &Path) -> Option<(Digests, String)> {
    let real = checkpoint.canonicalize().ok()?;
    // Whatever lies beside a model of other origin is not ours to complain of.
    let mut left = real.parent().and_then(|folder| Left::read(folder).ok().flatten())?;
    let base = left.settings.remove("model").unwrap_or_default();
    Some((left.checkpoints.remove(&name(&real))?, base))
}
