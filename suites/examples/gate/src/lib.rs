//! An application that depends on a fine-tuned model, and whose `cargo test` says when the model
//! got worse.
//!
//! `tests/gate.rs` is all it takes. The steps to the same in a crate of yours:
//!
//! 1. `karat run SUITE`, on whatever machine can; the report lies in
//!    `runs/SUITE/report/report.json`. Copy it to where your repository keeps it, or let the CI job
//!    that ran it go on to the tests.
//! 2. `karat check SUITE --save-baseline main`: what later reports are held against, in
//!    `reports/baselines/SUITE/main.json`.
//! 3. `cargo test`: one test a model and metric, ignored with the reason where there is no report.
//! 4. A change that is meant: `karat check SUITE --bless --reason TEXT`, and commit the baseline
//!    with its history.

/// What the model is for: here, nothing but an example.
pub const SUITE: &str = "medical-r1";
