//! Free generation.

use karat::backend::{BackendError, Completion, EventSink, GenerateConfig, TokensView};
use rayon::ThreadPool;

use crate::model::Decoder;
use crate::nn::Result;

/// Continues every prompt.
///
/// # Errors
/// TODO
pub fn generate(
    _model: &Decoder,
    _pool: &ThreadPool,
    _prompts: TokensView<'_>,
    _config: &GenerateConfig,
    _sink: &mut dyn EventSink,
) -> Result<Vec<Completion>> {
    Err(BackendError::unsupported("generation"))
}
