//! The last step of the base model's recipe: from a pretrained checkpoint to the weights that are
//! shipped.
//!
//! Plain text holds no control tokens, so pretraining only ever pushes their rows of the (tied)
//! embedding away from every hidden state, all along one direction: such "glitch" rows cannot be
//! told apart, and an adapter on frozen weights can hardly learn to write them. They get new rows,
//! as one does when adding tokens to a model's vocabulary: the mean of all other rows plus noise of
//! their spread (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models").
//! The end-of-text token keeps its row: pretraining has seen it after every document.

use std::path::Path;

use half::bf16;
use karat::eval::stats::random::Random;
use karat::{Error, Result, fsio};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};

use super::SEED;

/// The tied embedding.
const EMBEDDING: &str = "model.embed_tokens.weight";
/// Rows from this one on are control tokens; the first of them, end-of-text, keeps its row.
const FIRST_CONTROL: usize = 4091;

/// Reads the float32 checkpoint `from` and writes bfloat16 weights to `to`.
///
/// # Errors
/// I/O, a file that is no such checkpoint.
pub fn finish(from: &Path, to: &Path) -> Result<()> {
    let bytes = std::fs::read(from).map_err(|e| Error::io("read the checkpoint", from, e))?;
    let broken = |what: &str| Error::data(what.to_string()).at(from.display());
    let tensors = SafeTensors::deserialize(&bytes)
        .map_err(|e| Error::data("not a safetensors file").at(from.display()).because(e))?;
    let mut narrowed: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, tensor) in tensors.iter() {
        if tensor.dtype() != Dtype::F32 {
            return Err(broken("the checkpoint is not float32"));
        }
        let mut values: Vec<f32> =
            tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        if name == EMBEDDING {
            renew_rows(&mut values, tensor.shape()[1]);
        }
        let bytes = values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
        narrowed.push((name.to_string(), tensor.shape().to_vec(), bytes));
    }
    narrowed.sort_by(|a, b| a.0.cmp(&b.0));
    if !narrowed.iter().any(|t| t.0 == EMBEDDING) {
        return Err(broken("the checkpoint has no embedding"));
    }
    let views = narrowed
        .iter()
        .map(|(name, shape, bytes)| Ok((name.clone(), TensorView::new(Dtype::BF16, shape.clone(), bytes)?)))
        .collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>()
        .and_then(|views| serialize(views, Some([("format".to_string(), "pt".to_string())].into())))
        .map_err(|e| Error::failed("could not lay out the weights").because(e))?;
    fsio::write_atomic(to, &views)
}

/// Draws the control rows after end-of-text anew.
fn renew_rows(embedding: &mut [f32], hidden: usize) {
    let (seen, control) = embedding.split_at_mut((FIRST_CONTROL + 1) * hidden);
    let rows = seen.len() / hidden;
    let column = |j: usize| seen.iter().skip(j).step_by(hidden).map(|&x| f64::from(x));
    let means: Vec<f64> = (0..hidden).map(|j| column(j).sum::<f64>() / rows as f64).collect();
    let spreads: Vec<f64> =
        (0..hidden).map(|j| (column(j).map(|x| (x - means[j]).powi(2)).sum::<f64>() / rows as f64).sqrt()).collect();
    let mut random = Random::stream(SEED, 0);
    let mut uniform = || (random.bits() >> 11) as f64 / (1u64 << 53) as f64;
    for (i, x) in control.iter_mut().enumerate() {
        // Box and Muller (1958); 1 - u is never 0.
        let normal = (-2.0 * (1.0 - uniform()).ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
        *x = (means[i % hidden] + spreads[i % hidden] * normal) as f32;
    }
}
