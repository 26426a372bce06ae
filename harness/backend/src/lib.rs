//! The contract between Karat and its backends: the safe traits an author implements and the host
//! calls, and all that crosses between the two.
//!
//! A backend turns token ids into numbers. It never sees a suite, a chat template, a report or a
//! metric: tokenizing, truncation, the loss mask, the order of batches, the learning-rate schedule
//! and every seed are decided by the host and handed over as data, so that two backends given the
//! same plan can be compared number by number.
//!
//! A backend is stateless; [`Backend::open`] gives a [`Session`] that holds one model (and at most
//! one adapter) on one device. A session may offer an [`Evaluator`], a [`Trainer`] or both. The
//! same traits serve in process (tests) and across the plugin boundary ([`abi`]):
//! [`export_backend!`] makes a plugin of a crate, which the host (crate `karat`, its module
//! `plugin`) finds and loads.
//!
//! Beside the calls, host and backend share what lies in folders: an adapter's configuration under
//! PEFT's names ([`LoraConfig`], read by [`peft`]) and the state beside a checkpoint's weights
//! ([`state`]).
//!
//! What every backend must satisfy is a suite of checks, `conformance`, behind the feature of that
//! name. This crate has neither an ML framework nor a tokenizer in its tree. `examples/uniform`
//! beside it is a whole backend in a hundred lines.

pub mod abi;
#[cfg(feature = "conformance")]
pub mod conformance;
mod error;
mod evaluate;
mod event;
mod export;
pub mod lora;
mod open;
pub mod peft;
mod plan;
pub mod state;
mod threads;
mod tokens;
mod traits;

pub use error::{BackendError, BackendErrorKind};
pub use evaluate::{Completion, GenerateConfig, Scores, StopReason};
pub use event::{Event, EventSink, Flow, Level, StepEvent};
pub use export::{AdapterMode, ExportConfig, ExportSummary, NamedAdapter};
pub use lora::LoraConfig;
pub use open::{Capability, Descriptor, Dtype, OpenConfig, SessionInfo, TEMPORARY_MODEL, Weights};
pub use plan::{AdamW, EarlyStopping, Method, TrainPlan, TrainSummary};
pub use threads::{bounded_threads, most_threads, worker_threads};
pub use tokens::{IGNORE, LabelledView, Tokens, TokensView};
pub use traits::{Backend, Evaluator, Provisions, Session, Trainer};
