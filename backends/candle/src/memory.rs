//! What training needs in memory, as a formula.
//!
//! With `P` parameters, `T` of them trained, `t` tokens in the largest micro-batch, `c` tokens of a logits chunk
//! ([`chunk`]; in bf16 [`blocks::chunk`]), widths `h` (hidden), `i` (inner), `q` and `k` (query and key heads times their width), `L` layers and
//! vocabulary `V`, in bytes:
//!
//! ```text
//! weights      full: 4 P (f32 masters; the file is let go)      LoRA: the file, mapped, plus 4 T
//! optimizer    12 T (two moments and the gradient, f32)
//! kept         4 t h L, the input of every layer
//! layer        4 t (h + 2 q + 2 k + 2 i, and q + k more with norms on the heads), its activations
//! backward     4 t (2 h + i), activations that are made again, and 4 t (4 h + q + 2 k + 3 i), the gradients beside them, and b t i for a rounded operand
//! logits       f32: 4 c V, and as much again where they are transposed for a product; bf16: 4 c V, and 64 c h for the
//!              gradient of the hidden states by parts
//! ```
//!
//! `b` is 2 in bf16 and 4 in f32. With recomputation, one layer's activations exist at a time and none beside the logits:
//! `peak = weights + optimizer + kept + max(layer + backward, logits)`; without it
//! `weights + optimizer + kept + L layer + max(backward, logits)`. Full training in bf16 so needs 16 bytes a
//! parameter: there is no bf16 copy of the weights, products round the masters as they read them.

use crate::config::ModelConfig;
use crate::ops::cross_entropy::{blocks, chunk};
use crate::ops::matmul::Precision;

/// What a training run is like, as far as memory goes.
#[derive(Clone, Copy, Debug)]
pub struct Training {
    /// Parameters of the model.
    pub parameters: u64,
    /// Those that are trained.
    pub trained: u64,
    /// Bytes of the model's file that stay mapped: 0 where all parameters are trained.
    pub mapped: u64,
    /// Tokens of the largest micro-batch.
    pub tokens: usize,
    /// What products are computed in.
    pub precision: Precision,
    /// Whether activations are made again in the backward pass.
    pub recompute: bool,
}

/// Bytes that a training run needs at its peak, without the program itself; see the formula above.
pub fn peak(config: &ModelConfig, run: &Training) -> u64 {
    let t = run.tokens as u64;
    let (h, i, layers, vocab) =
        (config.hidden_size as u64, config.intermediate_size as u64, config.layers as u64, config.vocab_size as u64);
    let dim = config.heads.dim as u64;
    let (q, k) = (config.heads.queries as u64 * dim, config.heads.keys as u64 * dim);
    let full = run.mapped == 0;
    let operand = match run.precision {
        Precision::F32 => 4,
        Precision::Bf16 => 2,
    };
    let weights = if full { 4 * run.parameters } else { run.mapped + 4 * run.trained };
    let optimizer = 12 * run.trained;
    let kept = 4 * t * h * layers;
    let layer = 4 * t * (h + 2 * q + 2 * k + 2 * i + if config.qk_norm { q + k } else { 0 });
    let backward = 4 * t * (6 * h + q + 2 * k + 4 * i) + operand * t * i;
    let logits = match run.precision {
        Precision::F32 => t.min(chunk(config.vocab_size) as u64) * vocab * if full { 8 } else { 4 },
        Precision::Bf16 => blocks::room(t.min(blocks::chunk(config.vocab_size) as u64), vocab, h),
    };
    let activations = match run.recompute {
        true => (layer + backward).max(logits),
        false => layers * layer + backward.max(logits),
    };
    weights + optimizer + kept + activations
}
