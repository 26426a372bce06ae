//! Cross-entropy fused with the output projection: logits of a few tokens at a time, never of all.

pub mod fused_bf16;

use rayon::prelude::*;

use karat_kernels::gemm::{Mat, MatMut, Precision, Threads, gemm};
use karat_kernels::memory::arena;
use karat_kernels::memory::mmap::Elements;
use karat_kernels::simd::{exp, max, simd, sum_of};

/// Tokens whose logits exist at once: at most 32 MiB of them, 16 to 256 tokens. Depends on the
/// vocabulary alone.
pub fn chunk(vocab: usize) -> usize {
    ((8 << 20) / vocab.max(1)).clamp(16, 256)
}

/// Loss of a token's target after the forward pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// Natural-log probability of the target.
    pub logprob: f32,
    /// Whether it was the most probable token (ties go to the lowest id).
    pub greedy: bool,
}

/// Where a gradient goes.
pub struct Sum<'a> {
    /// The gradient.
    pub sum: &'a mut [f32],
    /// Whether to add to what is in it; else it means nothing.
    pub add: bool,
}

/// Log-sum-exp of a row of logits.
#[inline(always)]
pub fn log_sum_exp(logits: &[f32]) -> f32 {
    let top = max(logits);
    let sum = sum_of([logits], |[l]| exp(l - top));
    top + sum.ln()
}

fn judge(logits: &[f32], target: u32, lse: f32) -> Target {
    let target = target as usize;
    let l = logits[target];
    // Written so that NaN logits are neither greedy nor hidden.
    let greedy = logits[..target].iter().all(|x| *x < l) && logits[target + 1..].iter().all(|x| *x <= l);
    Target { logprob: l - lse, greedy }
}

/// Scores `targets` `[tokens]` given `hidden` `[tokens, width]` and the output projection `head`
/// `[vocab, width]`.
pub fn score(precision: Precision, hidden: &[f32], targets: &[u32], head: Elements<'_>, width: usize) -> Vec<Target> {
    let vocab = head.len() / width;
    let mut all = Vec::with_capacity(targets.len());
    let mut lent = arena::alloc(chunk(vocab).min(targets.len()) * vocab);
    for (hidden, targets) in hidden.chunks(chunk(vocab) * width).zip(targets.chunks(chunk(vocab))) {
        let logits = &mut lent[..targets.len() * vocab];
        project(precision, hidden, head, width, logits);
        all.par_extend(logits.par_chunks(vocab).zip(targets).map(|(logits, &target)| {
            let lse = simd(
                #[inline(always)]
                || log_sum_exp(logits),
            );
            simd(
                #[inline(always)]
                || judge(logits, target, lse),
            )
        }));
    }
    all
}

/// Logits `[tokens, vocab]` of `hidden` `[tokens, width]`.
pub fn project(precision: Precision, hidden: &[f32], head: Elements<'_>, width: usize, logits: &mut [f32]) {
    let (tokens, vocab) = (hidden.len() / width, head.len() / width);
    let c = MatMut::new(logits, tokens, vocab);
    gemm(precision, c, 1.0, Mat::new(hidden, tokens, width), Mat::of(head, vocab, width).t(), false, Threads::Pool);
}

