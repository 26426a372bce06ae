//! Events of a call that is under way, and the answer to one.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Completion;
#[cfg(doc)]
use crate::Evaluator;

/// Something that happened. Events cross the boundary as JSON with a `type` key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Event {
    /// A line for the log.
    Log {
        /// How serious.
        level: Level,
        /// The text.
        message: String,
    },
    /// Work done of work to do; cancels are answered here.
    Progress {
        /// What is being done: `score`, `generate`, `load`, `export`.
        stage: String,
        /// Units done.
        done: u64,
        /// Units in all.
        total: u64,
        /// Tokens processed so far.
        tokens: u64,
    },
    /// One optimizer step.
    Step(StepEvent),
    /// An evaluation during training.
    Evaluation {
        /// After this optimizer step.
        step: usize,
        /// Mean negative log-likelihood of a labelled token, in nats.
        #[serde(with = "crate::abi::float")]
        loss: f64,
        /// Labelled tokens.
        tokens: u64,
        /// Seconds it took.
        seconds: f64,
    },
    /// A checkpoint was published under its final name.
    Checkpoint {
        /// After this optimizer step.
        step: usize,
        /// The folder.
        path: PathBuf,
    },
    /// A row of [`Evaluator::generate`] is complete.
    Completion {
        /// Its row number.
        row: usize,
        /// What was generated.
        completion: Completion,
    },
}

/// One optimizer step, as logged. Volatile values (seconds, memory) are marked as such in reports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepEvent {
    /// Counts from 1.
    pub step: usize,
    /// Epochs completed after it.
    pub epoch: f64,
    /// Mean negative log-likelihood per labelled token of this step, in nats.
    #[serde(with = "crate::abi::float")]
    pub loss: f64,
    /// The share of each micro-batch in `loss` (they add up to it).
    #[serde(default, with = "crate::abi::float::list")]
    pub micro_losses: Vec<f64>,
    /// The learning rate used.
    pub learning_rate: f64,
    /// Global L2 norm of the gradient before clipping.
    #[serde(with = "crate::abi::float")]
    pub grad_norm: f64,
    /// Labelled tokens in this step.
    pub label_tokens: u64,
    /// Tokens fed so far.
    pub tokens: u64,
    /// Seconds this step took.
    pub seconds: f64,
    /// Resident (CPU) or device memory in bytes after it, if known.
    pub memory: Option<u64>,
}

/// Severity of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// For developers.
    Debug,
    /// For users: shown with the progress.
    Info,
    /// Something is off, the run goes on.
    Warn,
}

/// The answer to an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// End cleanly as soon as possible.
    Stop,
}

/// Receives events; its answer is how a run is cancelled.
pub trait EventSink {
    /// Takes one event.
    fn event(&mut self, event: Event) -> Flow;
}

impl<F: FnMut(Event) -> Flow> EventSink for F {
    fn event(&mut self, event: Event) -> Flow {
        self(event)
    }
}
