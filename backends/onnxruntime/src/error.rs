//! Errors of the runtime, with the operation that failed.

use karat_backend::BackendError;

/// Wraps an error of the runtime with what was being done.
pub fn failed<E: std::fmt::Display>(doing: &str) -> impl Fn(E) -> BackendError {
    move |error| {
        let mut wrapped = BackendError::failed(doing);
        wrapped.causes.push(error.to_string());
        wrapped
    }
}
