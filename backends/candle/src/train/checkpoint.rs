//! Checkpoint folders: Hugging Face or PEFT layout, and beside it what a resume needs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use karat_backend::state::{RUN_STATE, RunState, TRAINER_STATE, TrainerState};
use karat_backend::{BackendError, LoraConfig};
use karat_model::ModelConfig;
use karat_model::checkpoint::{Layout, WEIGHTS};
use karat_model::peft::{PREFIX, write_adapter_config};
use karat_system::fsio::{self, PassingFolder};
use karat_system::safetensors::{Entry, Writer};
use serde_json::{Map, Value, json};

use super::learner::{Learner, Moments, set};
use crate::lora::stored_name;
use crate::weights::{Vars, values};
use crate::{Result, failed};

const OPTIMIZER: &str = "optimizer.safetensors";
const ADAPTER: &str = "adapter_model.safetensors";
/// Files of the tokenizer and of generation that a checkpoint takes over from its base unchanged.
const COMPANIONS: [&str; 10] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];

/// An error about a file or folder.
pub fn at(path: &Path, what: impl std::fmt::Display) -> BackendError {
    BackendError::failed(format!("{}: {what}", path.display()))
}

/// The folder of step `step`.
pub fn folder(output: &Path, step: usize) -> PathBuf {
    output.join(format!("checkpoint-{step}"))
}

/// What goes into a checkpoint folder.
pub struct Checkpoint<'a> {
    /// The configuration of the model.
    pub config: &'a ModelConfig,
    /// The folder the model came from.
    pub source: &'a Path,
    /// Set for LoRA.
    pub lora: Option<&'a LoraConfig>,
    /// What is trained: the whole model, or what belongs to the adapter.
    pub trained: &'a Vars,
    /// The optimizer's state.
    pub moments: &'a Moments,
    /// For the Hugging Face trainer's readers.
    pub trainer: &'a TrainerState,
    /// For a resume.
    pub run: &'a RunState,
}

impl Checkpoint<'_> {
    /// Writes the folder; it appears whole or not at all.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn publish(&self, folder: &Path) -> Result<()> {
        publish_folder(folder, "checkpoint", |folder| {
            match self.lora {
                Some(config) => {
                    // `.` and `..` have no name of their own.
                    let whole = self.source.canonicalize().ok();
                    let name = self.source.file_name().or(whole.as_deref().and_then(Path::file_name));
                    let base = name.map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                    let tensors = self.trained.iter().map(|(name, var)| (in_adapter(name), var.as_tensor()));
                    write_tensors(&folder.join(ADAPTER), tensors.collect())?;
                    write_adapter_config(config, &base, folder)?;
                }
                None => write_model(&self.config.raw, named(self.trained), folder)?,
            }
            copy_companions(self.source, folder, |name| self.lora.is_none() || name != "generation_config.json")?;
            let parts = |(name, [m, v]): (&String, &'_ [Tensor; 2])| {
                [(format!("exp_avg.{name}"), m.clone()), (format!("exp_avg_sq.{name}"), v.clone())]
            };
            let moments: BTreeMap<String, Tensor> = self.moments.iter().flat_map(parts).collect();
            write_tensors(&folder.join(OPTIMIZER), moments.iter().map(|(name, t)| (name.clone(), t)).collect())?;
            write_json(&folder.join(TRAINER_STATE), self.trainer)?;
            write_json(&folder.join(RUN_STATE), self.run)
        })
    }
}

/// The name in an adapter's file of a tensor that is trained: those of modules trained whole get PEFT's prefix there.
fn in_adapter(name: &str) -> String {
    if name.starts_with(PREFIX) { name.to_owned() } else { stored_name(name) }
}

/// Writes a model without training state into `folder`, with what the folder `source`, from which it came, has beside its
/// weights; it appears whole or not at all.
///
/// # Errors
/// If a file cannot be written.
pub fn publish_model(
    raw: &Map<String, Value>,
    tensors: BTreeMap<String, &Tensor>,
    source: &Path,
    folder: &Path,
) -> Result<()> {
    publish_folder(folder, "merge", |folder| {
        write_model(raw, tensors, folder)?;
        copy_companions(source, folder, |_| true)
    })
}

/// Variables as the tensors that they hold.
pub fn named(vars: &Vars) -> BTreeMap<String, &Tensor> {
    vars.iter().map(|(name, var)| (name.clone(), var.as_tensor())).collect()
}

