//! Checkpoint folders of a training run: Hugging Face or PEFT layout, and beside it what a resume
//! needs.

use std::path::Path;

use karat_backend::state::{Progress, RUN_STATE, RunState, TRAINER_STATE, checkpoint_folder, checkpoint_step};
use karat_backend::{LoraConfig, Method, TrainPlan};
use karat_system::fsio;

use super::{Learner, Result, TensorState, TrainedModel};
use crate::checkpoint::{CheckpointLayout, WEIGHTS};
use crate::peft::{ADAPTER_WEIGHTS, stored_name, write_adapter_config};
use crate::publish::{Put, Shapes, at, copy_companions, publish_folder, write_json, write_model, write_tensors};

/// The optimizer's state.
const OPTIMIZER: &str = "optimizer.safetensors";

/// The moments by PyTorch's names.
const MOMENTS: [(TensorState, &str); 2] =
    [(TensorState::FirstMoment, "exp_avg."), (TensorState::SecondMoment, "exp_avg_sq.")];

/// The adapter that `plan` trains.
pub fn lora(plan: &TrainPlan) -> Option<&LoraConfig> {
    match &plan.method {
        Method::Full => None,
        Method::Lora(config) => Some(config),
    }
}

/// Writes the checkpoint of `progress` into `folder`; it appears whole or not at all.
///
/// # Errors
/// If the device fails or a file cannot be written.
pub fn publish(
    folder: &Path,
    base: TrainedModel<'_>,
    plan: &TrainPlan,
    learner: &impl Learner,
    trained: &Shapes,
    progress: &Progress,
) -> Result<()> {
    let lora = lora(plan);
    publish_folder(folder, "checkpoint", |folder| {
        match lora {
            Some(config) => {
                write_adapter(learner, trained, folder)?;
                write_adapter_config(config, &name_of(base.source), folder)?;
            }
            None => {
                let read = |name: &str, put: &mut Put<'_>| learner.read(TensorState::Parameter, name, put);
                write_model(&base.config.raw, trained, &read, folder)?;
            }
        }
        copy_companions(base.source, folder, |name| lora.is_none() || name != "generation_config.json")?;
        write_moments(learner, trained, folder)?;
        write_json(&folder.join(TRAINER_STATE), &progress.trainer_state(plan))?;
        write_json(&folder.join(RUN_STATE), &progress.run_state(plan, base.backend))
    })
}

/// The name of a model's folder.
fn name_of(folder: &Path) -> String {
    // `.` and `..` have no name of their own.
    let whole = folder.canonicalize().ok();
    let name = folder.file_name().or(whole.as_deref().and_then(Path::file_name));
    name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn write_adapter(learner: &impl Learner, trained: &Shapes, folder: &Path) -> Result<()> {
    let names = trained.keys().map(|name| (stored_name(name), name)).collect::<std::collections::BTreeMap<_, _>>();
    let shapes = names.iter().map(|(stored, name)| (stored.clone(), trained[*name].clone())).collect();
    let read = |stored: &str, put: &mut Put<'_>| learner.read(TensorState::Parameter, names[stored], put);
    write_tensors(&folder.join(ADAPTER_WEIGHTS), &shapes, &read)
}

fn write_moments(learner: &impl Learner, trained: &Shapes, folder: &Path) -> Result<()> {
    let of = |(_, key): &(TensorState, &str)| {
        let key = (*key).to_owned();
        trained.iter().map(move |(name, shape)| (format!("{key}{name}"), shape.clone()))
    };
    let shapes = MOMENTS.iter().flat_map(of).collect();
    write_tensors(&folder.join(OPTIMIZER), &shapes, &|stored, put| {
        let moment = MOMENTS.iter().find_map(|(part, key)| Some((*part, stored.strip_prefix(key)?)));
        moment.map_or(Ok(()), |(part, name)| learner.read(part, name, put))
    })
}

/// Puts the trained tensors and moments of `folder` into `learner` and returns how far its run had
/// come.
///
/// # Errors
/// If the folder belongs to another plan, or a file or tensor is missing or broken.
pub fn restore(folder: &Path, plan: &TrainPlan, learner: &mut impl Learner, trained: &Shapes) -> Result<Progress> {
    let progress = Progress::read(folder, plan)?;
    let adapter = lora(plan).is_some();
    let file = CheckpointLayout::of_file(&folder.join(if adapter { ADAPTER_WEIGHTS } else { WEIGHTS }))?;
    for (name, shape) in trained {
        let stored = if adapter { stored_name(name) } else { name.clone() };
        learner.write(TensorState::Parameter, name, file.read(&stored, shape)?)?;
    }
    let file = CheckpointLayout::of_file(&folder.join(OPTIMIZER))?;
    for (name, shape) in trained {
        for (part, key) in MOMENTS {
            learner.write(part, name, file.read(&format!("{key}{name}"), shape)?)?;
        }
    }
    learner.restored()?;
    Ok(progress)
}

/// Deletes the oldest checkpoints of the run of `plan` beyond its limit, never that of `progress`
/// nor the best.
///
/// # Errors
/// If a folder cannot be read or deleted.
pub fn rotate(plan: &TrainPlan, progress: &Progress) -> Result<()> {
    let (output, limit) = (&plan.output_dir, plan.save_total_limit);
    if limit == 0 {
        return Ok(());
    }
    let entries = std::fs::read_dir(output).map_err(|e| at(output, "could not list it").because(&e))?;
    let ours = |step: &usize| {
        RunState::read(&checkpoint_folder(output, *step)).is_ok_and(|run| run.fingerprint == plan.fingerprint)
    };
    let mut steps: Vec<usize> =
        entries.filter_map(|entry| checkpoint_step(entry.ok()?.file_name().to_str()?)).filter(ours).collect();
    steps.sort_unstable();
    let spare = steps.len().saturating_sub(limit);
    let kept = [Some(progress.step), progress.best_saved.map(|(_, step)| step)];
    let old = steps.into_iter().filter(|&step| !kept.contains(&Some(step))).take(spare);
    old.map(|step| checkpoint_folder(output, step))
        .try_for_each(|folder| fsio::remove_folder(&folder).map_err(|e| at(&folder, "could not delete it").because(&e)))
}
