//! A model's tensors as candle variables: loaded or drawn, merged with an adapter, handed to a
//! decoder.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{Device, Tensor, Var};
use karat_model::checkpoint::CheckpointLayout;
use karat_model::peft::{Adapter, tied_embedding};
use karat_model::publish::Shapes;
use karat_model::tensors::check_strays;
use karat_model::{Architecture, EMBEDDING, HEAD, ModelConfig, Rounding};
use karat_system::memory;

use crate::{Result, failed};

/// Tensors by their names in files, in f32.
pub type Vars = BTreeMap<String, Var>;

/// Which tensors a model has.
pub enum Spec<'a> {
    /// One of the families that are trained.
    Trained(&'a mut ModelConfig),
    /// One of the others.
    Family(&'a mut Architecture),
}

impl Spec<'_> {
    /// Their names and shapes once the files were looked at.
    fn settle(&mut self, files: &CheckpointLayout) -> Result<Shapes> {
        match self {
            Spec::Trained(config) => {
                config.check_tensors(files)?;
                config.settle_head(files)?;
                Ok(config.tensors().collect())
            }
            Spec::Family(architecture) => {
                architecture.check_tensors(files)?;
                architecture.settle_head(files)?;
                Ok(architecture.tensors().collect())
            }
        }
    }
}

/// Loads the weights of a model's folder, each made a `T` of its numbers and shape, with `adapter`
/// put into them, and what the sum would lose in the element type of the files.
///
/// # Errors
/// For missing, misshapen or unexpected tensors, by name, before anything is allocated for them; as
/// [`Adapter::merge`].
pub fn load<T>(
    mut spec: Spec<'_>,
    folder: &Path,
    adapter: Option<&Adapter>,
    device: &Device,
    made: impl Fn(Vec<f32>, Vec<usize>, &Device) -> candle_core::Result<T>,
) -> Result<(BTreeMap<String, T>, Rounding)> {
    let files = CheckpointLayout::of_folder(folder)?;
    let shapes = spec.settle(&files)?;
    check_strays(&files, |name| shapes.contains_key(name))?;
    check_saved(&shapes, adapter)?;
    let (mut tensors, mut rounding) = (BTreeMap::new(), Rounding::default());
    for (name, shape) in shapes {
        let mut values = files.read(&name, &shape)?;
        if let Some(adapter) = adapter {
            let before = values.clone();
            merge(adapter, &name, &shape, &mut values)?;
            if let (true, Some(dtype)) = (before != values, files.dtype(&name, &shape)) {
                rounding.add(dtype, &before, &values);
            }
        }
        tensors.insert(name, made(values, shape, device).map_err(failed)?);
    }
    Ok((tensors, rounding))
}

/// Refuses whole tensors of an adapter that the model has no place for.
fn check_saved(shapes: &Shapes, adapter: Option<&Adapter>) -> Result<()> {
    let Some(adapter) = adapter else { return Ok(()) };
    if !shapes.contains_key(HEAD) && adapter.saved().any(|name| name == EMBEDDING) {
        return Err(tied_embedding());
    }
    match adapter.saved().find(|saved| !shapes.contains_key(*saved)) {
        Some(name) => Err(adapter.unknown_tensor(name)),
        None => Ok(()),
    }
}

/// Puts what `adapter` has for the tensor `name` into its `values`.
fn merge(adapter: &Adapter, name: &str, shape: &[usize], values: &mut Vec<f32>) -> Result<()> {
    if let Some(saved) = adapter.saved_rows(name, shape, 0..shape[0]) {
        *values = saved?;
    }
    name.strip_suffix(".weight").map_or(Ok(()), |module| adapter.merge(module, values))
}

/// Draws the weights with [`ModelConfig::draw`], with `adapter` put into them.
///
/// # Errors
/// If the machine has no room; as [`Adapter::merge`].
pub fn random(config: &ModelConfig, seed: u64, adapter: Option<&Adapter>, device: &Device) -> Result<Vars> {
    config.check_memory(memory::available())?;
    check_saved(&config.tensors().collect(), adapter)?;
    let draw = |(name, shape): (String, Vec<usize>)| {
        let mut values = config.draw(seed, &name, &shape);
        if let Some(adapter) = adapter {
            merge(adapter, &name, &shape, &mut values)?;
        }
        Ok((name, Var::from_vec(values, shape, device).map_err(failed)?))
    };
    config.tensors().map(draw).collect()
}

/// The tensors that a decoder is made of. What `learned` says is handed over as a variable, so that
/// gradients are kept for it.
pub fn handles<'a>(
    vars: impl IntoIterator<Item = (&'a String, &'a Var)>,
    learned: impl Fn(&str) -> bool,
) -> HashMap<String, Tensor> {
    let handle = |(name, var): (&String, &Var)| {
        let tensor = if learned(name) { var.as_tensor().clone() } else { var.as_detached_tensor() };
        (name.clone(), tensor)
    };
    vars.into_iter().map(handle).collect()
}

/// The numbers of a tensor, row-major.
///
/// # Errors
/// If the device fails.
pub fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all().and_then(|flat| flat.to_vec1()).map_err(failed)
}

/// Puts `values` into a variable.
///
/// # Errors
/// If the device fails.
pub fn set(var: &Var, values: Vec<f32>, device: &Device) -> Result<()> {
    Tensor::from_vec(values, var.dims(), device).and_then(|tensor| var.set(&tensor)).map_err(failed)
}

/// Names and shapes of `vars`.
pub fn shapes(vars: &Vars) -> Shapes {
    vars.iter().map(|(name, var)| (name.clone(), var.dims().to_vec())).collect()
}
