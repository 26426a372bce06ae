//! Mixed-precision GEMM of few rows, f32 by prepacked bf16, without unpacking the weight first: it
//! takes as long as the operand takes to be read, so half the bytes are half the time.
//!
//! Every pair is widened in registers and multiplied by two elements of the left operand, the first
//! one first: the chain of sums, and so the bits, are those of an f32 product of the widened
//! operand ([`super::microkernel`]).
#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop, reason = "constant bounds, so that registers are used instead of memory")]

use std::arch::x86_64::*;

use super::tile::{LANES, Tile};

/// Computes `rows` rows of a tile: `t.a` are f32, `t.a_stride` f32 apart; `t.b` holds `t.units`
/// pairs a column, the last of which is half empty if `odd`.
///
/// # Safety
/// As [`super::microkernel::run`]: `rows` rows of `2 * units - odd` elements from `a`. The CPU must
/// have the features.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub unsafe fn run(rows: usize, t: Tile, odd: bool) {
    // SAFETY: the caller's promise; the features are enabled here.
    unsafe {
        match t.vectors {
            1 => groups::<1>(rows, &t, odd),
            2 => groups::<2>(rows, &t, odd),
            3 => groups::<3>(rows, &t, odd),
            _ => groups::<4>(rows, &t, odd),
        }
    }
}

/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn groups<const VECTORS: usize>(rows: usize, t: &Tile, odd: bool) {
    let mut first = 0;
    // SAFETY: the caller's promise; every group ends at `rows`.
    unsafe {
        // Twenty-four sums take most of the registers and read a panel less often; few rows are
        // slower with them.
        while rows > 16 && rows - first >= 6 {
            tile::<6, VECTORS>(t, first, odd);
            first += 6;
        }
        while rows - first >= 4 {
            tile::<4, VECTORS>(t, first, odd);
            first += 4;
        }
        if rows - first >= 2 {
            tile::<2, VECTORS>(t, first, odd);
            first += 2;
        }
        if rows > first {
            tile::<1, VECTORS>(t, first, odd);
        }
    }
}

/// `ROWS` rows of `VECTORS` vectors, the sums in registers.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn tile<const ROWS: usize, const VECTORS: usize>(t: &Tile, first: usize, odd: bool) {
    // SAFETY: the caller's promise about `t`; masks keep loads and stores of `c` to its columns.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
        let (mut a, mut b) = (t.a.add(first * t.a_stride).cast::<f32>(), t.b);
        let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
        for _ in 0..t.units - usize::from(odd) {
            let mut pairs = [_mm512_setzero_si512(); VECTORS];
            for v in 0..VECTORS {
                pairs[v] = _mm512_loadu_si512(b.add(v * LANES).cast());
            }
            for v in 0..VECTORS {
                let low = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs[v]));
                for r in 0..ROWS {
                    sums[r][v] = _mm512_fmadd_ps(_mm512_set1_ps(*a.add(r * t.a_stride)), low, sums[r][v]);
                }
            }
            for v in 0..VECTORS {
                let high = _mm512_castsi512_ps(_mm512_and_si512(pairs[v], upper));
                for r in 0..ROWS {
                    sums[r][v] = _mm512_fmadd_ps(_mm512_set1_ps(*a.add(r * t.a_stride + 1)), high, sums[r][v]);
                }
            }
            a = a.add(2);
            b = b.add(VECTORS * LANES);
        }
        if odd {
            for v in 0..VECTORS {
                let pairs = _mm512_loadu_si512(b.add(v * LANES).cast());
                let low = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs));
                for r in 0..ROWS {
                    sums[r][v] = _mm512_fmadd_ps(_mm512_set1_ps(*a.add(r * t.a_stride)), low, sums[r][v]);
                }
            }
        }
        t.store(first, 0, sums);
    }
}
