//! Training in bf16, block by block of the vocabulary: a block's logits, and then their gradients, are multiplied while
//! they are in the cache, and its part of the projection is packed once for all tokens of a chunk.
//!
//! Logits stay f32. Between the two passes they wait in memory, block after block; the sums of the softmax and the
//! gradient of the hidden states are put together from the blocks in their order.

use half::bf16;
use rayon::prelude::*;

use super::Sum;
use crate::ops::buffers;
use crate::ops::mapped::Elements;
use crate::ops::matmul::packed::{Right, Rows, multiply, multiply_rows};
use crate::ops::matmul::{Mat, MatMut, Precision, Threads, narrow_here};
use crate::ops::simd::{exp_fused, max, simd, sum_of};

/// Words of a block: its logits for the tokens of a chunk, and its rows of the projection, fit into a core's cache.
const BLOCK: usize = 256;
/// Parts of the vocabulary that sum up a gradient of the hidden states each.
const PARTS: usize = 16;
const PRECISION: Precision = Precision::Bf16;

/// Tokens whose logits exist at once at most: 96 MiB of them, 16 to 512 tokens. Depends on the vocabulary alone.
pub fn chunk(vocab: usize) -> usize {
    ((24 << 20) / vocab.max(1)).clamp(16, 512)
}

/// Bytes that training needs for `tokens` tokens of a chunk: logits, and the gradient of the hidden states by parts.
pub fn room(tokens: u64, vocab: u64, width: u64) -> u64 {
    let block = BLOCK as u64;
    4 * tokens * (vocab.next_multiple_of(block) + width * vocab.div_ceil(block).min(PARTS as u64))
}

/// See [`super::train`].
pub fn train(
    hidden: &[f32],
    targets: &[u32],
    head: Elements<'_>,
    width: usize,
    scale: f32,
    dhidden: &mut [f32],
    mut dhead: Option<Sum<'_>>,
) -> Vec<f32> {
    let vocab = head.len() / width;
    // Chunks of the same size: a short one would cost as much packing as a full one.
    let chunks = targets.len().div_ceil(chunk(vocab)).max(1);
    let size = targets.len().div_ceil(chunks).max(1);
    let mut all = Vec::with_capacity(targets.len());
    for ((hidden, targets), dhidden) in
        hidden.chunks(size * width).zip(targets.chunks(size)).zip(dhidden.chunks_mut(size * width))
    {
        let sum = dhead.as_mut().map(|Sum { sum, add }| Sum { sum, add: std::mem::replace(add, true) });
        all.extend(one_chunk(hidden, targets, head, width, scale, dhidden, sum));
    }
    all
}

