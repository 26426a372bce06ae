//! Trainer state in a checkpoint folder: the run that left it, and how a resume goes on.
//!
//! Two small files lie beside the weights. `trainer_state.json` has the keys of the Hugging Face
//! trainer and nothing else, so that its tools can read it. `karat_state.json` has what a resume
//! needs to know beyond that. Neither holds a time, a path or a machine's name: stopping and
//! resuming leaves the same bytes as never stopping. Both are made of [`Progress`], and read back
//! into it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{BackendError, TrainPlan};

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

/// One line of [`TrainerState::log_history`]: a step (loss, gradient norm, learning rate) or an
/// evaluation.
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

/// The folder of the checkpoint after `step` optimizer steps.
pub fn checkpoint_folder(output: &Path, step: usize) -> PathBuf {
    output.join(checkpoint_name(step))
}

fn checkpoint_name(step: usize) -> String {
    format!("checkpoint-{step}")
}

/// The optimizer steps behind a checkpoint, by the name of its folder.
pub fn checkpoint_step(name: &str) -> Option<usize> {
    name.strip_prefix("checkpoint-")?.parse().ok()
}

/// How far a training run has come.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// Optimizer steps done.
    pub step: usize,
    /// Tokens fed so far.
    pub tokens: u64,
    /// One entry per step and per evaluation, in order.
    pub log: Vec<LogEntry>,
    /// The lowest evaluation loss of a saved checkpoint, and its step.
    pub best_saved: Option<(f64, usize)>,
}

impl Progress {
    /// Reads how far the run of `plan` had come at the checkpoint in `folder`.
    ///
    /// # Errors
    /// If a file is missing or broken, or the checkpoint is none of `plan`.
    pub fn read(folder: &Path, plan: &TrainPlan) -> Result<Self, BackendError> {
        let wrong = |what: String| Err(BackendError::failed(format!("{}: {what}", folder.display())));
        let run = RunState::read(folder)?;
        let (theirs, ours) = (&run.fingerprint, &plan.fingerprint);
        if theirs != ours {
            return wrong(format!(
                "this checkpoint belongs to another run (its fingerprint is {theirs:.12}, this plan's is {ours:.12}): data, \
                 base, method or plan changed; start anew or restore them"
            ));
        }
        if run.step > plan.steps.len() {
            return wrong(format!("step {} of a plan with {} steps", run.step, plan.steps.len()));
        }
        let trainer = TrainerState::read(folder)?;
        let best = trainer.best_model_checkpoint.as_deref().and_then(checkpoint_step);
        let mut progress = Progress { step: run.step, tokens: run.tokens, log: trainer.log_history, best_saved: None };
        progress.best_saved = best.and_then(|step| Some((progress.evaluated(step)?, step)));
        Ok(progress)
    }

    /// Whether the checkpoint in `folder` is of just this state.
    pub fn is_in(&self, folder: &Path, plan: &TrainPlan, backend: &str) -> bool {
        RunState::read(folder).is_ok_and(|run| run == self.run_state(plan, backend))
            && TrainerState::read(folder).is_ok_and(|trainer| trainer == self.trainer_state(plan))
    }

    /// The evaluation loss after `step`, if it was evaluated.
    pub fn evaluated(&self, step: usize) -> Option<f64> {
        self.log.iter().find(|entry| entry.step == step && entry.eval_loss.is_some())?.eval_loss
    }

    /// Epochs of `plan` that are completed.
    pub fn epoch(&self, plan: &TrainPlan) -> f64 {
        self.step.checked_sub(1).map_or(0.0, |i| plan.epochs[i])
    }

    /// `karat_state.json` of a run of `plan` on `backend`.
    pub fn run_state(&self, plan: &TrainPlan, backend: &str) -> RunState {
        RunState {
            version: RunState::VERSION,
            fingerprint: plan.fingerprint.clone(),
            step: self.step,
            tokens: self.tokens,
            backend: backend.to_owned(),
        }
    }

