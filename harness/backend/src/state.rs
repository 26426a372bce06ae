//! Trainer state in a checkpoint folder: the run that left it, and how a resume goes on.
//!
//! Two small files lie beside the weights. `trainer_state.json` has the keys of the Hugging Face trainer and nothing
//! else, so that its tools can read it. `karat_state.json` has what a resume needs to know beyond that. Neither holds
//! a time, a path or a machine's name: stopping and resuming leaves the same bytes as never stopping.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::BackendError;

/// File name of [`TrainerState`].
pub const TRAINER_STATE: &str = "trainer_state.json";
/// File name of [`RunState`].
pub const RUN_STATE: &str = "karat_state.json";

/// `trainer_state.json` of the Hugging Face trainer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainerState {
    /// Step of the lowest evaluation loss so far.
    #[serde(default)]
    pub best_global_step: Option<usize>,
    /// The lowest evaluation loss so far.
    #[serde(default)]
    pub best_metric: Option<f64>,
    /// Folder name of the saved checkpoint with the lowest evaluation loss.
    #[serde(default)]
    pub best_model_checkpoint: Option<String>,
    /// Epochs completed.
    pub epoch: f64,
    /// Steps between evaluations; 0 is only at the end.
    #[serde(default)]
    pub eval_steps: usize,
    /// Optimizer steps done.
    pub global_step: usize,
    /// Always false here.
    #[serde(default)]
    pub is_hyper_param_search: bool,
    /// Always true here.
    #[serde(default)]
    pub is_local_process_zero: bool,
    /// Always true here.
    #[serde(default)]
    pub is_world_process_zero: bool,
    /// One entry per step and per evaluation, in order.
    pub log_history: Vec<LogEntry>,
    /// Steps between log entries.
    #[serde(default)]
    pub logging_steps: usize,
    /// Optimizer steps of the whole run.
    pub max_steps: usize,
    /// Tokens fed so far.
    #[serde(default)]
    pub num_input_tokens_seen: u64,
    /// Epochs of the whole run, rounded up.
    #[serde(default)]
    pub num_train_epochs: usize,
    /// Steps between checkpoints; 0 is only at the end.
    #[serde(default)]
    pub save_steps: usize,
    /// Always empty here.
    #[serde(default)]
    pub stateful_callbacks: serde_json::Map<String, serde_json::Value>,
    /// Not counted here: 0.
    #[serde(default)]
    pub total_flos: f64,
    /// Rows of the first micro-batch.
    #[serde(default)]
    pub train_batch_size: Option<usize>,
    /// Always null here.
    #[serde(default)]
    pub trial_name: Option<String>,
    /// Always null here.
    #[serde(default)]
    pub trial_params: Option<String>,
}

/// One line of [`TrainerState::log_history`]: a step (loss, gradient norm, learning rate) or an evaluation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Epochs completed.
    pub epoch: f64,
    /// Mean negative log-likelihood of a held-out label token, in nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_loss: Option<f64>,
    /// Global L2 norm of the gradient before clipping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f64>,
    /// The learning rate used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Mean negative log-likelihood of a label token of the step, in nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// After this optimizer step.
    pub step: usize,
}

/// What a resume needs to know beyond the weights, the optimizer and [`TrainerState`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunState {
    /// Version of this file's format.
    pub version: u32,
    /// [`TrainPlan::fingerprint`](crate::TrainPlan::fingerprint) of the run.
    pub fingerprint: String,
    /// Optimizer steps done.
    pub step: usize,
    /// Tokens fed so far.
    pub tokens: u64,
    /// Short name of the backend that wrote the folder.
    pub backend: String,
}

impl RunState {
    /// The version this code writes and reads.
    pub const VERSION: u32 = 1;

    /// Reads `karat_state.json` in `folder`.
    ///
    /// # Errors
    /// If it is missing, broken or of another version.
    pub fn read(folder: &Path) -> Result<Self, BackendError> {
        let state: Self = read(folder, RUN_STATE)?;
        if state.version != Self::VERSION {
            let what = format!("version {} of this file is not known (known: {})", state.version, Self::VERSION);
            return Err(BackendError::failed(format!("{}: {what}", folder.join(RUN_STATE).display())));
        }
        Ok(state)
    }
}

impl TrainerState {
    /// Reads `trainer_state.json` in `folder`, ours or one of the Hugging Face trainer.
    ///
    /// # Errors
    /// If it is missing or broken.
    pub fn read(folder: &Path) -> Result<Self, BackendError> {
        read(folder, TRAINER_STATE)
    }
}

fn read<T: for<'a> Deserialize<'a>>(folder: &Path, name: &str) -> Result<T, BackendError> {
    let path = folder.join(name);
    let at = |what: &str| BackendError::failed(format!("{}: {what}", path.display()));
    let text = std::fs::read_to_string(&path).map_err(|e| at("could not read the file").because(&e))?;
    serde_json::from_str(&text).map_err(|e| at("not what a checkpoint's state looks like").because(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_of_the_hugging_face_trainer_is_read() {
        let text = r#"{"best_global_step": null, "best_metric": null, "best_model_checkpoint": null, "epoch": 1.0,
            "eval_steps": 500, "global_step": 2, "is_hyper_param_search": false, "is_local_process_zero": true,
            "is_world_process_zero": true, "log_history": [
            {"epoch": 0.5, "grad_norm": 1.25, "learning_rate": 0.0001, "loss": 2.5, "step": 1},
            {"epoch": 1.0, "eval_loss": 2.0, "eval_runtime": 1.0, "eval_samples_per_second": 3.0, "step": 2}],
            "logging_steps": 1, "max_steps": 2, "num_input_tokens_seen": 0, "num_train_epochs": 1, "save_steps": 500,
            "stateful_callbacks": {"TrainerControl": {}}, "total_flos": 12.0, "train_batch_size": 1,
            "trial_name": null, "trial_params": null}"#;
        let state: TrainerState = serde_json::from_str(text).unwrap();
        assert_eq!(state.log_history[0].loss, Some(2.5));
        assert_eq!(state.log_history[1].eval_loss, Some(2.0));
        assert_eq!(state.global_step, 2);
    }

    #[test]
    fn a_state_of_another_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"version": 99, "fingerprint": "f", "step": 1, "tokens": 2, "backend": "x"}"#;
        std::fs::write(dir.path().join(RUN_STATE), text).unwrap();
        assert!(RunState::read(dir.path()).unwrap_err().to_string().contains("version 99"));
    }
}
