//! The traits: a backend, its sessions, their evaluator and trainer.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{
    BackendError, Completion, Descriptor, EventSink, ExportConfig, ExportSummary, GenerateConfig, LabelledView,
    OpenConfig, Scores, SessionInfo, TokensView, TrainPlan, TrainSummary,
};
#[cfg(doc)]
use crate::{BackendErrorKind, Capability, Event, Flow};

/// A library of model code: describes itself and opens sessions.
pub trait Backend: Send + Sync + 'static {
    /// What this backend is and can do. Cheap; needs no device and touches no file.
    fn describe(&self) -> Descriptor;
    /// Loads a model onto a device.
    ///
    /// # Errors
    /// [`BackendErrorKind::Unsupported`] for a device, dtype, architecture or adapter variant that
    /// is not implemented (named in the message), [`BackendErrorKind::Failed`] for broken or
    /// missing files, [`BackendErrorKind::Usage`] for a folder that is no model or adapter, or one
    /// to write into that holds something.
    fn open(&self, config: &OpenConfig) -> Result<Box<dyn Session>, BackendError>;
    /// Writes a model in this backend's own format, if it has one ([`Capability::Export`]). Emits
    /// [`Event::Progress`] at least once per tensor; [`Flow::Stop`] ends with
    /// [`BackendErrorKind::Cancelled`] and leaves nothing behind.
    ///
    /// # Errors
    /// [`BackendErrorKind::Unsupported`] for what cannot be written, [`BackendErrorKind::Failed`]
    /// for broken or missing files, [`BackendErrorKind::Usage`] for a folder that holds something
    /// else. Nothing half-written stays.
    fn export(&self, config: &ExportConfig, sink: &mut dyn EventSink) -> Result<ExportSummary, BackendError> {
        let _ = (config, sink);
        Err(BackendError::unsupported(format!("the backend {} exports no models", self.describe().name)))
    }
    /// Looks for what this backend needs of the machine beside itself to run on `device` (a runtime
    /// library, a driver) and says what it found; with `fix` it fetches what is missing first. A
    /// backend that needs nothing leaves this as it is.
    ///
    /// # Errors
    /// Something is missing or unusable; the message says the one command to run.
    fn provide(&self, fix: bool, device: &str) -> Result<Provisions, BackendError> {
        let _ = (fix, device);
        Ok(Provisions::default())
    }
    /// What this backend's kernels reach on `device` with all its processors, beside what the
    /// device could do at most: facts for a person, each with its unit. It takes seconds. A backend
    /// that has no kernels of its own leaves this as it is.
    ///
    /// # Errors
    /// The device is not there, or a choice of kernels in the environment is none.
    fn measure(&self, device: &str) -> Result<Provisions, BackendError> {
        let _ = device;
        Ok(Provisions::default())
    }
}

/// What a backend found of what it needs of the machine or can do on it; see [`Backend::provide`]
/// and [`Backend::measure`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provisions {
    /// Facts in the order of their names: `library`, `providers`, `version`.
    pub facts: BTreeMap<String, String>,
}

/// One model on one device. Calls are made from one thread at a time.
pub trait Session: Send {
    /// The evaluator, if this backend can score and generate.
    fn evaluator(&mut self) -> Option<&mut dyn Evaluator> {
        None
    }
    /// The trainer, if this backend can train.
    fn trainer(&mut self) -> Option<&mut dyn Trainer> {
        None
    }
    /// What was really opened: dtype, device, kernels, parameter count, effective thread count.
    fn info(&self) -> SessionInfo;
    /// Exchanges the adapter for the one in a folder (PEFT layout), or for none, and keeps the base
    /// model resident ([`Capability::ExchangeAdapter`]). If it fails, the session goes on with the
    /// adapter it had.
    ///
    /// # Errors
    /// [`BackendErrorKind::Unsupported`] if this session cannot, or not with such an adapter;
    /// [`BackendErrorKind::Failed`] for a broken adapter or one of another base.
    fn set_adapter(&mut self, adapter: Option<&Path>) -> Result<(), BackendError> {
        let _ = adapter;
        Err(BackendError::unsupported("this session cannot exchange its adapter; open another"))
    }
}

/// Teacher-forced scoring and free generation: with them every request type of the field can be
/// served (log-likelihood, rolling log-likelihood, multiple choice, generate-until).
pub trait Evaluator {
    /// The log-probability of every token given its prefix, for a batch of rows `tokens`.
    ///
    /// Emits [`Event::Progress`] at least once per internal batch; [`Flow::Stop`] ends with
    /// [`BackendErrorKind::Cancelled`].
    fn score(&mut self, tokens: TokensView<'_>, sink: &mut dyn EventSink) -> Result<Scores, BackendError>;

    /// Continues every prompt. Emits one [`Event::Completion`] per row as soon as the row is
    /// complete (in any order), and [`Event::Progress`] at least once per decoded batch step;
    /// returns all completions in row order.
    fn generate(
        &mut self,
        prompts: TokensView<'_>,
        config: &GenerateConfig,
        sink: &mut dyn EventSink,
    ) -> Result<Vec<Completion>, BackendError>;
}

/// Supervised training of the open model.
pub trait Trainer {
    /// Carries out `plan` on `train`, evaluating on `eval` as the plan says. Emits [`Event::Step`]
    /// once per optimizer step; [`Flow::Stop`] ends with [`BackendErrorKind::Cancelled`] after a
    /// resumable checkpoint was written.
    fn train(
        &mut self,
        train: LabelledView<'_>,
        eval: LabelledView<'_>,
        plan: &TrainPlan,
        sink: &mut dyn EventSink,
    ) -> Result<TrainSummary, BackendError>;
}
