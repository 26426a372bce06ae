//! DoRA's elementwise share of forward and backward (Liu et al., arXiv 2402.09353).

use rayon::prelude::*;

use karat_kernels::simd::simd;

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
