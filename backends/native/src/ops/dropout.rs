//! Dropout whose mask is a pure function of a key and the element's place: a resumed run draws
//! the same mask again.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx512;

use std::ops::Range;

use half::bf16;
use karat_kernels::memory::arena;
use karat_kernels::philox::{Philox, WIDE};
use rayon::prelude::*;

/// Elements one generator call decides: 16 random bits each.
const BLOCK: usize = 8 * WIDE;
/// Elements a word of a mask decides.
const WORD: usize = 16;
/// Elements a thread takes at once.
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
    /// Elements of this module's input that came before in the same step (a multiple of the row
    /// width).
    pub first: u64,
}

/// A mask once it is drawn: a bit an element.
#[derive(Debug)]
pub struct Mask {
    /// Bit `i % 16` of word `i / 16` is set where element `i` is kept.
    words: Vec<u16>,
    scale: f32,
}

/// The bits of calls of the generator from `index` on, as words of a mask.
fn draw(generator: &Philox, index: u64, stream: [u32; 2], threshold: u16, words: &mut [[u16; BLOCK / WORD]]) {
    #[cfg(target_arch = "x86_64")]
    if avx512::here() {
        let (fours, rest) = words.as_chunks_mut::<4>();
        let after = index + 4 * fours.len() as u64;
        // SAFETY: the CPU has what it takes.
        unsafe {
            for (four, index) in fours.iter_mut().zip((index..).step_by(4)) {
                *four = avx512::draw(generator, index, stream, threshold);
            }
            for (one, index) in rest.iter_mut().zip(after..) {
                [*one] = avx512::draw(generator, index, stream, threshold);
            }
        }
        return;
    }
    words.iter_mut().zip(index..).for_each(|(words, index)| *words = draw_plainly(generator, index, stream, threshold));
}

fn draw_plainly(generator: &Philox, index: u64, [a, b]: [u32; 2], threshold: u16) -> [u16; BLOCK / WORD] {
    let (mut bits, mut words) = ([0u16; BLOCK], [0; BLOCK / WORD]);
    generator.fill_u16(index, a, b, &mut bits);
    for (word, bits) in words.iter_mut().zip(bits.chunks_exact(WORD)) {
        for (l, bits) in bits.iter().enumerate() {
            *word |= u16::from(*bits >= threshold) << l;
        }
    }
    words
}

fn is_kept(words: &[u16], i: usize) -> bool {
    words[i / WORD] >> (i % WORD) & 1 != 0
}

fn apply_plainly(words: &[u16], scale: f32, x: &[f32], y: &mut [f32], add: bool) {
    for (i, (y, x)) in y.iter_mut().zip(x).enumerate() {
        let v = if is_kept(words, i) { x * scale } else { 0.0 };
        *y = if add { *y + v } else { v };
    }
}

/// [`Mask::apply`] on the calling thread.
fn apply_here(words: &[u16], scale: f32, x: &[f32], y: &mut [f32], add: bool) {
    #[cfg(target_arch = "x86_64")]
    if avx512::here() {
        // SAFETY: the CPU has what it takes; all three are of the same elements.
        return unsafe { avx512::apply(words, scale, x, y, add) };
    }
    apply_plainly(words, scale, x, y, add);
}

fn keep_plainly(words: &[u16], x: &[bf16], y: &mut [bf16]) {
    y.iter_mut().zip(x).enumerate().for_each(|(i, (y, x))| *y = if is_kept(words, i) { *x } else { bf16::ZERO });
}

impl Mask {
    /// The mask of `n` elements under `key`. `p` is taken to the nearest multiple of `2^-16`.
    pub fn draw(n: usize, p: f64, key: Key) -> Self {
        const WORDS: usize = BLOCK / WORD;
        let threshold = (p * 65536.0).round().clamp(0.0, 65535.0) as u16;
        let scale = (1.0 / (1.0 - f64::from(threshold) / 65536.0)) as f32;
        let (generator, stream) = (Philox::new(key.seed), [key.step, key.module]);
        let mut words = vec![0u16; n.div_ceil(WORD)];
        words.par_chunks_mut(CHUNK / WORD).enumerate().for_each(|(c, words)| {
            let start = key.first + (c * CHUNK) as u64;
            // Words as the generator cuts them; ours may begin inside one.
            let (first, shift) = (start / WORD as u64, (start % WORD as u64) as u32);
            let skipped = (first % WORDS as u64) as usize;
            let mut cut = [0u16; CHUNK / WORD + 2 * WORDS];
            let needed = skipped + words.len() + usize::from(shift > 0);
            let drawn = &mut cut.as_chunks_mut().0[..needed.div_ceil(WORDS)];
            draw(&generator, first / WORDS as u64, stream, threshold, drawn);
            for (word, pair) in words.iter_mut().zip(cut[skipped..].windows(2)) {
                *word = ((u32::from(pair[0]) | u32::from(pair[1]) << 16) >> shift) as u16;
            }
        });
        Mask { words, scale }
    }

