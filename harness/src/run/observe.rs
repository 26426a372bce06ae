//! How a run is watched and stopped: one stream of notices, one flag.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::backend::{Event, EventSink, Flow};

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
