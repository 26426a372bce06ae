//! Calibration of 4-bit weights: the mean square of every input channel of a linear layer.
//!
//! A few channels of a decoder's residual stream are tens of times larger than the others, and an
//! error of their weights costs so much more. Four bits are too few to ignore that: weighting a
//! weight's squared error by the mean square of its channel halves the divergence from the
//! unquantized model (SmolLM2-135M; activation-aware weight quantization, arXiv 2306.00978,
//! llama.cpp's importance matrix).
//!
//! Nobody brings texts to an export, so the model reads ids drawn at random, always the same:
//! [`ROWS`] rows of [`SEQ`], uniform in the logarithm of the id, because the ids of a byte-pair
//! vocabulary rise as its entries get rarer. Channels that are large are so whatever is read. The
//! forward pass is streamed a layer at a time, in f32; its results are rounded to a few bits, so
//! that an exponential that rounds differently changes no byte of an export.

use std::collections::BTreeMap;

use karat_backend::{BackendError, Event, EventSink, Flow};
use karat_kernels::gemm::{Mat, MatMut, Precision, Threads, gemm};
use karat_kernels::philox::Philox;
use karat_model::ModelConfig;
use rayon::prelude::*;

use super::builder::Source;

/// Rows the model reads.
const ROWS: usize = 4;
/// Ids of each.
const SEQ: usize = 128;
/// Rows of all.
const TOKENS: usize = ROWS * SEQ;

/// The mean square of every input channel of every linear layer of all blocks, by the layer's
/// module path: `[input]`, relative to the mean over the channels.
///
/// # Errors
/// A tensor that is missing or broken; cancellation.
pub fn channels(
    config: &ModelConfig,
    source: &Source<'_>,
    sink: &mut dyn EventSink,
) -> Result<BTreeMap<String, Vec<f32>>, BackendError> {
    let mut pass = Pass { config, source, hidden: embedded(config, source)?, found: BTreeMap::new() };
    for layer in 0..config.layers {
        let progress =
            Event::Progress { stage: "calibrate".into(), done: layer as u64, total: config.layers as u64, tokens: 0 };
        if sink.event(progress) == Flow::Stop {
            return Err(BackendError::cancelled());
        }
        pass.layer(layer)?;
    }
    Ok(pass.found)
}

/// The ids that are read.
fn ids(vocab: usize) -> Vec<usize> {
    let generator = Philox::new(0);
    let draw = |i| ((vocab as f64).powf(generator.uniform(i, 0, 0)) as usize).min(vocab - 1);
    (0..TOKENS as u64).map(draw).collect()
}

/// `[TOKENS, hidden]`.
fn embedded(config: &ModelConfig, source: &Source<'_>) -> Result<Vec<f32>, BackendError> {
    let shape = [config.vocab_size, config.hidden_size];
    let mut hidden = Vec::with_capacity(TOKENS * config.hidden_size);
    for id in ids(config.vocab_size) {
        hidden.extend(source.read_rows("model.embed_tokens.weight", &shape, id..id + 1)?);
    }
    Ok(hidden)
}

struct Pass<'a> {
    config: &'a ModelConfig,
    source: &'a Source<'a>,
    /// The residual stream, `[TOKENS, hidden]`.
    hidden: Vec<f32>,
    found: BTreeMap<String, Vec<f32>>,
}

