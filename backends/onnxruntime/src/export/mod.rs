//! A checkpoint becomes a folder with an ONNX model, once.
//!
//! The folder holds `model.onnx`, its weights in `model.onnx.data`, `genai_config.json` for onnxruntime-genai, copies of
//! the tokenizer's files, and `karat-onnx.json`, which says what the model was made from and how large its files must
//! be. It is written under a temporary name beside its final place and renamed, so a folder that is there is whole.

mod genai;
mod graph;
mod proto;

use std::fs;
use std::path::{Path, PathBuf};

use karat::backend::{BackendError, OpenConfig};
use karat::fsio;
use serde::{Deserialize, Serialize};

use crate::adapter::Adapter;
use crate::checkpoint::Checkpoint;
use crate::config::DecoderConfig;
use crate::options::Options;
use crate::runtime::cache_root;
use graph::{Source, write_decoder};

/// Raised when the graph or the manifest changes: older exports in a cache are then left alone and made anew.
const FORMAT: u32 = 1;
/// The model file in an export folder.
pub const MODEL: &str = "model.onnx";
/// Its weights.
pub const DATA: &str = "model.onnx.data";
/// The manifest in an export folder.
pub const MANIFEST: &str = "karat-onnx.json";
/// Copied along so that the folder is usable on its own.
const COMPANIONS: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
];

/// What an export folder says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// See the constant of this name.
    pub format: u32,
    /// SHA-256 over the content of model and adapter, the element type and the format.
    pub key: String,
    /// Layers.
    pub layers: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Number of logits.
    pub vocab: usize,
    /// Longest sequence.
    pub max_positions: usize,
    /// Parameters of the base model.
    pub parameters: u64,
    /// Parameters of the adapter that was merged, or 0.
    pub adapter_parameters: u64,
    /// Bytes of `model.onnx`.
    pub model_bytes: u64,
    /// SHA-256 of `model.onnx`.
    pub model_sha256: String,
    /// Bytes of `model.onnx.data`.
    pub data_bytes: u64,
}

/// An export on disk whose files are as long as its manifest says.
#[derive(Clone, Debug)]
pub struct Exported {
    /// The folder.
    pub folder: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
}

impl Exported {
    /// Opens an export folder and checks that it is whole.
    ///
    /// # Errors
    /// Missing or broken manifest, another format, missing, truncated or changed files.
    pub fn open(folder: &Path) -> Result<Self, BackendError> {
        let manifest: Manifest = fsio::read_json(&folder.join(MANIFEST)).map_err(|e| {
            BackendError::failed(format!("{} is no whole export of karat", folder.display())).because(&e)
        })?;
        let broken = |what: String| {
            BackendError::failed(format!(
                "the export {} is broken: {what}; remove it and export again",
                folder.display()
            ))
        };
        if manifest.format != FORMAT {
            return Err(broken(format!("its format is {}, this version reads {FORMAT}", manifest.format)));
        }
        for (name, expected) in [(MODEL, manifest.model_bytes), (DATA, manifest.data_bytes)] {
            let length = fs::metadata(folder.join(name)).map_err(|e| broken(format!("{name}: {e}")))?.len();
            if length != expected {
                return Err(broken(format!("{name} has {length} bytes, it was written with {expected}")));
            }
        }
        // The graph is small and decides everything; the weights are only measured, hashing them would cost seconds.
        let found = fsio::sha256_file(&folder.join(MODEL)).map_err(|e| broken(e.to_string()).because(&e))?;
        match found == manifest.model_sha256 {
            true => Ok(Exported { folder: folder.to_path_buf(), manifest }),
            false => Err(broken(format!("{MODEL} is not what was written"))),
        }
    }

    /// Whether a folder is meant as an export: it has a manifest or an ONNX model, and no safetensors to export from.
    pub fn is_meant_by(folder: &Path) -> bool {
        (folder.join(MANIFEST).is_file() || folder.join(MODEL).is_file())
            && !folder.join("model.safetensors").is_file()
            && !folder.join("model.safetensors.index.json").is_file()
    }
}

/// Exports `model` (with `adapter` merged) into `folder`, or reuses what is there if it was made from the same content.
///
/// # Errors
/// A broken or unsupported checkpoint or adapter, a folder that holds something else, a disk error. Nothing half-written
/// stays under the final name.
pub fn export_to(model: &Path, adapter: Option<&Path>, folder: &Path) -> Result<Exported, BackendError> {
    let config = DecoderConfig::read(model)?;
    let key = content_key(model, adapter)?;
    let occupied = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
    if occupied {
        let there = Exported::open(folder)?;
        return match there.manifest.key == key {
            true => Ok(there),
            false => Err(BackendError::failed(format!(
                "{} already holds the export of another model or adapter; remove it or choose another folder",
                folder.display()
            ))),
        };
    }
    write(&config, model, adapter, &key, folder)
}

