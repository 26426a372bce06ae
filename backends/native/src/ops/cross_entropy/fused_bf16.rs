//! Training in bf16, block by block of the vocabulary, each of which is read once: its logits, and
//! their part of the gradient of the hidden states, are multiplied while they are in the cache, and
//! are never in memory.
//!
//! The gradient of a token's hidden state is `scale (sum over the words of p W - W[target])`, and
//! `p = e^l / Z` with a `Z` that is known after the last block. So `e^l` itself, rounded to bf16,
//! is multiplied with the projection, and `Z` divides the sum (as in Milakov and Gimelshein, arXiv
//! 1805.02867). To keep it within range it is `e^l 2^-m` with a whole number `m`, the logarithm of
//! the first block's largest; should a later one be far larger, what is there is divided by a power
//! of two, exactly. The target's own word is left out of sums and products alike and put in at the
//! end in f32, where `1 - p` is the sum of all others over `Z`: what a token that is already
//! predicted well still has to learn is not lost in rounding.
//!
//! Where the projection is trained, the `e^l 2^-m` are kept in bf16 until `Z` is known, and its
//! gradient is their product with the hidden states times `scale 2^m / Z`.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::Sum;
use crate::ops::embedding;
use karat_kernels::gemm::pack::whole::{PackedLhs, PackedRhs, multiply, multiply_rows};
use karat_kernels::gemm::{Mat, MatMut, Precision, Threads, narrow_here, task};
use karat_kernels::memory::arena;
use karat_kernels::memory::mmap::Elements;
use karat_kernels::simd::{LANES, exp_shifted, max, simd, sum_of};

/// Words of a block: its logits for a group of tokens, and its rows of the projection, fit into a
/// core's cache.
const BLOCK: usize = 256;
/// Tokens whose logits are computed before they are looked at: whole groups of rows of a product.
const GROUP: usize = 96;
/// Parts of the vocabulary that sum up a gradient of the hidden states each.
const PARTS: usize = 16;
/// Powers of two by which an exponential may exceed the largest of the first block.
const ROOM: f32 = 40.0;
const PRECISION: Precision = Precision::Bf16;

/// Tokens that are trained on at once at most. Where the projection is `trained`, their
/// exponentials take 96 MiB at most, unless these are fewer than 16; so it depends on the
/// vocabulary alone.
pub fn chunk(vocab: usize, trained: bool) -> usize {
    if trained { ((48 << 20) / vocab.max(1)).clamp(16, 512) } else { 512 }
}

/// Bytes that training needs for `tokens` tokens of a chunk: the gradient of the hidden states by
/// parts and, where the projection is `trained`, exponentials.
pub fn room(tokens: u64, vocab: u64, width: u64, trained: bool) -> u64 {
    let blocks = vocab.div_ceil(BLOCK as u64);
    let exponentials = if trained { 2 * blocks * BLOCK as u64 } else { 0 };
    tokens * (4 * (width + LANES as u64) * blocks.min(PARTS as u64) + exponentials)
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
    let chunks = targets.len().div_ceil(chunk(vocab, dhead.is_some())).max(1);
    let size = targets.len().div_ceil(chunks).max(1);
    let mut all = Vec::with_capacity(targets.len());
    for ((hidden, targets), dhidden) in
        hidden.chunks(size * width).zip(targets.chunks(size)).zip(dhidden.chunks_mut(size * width))
    {
        let chunk = Chunk { hidden, targets, head, width, vocab, scale };
        let sum = dhead.as_mut().map(|Sum { sum, add }| Sum { sum, add: std::mem::replace(add, true) });
        all.extend(chunk.train(dhidden, sum));
    }
    all
}

/// Tokens that are trained on at once.
struct Chunk<'a> {
    /// `[tokens, width]`.
    hidden: &'a [f32],
    targets: &'a [u32],
    /// `[vocab, width]`.
    head: Elements<'a>,
    width: usize,
    vocab: usize,
    scale: f32,
}

/// Partial softmax statistics of a token over a part of the vocabulary, or all of it.
#[derive(Clone, Copy, Debug)]
struct Softmax {
    /// `m`: what follows is in units of `2^m`.
    exponent: f32,
    /// Exponentials of all words but the target.
    others: f64,
    /// The target's logit, if it is among these words.
    target: Option<f32>,
}

/// Softmax statistics of a token over the whole vocabulary.
struct Outcome {
    logprob: f32,
    /// Factor that rescales the sum of each part.
    factors: Vec<f32>,
    /// Factor of the target's row of the projection: `-scale (1 - p)`.
    target: f32,
}

/// `2^exponent` for a whole number: 0 below the range of f64.
fn power(exponent: f32) -> f64 {
    match exponent as i64 {
        ..-1022 => 0.0,
        e => f64::from_bits(((e.min(1023) + 1023) as u64) << 52),
    }
}

