//! Files as a run needs them: whole under their final name or not there, and named by what they
//! hold.

mod passing;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

pub use passing::{PASSING, PassingFolder, remove_folder, remove_rests};

/// Writes `bytes` to `path` so that a reader sees the old file or the new one, never a part:
/// temporary name in the same folder, sync, rename. Missing parent folders are made.
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
    let mut builder = tempfile::Builder::new();
    builder.prefix(PASSING);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // Temporary files are private; what is published should be as readable as the user's other
        // files (the umask).
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    // Dropping the temporary file removes it, whatever fails below.
    let mut file = builder.tempfile_in(folder).map_err(fail)?;
    file.write_all(bytes).map_err(fail)?;
    file.as_file().sync_all().map_err(fail)?;
    file.persist(path).map_err(|e| fail(e.error))?;
    // The new name must survive a power cut as the content does.
    #[cfg(unix)]
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail)?;
    Ok(())
}

/// Where a new folder is to be made, as an absolute path: nothing is there, or an empty folder.
///
/// # Errors
/// [`ErrorKind::Usage`](crate::ErrorKind::Usage) for a folder that holds something, hidden or not,
/// for a file, and for a place below a file; I/O.
pub fn new_folder(folder: &Path) -> Result<PathBuf> {
    use std::io::ErrorKind as Io;
    let refused = |what: &str| Error::usage(what).at(folder.display()).help("give --out a new folder, or an empty one");
    if folder.as_os_str().is_empty() {
        return Err(refused("an empty name is no folder"));
    }
    match fs::read_dir(folder).map(|mut entries| entries.next().is_none()) {
        Ok(true) => {}
        Ok(false) => return Err(refused("the folder is there and not empty; nothing was written")),
        Err(e) if e.kind() == Io::NotFound && !folder.is_symlink() => {}
        Err(e) if matches!(e.kind(), Io::NotFound | Io::NotADirectory) => {
            return Err(refused("something is there, or above it, that is no folder; nothing was written"));
        }
        Err(e) => return Err(Error::io("read the folder", folder, e)),
    }
    std::path::absolute(folder).map_err(|e| Error::io("resolve", folder, e))
}

/// Takes hold of a folder, which is made if it is not there, until the returned file is dropped:
/// two runs in one folder would write over each other.
///
/// # Errors
/// [`ErrorKind::Usage`](crate::ErrorKind::Usage) if another process (or another call) has hold of
/// it; I/O.
pub fn lock(folder: &Path) -> Result<File> {
    fs::create_dir_all(folder).map_err(|e| Error::io("create the folder", folder, e))?;
    let path = folder.join(LOCK);
    let file = File::create(&path).map_err(|e| Error::io("create", &path, e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Error::usage("another karat is working in this folder")
            .at(folder.display())
            .help("wait for it to end, or give --out another folder")),
        Err(fs::TryLockError::Error(e)) => Err(Error::io("lock", &path, e)),
    }
}

/// Whether somebody has hold of the folder of this [`LOCK`].
fn is_locked(lock: &Path) -> bool {
    File::open(lock).is_ok_and(|file| matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock)))
}

/// The file that [`lock`] leaves in a folder.
pub const LOCK: &str = ".lock";

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
    let text = regular(path).and_then(|()| fs::read_to_string(path)).map_err(|e| Error::io("read", path, e))?;
    serde_json::from_str(&text).map_err(|e| Error::data("broken JSON").at(path.display()).because(e))
}

/// Whether `path` is a file, to be asked before one that somebody else put there is opened: a pipe
/// lets its reader wait for ever, a device gives bytes without end.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] for a pipe, a device or a socket; as [`fs::metadata`]. A folder
/// is left to whoever reads it.
pub fn regular(path: &Path) -> io::Result<()> {
    let kind = fs::metadata(path)?.file_type();
    match kind.is_file() || kind.is_dir() {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is a pipe or a device, not a file")),
    }
}

/// The key of [`write_sealed_json`].
const SEAL: &str = "sha256";

/// Writes an object as [`write_json`] does, with a digest of it under `sha256`, by which
/// [`read_sealed_json`] sees that it was changed.
///
/// # Errors
/// As [`write_atomic`]; [`ErrorKind::Failed`](crate::ErrorKind::Failed) for what is no JSON object.
pub fn write_sealed_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let failed = |e| Error::failed("could not write JSON").at(path.display()).because(e);
    let mut object: serde_json::Map<String, Value> =
        serde_json::to_value(value).and_then(serde_json::from_value).map_err(failed)?;
    let text = serde_json::to_string(&object).map_err(failed)?;
    object.insert(SEAL.into(), sha256(text.as_bytes()).into());
    write_json(path, &object)
}

/// Reads what [`write_sealed_json`] wrote. An object without a digest is one of an earlier version,
/// and read as it is.
///
/// # Errors
/// As [`read_json`]; [`ErrorKind::Data`](crate::ErrorKind::Data) for an object that is not what its
/// digest says.
pub fn read_sealed_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let mut object: serde_json::Map<String, Value> = read_json(path)?;
    let broken = |e| Error::data("broken JSON").at(path.display()).because(e);
    if let Some(said) = object.shift_remove(SEAL) {
        let text = serde_json::to_string(&object).map_err(broken)?;
        if said.as_str() != Some(&sha256(text.as_bytes())) {
            return Err(Error::data("this file is not what was written: it was changed afterwards").at(path.display()));
        }
    }
    serde_json::from_value(Value::Object(object)).map_err(broken)
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
    let mut file = regular(path).and_then(|()| File::open(path)).map_err(|e| Error::io("read", path, e))?;
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

