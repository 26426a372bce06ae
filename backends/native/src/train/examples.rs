//! From labelled rows to what the model is trained on.

use karat_model::train::{Label, MicroBatch};

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
}

impl Examples {
    /// Packs the rows of `of`.
    pub fn new(of: MicroBatch<'_>) -> Self {
        let batch = Batch::new(of.rows().map(|(ids, _)| ids));
        let (mut at, mut ids) = (Vec::new(), Vec::new());
        for (start, (_, targets)) in batch.starts.iter().zip(of.rows()) {
            for target in targets {
                let Label { at: place, id } = target;
                at.push((start + place) as u32);
                ids.push(id);
            }
        }
        Examples { batch, at: at.into(), targets: ids.into() }
    }
}
