//! Export folders as files: waited for, listed, published whole, and the adapters in them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use karat_backend::{BackendError, NamedAdapter};
use karat_model::peft::Adapter;
use karat_system::fsio;

use super::flatbuffer::adapter_file;
use crate::adapter::transposed;
use crate::adapter_inputs::{BASE, BaseRecord, check_base};
use crate::weight_format::WeightFormat;

/// Hold of one export in a cache, waited for. The file goes when the hold ends: whoever waited for
/// it then finds the finished export, and should that have failed, two at once lose no more than
/// time.
pub struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Waits for it.
    ///
    /// # Errors
    /// If the file cannot be made or locked.
    pub fn take(cache: &Path, key: &str) -> Result<Lock, BackendError> {
        let path = cache.join(format!(".{key}.lock"));
        let taken = fs::create_dir_all(cache).and_then(|()| File::create(&path)).and_then(|file| {
            match file.lock() {
                // A file system without locks: two at once lose no more than time.
                Err(e) if e.kind() != std::io::ErrorKind::Unsupported => Err(e),
                _ => Ok(file),
            }
        });
        match taken {
            Ok(file) => Ok(Lock { path, _file: file }),
            Err(e) => Err(BackendError::failed(format!("could not lock {}: {e}", path.display()))),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // What stays behind if this fails is an empty file.
        let _ = fs::remove_file(&self.path);
    }
}

/// Files below `folder` and their bytes.
pub fn list(folder: &Path, prefix: &str, files: &mut BTreeMap<String, u64>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let facts = entry.metadata()?;
        match facts.is_dir() {
            true => list(&entry.path(), &format!("{name}/"), files)?,
            false => drop(files.insert(name, facts.len())),
        }
    }
    Ok(())
}

/// Writes an adapter beside a model that takes it: as it is (PEFT layout), as `{name}.onnx_adapter`
/// for onnxruntime-genai, and which base it belongs to.
///
/// # Errors
/// A broken adapter, one of another base, one that must be merged; a disk error.
pub fn write_adapter(
    named: &NamedAdapter,
    inputs: &BTreeMap<String, [usize; 2]>,
    precision: WeightFormat,
    base: &str,
    folder: &Path,
) -> Result<(), BackendError> {
    check_base(&named.path, base)?;
    let adapter = Adapter::open(&named.path, inputs)?;
    let disk = |e: &dyn std::error::Error| {
        BackendError::failed(format!("could not write the adapter into {}", folder.display())).because(e)
    };
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        let bytes = fs::read(named.path.join(name)).map_err(|e| disk(&e))?;
        fsio::write_atomic(&folder.join(name), &bytes).map_err(|e| disk(&e))?;
    }
    let file = adapter_file(&transposed(&adapter, inputs)?, inputs, precision)?;
    fsio::write_atomic(&folder.join(format!("{}.onnx_adapter", named.name)), &file).map_err(|e| disk(&e))?;
    fsio::write_json(&folder.join(BASE), &BaseRecord { base: base.into() }).map_err(|e| disk(&e))
}
