//! The training plan of a measurement: steps of given micro-batches, nothing evaluated or saved on
//! the way.

use std::path::PathBuf;

use karat_backend::{AdamW, Method, TrainPlan};

/// A plan of these `steps`, each a list of micro-batches of rows, at a learning rate of 1e-4.
pub fn plan(method: Method, steps: Vec<Vec<Vec<u32>>>, output_dir: PathBuf) -> TrainPlan {
    TrainPlan {
        method,
        learning_rates: vec![1e-4; steps.len()],
        epochs: (1..=steps.len()).map(|step| step as f64).collect(),
        steps,
        optimizer: AdamW::default(),
        max_grad_norm: 1.0,
        eval_every: 0,
        eval_batch_size: 8,
        save_every: 0,
        save_total_limit: 1,
        early_stopping: None,
        recompute: false,
        output_dir,
        resume_from: None,
        init_adapter: None,
        seed: 1,
        fingerprint: "a measurement".into(),
    }
}