/// SHA-256 of each of some files, by name.
pub type Digests = BTreeMap<String, String>;

/// SHA-256 of every file of `folder` that `wanted` takes the name of, several at once; hidden files
/// and folders below it are left out.
///
/// # Errors
/// [`ErrorKind::Data`](crate::ErrorKind::Data) if there is no such folder; I/O.
#[cfg(feature = "digests")]
pub fn digests(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<Digests> {
    use rayon::prelude::*;
    let fail = |e| Error::io("read the folder", folder, e);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && wanted(&name) && entry.path().is_file() {
            names.push((name, entry.path()));
        }
    }
    names.into_par_iter().map(|(name, path)| Ok((name, sha256_file(&path)?))).collect()
}

/// Whether a backend may read a file of this name in a model's folder: weights, configuration,
/// tokenizer, template, an exported graph, a recording. Training state and words for people beside
/// them do not count.
pub fn is_of_model(name: &str) -> bool {
    let state = ["optimizer", "scheduler", "rng_state", "trainer_state", "karat_state", "training_args"];
    !(name.starts_with('.') || name.ends_with(".md") || state.iter().any(|s| name.starts_with(s)))
}

/// SHA-256 over those of the files of a model ([`is_of_model`]).
pub fn sha256_digests(digests: &Digests) -> String {
    let lines =
        digests.iter().filter(|(name, _)| is_of_model(name)).map(|(name, sha256)| format!("{name}\0{sha256}\n"));
    sha256(lines.collect::<String>().as_bytes())
}

/// SHA-256 over the files of a model's folder ([`is_of_model`]), whatever a backend reads there.
///
/// # Errors
/// [`ErrorKind::Data`](crate::ErrorKind::Data) if there is no such folder; I/O.
#[cfg(feature = "digests")]
pub fn sha256_model(folder: &Path) -> Result<String> {
    if !folder.is_dir() {
        return Err(Error::data("no such model folder").at(folder.display()).help("give a folder in its layout"));
    }
    Ok(sha256_digests(&digests(folder, is_of_model)?))
}

/// Bytes of the files of a model's folder ([`is_of_model`]).
///
/// # Errors
/// If the folder or a file of it cannot be read.
pub fn model_bytes(folder: &Path) -> Result<u64> {
    let read = |e| Error::io("read the folder", folder, e);
    let mut bytes = 0;
    for entry in fs::read_dir(folder).map_err(read)? {
        let entry = entry.map_err(read)?;
        let name = entry.file_name();
        // Of what a link leads to.
        let metadata = fs::metadata(entry.path()).map_err(read)?;
        if metadata.is_file() && is_of_model(&name.to_string_lossy()) {
            bytes += metadata.len();
        }
    }
    Ok(bytes)
}

/// Lowercase hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "digests")]
    #[test]
    fn a_model_is_named_by_what_is_read_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        put("config.json", "{}");
        put("model.safetensors", "weights");
        let before = sha256_model(folder.path()).unwrap();
        put("optimizer.safetensors", "moments");
        put("trainer_state.json", "{}");
        put("README.md", "words");
        assert_eq!(sha256_model(folder.path()).unwrap(), before);
        for name in ["model.safetensors", "model.onnx", "recording.jsonl"] {
            let before = sha256_model(folder.path()).unwrap();
            put(name, "other");
            assert_ne!(sha256_model(folder.path()).unwrap(), before, "{name}");
        }
        let error = sha256_model(&folder.path().join("missing")).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Data);
    }

    #[test]
    fn a_sealed_object_comes_back_as_it_was_and_not_if_it_was_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        let value = serde_json::json!({"z": [0.1, 1e300, 5e-324, u64::MAX], "a": {"b": null, "s": "\u{1b}é"}, "n": 3});
        write_sealed_json(&path, &value).unwrap();
        assert_eq!(read_sealed_json::<Value>(&path).unwrap(), value);
        let text = fs::read_to_string(&path).unwrap();
        for (from, to) in [("0.1", "0.2"), ("\"n\": 3", "\"n\": 4"), ("null", "0"), ("\"n\"", "\"m\"")] {
            assert!(text.contains(from), "{text}");
            fs::write(&path, text.replacen(from, to, 1)).unwrap();
            let error = read_sealed_json::<Value>(&path).unwrap_err();
            assert!(
                error.to_string().contains("x.json") && error.to_string().contains("changed afterwards"),
                "{error}"
            );
        }
        write_json(&path, &value).unwrap();
        assert_eq!(read_sealed_json::<Value>(&path).unwrap(), value);
        assert!(write_sealed_json(&path, &[1]).is_err());
    }

    #[test]
    fn a_new_folder_takes_the_place_of_nothing_but_an_empty_one() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("empty")).unwrap();
        fs::create_dir_all(at("hidden/.git")).unwrap();
        fs::write(at("file"), "x").unwrap();
        for name in ["new", "new/below", "empty", "empty/below"] {
            assert_eq!(new_folder(&at(name)).unwrap(), at(name), "{name}");
        }
        let mut taken = vec![PathBuf::new(), at("file"), at("file/below"), at("hidden")];
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("nowhere", at("link")).unwrap();
            taken.push(at("link"));
        }
        for path in taken {
            let error = new_folder(&path).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Usage, "{error}");
        }
        assert!(!at("new").exists(), "a question makes nothing");
    }

    #[cfg(unix)]
    #[test]
    fn a_written_file_has_the_permissions_of_any_new_file() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let mode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
        fs::write(folder.path().join("plain"), "x").unwrap();
        write_atomic(&folder.path().join("atomic"), b"x").unwrap();
        assert_eq!(mode("plain"), mode("atomic"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary file is left");
    }
}