/// Weights, and the base's configuration `raw` with every key kept and the element type that was really written.
fn write_model(raw: &Map<String, Value>, tensors: BTreeMap<String, &Tensor>, folder: &Path) -> Result<()> {
    write_tensors(&folder.join(WEIGHTS), tensors)?;
    let mut raw = raw.clone();
    let key = if raw.contains_key("torch_dtype") { "torch_dtype" } else { "dtype" };
    raw.insert(key.into(), json!("float32"));
    write_json(&folder.join("config.json"), &Value::Object(raw))
}

/// Writes tensors as f32.
fn write_tensors(path: &Path, tensors: BTreeMap<String, &Tensor>) -> Result<()> {
    let written = |error: karat_system::Error| at(path, "could not write it").because(&error);
    let entries = tensors.iter().map(|(name, tensor)| Entry::f32(name, tensor.dims())).collect();
    let mut writer = Writer::file(path, entries);
    for tensor in tensors.into_values() {
        let bytes: Vec<u8> = values(tensor)?.into_iter().flat_map(f32::to_le_bytes).collect();
        writer.write(&bytes).map_err(written)?;
    }
    writer.finish().map_err(written)
}

fn publish_folder(folder: &Path, purpose: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let io = |what: &'static str| move |e: std::io::Error| at(folder, what).because(&e);
    let passing = PassingFolder::beside(folder, purpose).map_err(io("could not create a folder beside it"))?;
    fill(passing.path())?;
    passing.replace(folder).map_err(io("could not give the folder its name"))
}

fn copy_companions(source: &Path, folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
    for name in COMPANIONS.into_iter().filter(|name| wanted(name)) {
        let from = source.join(name);
        if from.is_file() {
            std::fs::copy(&from, folder.join(name)).map_err(|e| at(&from, "could not copy it").because(&e))?;
        }
    }
    Ok(())
}

fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    fsio::write_json(path, value).map_err(|e| at(path, "could not write it").because(&e))
}

/// Whether the folder holds the checkpoint of just this state.
pub fn says(folder: &Path, trainer: &TrainerState, run: &RunState) -> bool {
    RunState::read(folder).is_ok_and(|there| there == *run) && TrainerState::read(folder).is_ok_and(|t| t == *trainer)
}

/// Puts the weights and moments of `folder` into `learner` and returns what it says of its run.
///
/// # Errors
/// If the folder belongs to another plan, or a file or tensor is missing or broken.
pub fn restore(
    folder: &Path,
    fingerprint: &str,
    lora: bool,
    learner: &mut Learner,
    device: &Device,
) -> Result<(TrainerState, RunState)> {
    let run = RunState::read(folder)?;
    if run.fingerprint != fingerprint {
        return Err(at(
            folder,
            format!(
                "this checkpoint belongs to another run (its fingerprint is {:.12}, this plan's is {fingerprint:.12}): \
                 data, base, method or plan changed; start anew or restore them",
                run.fingerprint
            ),
        ));
    }
    let trainer = TrainerState::read(folder)?;
    let file = Layout::of_file(&folder.join(if lora { ADAPTER } else { WEIGHTS }))?;
    for (name, var) in &learner.trained {
        let stored = if lora { in_adapter(name) } else { name.clone() };
        set(var, file.read(&stored, var.dims())?, device)?;
    }
    let file = Layout::of_file(&folder.join(OPTIMIZER))?;
    for (name, [m, v]) in &mut learner.moments {
        for (moment, key) in [(m, "exp_avg"), (v, "exp_avg_sq")] {
            let numbers = file.read(&format!("{key}.{name}"), moment.dims())?;
            *moment = Tensor::from_vec(numbers, moment.dims(), device).map_err(failed)?;
        }
    }
    Ok((trainer, run))
}

/// Deletes the oldest checkpoints of this run beyond `limit` (0 keeps all), never the last nor `keep`.
///
/// # Errors
/// If a folder cannot be read or deleted.
pub fn rotate(output: &Path, fingerprint: &str, limit: usize, last: usize, keep: Option<usize>) -> Result<()> {
    if limit == 0 {
        return Ok(());
    }
    let entries = std::fs::read_dir(output).map_err(|e| at(output, "could not list it").because(&e))?;
    let mut steps: Vec<usize> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix("checkpoint-")?.parse().ok())
        .filter(|&step| RunState::read(&folder(output, step)).is_ok_and(|run| run.fingerprint == fingerprint))
        .collect();
    steps.sort_unstable();
    let spare = steps.len().saturating_sub(limit);
    let old = steps.into_iter().filter(|&step| step != last && Some(step) != keep);
    old.map(|step| folder(output, step))
        .take(spare)
        .try_for_each(|folder| fsio::remove_folder(&folder).map_err(|e| at(&folder, "could not delete it").because(&e)))
}
