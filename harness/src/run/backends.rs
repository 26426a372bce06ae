//! Which backends a run may use.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::backend::{Backend, BackendError, BackendErrorKind, OpenConfig, Session, SessionInfo};
use crate::error::{Error, Result};

/// Gives backends by name. The command line gives plugins; a test may give one that is linked in.
pub trait Backends {
    /// The backend called `name`.
    ///
    /// # Errors
    /// Not found, or cannot be loaded.
    fn backend(&self, name: &str) -> Result<LoadedBackend>;
}

/// A backend and where it came from.
#[derive(Clone)]
pub struct LoadedBackend {
    /// The backend.
    pub backend: Arc<dyn Backend>,
    /// Where it came from; stands in the report.
    pub origin: Origin,
}

/// Where a backend came from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The plugin's file, none if the backend is linked in.
    pub path: Option<PathBuf>,
    /// SHA-256 of that file.
    pub sha256: Option<String>,
}

impl LoadedBackend {
    /// Opens a session; the error says which model and backend.
    ///
    /// # Errors
    /// What the backend says.
    pub fn open(&self, config: &OpenConfig) -> Result<Box<dyn Session>> {
        self.backend.open(config).map_err(|e| {
            let name = self.backend.describe().name;
            backend_error(&format!("backend {name} could not open the model"), e).at(config.model.display())
        })
    }
}

/// What the user should know of how a model that was opened as `open` was read: its session's
/// warnings, each with the model's folder.
pub fn opening_warnings(open: &OpenConfig, info: &SessionInfo) -> Vec<String> {
    info.warnings.iter().map(|warning| format!("{}: {warning}", open.model.display())).collect()
}

/// A backend's error as the harness's.
pub fn backend_error(doing: &str, error: BackendError) -> Error {
    match error.kind {
        BackendErrorKind::Cancelled => Error::interrupted(),
        BackendErrorKind::Usage => Error::usage(doing).because(error),
        _ => Error::backend(doing).because(error),
    }
}
