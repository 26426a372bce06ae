//! Checks of an adapter: that it was applied, and that merging it changes nothing.

use serde::{Deserialize, Serialize};

/// A few fixed items under the base model, under the adapter, and under the weights with the
/// adapter merged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterCheck {
    /// Items looked at.
    pub items: usize,
    /// Tokens of their references, each scored under every model.
    pub tokens: u64,
    /// Largest difference between a token's log-probability with and without the adapter, in nats;
    /// above 0 proves that the adapter was applied.
    pub largest_change: f64,
    /// Mean of these differences.
    pub mean_change: f64,
    /// The adapter beside the weights against the adapter merged into them; none where the backend
    /// cannot merge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merged: Option<MergedCheck>,
}

/// From this share of an adapter's effect on, what merging it changes is worth a warning.
const MERGED_SHARE: f64 = 0.25;
/// Below this difference of log-probabilities, in nats, nothing is.
const MERGED_NATS: f64 = 0.02;

impl AdapterCheck {
    /// Whether merging takes a notable part of what the adapter does, of its mean or its largest
    /// effect: in few bits, a change smaller than the last one of a weight is gone.
    pub fn merging_loses(&self) -> bool {
        self.merged.as_ref().is_some_and(|merged| {
            let mean = merged.mean_difference >= MERGED_SHARE * self.mean_change;
            let largest = merged.largest_difference >= MERGED_SHARE * self.largest_change;
            (mean || largest) && merged.largest_difference >= MERGED_NATS
        })
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_loses_where_it_takes_a_quarter_of_the_effect_and_more_than_noise() {
        let loses = |largest_change, largest_difference, mean_change, mean_difference| {
            let merged = MergedCheck {
                largest_difference,
                mean_difference,
                argmax_flips: 0,
                changed_texts: 0,
                max_new_tokens: 8,
            };
            let merged = Some(merged);
            AdapterCheck { items: 1, tokens: 9, largest_change, mean_change, merged }.merging_loses()
        };
        // Ten steps of LoRA on a model in bf16; a long training; f32; an adapter that does next to
        // nothing.
        assert!(loses(2.5, 1.2, 0.2, 0.1));
        assert!(!loses(9.0, 0.3, 1.1, 0.02));
        assert!(!loses(2.5, 1e-5, 0.2, 1e-6));
        assert!(!loses(0.001, 0.001, 0.0, 0.0));
    }
}
