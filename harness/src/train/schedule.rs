//! The learning rate as a pure function of the step, after the formulas of transformers'
//! `optimization.py`.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The shape of the learning rate over a run, after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Straight down to 0 (`get_linear_schedule_with_warmup`).
    #[default]
    Linear,
    /// Half a cosine down to 0 (`get_cosine_schedule_with_warmup`).
    Cosine,
    /// Level (`get_constant_schedule_with_warmup`; without a warm-up also their `constant`, which
    /// knows none).
    #[serde(alias = "constant_with_warmup")]
    Constant,
    /// Half a cosine down to a share of the peak (`get_cosine_with_min_lr_schedule_with_warmup`).
    #[serde(rename = "cosine_with_min_lr")]
    CosineWithMinLr,
}

impl Schedule {
    /// The factor on the peak learning rate for the optimizer step `step` (counts from 0) of
    /// `steps`, of which the first `warmup` rise linearly from 0. `floor` is where
    /// [`Schedule::CosineWithMinLr`] ends; no other schedule asks for it.
    pub fn factor(self, step: usize, steps: usize, warmup: usize, floor: f64) -> f64 {
        if step < warmup {
            return step as f64 / warmup as f64;
        }
        let after = steps.saturating_sub(warmup).max(1) as f64;
        let cosine = || 0.5 * (1.0 + (PI * ((step - warmup) as f64 / after)).cos());
        match self {
            Schedule::Linear => steps.saturating_sub(step) as f64 / after,
            Schedule::Cosine => cosine().max(0.0),
            Schedule::Constant => 1.0,
            Schedule::CosineWithMinLr => (cosine() * (1.0 - floor) + floor).max(0.0),
        }
    }

    /// The learning rate of every one of `steps` optimizer steps. Below 1, `warmup` is a share of
    /// them (rounded up), else a number of steps, as in transformers 5's `warmup_steps`. `floor` as
    /// for [`Schedule::factor`].
    ///
    /// # Errors
    /// If the peak, the warm-up or the floor is negative or not finite.
    pub fn learning_rates(self, peak: f64, steps: usize, warmup: f64, floor: f64) -> Result<Vec<f64>> {
        for (name, value) in [("learning_rate", peak), ("warmup", warmup), ("min_lr_rate", floor)] {
            if !value.is_finite() || value < 0.0 {
                return Err(Error::usage(format!("{name} must be a number of at least 0, not {value}")));
            }
        }
        let warmup = warmup_steps(warmup, steps);
        Ok((0..steps).map(|step| peak * self.factor(step, steps, warmup, floor)).collect())
    }
}

/// `TrainingArguments.get_warmup_steps`.
fn warmup_steps(warmup: f64, steps: usize) -> usize {
    if warmup >= 1.0 { warmup as usize } else { (steps as f64 * warmup).ceil() as usize }
}
