//! Next tokens from logits; [`karat_model::sampling`] has the rule.

use karat_model::sampling::{Sampler, not_a_number};
use rayon::prelude::*;

use crate::error::Result;
use crate::tensor::{Tensor, view};

/// The next token of each row of `logits` `[rows, vocab]`; `places` are the row's number and how many tokens it has
/// generated.
///
/// # Errors
/// If a logit is not a number.
pub fn pick_all(sampler: &Sampler, logits: &Tensor, places: &[(usize, usize)]) -> Result<Vec<u32>> {
    let (view, vocab) = (view(logits)?, logits.dims()[1]);
    let rows = view.par_chunks_exact(vocab).zip(places);
    rows.map(|(logits, &(row, place))| sampler.pick(logits, row, place)).collect()
}

/// The tokens that a device picked for `places`.
///
/// # Errors
/// If a logit was not a number.
pub fn numbers(picked: Vec<Option<u32>>, places: &[(usize, usize)]) -> Result<Vec<u32>> {
    let checked = picked.into_iter().zip(places).map(|(id, &(row, place))| id.ok_or_else(|| not_a_number(row, place)));
    checked.collect()
}
