//! The microkernels in AVX-512.
#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop, reason = "constant bounds, so that registers are used instead of memory")]

use std::arch::x86_64::*;

use crate::gemm::prefetch::{Prefetcher, prefetch};
use crate::gemm::tile::{LANES, Tail, Tile, Unpacked};

/// Units between two cache lines that are asked for.
const EACH: usize = 16;

/// One unit of one row times one vector of columns.
trait Step {
    /// # Safety
    /// The CPU must have the instructions.
    unsafe fn step(a: __m512i, b: __m512i, sum: __m512) -> __m512;
}

struct Single;
impl Step for Single {
    #[inline(always)]
    unsafe fn step(a: __m512i, b: __m512i, sum: __m512) -> __m512 {
        // SAFETY: the caller vouches for AVX-512.
        unsafe { _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum) }
    }
}

struct Pair;
impl Step for Pair {
    #[inline(always)]
    unsafe fn step(a: __m512i, b: __m512i, sum: __m512) -> __m512 {
        // SAFETY: the caller vouches for AVX512-BF16; both types are 512 bits without a niche.
        unsafe {
            let pairs = |x: __m512i| std::mem::transmute::<__m512i, __m512bh>(x);
            _mm512_dpbf16_ps(sum, pairs(a), pairs(b))
        }
    }
}

struct Halves;
impl Step for Halves {
    #[inline(always)]
    unsafe fn step(a: __m512i, b: __m512i, sum: __m512) -> __m512 {
        // SAFETY: the caller vouches for AVX-512.
        unsafe {
            let mask = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            let high = |x| _mm512_castsi512_ps(_mm512_and_si512(x, mask));
            let low = |x| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x));
            let sum = _mm512_fmadd_ps(high(a), high(b), sum);
            _mm512_fmadd_ps(low(a), low(b), sum)
        }
    }
}

impl Tile {
    /// Puts the sums of the rows from `first` and the columns from `column` on into the output.
    ///
    /// # Safety
    /// The output must have the rows and all of the tile's columns; the CPU must have AVX-512.
    #[inline(always)]
    pub(in crate::gemm) unsafe fn store<const ROWS: usize, const VECTORS: usize>(
        &self,
        first: usize,
        column: usize,
        sums: [[__m512; VECTORS]; ROWS],
    ) {
        // SAFETY: the caller's promise; masks keep to the columns.
        unsafe {
            let alpha = _mm512_set1_ps(self.alpha);
            for r in 0..ROWS {
                for v in 0..VECTORS {
                    let columns = self.columns.saturating_sub(column + v * LANES).min(LANES);
                    let mask = ((1u32 << columns) - 1) as __mmask16;
                    let c = self.c.wrapping_add((first + r) * self.c_stride + column + v * LANES);
                    let sum = match self.add {
                        true => _mm512_fmadd_ps(alpha, sums[r][v], _mm512_maskz_loadu_ps(mask, c)),
                        false => _mm512_mul_ps(alpha, sums[r][v]),
                    };
                    _mm512_mask_storeu_ps(c, mask, sum);
                }
            }
        }
    }
}

/// `ROWS` rows of `VECTORS` vectors, the sums in registers.
///
/// # Safety
/// As [`super::run`].
#[inline(always)]
unsafe fn tile<S: Step, const ROWS: usize, const VECTORS: usize>(
    t: &Tile,
    tail: &Tail,
    first: usize,
    ahead: &mut Prefetcher,
) {
    // SAFETY: the caller's promise about `t`; masks keep loads and stores of `c` to its columns.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
        // A weight gradient lies in main memory: what it is added to is fetched while the sums are
        // made.
        for r in 0..ROWS {
            for v in 0..VECTORS {
                _mm_prefetch::<_MM_HINT_T0>(t.c.wrapping_add((first + r) * t.c_stride + v * LANES).cast());
            }
        }
        let (mut a, mut b) = (t.a.add(first * t.a_stride), t.b);
        for start in (0..t.units).step_by(EACH) {
            let units = EACH.min(t.units - start);
            ahead.fetch(1);
            chain::<S, ROWS, VECTORS>(units, a, t.a_stride, b, &mut sums);
            (a, b) = (a.wrapping_add(units), b.wrapping_add(units * VECTORS * LANES));
        }
        if tail.units > 0 {
            let a = tail.a.add(first * tail.a_stride);
            chain::<S, ROWS, VECTORS>(tail.units, a, tail.a_stride, tail.b, &mut sums);
        }
        t.store(first, 0, sums);
    }
}

/// Goes on with the sums over `units` units.
///
/// # Safety
/// As [`super::run`], of the rows from `a` and the columns from `b`.
#[inline(always)]
unsafe fn chain<S: Step, const ROWS: usize, const VECTORS: usize>(
    units: usize,
    mut a: *const u32,
    a_stride: usize,
    mut b: *const u32,
    sums: &mut [[__m512; VECTORS]; ROWS],
) {
    // SAFETY: the caller's promise.
    unsafe {
        for _ in 0..units {
            let mut columns = [_mm512_setzero_si512(); VECTORS];
            for v in 0..VECTORS {
                columns[v] = _mm512_loadu_si512(b.add(v * LANES).cast());
            }
            for r in 0..ROWS {
                let row = _mm512_set1_epi32(*a.add(r * a_stride) as i32);
                for v in 0..VECTORS {
                    sums[r][v] = S::step(row, columns[v], sums[r][v]);
                }
            }
            a = a.add(1);
            b = b.add(VECTORS * LANES);
        }
    }
}

