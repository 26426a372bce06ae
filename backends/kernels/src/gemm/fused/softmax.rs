//! Online softmax, forward and backward, whose output is packed for the GEMM that follows while it
//! is in registers.
//!
//! Where the CPU rounds to bf16 itself this is one pass over a tile; elsewhere the same numbers are
//! made in several. The bits are the same.
#![allow(unsafe_code)]

#[cfg(any(target_arch = "x86_64", test))]
use crate::gemm::isa::Isa;
use crate::gemm::matrix::Mat;
use crate::gemm::pack::tiled::PackedLhs;
use crate::gemm::pack::whole::PackedRhs;
use crate::gemm::tile::{PANEL, Precision};
use crate::simd::{exp_fused, max, simd, sum_of};

/// Running statistics of a row's online softmax, block by block (Milakov & Gimelshein, arXiv
/// 1805.02867).
#[derive(Clone, Copy, Debug)]
pub struct OnlineSoftmax {
    /// The largest score so far.
    pub top: f32,
    /// Sum of `e^(score - top)` so far.
    pub sum: f32,
    /// Factor that rescales the sums of earlier blocks: `e^(former top - top)`.
    pub kept: f32,
}

impl Default for OnlineSoftmax {
    fn default() -> Self {
        OnlineSoftmax { top: f32::NEG_INFINITY, sum: 0.0, kept: 0.0 }
    }
}

/// Puts `e^(score - top)` of a block of scores into the first rows and columns of `weights`:
/// `width` of every `stride` scores are a row, of which `seen(row)` at least one, the first ones,
/// count and the others have weight zero. What is in `scores` is lost.
pub fn exp_block(
    scores: &mut [f32],
    (width, stride): (usize, usize),
    rows: &mut [OnlineSoftmax],
    seen: impl Fn(usize) -> usize,
    weights: &mut PackedLhs,
) {
    assert!(width <= stride && rows.len() * stride <= scores.len() && weights.precision == Precision::Bf16);
    #[cfg(target_arch = "x86_64")]
    if matches!(weights.isa, Isa::Avx512Bf16 | Isa::AmxBf16) {
        let padded = width.next_multiple_of(2);
        assert!(rows.len() <= weights.rows && padded <= weights.cols);
        let line = weights.cols;
        let out: &mut [u16] = bytemuck::cast_slice_mut(&mut weights.buffer);
        for (i, ((row, scores), out)) in
            rows.iter_mut().zip(scores.chunks(stride)).zip(out.chunks_mut(line)).enumerate()
        {
            let (scores, out) = (&scores[..width], &mut out[..padded]);
            // SAFETY: the set has the instructions; the slices are as long as asked for.
            unsafe { x86::exp_block(scores, seen(i).min(width), row, out) };
        }
        return;
    }
    simd(
        #[inline(always)]
        || {
            for (i, (row, scores)) in rows.iter_mut().zip(scores.chunks_mut(stride)).enumerate() {
                let (seen, future) = scores[..width].split_at_mut(seen(i).min(width));
                future.fill(0.0);
                let top = max(seen);
                let top = if top > row.top { top } else { row.top };
                seen.iter_mut().for_each(|p| *p = exp_fused(*p - top));
                row.follow(top, sum_of([seen], |[p]| p));
            }
        },
    );
    weights.put((0, 0), Mat::strided(scores, rows.len(), width, stride));
}

impl OnlineSoftmax {
    #[inline(always)]
    fn follow(&mut self, top: f32, sum: f32) {
        self.kept = exp_fused(self.top - top);
        self.sum = self.sum * self.kept + sum;
        self.top = top;
    }
}

/// A row's statistics from the forward pass, for the gradient of its scores.
#[derive(Clone, Copy, Debug)]
pub struct RowStats {
    /// The logarithm of the sum of its exponentials.
    pub lse: f32,
    /// The sum over its weights times their gradients.
    pub delta: f32,
    /// Scores of this tile that count, the first ones.
    pub seen: usize,
}

/// Where the weights of a tile and the gradients of its scores go, as the products after it read
/// them.
pub struct SoftmaxBackward {
    /// Weights, `[rows, columns]`.
    pub weights: PackedRhs,
    /// Gradients of the scores, `[rows, columns]`.
    pub gradients: PackedRhs,
    /// The same.
    pub lines: PackedLhs,
}

