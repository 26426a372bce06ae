//! A causal decoder, whatever computes it: what scoring and generation ask of one.

use candle_core::Tensor;
use karat_backend::Scores;
use karat_model::sampling::argmax;

use crate::model::log_probabilities;
use crate::weights::values;
use crate::{Result, failed};

/// Tokens of a row that go through the decoder at once where nothing is learned: attention takes
/// memory of their number times that of all before them.
pub const PIECE: usize = 512;

/// A decoder with the tokens of one row behind it.
pub trait Causal: Send {
    /// Output of the final norm, `[tokens, hidden]`, for `ids` after those that were given before.
    ///
    /// # Errors
    /// If the device fails.
    fn hidden(&mut self, ids: &[u32]) -> candle_core::Result<Tensor>;

    /// `[tokens, vocab]` of `hidden` `[tokens, hidden]`.
    ///
    /// # Errors
    /// If the device fails.
    fn logits(&self, hidden: &Tensor) -> candle_core::Result<Tensor>;
}

/// The log-probability of every token of `row` given its prefix, and whether it was the most
/// probable one; `decoder` has no token behind it.
pub fn score(decoder: &mut dyn Causal, row: &[u32]) -> Result<Scores> {
    let mut scores = Scores::default();
    let (inputs, targets) = (&row[..row.len().max(1) - 1], &row[row.len().min(1)..]);
    for (piece, targets) in inputs.chunks(PIECE).zip(targets.chunks(PIECE)) {
        let hidden = decoder.hidden(piece).map_err(failed)?;
        let logits = decoder.logits(&hidden).map_err(failed)?;
        scores.logprobs.extend(values(&log_probabilities(&logits, targets).map_err(failed)?)?);
        let logits: Vec<Vec<f32>> = logits.to_vec2().map_err(failed)?;
        scores.greedy.extend(logits.iter().zip(targets).map(|(logits, id)| argmax(logits) == Some(*id as usize)));
    }
    Ok(scores)
}
