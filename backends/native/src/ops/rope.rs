//! Rotary position embedding, the half-split form of Llama and Qwen (Su et al., arXiv 2104.09864).

use half::bf16;
use karat_model::Rope;
use rayon::prelude::*;

use super::norm;
use super::number::Number;
use karat_kernels::gemm::narrow_here;
use karat_kernels::simd::simd;

/// Tokens that a task takes.
const ROWS: usize = 32;

/// Cosines and sines of `position * frequency`, `[positions, head_dim / 2]` each, times the
/// embedding's attention factor: a factor other than 1 scales queries and keys alike, and their
/// gradients on the way back.
#[derive(Clone, Debug, Default)]
pub struct RotaryTable {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RotaryTable {
    /// The table of the first `positions` of `rope`.
    pub fn new(rope: &Rope, head_dim: usize, positions: usize) -> Self {
        let (cos, sin) = rope.tables(head_dim, positions);
        RotaryTable { half: head_dim / 2, cos, sin }
    }
    /// All cosines.
    pub fn cos(&self) -> &[f32] {
        &self.cos
    }
    /// All sines.
    pub fn sin(&self) -> &[f32] {
        &self.sin
    }
    /// Rotates the heads of one token back.
    #[inline(always)]
    pub(super) fn turn_back(&self, row: &mut [f32], position: u32) {
        let at = position as usize * self.half;
        turn(row, &self.cos[at..at + self.half], &self.sin[at..at + self.half], true);
    }
    /// Positions in the table.
    pub fn positions(&self) -> usize {
        self.cos.len().checked_div(self.half).unwrap_or(0)
    }
}

/// Rotates the heads of one token.
#[inline(always)]
fn turn(row: &mut [f32], cos: &[f32], sin: &[f32], inverse: bool) {
    let half = cos.len();
    let sin = &sin[..half];
    for head in row.chunks_exact_mut(2 * half) {
        let (a, b) = head.split_at_mut(half);
        for i in 0..half {
            let s = if inverse { -sin[i] } else { sin[i] };
            let (u, v) = (a[i], b[i]);
            a[i] = u * cos[i] - v * s;
            b[i] = v * cos[i] + u * s;
        }
    }
}

/// Rotates every head of `x` `[tokens, heads * head_dim]` in place by the angle of the token's
/// position; `inverse` rotates back: the gradient.
pub fn rotate(x: &mut [f32], positions: &[u32], heads: usize, table: &RotaryTable, inverse: bool) {
    let half = table.half;
    let width = heads * 2 * half;
    x.par_chunks_mut(ROWS * width).zip(positions.par_chunks(ROWS)).for_each(|(x, positions)| {
        simd(
            #[inline(always)]
            || {
                for (row, &position) in x.chunks_exact_mut(width).zip(positions) {
                    let at = position as usize * half;
                    turn(row, &table.cos[at..at + half], &table.sin[at..at + half], inverse);
                }
            },
        );
    });
}

/// RMSNorm of each head: its weight, its epsilon, and where the scale of each head goes.
pub type HeadNorm<'a> = (&'a [f32], f32, &'a mut [f32]);

/// Heads as attention in bf16 reads them, in one pass: [`norm::forward`] of each head of `x`
/// `[tokens, heads * head_dim]` if there is a norm, then [`rotate`], then rounded as products
/// round. The bits are those of the three in a row.
pub fn forward_narrow<T: Number>(
    x: &[T],
    norm: Option<HeadNorm<'_>>,
    positions: &[u32],
    heads: usize,
    table: &RotaryTable,
    y: &mut [bf16],
) {
    let half = table.half;
    let width = heads * 2 * half;
    let (norm, scale) = norm.map_or((None, None), |(w, eps, scale)| (Some((w, eps)), Some(scale)));
    let mut scales: Vec<Option<&mut [f32]>> = match scale {
        Some(scale) => scale.chunks_mut(ROWS * heads).map(Some).collect(),
        None => positions.chunks(ROWS).map(|_| None).collect(),
    };
    let rows = y.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * width)).zip(positions.par_chunks(ROWS));
    rows.zip(scales.par_iter_mut()).for_each(|(((y, x), positions), scale)| {
        let [mut tile, mut wide] = [0; 2].map(|_| vec![0f32; width]);
        for (t, ((y, x), &position)) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(positions).enumerate()
        {
            let at = position as usize * half;
            simd(
                #[inline(always)]
                || {
                    let x = T::wide(x, &mut tile);
                    match (norm, scale.as_deref_mut()) {
                        (Some((w, eps)), Some(scale)) => {
                            let scale = &mut scale[t * heads..][..heads];
                            let each = wide.chunks_exact_mut(2 * half).zip(x.chunks_exact(2 * half)).zip(scale);
                            for ((y, x), scale) in each {
                                *scale = norm::row(x, w, eps, y);
                            }
                        }
                        _ => wide.copy_from_slice(x),
                    }
                    turn(&mut wide, &table.cos[at..at + half], &table.sin[at..at + half], false);
                },
            );
            narrow_here(&wide, y);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, check_gradient, noise, weigh, wide};

    fn in_f64(x: &[f64], positions: &[u32], heads: usize, head_dim: usize, theta: f64) -> Vec<f64> {
        let mut y = x.to_vec();
        let half = head_dim / 2;
        for (t, &p) in positions.iter().enumerate() {
            for h in 0..heads {
                for i in 0..half {
                    let angle = f64::from(p) * theta.powf(-2.0 * i as f64 / head_dim as f64);
                    let (a, b) = ((t * heads + h) * head_dim + i, (t * heads + h) * head_dim + half + i);
                    y[a] = x[a] * angle.cos() - x[b] * angle.sin();
                    y[b] = x[b] * angle.cos() + x[a] * angle.sin();
                }
            }
        }
        y
    }

    #[test]
    fn forward_and_backward_match_f64_and_undo_each_other() {
        let (heads, head_dim, positions) = (3, 8, [0u32, 1, 2, 0, 7]);
        let n = positions.len() * heads * head_dim;
        let (x, g, table) = (noise(n, 1), noise(n, 2), RotaryTable::new(&Rope::plain(1e4), head_dim, 8));
        assert_eq!(table.positions(), 8);
        let mut y = x.clone();
        rotate(&mut y, &positions, heads, &table, false);
        assert_close("y", &y, &in_f64(&wide(&x), &positions, heads, head_dim, 1e4), 1e-6);
        let mut dx = g.clone();
        rotate(&mut dx, &positions, heads, &table, true);
        check_gradient("x", &x, &dx, |x| weigh(&in_f64(x, &positions, heads, head_dim, 1e4), &g));
        rotate(&mut y, &positions, heads, &table, true);
        assert_close("back", &y, &wide(&x), 1e-6);
    }

    #[test]
    fn one_pass_gives_the_bits_of_norm_rotation_and_rounding_in_a_row() {
        let (heads, head_dim, tokens) = (3, 8, 70u32);
        let positions: Vec<u32> = (0..tokens).map(|t| t * 5 % 64).collect();
        let table = RotaryTable::new(&Rope::plain(1e4), head_dim, 64);
        let n = positions.len() * heads * head_dim;
        let (x, w) = (noise(n, 1), noise(head_dim, 2));
        let mut kept = vec![bf16::ZERO; n];
        narrow_here(&x, &mut kept);
        let x: Vec<f32> = kept.iter().map(|x| x.to_f32()).collect();
        let [mut want_scale, mut scale] = [0; 2].map(|_| vec![0f32; n / head_dim]);
        let [mut want, mut got] = [0; 2].map(|_| vec![bf16::ZERO; n]);
        let mut y = vec![0f32; n];
        norm::forward(&x, &w, 1e-6, &mut y, &mut want_scale);
        rotate(&mut y, &positions, heads, &table, false);
        narrow_here(&y, &mut want);
        forward_narrow(&kept, Some((&w, 1e-6, &mut scale)), &positions, heads, &table, &mut got);
        assert_eq!((&want, &want_scale), (&got, &scale));
        let mut y = x.clone();
        rotate(&mut y, &positions, heads, &table, false);
        narrow_here(&y, &mut want);
        forward_narrow(&x, None, &positions, heads, &table, &mut got);
        assert_eq!(want, got);
    }
}