impl Pass<'_> {
    fn layer(&mut self, index: usize) -> Result<(), BackendError> {
        let c = self.config;
        let (q, kv) = (c.heads.queries * c.heads.dim, c.heads.keys * c.heads.dim);
        let module = format!("model.layers.{index}");
        let attention = format!("{module}.self_attn");
        let normed = self.norm(&format!("{module}.input_layernorm"), &self.hidden, c.hidden_size)?;
        let mut query = self.linear(&format!("{attention}.q_proj"), &normed, [c.hidden_size, q], c.qkv_bias)?;
        let mut key = self.linear(&format!("{attention}.k_proj"), &normed, [c.hidden_size, kv], c.qkv_bias)?;
        let value = self.linear(&format!("{attention}.v_proj"), &normed, [c.hidden_size, kv], c.qkv_bias)?;
        if c.qk_norm {
            query = self.norm(&format!("{attention}.q_norm"), &query, c.heads.dim)?;
            key = self.norm(&format!("{attention}.k_norm"), &key, c.heads.dim)?;
        }
        let attended = attend(c, query, key, &value);
        let branch = self.linear(&format!("{attention}.o_proj"), &attended, [q, c.hidden_size], c.o_bias)?;
        add(&mut self.hidden, &branch);

        let normed = self.norm(&format!("{module}.post_attention_layernorm"), &self.hidden, c.hidden_size)?;
        let wide = [c.hidden_size, c.intermediate_size];
        let mut gated = self.linear(&format!("{module}.mlp.gate_proj"), &normed, wide, c.mlp_bias)?;
        let up = self.linear(&format!("{module}.mlp.up_proj"), &normed, wide, c.mlp_bias)?;
        gated.par_iter_mut().zip(&up).for_each(|(g, u)| *g = *g / (1.0 + (-*g).exp()) * u);
        let narrow = [c.intermediate_size, c.hidden_size];
        let branch = self.linear(&format!("{module}.mlp.down_proj"), &gated, narrow, c.mlp_bias)?;
        add(&mut self.hidden, &branch);
        Ok(())
    }

    /// The root-mean-square norm of every `width` numbers of `x`.
    fn norm(&self, module: &str, x: &[f32], width: usize) -> Result<Vec<f32>, BackendError> {
        let weight = self.source.read_rows(&format!("{module}.weight"), &[width], 0..width)?;
        let mut normed = x.to_vec();
        normed.par_chunks_exact_mut(width).for_each(|row| {
            let square = row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / width as f64;
            let scale = (1.0 / (square + self.config.rms_norm_eps).sqrt()) as f32;
            row.iter_mut().zip(&weight).for_each(|(v, w)| *v *= scale * w);
        });
        Ok(normed)
    }

    /// `x W^T (+ b)` with `x` `[TOKENS, input]`; notes how large the channels of `x` are.
    fn linear(
        &mut self,
        module: &str,
        x: &[f32],
        [input, output]: [usize; 2],
        bias: bool,
    ) -> Result<Vec<f32>, BackendError> {
        self.found.insert(module.to_string(), mean_squares(x, input));
        let weight = self.source.linear(module, output, input)?;
        let mut y = match bias {
            true => self.source.read_rows(&format!("{module}.bias"), &[output], 0..output)?.repeat(TOKENS),
            false => vec![0f32; TOKENS * output],
        };
        accumulate(&mut y, x, &weight, input);
        Ok(y)
    }
}

fn add(sum: &mut [f32], more: &[f32]) {
    sum.par_iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
}

/// `y += x w^T` with `x` `[rows, input]` and `w` `[output, input]`.
fn accumulate(y: &mut [f32], x: &[f32], w: &[f32], input: usize) {
    let (rows, output) = (x.len() / input, w.len() / input);
    let (x, w) = (Mat::new(x, rows, input), Mat::new(w, output, input));
    gemm(Precision::F32, MatMut::new(y, rows, output), 1.0, x, w.t(), true, Threads::Pool);
}

/// The mean square of every column of `x` `[TOKENS, width]`, relative to their mean and rounded to
/// 4 bits of mantissa.
fn mean_squares(x: &[f32], width: usize) -> Vec<f32> {
    let mut sums = vec![0f64; width];
    for row in x.chunks_exact(width) {
        sums.iter_mut().zip(row).for_each(|(sum, &v)| *sum += f64::from(v) * f64::from(v));
    }
    let mean = sums.iter().sum::<f64>() / width as f64;
    sums.iter().map(|&sum| coarse(if mean > 0.0 { (sum / mean) as f32 } else { 1.0 })).collect()
}

/// The nearest number with 4 bits of mantissa, and nothing below a millionth: a channel that was
/// silent here still counts.
fn coarse(x: f32) -> f32 {
    f32::from_bits((x.max(1e-6).to_bits() + (1 << 18)) & !((1 << 19) - 1))
}

