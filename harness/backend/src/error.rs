//! The error of a backend's call.

use std::fmt;

/// How a backend call failed; it crosses the boundary with the error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BackendErrorKind {
    /// It did not work.
    Failed,
    /// The sink said stop.
    Cancelled,
    /// The backend panicked; its session is poisoned.
    Panicked,
    /// This backend does not implement it.
    Unsupported,
    /// The caller named what cannot be meant, such as a folder to write into that holds something
    /// else.
    Usage,
}

/// An error of a backend: a message and what caused it, outermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendError {
    /// Which way it failed.
    pub kind: BackendErrorKind,
    /// A lowercase fragment: what, where, what to do.
    pub message: String,
    /// The chain below it.
    pub causes: Vec<String>,
}

impl BackendError {
    /// An error of `kind`.
    pub fn new(kind: BackendErrorKind, message: impl Into<String>) -> Self {
        BackendError { kind, message: message.into(), causes: Vec::new() }
    }
    /// [`BackendErrorKind::Failed`].
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(BackendErrorKind::Failed, message)
    }
    /// [`BackendErrorKind::Unsupported`].
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(BackendErrorKind::Unsupported, message)
    }
    /// [`BackendErrorKind::Usage`].
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(BackendErrorKind::Usage, message)
    }
    /// [`BackendErrorKind::Cancelled`].
    pub fn cancelled() -> Self {
        Self::new(BackendErrorKind::Cancelled, "cancelled")
    }
    /// Adds `error` and its sources as causes.
    #[must_use]
    pub fn because(mut self, error: &dyn std::error::Error) -> Self {
        let mut next = Some(error);
        while let Some(e) = next {
            self.causes.push(e.to_string());
            next = e.source();
        }
        self
    }
}

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.causes.iter().try_for_each(|cause| write!(f, ": {cause}"))
    }
}

impl std::error::Error for BackendError {}
