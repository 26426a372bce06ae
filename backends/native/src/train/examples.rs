//! From labelled rows to what the model is trained on.

use karat_backend::{BackendError, IGNORE, LabelledView};

use crate::error::Result;
use crate::model::Batch;
use crate::tensor::Indices;

/// A packed batch with the places whose next token is trained on.
#[derive(Debug)]
pub struct Examples {
    /// The rows, packed.
    pub batch: Batch,
    /// Tokens of the batch that predict a target.
    pub at: Indices,
    /// What they should predict.
    pub targets: Indices,
    /// The row of each target, as an index into `rows` of [`Examples::new`].
    pub rows: Vec<usize>,
}

impl Examples {
    /// Packs `rows` of `data`. The label of a row's first token predicts nothing and is dropped.
    pub fn new(data: LabelledView<'_>, rows: &[u32]) -> Self {
        let tokens = data.tokens();
        let batch = Batch::new(rows.iter().map(|&row| tokens.row(row as usize)));
        let (mut at, mut targets, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
        for (number, &row) in rows.iter().enumerate() {
            let start = batch.starts[number];
            for (i, &label) in data.row_labels(row as usize).iter().enumerate().skip(1) {
                if label != IGNORE {
                    at.push((start + i - 1) as u32);
                    targets.push(label as u32);
                    numbers.push(number);
                }
            }
        }
        Examples { batch, at: at.into(), targets: targets.into(), rows: numbers }
    }
}

/// How many labels of `rows` are trained on.
pub fn label_tokens(data: LabelledView<'_>, rows: &[u32]) -> u64 {
    let of_row = |row: &u32| data.row_labels(*row as usize).iter().skip(1).filter(|l| **l != IGNORE).count() as u64;
    rows.iter().map(of_row).sum()
}

/// Refuses labels that are neither ignored nor the id they stand for.
///
/// # Errors
/// Names the row and place.
pub fn check_labels(what: &str, data: LabelledView<'_>) -> Result<()> {
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
