//! Sessions of this backend on the models and rows of the native backend's tests.
#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses its part; a test that cannot go on should stop")]

#[path = "../../../native/tests/small_runs/mod.rs"]
pub mod small_runs;

use std::path::{Path, PathBuf};

use karat_backend::*;
use karat_candle::CandleBackend;
use small_runs::{Rows, ignore};

/// The base of the suite medical-r1, which is on disk.
pub fn base() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../suites/medical-r1/base")
}

pub fn open(config: &OpenConfig) -> Box<dyn Session> {
    CandleBackend.open(config).unwrap()
}

pub fn open_error(config: &OpenConfig) -> BackendError {
    CandleBackend.open(config).err().expect("it should not open")
}

pub fn score(session: &mut dyn Session, rows: &Tokens) -> Scores {
    session.evaluator().unwrap().score(rows.view(), &mut ignore).unwrap()
}

/// Trains in a fresh session and returns the result with all events.
pub fn train(
    config: &OpenConfig,
    plan: &TrainPlan,
    rows: &Rows,
    eval: &Rows,
    stop: impl FnMut(&Event) -> bool,
) -> (Result<TrainSummary, BackendError>, Vec<Event>) {
    small_runs::train_in(open(config), plan, rows, eval, stop)
}

/// The largest difference of two lists of numbers.
pub fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
