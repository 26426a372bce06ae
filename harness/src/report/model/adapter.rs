//! What is known of an adapter: that it was applied, and that merging it changes nothing.

use serde::{Deserialize, Serialize};

/// A few fixed items under the base model, under the adapter, and under the weights with the adapter merged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterCheck {
    /// Items looked at.
    pub items: usize,
    /// Tokens of their references, each scored under every model.
    pub tokens: u64,
    /// Largest difference between a token's log-probability with and without the adapter, in nats; above 0 proves that the
    /// adapter was applied.
    pub largest_change: f64,
    /// Mean of these differences.
    pub mean_change: f64,
    /// The adapter beside the weights against the adapter merged into them; none where the backend cannot merge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merged: Option<MergedCheck>,
}

/// Adapter against merged weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MergedCheck {
    /// Largest difference between log-probabilities of a token, in nats.
    pub largest_difference: f64,
    /// Mean of these differences.
    pub mean_difference: f64,
    /// Reference tokens that are the most probable one under one of the two alone.
    pub argmax_flips: u64,
    /// Greedy texts that differ.
    pub changed_texts: usize,
    /// Longest of these texts, in tokens.
    pub max_new_tokens: usize,
}
