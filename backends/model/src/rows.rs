//! Rows of token ids held against what a model can take.

use karat_backend::{BackendError, TokensView};

use crate::config::ModelConfig;

/// Says which row of `rows` a model cannot take: an id outside the vocabulary of `vocab`, or more
/// than `longest` tokens.
///
/// # Errors
/// Names the row (counted from 0) and the id or length.
pub fn check_rows<'a>(
    rows: impl IntoIterator<Item = &'a [u32]>,
    vocab: usize,
    longest: usize,
) -> Result<(), BackendError> {
    for (i, row) in rows.into_iter().enumerate() {
        if let Some(id) = row.iter().find(|id| **id as usize >= vocab) {
            return Err(BackendError::failed(format!("row {i}: id {id} is outside the vocabulary of {vocab}")));
        }
        if row.len() > longest {
            return Err(BackendError::failed(format!(
                "row {i}: {} tokens, the model holds at most {longest} (max_position_embeddings)",
                row.len()
            )));
        }
    }
    Ok(())
}

/// [`check_rows`] for prompts, which must not be empty.
///
/// # Errors
/// As there.
pub fn check_prompts(prompts: TokensView<'_>, vocab: usize, longest: usize) -> Result<(), BackendError> {
    check_rows(prompts.iter(), vocab, longest)?;
    match prompts.iter().position(<[u32]>::is_empty) {
        Some(row) => Err(BackendError::failed(format!("row {row}: the prompt is empty, there is nothing to continue"))),
        None => Ok(()),
    }
}

impl ModelConfig {
    /// [`check_rows`] of this model.
    ///
    /// # Errors
    /// As there.
    pub fn check_rows<'a>(&self, rows: impl IntoIterator<Item = &'a [u32]>) -> Result<(), BackendError> {
        check_rows(rows, self.vocab_size, self.max_positions)
    }

    /// [`check_prompts`] of this model.
    ///
    /// # Errors
    /// As there.
    pub fn check_prompts(&self, prompts: TokensView<'_>) -> Result<(), BackendError> {
        check_prompts(prompts, self.vocab_size, self.max_positions)
    }
}
