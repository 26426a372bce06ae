//! Faults of a suite's models that would show only after hours of training, found before it.
//!
//! Backends are loaded and asked for their descriptions; the configurations of models and adapters
//! that are there already, the headers of their weights and their texts are read; no weights are.

use std::path::PathBuf;

use super::Backends;
use super::choose::lacks;
use super::external_predictions::read_stored;
use super::renderings::Renderings;
use crate::backend::{Capability, peft};
use crate::data::examples::rephrased;
use crate::error::{Error, Result};
use crate::model_dir::check_files;
use crate::suite::{Checkpoints, NamedModel, Suite, SuiteModel, TrainMethod, TrainModel};
use crate::train::plan::order;

/// Refuses models that no later stage could carry out.
///
/// # Errors
/// A backend that is not there; usage, for one that cannot do what is asked of it; what is wrong
/// with a configuration, a header of weights or a file of texts.
pub fn precheck(suite: &Suite, renderings: &Renderings, backends: &dyn Backends) -> Result<()> {
    for model in suite.all_models() {
        one(&model, suite, renderings, backends).map_err(|e| {
            let what = format!("model {}: {}", model.name, e.what());
            rephrased(e, what)
        })?;
    }
    Ok(())
}

fn one(model: &SuiteModel, suite: &Suite, renderings: &Renderings, backends: &dyn Backends) -> Result<()> {
    let SuiteModel { name, entry, .. } = model;
    let NamedModel { backend, device, dtype, .. } = entry;
    if let Some(file) = &entry.predictions {
        return read_stored(file, Some(name), renderings.of(name)).map(drop);
    }
    if let Some(adapter) = &entry.adapter {
        peft::read_adapter_config(adapter).map_err(|e| Error::data("this adapter cannot be used").because(e))?;
    }
    let folders = [&entry.path, &entry.adapter].into_iter().flatten().filter(|path| path.is_dir());
    folders.map(PathBuf::as_path).try_for_each(check_files)?;
    let dtype = dtype.unwrap_or(suite.model.dtype);
    let can = |backend: &str, capabilities: &[Capability], device: &str| {
        let described = backends.backend(backend)?.backend.describe();
        match lacks(&described, capabilities, dtype, device) {
            None => Ok(()),
            Some(lack) => Err(Error::usage(format!("backend {backend} {lack}"))
                .help("`karat backends` lists what each does; backend = \"auto\" takes one that can")),
        }
    };
    let own = device.as_deref();
    if let Some(train) = &entry.train {
        let capability = match train.method {
            TrainMethod::Lora => Capability::TrainLora,
            TrainMethod::Full => Capability::TrainFull,
        };
        let trains = backend.as_deref().unwrap_or(&suite.model.backend);
        can(trains, &[capability], own.unwrap_or(&suite.model.device))?;
        saves_what_is_asked(model, train, suite, renderings)?;
    }
    let evaluates = backend.as_deref().unwrap_or(suite.eval_backend());
    let device = own.or(suite.eval.device.as_deref()).unwrap_or(&suite.model.device);
    can(evaluates, &[Capability::Score, Capability::Generate], device)
}

/// Refuses steps of `eval.checkpoints` after which a training saves nothing.
fn saves_what_is_asked(model: &SuiteModel, train: &TrainModel, suite: &Suite, renderings: &Renderings) -> Result<()> {
    // The plan of a training is long: it is laid out only where a step is named.
    let Some(asked) = suite.eval.checkpoints.as_ref().map(Checkpoints::steps).filter(|steps| !steps.is_empty()) else {
        return Ok(());
    };
    let rows = renderings.of(&model.name).train.len();
    let steps = order(rows, &train.hyperparameters.plan_options(model.seed))?.steps.len();
    let saved = train.hyperparameters.saved_steps(steps);
    let Some(missing) = asked.iter().find(|step| !saved.contains(step)) else { return Ok(()) };
    let list: Vec<String> = saved.iter().map(usize::to_string).collect();
    Err(Error::usage(format!("eval.checkpoints names step {missing}, which is not saved"))
        .help(format!("of {steps} steps {} are; save_every of [train] decides which", list.join(", "))))
}
