//! Drawing and using masks with AVX-512: sixteen blocks of the generator side by side, a bit of a
//! mask register an element. The bits are those of the plain loops.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use half::bf16;
use karat_kernels::philox::{MULTIPLIERS, Philox, ROUNDS, WEYL};

use super::WORD;

/// Whether this CPU has what the functions below use.
pub fn here() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
}

/// High and low halves of `multiplier * x`, lane by lane.
///
/// # Safety
/// The CPU must have AVX-512.
#[inline(always)]
unsafe fn multiply(multiplier: u32, x: __m512i) -> (__m512i, __m512i) {
    // SAFETY: the caller's promise.
    unsafe {
        const ODD: __mmask16 = 0xaaaa;
        let m = _mm512_set1_epi64(i64::from(multiplier));
        let even = _mm512_mul_epu32(x, m);
        let odd = _mm512_mul_epu32(_mm512_srli_epi64::<32>(x), m);
        let high = _mm512_mask_blend_epi32(ODD, _mm512_srli_epi64::<32>(even), odd);
        let low = _mm512_mask_blend_epi32(ODD, even, _mm512_slli_epi64::<32>(odd));
        (high, low)
    }
}

/// Which of the numbers that [`Philox::fill_u16`] draws for `N` indices from `first` on are at least
/// `threshold`: a bit each, in order. A round waits for the one before it; several indices at a time
/// fill that time.
///
/// # Safety
/// [`here`] must hold.
#[target_feature(enable = "avx512f,avx512bw")]
pub unsafe fn draw<const N: usize>(generator: &Philox, first: u64, [a, b]: [u32; 2], threshold: u16) -> [[u16; 8]; N] {
    // SAFETY: the features are enabled; there are no memory accesses.
    unsafe {
        let lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        let mut counters: [[__m512i; 4]; N] = std::array::from_fn(|i| {
            // The lowest four bits are free for the lanes.
            let place = first.wrapping_add(i as u64).wrapping_mul(16);
            let [low, high] = [place as u32, (place >> 32) as u32].map(|word| _mm512_set1_epi32(word as i32));
            let [c2, c3] = [a, b].map(|word| _mm512_set1_epi32(word as i32));
            [_mm512_or_si512(low, lanes), high, c2, c3]
        });
        let mut k = generator.key();
        for _ in 0..ROUNDS {
            let [k0, k1] = k.map(|word| _mm512_set1_epi32(word as i32));
            for c in &mut counters {
                let (high0, low0) = multiply(MULTIPLIERS[0], c[0]);
                let (high1, low1) = multiply(MULTIPLIERS[1], c[2]);
                let c0 = _mm512_ternarylogic_epi32::<0x96>(high1, c[1], k0);
                let c2 = _mm512_ternarylogic_epi32::<0x96>(high0, c[3], k1);
                *c = [c0, low1, c2, low0];
            }
            k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
        }
        let (threshold, half) = (_mm512_set1_epi32(i32::from(threshold)), _mm512_set1_epi32(0xffff));
        let mut all = [[0; 8]; N];
        for (words, c) in all.iter_mut().zip(counters) {
            for (words, c) in words.chunks_exact_mut(2).zip(c) {
                words[0] = _mm512_cmpge_epu32_mask(_mm512_and_si512(c, half), threshold);
                words[1] = _mm512_cmpge_epu32_mask(_mm512_srli_epi32::<16>(c), threshold);
            }
        }
        all
    }
}

/// See [`super::Mask::apply`].
///
/// # Safety
/// [`here`] must hold; there must be a word for every [`WORD`] elements of `y`, which is as long as
/// `x`.
#[target_feature(enable = "avx512f,avx512bw")]
pub unsafe fn apply(words: &[u16], scale: f32, x: &[f32], y: &mut [f32], add: bool) {
    let n = y.len();
    assert!(x.len() == n && words.len() * WORD >= n, "a mask of {} words for {n} elements", words.len());
    // SAFETY: masks keep to `n` elements of both.
    unsafe {
        let scale = _mm512_set1_ps(scale);
        for (i, word) in words[..n.div_ceil(WORD)].iter().enumerate() {
            let at = i * WORD;
            let there = if n - at >= WORD { u16::MAX } else { (1 << (n - at)) - 1 };
            let kept = _mm512_maskz_mul_ps(*word, _mm512_maskz_loadu_ps(there & *word, x.as_ptr().add(at)), scale);
            let y = y.as_mut_ptr().add(at);
            let v = if add { _mm512_add_ps(_mm512_maskz_loadu_ps(there, y), kept) } else { kept };
            _mm512_mask_storeu_ps(y, there, v);
        }
    }
}

/// See [`super::Mask::keep`].
///
/// # Safety
/// As [`apply`].
#[target_feature(enable = "avx512f,avx512bw")]
pub unsafe fn keep(words: &[u16], x: &[bf16], y: &mut [bf16]) {
    let n = y.len();
    assert!(x.len() == n && words.len() * WORD >= n, "a mask of {} words for {n} elements", words.len());
    // SAFETY: masks keep to `n` elements of both.
    unsafe {
        for at in (0..n).step_by(2 * WORD) {
            let second = words.get(at / WORD + 1).copied().unwrap_or(0);
            let word = u32::from(words[at / WORD]) | u32::from(second) << 16;
            let there = if n - at >= 2 * WORD { u32::MAX } else { (1 << (n - at)) - 1 };
            let kept = _mm512_maskz_loadu_epi16(there & word, x.as_ptr().add(at).cast());
            _mm512_mask_storeu_epi16(y.as_mut_ptr().add(at).cast(), there, kept);
        }
    }
}