impl SoftmaxBackward {
    /// Makes of `scores` the weights `p = e^(score - lse)` and of the weights' gradients those of
    /// the scores, `p (gradient - delta)`, and puts them to `row` and `column`, a panel's first.
    /// `width` of every [`PANEL`] numbers are a row; what is in them is lost.
    pub fn put(
        &mut self,
        (row, column): (usize, usize),
        width: usize,
        rows: &[RowStats],
        scores: &mut [f32],
        gradients: &mut [f32],
    ) {
        assert!(width <= PANEL && rows.len() * PANEL <= scores.len().min(gradients.len()));
        #[cfg(target_arch = "x86_64")]
        if width == PANEL && matches!(self.lines.isa, Isa::Avx512Bf16 | Isa::AmxBf16) {
            let weights = self.weights.place((row, column), rows.len(), width);
            let right = self.gradients.place((row, column), rows.len(), width);
            let (lines, line) = self.lines.place((row, column), rows.len(), width);
            // SAFETY: the set has the instructions; the tiles hold these rows, and `place` checked
            // that the others do.
            unsafe { x86::differentiate(rows, scores, gradients, [weights, right], lines, line) };
            return;
        }
        simd(
            #[inline(always)]
            || {
                let tiles = scores.chunks_exact_mut(PANEL).zip(gradients.chunks_exact_mut(PANEL));
                for ((p, ds), known) in tiles.zip(rows) {
                    for (p, ds) in p.iter_mut().zip(&mut *ds) {
                        *p = exp_fused(*p - known.lse);
                        *ds = *p * (*ds - known.delta);
                    }
                    p[known.seen.min(PANEL)..].fill(0.0);
                    ds[known.seen.min(PANEL)..].fill(0.0);
                }
            },
        );
        let [scores, gradients] = [scores, gradients].map(|tile| Mat::strided(tile, rows.len(), width, PANEL));
        self.weights.put((row, column), scores);
        self.gradients.put((row, column), gradients);
        self.lines.put((row, column), gradients);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{OnlineSoftmax, PANEL, RowStats};
    use crate::gemm::tile::LANES;

    /// [`crate::simd::exp_fused`], to the bit.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    #[inline]
    fn exp(x: __m512) -> __m512 {
        let all = _mm512_set1_ps;
        let round = all(12_582_912.0);
        // In this order a NaN stays one.
        let clamped = _mm512_min_ps(all(88.3), _mm512_max_ps(all(-87.336_54), x));
        let shifted = _mm512_fmadd_ps(clamped, all(std::f32::consts::LOG2_E), round);
        let n = _mm512_sub_ps(shifted, round);
        let r = _mm512_fmadd_ps(n, all(-0.693_359_4), clamped);
        let r = _mm512_fmadd_ps(n, all(2.121_944_4e-4), r);
        let mut p = all(1.987_569_1e-4);
        for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = _mm512_fmadd_ps(p, r, all(c));
        }
        let y = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), all(1.0));
        let scale = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
        let scale = _mm512_castsi512_ps(_mm512_add_epi32(scale, _mm512_set1_epi32(127 << 23)));
        let small = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, all(-87.336_54));
        _mm512_maskz_mul_ps(!small, y, scale)
    }

    /// 32 numbers rounded, `low` first.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    #[inline]
    fn round(low: __m512, high: __m512) -> __m512i {
        // SAFETY: both types are 512 bits without a niche.
        unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
    }

    /// The first `n` of 16 lanes.
    #[inline(always)]
    fn lanes(n: usize) -> u16 {
        ((1u32 << n.min(LANES)) - 1) as u16
    }

    /// One row of [`super::exp_block`].
    ///
    /// # Safety
    /// `out` must be as long as `scores`, or one longer where that is odd; `seen` no more.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub unsafe fn exp_block(scores: &[f32], seen: usize, row: &mut OnlineSoftmax, out: &mut [u16]) {
        let (x, to, width) = (scores.as_ptr(), out.as_mut_ptr(), out.len());
        // Plain loops: a closure that a function of the library calls is not compiled into it, and
        // vectors go through memory.
        let mut tops = [_mm512_set1_ps(row.top); 2];
        for at in (0..seen).step_by(2 * LANES) {
            for (half, tops) in tops.iter_mut().enumerate() {
                let at = at + half * LANES;
                let counts = lanes(seen.saturating_sub(at));
                // SAFETY: the mask keeps to the scores that are seen.
                let scores = unsafe { _mm512_maskz_loadu_ps(counts, x.wrapping_add(at)) };
                *tops = _mm512_mask_max_ps(*tops, counts, scores, *tops);
            }
        }
        let top = _mm512_reduce_max_ps(_mm512_max_ps(tops[0], tops[1]));
        let tops = _mm512_set1_ps(top);
        let mut sum = _mm512_setzero_ps();
        for at in (0..width).step_by(2 * LANES) {
            let mut made = [_mm512_setzero_ps(); 2];
            for (half, made) in made.iter_mut().enumerate() {
                let at = at + half * LANES;
                let counts = lanes(seen.saturating_sub(at));
                // SAFETY: as above.
                let scores = unsafe { _mm512_maskz_loadu_ps(counts, x.wrapping_add(at)) };
                *made = _mm512_maskz_mov_ps(counts, exp(_mm512_sub_ps(scores, tops)));
                sum = _mm512_add_ps(sum, *made);
            }
            let [low, high] = made;
            let rest = width - at;
            let there = if rest >= 2 * LANES { u32::MAX } else { (1u32 << rest) - 1 };
            // SAFETY: the mask keeps to the numbers of `out`.
            unsafe { _mm512_mask_storeu_epi16(to.wrapping_add(at).cast(), there, round(low, high)) };
        }
        let mut all = [0f32; LANES];
        // SAFETY: sixteen numbers.
        unsafe { _mm512_storeu_ps(all.as_mut_ptr(), sum) };
        row.follow(top, crate::simd::fold(all));
    }

    /// [`super::SoftmaxBackward::put`] of whole rows.
    ///
    /// # Safety
    /// `scores` and `gradients` must hold as many rows of [`PANEL`] numbers as there are `rows`;
    /// `rights` must point to the units of that many rows of a panel, `lines` to that many rows of
    /// units, `line` apart.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub unsafe fn differentiate(
        rows: &[RowStats],
        scores: &[f32],
        gradients: &[f32],
        rights: [*mut u32; 2],
        lines: *mut u32,
        line: usize,
    ) {
        let side_by_side = _mm512_set_epi16(
            31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17,
            1, 16, 0,
        );
        for (pair, rows) in rows.chunks(2).enumerate() {
            for column in (0..PANEL).step_by(LANES) {
                let [mut p, mut ds] = [[_mm512_setzero_ps(); 2]; 2];
                for (i, known) in rows.iter().enumerate() {
                    let at = (2 * pair + i) * PANEL + column;
                    let counts = lanes(known.seen.saturating_sub(column));
                    // SAFETY: the caller's promise.
                    let (score, gradient) = unsafe {
                        (_mm512_loadu_ps(scores.as_ptr().add(at)), _mm512_loadu_ps(gradients.as_ptr().add(at)))
                    };
                    let e = exp(_mm512_sub_ps(score, _mm512_set1_ps(known.lse)));
                    let d = _mm512_mul_ps(e, _mm512_sub_ps(gradient, _mm512_set1_ps(known.delta)));
                    p[i] = _mm512_maskz_mov_ps(counts, e);
                    ds[i] = _mm512_maskz_mov_ps(counts, d);
                }
                let (p, ds) = (round(p[0], p[1]), round(ds[0], ds[1]));
                for (to, x) in rights.into_iter().zip([p, ds]) {
                    // SAFETY: the caller's promise.
                    unsafe {
                        let to = to.add(pair * PANEL + column);
                        _mm512_storeu_si512(to.cast(), _mm512_permutexvar_epi16(side_by_side, x));
                    }
                }
                // SAFETY: the caller's promise; the second row is written only if it is there.
                unsafe {
                    let to = lines.add(2 * pair * line + column / 2);
                    _mm256_storeu_si256(to.cast(), _mm512_castsi512_si256(ds));
                    if rows.len() == 2 {
                        _mm256_storeu_si256(to.add(line).cast(), _mm512_extracti64x4_epi64::<1>(ds));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::noise;

    /// The sets whose results are compared: that of this CPU, and plain loops.
    const SETS: [fn() -> Isa; 2] = [Isa::of_this_cpu, || Isa::Portable];

    #[test]
    fn blocks_of_scores_become_the_weights_of_a_whole_row_in_the_same_bits_on_any_instructions() {
        const N: usize = 150;
        let scores: Vec<f32> = noise(3 * N, 1).iter().map(|x| x * 20.0).collect();
        let made = SETS.map(|isa| {
            let mut rows = [OnlineSoftmax::default(); 3];
            let mut kept = Vec::new();
            for block in [0..100, 100..N] {
                let mut x: Vec<f32> = scores.chunks(N).flat_map(|row| row[block.clone()].to_vec()).collect();
                let mut weights = PackedLhs::by(isa(), Precision::Bf16, 3, 100);
                let seen = |row: usize| [N, 120, 101][row] - block.start;
                exp_block(&mut x, (block.len(), block.len()), &mut rows, seen, &mut weights);
                let bits: &[u16] = bytemuck::cast_slice(&weights.buffer);
                kept.push(bits.chunks(weights.cols).map(|row| row[..block.len()].to_vec()).collect::<Vec<_>>());
            }
            (rows.map(|row| [row.top, row.sum, row.kept].map(f32::to_bits)), kept)
        });
        assert_eq!(made[0], made[1]);
        let (rows, kept) = &made[0];
        for (i, [top, sum, shrunk]) in rows.map(|row| row.map(f32::from_bits)).into_iter().enumerate() {
            let seen = [N, 120, 101][i];
            let row: Vec<f64> = scores[i * N..][..seen].iter().map(|x| f64::from(*x)).collect();
            let most = row.iter().copied().fold(f64::MIN, f64::max);
            let all: f64 = row.iter().map(|x| (x - most).exp()).sum();
            assert!(f64::from(top) == most && (f64::from(sum) - all).abs() < 1e-5 * all);
            for j in 0..N {
                let (block, at) = if j < 100 { (0, j) } else { (1, j - 100) };
                let weight = f64::from(half::bf16::from_bits(kept[block][i][at]).to_f32());
                let weight = weight * if block == 0 { f64::from(shrunk) } else { 1.0 };
                let want = row.get(j).map_or(0.0, |x| (x - most).exp());
                assert!((weight - want).abs() <= want / 250.0, "{i} {j}: {weight} {want}");
            }
        }
    }

    #[test]
    fn one_pass_over_a_tile_gives_the_bits_of_several() {
        for height in [64, 13, 1] {
            let (scores, gradients) = (noise(64 * PANEL, 1), noise(64 * PANEL, 2));
            let rows: Vec<RowStats> = (0..height)
                .map(|i| RowStats { lse: 0.1 * i as f32, delta: 0.3 - 0.01 * i as f32, seen: [64, 5 * i, 0][i % 3] })
                .collect();
            let made = SETS.map(|isa| {
                let [weights, gradients_of] = [0; 2].map(|_| PackedRhs::with_room(isa(), Precision::Bf16, 80, 128));
                let lines = PackedLhs::by(isa(), Precision::Bf16, 80, 128);
                let mut made = SoftmaxBackward { weights, gradients: gradients_of, lines };
                for buffer in [&mut made.weights.buffer, &mut made.gradients.buffer, &mut made.lines.buffer] {
                    buffer.fill(0.0);
                }
                made.put((16, 64), PANEL, &rows, &mut scores.clone(), &mut gradients.clone());
                [(&made.weights.buffer, made.weights.start), (&made.gradients.buffer, made.gradients.start)]
                    .map(|(buffer, start)| {
                        buffer[start..].iter().take(40 * 128).map(|x| x.to_bits()).collect::<Vec<_>>()
                    })
                    .into_iter()
                    .chain([made.lines.buffer.iter().map(|x| x.to_bits()).collect()])
                    .collect::<Vec<_>>()
            });
            assert_eq!(made[0], made[1], "{height} rows");
            assert!(made[0].iter().all(|x| x.iter().any(|x| *x != 0)));
        }
    }
}
