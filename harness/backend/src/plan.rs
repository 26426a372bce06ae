//! A training run as data: method, optimizer, steps, and what it left behind.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::LoraConfig;

/// A training run as the host planned it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "lowercase")]
pub enum Method {
    /// Every parameter.
    Full,
    /// A low-rank adapter on frozen weights.
    Lora(LoraConfig),
}

/// AdamW as PyTorch defines it (decoupled decay, `eps` added after the square root).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay; norms and biases are excluded, as the Hugging Face trainer does.
    pub weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 }
    }
}

/// A training run, fully decided by the host. One optimizer step consumes `steps[s]`: its
/// micro-batches in order, each a list of rows of the training data. The loss of a step is the
/// summed negative log-likelihood of all its labelled tokens divided by their number (Hugging
/// Face's `num_items_in_batch`), so accumulation equals one large batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainPlan {
    /// Full or LoRA.
    pub method: Method,
    /// `steps[step][micro_batch]` = rows of the training data.
    pub steps: Vec<Vec<Vec<u32>>>,
    /// Learning rate of each step.
    pub learning_rates: Vec<f64>,
    /// Epochs completed after each step (fractional).
    pub epochs: Vec<f64>,
    /// The optimizer.
    pub optimizer: AdamW,
    /// Gradients are scaled down to this global L2 norm; 0 is off.
    pub max_grad_norm: f64,
    /// Evaluate every so many steps and after the last; 0 is only after the last. No eval rows, no
    /// evaluation.
    pub eval_every: usize,
    /// Rows per evaluation batch.
    pub eval_batch_size: usize,
    /// Write a checkpoint every so many steps and after the last; 0 is only after the last.
    pub save_every: usize,
    /// Keep only so many checkpoints (the best by evaluation loss and the last are always kept); 0
    /// keeps all.
    pub save_total_limit: usize,
    /// End before the last step when the evaluation loss no longer falls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early_stopping: Option<EarlyStopping>,
    /// Recompute activations layer by layer in the backward pass.
    pub recompute: bool,
    /// Where `checkpoint-{step}` folders go.
    pub output_dir: PathBuf,
    /// Continue from this checkpoint folder.
    pub resume_from: Option<PathBuf>,
    /// Start LoRA from this adapter folder instead of drawing one.
    pub init_adapter: Option<PathBuf>,
    /// Seeds adapter initialisation and dropout.
    pub seed: u64,
    /// SHA-256 over data and plan (without output and resume paths); a checkpoint of another plan
    /// is refused.
    pub fingerprint: String,
}

/// When training ends early, as transformers' `EarlyStoppingCallback` has it. The backend stops,
/// since what it writes as the last checkpoint depends on it; the losses of all evaluations decide,
/// so that a resumed run stops where a whole one does.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlyStopping {
    /// After so many evaluations in a row that were no improvement; at least 1.
    pub patience: usize,
    /// What counts as one: a loss more than this below the lowest before it.
    pub threshold: f64,
}

impl EarlyStopping {
    /// Whether to stop after evaluations with these losses, in order.
    pub fn stops(&self, losses: impl IntoIterator<Item = f64>) -> bool {
        let (mut best, mut waited) = (None::<f64>, 0);
        for loss in losses {
            let improved = best.is_none_or(|best| loss < best && best - loss > self.threshold);
            waited = if improved { 0 } else { waited + 1 };
            // The lowest loss is the lowest, by however little.
            best = Some(best.map_or(loss, |best| best.min(loss)));
        }
        waited >= self.patience
    }
}

/// Summary of a training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainSummary {
    /// The last checkpoint folder.
    pub last_checkpoint: PathBuf,
    /// The checkpoint with the lowest evaluation loss, if evaluated.
    pub best_checkpoint: Option<PathBuf>,
    /// Optimizer steps done in total (those before a resume included); fewer than planned if it
    /// stopped early.
    pub steps: usize,
    /// Parameters that were trained.
    pub trainable_parameters: u64,
    /// Training tokens seen (positions fed to the model, padding excluded), those before a resume
    /// included.
    pub tokens: u64,
    /// Seconds of training in this call, evaluation and saving included.
    pub seconds: f64,
    /// Peak resident memory of the process (CPU) or device memory, in bytes, if known.
    pub peak_memory: Option<u64>,
}
