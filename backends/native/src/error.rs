//! The result type of this crate.

use karat_backend::BackendError;

/// `Result` with the error that crosses the plugin boundary.
pub type Result<T, E = BackendError> = std::result::Result<T, E>;
