//! Carrying out a suite: from files to a folder of reports.

mod observe;
mod predictions;

pub use observe::{Cancel, Notice, Observer, StageSink};
pub use predictions::Store;
