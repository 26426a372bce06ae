//! What training needs in memory, as a formula.
//!
//! With `P` parameters, `T` of them trained, `t` tokens in the largest micro-batch, `c` tokens of a logits chunk
//! ([`chunk`]; in bf16 [`blocks::chunk`]), widths `h` (hidden), `i` (inner), `q` and `k` (query and key heads times their width), `L` layers and
//! vocabulary `V`, in bytes, `b` being 2 in bf16 and 4 in f32:
//!
//! ```text
//! weights      full: 4 P (f32 masters; the file is let go)      LoRA: the file, mapped, plus 4 T
//! moments      8 T
//! gradients    4 T once all are there; D = 4 V h of them after the head, where that is trained
//! kept         4 t h L, the input of every layer
//! layer        4 t (h + q + 2 i) + b t (q + 2 k), or with norms on the heads 4 t (h + 2 q + k + 2 i) + b t k: what a layer
//!              leaves for its backward pass; what feeds products alone is as they read it
//! again        b t (2 h + i), and b t (q + k) more with norms on the heads: what it does not leave, all at once
//! backward     4 t (h + i) + b t (h + 2 i), gradients of activations beside them
//! head         16 t h, and logits: f32: 4 c V, and as much again where they are transposed for a product; bf16: 4 c V,
//!              and 64 c h for the gradient of the hidden states by parts
//! ```
//!
//! A gradient takes memory from when it is written, and activations give theirs back in the backward pass, to it
//! ([`crate::ops::buffers`]). So with one micro-batch a step, activations are there before most gradients, and at the end there
//! are all gradients but those of the first layer (`4 F`) and the activations of that layer:
//!
//! ```text
//! first        D + kept + L layer + max(backward, head)
//!              with recomputation D + kept + max(layer + again + backward, head)
//! last         4 T + max(0, layer + again + backward - 4 F)
//! peak         weights + moments + max(first, last)
//! ```
//!
//! With several, the gradients of the first are there while the next has its activations: `weights + moments + 4 T + first - D`.
//! Full training in bf16 so needs 16 bytes a parameter and little more: there is no bf16 copy of the weights, products
//! round the masters as they read them.

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
    /// Micro-batches of a step.
    pub micro_batches: usize,
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
    let b = match run.precision {
        Precision::F32 => 4,
        Precision::Bf16 => 2,
    };
    let weights = if full { 4 * run.parameters } else { run.mapped + 4 * run.trained };
    let (moments, gradients) = (8 * run.trained, 4 * run.trained);
    let kept = 4 * t * h * layers;
    let (layer, heads_again) = match config.qk_norm {
        true => (4 * t * (h + 2 * q + k + 2 * i) + b * t * k, b * t * (q + k)),
        false => (4 * t * (h + q + 2 * i) + b * t * (q + 2 * k), 0),
    };
    let again = b * t * (2 * h + i) + heads_again;
    let backward = 4 * t * (h + i) + b * t * (h + 2 * i);
    let logits = match run.precision {
        Precision::F32 => t.min(chunk(config.vocab_size) as u64) * vocab * if full { 8 } else { 4 },
        Precision::Bf16 => blocks::room(t.min(blocks::chunk(config.vocab_size) as u64), vocab, h),
    };
    let head = 16 * t * h + logits;
    let activations = kept
        + match run.recompute {
            true => (layer + again + backward).max(head),
            false => layers * layer + backward.max(head),
        };
    let changing = match run.micro_batches {
        ..=1 => {
            let of_head = if full { 4 * vocab * h } else { 0 };
            let of_layer = if full { 4 * h * (2 * q + 2 * k + 3 * i) } else { 0 };
            let last = gradients + (layer + again + backward).saturating_sub(of_layer);
            (of_head + activations).max(last)
        }
        _ => gradients + activations,
    };
    weights + moments + changing
}
