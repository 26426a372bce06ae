//! The models of a run by name: `models/NAME` in its folder leads to the folder that was measured,
//! and `RUN:NAME` names it wherever a model is taken.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::nearest;

/// The folder of links in a run folder.
pub const MODELS: &str = "models";
/// Where runs lie that are named without a path.
const RUNS: &str = "runs";

/// Makes `models/NAME` of the run in `folder` lead to each of `models`; names that are no more go.
///
/// # Errors
/// I/O.
pub(super) fn link(folder: &Path, models: &[(String, PathBuf)]) -> Result<()> {
    let links = folder.join(MODELS);
    std::fs::create_dir_all(&links).map_err(|e| Error::io("create the folder", &links, e))?;
    for entry in std::fs::read_dir(&links).map_err(|e| Error::io("read the folder", &links, e))?.flatten() {
        // Nothing but links is the run's here.
        if entry.path().is_symlink() {
            std::fs::remove_file(entry.path()).map_err(|e| Error::io("remove", entry.path(), e))?;
        }
    }
    for (name, model) in models {
        let (link, model) = (links.join(name), absolute(model)?);
        // A path within the run survives that the run is moved.
        let target = match model.strip_prefix(absolute(folder)?) {
            Ok(inside) => Path::new("..").join(inside),
            Err(_) => model,
        };
        symlink(&target, &link).map_err(|e| Error::io("make a link", &link, e))?;
    }
    Ok(())
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_dir(target, link)
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::io("resolve", path, e))
}

/// The folder that `named` means: itself, or the model `NAME` of a run if it is written `RUN:NAME`
/// and is no path. `RUN` is a run's folder, or its name below `runs`.
///
/// # Errors
/// Usage, for a name that the run has not, with those it has.
pub fn resolve(named: &Path) -> Result<PathBuf> {
    let Some((run, name)) = named.to_str().and_then(|text| text.rsplit_once(':')).filter(|_| !named.exists()) else {
        return Ok(named.into());
    };
    let folders = [PathBuf::from(run), Path::new(RUNS).join(run)];
    let Some(links) = folders.iter().map(|folder| folder.join(MODELS)).find(|links| links.is_dir()) else {
        return Ok(named.into());
    };
    let mut there: Vec<String> = std::fs::read_dir(&links)
        .map_err(|e| Error::io("read the folder", &links, e))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    there.sort();
    if !there.iter().any(|known| known == name) {
        let meant =
            nearest(name, there.iter().map(String::as_str)).map_or(String::new(), |n| format!("did you mean {n}? "));
        return Err(Error::usage(format!("the run has no model {name:?}"))
            .at(named.display())
            .help(format!("{meant}it has {}", there.join(", "))));
    }
    // The folder itself, so that what lies beside it is found.
    let link = links.join(name);
    link.canonicalize().map_err(|e| {
        Error::io("find the model of the run", &link, e)
            .of_kind(crate::ErrorKind::Usage)
            .help("its checkpoint was removed: run the suite again")
    })
}
