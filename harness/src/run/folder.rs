//! Whose a folder is: what a run may write into, and what `--fresh` may remove. Karat writes over
//! nothing that it did not write.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::data::files;
use crate::error::{Error, ErrorKind, Result};
use crate::fsio;
use crate::report::REPORT_JSON;
use crate::run::models::MODELS;
use crate::suite::Suite;
use crate::track::Tracking;

/// The first line of the effective suite in a run folder, by which it is told from one that
/// somebody wrote.
pub(super) const HEAD: &str =
    "# The effective suite of a run: defaults, file and overrides. Each run writes it anew.\n";
/// The effective suite in a run folder.
pub(crate) const SUITE: &str = "suite.toml";

/// What a run puts into its folder.
const OURS: [&str; 9] =
    [SUITE, "data.json", "train", "eval", "results", MODELS, "report", Tracking::FOLDER, fsio::LOCK];

/// Takes hold of a folder for a run: it is new or empty, or a run's. What a run that was killed
/// left half written there is removed. Held until the returned file is dropped.
///
/// # Errors
/// Usage, if something lies there that no run wrote, or another process is at work there; I/O.
pub fn take(folder: &Path) -> Result<File> {
    check(folder)?;
    let lock = fsio::lock(folder)?;
    fsio::remove_rests(folder)?;
    Ok(lock)
}

/// Refuses a folder with files that no run wrote.
fn check(folder: &Path) -> Result<()> {
    let names = names(folder)?;
    // Nothing of a run's but the lock is hidden, so hidden files are in no danger.
    let seen: Vec<&String> = names.iter().filter(|n| !n.starts_with('.')).collect();
    if seen.is_empty() {
        return Ok(());
    }
    let marked = std::fs::read(folder.join(SUITE)).is_ok_and(|text| text.starts_with(HEAD.as_bytes()));
    let locked = names.iter().any(|n| n == fsio::LOCK);
    let foreign = seen.iter().find(|n| !OURS.contains(&n.as_str()));
    let only_foreign = seen.iter().all(|n| !OURS.contains(&n.as_str()));
    // A folder of an earlier version has the lock, but no mark: then nothing else may be there. A
    // run that was stopped at once has the lock alone.
    if marked || (locked && (foreign.is_none() || only_foreign)) {
        return Ok(());
    }
    // `karat eval --predictions` of an earlier version left nothing but a report.
    if let [only] = seen.as_slice()
        && *only == "report"
        && folder.join(only).join(REPORT_JSON).is_file()
    {
        return Ok(());
    }
    let first = foreign.or(seen.first()).map_or_else(String::new, |n| format!("{n:?}"));
    Err(Error::usage(format!("this is no run folder: there is {first}, which no run wrote; nothing was written"))
        .at(folder.display())
        .help("give --out a new folder, an empty one, or that of an earlier run"))
}

/// The names in a folder that was asked for; none if it is not there.
///
/// # Errors
/// Usage, if a file is in its place; I/O.
pub(super) fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => {
            return Err(Error::io("create the folder", folder, e)
                .of_kind(ErrorKind::Usage)
                .help("give --out a folder"));
        }
        Err(e) => return Err(Error::io("read the folder", folder, e)),
    };
    let names = entries.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect::<std::io::Result<_>>();
    names.map_err(|e| Error::io("read the folder", folder, e))
}

/// Removes what an earlier run left in `folder`, so that `suite` can begin anew there. Only what a
/// run wrote is removed.
///
/// # Errors
/// Usage, if something else lies there, if the suite's own model or data lie there, or if a run is
/// at work; I/O.
pub fn remove(folder: &Path, suite: &Suite) -> Result<()> {
    let names = names(folder)?;
    if names.is_empty() {
        return Ok(());
    }
    let refuse = |why: String| {
        Err(Error::usage(format!("{why}, so --fresh does not remove anything"))
            .at(folder.display())
            .help("give --out the folder of an earlier run, or a new one"))
    };
    if !names.iter().any(|n| n == fsio::LOCK) {
        return refuse("this is no run folder".into());
    }
    if let Some(other) = names.iter().find(|n| !OURS.contains(&n.as_str()) && !n.starts_with(fsio::PASSING)) {
        return refuse(format!("there is {other:?} here, which no run wrote"));
    }
    let (data, all_models) = (&suite.data, suite.all_models());
    let mut inputs: Vec<PathBuf> = Vec::new();
    for (part, paths) in data.parts() {
        for path in paths.iter() {
            inputs.extend(files::found(path, part)?.files);
        }
    }
    let real = |path: &Path| path.canonicalize().map_err(|e| Error::io("resolve", path, e));
    if let Some(general) = &suite.eval.general {
        inputs.extend(files::found(&general.file, files::Part::Test)?.files);
    }
    let models = all_models.iter().flat_map(|m| [&m.entry.path, &m.entry.adapter, &m.entry.predictions]).flatten();
    for input in inputs.iter().chain(models) {
        if real(input)?.starts_with(real(folder)?) {
            return refuse(format!("the suite reads {} from this folder", input.display()));
        }
    }
    let _lock = fsio::lock(folder)?;
    for name in names.iter().filter(|n| *n != fsio::LOCK) {
        let path = folder.join(name);
        let removed = if path.is_dir() && !path.is_symlink() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        removed.map_err(|e| Error::io("remove", &path, e))?;
    }
    Ok(())
}