    /// Factor of the elements that are kept, `1 / (1 - p)`.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// `y = x / (1 - p)` where an element is kept, else 0. With `add`, that is added to `y` (the
    /// backward pass).
    pub fn apply(&self, x: &[f32], y: &mut [f32], add: bool) {
        let chunks = y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).zip(self.words.par_chunks(CHUNK / WORD));
        chunks.for_each(|((y, x), words)| apply_here(words, self.scale, x, y, add));
    }

    /// `y += x / (1 - p)` where an element is kept, for rows of `width` elements that `make` makes:
    /// those of the rows that it is given the numbers of.
    pub fn add_made(&self, y: &mut [f32], width: usize, make: impl Fn(Range<usize>, &mut [f32]) + Sync) {
        /// Rows at a time: words of the mask begin with the first of them.
        const ROWS: usize = 2 * WORD;
        let parts = y.par_chunks_mut(ROWS * width).zip(self.words.par_chunks(ROWS / WORD * width));
        parts.enumerate().for_each(|(part, (y, words))| {
            let mut x = arena::alloc(y.len());
            make(part * ROWS..part * ROWS + y.len() / width, &mut x);
            apply_here(words, self.scale, &x, y, true);
        });
    }

    /// `y = x` where an element is kept, else 0: without the scale, so that bf16 stay what they
    /// are.
    pub fn keep(&self, x: &[bf16], y: &mut [bf16]) {
        let chunks = y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).zip(self.words.par_chunks(CHUNK / WORD));
        chunks.for_each(|((y, x), words)| {
            #[cfg(target_arch = "x86_64")]
            if avx512::here() {
                // SAFETY: as above.
                return unsafe { avx512::keep(words, x, y) };
            }
            keep_plainly(words, x, y);
        });
    }
}

/// [`Mask::apply`] of a mask that is used once.
pub fn apply(x: &[f32], y: &mut [f32], p: f64, key: Key, add: bool) {
    Mask::draw(x.len(), p, key).apply(x, y, add);
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
        let (narrow, mut kept) = (vec![bf16::ONE; x.len()], vec![bf16::NEG_ONE; x.len()]);
        Mask::draw(x.len(), 0.3, KEY).keep(&narrow, &mut kept);
        let want = whole.iter().zip(&x).map(|(y, x)| if *y != 0.0 || *x == 0.0 { bf16::ONE } else { bf16::ZERO });
        assert!(kept.iter().zip(want).zip(&x).all(|((a, b), x)| *a == b || *x == 0.0));
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

    #[test]
    fn what_is_made_row_by_row_is_added_as_a_whole_would_be() {
        for (rows, width) in [(1, 5), (33, 7), (100, 48)] {
            let (x, mask) = (noise(rows * width, 1), Mask::draw(rows * width, 0.3, KEY));
            let [mut whole, mut parts] = [0; 2].map(|_| noise(rows * width, 2));
            mask.apply(&x, &mut whole, true);
            mask.add_made(&mut parts, width, |rows, made| {
                made.copy_from_slice(&x[rows.start * width..rows.end * width]);
            });
            assert_eq!(whole, parts);
        }
    }

    #[test]
    fn an_element_is_kept_by_its_own_sixteen_bits_of_the_stream() {
        let (n, p) = (3 * BLOCK + 5, 0.3);
        for first in [0, 1, 40, 130, 1 << 33] {
            let key = Key { first, ..KEY };
            let (x, mut y) = (vec![1f32; n], vec![0f32; n]);
            apply(&x, &mut y, p, key, false);
            let mut bits = [0u16; BLOCK];
            for (i, y) in y.iter().enumerate() {
                let place = first + i as u64;
                Philox::new(key.seed).fill_u16(place / BLOCK as u64, key.step, key.module, &mut bits);
                let kept = u32::from(bits[place as usize % BLOCK]) >= (p * 65536.0).round() as u32;
                assert_eq!(*y != 0.0, kept, "element {i} after {first}");
            }
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn vectors_and_plain_loops_give_the_same_bits() {
        if !avx512::here() {
            return eprintln!("no AVX-512 here");
        }
        for n in [1, 15, 16, 31, 33, BLOCK, 500] {
            let x: Vec<f32> = noise(n, 1);
            let narrow: Vec<bf16> = x.iter().map(|x| bf16::from_f32(*x)).collect();
            for threshold in [0, 1, 6554, u16::MAX] {
                let words: Vec<u16> = (0..n.div_ceil(BLOCK) as u64)
                    .flat_map(|i| draw_plainly(&Philox::new(9), u64::from(u32::MAX) / 16 + i, [3, 4], threshold))
                    .collect();
                for (i, words) in words.chunks_exact(BLOCK / WORD).enumerate() {
                    let index = u64::from(u32::MAX) / 16 + i as u64;
                    // SAFETY: `here` was asked.
                    let drawn: [[u16; BLOCK / WORD]; 1] =
                        unsafe { avx512::draw(&Philox::new(9), index, [3, 4], threshold) };
                    assert_eq!(drawn[0], words);
                }
                for add in [false, true] {
                    let [mut a, mut b] = [0, 1].map(|_| noise(n, 2));
                    apply_plainly(&words, 1.25, &x, &mut a, add);
                    // SAFETY: as above; there are words for `n` elements.
                    unsafe { avx512::apply(&words, 1.25, &x, &mut b, add) };
                    assert_eq!(a, b);
                }
                let [mut a, mut b] = [0, 1].map(|_| vec![bf16::ONE; n]);
                keep_plainly(&words, &narrow, &mut a);
                // SAFETY: as above.
                unsafe { avx512::keep(&words, &narrow, &mut b) };
                assert_eq!(a, b);
            }
        }
    }
}
