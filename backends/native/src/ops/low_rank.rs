//! What a low-rank adapter does to its weight `W` `[out, in]`: merged, `W + s B A`, and the norms of those rows, which DoRA
//! (Liu et al., arXiv 2402.09353) needs; and DoRA's elementwise share of forward and backward.

use rayon::prelude::*;

use super::mapped::Elements;
use super::simd::{simd, sum_of};

/// A low-rank change of a weight.
#[derive(Clone, Copy)]
pub struct LowRank<'a> {
    /// `A`, `[r, in]`.
    pub a: &'a [f32],
    /// `B`, `[out, r]`.
    pub b: &'a [f32],
    /// `s`.
    pub scale: f32,
    /// `in`.
    pub n_in: usize,
}

impl LowRank<'_> {
    fn rank(&self) -> usize {
        self.a.len() / self.n_in
    }

    /// `row`, which is row `o` of `W`, plus that of `s B A`, all in f32: the products are summed in the order of the ranks,
    /// scaled, then added. `delta` has the length of a row.
    #[inline(always)]
    fn add_row(&self, o: usize, row: &mut [f32], delta: &mut [f32]) {
        let r = self.rank();
        delta.fill(0.0);
        for (&b, a) in self.b[o * r..(o + 1) * r].iter().zip(self.a.chunks_exact(self.n_in)) {
            delta.iter_mut().zip(a).for_each(|(d, &a)| *d += b * a);
        }
        row.iter_mut().zip(delta.iter()).for_each(|(w, &d)| *w += self.scale * d);
    }
}

/// `W + s B A` in place of `w`, each row times its `gain` if one is given.
pub fn merge(w: &mut [f32], change: LowRank<'_>, gain: Option<&[f32]>) {
    w.par_chunks_exact_mut(change.n_in).enumerate().for_each_init(
        || vec![0f32; change.n_in],
        |delta, (o, w)| {
            simd(
                #[inline(always)]
                || {
                    change.add_row(o, w, delta);
                    if let Some(gain) = gain {
                        w.iter_mut().for_each(|w| *w *= gain[o]);
                    }
                },
            );
        },
    );
}

/// The L2 norm of every row of `W + s B A`.
pub fn norms(w: Elements<'_>, change: LowRank<'_>, norms: &mut [f32]) {
    let n_in = change.n_in;
    norms.par_iter_mut().enumerate().for_each_init(
        || (vec![0f32; n_in], vec![0f32; n_in]),
        |(row, delta), (o, norm)| {
            w.slice(o * n_in..(o + 1) * n_in).widen(row);
            simd(
                #[inline(always)]
                || {
                    change.add_row(o, row, delta);
                    // In parts, so that a long row loses nothing.
                    let sum: f64 = row.chunks(1 << 12).map(|x| f64::from(sum_of([x], |[x]| x * x))).sum();
                    *norm = sum.sqrt() as f32;
                },
            );
        },
    );
}

/// Rows handed to a thread at once.
const ROWS: usize = 16;

/// `y += gain * x`, column by column.
pub fn add_scaled(y: &mut [f32], x: &[f32], gain: &[f32]) {
    let block = ROWS * gain.len();
    y.par_chunks_mut(block).zip(x.par_chunks(block)).for_each(|(y, x)| {
        simd(
            #[inline(always)]
            || {
                for (y, x) in y.chunks_exact_mut(gain.len()).zip(x.chunks_exact(gain.len())) {
                    y.iter_mut().zip(x).zip(gain).for_each(|((y, &x), &g)| *y += g * x);
                }
            },
        );
    });
}

/// `dgain += sum over the rows of dy * x`, column by column, rows in order.
pub fn gain_gradient(dgain: &mut [f32], dy: &[f32], x: &[f32]) {
    const COLUMNS: usize = 64;
    let width = dgain.len();
    dgain.par_chunks_mut(COLUMNS).enumerate().for_each(|(c, dgain)| {
        let start = c * COLUMNS;
        for (dy, x) in dy.chunks_exact(width).zip(x.chunks_exact(width)) {
            let (dy, x) = (&dy[start..start + dgain.len()], &x[start..start + dgain.len()]);
            dgain.iter_mut().zip(dy).zip(x).for_each(|((sum, &dy), &x)| *sum += dy * x);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::noise;

    const OUT: usize = 70;
    const IN: usize = 45;
    const R: usize = 3;

    #[test]
    fn merging_and_norms_follow_the_formula_in_f64() {
        let (w, a, b) = (noise(OUT * IN, 1), noise(R * IN, 2), noise(OUT * R, 3));
        let change = LowRank { a: &a, b: &b, scale: 1.5, n_in: IN };
        let gain = noise(OUT, 4);
        let (mut merged, mut scaled, mut norm) = (w.clone(), w.clone(), vec![0f32; OUT]);
        merge(&mut merged, change, None);
        merge(&mut scaled, change, Some(&gain));
        norms(Elements::F32(&w), change, &mut norm);
        for o in 0..OUT {
            let mut square = 0f64;
            for i in 0..IN {
                let delta: f64 = (0..R).map(|k| f64::from(b[o * R + k]) * f64::from(a[k * IN + i])).sum();
                let want = f64::from(w[o * IN + i]) + 1.5 * delta;
                square += want * want;
                assert!((f64::from(merged[o * IN + i]) - want).abs() < 1e-6);
                assert!((f64::from(scaled[o * IN + i]) - f64::from(gain[o]) * want).abs() < 1e-6);
            }
            assert!((f64::from(norm[o]) / square.sqrt() - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn the_gradient_of_the_gain_is_that_of_its_product() {
        let tokens = 37;
        let (x, dy, gain) = (noise(tokens * OUT, 1), noise(tokens * OUT, 2), noise(OUT, 3));
        let mut y = vec![1f32; tokens * OUT];
        add_scaled(&mut y, &x, &gain);
        let mut dgain = vec![0.5f32; OUT];
        gain_gradient(&mut dgain, &dy, &x);
        for o in 0..OUT {
            let want: f64 = (0..tokens).map(|t| f64::from(dy[t * OUT + o]) * f64::from(x[t * OUT + o])).sum();
            assert!((f64::from(dgain[o]) - 0.5 - want).abs() < 1e-5);
            for t in 0..tokens {
                assert!((y[t * OUT + o] - 1.0 - gain[o] * x[t * OUT + o]).abs() < 1e-6);
            }
        }
    }
}
