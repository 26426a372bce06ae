//! Files as a run needs them: whole under their final name or not there, and named by what they hold.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// Writes `bytes` to `path` so that a reader sees the old file or the new one, never a part: temporary name in the same
/// folder, sync, rename. Missing parent folders are made.
///
/// # Errors
/// Any I/O error, with the path; the temporary file is removed and an old file stays untouched.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(folder).map_err(|e| Error::io("create the folder", folder, e))?;
    let fail = |e| Error::io("write", path, e);
    // Dropping the temporary file removes it, whatever fails below.
    let mut file = tempfile::Builder::new().prefix(".karat-").tempfile_in(folder).map_err(fail)?;
    file.write_all(bytes).map_err(fail)?;
    file.as_file().sync_all().map_err(fail)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // Temporary files are private; what is published should be as readable as any file.
        file.as_file().set_permissions(fs::Permissions::from_mode(0o644)).map_err(fail)?;
    }
    file.persist(path).map_err(|e| Error::io("write", path, e.error))?;
    Ok(())
}

/// Writes a value as indented JSON with a final newline, atomically.
///
/// # Errors
/// See [`write_atomic`].
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::failed("could not write JSON").at(path.display()).because(e))?;
    text.push('\n');
    write_atomic(path, text.as_bytes())
}

/// Reads and parses a JSON file.
///
/// # Errors
/// Missing or unreadable file, or what is wrong with its JSON and where.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    serde_json::from_str(&text).map_err(|e| Error::data("broken JSON").at(path.display()).because(e))
}

/// SHA-256 of some bytes, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of a file's content, in hexadecimal.
///
/// # Errors
/// If it cannot be read.
pub fn sha256_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(|e| Error::io("read", path, e))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer).map_err(|e| Error::io("read", path, e))?;
        if n == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..n]);
    }
}

/// SHA-256 over the files of a model folder that decide its numbers and texts: weights, configuration, tokenizer,
/// template. Training state beside them does not count.
///
/// # Errors
/// If the folder or one of the files cannot be read.
pub fn sha256_model(folder: &Path) -> Result<String> {
    let entries = fs::read_dir(folder).map_err(|e| Error::io("read the folder", folder, e))?;
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Error::io("read the folder", folder, e))?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let weights = name.ends_with(".safetensors") && !name.starts_with("optimizer");
        let decides = matches!(
            name.as_str(),
            "config.json"
                | "generation_config.json"
                | "adapter_config.json"
                | "model.safetensors.index.json"
                | "tokenizer.json"
                | "tokenizer_config.json"
                | "chat_template.jinja"
        );
        if path.is_file() && (weights || decides) {
            files.push(path);
        }
    }
    files.sort();
    let mut hasher = Sha256::new();
    for file in &files {
        let name = file.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        hasher.update(format!("{name}\0{}\n", sha256_file(file)?));
    }
    Ok(hex(&hasher.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
