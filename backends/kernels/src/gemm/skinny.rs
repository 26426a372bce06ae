//! Skinny bf16 GEMM, of few columns (LoRA ranks): on vectors every element is a dot product along
//! the rows of both operands.
//!
//! The other kernels give each column a lane, so that most of a vector would be empty, and the
//! right operand would be packed for little arithmetic. Here lanes run along the inner dimension: a
//! row of the left operand is read once, in its order, for all columns. Tiles are fast enough for
//! it to matter no more that they are half empty: they do what they do elsewhere.
//!
//! A lane sums every sixteenth pair, `s = a1 b1 + s; s = a0 b0 + s` as [`super::microkernel`] has
//! it; the lanes are then added by halves, `l + (l + 8)` first. So the bits are the same on every
//! instruction set but that of the tiles.
#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop, reason = "constant bounds, so that registers are used instead of memory")]

use std::ops::Range;

use super::executor::Threads;
use super::isa::Isa;
use super::lhs::{Lhs, left};
use super::matrix::{Mat, MatMut};
use super::pack::whole::{self, PackedRhs};
use super::pack::{self, Part};
use super::tile::{LANES, PANEL, Precision};
use crate::memory::arena;

/// SkinnyRhs that are summed at once.
const COLUMNS: usize = 8;
/// Rows that are summed at once: twenty-four sums in registers.
const ROWS: usize = 3;

/// The columns of one or several matrices `[k, columns]`, rounded, each along the inner dimension.
pub struct SkinnyRhs {
    columns: Columns,
    k: usize,
    n: usize,
}

enum Columns {
    /// One after the other, for dot products.
    Lying {
        units: Vec<u32>,
        /// Units from one column to the next: whole vectors.
        stride: usize,
    },
    /// In panels, for tiles.
    Panels(PackedRhs),
}

