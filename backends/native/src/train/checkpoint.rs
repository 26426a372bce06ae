//! Checkpoint folders: Hugging Face or PEFT layout, and beside it what a resume needs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use karat_backend::LoraConfig;
use karat_backend::state::{RUN_STATE, RunState, TRAINER_STATE, TrainerState};
use karat_system::fsio;
use serde_json::{Value, json};

use crate::adapter;
use crate::error::Result;
use crate::files::{TensorFiles, at, publish_folder, write_tensors, written};
use crate::model::Decoder;
use crate::tensor::{Tensor, set, view};

const OPTIMIZER: &str = "optimizer.safetensors";
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

/// The two moments of AdamW for each trained tensor.
pub type Moments = BTreeMap<String, [Tensor; 2]>;

/// What goes into a checkpoint folder.
pub struct Checkpoint<'a> {
    /// The model, with its adapter if that is what is trained.
    pub model: &'a Decoder,
    /// The folder the model came from.
    pub source: &'a Path,
    /// Set for LoRA.
    pub lora: Option<&'a LoraConfig>,
    /// The optimizer's state.
    pub moments: &'a Moments,
    /// For the Hugging Face trainer's readers.
    pub trainer: &'a TrainerState,
    /// For a resume.
    pub run: &'a RunState,
}

/// The folder of step `step`.
pub fn folder(output: &Path, step: usize) -> PathBuf {
    output.join(format!("checkpoint-{step}"))
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
                    adapter::save(self.model, config, &base, folder)?;
                }
                None => write_model(self.model, folder)?,
            }
            copy_companions(self.source, folder, |name| self.lora.is_none() || name != "generation_config.json")?;
            let parts = |(name, [m, v]): (&String, &[Tensor; 2])| {
                [(format!("exp_avg.{name}"), m.clone()), (format!("exp_avg_sq.{name}"), v.clone())]
            };
            write_tensors(&folder.join(OPTIMIZER), &self.moments.iter().flat_map(parts).collect())?;
            write_json(&folder.join(TRAINER_STATE), self.trainer)?;
            write_json(&folder.join(RUN_STATE), self.run)
        })
    }
}

/// Writes a model without training state into `folder`, with what the folder `source`, from which it came, has beside its
/// weights; it appears whole or not at all.
///
/// # Errors
/// If a file cannot be written.
pub fn publish_model(model: &Decoder, source: &Path, folder: &Path) -> Result<()> {
    publish_folder(folder, "merge", |folder| {
        write_model(model, folder)?;
        copy_companions(source, folder, |_| true)
    })
}

/// Weights, and the base's configuration with every key kept and the element type that was really written.
fn write_model(model: &Decoder, folder: &Path) -> Result<()> {
    write_tensors(&folder.join("model.safetensors"), &model.tensors())?;
    let mut raw = model.config.raw.clone();
    let key = if raw.contains_key("torch_dtype") { "torch_dtype" } else { "dtype" };
    raw.insert(key.into(), json!("float32"));
    write_json(&folder.join("config.json"), &Value::Object(raw))
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
    fsio::write_json(path, value).map_err(|e| written(path, e))
}

/// Whether the folder holds the checkpoint of just this state.
pub fn says(folder: &Path, trainer: &TrainerState, run: &RunState) -> bool {
    RunState::read(folder).is_ok_and(|there| there == *run) && TrainerState::read(folder).is_ok_and(|t| t == *trainer)
}

/// Puts the weights and moments of `folder` into `trained` and `moments` and returns what it says of its run.
///
/// # Errors
/// If the folder belongs to another plan, or a file or tensor is missing or broken.
pub fn restore(
    folder: &Path,
    fingerprint: &str,
    lora: bool,
    trained: &BTreeMap<String, Tensor>,
    moments: &Moments,
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
    let fill = |file: &TensorFiles, name: &str, to: &Tensor| -> Result<()> {
        let from = file.read(name, to.dims())?;
        set(to, &view(&from)?)
    };
    let file = TensorFiles::of_file(&folder.join(if lora { adapter::WEIGHTS } else { "model.safetensors" }))?;
    for (name, t) in trained {
        let stored = if lora { adapter::stored_name(name) } else { name.clone() };
        fill(&file, &stored, t)?;
    }
    let file = TensorFiles::of_file(&folder.join(OPTIMIZER))?;
    for (name, [m, v]) in moments {
        fill(&file, &format!("exp_avg.{name}"), m)?;
        fill(&file, &format!("exp_avg_sq.{name}"), v)?;
    }
    Ok((trainer, run))
}

/// Deletes the oldest checkpoints of this run beyond `limit` (0 keeps all), never the last nor one of `keep`.
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
