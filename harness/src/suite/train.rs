//! `[train]`: how base becomes LoRA and full.

use serde::{Deserialize, Serialize};

use crate::backend::LoraConfig;
use crate::backend::{AdamW, EarlyStopping};
use crate::error::{Error, Result};
use crate::report::Direction;
use crate::train::plan::{MOST_BATCHES, PlanOptions};
use crate::train::schedule::Schedule;

/// Most rows that are taken together: far beyond any memory, and small enough to be multiplied.
pub(super) const LARGEST_BATCH: usize = 1 << 20;
/// Most times that the data is gone through: the plan of a run names every row of every step.
const MOST_EPOCHS: f64 = 1e5;
/// No training has one above 10.
const LARGEST_RATE: f64 = 1000.0;

/// The `[train]` table: what LoRA and full share, and one table for each.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSection {
    /// Train a LoRA adapter so; absent, none is trained.
    #[serde(default)]
    pub lora: Option<LoraTrain>,
    /// Train all parameters so; absent, they are not.
    #[serde(default)]
    pub full: Option<FullTrain>,
}

/// Hyperparameters under the Hugging Face trainer's meanings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hyperparameters {
    /// Seeds of replicates: the recipe is trained once with each; none is the suite's seed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub seeds: Vec<u64>,
    /// Passes over the training items.
    pub epochs: f64,
    /// Optimizer steps, overriding `epochs`; 0 is off.
    pub max_steps: usize,
    /// Rows of a micro-batch.
    pub batch_size: usize,
    /// Micro-batches of an optimizer step.
    pub accumulation: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Its course.
    pub schedule: Schedule,
    /// Warmup: below 1 a share of all steps, else steps.
    pub warmup: f64,
    /// Where the schedule `cosine_with_min_lr` ends, as a learning rate ...
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_lr: Option<f64>,
    /// ... or as a share of the peak.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_lr_rate: Option<f64>,
    /// The optimizer.
    pub optimizer: AdamW,
    /// Global gradient norm that is clipped to; 0 is off.
    pub max_grad_norm: f64,
    /// Evaluate every so many steps; 0 is only at the end.
    pub eval_every: usize,
    /// Save every so many steps; 0 is only at the end.
    pub save_every: usize,
    /// Keep at most so many checkpoints; 0 keeps all.
    pub save_total_limit: usize,
    /// End after so many evaluations in a row without a lower loss; 0 is off.
    #[serde(skip_serializing_if = "is_zero")]
    pub early_stopping_patience: usize,
    /// By how much a loss must be lower to count as such.
    #[serde(skip_serializing_if = "is_nought")]
    pub early_stopping_threshold: f64,
    /// Recompute activations in the backward pass.
    pub recompute: bool,
    /// Draw a new order every epoch.
    pub shuffle: bool,
    /// Measure the checkpoint with the lowest evaluation loss (`best`) or the last one (`last`).
    pub checkpoint: CheckpointChoice,
    /// What `best` goes by instead of the loss: a metric, of the checkpoints that were kept, on the
    /// validation part. The held-out items, on which the result is claimed, have no say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_metric: Option<String>,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

fn is_nought(value: &f64) -> bool {
    *value == 0.0
}

impl Default for Hyperparameters {
    /// The published recipe: 2 epochs, batch 1 x 4, learning rate 1e-4 falling linearly to 0,
    /// clipping at 1.
    fn default() -> Self {
        Hyperparameters {
            seeds: Vec::new(),
            epochs: 2.0,
            max_steps: 0,
            batch_size: 1,
            accumulation: 4,
            learning_rate: 1e-4,
            schedule: Schedule::Linear,
            warmup: 0.0,
            min_lr: None,
            min_lr_rate: None,
            optimizer: AdamW::default(),
            max_grad_norm: 1.0,
            eval_every: 100,
            save_every: 400,
            save_total_limit: 3,
            early_stopping_patience: 0,
            early_stopping_threshold: 0.0,
            recompute: true,
            shuffle: true,
            checkpoint: CheckpointChoice::Best,
            checkpoint_metric: None,
        }
    }
}

/// Which checkpoint of a training run is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckpointChoice {
    /// The one with the lowest evaluation loss.
    #[default]
    Best,
    /// The last.
    Last,
}

/// The `[train.lora]` table: the adapter, and its own hyperparameters where they differ from
/// `[train]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraTrain {
    /// The adapter.
    pub adapter: LoraConfig,
    /// How it is trained.
    pub hyperparameters: Hyperparameters,
}

/// The `[train.full]` table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FullTrain {
    /// How it is trained.
    pub hyperparameters: Hyperparameters,
}