/// `ROWS` rows of two vectors, the right operand's rows put side by side on the way.
///
/// # Safety
/// As [`super::run_unpacked`].
#[inline(always)]
unsafe fn unpacked<const ROWS: usize>(t: &Tile, b: Unpacked, first: usize) {
    /// Rows between a load and the fetching of what comes later.
    const AHEAD: usize = 24;
    // SAFETY: the caller's promise; masks keep to the columns and to the rows that are there.
    unsafe {
        let low = _mm512_set_epi16(
            47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33,
            1, 32, 0,
        );
        let high = _mm512_add_epi16(low, _mm512_set1_epi16(LANES as i16));
        for column in (0..t.columns).step_by(2 * LANES) {
            let width = (t.columns - column).min(2 * LANES);
            let mask = if width == 2 * LANES { u32::MAX } else { (1u32 << width) - 1 };
            let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
            let mut a = t.a.add(first * t.a_stride);
            let mut row = b.first.add(column);
            for u in 0..t.units {
                let second = if 2 * u + 1 < b.along { mask } else { 0 };
                let (x, y) = (
                    _mm512_maskz_loadu_epi16(mask, row.cast()),
                    _mm512_maskz_loadu_epi16(second, row.wrapping_add(b.stride).cast()),
                );
                prefetch(row.wrapping_add(AHEAD * b.stride).cast());
                prefetch(row.wrapping_add((AHEAD + 1) * b.stride).cast());
                let columns = [_mm512_permutex2var_epi16(x, low, y), _mm512_permutex2var_epi16(x, high, y)];
                for r in 0..ROWS {
                    let row = _mm512_set1_epi32(*a.add(r * t.a_stride) as i32);
                    for v in 0..2 {
                        sums[r][v] = Pair::step(row, columns[v], sums[r][v]);
                    }
                }
                a = a.add(1);
                row = row.wrapping_add(2 * b.stride);
            }
            t.store(first, column, sums);
        }
    }
}

/// # Safety
/// As [`super::run_unpacked`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub unsafe fn run_unpacked(rows: usize, t: Tile, b: Unpacked) {
    let mut first = 0;
    // SAFETY: the caller's promise; every group ends at `rows`.
    unsafe {
        while rows - first >= 8 {
            unpacked::<8>(&t, b, first);
            first += 8;
        }
        if rows - first >= 4 {
            unpacked::<4>(&t, b, first);
            first += 4;
        }
        while rows > first {
            unpacked::<1>(&t, b, first);
            first += 1;
        }
    }
}

/// All rows, in groups that keep 24 sums in registers.
///
/// # Safety
/// As [`super::run`].
#[inline(always)]
unsafe fn rows<S: Step, const MAX_ROWS: usize, const VECTORS: usize>(
    rows: usize,
    t: &Tile,
    tail: &Tail,
    ahead: &mut Prefetcher,
) {
    let mut first = 0;
    // SAFETY: the caller's promise; every group ends at `rows`.
    unsafe {
        while rows - first >= MAX_ROWS {
            tile::<S, MAX_ROWS, VECTORS>(t, tail, first, ahead);
            first += MAX_ROWS;
        }
        while rows - first >= 4 {
            tile::<S, 4, VECTORS>(t, tail, first, ahead);
            first += 4;
        }
        if rows - first >= 2 {
            tile::<S, 2, VECTORS>(t, tail, first, ahead);
            first += 2;
        }
        if rows > first {
            tile::<S, 1, VECTORS>(t, tail, first, ahead);
        }
    }
}

/// # Safety
/// As [`super::run`].
#[inline(always)]
unsafe fn by_vectors<S: Step>(n: usize, t: Tile, tail: Tail, ahead: &mut Prefetcher) {
    // SAFETY: the caller's promise.
    unsafe {
        match t.vectors {
            1 => rows::<S, 16, 1>(n, &t, &tail, ahead),
            2 => rows::<S, 12, 2>(n, &t, &tail, ahead),
            3 => rows::<S, 8, 3>(n, &t, &tail, ahead),
            _ => rows::<S, 6, 4>(n, &t, &tail, ahead),
        }
    }
}

/// # Safety
/// As [`super::run`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub unsafe fn run_bf16(n: usize, t: Tile, tail: Tail, ahead: &mut Prefetcher) {
    // SAFETY: the caller's promise; the features are enabled here.
    unsafe { by_vectors::<Pair>(n, t, tail, ahead) }
}

/// # Safety
/// As [`super::run`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub unsafe fn run_f32(n: usize, t: Tile, tail: Tail, ahead: &mut Prefetcher) {
    // SAFETY: the caller's promise; the features are enabled here.
    unsafe { by_vectors::<Single>(n, t, tail, ahead) }
}

/// # Safety
/// As [`super::run`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub unsafe fn run_pairs(n: usize, t: Tile, tail: Tail, ahead: &mut Prefetcher) {
    // SAFETY: the caller's promise; the features are enabled here.
    unsafe { by_vectors::<Halves>(n, t, tail, ahead) }
}
