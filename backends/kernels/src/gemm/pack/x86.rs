//! Packing in AVX-512.
#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop, reason = "constant bounds, so that registers are used instead of memory")]

use std::arch::x86_64::*;

use half::bf16;

use super::{Lines, Number, PackedLayout, Part};
use crate::gemm::prefetch::prefetch;
use crate::gemm::tile::{LANES, Precision};

/// Rounds 16 numbers to bf16, each in the low half of its lane.
trait Round {
    /// # Safety
    /// The CPU must have the instructions.
    unsafe fn round(x: __m512) -> __m512i;
    /// 32 numbers at once, `low` first.
    ///
    /// # Safety
    /// As above.
    unsafe fn round_two(low: __m512, high: __m512) -> __m512i;
}

struct Native;
impl Round for Native {
    #[inline(always)]
    unsafe fn round(x: __m512) -> __m512i {
        // SAFETY: the caller vouches for AVX512-BF16; both types are 256 bits without a niche.
        unsafe { _mm512_cvtepu16_epi32(std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x))) }
    }
    #[inline(always)]
    unsafe fn round_two(low: __m512, high: __m512) -> __m512i {
        // SAFETY: as above, 512 bits.
        unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
    }
}

struct Emulated;
impl Round for Emulated {
    #[inline(always)]
    unsafe fn round(x: __m512) -> __m512i {
        // SAFETY: the caller vouches for AVX-512.
        unsafe {
            let bits = _mm512_castps_si512(x);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let nearest = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let nearest = _mm512_srli_epi32::<16>(nearest);
            let magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fff_ffff));
            let sign = _mm512_srli_epi32::<16>(_mm512_xor_si512(bits, magnitude));
            let subnormal = _mm512_cmplt_epu32_mask(magnitude, _mm512_set1_epi32(0x0080_0000));
            let nan = _mm512_cmpgt_epu32_mask(magnitude, _mm512_set1_epi32(0x7f80_0000));
            let quiet = _mm512_or_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(0x40));
            let rounded = _mm512_mask_blend_epi32(subnormal, nearest, sign);
            _mm512_mask_blend_epi32(nan, rounded, quiet)
        }
    }
    #[inline(always)]
    unsafe fn round_two(low: __m512, high: __m512) -> __m512i {
        // SAFETY: as above.
        unsafe {
            let (low, high) = (_mm512_cvtepi32_epi16(Self::round(low)), _mm512_cvtepi32_epi16(Self::round(high)));
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        }
    }
}

fn mask(n: usize) -> u16 {
    ((1u32 << n.min(LANES)) - 1) as u16
}

/// 32 bf16 with subnormal numbers as zeros, as rounding leaves them.
///
/// # Safety
/// The CPU must have AVX-512 with BW.
#[inline(always)]
unsafe fn flushed(x: __m512i) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        let exponent = _mm512_set1_epi16(0x7f80);
        let small = _mm512_testn_epi16_mask(x, exponent);
        let sign = _mm512_and_si512(x, _mm512_set1_epi16(i16::MIN));
        _mm512_mask_blend_epi16(small, x, sign)
    }
}

/// 16 units of one line whose elements are contiguous; `n` elements are there.
///
/// # Safety
/// `n` elements from `p` must be readable.
#[inline(always)]
unsafe fn along<T: Number, R: Round>(precision: Precision, p: *const T, n: usize) -> __m512i {
    // SAFETY: masks keep to `n` elements.
    unsafe {
        match precision {
            Precision::F32 => _mm512_castps_si512(T::load(p, mask(n))),
            Precision::Bf16 if T::ROUNDED => {
                let mask = if n >= 2 * LANES { u32::MAX } else { (1u32 << n) - 1 };
                flushed(_mm512_maskz_loadu_epi16(mask, p.cast()))
            }
            Precision::Bf16 => {
                let low = T::load(p, mask(n));
                let rest = n.saturating_sub(LANES);
                let high = T::load(p.wrapping_add(LANES), mask(rest));
                R::round_two(low, high)
            }
        }
    }
}

/// One unit of 16 lines that lie side by side: `n` of them are there, `second` is set if the second
/// half is.
///
/// # Safety
/// `n` elements from `p`, and `step` further on where `second` is set, must be readable.
#[inline(always)]
unsafe fn across<T: Number, R: Round>(
    precision: Precision,
    p: *const T,
    step: usize,
    n: usize,
    second: bool,
) -> __m512i {
    // SAFETY: masks keep to `n` elements, and to none of a second half that is not there.
    unsafe {
        match precision {
            Precision::F32 => _mm512_castps_si512(T::load(p, mask(n))),
            Precision::Bf16 if T::ROUNDED => {
                let load = |p: *const T, mask| _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p.cast()));
                let low = load(p, mask(n));
                let high = load(p.wrapping_add(step), if second { mask(n) } else { 0 });
                flushed(_mm512_or_si512(low, _mm512_slli_epi32::<16>(high)))
            }
            Precision::Bf16 => {
                let low = R::round(T::load(p, mask(n)));
                let high = R::round(T::load(p.wrapping_add(step), if second { mask(n) } else { 0 }));
                _mm512_or_si512(low, _mm512_slli_epi32::<16>(high))
            }
        }
    }
}