    /// `trainer_state.json` of a run of `plan`.
    pub fn trainer_state(&self, plan: &TrainPlan) -> TrainerState {
        let evaluations = self.log.iter().filter_map(|entry| Some((entry.eval_loss?, entry.step)));
        let best = evaluations.min_by(|a, b| a.0.total_cmp(&b.0));
        TrainerState {
            best_global_step: best.map(|(_, step)| step),
            best_metric: best.map(|(loss, _)| loss),
            best_model_checkpoint: self.best_saved.map(|(_, step)| checkpoint_name(step)),
            epoch: self.epoch(plan),
            eval_steps: plan.eval_every,
            global_step: self.step,
            is_local_process_zero: true,
            is_world_process_zero: true,
            log_history: self.log.clone(),
            logging_steps: 1,
            max_steps: plan.steps.len(),
            num_input_tokens_seen: self.tokens,
            num_train_epochs: plan.epochs.last().map_or(0, |e| e.ceil() as usize),
            save_steps: plan.save_every,
            train_batch_size: plan.steps.first().and_then(|step| step.first()).map(Vec::len),
            ..TrainerState::default()
        }
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

    fn plan() -> TrainPlan {
        TrainPlan {
            method: crate::Method::Full,
            steps: vec![vec![vec![0, 1], vec![2]]; 3],
            learning_rates: vec![1e-3; 3],
            epochs: vec![0.5, 1.0, 1.5],
            optimizer: crate::AdamW::default(),
            max_grad_norm: 1.0,
            eval_every: 1,
            eval_batch_size: 1,
            save_every: 2,
            save_total_limit: 0,
            early_stopping: None,
            recompute: false,
            output_dir: PathBuf::new(),
            resume_from: None,
            init_adapter: None,
            seed: 1,
            fingerprint: "0123456789abcdef".into(),
        }
    }

    fn write(folder: &Path, progress: &Progress, plan: &TrainPlan) {
        let [run, trainer] = [
            serde_json::to_string(&progress.run_state(plan, "mine")).unwrap(),
            serde_json::to_string(&progress.trainer_state(plan)).unwrap(),
        ];
        std::fs::write(folder.join(RUN_STATE), run).unwrap();
        std::fs::write(folder.join(TRAINER_STATE), trainer).unwrap();
    }

    #[test]
    fn what_is_read_of_a_checkpoint_is_the_progress_that_wrote_it() {
        let evaluation = |step: usize, loss: f64| LogEntry { eval_loss: Some(loss), step, ..LogEntry::default() };
        let log =
            vec![evaluation(1, 2.0), LogEntry { loss: Some(1.5), step: 2, ..LogEntry::default() }, evaluation(2, 2.5)];
        // The lowest loss was not saved.
        let progress = Progress { step: 2, tokens: 70, log, best_saved: Some((2.5, 2)) };
        let (dir, plan) = (tempfile::tempdir().unwrap(), plan());
        write(dir.path(), &progress, &plan);
        assert_eq!(Progress::read(dir.path(), &plan).unwrap(), progress);
        assert!(progress.is_in(dir.path(), &plan, "mine") && !progress.is_in(dir.path(), &plan, "another"));
        let later = Progress { step: 3, ..progress.clone() };
        assert!(!later.is_in(dir.path(), &plan, "mine"));
        let state = progress.trainer_state(&plan);
        assert_eq!((state.best_global_step, state.best_metric), (Some(1), Some(2.0)));
        assert_eq!((state.epoch, state.num_train_epochs, state.train_batch_size), (1.0, 2, Some(2)));
        assert_eq!(state.best_model_checkpoint.as_deref().and_then(checkpoint_step), Some(2));
    }

    #[test]
    fn a_checkpoint_of_another_plan_and_one_beyond_its_end_are_refused() {
        let (dir, plan) = (tempfile::tempdir().unwrap(), plan());
        write(dir.path(), &Progress { step: 3, ..Progress::default() }, &plan);
        let error = |plan: &TrainPlan| Progress::read(dir.path(), plan).unwrap_err().message;
        let other = TrainPlan { fingerprint: "fedcba9876543210".into(), ..plan.clone() };
        let said = error(&other);
        assert!(said.contains("is 0123456789ab, this plan's is fedcba987654)"), "{said}");
        let shorter = TrainPlan { steps: vec![vec![vec![0]]; 2], ..plan };
        assert!(error(&shorter).contains("step 3 of a plan with 2 steps"), "{}", error(&shorter));
    }

    #[test]
    fn a_state_of_another_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"version": 99, "fingerprint": "f", "step": 1, "tokens": 2, "backend": "x"}"#;
        std::fs::write(dir.path().join(RUN_STATE), text).unwrap();
        assert!(RunState::read(dir.path()).unwrap_err().to_string().contains("version 99"));
    }
}