/// Exports into `cache`, under a name made of the content; an earlier export of the same content is reused, and one that
/// was damaged since is replaced.
///
/// # Errors
/// As [`export_to`].
pub fn export_cached(model: &Path, adapter: Option<&Path>, cache: &Path) -> Result<Exported, BackendError> {
    let config = DecoderConfig::read(model)?;
    let key = content_key(model, adapter)?;
    let folder = cache.join(&key);
    if folder.join(MANIFEST).is_file() {
        match Exported::open(&folder) {
            Ok(exported) if exported.manifest.key == key => return Ok(exported),
            _ => fs::remove_dir_all(&folder).map_err(|e| {
                BackendError::failed(format!("could not remove the damaged export {}: {e}", folder.display()))
            })?,
        }
    }
    write(&config, model, adapter, &key, &folder)
}

fn content_key(model: &Path, adapter: Option<&Path>) -> Result<String, BackendError> {
    let hash = |folder: &Path| {
        let failed = |e| BackendError::failed(format!("could not hash {}", folder.display())).because(&e);
        fsio::sha256_model(folder).map_err(failed)
    };
    let adapter = adapter.map(hash).transpose()?.unwrap_or_default();
    Ok(fsio::sha256(format!("karat-onnx {FORMAT} f32\n{}\n{adapter}\n", hash(model)?).as_bytes()))
}

fn write(
    config: &DecoderConfig,
    model: &Path,
    adapter: Option<&Path>,
    key: &str,
    folder: &Path,
) -> Result<Exported, BackendError> {
    let checkpoint = Checkpoint::open(model)?;
    let adapter = adapter.map(Adapter::open).transpose()?;

    let parent = match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let disk = |e: &dyn std::error::Error| {
        BackendError::failed(format!("could not write the export {}", folder.display())).because(e)
    };
    fs::create_dir_all(parent).map_err(|e| disk(&e))?;
    // Removed when dropped, whatever fails below.
    let temporary = tempfile::Builder::new().prefix(".karat-onnx-").tempdir_in(parent).map_err(|e| disk(&e))?;
    let inside = temporary.path();

    let source = Source { checkpoint: &checkpoint, adapter: adapter.as_ref() };
    let written = write_decoder(config, &source, &inside.join(DATA))?;
    let bytes = written.model.into_bytes();
    fsio::write_atomic(&inside.join(MODEL), &bytes).map_err(|e| disk(&e))?;
    fsio::write_json(&inside.join("genai_config.json"), &genai::config(config)).map_err(|e| disk(&e))?;
    for name in COMPANIONS {
        let from = model.join(name);
        if from.is_file() {
            let text = fs::read(&from).map_err(|e| disk(&e))?;
            fsio::write_atomic(&inside.join(name), &text).map_err(|e| disk(&e))?;
        }
    }
    let manifest = Manifest {
        format: FORMAT,
        key: key.to_string(),
        layers: config.layers,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        vocab: config.vocab,
        max_positions: config.max_positions,
        parameters: written.parameters,
        adapter_parameters: adapter.as_ref().map_or(0, Adapter::parameters),
        model_bytes: bytes.len() as u64,
        model_sha256: fsio::sha256(&bytes),
        data_bytes: written.data_bytes,
    };
    fsio::write_json(&inside.join(MANIFEST), &manifest).map_err(|e| disk(&e))?;
    publish(temporary, folder).map_err(|e| disk(&e))?;
    // Another process may have been faster; what is there was made from the same content.
    Exported::open(folder)
}

/// Renames the finished folder into place. Loses gracefully against another process that published the same.
fn publish(temporary: tempfile::TempDir, folder: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o755))?;
    }
    match fs::rename(temporary.path(), folder) {
        Ok(()) => {
            // It has moved: nothing is left to remove.
            let _ = temporary.keep();
            Ok(())
        }
        Err(_) if folder.join(MANIFEST).is_file() => Ok(()),
        Err(error) => Err(error),
    }
}

/// What a session runs on: an export that is already there, or one made now where the options say.
///
/// # Errors
/// As [`export_to`]; an adapter for a model that is already exported.
pub fn open_or_export(config: &OpenConfig, options: &Options) -> Result<Exported, BackendError> {
    let adapter = config.adapter.as_deref();
    if Exported::is_meant_by(&config.model) {
        return match adapter {
            None => Exported::open(&config.model),
            Some(_) => Err(BackendError::unsupported(format!(
                "{} is already exported, and an adapter is merged when a model is exported; give the checkpoint instead",
                config.model.display()
            ))),
        };
    }
    match (&options.export_dir, &options.cache_dir) {
        (Some(folder), _) => export_to(&config.model, adapter, folder),
        (None, Some(cache)) => export_cached(&config.model, adapter, cache),
        (None, None) => export_cached(&config.model, adapter, &cache_root()?.join("onnx")),
    }
}
