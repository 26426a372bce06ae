//! Element-wise operations, bound by memory bandwidth alone.

use rayon::prelude::*;

use karat_kernels::simd::simd;

const CHUNK: usize = 1 << 14;

/// `x += y`.
pub fn add(x: &mut [f32], y: &[f32]) {
    x.par_chunks_mut(CHUNK).zip(y.par_chunks(CHUNK)).for_each(|(x, y)| {
        simd(
            #[inline(always)]
            || x.iter_mut().zip(y).for_each(|(x, y)| *x += y),
        );
    });
}

/// `x = alpha y^T` or, with `add`, `x += alpha y^T`: `x` `[rows, columns]`, `y` `[columns, rows]`.
pub fn turn(x: &mut [f32], alpha: f32, y: &[f32], columns: usize, add: bool) {
    let rows = x.len() / columns.max(1);
    let each = (CHUNK / 4 / columns.max(1)).max(1);
    x.par_chunks_mut(each * columns.max(1)).enumerate().for_each(|(chunk, x)| {
        simd(
            #[inline(always)]
            || {
                let here = x.len() / columns;
                for j in 0..columns {
                    let y = &y[j * rows + chunk * each..][..here];
                    for (x, y) in x.chunks_exact_mut(columns).zip(y) {
                        x[j] = if add { alpha.mul_add(*y, x[j]) } else { alpha * y };
                    }
                }
            },
        );
    });
}

/// `x = 0`.
pub fn clear(x: &mut [f32]) {
    x.par_chunks_mut(16 * CHUNK).for_each(|x| x.fill(0.0));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::noise;

    #[test]
    fn every_element_is_reached() {
        let n = 17 * CHUNK + 3;
        let (mut x, y) = (noise(n, 1), noise(n, 2));
        let want: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
        add(&mut x, &y);
        assert_eq!(x, want);
        let turned = noise(n - n % 7, 3);
        let mut y = want[..turned.len()].to_vec();
        turn(&mut y, 0.5, &turned, 7, true);
        let rows = turned.len() / 7;
        for (i, (y, x)) in y.iter().zip(&want).enumerate() {
            assert_eq!(*y, 0.5f32.mul_add(turned[i % 7 * rows + i / 7], *x));
        }
        turn(&mut y, 0.5, &turned, 7, false);
        assert!(y.iter().enumerate().all(|(i, y)| *y == 0.5 * turned[i % 7 * rows + i / 7]));
        clear(&mut x);
        assert!(x.iter().all(|x| *x == 0.0));
    }
}
