//! Carrying out a suite: from files to a folder of reports.

mod backends;
mod evaluate;
mod observe;
mod predictions;
mod train;

pub use backends::{Backends, LoadedBackend, Origin, backend_error};
pub use evaluate::{EvalJob, Evaluated, Query, evaluate, evaluator};
pub use observe::{Cancel, Notice, Observer, StageSink};
pub use predictions::Store;
pub use train::{LabelledRows, TrainJob, Trained, last_checkpoint, train};
