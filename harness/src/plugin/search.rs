//! Where plugins are looked for.
//!
//! In this order: an explicit path; the folders of `KARAT_BACKEND_PATH`; beside the executable, in
//! `deps/` first (that is where cargo writes the plugins it builds for a binary or a test; the
//! copies one level up can be stale); `../lib/karat` from the executable (an installed tree);
//! `karat/backends` in the XDG data folder. Never the current folder: what a command loads must not
//! depend on where it was typed.

use std::collections::{BTreeMap, BTreeSet};
use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};

use super::{BUILD, Plugin};
use crate::error::{Error, Result};

/// The environment variable that lists folders to look in first, separated as in `PATH`.
const VARIABLE: &str = "KARAT_BACKEND_PATH";

/// Why a folder is searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// Named by the caller.
    Given,
    /// Listed in `KARAT_BACKEND_PATH`.
    Variable,
    /// Beside the executable.
    Executable,
    /// `../lib/karat` from the executable.
    Installed,
    /// The user's data folder.
    Data,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::Given => "given",
            Origin::Variable => VARIABLE,
            Origin::Executable => "beside the executable",
            Origin::Installed => "installed",
            Origin::Data => "user data",
        })
    }
}

/// A folder to search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The folder; searched only if it is absolute.
    pub folder: PathBuf,
    /// Why.
    pub origin: Origin,
}

/// The folders to search, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Search {
    places: Vec<Place>,
}

impl Search {
    /// The documented order, from this process's environment and executable.
    pub fn from_env() -> Search {
        Search::new(
            std::env::var_os(VARIABLE).as_deref(),
            std::env::current_exe().ok().as_deref(),
            std::env::var_os("XDG_DATA_HOME").as_deref(),
            std::env::var_os("HOME").as_deref(),
        )
    }

    /// These folders only.
    pub fn in_folders<P: Into<PathBuf>>(folders: impl IntoIterator<Item = P>) -> Search {
        let places = folders.into_iter().map(|folder| Place { folder: folder.into(), origin: Origin::Given });
        Search { places: places.collect() }
    }

    fn new(
        variable: Option<&OsStr>,
        executable: Option<&Path>,
        xdg_data: Option<&OsStr>,
        home: Option<&OsStr>,
    ) -> Search {
        let mut search = Search::default();
        for folder in variable.iter().flat_map(std::env::split_paths) {
            search.add(folder, Origin::Variable);
        }
        if let Some(beside) = executable.and_then(Path::parent) {
            search.add(beside.join("deps"), Origin::Executable);
            search.add(beside.to_owned(), Origin::Executable);
            if let Some(prefix) = beside.parent() {
                search.add(prefix.join("lib/karat"), Origin::Installed);
            }
        }
        // An XDG variable that holds a relative path is to be ignored, says its specification.
        let data = xdg_data
            .map(PathBuf::from)
            .filter(|folder| folder.is_absolute())
            .or_else(|| home.filter(|home| !home.is_empty()).map(|home| Path::new(home).join(".local/share")));
        if let Some(data) = data {
            search.add(data.join("karat/backends"), Origin::Data);
        }
        search
    }

    fn add(&mut self, folder: PathBuf, origin: Origin) {
        if !folder.as_os_str().is_empty() {
            self.places.push(Place { folder, origin });
        }
    }

    /// The folders, in order.
    pub fn places(&self) -> &[Place] {
        &self.places
    }
}

/// Whether `name` can be the name of a backend, and is no path.
pub fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// The file of the backend `name`: `native` is `libkarat_native.so`.
fn file_name(name: &str) -> String {
    format!("{DLL_PREFIX}karat_{}{DLL_SUFFIX}", name.replace('-', "_"))
}

/// The backend in a file of this name, if it is one.
fn backend_name(file: &OsStr) -> Option<&str> {
    file.to_str()?.strip_prefix(DLL_PREFIX)?.strip_prefix("karat_")?.strip_suffix(DLL_SUFFIX).filter(|s| !s.is_empty())
}

/// Loads the backend `name`: the first file of its name in the places of `search`. A `name` with a
/// `/` in it is the path of a plugin file, and nothing is searched.
///
/// The first file counts even if it is broken: going on to another one would hide which of the two
/// is used.
///
/// # Errors
/// [`ErrorKind::Backend`](crate::ErrorKind::Backend) if there is none, with every place tried and
/// the command that builds it; or why the file cannot be loaded ([`Plugin::load`]).
pub fn find(name: &str, search: &Search) -> Result<Plugin> {
    if name.contains('/') {
        return Plugin::load(name);
    }
    if !is_name(name) {
        return Err(Error::usage(format!("`{name}` is not the name of a backend"))
            .help("a backend has a name like `native`; to name a plugin file, write its path with a `/` in it"));
    }
    let file = file_name(name);
    let mut tried = Vec::new();
    for Place { folder, origin } in search.places() {
        let path = folder.join(&file);
        let outcome = if !folder.is_absolute() {
            "skipped: not an absolute path"
        } else if path.symlink_metadata().is_ok() {
            return Plugin::load(&path);
        } else if folder.is_dir() {
            "no such file"
        } else {
            "no such folder"
        };
        tried.push(format!("  {} ({origin}): {outcome}", path.display()));
    }
    if tried.is_empty() {
        tried.push("  nowhere: there is no folder to search".into());
    }
    Err(Error::backend(format!("there is no backend `{name}`; tried"))
        .with_lines(tried)
        .help(format!("{BUILD}, or list the folder that holds `{file}` in {VARIABLE}")))
}

