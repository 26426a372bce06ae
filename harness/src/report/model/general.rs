//! General text beside the target: what fine-tuning cost in what the model could do before.

use serde::{Deserialize, Serialize};

use super::{Comparison, DataFile, Metric};

/// Plain texts under every model, teacher-forced. The values are of texts, not of items.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct General {
    /// Where the texts come from; `rows` are texts.
    pub file: DataFile,
    /// Tokens scored.
    pub tokens: u64,
    /// UTF-8 bytes of the texts.
    pub bytes: u64,
    /// `general_nll` (nats a token) and `general_bits_per_byte`, pooled over the texts.
    pub metrics: Vec<Metric>,
    /// The pairs of the report, on these metrics, paired by text.
    pub comparisons: Vec<Comparison>,
}
