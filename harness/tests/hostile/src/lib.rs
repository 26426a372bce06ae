//! Two test fixtures for the plugin boundary.
//!
//! [`Bigram`] is a small honest backend: a language model that can be scored, sampled and trained,
//! so that the conformance suite and the boundary have something real to work on without an ML
//! framework.
//!
//! [`Hostile`] is that backend with one fault at a time. A fault of the safe code (a panic, a
//! result that is wrong) is chosen with the option `fault` at open. A fault of the table itself,
//! which safe code cannot have, is chosen by the *file name* of the library:
//! `libkarat_hostile-wrong_major.so` has the fault `wrong_major`. So a test copies the library, and
//! no environment variable is shared between tests.

mod bigram;
mod fault;
mod table;

pub use bigram::Bigram;
pub use fault::{Hostile, sessions_alive};
pub use table::table;
