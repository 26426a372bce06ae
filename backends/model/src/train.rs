//! Supervised fine-tuning as a plan says it: the training loop of every backend, which brings the
//! gradients.
//!
//! One step sums the gradients of its micro-batches, each scaled by the labelled tokens of the
//! *whole* step, so that accumulation equals one large batch; clips by the global norm as
//! `torch.nn.utils.clip_grad_norm_` does; and updates with AdamW. Everything random is drawn by
//! counter, so a resumed run goes on as if it had never stopped.
//!
//! A backend implements [`Learner`] and runs a [`TrainingRun`]. The checks of plan and rows, the
//! order of the steps, losses that are not finite, evaluation, early stopping, checkpoints, their
//! rotation, resuming and all events are here.

mod batch;
mod checkpoint;
mod plan;
mod run;

use karat_backend::{AdamW, BackendError, Event, EventSink, Level, OpenConfig};
use karat_system::memory;

pub use batch::{Label, MicroBatch};
pub use plan::{clip_factor, excluded_from_decay};
pub use run::{TrainedModel, TrainingRun};

use crate::publish::{Put, Shapes};

type Result<T, E = BackendError> = std::result::Result<T, E>;

/// The numbers of a training run: forward and backward pass, optimizer, evaluation. What computes
/// is called on the threads of the session's pool.
pub trait Learner: Send {
    /// The log-probabilities of a micro-batch's targets, where the device leaves them.
    type LogProbs: Send;

    /// Names and shapes of the trained tensors: those of the model by their names in its files, an
    /// adapter's matrices and magnitudes by PEFT's.
    fn trained(&self) -> Shapes;

    /// Forgets the gradients of the step before.
    ///
    /// # Errors
    /// If the device fails.
    fn zero_gradients(&mut self) -> Result<()>;

    /// Forward and backward pass: adds the gradient of `scale` times the negative log-likelihood of
    /// the targets of `batch`. A device may still be at it when this returns.
    ///
    /// # Errors
    /// If the device fails.
    fn add_gradients(&mut self, batch: MicroBatch<'_>, scale: f64, dropout: Option<Dropout>) -> Result<Self::LogProbs>;

    /// The log-probabilities in the order of [`MicroBatch::targets`].
    ///
    /// # Errors
    /// If the device fails.
    fn log_probs(&self, of: Self::LogProbs) -> Result<Vec<f32>>;

    /// Clips the gradients by their global norm with [`clip_factor`] and applies AdamW, without
    /// weight decay where [`excluded_from_decay`] says so. Returns the squared norm of each
    /// gradient as it was before, in the order of [`Learner::trained`]; where one is not finite,
    /// nothing has changed.
    ///
    /// # Errors
    /// If the device fails.
    fn update(&mut self, step: OptimizerStep<'_>) -> Result<Vec<f64>>;

    /// The log-probabilities of the targets of `batch` without anything being learned, in their
    /// order.
    ///
    /// # Errors
    /// If the device fails.
    fn score(&mut self, batch: MicroBatch<'_>) -> Result<Vec<f32>>;

    /// Reads the trained tensor `name`, or one of its moments.
    ///
    /// # Errors
    /// As `put`; if the device fails, or the name is none of [`Learner::trained`].
    fn read(&self, of: TensorState, name: &str, put: &mut Put<'_>) -> Result<()>;

    /// Puts `values` into the trained tensor `name`, or into one of its moments.
    ///
    /// # Errors
    /// If the device fails, or the name is none of [`Learner::trained`].
    fn write(&mut self, of: TensorState, name: &str, values: Vec<f32>) -> Result<()>;

    /// All of a checkpoint was written by [`Learner::write`]: what depends on trained tensors is to
    /// be made anew.
    ///
    /// # Errors
    /// If the device fails.
    fn restored(&mut self) -> Result<()> {
        Ok(())
    }

    /// Bytes of memory that are taken now, if that is known.
    fn memory(&self) -> Option<u64> {
        memory::resident()
    }

    /// Most bytes of memory that were ever taken, if that is known.
    fn peak_memory(&self) -> Option<u64> {
        memory::peak()
    }
}

/// A part of a trained tensor's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorState {
    /// Its elements.
    Parameter,
    /// AdamW's running mean of the gradient.
    FirstMoment,
    /// AdamW's running mean of its square.
    SecondMoment,
}

/// The place of a micro-batch in the stream of dropout masks.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// Seed of the run.
    pub seed: u64,
    /// Optimizer step, from 1.
    pub step: u32,
    /// Tokens of earlier micro-batches of this step.
    pub first_token: u64,
}

/// One update of the optimizer.
#[derive(Clone, Copy, Debug)]
pub struct OptimizerStep<'a> {
    /// Its number, from 1.
    pub number: usize,
    /// Learning rate.
    pub learning_rate: f64,
    /// The other numbers of AdamW.
    pub adamw: &'a AdamW,
    /// The global norm that gradients are clipped to; 0 is off.
    pub max_grad_norm: f64,
}

/// Says something before the first step.
pub fn say(sink: &mut dyn EventSink, level: Level, message: String) {
    // Who wants the run to stop says so again at its first step.
    let _ = sink.event(Event::Log { level, message });
}

/// Lets a session train once, and only a model that was opened without an adapter.
///
/// # Errors
/// Otherwise; the message says how it is done.
pub fn admit(trained: &mut bool, opened: &OpenConfig) -> Result<()> {
    if std::mem::replace(trained, true) {
        return Err(BackendError::failed(
            "this session has trained already and its weights have moved; open a new one",
        ));
    }
    match &opened.adapter {
        None => Ok(()),
        Some(_) => Err(BackendError::unsupported(
            "training a model that was opened with an adapter; open it without and name the adapter as the one to start from",
        )),
    }
}