fn one_chunk(
    hidden: &[f32],
    targets: &[u32],
    head: Elements<'_>,
    width: usize,
    scale: f32,
    dhidden: &mut [f32],
    dhead: Option<Sum<'_>>,
) -> Vec<f32> {
    let (n, vocab) = (targets.len(), head.len() / width);
    let blocks = vocab.div_ceil(BLOCK);
    let words = |block: usize| BLOCK.min(vocab - block * BLOCK);
    let rows_of = |block: usize| {
        let first = block * BLOCK;
        Mat::of(head.slice(first * width..(first + words(block)) * width), words(block), width)
    };
    let hidden = Mat::new(hidden, n, width);

    // Logits `[block][token][word]` with the largest and the sum of exponentials of each token.
    let mut logits = buffers::take(blocks * n * BLOCK);
    let rows = Rows::new(PRECISION, hidden, Threads::Pool);
    let sums: Vec<Vec<(f32, f32)>> = logits
        .par_chunks_mut(n * BLOCK)
        .with_max_len(1)
        .enumerate()
        .map(|(block, logits)| {
            let words = words(block);
            let weights = Right::new(PRECISION, rows_of(block).t());
            multiply_rows(MatMut::strided(logits, n, words, BLOCK), 1.0, &rows, &weights, false);
            let mut sums = vec![(0.0, 0.0); n];
            simd(
                #[inline(always)]
                || {
                    // A plain loop: a closure in an iterator of its own would be compiled for the plainest instructions.
                    for (row, sums) in logits.chunks_exact(BLOCK).zip(&mut sums) {
                        let row = &row[..words];
                        let top = max(row);
                        *sums = (top, sum_of([row], |[l]| exp_fused(l - top)));
                    }
                },
            );
            sums
        })
        .collect();
    drop(rows);
    let lse: Vec<f32> = (0..n)
        .into_par_iter()
        .with_min_len(16)
        .map(|t| {
            let top = sums.iter().map(|s| s[t].0).fold(f32::NEG_INFINITY, |m, x| if x > m { x } else { m });
            let sum: f64 = sums.iter().map(|s| f64::from(s[t].1) * f64::from(s[t].0 - top).exp()).sum();
            (f64::from(top) + sum.ln()) as f32
        })
        .collect();
    let place = |t: usize| (targets[t] as usize / BLOCK, t * BLOCK + targets[t] as usize % BLOCK);
    let logprobs = (0..n)
        .map(|t| {
            let (block, at) = place(t);
            logits[block * n * BLOCK + at] - lse[t]
        })
        .collect();

    // Their gradients, and what these are multiplied with.
    let columns = Right::new(PRECISION, hidden);
    let each = blocks.div_ceil(PARTS);
    let parts = blocks.div_ceil(each);
    let mut sums = buffers::take(parts * n * width);
    let add = dhead.as_ref().is_some_and(|dhead| dhead.add);
    let dheads: Vec<Option<&mut [f32]>> = match dhead {
        Some(dhead) => dhead.sum.chunks_mut(each * BLOCK * width).map(Some).collect(),
        None => (0..parts).map(|_| None).collect(),
    };
    let work = logits.par_chunks_mut(each * n * BLOCK).zip(sums.par_chunks_mut(n * width)).zip(dheads);
    work.with_max_len(1).enumerate().for_each(|(part, ((logits, sum), mut dhead))| {
        let mut rounded = buffers::take((n * BLOCK).div_ceil(2));
        for (i, logits) in logits.chunks_exact_mut(n * BLOCK).enumerate() {
            let block = part * each + i;
            let words = words(block);
            let rounded: &mut [bf16] = &mut bytemuck::cast_slice_mut(&mut rounded)[..n * words];
            simd(
                #[inline(always)]
                || {
                    let rows = logits.chunks_exact_mut(BLOCK).zip(rounded.chunks_exact_mut(words));
                    for (t, ((row, rounded), lse)) in rows.zip(&lse).enumerate() {
                        let row = &mut row[..words];
                        row.iter_mut().for_each(|l| *l = exp_fused(*l - lse) * scale);
                        if targets[t] as usize / BLOCK == block {
                            row[targets[t] as usize % BLOCK] -= scale;
                        }
                        narrow_here(row, rounded);
                    }
                },
            );
            let d = Mat::narrowed(rounded, n, words);
            let weights = Right::new(PRECISION, rows_of(block));
            multiply(MatMut::new(sum, n, width), 1.0, d, &weights, i > 0);
            if let Some(dhead) = &mut dhead {
                let rows = &mut dhead[i * BLOCK * width..][..words * width];
                multiply(MatMut::new(rows, words, width), 1.0, d.t(), &columns, add);
            }
        }
    });
    drop(logits);
    dhidden.par_chunks_mut(width).enumerate().for_each(|(t, row)| {
        row.copy_from_slice(&sums[t * width..][..width]);
        for part in sums.chunks_exact(n * width).skip(1) {
            row.iter_mut().zip(&part[t * width..][..width]).for_each(|(to, from)| *to += from);
        }
    });
    logprobs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{noise, with_threads};

    /// Log-probabilities and the two gradients.
    fn run(precision: Precision, tokens: usize, width: usize, vocab: usize) -> [Vec<f32>; 3] {
        let (hidden, head) = (noise(tokens * width, 1), noise(vocab * width, 2));
        let targets: Vec<u32> = (0..tokens as u32).map(|t| t * 397 % vocab as u32).collect();
        let (mut dhidden, mut dhead) = (vec![9f32; hidden.len()], vec![0.5f32; head.len()]);
        let head = Elements::F32(&head);
        let d = Some(Sum { sum: &mut dhead, add: true });
        let logprobs = super::super::train(precision, &hidden, &targets, head, width, 0.25, &mut dhidden, d);
        [logprobs, dhidden, dhead]
    }

    #[test]
    fn losses_and_gradients_are_those_of_f32_within_the_rounding_to_bf16() {
        // One block and many, the last of them narrow; one chunk and several.
        for (tokens, width, vocab) in [(21, 6, 13), (40, 70, 1000), (600, 16, 5000)] {
            let (wide, narrow) =
                (run(Precision::F32, tokens, width, vocab), run(Precision::Bf16, tokens, width, vocab));
            for (name, (a, b)) in ["log p", "dhidden", "dhead"].iter().zip(wide.iter().zip(&narrow)) {
                // Operands err by at most 2^-9 of themselves, with random signs.
                let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
                let error = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(a - b)));
                let size = norm(&mut a.iter().map(|a| f64::from(*a)));
                assert!(error < size / 256.0, "{name} of {tokens} x {width} x {vocab}: {}", error / size);
                assert_ne!(a, b);
            }
        }
    }

    #[test]
    fn a_gradient_that_is_stored_is_the_one_that_is_added_to_zeros() {
        let (tokens, width, vocab) = (600, 16, 5000);
        let (hidden, head) = (noise(tokens * width, 1), noise(vocab * width, 2));
        let targets: Vec<u32> = (0..tokens as u32).map(|t| t * 397 % vocab as u32).collect();
        let dhead = |precision: Precision, at_first: f32, add: bool| {
            let (mut dhidden, mut dhead) = (vec![9f32; hidden.len()], vec![at_first; head.len()]);
            let (head, sum) = (Elements::F32(&head), Some(Sum { sum: &mut dhead, add }));
            super::super::train(precision, &hidden, &targets, head, width, 0.25, &mut dhidden, sum);
            dhead
        };
        for precision in [Precision::F32, Precision::Bf16] {
            assert_eq!(dhead(precision, 9.0, false), dhead(precision, 0.0, true));
        }
    }

    #[test]
    fn a_frozen_projection_changes_nothing_and_threads_do_not_show() {
        let (tokens, width, vocab) = (600, 16, 5000);
        let one = with_threads(1, || run(Precision::Bf16, tokens, width, vocab));
        assert_eq!(one, with_threads(3, || run(Precision::Bf16, tokens, width, vocab)));
        let (hidden, head) = (noise(tokens * width, 1), noise(vocab * width, 2));
        let targets: Vec<u32> = (0..tokens as u32).map(|t| t * 397 % vocab as u32).collect();
        let mut dhidden = vec![9f32; hidden.len()];
        let logprobs = train(&hidden, &targets, Elements::F32(&head), width, 0.25, &mut dhidden, None);
        assert_eq!([logprobs, dhidden], one[..2]);
    }
}
