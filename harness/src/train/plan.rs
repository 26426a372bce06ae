//! Which rows each optimizer step sees, in which order: a pure function of the number of rows and
//! the options.
//!
//! The arithmetic is that of the Hugging Face trainer: the last batch of an epoch may be short and
//! is kept, and the last update of an epoch accumulates what micro-batches are left. The order is
//! Karat's own, since matching theirs needs PyTorch's `randperm`: in epoch e (from 0), `0..rows`
//! shuffled as Python does it, `random.Random(seed + e).shuffle`
//! ([`crate::data::split::PyRandom`]), so that a reader can check it with three lines of Python.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::backend::{LabelledView, TrainPlan};
use crate::data::split::PyRandom;
use crate::{Error, Result};

/// What the order of a run is made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlanOptions {
    /// Rows per micro-batch.
    pub batch_size: usize,
    /// Micro-batches per optimizer step.
    pub accumulation: usize,
    /// Passes over the data; may be fractional.
    pub epochs: f64,
    /// Stop after so many optimizer steps, repeating the data as often as needed; overrides
    /// `epochs`.
    pub max_steps: Option<usize>,
    /// Seeds the order.
    pub seed: u64,
    /// Shuffle anew in each epoch; otherwise rows come in their order.
    pub shuffle: bool,
}

impl Default for PlanOptions {
    /// The recipe's: batches of 1, 4 to a step, 2 epochs, seed 42, shuffled.
    fn default() -> Self {
        PlanOptions { batch_size: 1, accumulation: 4, epochs: 2.0, max_steps: None, seed: 42, shuffle: true }
    }
}

/// The order of a run: fields of [`TrainPlan`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// `steps[step][micro_batch]` = rows of the training data.
    pub steps: Vec<Vec<Vec<u32>>>,
    /// Epochs completed after each step (fractional).
    pub epochs: Vec<f64>,
}

/// Micro-batches of a run: the order of all is in memory, and a processor that takes a hundred of
/// them a second has weeks to go.
pub const MOST_BATCHES: u64 = 1 << 25;

/// Lays out the steps of a run over `rows` rows.
///
/// # Errors
/// If there are no rows, an option is 0, negative or not finite, or there would be more than
/// [`MOST_BATCHES`].
pub fn order(rows: usize, options: &PlanOptions) -> Result<Order> {
    let PlanOptions { batch_size, accumulation, epochs, max_steps, seed, shuffle } = *options;
    if rows == 0 {
        return Err(Error::data("there are no rows to train on").help("check the split and max_length"));
    }
    let count = u32::try_from(rows).map_err(|_| Error::data(format!("{rows} rows are too many")))?;
    for (name, value) in [("batch_size", batch_size), ("accumulation", accumulation)] {
        if value == 0 {
            return Err(Error::usage(format!("{name} must be at least 1")));
        }
    }
    let batches = rows.div_ceil(batch_size);
    let total = match max_steps {
        Some(0) => return Err(Error::usage("max_steps must be at least 1")),
        Some(steps) => steps,
        None if epochs.is_finite() && epochs > 0.0 => (epochs * batches.div_ceil(accumulation) as f64).ceil() as usize,
        None => return Err(Error::usage(format!("epochs must be a number above 0, not {epochs}"))),
    };
    let visits = (total as u64).saturating_mul(accumulation.min(batches) as u64);
    if visits > MOST_BATCHES {
        return Err(Error::usage(format!(
            "{total} steps are {visits} micro-batches; at most {MOST_BATCHES} are planned"
        ))
        .help("lower epochs or max_steps, or raise batch_size"));
    }
    let mut plan = Order { steps: Vec::with_capacity(total), epochs: Vec::with_capacity(total) };
    for epoch in 0.. {
        let mut order: Vec<u32> = (0..count).collect();
        if shuffle {
            PyRandom::new(i128::from(seed) + epoch).shuffle(&mut order);
        }
        let micro: Vec<Vec<u32>> = order.chunks(batch_size).map(<[u32]>::to_vec).collect();
        let mut done = 0;
        for step in micro.chunks(accumulation) {
            if plan.steps.len() == total {
                return Ok(plan);
            }
            done += step.len();
            plan.steps.push(step.to_vec());
            plan.epochs.push(epoch as f64 + done as f64 / batches as f64);
        }
    }
    Ok(plan)
}

/// SHA-256 over the training and evaluation rows and the plan, without its paths and its own
/// fingerprint: a checkpoint may only be continued by the run that began it.
pub fn fingerprint(train: LabelledView<'_>, eval: LabelledView<'_>, plan: &TrainPlan) -> String {
    let mut hash = Sha256::new();
    [train, eval].into_iter().for_each(|view| hash_rows(view, &mut hash));
    let mut plan = plan.clone();
    plan.output_dir = Default::default();
    plan.resume_from = None;
    plan.init_adapter = None;
    plan.fingerprint = String::new();
    let json = serde_json::to_vec(&plan).expect("a plan has string keys only");
    hash.update(json);
    crate::fsio::hex(&hash.finalize())
}

/// SHA-256 over labelled rows.
pub fn rows_sha256(rows: LabelledView<'_>) -> String {
    let mut hash = Sha256::new();
    hash_rows(rows, &mut hash);
    crate::fsio::hex(&hash.finalize())
}

fn hash_rows(view: LabelledView<'_>, hash: &mut Sha256) {
    hash.update((view.tokens().rows() as u64).to_le_bytes());
    for &offset in view.tokens().offsets() {
        hash.update((offset as u64).to_le_bytes());
    }
    view.tokens().ids().iter().for_each(|id| hash.update(id.to_le_bytes()));
    view.labels().iter().for_each(|label| hash.update(label.to_le_bytes()));
}
