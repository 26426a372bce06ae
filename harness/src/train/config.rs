//! The configuration of a training run as the field writes it.

use serde::{Deserialize, Serialize};

/// A LoRA adapter, under PEFT's names (Hu et al., arXiv 2106.09685; peft `LoraConfig`).
///
/// `y = W x + s * B (A dropout(x))` with `s = lora_alpha / r`, or `lora_alpha / sqrt(r)` with rsLoRA. `A` is drawn
/// from `U(-1/sqrt(in), 1/sqrt(in))`, `B` starts at zero.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// Numerator of the scale.
    pub lora_alpha: f64,
    /// Probability of dropping an input of `A` during training.
    pub lora_dropout: f64,
    /// Names of the linear layers that get an adapter, matched exactly or as the last part of a module path.
    pub target_modules: Vec<String>,
    /// Scale by `lora_alpha / sqrt(r)` (arXiv 2312.03732).
    pub use_rslora: bool,
}

impl Default for LoraConfig {
    /// The recipe's: r 8, alpha 32, dropout 0.1, all seven projections.
    fn default() -> Self {
        LoraConfig {
            r: 8,
            lora_alpha: 32.0,
            lora_dropout: 0.1,
            target_modules: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
                .map(String::from)
                .to_vec(),
            use_rslora: false,
        }
    }
}

impl LoraConfig {
    /// The factor on `B A x`.
    pub fn scale(&self) -> f64 {
        let r = self.r as f64;
        self.lora_alpha / if self.use_rslora { r.sqrt() } else { r }
    }
}
