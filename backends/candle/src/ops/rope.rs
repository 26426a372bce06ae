//! Rotary position embedding, the half-split form of Llama and Qwen (Su et al., arXiv 2104.09864).

use rayon::prelude::*;

use super::simd::simd;

/// Cosines and sines of `position * theta^(-2 i / head_dim)`, `[positions, head_dim / 2]` each.
#[derive(Clone, Debug, Default)]
pub struct Table {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Table {
    /// The table of the first `positions`. Frequencies and angles are rounded to f32 as transformers rounds them.
    pub fn new(theta: f64, head_dim: usize, positions: usize) -> Self {
        let half = head_dim / 2;
        let frequency: Vec<f32> = (0..half).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64) as f32).collect();
        let angles = (0..positions).flat_map(|p| frequency.iter().map(move |f| f64::from(p as f32 * f)));
        let (cos, sin) = angles.map(|a| (a.cos() as f32, a.sin() as f32)).unzip();
        Table { half, cos, sin }
    }
    /// All cosines.
    pub fn cos(&self) -> &[f32] {
        &self.cos
    }
    /// All sines.
    pub fn sin(&self) -> &[f32] {
        &self.sin
    }
    /// Positions in the table.
    pub fn positions(&self) -> usize {
        self.cos.len().checked_div(self.half).unwrap_or(0)
    }
}

/// Rotates every head of `x` `[tokens, heads * head_dim]` in place by the angle of the token's position; `inverse`
/// rotates back, which is also the gradient.
pub fn rotate(x: &mut [f32], positions: &[u32], heads: usize, table: &Table, inverse: bool) {
    let half = table.half;
    let width = heads * 2 * half;
    const ROWS: usize = 32;
    x.par_chunks_mut(ROWS * width).zip(positions.par_chunks(ROWS)).for_each(|(x, positions)| {
        simd(
            #[inline(always)]
            || {
                for (row, &position) in x.chunks_exact_mut(width).zip(positions) {
                    let at = position as usize * half;
                    let (cos, sin) = (&table.cos[at..at + half], &table.sin[at..at + half]);
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
            },
        );
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
        let (x, g, table) = (noise(n, 1), noise(n, 2), Table::new(1e4, head_dim, 8));
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
}