/// Causal grouped-query attention with rotary positions within each row of [`SEQ`]:
/// `[TOKENS, heads * head_dim]`.
fn attend(c: &ModelConfig, mut query: Vec<f32>, mut key: Vec<f32>, value: &[f32]) -> Vec<f32> {
    let (dim, group) = (c.heads.dim, c.heads.queries / c.heads.keys);
    let turn = (c.rope.inverse_frequencies(dim), c.rope.attention_factor());
    rotate(&mut query, c.heads.queries, dim, &turn);
    rotate(&mut key, c.heads.keys, dim, &turn);
    let scale = (1.0 / (dim as f64).sqrt()) as f32;
    let mut out = vec![0f32; query.len()];
    out.par_chunks_exact_mut(c.heads.queries * dim).enumerate().for_each(|(token, out)| {
        let first = token / SEQ * SEQ;
        for (head, out) in out.chunks_exact_mut(dim).enumerate() {
            let at = |matrix: &'_ [f32], t: usize| (t * c.heads.keys + head / group) * dim..matrix.len();
            let query = &query[(token * c.heads.queries + head) * dim..][..dim];
            let mut weights: Vec<f32> = (first..=token)
                .map(|t| scale * key[at(&key, t)].iter().zip(query).map(|(k, q)| k * q).sum::<f32>())
                .collect();
            let highest = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            weights.iter_mut().for_each(|w| *w = (*w - highest).exp());
            let total: f32 = weights.iter().sum();
            for (t, w) in (first..=token).zip(&weights) {
                out.iter_mut().zip(&value[at(value, t)]).for_each(|(o, v)| *o += w / total * v);
            }
        }
    });
    out
}

/// Rotates the halves of every head of `x` `[TOKENS, heads * dim]` by its position in its row, at
/// these frequencies and times this factor.
fn rotate(x: &mut [f32], heads: usize, dim: usize, (frequencies, factor): &(Vec<f32>, f32)) {
    x.par_chunks_exact_mut(heads * dim).enumerate().for_each(|(token, x)| {
        let position = (token % SEQ) as f32;
        for head in x.chunks_exact_mut(dim) {
            let (low, high) = head.split_at_mut(dim / 2);
            for ((a, b), f) in low.iter_mut().zip(high).zip(frequencies) {
                let (sin, cos) = (position * f).sin_cos();
                let (sin, cos) = (sin * factor, cos * factor);
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_in_the_vocabulary_and_the_early_ones_are_read_most() {
        for vocab in [1, 7, 49_152] {
            let ids = ids(vocab);
            assert!(ids.iter().all(|&id| id < vocab));
        }
        let early = ids(49_152).into_iter().filter(|&id| id < 222).count();
        assert!((TOKENS * 2 / 5..TOKENS * 3 / 5).contains(&early), "{early}: half the logarithm, half the ids");
    }

    #[test]
    fn a_layer_is_its_definition() {
        let (rows, input, output) = (3, 5, 4);
        let fill = |n: usize, k: f32| (0..n).map(|i| (i as f32 * k).sin()).collect::<Vec<f32>>();
        let (x, w, bias) = (fill(rows * input, 0.7), fill(output * input, 1.3), fill(rows * output, 0.2));
        let mut y = bias.clone();
        accumulate(&mut y, &x, &w, input);
        for r in 0..rows {
            for o in 0..output {
                let sum: f32 = (0..input).map(|i| x[r * input + i] * w[o * input + i]).sum();
                assert!((y[r * output + o] - sum - bias[r * output + o]).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn channels_are_relative_coarse_and_never_nothing() {
        let mut x = vec![1.0f32; TOKENS * 4];
        x.chunks_exact_mut(4).for_each(|row| (row[1], row[3]) = (5.0, 0.0));
        let channels = mean_squares(&x, 4);
        // The mean is (1 + 25 + 1 + 0) / 4.
        for (found, exact) in channels.iter().zip([1.0 / 6.75, 25.0 / 6.75, 1.0 / 6.75, 1e-6f32]) {
            assert!((found / exact - 1.0).abs() <= 1.0 / 32.0, "{found} {exact}");
        }
        assert_eq!(coarse(1.0 + 1e-4), coarse(1.0));
        assert_eq!(mean_squares(&vec![0.0; TOKENS * 4], 4), [1.0; 4]);
    }
}
