//! A plan and its rows held against each other and against the model, and the two rules of the
//! optimizer that are not AdamW's own.

use karat_backend::{BackendError, IGNORE, LabelledView, Method, TrainPlan};

use super::{MicroBatch, Result};
use crate::config::ModelConfig;

/// Whether optimizers of the Hugging Face trainer leave this tensor out of weight decay: biases and
/// norms.
pub fn excluded_from_decay(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.contains("bias")
        || name.contains("layernorm")
        || name.contains("rmsnorm")
        || name.split('.').any(|part| part == "norm" || part.ends_with("_norm"))
}

/// The factor that clips gradients of the global norm `norm`, as `torch.nn.utils.clip_grad_norm_`
/// does; `max_norm` 0 is off.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 }
}

/// Refuses what cannot be carried out, before anything is computed.
///
/// # Errors
/// For a plan that contradicts itself or names rows that are not there; rows that the model cannot
/// take, by their number; a step without labels; labels that are neither ignored nor the id they
/// stand for.
pub fn check(config: &ModelConfig, plan: &TrainPlan, train: LabelledView<'_>, eval: LabelledView<'_>) -> Result<()> {
    check_plan(plan, train)?;
    config.check_rows(train.tokens().iter())?;
    config.check_rows(eval.tokens().iter())?;
    check_labels("training", train)?;
    check_labels("evaluation", eval)
}

fn check_plan(plan: &TrainPlan, train: LabelledView<'_>) -> Result<()> {
    let n = plan.steps.len();
    if n == 0 || plan.learning_rates.len() != n || plan.epochs.len() != n {
        return Err(BackendError::failed(format!(
            "the plan has {n} steps, {} learning rates and {} epochs; it needs as many of each, at least one",
            plan.learning_rates.len(),
            plan.epochs.len()
        )));
    }
    if plan.early_stopping.is_some_and(|early| early.patience == 0) {
        return Err(BackendError::failed("early stopping needs a patience of at least 1"));
    }
    if plan.init_adapter.is_some() && plan.method == Method::Full {
        return Err(BackendError::failed("the plan trains all parameters but names an adapter to start from"));
    }
    let rows = train.tokens().rows();
    for (step, micros) in plan.steps.iter().enumerate() {
        if let Some(row) = micros.iter().flatten().find(|row| **row as usize >= rows) {
            return Err(BackendError::failed(format!("step {}: row {row} of {rows} training rows", step + 1)));
        }
        if micros.iter().all(|rows| MicroBatch::new(train, rows).targets().next().is_none()) {
            return Err(BackendError::failed(format!(
                "step {}: every label is -100, there is nothing to train on (rows {:?}); drop these rows or raise the \
                 maximum length",
                step + 1,
                micros.concat()
            )));
        }
    }
    Ok(())
}

fn check_labels(what: &str, data: LabelledView<'_>) -> Result<()> {
    for (row, ids) in data.tokens().iter().enumerate() {
        for (place, (&id, &label)) in ids.iter().zip(data.row_labels(row)).enumerate() {
            if label != IGNORE && i64::from(label) != i64::from(id) {
                return Err(BackendError::failed(format!(
                    "{what} row {row}: label {label} at place {place} is neither {IGNORE} nor the id there ({id})"
                )));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_and_biases_are_excluded_from_decay() {
        for name in [
            "model.norm.weight",
            "model.layers.0.input_layernorm.weight",
            "model.layers.0.self_attn.q_norm.weight",
            "model.layers.0.self_attn.q_proj.bias",
        ] {
            assert!(excluded_from_decay(name), "{name}");
        }
        for name in ["model.embed_tokens.weight", "lm_head.weight", "model.layers.0.self_attn.q_proj.lora_A.weight"] {
            assert!(!excluded_from_decay(name), "{name}");
        }
    }

    #[test]
    fn gradients_are_clipped_to_the_norm_and_never_stretched() {
        assert_eq!((clip_factor(0.5, 1.0), clip_factor(7.0, 0.0)), (1.0, 1.0));
        assert_eq!(clip_factor(4.0, 1.0), 1.0 / 4.000_001);
    }
}
