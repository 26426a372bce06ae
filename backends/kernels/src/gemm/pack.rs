//! Packing: operands as the microkernels read them, rounded, in units, the right one in panels of
//! columns.
//!
//! Packing is done block by block just before use, so that no second copy of a weight ever exists.
#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop, reason = "constant bounds, so that registers are used instead of memory")]

pub mod tiled;
pub mod whole;
#[cfg(target_arch = "x86_64")]
mod x86;

use half::{bf16, f16};

use super::isa::Isa;
use super::matrix::Mat;
use super::tile::{LANES, Precision};
use crate::memory::mmap::Elements;

/// A part of an operand: `along` elements of the inner dimension from `start`, `across` rows or
/// columns of the output from `first`.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// First element of the inner dimension.
    pub start: usize,
    /// Elements of the inner dimension.
    pub along: usize,
    /// First row of the left operand, or column of the right.
    pub first: usize,
    /// Rows of the left operand, or columns of the right.
    pub across: usize,
}

/// An operand with the inner dimension named: element `(i, k)` lies at
/// `i * across_stride + k * along_stride`, `i` counting rows of the left operand or columns of the
/// right.
#[derive(Clone, Copy)]
struct Lines<'a, T> {
    data: &'a [T],
    across_stride: usize,
    along_stride: usize,
}

/// How the result is laid out: unit `u` of line `i` goes to `i * line + u * unit`.
#[derive(Clone, Copy)]
struct PackedLayout {
    line: usize,
    unit: usize,
    /// Lines beyond the last up to this number are filled with zeros.
    padded: usize,
}

/// Packs columns of `b` into `[units][vectors * LANES]`; columns beyond the part are zero.
pub fn right(isa: Isa, precision: Precision, b: &Mat<'_>, part: Part, vectors: usize, out: &mut [u32]) {
    let layout = PackedLayout { line: 1, unit: vectors * LANES, padded: vectors * LANES };
    assert!(out.len() >= part.along.div_ceil(precision.per_unit()) * layout.unit && part.across <= layout.padded);
    assert!(part.start + part.along <= b.rows && part.first + part.across <= b.cols);
    dispatch(isa, precision, b.data, (b.col_stride, b.row_stride), part, layout, out);
}

/// Packs rows of `a` into `[rows][stride]` units.
pub fn left(isa: Isa, precision: Precision, a: &Mat<'_>, part: Part, stride: usize, out: &mut [u32]) {
    let units = part.along.div_ceil(precision.per_unit());
    assert!(part.across == 0 || out.len() >= (part.across - 1) * stride + units);
    assert!(part.start + part.along <= a.cols && part.first + part.across <= a.rows);
    let layout = PackedLayout { line: stride, unit: 1, padded: part.across };
    dispatch(isa, precision, a.data, (a.row_stride, a.col_stride), part, layout, out);
}

fn dispatch(
    isa: Isa,
    precision: Precision,
    data: Elements<'_>,
    (across_stride, along_stride): (usize, usize),
    part: Part,
    layout: PackedLayout,
    out: &mut [u32],
) {
    match data {
        Elements::F32(data) => pack(isa, precision, Lines { data, across_stride, along_stride }, part, layout, out),
        Elements::Bf16(data) => pack(isa, precision, Lines { data, across_stride, along_stride }, part, layout, out),
        Elements::F16(data) => pack(isa, precision, Lines { data, across_stride, along_stride }, part, layout, out),
    }
}

#[cfg(target_arch = "x86_64")]
fn with_vectors(isa: Isa) -> bool {
    #[cfg(test)]
    if isa == Isa::Emulated {
        return false;
    }
    isa != Isa::Portable
}

fn pack<T: Number>(
    isa: Isa,
    precision: Precision,
    lines: Lines<'_, T>,
    part: Part,
    layout: PackedLayout,
    out: &mut [u32],
) {
    #[cfg(target_arch = "x86_64")]
    if with_vectors(isa) && (lines.across_stride == 1 || lines.along_stride == 1) {
        // SAFETY: `isa` was found on this CPU, and the constructors of `Mat` and the callers
        // checked all bounds.
        unsafe {
            match isa {
                Isa::Avx512Bf16 | Isa::AmxBf16 => x86::pack_bf16(precision, lines, part, layout, out),
                _ => x86::pack(precision, lines, part, layout, out),
            }
        }
        return;
    }
    portable(precision, lines, part, layout, out);
}

/// The bf16 nearest to `x`, ties to even, as the CPU's own conversion has it: subnormal numbers
/// become zero, a NaN stays one.
pub fn round(x: f32) -> u16 {
    if x.is_subnormal() { ((x.to_bits() >> 16) & 0x8000) as u16 } else { bf16::from_f32(x).to_bits() }
}

/// [`round`]s every number of `x` into `out`, of the same length.
pub fn narrow(isa: Isa, x: &[f32], out: &mut [bf16]) {
    #[cfg(target_arch = "x86_64")]
    if with_vectors(isa) {
        // SAFETY: `isa` was found on this CPU.
        unsafe {
            match isa {
                Isa::Avx512Bf16 | Isa::AmxBf16 => x86::narrow_bf16(x, out),
                _ => x86::narrow(x, out),
            }
        }
        return;
    }
    out.iter_mut().zip(x).for_each(|(out, x)| *out = bf16::from_bits(round(*x)));
}

fn portable<T: Number>(precision: Precision, lines: Lines<'_, T>, part: Part, layout: PackedLayout, out: &mut [u32]) {
    let at = |i: usize, k: usize| {
        if i >= part.across || k >= part.along {
            return 0.0;
        }
        lines.data[(part.first + i) * lines.across_stride + (part.start + k) * lines.along_stride].widen()
    };
    for u in 0..part.along.div_ceil(precision.per_unit()) {
        for i in 0..layout.padded {
            out[i * layout.line + u * layout.unit] = match precision {
                Precision::F32 => at(i, u).to_bits(),
                Precision::Bf16 => u32::from(round(at(i, 2 * u))) | u32::from(round(at(i, 2 * u + 1))) << 16,
            };
        }
    }
}

/// A number as it is stored.
trait Number: Copy {
    fn widen(self) -> f32;
    /// The 16 numbers from `p` that `mask` names as f32, zero elsewhere.
    ///
    /// # Safety
    /// They must be readable; the CPU must have AVX-512 with BW and VL.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load(p: *const Self, mask: u16) -> std::arch::x86_64::__m512;
    /// The numbers are bf16 already, and pairs of them need no rounding.
    const ROUNDED: bool = false;
}

impl Number for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load(p: *const Self, mask: u16) -> std::arch::x86_64::__m512 {
        // SAFETY: the caller's promise.
        unsafe { std::arch::x86_64::_mm512_maskz_loadu_ps(mask, p) }
    }
}

impl Number for bf16 {
    const ROUNDED: bool = true;
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load(p: *const Self, mask: u16) -> std::arch::x86_64::__m512 {
        use std::arch::x86_64::*;
        // SAFETY: the caller's promise.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }
}

impl Number for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load(p: *const Self, mask: u16) -> std::arch::x86_64::__m512 {
        use std::arch::x86_64::*;
        // SAFETY: the caller's promise.
        unsafe { _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p.cast())) }
    }
}