/// Puts `e^l 2^-exponent` in the place of each logit and returns their sum, in fixed lanes.
#[inline(always)]
fn exponentials(logits: &mut [f32], exponent: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = logits.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for (l, lane) in chunk.iter_mut().zip(&mut lanes) {
            *l = exp_shifted(*l, exponent);
            *lane += *l;
        }
    }
    for (l, lane) in rest.iter_mut().zip(&mut lanes) {
        *l = exp_shifted(*l, exponent);
        *lane += *l;
    }
    sum_of([&lanes], |[lane]| lane)
}

impl Chunk<'_> {
    fn words(&self, block: usize) -> usize {
        BLOCK.min(self.vocab - block * BLOCK)
    }

    /// A block's rows of the projection.
    fn rows(&self, block: usize) -> Mat<'_> {
        let (first, words) = (block * BLOCK, self.words(block));
        Mat::of(self.head.slice(first * self.width..(first + words) * self.width), words, self.width)
    }

    fn train(&self, dhidden: &mut [f32], dhead: Option<Sum<'_>>) -> Vec<f32> {
        let (n, width) = (self.targets.len(), self.width);
        let blocks = self.vocab.div_ceil(BLOCK);
        let each = blocks.div_ceil(PARTS);
        let parts = blocks.div_ceil(each);
        // Rows a power of two apart would share few places of the cache.
        let stride = width + LANES;
        let hidden = Mat::new(self.hidden, n, width);
        let groups: Vec<PackedLhs<'_>> = (0..n)
            .step_by(GROUP)
            .map(|t| PackedLhs::new(PRECISION, hidden.part(t..(t + GROUP).min(n), 0..width), Threads::Pool))
            .collect();
        let mut sums = arena::alloc(parts * n * stride);
        let mut kept = arena::alloc(if dhead.is_some() { (blocks * n * BLOCK).div_ceil(2) } else { 0 });
        let mut kept: Vec<Option<&mut [bf16]>> = match dhead {
            Some(_) => bytemuck::cast_slice_mut(&mut kept).chunks_mut(each * n * BLOCK).map(Some).collect(),
            None => (0..parts).map(|_| None).collect(),
        };
        let softmaxes: Vec<Vec<Softmax>> = sums
            .par_chunks_mut(n * stride)
            .zip(&mut kept)
            .with_max_len(1)
            .enumerate()
            .map(|(part, (sum, kept))| {
                let range = part * each..((part + 1) * each).min(blocks);
                task(|| self.part(range, &groups, sum, stride, kept.as_deref_mut()))
            })
            .collect();
        drop(groups);
        let outcomes: Vec<Outcome> =
            (0..n).into_par_iter().with_min_len(16).map(|t| self.outcome(softmaxes.iter().map(|of| of[t]))).collect();
        embedding::gather(self.head, width, self.targets, dhidden);
        dhidden.par_chunks_mut(width).zip(&outcomes).enumerate().for_each(|(t, (row, outcome))| {
            row.iter_mut().for_each(|x| *x *= outcome.target);
            for (part, &factor) in sums.chunks_exact(n * stride).zip(&outcome.factors) {
                simd(
                    #[inline(always)]
                    || row.iter_mut().zip(&part[t * stride..]).for_each(|(to, &x)| *to = x.mul_add(factor, *to)),
                );
            }
        });
        drop(sums);
        if let Some(Sum { sum, add }) = dhead {
            let work = sum.par_chunks_mut(each * BLOCK * width).zip(kept);
            work.with_max_len(1).enumerate().for_each(|(part, (dhead, kept))| {
                let factors: Vec<f32> = outcomes.iter().map(|outcome| outcome.factors[part]).collect();
                let kept = kept.unwrap_or_default();
                task(|| self.head_gradient(part * each, &outcomes, &factors, kept, dhead, add));
            });
        }
        outcomes.iter().map(|outcome| outcome.logprob).collect()
    }

    /// Takes the words of some blocks: sums up `[tokens]`, their part of the gradient of the hidden
    /// states in units of `2^m` to `sum` `[tokens, stride]`, and, where they are wanted,
    /// exponentials to `kept` `[blocks][tokens, words]`.
    fn part(
        &self,
        blocks: Range<usize>,
        groups: &[PackedLhs<'_>],
        sum: &mut [f32],
        stride: usize,
        kept: Option<&mut [bf16]>,
    ) -> Vec<Softmax> {
        let n = self.targets.len();
        let mut softmaxes = vec![Softmax { exponent: 0.0, others: 0.0, target: None }; n];
        let mut logits = arena::alloc(GROUP.min(n) * BLOCK);
        let keeps = kept.is_some();
        let mut own = arena::alloc(if keeps { 0 } else { (n * BLOCK).div_ceil(2) });
        let kept = kept.unwrap_or(bytemuck::cast_slice_mut(&mut own));
        for (i, block) in blocks.enumerate() {
            let words = self.words(block);
            let (before, rounded) = kept.split_at_mut(if keeps { i * n * BLOCK } else { 0 });
            let rounded = &mut rounded[..n * words];
            let weights = PackedRhs::new(PRECISION, self.rows(block).t());
            for (group, rows) in groups.iter().enumerate() {
                let first = group * GROUP;
                let tokens = first..(first + GROUP).min(n);
                let logits = &mut logits[..tokens.len() * words];
                multiply_rows(MatMut::new(logits, tokens.len(), words), 1.0, rows, &weights, false);
                simd(
                    #[inline(always)]
                    || {
                        // A plain loop: a closure in an iterator of its own would be compiled for
                        // the plainest instructions.
                        for (t, row) in tokens.zip(logits.chunks_exact_mut(words)) {
                            let softmax = &mut softmaxes[t];
                            let exponent = whole_exponent(max(row));
                            if i == 0 {
                                softmax.exponent = exponent;
                            } else if exponent > softmax.exponent + ROOM {
                                let factor = power(softmax.exponent - exponent);
                                softmax.others *= factor;
                                softmax.exponent = exponent;
                                lower(&mut sum[t * stride..][..self.width], factor as f32);
                                lower_kept(before, n, t, factor as f32);
                            }
                            let target = self.targets[t] as usize;
                            if target / BLOCK == block {
                                // Its exponential is zero.
                                let logit = std::mem::replace(&mut row[target % BLOCK], f32::NEG_INFINITY);
                                softmax.target = Some(logit);
                            }
                            softmax.others += f64::from(exponentials(row, softmax.exponent));
                            narrow_here(row, &mut rounded[t * words..][..words]);
                        }
                    },
                );
            }
            drop(weights);
            let weights = PackedRhs::new(PRECISION, self.rows(block));
            let exponentials = Mat::narrowed(rounded, n, words);
            multiply(MatMut::strided(sum, n, self.width, stride), 1.0, exponentials, &weights, i > 0);
        }
        softmaxes
    }

    /// Puts together what the parts know of a token.
    fn outcome(&self, parts: impl Iterator<Item = Softmax> + Clone) -> Outcome {
        let top = parts.clone().map(|part| part.exponent).fold(f32::NEG_INFINITY, f32::max);
        let others: f64 = parts.clone().map(|part| part.others * power(part.exponent - top)).sum();
        let logit = parts.clone().find_map(|part| part.target).map_or(f64::NAN, f64::from);
        // Beyond this size of logits, infinite ones among them, the exponentials mean nothing: that
        // is to be seen.
        let sound = top.abs() < 1e6 && logit.abs() < 1e6;
        let others = if sound { others } else { f64::NAN };
        let offset = f64::from(top) * std::f64::consts::LN_2;
        let all = others + (logit - offset).exp();
        let scale = f64::from(self.scale) / all;
        Outcome {
            logprob: (logit - (offset + all.ln())) as f32,
            factors: parts.map(|part| (scale * power(part.exponent - top)) as f32).collect(),
            target: -(scale * others) as f32,
        }
    }

    /// The gradient of the projection's rows from block `first` on: to `dhead`, or added to what is
    /// there.
    fn head_gradient(
        &self,
        first: usize,
        outcomes: &[Outcome],
        factors: &[f32],
        kept: &[bf16],
        dhead: &mut [f32],
        add: bool,
    ) {
        let (n, width) = (self.targets.len(), self.width);
        let mut hidden = arena::alloc(n * width);
        for ((to, from), factor) in hidden.chunks_exact_mut(width).zip(self.hidden.chunks_exact(width)).zip(factors) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from * factor);
        }
        let columns = PackedRhs::new(PRECISION, Mat::new(&hidden, n, width));
        drop(hidden);
        for (i, dhead) in dhead.chunks_mut(BLOCK * width).enumerate() {
            let words = self.words(first + i);
            let exponentials = Mat::narrowed(&kept[i * n * BLOCK..][..n * words], n, words);
            multiply(MatMut::new(dhead, words, width), 1.0, exponentials.t(), &columns, add);
            for (t, outcome) in outcomes.iter().enumerate() {
                let target = self.targets[t] as usize;
                if target / BLOCK == first + i {
                    let row = dhead[target % BLOCK * width..][..width].iter_mut();
                    simd(
                        #[inline(always)]
                        || row.zip(&self.hidden[t * width..]).for_each(|(to, x)| *to = x.mul_add(outcome.target, *to)),
                    );
                }
            }
        }
    }
}

