//! Finding and loading plugins.
