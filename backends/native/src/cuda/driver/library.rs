//! Finding the driver and cuBLAS on this machine.
#![allow(unsafe_code)]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::Library;

/// Folders to look in first, separated as in `PATH`.
pub const FOLDERS: &str = "KARAT_CUDA_LIB";

/// A library to find.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Its usual name.
    pub what: &'static str,
    /// File names, the best first.
    pub names: &'static [&'static str],
    /// The remedy where it is missing.
    pub remedy: &'static str,
}

/// The driver.
pub const DRIVER: Wanted = Wanted {
    what: "the NVIDIA driver",
    names: if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so.1"] },
    remedy: "install the driver (580 or later) on the machine, or start the container with access to the GPU",
};

/// cuBLAS. That of CUDA 12 serves too.
pub const CUBLAS: Wanted = Wanted {
    what: "cuBLAS",
    names: if cfg!(windows) {
        &["cublas64_13.dll", "cublas64_12.dll"]
    } else {
        &["libcublas.so.13", "libcublas.so.12"]
    },
    remedy: "install it (`pip install nvidia-cublas`, or the CUDA toolkit) and name its folder in KARAT_CUDA_LIB",
};

/// A library that was found.
#[derive(Debug)]
pub struct FoundLibrary {
    /// It, loaded for as long as the process runs.
    pub library: &'static Library,
    /// Where: a path, or the name by which the system found it.
    pub place: PathBuf,
}

impl Wanted {
    /// Looks for it in [`FOLDERS`], where the system looks, where the toolkit and Python's wheels
    /// put it.
    ///
    /// # Errors
    /// One line that names it, the places where it was looked for, and what to do.
    pub fn find(&self) -> Result<FoundLibrary, String> {
        let mut tried = Vec::new();
        let mut broken = None;
        for (folder, from) in folders() {
            for name in self.names {
                let path = match &folder {
                    Some(folder) => folder.join(name),
                    None => PathBuf::from(name),
                };
                if folder.is_some() && !path.is_file() {
                    continue;
                }
                // SAFETY: the libraries' initialisers are NVIDIA's, made to be loaded into any
                // process.
                match unsafe { Library::new(&path) } {
                    // Never unloaded: the driver does not take that well.
                    Ok(library) => return Ok(FoundLibrary { library: Box::leak(Box::new(library)), place: path }),
                    Err(e) if folder.is_some() => broken = Some(format!("{}: {e}", path.display())),
                    Err(_) => {}
                }
            }
            if !tried.contains(&from) {
                tried.push(from);
            }
        }
        let names = self.names.join(" or ");
        let broken = broken.map_or(String::new(), |e| format!("; a file of that name cannot be loaded: {e}"));
        Err(format!("{} ({names}) was not found (looked in {}){broken}; {}", self.what, tried.join(", "), self.remedy))
    }
}

/// Where to look, with the words for it; nothing is where the system looks.
fn folders() -> Vec<(Option<PathBuf>, String)> {
    let mut all: Vec<(Option<PathBuf>, String)> = Vec::new();
    let mut named = |variable: &str, below: &[&str]| {
        for folder in std::env::var_os(variable).iter().flat_map(std::env::split_paths) {
            for below in below {
                let folder = if below.is_empty() { folder.clone() } else { folder.join(below) };
                if folder.is_dir() {
                    // The loader's path can be long and is known to whoever set it.
                    all.push((Some(folder), variable.to_owned()));
                }
            }
        }
    };
    named(FOLDERS, &[""]);
    // Dynamic loaders read this variable at the start of the process; folders added since then
    // count as well.
    named("LD_LIBRARY_PATH", &[""]);
    all.push((None, "the system's library path".into()));
    let mut named = |variable: &str, below: &[&str]| {
        if let Some(root) = std::env::var_os(variable).map(PathBuf::from) {
            all.extend(below.iter().map(|below| root.join(below)).filter(|folder| folder.is_dir()).map(|folder| {
                let words = format!("{} ({variable})", folder.display());
                (Some(folder), words)
            }));
        }
    };
    named("CUDA_HOME", &["lib64", "lib"]);
    named("CUDA_PATH", &["lib64", "lib", "bin"]);
    if let Some(venv) = std::env::var_os("VIRTUAL_ENV") {
        all.extend(wheels(Path::new(&venv)).into_iter().map(|folder| {
            let words = format!("{} (VIRTUAL_ENV)", folder.display());
            (Some(folder), words)
        }));
    }
    let usual = Path::new("/usr/local/cuda/lib64");
    if usual.is_dir() {
        all.push((Some(usual.to_owned()), usual.display().to_string()));
    }
    all
}

/// The folders of NVIDIA's wheels in a virtual environment.
fn wheels(venv: &Path) -> Vec<PathBuf> {
    let versions = std::fs::read_dir(venv.join("lib")).into_iter().flatten().flatten();
    let mut found = Vec::new();
    for version in versions {
        for package in ["cu13", "cublas"] {
            let folder = version.path().join("site-packages/nvidia").join(package).join("lib");
            if folder.is_dir() {
                found.push(folder);
            }
        }
    }
    found.sort();
    found
}

/// The driver, looked for once.
///
/// # Errors
/// As [`Wanted::find`].
pub fn driver() -> Result<&'static FoundLibrary, &'static str> {
    static FOUND: OnceLock<Result<FoundLibrary, String>> = OnceLock::new();
    FOUND.get_or_init(|| DRIVER.find()).as_ref().map_err(String::as_str)
}

/// cuBLAS, looked for once.
///
/// # Errors
/// As [`Wanted::find`].
pub fn cublas() -> Result<&'static FoundLibrary, &'static str> {
    static FOUND: OnceLock<Result<FoundLibrary, String>> = OnceLock::new();
    FOUND.get_or_init(|| CUBLAS.find()).as_ref().map_err(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_places_and_the_remedy() {
        let wanted = Wanted { what: "a library", names: &["libkarat-none.so.9"], remedy: "install it" };
        let error = wanted.find().unwrap_err();
        for part in ["a library", "libkarat-none.so.9", "the system's library path", "install it"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn wheels_of_a_virtual_environment_are_seen() {
        let venv = tempfile::tempdir().unwrap();
        let lib = venv.path().join("lib/python3.12/site-packages/nvidia/cu13/lib");
        std::fs::create_dir_all(&lib).unwrap();
        assert_eq!(wheels(venv.path()), [lib]);
    }
}
