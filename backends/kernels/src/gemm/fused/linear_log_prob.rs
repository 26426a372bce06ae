//! Fused linear and log-softmax of given tokens, block by block of the vocabulary: the logits, a
//! number for each word at each position, are never in memory.
//!
//! A task takes some rows and some panels of the vocabulary and keeps, a row, the largest logit,
//! its first token and the sum of `e^(logit - largest)` (Milakov and Gimelshein, arXiv 1805.02867).
//! Blocks are merged in the order of the vocabulary, so threads and other rows change no bits.
#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop, reason = "constant bounds, so that registers are used instead of memory")]

use crate::gemm::amx::task as tile_task;
use crate::gemm::executor::Executor;
use crate::gemm::isa::Isa;
use crate::gemm::prepacked::{DisjointChunks, InputRows, Prepacked};
use crate::gemm::tile::{LANES, PANEL, Precision};
use crate::memory::arena;
use crate::simd;

/// Panels of a block of the vocabulary.
const BLOCK: usize = 16;
/// Logits of a row that are computed before they are looked at.
const WIDTH: usize = 4 * PANEL;
/// InputRows of a task at most.
const ROWS: usize = 240;

/// Statistics of a row's logits over one block of the vocabulary.
#[derive(Clone, Copy)]
struct Part {
    largest: f32,
    /// The lowest token that has it.
    token: u32,
    /// The sum of `e^(logit - largest)`.
    sum: f64,
    /// The target's logit, if the target is in this block.
    target: f32,
}

const NOTHING: Part = Part { largest: f32::NEG_INFINITY, token: 0, sum: 0.0, target: f32::NAN };

/// `log softmax(x W^T)[target]` in nats of every row of `x` `[m, k]`, and whether the target is the
/// most probable token (the lowest of those that are). Not a number where a logit is none.
///
/// # Panics
/// If there are not as many targets as rows, a target is no row of the head, or as
/// [`crate::gemm::prepacked::multiply`].
pub fn log_probabilities(
    precision: Precision,
    x: &[f32],
    k: usize,
    head: Prepacked<'_>,
    targets: &[u32],
    on: &dyn Executor,
) -> Vec<(f32, bool)> {
    log_probabilities_by(Isa::of_this_cpu(), precision, x, k, head, targets, on)
}

fn log_probabilities_by(
    isa: Isa,
    precision: Precision,
    x: &[f32],
    k: usize,
    head: Prepacked<'_>,
    targets: &[u32],
    on: &dyn Executor,
) -> Vec<(f32, bool)> {
    head.fits(precision, k);
    let left = InputRows::new(isa, precision, x, k, on);
    let (m, vocab) = (left.m, head.outputs());
    assert!(targets.len() == m && targets.iter().all(|t| (*t as usize) < vocab), "targets of {m} rows, {vocab} tokens");
    let panels = vocab.div_ceil(PANEL);
    let (blocks, groups) = (panels.div_ceil(BLOCK), m.div_ceil(ROWS));
    let mut parts = vec![NOTHING; blocks * m];
    {
        let pieces = DisjointChunks::new(&mut parts, 1);
        on.each(blocks * groups, &|task| {
            let (block, first) = (task / groups, task % groups * ROWS);
            let rows = first..(first + ROWS).min(m);
            let mut logits = arena::alloc(rows.len() * WIDTH);
            let mut kept = [NOTHING; ROWS];
            let end = ((block + 1) * BLOCK * PANEL).min(vocab);
            for first_token in (block * BLOCK * PANEL..end).step_by(WIDTH) {
                let columns = WIDTH.min(end - first_token);
                tile_task(|| {
                    for column in (0..columns).step_by(PANEL) {
                        let (panel, c) = ((first_token + column) / PANEL, logits[column..].as_mut_ptr());
                        // SAFETY: the buffer has room for these rows of `columns` logits, and is
                        // this task's own.
                        unsafe { left.times(rows.clone(), &head, panel, c, columns) };
                    }
                });
                simd::simd(
                    #[inline(always)]
                    || {
                        let of_rows = kept.iter_mut().zip(logits.chunks_exact(columns)).zip(&targets[rows.clone()]);
                        for ((part, logits), &target) in of_rows {
                            add(part, logits, first_token as u32, target);
                        }
                    },
                );
            }
            for (row, kept) in rows.zip(kept) {
                // SAFETY: a block's row is taken by one task.
                unsafe { pieces.take(block * m + row) }.fill(kept);
            }
        });
    }
    (0..m).map(|row| merged(parts.iter().skip(row).step_by(m), targets[row])).collect()
}

/// Adds the logits of the tokens from `first` on.
#[inline(always)]
fn add(part: &mut Part, logits: &[f32], first: u32, target: u32) {
    // Sixteen lanes in a fixed order, over chunks of known length, so that they are registers.
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for l in 0..LANES {
            lanes[l] = if chunk[l] > lanes[l] { chunk[l] } else { lanes[l] };
        }
    }
    let largest = simd::max(rest).max(highest(lanes));
    if largest > part.largest {
        part.sum *= f64::from(part.largest - largest).exp();
        part.largest = largest;
        part.token = first + logits.iter().position(|&x| x == largest).unwrap_or_default() as u32;
    }
    let largest = part.largest;
    let mut sums = [0f32; LANES];
    for chunk in chunks {
        for l in 0..LANES {
            sums[l] += simd::exp(chunk[l] - largest);
        }
    }
    for (sum, &logit) in sums.iter_mut().zip(rest) {
        *sum += simd::exp(logit - largest);
    }
    part.sum += f64::from(simd::sum_of([&sums], |[s]| s));
    if let Some(logit) = logits.get(target.wrapping_sub(first) as usize) {
        part.target = *logit;
    }
}

