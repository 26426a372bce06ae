//! The replay backend.