/// The least whole number that `log2 e^logit` does not exceed; 0 where there is none.
#[inline(always)]
fn whole_exponent(logit: f32) -> f32 {
    let exponent = (logit * std::f32::consts::LOG2_E).ceil();
    if exponent.is_finite() { exponent } else { 0.0 }
}

/// Multiplies by a power of two.
#[cold]
fn lower(row: &mut [f32], factor: f32) {
    row.iter_mut().for_each(|x| *x *= factor);
}

/// Multiplies what blocks before have kept of token `t` of `n` by a power of two; what becomes too
/// small is zero.
#[cold]
fn lower_kept(before: &mut [bf16], n: usize, t: usize, factor: f32) {
    for block in before.chunks_exact_mut(n * BLOCK) {
        for x in &mut block[t * BLOCK..][..BLOCK] {
            let lower = x.to_f32() * factor;
            *x = if lower.is_subnormal() { bf16::ZERO } else { bf16::from_f32(lower) };
        }
    }
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
                let error = distance(a, b);
                assert!(error < 1.0 / 256.0, "{name} of {tokens} x {width} x {vocab}: {error}");
                assert_ne!(a, b);
            }
        }
    }

    /// How far `b` is from `a`, by their norms.
    fn distance(a: &[f32], b: &[f32]) -> f64 {
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
        norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(a - b))) / norm(&mut a.iter().map(|a| f64::from(*a)))
    }

    /// Log-probabilities and the two gradients in both precisions, of operands that bf16 holds
    /// exactly.
    fn run_both(mut hidden: Vec<f32>, mut head: Vec<f32>, targets: &[u32], width: usize) -> [[Vec<f32>; 3]; 2] {
        hidden.iter_mut().chain(&mut head).for_each(|x| *x = bf16::from_f32(*x).to_f32());
        [Precision::F32, Precision::Bf16].map(|precision| {
            let (mut dhidden, mut dhead) = (vec![9f32; hidden.len()], vec![9f32; head.len()]);
            let (head, sum) = (Elements::F32(&head), Some(Sum { sum: &mut dhead, add: false }));
            let logprobs = super::super::train(precision, &hidden, targets, head, width, 0.25, &mut dhidden, sum);
            [logprobs, dhidden, dhead]
        })
    }

    #[test]
    fn logits_of_any_size_anywhere_in_the_vocabulary_do_no_harm() {
        let (tokens, width, vocab) = (30, 16, 10_000);
        let targets: Vec<u32> = (0..tokens as u32).map(|t| t * 397 % vocab as u32).collect();
        for up in [true, false] {
            // They grow, or shrink, by hundreds over the vocabulary: inside of a part, and from
            // part to part.
            let mut head = noise(vocab * width, 2);
            for (word, row) in head.chunks_exact_mut(width).enumerate() {
                let along = if up { word } else { vocab - 1 - word };
                row.iter_mut().for_each(|w| *w *= 0.01 + 0.03 * along as f32);
            }
            let [wide, narrow] = run_both(noise(tokens * width, 1), head, &targets, width);
            assert!(wide[0].iter().any(|logprob| *logprob < -300.0));
            assert!(wide[0].iter().zip(&narrow[0]).all(|(a, b)| (a - b).abs() < 1e-5 * (1.0 + a.abs())));
            for (wide, narrow) in wide.iter().zip(&narrow).skip(1) {
                assert!(distance(wide, narrow) < 1.0 / 256.0, "{}", distance(wide, narrow));
            }
        }
    }

    #[test]
    fn a_model_that_has_blown_up_is_seen_in_loss_and_gradients() {
        // Two words share the largest logit, 1e8; the target's logit is infinite; so is another
        // word's.
        for (x, target) in [(1e8, 0), (3e38, 0), (3e38, 2)] {
            let head = [8.0, 0.0, 8.0, 0.0, 0.0, 1.0];
            let mut dhidden = [0f32; 2];
            let logprobs = train(&[x, 0.0], &[target], Elements::F32(&head), 2, 1.0, &mut dhidden, None);
            assert!(
                logprobs[0].is_nan() && dhidden.iter().all(|d| d.is_nan()),
                "{x} {target}: {logprobs:?} {dhidden:?}"
            );
        }
    }

    #[test]
    fn what_a_well_predicted_token_still_has_to_learn_is_not_lost_in_rounding() {
        let (tokens, width, vocab) = (20, 64, 1000);
        let head = noise(vocab * width, 2);
        let targets: Vec<u32> = (0..tokens as u32).map(|t| t * 397 % vocab as u32).collect();
        let hidden = targets.iter().flat_map(|t| &head[*t as usize * width..][..width]).copied().collect();
        let [wide, narrow] = run_both(hidden, head, &targets, width);
        assert!(wide[0].iter().all(|logprob| *logprob > -0.1));
        for (wide, narrow) in wide.iter().zip(&narrow).skip(1) {
            assert!(distance(wide, narrow) < 1.0 / 256.0, "{}", distance(wide, narrow));
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
