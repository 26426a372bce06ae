//! Dropout whose mask is a pure function of a key and the element's place: nothing is stored, the backward pass and a
//! resumed run draw the same mask again.

use rayon::prelude::*;

use super::simd::simd;
use crate::rng::{Philox, WIDE};

/// Elements one generator call decides: 16 random bits each.
const BLOCK: usize = 8 * WIDE;
const CHUNK: usize = 64 * BLOCK;

/// Names one mask: which run, which optimizer step, which module.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Seed of the run.
    pub seed: u64,
    /// Optimizer step, from 1.
    pub step: u32,
    /// Number of the module in the model.
    pub module: u32,
    /// Elements of this module's input that came before in the same step (a multiple of the row width).
    pub first: u64,
}

/// `y = x / (1 - p)` where the mask keeps an element, else 0. With `add`, that is added to `y` (the backward pass).
/// `p` is taken to the nearest multiple of `2^-16`.
pub fn apply(x: &[f32], y: &mut [f32], p: f64, key: Key, add: bool) {
    let threshold = (p * 65536.0).round().clamp(0.0, 65535.0) as u32;
    let scale = (1.0 / (1.0 - f64::from(threshold) / 65536.0)) as f32;
    let generator = Philox::new(key.seed);
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).enumerate().for_each(|(c, (y, x))| {
        simd(
            #[inline(always)]
            || {
                let mut bits = [0u16; BLOCK + BLOCK];
                let start = key.first + (c * CHUNK) as u64;
                let mut done = 0;
                let mut have = u64::MAX;
                while done < y.len() {
                    let place = start + done as u64;
                    let block = place / BLOCK as u64;
                    if block != have {
                        generator.fill_u16(block, key.step, key.module, &mut bits[..BLOCK]);
                        have = block;
                    }
                    let offset = (place % BLOCK as u64) as usize;
                    let n = (BLOCK - offset).min(y.len() - done);
                    for ((y, &x), &b) in
                        y[done..done + n].iter_mut().zip(&x[done..done + n]).zip(&bits[offset..offset + n])
                    {
                        let v = if u32::from(b) >= threshold { x * scale } else { 0.0 };
                        *y = if add { *y + v } else { v };
                    }
                    done += n;
                }
            },
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::noise;

    const KEY: Key = Key { seed: 7, step: 3, module: 5, first: 0 };

    #[test]
    fn the_kept_share_is_right_and_the_mean_is_kept() {
        let n = 1 << 20;
        let (x, mut y) = (vec![1f32; n], vec![0f32; n]);
        apply(&x, &mut y, 0.1, KEY, false);
        let kept = y.iter().filter(|&&y| y != 0.0).count() as f64 / n as f64;
        assert!((kept - 0.9).abs() < 0.002, "{kept}");
        let mean = y.iter().map(|&y| f64::from(y)).sum::<f64>() / n as f64;
        assert!((mean - 1.0).abs() < 0.002, "{mean}");
    }

    #[test]
    fn a_mask_depends_on_the_place_not_on_the_call() {
        let x = noise(10_000, 1);
        let mut whole = vec![0f32; x.len()];
        apply(&x, &mut whole, 0.3, KEY, false);
        for cut in [1, 63, 64, 4000] {
            let mut parts = vec![0f32; x.len()];
            let (a, b) = parts.split_at_mut(cut);
            apply(&x[..cut], a, 0.3, KEY, false);
            apply(&x[cut..], b, 0.3, Key { first: cut as u64, ..KEY }, false);
            assert_eq!(whole, parts);
        }
        for other in [Key { seed: 8, ..KEY }, Key { step: 4, ..KEY }, Key { module: 6, ..KEY }] {
            let mut y = vec![0f32; x.len()];
            apply(&x, &mut y, 0.3, other, false);
            let same = y.iter().zip(&whole).filter(|(a, b)| (**a == 0.0) == (**b == 0.0)).count() as f64;
            assert!(
                (same / x.len() as f64 - 0.58).abs() < 0.03,
                "0.7^2 + 0.3^2 of two masks agree by chance, got {same}"
            );
        }
    }
}
