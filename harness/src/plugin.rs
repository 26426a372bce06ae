//! Loading plugins, and finding them.
//!
//! A [`Plugin`] is a [`Backend`] in a shared library. It is looked for in a fixed list of places
//! ([`Search`]), checked before any of its code runs, and never unloaded: thread pools and
//! thread-local destructors of a library outlive every handle to it, and unloading code under them
//! is undefined behaviour (rust-lang/rust 59629, 91979, 88737).

#![allow(unsafe_code)]

mod search;

use std::ffi::c_int;
use std::fs;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use object::{Object, ObjectKind, ObjectSegment};

pub use search::{FoundPlugin, Origin, Place, Search, find, is_name, list};

use crate::abi::{BackendV1, Foreign, SYMBOL_PREFIX};
use crate::backend::{
    Backend, BackendError, Descriptor, EventSink, ExportConfig, ExportSummary, OpenConfig, Provisions, Session,
};
use crate::error::{Error, Result};
use crate::fsio;

#[cfg(not(unix))]
compile_error!("plugins are loaded with dlopen: Karat runs on Linux and macOS");

/// What to type where plugins should be, but are not.
const BUILD: &str = "build the plugins with `cargo build -p karat-cli` (add `--release` for the release build)";

/// A backend in a shared library.
#[derive(Clone, Debug)]
pub struct Plugin {
    path: PathBuf,
    sha256: String,
    backend: Foreign,
}

impl Plugin {
    /// Loads the library at `path` (relative to the current folder if it is not absolute) and asks
    /// it to describe itself.
    ///
    /// The file is read and checked first, since the system's loader is not made for broken ones:
    /// it ends the process with a bus error on a library whose end is missing.
    ///
    /// # Errors
    /// [`ErrorKind::Backend`](crate::ErrorKind::Backend) if there is no regular file, if it is no
    /// complete shared library, if it is no plugin of Karat's, if the system cannot load it (with
    /// the loader's own words), or if its version or description is wrong.
    pub fn load(path: impl AsRef<Path>) -> Result<Plugin> {
        let given = path.as_ref();
        let refuse = |what: String| Error::backend(what).at(given.display());
        // Absolute, so that the loader takes it as a path and never searches its own places for a
        // bare name.
        let path = fs::canonicalize(given)
            .map_err(|e| refuse("the plugin file cannot be opened".into()).because(e).help(BUILD))?;
        if !fs::metadata(&path).is_ok_and(|meta| meta.is_file()) {
            return Err(refuse("a plugin is a file, this is not one".into()));
        }
        let bytes = fs::read(&path).map_err(|e| refuse("the plugin file cannot be read".into()).because(e))?;
        let symbol = entry_symbol(&bytes).map_err(|what| refuse(what).help(BUILD))?;
        let sha256 = fsio::sha256(&bytes);
        drop(bytes);

        // SAFETY: running a library's constructors is what loading means; the file exports a
        // plugin's entry point.
        let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL | NODELETE) }
            .map_err(|e| refuse("the system cannot load this plugin".into()).because(dlerror(&e)))?;
        // SAFETY: `export_backend!` gives the symbol this type.
        let entry = unsafe { library.get::<extern "C" fn() -> *const BackendV1>(symbol.as_bytes()) }
            .map(|entry| *entry)
            .map_err(|e| refuse(format!("the plugin lacks its entry point `{symbol}`")).because(dlerror(&e)))?;
        // Never unloaded: see above.
        std::mem::forget(library);
        // SAFETY: the table of a plugin, which stays loaded.
        let backend = unsafe { Foreign::from_table(entry()) }
            .map_err(|e| refuse("the plugin cannot be used".into()).because(e).help(BUILD))?;
        Ok(Plugin { path, sha256, backend })
    }

    /// The file, absolute and without links.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// SHA-256 of the file, 64 lower-case hexadecimal digits.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }
    /// What it said of itself when it was loaded.
    pub fn descriptor(&self) -> Descriptor {
        self.backend.describe()
    }
    /// Major and minor version of the plugin interface it was built for.
    pub fn interface(&self) -> (u16, u16) {
        self.backend.version()
    }
}

impl Backend for Plugin {
    fn describe(&self) -> Descriptor {
        self.backend.describe()
    }
    fn open(&self, config: &OpenConfig) -> Result<Box<dyn Session>, BackendError> {
        self.backend.open(config)
    }
    fn provide(&self, fix: bool, device: &str) -> Result<Provisions, BackendError> {
        self.backend.provide(fix, device)
    }
    fn measure(&self, device: &str) -> Result<Provisions, BackendError> {
        self.backend.measure(device)
    }
    fn export(&self, config: &ExportConfig, sink: &mut dyn EventSink) -> Result<ExportSummary, BackendError> {
        self.backend.export(config, sink)
    }
}

/// Keep the library even if its last handle is closed.
const NODELETE: c_int = libc::RTLD_NODELETE;

/// The loader's own message: libloading keeps it one level down.
fn dlerror(error: &libloading::Error) -> String {
    use std::error::Error as _;
    error.source().map_or_else(|| error.to_string(), |inner| format!("{error}: {inner}"))
}

/// The name of the one entry point that the library in `bytes` exports, read without loading it.
///
/// Looking for it by its prefix, not by the file's name, lets a user rename the file.
fn entry_symbol(bytes: &[u8]) -> Result<String, String> {
    let broken = |e: &dyn std::fmt::Display| {
        format!("this file of {} bytes is no shared library, or only a part of one: {e}", bytes.len())
    };
    let file = object::File::parse(bytes).map_err(|e| broken(&e))?;
    if file.kind() != ObjectKind::Dynamic {
        return Err(format!("this file is no shared library but {:?}", file.kind()));
    }
    for segment in file.segments() {
        let (start, len) = segment.file_range();
        if start.checked_add(len).is_none_or(|end| end > bytes.len() as u64) {
            return Err(broken(&"its end is missing"));
        }
    }
    let exports = file.exports().map_err(|e| broken(&e))?;
    let mut names = exports
        .iter()
        .filter_map(|export| std::str::from_utf8(export.name()).ok())
        // Mach-O puts an underscore before every name, which dlsym leaves out.
        .map(|name| if cfg!(target_vendor = "apple") { name.trim_start_matches('_') } else { name })
        .filter(|name| name.starts_with(SYMBOL_PREFIX));
    match (names.next(), names.next()) {
        (Some(name), None) => Ok(name.to_owned()),
        (None, _) => Err(format!(
            "this library is no plugin of Karat's: it exports no `{SYMBOL_PREFIX}<name>` (made by karat_backend::export_backend!)"
        )),
        (Some(a), Some(b)) => Err(format!("this library exports two backends, `{a}` and `{b}`: a plugin has one")),
    }
}
