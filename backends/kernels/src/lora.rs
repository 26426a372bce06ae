//! LoRA on a weight `W` `[out, in]`: merging, `W + s B A`, and the row norms of the merged weight
//! that DoRA divides by.

use rayon::prelude::*;

use crate::memory::mmap::Elements;
use crate::simd::{simd, sum_of};

/// A low-rank change of a weight.
#[derive(Clone, Copy)]
pub struct LoraDelta<'a> {
    /// `A`, `[r, in]`.
    pub a: &'a [f32],
    /// `B`, `[out, r]`.
    pub b: &'a [f32],
    /// `s`.
    pub scale: f32,
    /// `in`.
    pub n_in: usize,
}

impl LoraDelta<'_> {
    fn rank(&self) -> usize {
        self.a.len() / self.n_in
    }

    /// `row`, which is row `o` of `W`, plus that of `s B A`, all in f32: the products are summed in
    /// the order of the ranks, scaled, then added. `delta` has the length of a row.
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
pub fn merge(w: &mut [f32], change: LoraDelta<'_>, gain: Option<&[f32]>) {
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
pub fn norms(w: Elements<'_>, change: LoraDelta<'_>, norms: &mut [f32]) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::noise;

    const OUT: usize = 70;
    const IN: usize = 45;
    const R: usize = 3;

    #[test]
    fn merging_and_norms_follow_the_formula_in_f64() {
        let (w, a, b) = (noise(OUT * IN, 1), noise(R * IN, 2), noise(OUT * R, 3));
        let change = LoraDelta { a: &a, b: &b, scale: 1.5, n_in: IN };
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
}