/// A plugin file in one of the searched places.
#[derive(Debug)]
pub struct FoundPlugin {
    /// The name to find it by.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// Why its folder was searched.
    pub origin: Origin,
    /// Files of the same name in later places, which this one hides.
    pub hidden: Vec<PathBuf>,
    /// The plugin, or why it cannot be used.
    pub plugin: Result<Plugin>,
}

/// Loads every plugin that [`find`] would find, in the order of their names.
pub fn list(search: &Search) -> Vec<FoundPlugin> {
    let mut files: BTreeMap<String, Vec<(PathBuf, Origin)>> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for Place { folder, origin } in search.places() {
        // A folder that is not there or cannot be read holds no plugins; `find` says so of each by
        // name.
        if !folder.is_absolute() || !seen.insert(folder) {
            continue;
        }
        for entry in folder.read_dir().into_iter().flatten().flatten() {
            if let Some(name) = backend_name(&entry.file_name()) {
                files.entry(name.to_owned()).or_default().push((entry.path(), *origin));
            }
        }
    }
    let found = files.into_iter().filter_map(|(name, paths)| {
        let mut paths = paths.into_iter();
        let (path, origin) = paths.next()?;
        let plugin = Plugin::load(&path);
        Some(FoundPlugin { name, path, origin, hidden: paths.map(|(path, _)| path).collect(), plugin })
    });
    found.collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn folders(search: &Search) -> Vec<&str> {
        search.places().iter().map(|place| place.folder.to_str().unwrap()).collect()
    }

    #[test]
    fn the_order_is_variable_executable_installed_data() {
        let search = Search::new(
            Some("/a::/b".as_ref()),
            Some("/opt/karat/bin/karat".as_ref()),
            Some("/data".as_ref()),
            Some("/home/me".as_ref()),
        );
        assert_eq!(
            folders(&search),
            ["/a", "/b", "/opt/karat/bin/deps", "/opt/karat/bin", "/opt/karat/lib/karat", "/data/karat/backends"]
        );
    }

    #[test]
    fn a_relative_xdg_folder_falls_back_to_home() {
        let search = Search::new(None, None, Some("data".as_ref()), Some("/home/me".as_ref()));
        assert_eq!(folders(&search), ["/home/me/.local/share/karat/backends"]);
        assert_eq!(Search::new(None, None, None, Some("".as_ref())), Search::default());
    }

    #[test]
    fn not_found_tells_every_place_and_the_command() {
        let folder = tempfile::tempdir().unwrap();
        let gone = folder.path().join("gone");
        let search = Search::in_folders([folder.path(), &gone, Path::new("relative")]);
        let error = find("nowhere-to-be", &search).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Backend);
        let file = format!("{DLL_PREFIX}karat_nowhere_to_be{DLL_SUFFIX}");
        let text = error.to_string();
        assert!(text.contains(&format!("{} (given): no such file", folder.path().join(&file).display())), "{text}");
        assert!(text.contains(&format!("{} (given): no such folder", gone.join(&file).display())), "{text}");
        assert!(text.contains(&format!("relative/{file} (given): skipped")), "{text}");
        assert!(error.help_text().unwrap().contains("cargo build -p karat-cli"), "{error:?}");
    }

    #[test]
    fn a_relative_folder_is_never_searched() {
        // The current folder of a test is its package; an empty or relative entry must not make a
        // file there count.
        let search = Search::new(Some("src:.".as_ref()), None, None, None);
        let text = find("native", &search).unwrap_err().to_string();
        assert_eq!(text.matches("not an absolute path").count(), 2, "{text}");
        assert!(list(&search).is_empty());
    }

    #[test]
    fn a_bare_file_name_is_no_backend_name() {
        let error = find("libkarat_native.so", &Search::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.help_text().unwrap().contains('/'), "{error:?}");
    }

    #[test]
    fn a_broken_first_file_is_not_passed_over() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for folder in [&first, &second] {
            std::fs::write(folder.path().join(file_name("x")), "no library").unwrap();
        }
        let search = Search::in_folders([first.path(), second.path()]);
        let error = find("x", &search).unwrap_err();
        assert!(error.place().unwrap().starts_with(first.path().to_str().unwrap()), "{error}");
        let list = list(&search);
        assert_eq!(list.len(), 1);
        assert!(list[0].plugin.is_err());
        assert_eq!(list[0].hidden, [second.path().join(file_name("x"))]);
    }

    #[test]
    fn only_plugin_files_have_a_backend_name() {
        assert_eq!(backend_name(format!("{DLL_PREFIX}karat_native_cuda{DLL_SUFFIX}").as_ref()), Some("native_cuda"));
        for other in ["libkarat_native.d", "libkarat_.so", "libort.so", "karat_native.so", "libkarat.so"] {
            assert_eq!(backend_name(other.as_ref()), None, "{other}");
        }
    }
}
