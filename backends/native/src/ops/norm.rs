//! RMSNorm: `y = w x / sqrt(mean(x^2) + eps)` over rows (Zhang & Sennrich, arXiv 1910.07467).

use half::bf16;
use rayon::prelude::*;

use super::number::Number;
use karat_kernels::gemm::narrow_here;
use karat_kernels::simd::{simd, sum_of};

/// Rows a task takes; also the chunk in which the weight gradient is summed first.
const ROWS: usize = 64;

/// One row; its `1 / sqrt(mean(x^2) + eps)`.
#[inline(always)]
pub(super) fn row(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) -> f32 {
    let (width, y) = (w.len(), &mut y[..w.len()]);
    let x = &x[..width];
    let mean = sum_of([x], |[x]| x * x) / width as f32;
    let r = 1.0 / (mean + eps).sqrt();
    for i in 0..width {
        y[i] = w[i] * (x[i] * r);
    }
    r
}

/// `x`, `y` `[rows, width]`, `w` `[width]`; leaves `1 / sqrt(mean(x^2) + eps)` of each row in
/// `scale` `[rows]`.
pub fn forward(x: &[f32], w: &[f32], eps: f32, y: &mut [f32], scale: &mut [f32]) {
    let width = w.len();
    y.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * width)).zip(scale.par_chunks_mut(ROWS)).for_each(
        |((y, x), scale)| {
            simd(
                #[inline(always)]
                || {
                    for ((y, x), scale) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(scale) {
                        *scale = row(x, w, eps, y);
                    }
                },
            );
        },
    );
}

/// [`forward`], the result rounded as products round it.
pub fn forward_narrow<T: Number>(x: &[T], w: &[f32], eps: f32, y: &mut [bf16], scale: &mut [f32]) {
    let width = w.len();
    y.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * width)).zip(scale.par_chunks_mut(ROWS)).for_each(
        |((y, x), scale)| {
            let [mut tile, mut wide] = [0; 2].map(|_| vec![0f32; width]);
            for ((y, x), scale) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(scale) {
                *scale = simd(
                    #[inline(always)]
                    || row(T::wide(x, &mut tile), w, eps, &mut wide),
                );
                narrow_here(&wide, y);
            }
        },
    );
}

/// `r^3 / width * sum(w dy x)`, the part that the gradient of every element of a row has in common.
#[inline(always)]
fn common(x: &[f32], w: &[f32], r: f32, dy: &[f32]) -> f32 {
    r * r * r / w.len() as f32 * sum_of([w, dy, x], |[w, dy, x]| w * dy * x)
}

/// [`backward`] of one row, the gradient of `x` in place of that of `y`.
#[inline(always)]
pub(super) fn row_backward(x: &[f32], w: &[f32], r: f32, dy: &mut [f32]) {
    let c = common(x, w, r, dy);
    for ((d, w), x) in dy.iter_mut().zip(w).zip(x) {
        *d = r * w * *d - c * x;
    }
}

