//! Carrying out a suite: from files to a folder of reports.

mod adapter;
mod backends;
mod choose;
mod evaluate;
mod folder;
mod left;
mod leftover;
mod machine;
mod metrics;
mod observe;
mod parity;
mod parts;
mod pipeline;
mod predictions;
mod prepare;
mod recorded;
mod resident;
mod stored;
mod train;

pub use backends::{Backends, LoadedBackend, Origin, backend_error, opening_warnings};
pub use choose::{AUTO, Asked, Chosen, choose, decided};
pub use evaluate::{EvalJob, Evaluated, Query, evaluate, evaluator, scores};
pub use folder::{remove, take};
pub use leftover::left_over;
pub use machine::machine;
pub use observe::{Cancel, Notice, Observer, StageSink};
pub use parity::{Parity, ParityJob, ParitySide, Parting, ScoreParity, TextParity, TokenParity, parity};
pub use pipeline::{Brought, evaluate_brought, report_recorded, run};
pub use predictions::{Store, is_store, read_store};
pub use prepare::{GeneralTexts, Prepared, prepare};
pub use recorded::{Recorded, RecordedTraining};
pub use resident::Resident;
pub use stored::{Known, StoredModel, read_stored, report_pairs, report_stored};
pub(crate) use train::DONE;
pub use train::{Base, TrainJob, Trained, adapter_config, last_checkpoint, plan, start_from_adapter, train};
