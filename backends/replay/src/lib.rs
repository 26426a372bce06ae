//! A backend that answers from a recording instead of a model.
//!
//! A [`Recorder`] wraps any backend and keeps what it scores and generates; [`Recorder::write`]
//! turns that into a folder with a `recording.jsonl`. [`Replay`] opens such a folder as if it were
//! a model, and gives the same answers to the same questions, bit by bit, on a machine without the
//! model or an ML framework. A question that was not recorded is an error that names the row;
//! nothing is made up.
//!
//! ```no_run
//! use karat_backend::{Backend, OpenConfig};
//! use karat::plugin::{self, Search};
//! use karat_replay::{Recorder, Replay};
//!
//! let recorder = Recorder::new(plugin::find("native", &Search::from_env())?);
//! let session = recorder.open(&OpenConfig::new("models/base"))?;
//! // ... score and generate ...
//! recorder.write("recordings/base")?;
//! let session = Replay.open(&OpenConfig::new("recordings/base"))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod record;
mod recording;
mod replay;

pub use record::Recorder;
pub use recording::{FILE, Recording};
pub use replay::Replay;

karat_backend::export_backend!(Replay);