impl SkinnyRhs {
    /// Those of `matrices`, `[k, columns]` each, side by side.
    ///
    /// # Panics
    /// If the matrices have not `k` rows.
    pub fn new(k: usize, matrices: &[Mat<'_>]) -> Self {
        Self::by(Isa::of_this_cpu(), k, matrices)
    }

    fn by(isa: Isa, k: usize, matrices: &[Mat<'_>]) -> Self {
        let n = matrices.iter().map(|matrix| matrix.dims().1).sum::<usize>();
        for (rows, _) in matrices.iter().map(Mat::dims) {
            assert!(rows == k, "a matrix of {rows} rows for {k}");
        }
        let put = |precision: Precision, stride: usize, units: &mut [u32]| {
            let mut first = 0;
            for matrix in matrices {
                let part = Part { start: 0, along: k, first: 0, across: matrix.dims().1 };
                pack::left(isa, precision, &matrix.t(), part, stride, &mut units[first * stride..]);
                first += part.across;
            }
        };
        let panels = |of: Mat<'_>| {
            let mut made = PackedRhs::with_room(isa, Precision::Bf16, k, n);
            for first in (0..n).step_by(PANEL) {
                made.put((0, first), of.part(0..k, first..n.min(first + PANEL)));
            }
            Columns::Panels(made)
        };
        let columns = match matrices {
            [one] if isa.has_tiles() => panels(*one),
            _ if isa.has_tiles() => {
                let mut beside = arena::alloc(n * k);
                put(Precision::F32, k, bytemuck::cast_slice_mut(&mut beside));
                panels(Mat::new(&beside, n, k).t())
            }
            _ => {
                let stride = k.div_ceil(2).next_multiple_of(LANES);
                let mut units = vec![0; n.next_multiple_of(COLUMNS) * stride];
                put(Precision::Bf16, stride, &mut units);
                Columns::Lying { units, stride }
            }
        };
        SkinnyRhs { columns, k, n }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.n
    }
}

/// `x w` `[rows, columns]` for `x` `[rows, k]`, on the calling thread.
///
/// # Panics
/// If shapes do not fit.
pub fn gemm(x: Mat<'_>, w: &SkinnyRhs, out: &mut [f32]) {
    gemm_by(Isa::of_this_cpu(), x, w, out);
}

fn gemm_by(isa: Isa, x: Mat<'_>, w: &SkinnyRhs, out: &mut [f32]) {
    let (rows, k) = x.dims();
    assert!(k == w.k && out.len() == rows * w.n, "{rows} x {k} by {} x {} into {}", w.k, w.n, out.len());
    let (units, stride) = match &w.columns {
        Columns::Panels(_) if w.n == 0 => return,
        Columns::Panels(columns) => return whole::multiply(MatMut::new(out, rows, w.n), 1.0, x, columns, false),
        Columns::Lying { units, stride } => (units, *stride),
    };
    let x = left(isa, Precision::Bf16, x, Threads::One);
    for first in (0..rows).step_by(ROWS) {
        for column in (0..w.n).step_by(COLUMNS) {
            let (rows, columns) = ((rows - first).min(ROWS), (w.n - column).min(COLUMNS));
            let of_w = &units[column * stride..][..COLUMNS * stride];
            let sums = block(isa, &x, first..first + rows, of_w, k.div_ceil(2));
            for (r, sums) in sums.iter().take(rows).enumerate() {
                let to = &mut out[(first + r) * w.n + column..][..columns];
                // So few numbers of an unknown count would be a call.
                match to.first_chunk_mut() {
                    Some(to) => *to = *sums,
                    None => to.copy_from_slice(&sums[..columns]),
                }
            }
        }
    }
}

/// The sums of some rows with some columns, of `units` units each.
fn block(isa: Isa, x: &Lhs<'_>, rows: Range<usize>, w: &[u32], units: usize) -> [[f32; COLUMNS]; ROWS] {
    // What is beyond the last row is the last row again.
    let of_x: [*const u32; ROWS] = std::array::from_fn(|r| x.row(rows.start + r.min(rows.len() - 1)));
    let stride = w.len() / COLUMNS;
    #[cfg(target_arch = "x86_64")]
    if matches!(isa, Isa::Avx512Bf16 | Isa::AmxBf16) {
        // SAFETY: the set was found on this CPU; rows of `x` have `units` units, columns of `w`
        // whole vectors of them.
        return unsafe { x86::block(of_x, w.as_ptr(), stride, units) };
    }
    let _ = isa;
    let mut sums = [[0f32; COLUMNS]; ROWS];
    crate::simd::simd(
        #[inline(always)]
        || {
            for (r, sums) in sums.iter_mut().enumerate() {
                // SAFETY: a row of the left operand has so many units.
                let a = unsafe { std::slice::from_raw_parts(of_x[r], units) };
                for (c, sum) in sums.iter_mut().enumerate() {
                    *sum = plainly(a, &w[c * stride..][..units]);
                }
            }
        },
    );
    sums
}

/// One dot product.
#[inline(always)]
fn plainly(a: &[u32], b: &[u32]) -> f32 {
    let high = |u: u32| f32::from_bits(u & 0xffff_0000);
    let low = |u: u32| f32::from_bits(u << 16);
    let mut sums = [0f32; LANES];
    let whole = a.len() / LANES * LANES;
    for (a, b) in a[..whole].chunks_exact(LANES).zip(b[..whole].chunks_exact(LANES)) {
        for l in 0..LANES {
            sums[l] = low(a[l]).mul_add(low(b[l]), high(a[l]).mul_add(high(b[l]), sums[l]));
        }
    }
    for ((sum, &a), &b) in sums.iter_mut().zip(&a[whole..]).zip(&b[whole..]) {
        *sum = low(a).mul_add(low(b), high(a).mul_add(high(b), *sum));
    }
    crate::simd::fold(sums)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{COLUMNS, LANES, ROWS};

    /// # Safety
    /// `units` units must be readable from each of `x`, and whole vectors of them from `COLUMNS`
    /// columns `stride` apart from `w` on; the CPU must have AVX512-BF16.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub unsafe fn block(x: [*const u32; ROWS], w: *const u32, stride: usize, units: usize) -> [[f32; COLUMNS]; ROWS] {
        let mut sums = [[_mm512_setzero_ps(); COLUMNS]; ROWS];
        let whole = units / LANES * LANES;
        let pairs = |x: __m512i| {
            // SAFETY: both are 512 bits without a niche.
            unsafe { std::mem::transmute::<__m512i, __m512bh>(x) }
        };
        // SAFETY: the caller's promise; the mask keeps to the units of a row.
        unsafe {
            for u in (0..whole).step_by(LANES) {
                let rows = x.map(|x| pairs(_mm512_loadu_si512(x.add(u).cast())));
                for c in 0..COLUMNS {
                    let column = pairs(_mm512_loadu_si512(w.add(c * stride + u).cast()));
                    for r in 0..ROWS {
                        sums[r][c] = _mm512_dpbf16_ps(sums[r][c], rows[r], column);
                    }
                }
            }
            if whole < units {
                let mask = ((1u32 << (units - whole)) - 1) as __mmask16;
                let rows = x.map(|x| pairs(_mm512_maskz_loadu_epi32(mask, x.add(whole).cast())));
                for c in 0..COLUMNS {
                    let column = pairs(_mm512_loadu_si512(w.add(c * stride + whole).cast()));
                    for r in 0..ROWS {
                        sums[r][c] = _mm512_dpbf16_ps(sums[r][c], rows[r], column);
                    }
                }
            }
        }
        sums.map(|sums| sums.map(|sum| folded(sum)))
    }