/// Transposes 16 x 16 units.
#[inline(always)]
unsafe fn transpose(x: &mut [__m512i; LANES]) {
    // SAFETY: the caller vouches for AVX-512; there are no memory accesses.
    unsafe {
        let mut y = *x;
        for i in 0..8 {
            y[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
            y[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
        }
        for i in 0..4 {
            x[4 * i] = _mm512_unpacklo_epi64(y[4 * i], y[4 * i + 2]);
            x[4 * i + 1] = _mm512_unpackhi_epi64(y[4 * i], y[4 * i + 2]);
            x[4 * i + 2] = _mm512_unpacklo_epi64(y[4 * i + 1], y[4 * i + 3]);
            x[4 * i + 3] = _mm512_unpackhi_epi64(y[4 * i + 1], y[4 * i + 3]);
        }
        for i in 0..4 {
            y[i] = _mm512_shuffle_i32x4::<0x88>(x[i], x[4 + i]);
            y[4 + i] = _mm512_shuffle_i32x4::<0xdd>(x[i], x[4 + i]);
            y[8 + i] = _mm512_shuffle_i32x4::<0x88>(x[8 + i], x[12 + i]);
            y[12 + i] = _mm512_shuffle_i32x4::<0xdd>(x[8 + i], x[12 + i]);
        }
        for i in 0..4 {
            x[i] = _mm512_shuffle_i32x4::<0x88>(y[i], y[8 + i]);
            x[8 + i] = _mm512_shuffle_i32x4::<0xdd>(y[i], y[8 + i]);
            x[4 + i] = _mm512_shuffle_i32x4::<0x88>(y[4 + i], y[12 + i]);
            x[12 + i] = _mm512_shuffle_i32x4::<0xdd>(y[4 + i], y[12 + i]);
        }
    }
}

/// # Safety
/// As [`super::pack`].
#[inline(always)]
unsafe fn any<T: Number, R: Round>(
    precision: Precision,
    lines: Lines<'_, T>,
    part: Part,
    layout: PackedLayout,
    out: &mut [u32],
) {
    // SAFETY: the caller's promise. The precision becomes a constant of each copy of the loops.
    unsafe {
        match precision {
            Precision::F32 => of::<T, R>(Precision::F32, lines, part, layout, out),
            Precision::Bf16 => of::<T, R>(Precision::Bf16, lines, part, layout, out),
        }
    }
}

/// # Safety
/// As [`super::pack`].
#[inline(always)]
unsafe fn of<T: Number, R: Round>(
    precision: Precision,
    lines: Lines<'_, T>,
    part: Part,
    layout: PackedLayout,
    out: &mut [u32],
) {
    let per_unit = precision.per_unit();
    let units = part.along.div_ceil(per_unit);
    let (line, unit) = (lines.across_stride, lines.along_stride);
    let origin = lines.data.as_ptr().wrapping_add(part.first * line + part.start * unit);
    let out = out.as_mut_ptr();
    // Whole vectors of lines: a right operand, and not a left one of a single unit.
    let vectors = layout.line == 1 && layout.unit == layout.padded && layout.padded.is_multiple_of(LANES);
    if precision == Precision::Bf16 && T::ROUNDED && line == 1 && vectors {
        // SAFETY: the caller's promise; numbers that need no rounding are bf16.
        return unsafe { interleave(origin.cast(), unit, part, layout, out) };
    }
    // Sides of a 16 x 16 block: lines (what is beyond the last is zero) and units.
    for i in (0..layout.padded).step_by(LANES) {
        let have = part.across.saturating_sub(i).min(LANES);
        let want = (layout.padded - i).min(LANES);
        for u in (0..units).step_by(LANES) {
            let from = origin.wrapping_add(i * line + u * per_unit * unit);
            let to = out.wrapping_add(i * layout.line + u * layout.unit);
            let there = part.along - u * per_unit;
            // The same elements of the next lines, which lie far from these.
            if unit == 1 && layout.unit != 1 {
                for l in LANES..2 * LANES {
                    prefetch(from.wrapping_add(l * line).cast());
                }
            }
            // SAFETY: lines `i..i + have` and elements up to `part.along` are inside the operand;
            // `i + want` lines and the units up to `units` are inside the output.
            unsafe {
                // Most blocks are whole: for them all bounds are constants.
                if have == LANES && want == LANES && there >= LANES * per_unit {
                    block::<T, R>(precision, (line, unit), from, to, layout, (LANES, LANES, LANES * per_unit));
                } else {
                    block::<T, R>(precision, (line, unit), from, to, layout, (have, want, there));
                }
            }
        }
    }
}

/// Columns of bf16 that lie side by side, two rows of them to a row of units.
///
/// # Safety
/// `part.along` rows of `part.across` elements, `step` apart, must be readable from `from`; the
/// packed form must be inside the buffer at `out`.
#[inline(always)]
unsafe fn interleave(from: *const u16, step: usize, part: Part, layout: PackedLayout, out: *mut u32) {
    const WIDE: usize = 2 * LANES;
    // SAFETY: masks keep to what is there, and to the lines that are written.
    unsafe {
        let low = _mm512_set_epi16(
            47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33,
            1, 32, 0,
        );
        let high = _mm512_add_epi16(low, _mm512_set1_epi16(LANES as i16));
        for u in 0..part.along.div_ceil(2) {
            let first = from.wrapping_add(2 * u * step);
            let second = if 2 * u + 1 < part.along { u32::MAX } else { 0 };
            let to = out.wrapping_add(u * layout.unit);
            for i in (0..layout.padded).step_by(WIDE) {
                let rest = part.across.saturating_sub(i);
                let there = if rest >= WIDE { u32::MAX } else { (1u32 << rest) - 1 };
                let load = |p: *const u16, mask| flushed(_mm512_maskz_loadu_epi16(mask, p.wrapping_add(i).cast()));
                let (a, b) = (load(first, there), load(first.wrapping_add(step), there & second));
                _mm512_storeu_si512(to.wrapping_add(i).cast(), _mm512_permutex2var_epi16(a, low, b));
                if i + LANES < layout.padded {
                    let units = _mm512_permutex2var_epi16(a, high, b);
                    _mm512_storeu_si512(to.wrapping_add(i + LANES).cast(), units);
                }
            }
        }
    }
}

/// One block of at most 16 lines, of which `have` are there and `want` are written, and at most 16
/// units, of which `there` elements are.
///
/// # Safety
/// The elements must be readable from `from`, and the output lie inside the buffer at `to`.
#[inline(always)]
unsafe fn block<T: Number, R: Round>(
    precision: Precision,
    (line, unit): (usize, usize),
    from: *const T,
    to: *mut u32,
    layout: PackedLayout,
    (have, want, there): (usize, usize, usize),
) {
    let per_unit = precision.per_unit();
    let n = there.div_ceil(per_unit).min(LANES);
    // SAFETY: the caller's promise; masks keep to it.
    unsafe {
        let mut block = [_mm512_setzero_si512(); LANES];
        // Whether `block` holds lines of units, or units of lines.
        let by_lines = unit == 1;
        if by_lines {
            for l in 0..LANES {
                if l < have {
                    block[l] = along::<T, R>(precision, from.wrapping_add(l * line), there);
                }
            }
        } else {
            for l in 0..LANES {
                if l < n {
                    let second = l * per_unit + 1 < there;
                    block[l] = across::<T, R>(precision, from.wrapping_add(l * per_unit * unit), unit, have, second);
                }
            }
        }
        let units_side_by_side = layout.unit == 1;
        if by_lines != units_side_by_side {
            transpose(&mut block);
        }
        let (step, count, width) = if units_side_by_side { (layout.line, want, n) } else { (layout.unit, n, want) };
        for l in 0..LANES {
            if l < count {
                _mm512_mask_storeu_epi32(to.wrapping_add(l * step).cast(), mask(width), block[l]);
            }
        }
    }
}

/// # Safety
/// The CPU must have what `R` uses.
#[inline(always)]
unsafe fn narrow_by<R: Round>(x: &[f32], out: &mut [bf16]) {
    const WIDE: usize = 2 * LANES;
    let n = x.len().min(out.len());
    let (x, out) = (x.as_ptr(), out.as_mut_ptr());
    for i in (0..n).step_by(WIDE) {
        let rest = n - i;
        // SAFETY: masks keep to `n` elements of both; the caller vouches for the instructions.
        unsafe {
            let low = _mm512_maskz_loadu_ps(mask(rest), x.add(i));
            let high = _mm512_maskz_loadu_ps(mask(rest.saturating_sub(LANES)), x.wrapping_add(i + LANES));
            let there = if rest >= WIDE { u32::MAX } else { (1u32 << rest) - 1 };
            _mm512_mask_storeu_epi16(out.add(i).cast(), there, R::round_two(low, high));
        }
    }
}

/// # Safety
/// The CPU must have the features.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub unsafe fn narrow_bf16(x: &[f32], out: &mut [bf16]) {
    // SAFETY: the caller's promise.
    unsafe { narrow_by::<Native>(x, out) }
}

/// # Safety
/// The CPU must have the features.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub unsafe fn narrow(x: &[f32], out: &mut [bf16]) {
    // SAFETY: the caller's promise.
    unsafe { narrow_by::<Emulated>(x, out) }
}

/// # Safety
/// The part must lie inside `lines` and its packed form inside `out`; the CPU must have the
/// features.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub unsafe fn pack_bf16<T: Number>(
    precision: Precision,
    lines: Lines<'_, T>,
    part: Part,
    layout: PackedLayout,
    out: &mut [u32],
) {
    // SAFETY: the caller's promise.
    unsafe { any::<T, Native>(precision, lines, part, layout, out) }
}

/// # Safety
/// As [`pack_bf16`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub unsafe fn pack<T: Number>(
    precision: Precision,
    lines: Lines<'_, T>,
    part: Part,
    layout: PackedLayout,
    out: &mut [u32],
) {
    // SAFETY: the caller's promise.
    unsafe { any::<T, Emulated>(precision, lines, part, layout, out) }
}
