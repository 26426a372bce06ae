//! AdamW (Loshchilov & Hutter, arXiv 1711.05101) to the letter of `torch.optim.AdamW`, in one pass
//! over a tensor.

use rayon::prelude::*;

use karat_kernels::simd::{simd, sum_of};

const CHUNK: usize = 1 << 14;

/// The numbers of one update.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment after bias correction.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Updates of this optimizer, this one included.
    pub step: u32,
    /// The gradient is multiplied by this first (clipping).
    pub gradient_scale: f64,
}

/// Updates `p` and its moments `m`, `v` from the gradient `g`:
/// `p -= lr wd p; m += (1 - b1)(g - m); v = b2 v + (1 - b2) g^2; p -= lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)`.
pub fn update(p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], u: &Update) {
    let t = f64::from(u.step);
    let step_size = (u.lr / (1.0 - u.beta1.powf(t))) as f32;
    let root = (1.0 - u.beta2.powf(t)).sqrt() as f32;
    let keep = (1.0 - u.lr * u.weight_decay) as f32;
    let (first, second, eps) = ((1.0 - u.beta1) as f32, (1.0 - u.beta2) as f32, u.eps as f32);
    let (beta2, scale) = (u.beta2 as f32, u.gradient_scale as f32);
    p.par_chunks_mut(CHUNK)
        .zip(m.par_chunks_mut(CHUNK))
        .zip(v.par_chunks_mut(CHUNK))
        .zip(g.par_chunks(CHUNK))
        .for_each(|(((p, m), v), g)| {
            simd(
                #[inline(always)]
                || {
                    for (((p, m), v), &g) in p.iter_mut().zip(m).zip(v).zip(g) {
                        let g = g * scale;
                        *m += first * (g - *m);
                        *v = beta2 * *v + second * (g * g);
                        *p = *p * keep - step_size * (*m / (v.sqrt() / root + eps));
                    }
                },
            );
        });
}

/// Sum of squares, chunk by chunk in f64. NaN and infinity stay visible.
pub fn sum_of_squares(g: &[f32]) -> f64 {
    let partial: Vec<f64> = g
        .par_chunks(1 << 12)
        .map(|g| {
            f64::from(simd(
                #[inline(always)]
                || sum_of([g], |[g]| g * g),
            ))
        })
        .collect();
    partial.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{noise, wide};

    #[test]
    fn updates_follow_the_formula_in_f64() {
        let n = 37;
        let (mut p, mut m, mut v) = (noise(n, 1), vec![0f32; n], vec![0f32; n]);
        let (mut p64, mut m64, mut v64) = (wide(&p), vec![0f64; n], vec![0f64; n]);
        for step in 1..=20u32 {
            let g = noise(n, 100 + u64::from(step));
            let u =
                Update { lr: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step, gradient_scale: 0.5 };
            update(&mut p, &mut m, &mut v, &g, &u);
            for i in 0..n {
                let g = f64::from(g[i]) * 0.5;
                p64[i] *= 1.0 - u.lr * u.weight_decay;
                m64[i] = 0.9 * m64[i] + 0.1 * g;
                v64[i] = 0.999 * v64[i] + 0.001 * g * g;
                let (mh, vh) = (m64[i] / (1.0 - 0.9f64.powi(step as i32)), v64[i] / (1.0 - 0.999f64.powi(step as i32)));
                p64[i] -= u.lr * mh / (vh.sqrt() + 1e-8);
            }
        }
        assert!(p.iter().zip(&p64).all(|(a, b)| (f64::from(*a) - b).abs() < 2e-6));
        let want: f64 = wide(&p).iter().map(|x| x * x).sum();
        assert!((sum_of_squares(&p) - want).abs() < 1e-6 * want);
        assert!(sum_of_squares(&[1.0, f32::NAN]).is_nan());
    }
}
