//! How a run is watched and stopped: one stream of notices, one flag.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use crate::backend::{Event, EventSink, Flow, TrainSummary};
use crate::eval::Prediction;
use crate::report::Report;
use crate::track::Extent;
use crate::train::log::Curves;

/// A request to stop, shared by everything that works for a run. Set it from a signal handler.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Not requested yet.
    pub fn new() -> Self {
        Self::default()
    }
    /// Asks to stop.
    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
    /// Whether a stop was asked for.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Something worth showing.
#[derive(Debug)]
#[non_exhaustive]
pub enum Notice<'a> {
    /// A stage begins, e.g. `train lora`.
    Stage {
        /// Its name.
        name: &'a str,
        /// What it will do, for people.
        detail: String,
    },
    /// A stage was not needed: its inputs are those of an earlier run.
    Reused {
        /// Its name.
        name: &'a str,
        /// What is reused.
        detail: String,
    },
    /// A stage ended.
    Done {
        /// Its name.
        name: &'a str,
        /// What came of it.
        detail: String,
    },
    /// A backend's event within a stage.
    Backend {
        /// The stage's name.
        stage: &'a str,
        /// Optimizer steps the stage has in all, for training.
        total: Option<usize>,
        /// The event.
        event: &'a Event,
    },
    /// Something the user should know.
    Warning(String),
    /// A line for people that belongs to no stage.
    Said(String),
    /// A training begins, goes on, or was done before.
    Begun(Begun<'a>),
    /// A training is done.
    Trained {
        /// The model's name.
        name: &'a str,
        /// Its totals.
        summary: &'a TrainSummary,
        /// Its curves.
        curves: &'a Curves,
    },
    /// The models were measured.
    Reported {
        /// All that was found.
        report: &'a Report,
        /// The models, and a few of their texts.
        answered: &'a [Answered],
    },
}

/// A training before its first step of this call.
#[derive(Clone, Copy, Debug)]
pub struct Begun<'a> {
    /// The model's name.
    pub name: &'a str,
    /// The plan's fingerprint.
    pub fingerprint: &'a str,
    /// Everything the fingerprint is over, by name.
    pub settings: &'a BTreeMap<String, String>,
    /// How much it is.
    pub extent: Extent,
    /// What was done before this call.
    pub curves: &'a Curves,
    /// The step of the checkpoint that it goes on from; none where it begins anew or was done.
    pub after: Option<usize>,
    /// When the last entry of the curves was written; none where there is none.
    pub written: Option<SystemTime>,
}

/// A model that was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    /// Its name.
    pub name: String,
    /// After so many optimizer steps; 0 where it was not trained here.
    pub step: usize,
    /// The texts of the first items.
    pub predictions: Vec<Prediction>,
}

/// Watches a run.
pub trait Observer {
    /// Takes one notice.
    fn notice(&mut self, notice: Notice<'_>);
}

impl<F: FnMut(Notice<'_>)> Observer for F {
    fn notice(&mut self, notice: Notice<'_>) {
        self(notice);
    }
}

/// Hands a backend's events to `keep` and to the observer, and answers stop once asked to.
pub struct StageSink<'a, K> {
    /// The stage's name.
    pub stage: &'a str,
    /// Optimizer steps in all, for training.
    pub total: Option<usize>,
    /// Who watches.
    pub observer: &'a mut dyn Observer,
    /// Whether to stop.
    pub cancel: &'a Cancel,
    /// Keeps what must be kept (a log line, a prediction); its error stops the stage.
    pub keep: K,
    /// The first error of `keep`.
    pub error: Option<crate::Error>,
}

impl<K: FnMut(&Event) -> crate::Result<()>> EventSink for StageSink<'_, K> {
    fn event(&mut self, event: Event) -> Flow {
        if self.error.is_none()
            && let Err(error) = (self.keep)(&event)
        {
            self.error = Some(error);
        }
        self.observer.notice(Notice::Backend { stage: self.stage, total: self.total, event: &event });
        if self.error.is_some() || self.cancel.requested() { Flow::Stop } else { Flow::Continue }
    }
}
