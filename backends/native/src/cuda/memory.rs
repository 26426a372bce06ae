//! What full training in bf16 with one micro-batch a step and recomputation needs on a device, as a formula.
//!
//! With `P` parameters, `t` tokens, widths `h` (hidden), `i` (inner), `q` and `k` (query and key heads times their width), `L`
//! layers of `p` parameters, a tied vocabulary `V`, and `c` tokens of a chunk of logits, in bytes:
//!
//! ```text
//! lasting   12 P: weights 2 + 2 (split), moments 4 + 4
//! layer     2 t (4 h + 3 q + 3 k + 5 i) where the gradients of gate and up are made, a layer's most
//! head      2 t h (L + 4) + 6 c V, and for the projection's gradient 4 V h over several chunks, else 2 V h
//! last      2 (P - p + h i) + 2 t h + layer: the gradients but those of the first layer that come later
//! peak      lasting + max(head, last)
//! ```
//!
//! Beside that: 32 MiB for cuBLAS, and what waits in the pool at that moment, at most another `layer`.

use super::ops;
use crate::config::ModelConfig;

/// `layer` of the formula, in bytes, for `tokens` tokens.
pub fn of_a_layer(config: &ModelConfig, tokens: usize) -> u64 {
    let [t, h, i, dim] = [tokens, config.hidden_size, config.intermediate_size, config.heads.dim].map(|n| n as u64);
    let (q, k) = (config.heads.queries as u64 * dim, config.heads.keys as u64 * dim);
    2 * t * (4 * h + 3 * q + 3 * k + 5 * i)
}

/// `peak` of the formula, in bytes, for `tokens` tokens of one row and a model of `parameters`.
pub fn peak_of_full_training(config: &ModelConfig, parameters: u64, tokens: usize) -> u64 {
    let [t, h, i, layers, vocab, dim] =
        [tokens, config.hidden_size, config.intermediate_size, config.layers, config.vocab_size, config.heads.dim]
            .map(|n| n as u64);
    let (q, k) = (config.heads.queries as u64 * dim, config.heads.keys as u64 * dim);
    let chunk = t.min(ops::chunk(config.vocab_size) as u64);
    let parameters_of_layer = h * (2 * q + 2 * k) + 3 * h * i;
    let sum = if chunk < t { 4 } else { 2 };
    let head = 2 * t * h * (layers + 4) + 6 * chunk * vocab + sum * vocab * h;
    let last = 2 * (parameters + h * i - parameters_of_layer) + 2 * t * h + of_a_layer(config, tokens);
    12 * parameters + head.max(last)
}