/// The largest of the lanes.
#[inline(always)]
fn highest(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] = if lanes[l + width] > lanes[l] { lanes[l + width] } else { lanes[l] };
        }
        width /= 2;
    }
    lanes[0]
}

fn merged<'a>(parts: impl Iterator<Item = &'a Part> + Clone, target: u32) -> (f32, bool) {
    let mut whole = NOTHING;
    for part in parts.clone() {
        if part.largest > whole.largest {
            (whole.largest, whole.token) = (part.largest, part.token);
        }
        if !part.target.is_nan() {
            whole.target = part.target;
        }
    }
    let sum: f64 = parts.map(|part| part.sum * f64::from(part.largest - whole.largest).exp()).sum();
    ((f64::from(whole.target - whole.largest) - sum.ln()) as f32, whole.token == target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::Threads;
    use crate::gemm::prepacked::{PackedType, PrepackedLinear, multiply};
    use crate::testing::{noise, with_threads};

    struct Case {
        x: Vec<f32>,
        k: usize,
        vocab: usize,
        packed: Vec<u32>,
        targets: Vec<u32>,
    }

    impl Case {
        fn new(m: usize, vocab: usize, k: usize) -> Self {
            let weight: Vec<f32> = noise(vocab * k, 2).iter().map(|x| 3.0 * x).collect();
            Case {
                x: noise(m * k, 1),
                k,
                vocab,
                packed: PackedType::Bf16.pack(&weight, k, &Threads::Pool),
                targets: (0..m).map(|i| (i * 7919 % vocab) as u32).collect(),
            }
        }
        fn head(&self) -> Prepacked<'_> {
            Prepacked::new(bytemuck::cast_slice(&self.packed), PackedType::Bf16, self.vocab, self.k).unwrap()
        }
        fn logits(&self, precision: Precision) -> Vec<f32> {
            let mut logits = vec![0f32; self.targets.len() * self.vocab];
            let mut layers = [PrepackedLinear { weight: self.head(), output: &mut logits }];
            multiply(precision, &self.x, self.k, &mut layers, &Threads::Pool);
            logits
        }
        fn run(&self, isa: Isa, precision: Precision) -> Vec<(f32, bool)> {
            log_probabilities_by(isa, precision, &self.x, self.k, self.head(), &self.targets, &Threads::Pool)
        }
    }

    #[test]
    fn they_are_those_of_the_logits_in_f64() {
        for (m, vocab, k) in [(1, 1, 3), (5, 97, 32), (300, 3000, 24), (2, 1025, 40)] {
            let mut case = Case::new(m, vocab, k);
            for precision in [Precision::F32, Precision::Bf16] {
                let logits = case.logits(precision);
                let best = |row: &[f32]| (0..vocab).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32;
                // Some targets are the most probable token.
                for (row, target) in case.targets.iter_mut().enumerate().step_by(2) {
                    *target = best(&logits[row * vocab..][..vocab]);
                }
                for (row, (got, greedy)) in case.run(Isa::of_this_cpu(), precision).into_iter().enumerate() {
                    let (logits, target) = (&logits[row * vocab..][..vocab], case.targets[row]);
                    let total: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
                    let want = f64::from(logits[target as usize]) - total.ln();
                    assert!((f64::from(got) - want).abs() < 2e-6 * (1.0 + want.abs()), "{got} {want}");
                    assert_eq!(greedy, best(logits) == target);
                }
            }
        }
    }

    #[test]
    fn threads_instructions_and_other_rows_change_no_bits() {
        let case = Case::new(500, 2500, 48);
        for precision in [Precision::F32, Precision::Bf16] {
            let want = with_threads(1, || case.run(Isa::Portable, precision));
            for isa in [Isa::Avx512, Isa::Avx512Bf16].into_iter().filter(|isa| *isa <= Isa::of_this_cpu()) {
                assert!(want == with_threads(3, || case.run(isa, precision)), "{isa:?} {precision:?}");
            }
            let few = log_probabilities(
                precision,
                &case.x[250 * 48..253 * 48],
                48,
                case.head(),
                &case.targets[250..253],
                &Threads::One,
            );
            if Isa::of_this_cpu() < Isa::AmxBf16 {
                assert_eq!(few, want[250..253]);
            }
        }
    }

    #[test]
    fn ties_go_to_the_lowest_token_and_what_is_no_number_stays_none() {
        let (vocab, k) = (2100, 4);
        let head = PackedType::F32.pack(&vec![0.5; vocab * k], k, &Threads::One);
        let head = Prepacked::new(bytemuck::cast_slice(&head), PackedType::F32, vocab, k).unwrap();
        let x = [1.0f32, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0, f32::NAN, 0.0, 0.0, 0.0];
        let got = log_probabilities(Precision::F32, &x, k, head, &[0, 2000, 0], &Threads::One);
        assert!((f64::from(got[0].0) + (vocab as f64).ln()).abs() < 1e-5);
        assert_eq!((got[0].1, got[1].1, got[0].0), (true, false, got[1].0));
        assert!(got[2].0.is_nan());
    }
}