impl Hyperparameters {
    /// Refuses what cannot be carried out; `place` names the table.
    ///
    /// # Errors
    /// Usage, naming the key.
    pub fn check(&self, place: &str) -> Result<()> {
        for (key, value) in [("epochs", self.epochs), ("learning_rate", self.learning_rate)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(Error::usage(format!("{place}: {key} = {value} must be above 0")));
            }
        }
        if self.epochs > MOST_EPOCHS {
            return Err(Error::usage(format!("{place}: epochs = {} must be at most {MOST_EPOCHS}", self.epochs)));
        }
        for (key, value) in [("batch_size", self.batch_size), ("accumulation", self.accumulation)] {
            if !(1..=LARGEST_BATCH).contains(&value) {
                return Err(Error::usage(format!("{place}: {key} = {value} must be between 1 and {LARGEST_BATCH}")));
            }
        }
        if self.learning_rate > LARGEST_RATE {
            let what = format!("{place}: learning_rate = {} must be at most {LARGEST_RATE}", self.learning_rate);
            return Err(Error::usage(what));
        }
        if self.max_steps as u64 > MOST_BATCHES {
            return Err(Error::usage(format!(
                "{place}: max_steps = {} must be at most {MOST_BATCHES}",
                self.max_steps
            )));
        }
        if !(0.0..=MOST_BATCHES as f64).contains(&self.warmup) {
            let what = format!("{place}: warmup = {} must be a number from 0 to {MOST_BATCHES}", self.warmup);
            return Err(Error::usage(what).help("below 1 it is a share of all steps, else a number of steps"));
        }
        let AdamW { beta1, beta2, eps, weight_decay } = self.optimizer;
        let in_range = |x: f64| (0.0..1.0).contains(&x);
        let decays = weight_decay.is_finite() && weight_decay >= 0.0;
        if !(in_range(beta1) && in_range(beta2) && eps > 0.0 && eps <= 1.0 && decays) {
            return Err(Error::usage(format!(
                "{place}: the optimizer needs betas in [0, 1), eps above 0 and at most 1, and weight_decay of at least 0"
            )));
        }
        if !self.max_grad_norm.is_finite() || self.max_grad_norm < 0.0 {
            return Err(Error::usage(format!("{place}: max_grad_norm must be at least 0 (0 is off)")));
        }
        if let Some((at, seed)) = self.seeds.iter().enumerate().find(|(at, seed)| self.seeds[..*at].contains(seed)) {
            let what = format!("{place}: seeds = {:?} names {seed} twice, at place {}", self.seeds, at + 1);
            return Err(Error::usage(what).help("the same seed gives the same model"));
        }
        if let Some(metric) = &self.checkpoint_metric {
            crate::eval::metric::check_names(std::slice::from_ref(metric))?;
            if crate::eval::metric::info(metric).is_some_and(|m| m.direction == Direction::Neutral) {
                let what = format!("{place}: checkpoint_metric = {metric:?} is neither better high nor low");
                return Err(Error::usage(what).help("name a metric that has a direction"));
            }
            if self.checkpoint == CheckpointChoice::Last {
                return Err(Error::usage(format!(
                    "{place}: checkpoint_metric has no effect with checkpoint = \"last\""
                ))
                .help("leave one of them out"));
            }
        }
        self.floor(place)?;
        self.early_stopping(place)?;
        Ok(())
    }

    /// How the rows of a training with `seed` are laid out.
    pub fn plan_options(&self, seed: u64) -> PlanOptions {
        PlanOptions {
            batch_size: self.batch_size,
            accumulation: self.accumulation,
            epochs: self.epochs,
            max_steps: (self.max_steps > 0).then_some(self.max_steps),
            seed,
            shuffle: self.shuffle,
        }
    }

    /// The steps, of so many, after which a checkpoint is saved: every `save_every` and the last.
    pub fn saved_steps(&self, steps: usize) -> Vec<usize> {
        let every = if self.save_every == 0 { steps.max(1) } else { self.save_every };
        let mut saved: Vec<usize> = (1..=steps / every).map(|k| k * every).collect();
        if saved.last() != Some(&steps) && steps > 0 {
            saved.push(steps);
        }
        saved
    }

    /// Where the schedule ends, as a share of the peak.
    fn floor(&self, place: &str) -> Result<f64> {
        let fails = |what: &str| Err(Error::usage(format!("{place}: {what}")));
        if self.schedule != Schedule::CosineWithMinLr {
            return match (self.min_lr, self.min_lr_rate) {
                (None, None) => Ok(0.0),
                _ => fails("min_lr and min_lr_rate are for schedule = \"cosine_with_min_lr\""),
            };
        }
        let floor = match (self.min_lr, self.min_lr_rate) {
            (Some(rate), None) => rate / self.learning_rate,
            (None, Some(share)) => share,
            _ => return fails("schedule = \"cosine_with_min_lr\" needs one of min_lr and min_lr_rate"),
        };
        match (0.0..=1.0).contains(&floor) {
            true => Ok(floor),
            false => fails("the schedule must end between 0 and its peak; correct min_lr or min_lr_rate"),
        }
    }

    /// The learning rate of each of `steps` optimizer steps.
    ///
    /// # Errors
    /// Usage, for settings that contradict each other.
    pub fn learning_rates(&self, steps: usize) -> Result<Vec<f64>> {
        self.schedule.learning_rates(self.learning_rate, steps, self.warmup, self.floor("train")?)
    }

    /// When to end early, if at all; `place` names the table.
    ///
    /// # Errors
    /// Usage, for a threshold that is no number of at least 0, or one that nothing waits for, or
    /// without evaluations.
    pub fn early_stopping(&self, place: &str) -> Result<Option<EarlyStopping>> {
        let (patience, threshold) = (self.early_stopping_patience, self.early_stopping_threshold);
        let fails = |what: &str| Err(Error::usage(format!("{place}: {what}")));
        if !threshold.is_finite() || threshold < 0.0 {
            return fails("early_stopping_threshold must be a number of at least 0");
        }
        match (patience, threshold) {
            (0, 0.0) => Ok(None),
            (0, _) => fails("early_stopping_threshold has no effect without early_stopping_patience"),
            _ if self.eval_every == 0 => fails("early_stopping_patience needs evaluations: set eval_every above 0"),
            _ => Ok(Some(EarlyStopping { patience, threshold })),
        }
    }
}

impl LoraTrain {
    /// Refuses what cannot be carried out; `place` names the table.
    ///
    /// # Errors
    /// Usage, naming the key.
    pub fn check(&self, place: &str) -> Result<()> {
        self.adapter.check().map_err(|e| {
            let error = Error::usage(e.message).at(place);
            if e.causes.is_empty() { error } else { error.because(e.causes.join(": ")) }
        })?;
        self.hyperparameters.check(place)
    }
}