/// Forward and backward at once for the loss `scale * sum of -log p(target)`: returns `log p` of
/// every target, writes the gradient of `hidden` to `dhidden`, and that of `head` to `dhead` where
/// it is trained.
#[allow(clippy::too_many_arguments, reason = "the operands of one formula")]
pub fn train(
    precision: Precision,
    hidden: &[f32],
    targets: &[u32],
    head: Elements<'_>,
    width: usize,
    scale: f32,
    dhidden: &mut [f32],
    mut dhead: Option<Sum<'_>>,
) -> Vec<f32> {
    if let Some(Sum { sum, add: false }) = &mut dhead
        && targets.is_empty()
    {
        sum.fill(0.0);
    }
    if precision == Precision::Bf16 {
        return fused_bf16::train(hidden, targets, head, width, scale, dhidden, dhead);
    }
    let vocab = head.len() / width;
    let mut all = Vec::with_capacity(targets.len());
    let size = chunk(vocab);
    let mut lent = arena::alloc(size.min(targets.len()) * vocab);
    for ((hidden, targets), dhidden) in
        hidden.chunks(size * width).zip(targets.chunks(size)).zip(dhidden.chunks_mut(size * width))
    {
        let n = targets.len();
        let logits = &mut lent[..n * vocab];
        project(precision, hidden, head, width, logits);
        all.par_extend(logits.par_chunks_mut(vocab).zip(targets).map(|(logits, &target)| {
            simd(
                #[inline(always)]
                || {
                    let lse = log_sum_exp(logits);
                    let logprob = logits[target as usize] - lse;
                    logits.iter_mut().for_each(|l| *l = exp(*l - lse) * scale);
                    logits[target as usize] -= scale;
                    logprob
                },
            )
        }));
        let d = Mat::new(logits, n, vocab);
        gemm(precision, MatMut::new(dhidden, n, width), 1.0, d, Mat::of(head, vocab, width), false, Threads::Pool);
        if let Some(dhead) = &mut dhead {
            let c = MatMut::new(dhead.sum, vocab, width);
            gemm(precision, c, 1.0, d.t(), Mat::new(hidden, n, width), dhead.add, Threads::Pool);
            dhead.add = true;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_gradient, noise, wide, with_threads};

    fn in_f64(hidden: &[f64], targets: &[u32], head: &[f64], width: usize) -> Vec<f64> {
        let rows = hidden.chunks(width).zip(targets).map(|(h, &t)| {
            let logits: Vec<f64> =
                head.chunks(width).map(|w| w.iter().zip(h).map(|(a, b)| a * b).sum::<f64>()).collect();
            logits[t as usize] - logits.iter().map(|l| l.exp()).sum::<f64>().ln()
        });
        rows.collect()
    }

    #[test]
    fn forward_and_backward_match_f64() {
        let (tokens, width, vocab, scale) = (21, 6, 13, 0.25f32);
        let (hidden, head) = (noise(tokens * width, 1), noise(vocab * width, 2));
        let targets: Vec<u32> = (0..tokens as u32).map(|t| t * 5 % vocab as u32).collect();
        let (mut dhidden, mut dhead) = (vec![9f32; hidden.len()], vec![9f32; head.len()]);
        let got = train(
            Precision::F32,
            &hidden,
            &targets,
            Elements::F32(&head),
            width,
            scale,
            &mut dhidden,
            Some(Sum { sum: &mut dhead, add: false }),
        );
        let want = in_f64(&wide(&hidden), &targets, &wide(&head), width);
        assert!(got.iter().zip(&want).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6));
        let loss = |x: &[f64]| -f64::from(scale) * x.iter().sum::<f64>();
        check_gradient("hidden", &hidden, &dhidden, |x| loss(&in_f64(x, &targets, &wide(&head), width)));
        check_gradient("head", &head, &dhead, |x| loss(&in_f64(&wide(&hidden), &targets, x, width)));
        let scored = score(Precision::F32, &hidden, &targets, Elements::F32(&head), width);
        assert!(scored.iter().zip(&got).all(|(s, g)| s.logprob == *g));
    }

    #[test]
    fn many_chunks_give_the_same_as_one_token_at_a_time() {
        let (tokens, width, vocab) = (600, 8, 40);
        let (hidden, head) = (noise(tokens * width, 1), noise(vocab * width, 2));
        let targets: Vec<u32> = (0..tokens as u32).map(|t| t * 7 % vocab as u32).collect();
        let whole = with_threads(2, || score(Precision::F32, &hidden, &targets, Elements::F32(&head), width));
        for t in [0, 255, 256, 599] {
            assert_eq!(
                score(Precision::F32, &hidden[t * width..][..width], &targets[t..=t], Elements::F32(&head), width)[0],
                whole[t]
            );
        }
        assert_eq!(whole, with_threads(1, || score(Precision::F32, &hidden, &targets, Elements::F32(&head), width)));
    }

    #[test]
    fn ties_go_to_the_lowest_id() {
        let logits = [1.0, 3.0, 3.0];
        assert!(judge(&logits, 1, 0.0).greedy);
        assert!(!judge(&logits, 2, 0.0).greedy);
    }
}
