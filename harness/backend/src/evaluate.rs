//! Scores, and the settings and results of generation.

use serde::{Deserialize, Serialize};

/// Log-probabilities of a scored batch: row `i` of `n` ids has `max(n, 1) - 1` entries, the first
/// for the second token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// Natural-log probability of each token given its prefix, rows back to back.
    pub logprobs: Vec<f32>,
    /// Whether that token was the most probable one (ties go to the lowest id).
    pub greedy: Vec<bool>,
}

/// How to generate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenerateConfig {
    /// At most so many new tokens per row.
    pub max_new_tokens: usize,
    /// 0 is greedy (ties go to the lowest id).
    #[serde(default)]
    pub temperature: f64,
    /// Sample from the smallest set of tokens with at least this probability; 1 is off.
    #[serde(default = "one")]
    pub top_p: f64,
    /// Sample from the `k` most probable tokens; 0 is off.
    #[serde(default)]
    pub top_k: usize,
    /// Seed of sampling. A row's text depends on the seed and its row number, not on how rows are
    /// batched; backends that sample by the rule of `karat-model` give the same one wherever their
    /// logits agree.
    #[serde(default)]
    pub seed: u64,
    /// A row ends when it produces one of these ids (which stays the last of its ids).
    #[serde(default)]
    pub stop_ids: Vec<u32>,
    /// Rows decoded together; 0 lets the backend choose.
    #[serde(default)]
    pub batch_size: usize,
}

fn one() -> f64 {
    1.0
}

impl GenerateConfig {
    /// Greedy decoding.
    pub fn greedy(max_new_tokens: usize, stop_ids: Vec<u32>) -> Self {
        GenerateConfig { max_new_tokens, temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0, stop_ids, batch_size: 0 }
    }

    /// What decides a text, as JSON: everything but how many rows are decoded together.
    pub fn deciding(&self) -> String {
        let deciding = GenerateConfig { batch_size: 0, ..self.clone() };
        serde_json::to_string(&deciding).expect("numbers and lists of them are JSON")
    }
}

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopReason {
    /// It produced a stop id.
    Stop,
    /// It reached `max_new_tokens`.
    Length,
    /// It reached the longest sequence the model can hold.
    Context,
}

/// One generated row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Completion {
    /// The new ids, without the prompt; the stop id included if one ended it.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub stop: StopReason,
}