/// Given `dy`, writes `dx = r w dy - x r^3 / width * sum(w dy x)` (added to `dx` with `add`) and
/// adds `sum over rows of dy x r` to `dw` where the weight is trained.
pub fn backward<T: Number>(
    x: &[T],
    w: &[f32],
    scale: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    add: bool,
    dw: Option<&mut [f32]>,
) {
    let width = w.len();
    dx.par_chunks_mut(ROWS * width)
        .zip(x.par_chunks(ROWS * width))
        .zip(dy.par_chunks(ROWS * width))
        .zip(scale.par_chunks(ROWS))
        .for_each(|(((dx, x), dy), scale)| {
            let mut tile = vec![0f32; width];
            simd(
                #[inline(always)]
                || {
                    for (((dx, x), dy), &r) in
                        dx.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(dy.chunks_exact(width)).zip(scale)
                    {
                        let x = T::wide(x, &mut tile);
                        let c = common(x, w, r, dy);
                        for i in 0..width {
                            let d = r * w[i] * dy[i] - c * x[i];
                            dx[i] = if add { dx[i] + d } else { d };
                        }
                    }
                },
            );
        });
    let Some(dw) = dw else { return };
    let partial: Vec<Vec<f32>> = x
        .par_chunks(ROWS * width)
        .zip(dy.par_chunks(ROWS * width))
        .zip(scale.par_chunks(ROWS))
        .map(|((x, dy), scale)| {
            let [mut sum, mut tile] = [0; 2].map(|_| vec![0f32; width]);
            simd(
                #[inline(always)]
                || {
                    for ((x, dy), &r) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(scale) {
                        let x = T::wide(x, &mut tile);
                        for i in 0..width {
                            sum[i] += dy[i] * (x[i] * r);
                        }
                    }
                },
            );
            sum
        })
        .collect();
    for sum in partial {
        dw.iter_mut().zip(sum).for_each(|(dw, s)| *dw += s);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, check_gradient, noise, weigh, wide};

    fn in_f64(x: &[f64], w: &[f64], eps: f64) -> Vec<f64> {
        let rows = x.chunks(w.len()).flat_map(|row| {
            let r = 1.0 / (row.iter().map(|x| x * x).sum::<f64>() / w.len() as f64 + eps).sqrt();
            row.iter().zip(w).map(move |(x, w)| x * r * w).collect::<Vec<_>>()
        });
        rows.collect()
    }

    fn kept_numbers_are_read_as_they_are(x: &[f32], w: &[f32], g: &[f32]) {
        let mut kept = vec![bf16::ZERO; x.len()];
        narrow_here(x, &mut kept);
        let rounded: Vec<f32> = kept.iter().map(|x| x.to_f32()).collect();
        let [mut a, mut b] = [0; 2].map(|_| vec![bf16::ZERO; x.len()]);
        let [mut of_rounded, mut of_kept] = [0; 2].map(|_| vec![0f32; x.len() / w.len()]);
        forward_narrow(&rounded, w, 1e-5, &mut a, &mut of_rounded);
        forward_narrow(&kept, w, 1e-5, &mut b, &mut of_kept);
        assert_eq!((a, &of_rounded), (b, &of_kept));
        let [mut dx, mut of_dx] = [0; 2].map(|_| vec![0.5f32; x.len()]);
        let [mut dw, mut of_dw] = [0; 2].map(|_| vec![0f32; w.len()]);
        backward(&rounded, w, &of_kept, g, &mut dx, true, Some(&mut dw));
        backward(&kept, w, &of_kept, g, &mut of_dx, true, Some(&mut of_dw));
        assert_eq!((dx, dw), (of_dx, of_dw));
    }

    #[test]
    fn forward_and_backward_match_f64() {
        let (rows, width, eps) = (5, 19, 1e-5);
        let (x, w, g) = (noise(rows * width, 1), noise(width, 2), noise(rows * width, 3));
        let (mut y, mut scale) = (vec![0f32; rows * width], vec![0f32; rows]);
        forward(&x, &w, eps as f32, &mut y, &mut scale);
        assert_close("y", &y, &in_f64(&wide(&x), &wide(&w), eps), 1e-6);
        let (mut narrowed, mut want) = (vec![bf16::ZERO; y.len()], vec![bf16::ZERO; y.len()]);
        let mut same = vec![0f32; rows];
        forward_narrow(&x, &w, eps as f32, &mut narrowed, &mut same);
        narrow_here(&y, &mut want);
        assert_eq!((narrowed, same), (want, scale.clone()));
        kept_numbers_are_read_as_they_are(&x, &w, &g);
        let (mut dx, mut dw) = (vec![0f32; rows * width], vec![0f32; width]);
        backward(&x, &w, &scale, &g, &mut dx, false, Some(&mut dw));
        check_gradient("x", &x, &dx, |x| weigh(&in_f64(x, &wide(&w), eps), &g));
        check_gradient("w", &w, &dw, |w| weigh(&in_f64(&wide(&x), w, eps), &g));
        let mut twice = dx.clone();
        backward(&x, &w, &scale, &g, &mut twice, true, None);
        assert!(twice.iter().zip(&dx).all(|(t, d)| *t == d + d));
    }
}
