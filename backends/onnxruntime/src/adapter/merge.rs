//! A checkpoint with an adapter folded into its weights, as it would be shipped: a folder in the
//! layout of the base.
//!
//! Every tensor is read as f32, merged where the adapter says so and written as f32, one after the
//! other; of a large model a few tensors are in memory at once. The configuration keeps every key
//! but those that would no longer be true.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use karat_backend::{BackendError, Dtype};
use karat_model::checkpoint::CheckpointLayout;
use karat_model::peft::{Adapter, tied_embedding};
use karat_model::publish::copy_companions;
use karat_model::publish::written_in_f32;
use karat_model::{EMBEDDING, HEAD, ModelConfig, Rounding};
use karat_system::fsio::{self, PassingFolder};
use karat_system::safetensors::{Entry, Writer};
use serde_json::{Map, Value, json};

use crate::config;
use crate::files::publish;

/// Numbers of a large tensor that are in memory at once.
const STRETCH: usize = 4 << 20;

/// Writes the model in `base` with the adapter in `adapter` merged into `folder`, whole or not at
/// all; returns what its user should know.
///
/// # Errors
/// A folder that holds something, a broken model or adapter, one of another base, a disk error.
pub fn write(base: &Path, adapter: &Path, folder: &Path) -> Result<Vec<String>, BackendError> {
    if fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) {
        let place = folder.display();
        return Err(BackendError::usage(format!("{place} already holds something; merge into a new folder")));
    }
    let checkpoint = CheckpointLayout::of_folder(base)?;
    let disk = |e: &dyn std::error::Error| {
        BackendError::failed(format!("could not write the merged model {}", folder.display())).because(e)
    };
    // Removed when dropped, whatever fails below.
    let temporary = PassingFolder::beside(folder, "merge").map_err(|e| disk(&e))?;
    let inside = temporary.path();

    let mut read = config::read(base)?;
    read.check_tensors(&checkpoint)?;
    read.settle_head(&checkpoint)?;
    let adapter = Adapter::open(adapter, &read.linears())?;
    let config = configuration(&read, &checkpoint, &adapter)?;
    fsio::write_json(&inside.join("config.json"), &config).map_err(|e| disk(&e))?;
    copy_companions(base, inside, |_| true)?;
    let rounding = tensors(&checkpoint, &adapter, &inside.join("model.safetensors"))?;
    publish(temporary, folder).map_err(|e| disk(&e))?;
    Ok([read.warnings, adapter.warnings().to_vec(), rounding.warning().into_iter().collect()].concat())
}

/// The base's configuration with the element type that is written, and with a head of its own if
/// the adapter brings one.
fn configuration(
    read: &ModelConfig,
    checkpoint: &CheckpointLayout,
    adapter: &Adapter,
) -> Result<Map<String, Value>, BackendError> {
    let mut config = written_in_f32(&read.raw);
    let saves = |name: &str| adapter.saved().any(|saved| saved == name);
    let tied = read.tied;
    if tied && saves(EMBEDDING) && !saves(HEAD) {
        return Err(tied_embedding());
    }
    if tied && saves(HEAD) {
        config.insert("tie_word_embeddings".into(), json!(false));
    }
    let there = |name: &str| checkpoint.shape(name).is_some() || (tied && name == HEAD);
    if let Some(name) = adapter.saved().find(|name| !there(name)) {
        return Err(adapter.unknown_tensor(name));
    }
    Ok(config)
}

/// Writes the tensors; returns what the merged ones would lose in the type that they were stored
/// in.
fn tensors(checkpoint: &CheckpointLayout, adapter: &Adapter, path: &Path) -> Result<Rounding, BackendError> {
    let disk =
        |e: &dyn std::error::Error| BackendError::failed(format!("could not write {}", path.display())).because(e);
    let mut names: BTreeSet<&str> = checkpoint.names().collect();
    names.extend(adapter.saved());
    let shape = |name: &str| {
        let own = checkpoint.shape(name);
        own.or_else(|| adapter.saved_shape(name)).unwrap_or_default().to_vec()
    };
    let mut writer = Writer::file(path, names.iter().map(|name| Entry::f32(*name, &shape(name))).collect());
    let modules: BTreeSet<&str> = adapter.modules().collect();
    let mut rounding = Rounding::default();
    for name in names {
        let shape = shape(name);
        let rows = shape.first().copied().unwrap_or(1);
        let merged = name.strip_suffix(".weight").filter(|module| modules.contains(module));
        // A merge wants the whole matrix; anything else passes through in stretches.
        let step = match merged {
            Some(_) => rows.max(1),
            None => (STRETCH / shape.iter().skip(1).product::<usize>().max(1)).max(1),
        };
        for start in (0..rows).step_by(step) {
            let part = start..rows.min(start + step);
            let mut values = match adapter.saved_rows(name, &shape, part.clone()) {
                Some(values) => values?,
                None => checkpoint.read_rows(name, &shape, part)?,
            };
            if let Some(module) = merged {
                let dtype = checkpoint.dtype(name, &shape).unwrap_or_default();
                let before = (dtype != Dtype::F32).then(|| values.clone());
                adapter.merge(module, &mut values)?;
                if let Some(before) = before {
                    rounding.add(dtype, &before, &values);
                }
            }
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            writer.write(&bytes).map_err(|e| disk(&e))?;
        }
    }
    writer.finish().map_err(|e| disk(&e))?;
    Ok(rounding)
}
