//! The folder for what can be made again: exports, libraries, views of models.

use std::path::PathBuf;

use crate::{Error, Result};

/// The folder Karat caches in: `$KARAT_CACHE`, `$XDG_CACHE_HOME/karat` or `~/.cache/karat`.
///
/// # Errors
/// If none of these variables is set.
pub fn cache_root() -> Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    variable("KARAT_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|p| p.join("karat")))
        .or_else(|| variable("HOME").map(|p| p.join(".cache").join("karat")))
        .ok_or_else(|| Error::failed("no folder to cache in: set KARAT_CACHE, XDG_CACHE_HOME or HOME"))
}
