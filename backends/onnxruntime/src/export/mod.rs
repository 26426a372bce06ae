//! A checkpoint becomes a folder with an ONNX model, once.
//!
//! The folder holds `model.onnx`, its weights in `model.onnx.data`, `genai_config.json` for onnxruntime-genai, copies of
//! the tokenizer's files, and `karat-onnx.json`, which says what the model was made from and how large its files must
//! be. It is written under a temporary name beside its final place and renamed, so a folder that is there is whole.

mod build;
mod data;
mod genai;
mod graph;
mod manifest;
mod precision;
mod proto;
mod quantize;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use karat::backend::{BackendError, OpenConfig};
use karat::fsio;

use crate::adapter::Adapter;
use crate::checkpoint::Checkpoint;
use crate::config::DecoderConfig;
use crate::options::Options;
use crate::runtime::cache_root;
use build::Source;
use graph::write_decoder;
use manifest::FORMAT;

pub(crate) use build::transpose;
pub use manifest::{AdapterMode, Exported, Manifest};
pub use precision::Precision;

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

/// What is to be exported.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The checkpoint's folder (Hugging Face layout).
    pub model: &'a Path,
    /// An adapter's folder (PEFT layout), merged into the weights.
    pub adapter: Option<&'a Path>,
    /// What the weights become.
    pub weights: Precision,
    /// Whether adapters may be fed to the exported model.
    pub adapter_mode: AdapterMode,
}

impl<'a> Request<'a> {
    /// The base model alone, in f32.
    pub fn new(model: &'a Path) -> Self {
        Request { model, adapter: None, weights: Precision::F32, adapter_mode: AdapterMode::Merge }
    }

    /// With an adapter merged, if there is one.
    #[must_use]
    pub fn merging(self, adapter: Option<&'a Path>) -> Self {
        Request { adapter, ..self }
    }

    /// The hash of the base and the name of the export: a hash over everything that decides its bytes.
    fn keys(&self) -> Result<(String, String), BackendError> {
        let hash = |folder: &Path| {
            let failed = |e| BackendError::failed(format!("could not hash {}", folder.display())).because(&e);
            fsio::sha256_model(folder).map_err(failed)
        };
        let base = hash(self.model)?;
        let adapter = self.adapter.map(hash).transpose()?.unwrap_or_default();
        let (weights, mode) = (self.weights, self.adapter_mode.name());
        let key = fsio::sha256(format!("karat-onnx {FORMAT} {weights} {mode}\n{base}\n{adapter}\n").as_bytes());
        Ok((base, key))
    }
}

/// Exports into `folder`, or reuses what is there if it was made from the same content.
///
/// # Errors
/// A broken or unsupported checkpoint or adapter, a folder that holds something else, a disk error. Nothing half-written
/// stays under the final name.
pub fn export_to(request: &Request<'_>, folder: &Path) -> Result<Exported, BackendError> {
    let config = DecoderConfig::read(request.model)?;
    let (base, key) = request.keys()?;
    let occupied = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
    if occupied {
        let there = Exported::open(folder)?;
        return match there.manifest.key == key {
            true => Ok(there),
            false => Err(BackendError::failed(format!(
                "{} already holds the export of another model, adapter or element type; remove it or choose another \
                 folder",
                folder.display()
            ))),
        };
    }
    write(&config, request, base, key, folder)
}

/// Exports into `cache`, under a name made of the content; an earlier export of the same content is reused, and one that
/// was damaged since is replaced. Of several processes that want the same export one makes it, the others wait.
///
/// # Errors
/// As [`export_to`].
pub fn export_cached(request: &Request<'_>, cache: &Path) -> Result<Exported, BackendError> {
    let config = DecoderConfig::read(request.model)?;
    let (base, key) = request.keys()?;
    let folder = cache.join(&key);
    let _lock = Lock::take(cache, &key)?;
    if folder.join(MANIFEST).is_file() {
        match Exported::open(&folder) {
            Ok(exported) if exported.manifest.key == key => return Ok(exported),
            _ => fs::remove_dir_all(&folder).map_err(|e| {
                BackendError::failed(format!("could not remove the damaged export {}: {e}", folder.display()))
            })?,
        }
    }
    write(&config, request, base, key, &folder)
}

/// Hold of one export in a cache, waited for. The file goes when the hold ends: whoever waited for it then finds the
/// finished export, and should that have failed, two at once lose no more than time.
struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    fn take(cache: &Path, key: &str) -> Result<Lock, BackendError> {
        let path = cache.join(format!(".{key}.lock"));
        let taken = fs::create_dir_all(cache).and_then(|()| File::create(&path)).and_then(|file| {
            file.lock()?;
            Ok(file)
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

fn write(
    config: &DecoderConfig,
    request: &Request<'_>,
    base: String,
    key: String,
    folder: &Path,
) -> Result<Exported, BackendError> {
    let checkpoint = Checkpoint::open(request.model)?;
    let adapter = request.adapter.map(Adapter::open).transpose()?;

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

    let source = Source {
        checkpoint: &checkpoint,
        adapter: adapter.as_ref(),
        adapter_inputs: request.adapter_mode == AdapterMode::Runtime,
        precision: request.weights,
    };
    let written = write_decoder(config, &source, &inside.join(DATA))?;
    let bytes = written.model.into_bytes();
    fsio::write_atomic(&inside.join(MODEL), &bytes).map_err(|e| disk(&e))?;
    fsio::write_json(&inside.join("genai_config.json"), &genai::config(config)).map_err(|e| disk(&e))?;
    for name in COMPANIONS {
        let from = request.model.join(name);
        if from.is_file() {
            let text = fs::read(&from).map_err(|e| disk(&e))?;
            fsio::write_atomic(&inside.join(name), &text).map_err(|e| disk(&e))?;
        }
    }
    let manifest = Manifest {
        format: FORMAT,
        key,
        base,
        weights: request.weights,
        adapter_mode: request.adapter_mode,
        adapter_inputs: written.adapter_inputs,
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

/// What a session runs on: an export that is already there, or one made now where the options say. In the adapter mode
/// `runtime` the adapter is not part of it.
///
/// # Errors
/// As [`export_to`]; an adapter for an export that takes none; an element type that is not the export's.
pub fn open_or_export(config: &OpenConfig, options: &Options) -> Result<Exported, BackendError> {
    if Exported::is_meant_by(&config.model) {
        let exported = Exported::open(&config.model)?;
        let place = config.model.display();
        let (written, mode) = (exported.manifest.weights, exported.manifest.adapter_mode);
        if options.weights.is_some_and(|wanted| wanted != written) {
            return Err(BackendError::unsupported(format!("{place} is already exported as {written}")));
        }
        if config.adapter.is_some() && mode == AdapterMode::Merge {
            return Err(BackendError::unsupported(format!(
                "{place} is already exported, and an adapter is merged when a model is exported; give the checkpoint \
                 instead, or export it with the adapter mode runtime"
            )));
        }
        return Ok(exported);
    }
    let request = Request {
        model: &config.model,
        adapter: config.adapter.as_deref().filter(|_| options.adapter_mode == AdapterMode::Merge),
        weights: options.weights.unwrap_or(config.dtype.into()),
        adapter_mode: options.adapter_mode,
    };
    match (&options.export_dir, &options.cache_dir) {
        (Some(folder), _) => export_to(&request, folder),
        (None, Some(cache)) => export_cached(&request, cache),
        (None, None) => export_cached(&request, &cache_root()?.join("onnx")),
    }
}
