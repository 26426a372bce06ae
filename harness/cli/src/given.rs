//! Paths that were typed. A wrong one is a mistake on the command line (exit code 2); what is missing or broken inside a
//! folder that is there is bad data (6).

use std::path::Path;

use karat::{Error, Result};

/// A file to read; `flag` is how it was given. What is no folder will do: a pipe is read like a file.
///
/// # Errors
/// Usage, if it is not there or a folder.
pub fn file(flag: &str, path: &Path) -> Result<()> {
    match (path.exists(), path.is_dir()) {
        (false, _) => Err(wrong(flag, "there is no such file", path)),
        (_, true) => Err(wrong(flag, "this is a folder, where a file is wanted", path)),
        _ => Ok(()),
    }
}

/// A folder to read.
///
/// # Errors
/// Usage, if it is not there or no folder.
pub fn folder(flag: &str, path: &Path) -> Result<()> {
    match (path.exists(), path.is_dir()) {
        (false, _) => Err(wrong(flag, "there is no such folder", path)),
        (_, false) => Err(wrong(flag, "this is a file, where a folder is wanted", path)),
        _ => Ok(()),
    }
}

/// A file or a folder.
///
/// # Errors
/// Usage, if it is not there.
pub fn either(flag: &str, path: &Path) -> Result<()> {
    if path.exists() { Ok(()) } else { Err(wrong(flag, "there is no such file or folder", path)) }
}

fn wrong(flag: &str, what: &str, path: &Path) -> Error {
    let here = std::env::current_dir().map_or_else(|_| "the current folder".into(), |here| here.display().to_string());
    let error = Error::usage(format!("{flag}: {what}")).at(path.display());
    if path.is_absolute() {
        error.help("correct the path")
    } else {
        error.help(format!("paths are relative to {here}"))
    }
}
