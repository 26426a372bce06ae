//! A GGUF file as a model's folder without copying its weights: what a backend that runs such files
//! as they are opens, and where the tokenizer and the template are found.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use karat_system::cache_root;

use super::decoder::GgufDecoder;
use super::gguf::Gguf;
use super::{tokenizer, write_companions};
use crate::backend::Dtype;
use crate::fsio::{PassingFolder, sha256};
use crate::{Error, Result};

/// The GGUF file that `named` is, or that is the only one in the folder `named` without a model's
/// configuration.
pub fn gguf_in(named: &Path) -> Option<PathBuf> {
    let is_gguf = |path: &Path| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) && path.is_file();
    if is_gguf(named) {
        return Some(named.into());
    }
    if !named.is_dir() || named.join("config.json").is_file() {
        return None;
    }
    let entries = std::fs::read_dir(named).ok()?.flatten().map(|entry| entry.path());
    let mut files = entries.filter(|path| is_gguf(path));
    files.next().filter(|_| files.next().is_none())
}

/// Whether the weights of the model in `folder` lie in a GGUF file.
pub fn has_gguf_weights(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().to_lowercase()).collect();
    !names.iter().any(|name| name.starts_with("model.safetensors")) && names.iter().any(|name| name.ends_with(".gguf"))
}

/// A folder in Karat's cache with the configuration, the tokenizer and the chat template of the
/// GGUF file `path`, and a link to the file itself. It is made once for a file of this name, size
/// and time.
///
/// # Errors
/// As [`import_gguf`](super::import_gguf); no folder to cache in.
pub fn gguf_view(path: &Path) -> Result<PathBuf> {
    let opened = |e| Error::io("open the GGUF file", path, e);
    let file = path.canonicalize().map_err(opened)?;
    let metadata = file.metadata().map_err(opened)?;
    let changed = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let key = format!("{} {} {changed:?} {}", file.display(), metadata.len(), env!("CARGO_PKG_VERSION"));
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let folder = cache_root()?.join("gguf").join(format!("{stem}-{}", &sha256(key.as_bytes())[..12]));
    if folder.join("config.json").is_file() {
        return Ok(folder);
    }
    let gguf = Gguf::open(&file)?;
    let decoder = GgufDecoder::read(&gguf)?;
    let tokenizer = tokenizer::read(&gguf, decoder.vocab, decoder.context)?;
    let made = |e| Error::io("create the folder", &folder, e);
    std::fs::create_dir_all(folder.parent().unwrap_or(&folder)).map_err(made)?;
    let passing = PassingFolder::beside(&folder, "gguf").map_err(made)?;
    write_companions(&gguf, &decoder, &tokenizer, Dtype::F32, passing.path())?;
    link(&file, &passing.path().join("model.gguf")).map_err(made)?;
    match passing.publish(&folder) {
        // Another process made the same meanwhile.
        Err(_) if folder.join("config.json").is_file() => Ok(folder),
        published => published.map(|()| folder.clone()).map_err(made),
    }
}

#[cfg(unix)]
fn link(file: &Path, at: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(file, at)
}

#[cfg(not(unix))]
fn link(file: &Path, at: &Path) -> std::io::Result<()> {
    std::fs::hard_link(file, at)
}