    /// The sum of the lanes, by halves.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    fn folded(x: __m512) -> f32 {
        let x = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
        let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::testing::noise;

    #[test]
    fn elements_are_dot_products_with_the_same_bits_on_every_set_without_tiles_and_beside_any_others() {
        for (m, k, ranks) in
            [(1, 1, vec![1]), (7, 70, vec![8, 3, 1]), (5, 1101, vec![8, 8]), (48, 96, vec![16]), (3, 0, vec![4])]
        {
            let x = noise(m * k, 1);
            let mut narrow = vec![bf16::ZERO; m * k];
            super::super::narrow(&x, &mut narrow);
            let weights: Vec<Vec<f32>> = ranks.iter().map(|r| noise(r * k, *r as u64 + 5)).collect();
            let turned: Vec<Vec<f32>> = weights
                .iter()
                .zip(&ranks)
                .map(|(w, r)| (0..k).flat_map(|i| (0..*r).map(move |j| w[j * k + i])).collect())
                .collect();
            let n: usize = ranks.iter().sum();
            let all: Vec<&[f32]> = weights.iter().flat_map(|w| w.chunks_exact(k.max(1))).collect();
            let lying: Vec<Mat<'_>> = weights.iter().zip(&ranks).map(|(w, r)| Mat::new(w, *r, k).t()).collect();
            let standing: Vec<Mat<'_>> = turned.iter().zip(&ranks).map(|(w, r)| Mat::new(w, k, *r)).collect();
            let by = |isa: Isa| {
                let mut results = Vec::new();
                for w in [SkinnyRhs::by(isa, k, &lying), SkinnyRhs::by(isa, k, &standing)] {
                    assert_eq!(w.count(), n);
                    for x in [Mat::new(&x, m, k), Mat::narrowed(&narrow, m, k)] {
                        let mut out = vec![9f32; m * n];
                        gemm_by(isa, x, &w, &mut out);
                        results.push(out);
                    }
                }
                results
            };
            let check = |isa: Isa, result: &[f32]| {
                for (i, row) in result.chunks_exact(n).enumerate() {
                    for (j, got) in row.iter().enumerate() {
                        let rounded = |x: f32| f64::from(bf16::from_f32(x).to_f32());
                        let terms = (0..k).map(|l| rounded(x[i * k + l]) * rounded(all[j][l]));
                        let (want, size) = terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
                        assert!((f64::from(*got) - want).abs() <= 1e-6 * size, "{m} x {k}: {got}, want {want}");
                    }
                    // Alone, a row and a column are what they are beside others.
                    let mut alone = vec![9f32; ranks[0]];
                    let w = SkinnyRhs::by(isa, k, &lying[..1]);
                    gemm_by(isa, Mat::new(&x, m, k).part(i..i + 1, 0..k), &w, &mut alone);
                    assert_eq!(alone, row[..ranks[0]]);
                }
            };
            let this = Isa::of_this_cpu();
            let (vectors, tiles) = match this.has_tiles() {
                true => (Isa::Avx512Bf16, this),
                false => (this, Isa::Emulated),
            };
            for alike in [[Isa::Portable, vectors], [Isa::Emulated, tiles]] {
                let results = alike.map(by).concat();
                assert!(results.iter().all(|other| *other == results[0]), "{m} x {k} by {ranks:?} on {alike:?}");
                check(alike[1], &results[0]);
            }
        }
    }
}
