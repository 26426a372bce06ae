//! Microkernels: one tile of an output from packed operands.
//!
//! A *unit* is what one lane holds of the inner dimension: one f32, or two bf16 side by side, the
//! lower half first in the inner dimension. The packed right operand is `[units][columns]`, columns
//! a multiple of 16; the left operand is row-major in units. An output element sums one chain over
//! the units in their order:
//!
//! - f32: `s = a b + s`, fused;
//! - bf16: `s = a1 b1 + s; s = a0 b0 + s`, both fused in f32, the *second* of a pair first. That is
//!   what `vdpbf16ps` does (Intel SDM, "VDPBF16PS"; checked on AMD Zen 5 below), but for subnormal
//!   numbers, which the instruction takes as zero. So a CPU without it gives the same bits, in the
//!   time of f32.
//!
//! The tiles of AMX ([`super::amx`]) sum in another order, and so to other last bits.
#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop, reason = "constant bounds, so that registers are used instead of memory")]

use super::isa::Isa;
use super::prefetch::Prefetcher;
use super::tile::{LANES, Precision, Tail, Tile, Unpacked};

#[cfg(target_arch = "x86_64")]
mod x86;

/// Computes `rows` rows of a bf16 tile whose right operand is `b` in place of the tile's own; a
/// pair of its rows is put side by side for every group of rows, so that few should be asked for.
/// The bits are those of [`run`].
///
/// # Safety
/// As [`run`], with `b.along` rows of `columns` elements; the CPU must have AVX512-BF16.
pub unsafe fn run_unpacked(rows: usize, tile: Tile, b: Unpacked) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's promise.
    unsafe {
        x86::run_unpacked(rows, tile, b);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (rows, tile, b);
}

/// [`run_with`] nothing more.
///
/// # Safety
/// As there.
pub unsafe fn run(isa: Isa, precision: Precision, rows: usize, tile: Tile) {
    // SAFETY: the caller's promise.
    unsafe { run_with(isa, precision, rows, tile, Tail::NONE, &mut Prefetcher::nothing()) }
}

/// Computes `rows` rows of a tile, the sums of `tail` in the same chains. Meanwhile AVX-512 and
/// tiles ask for as much of what lies `ahead` as they can: a few cache lines at a time between many
/// multiplications, for a processor that waits for many already forgets what else it is asked for.
///
/// # Safety
/// All that `tile` describes must lie inside its buffers: `rows` rows of `units` units from `a`,
/// `units * vectors * LANES` units from `b`, `rows` rows of `columns` elements from `c`, which
/// nothing else reads or writes meanwhile; so must what `tail` describes. The CPU must have the
/// instructions of `isa`.
pub unsafe fn run_with(isa: Isa, precision: Precision, rows: usize, tile: Tile, tail: Tail, ahead: &mut Prefetcher) {
    // SAFETY: the caller vouches for the tile and for the set.
    unsafe {
        match (isa, precision) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16, Precision::Bf16) => x86::run_bf16(rows, tile, tail, ahead),
            #[cfg(target_arch = "x86_64")]
            (Isa::AmxBf16 | Isa::Avx512Bf16 | Isa::Avx512, Precision::F32) => x86::run_f32(rows, tile, tail, ahead),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            (Isa::AmxBf16, Precision::Bf16) => super::amx::run(rows, tile, tail, ahead),
            #[cfg(test)]
            (Isa::Emulated, Precision::Bf16) => super::amx::run_emulated(rows, tile, tail, ahead),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, Precision::Bf16) => x86::run_pairs(rows, tile, tail, ahead),
            _ => {
                let _ = ahead;
                portable(precision, rows, tile, tail);
            }
        }
    }
}

/// Plain loops over fixed lanes.
///
/// # Safety
/// As [`run`].
unsafe fn portable(precision: Precision, rows: usize, t: Tile, tail: Tail) {
    let high = |u: u32| f32::from_bits(u & 0xffff_0000);
    let low = |u: u32| f32::from_bits(u << 16);
    crate::simd::simd(
        #[inline(always)]
        || {
            // SAFETY: the caller's promise.
            unsafe {
                match precision {
                    Precision::F32 => {
                        lanes(rows, t, tail, |a, b, sum| f32::from_bits(a).mul_add(f32::from_bits(b), sum));
                    }
                    Precision::Bf16 => {
                        lanes(rows, t, tail, |a, b, sum| low(a).mul_add(low(b), high(a).mul_add(high(b), sum)));
                    }
                }
            }
        },
    );
}

/// Rows whose sums are kept in registers: two vectors of AVX2 each, beside two of the right operand.
const ROWS: usize = 4;

/// All rows, `step` being one unit of one row times one column.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn lanes(rows: usize, t: Tile, tail: Tail, step: impl Fn(u32, u32, f32) -> f32 + Copy) {
    for first in (0..rows).step_by(ROWS) {
        let rows = (rows - first).min(ROWS);
        for v in 0..t.vectors {
            // SAFETY: the caller's promise covers all units of `b`, of each row of `a`, and `rows` rows
            // of `columns` elements of `c`. Rows that are not there are the last one once more.
            unsafe {
                let stride = t.vectors * LANES;
                let row = |a: *const u32, a_stride: usize| {
                    std::array::from_fn(|r| a.wrapping_add((first + r.min(rows - 1)) * a_stride))
                };
                let right = |b: *const u32| b.wrapping_add(v * LANES);
                let mut sums = chain(t.units, row(t.a, t.a_stride), right(t.b), stride, [[0.0; LANES]; ROWS], step);
                if tail.units > 0 {
                    sums = chain(tail.units, row(tail.a, tail.a_stride), right(tail.b), stride, sums, step);
                }
                let columns = t.columns.saturating_sub(v * LANES).min(LANES);
                for (r, sums) in sums.iter().enumerate().take(rows) {
                    for (l, sum) in sums.iter().enumerate().take(columns) {
                        let c = &mut *t.c.add((first + r) * t.c_stride + v * LANES + l);
                        *c = if t.add { t.alpha.mul_add(*sum, *c) } else { t.alpha * *sum };
                    }
                }
            }
        }
    }
}

/// Goes on with the sums over `units` units. They are taken and given by value, and nothing is decided
/// within: else the compiler keeps them in memory and works on one lane at a time.
///
/// # Safety
/// There must be `units` units from each of `a`, and of [`LANES`] columns from `b`, `stride` apart.
#[inline(always)]
unsafe fn chain(
    units: usize,
    a: [*const u32; ROWS],
    b: *const u32,
    stride: usize,
    mut sums: [[f32; LANES]; ROWS],
    step: impl Fn(u32, u32, f32) -> f32,
) -> [[f32; LANES]; ROWS] {
    for u in 0..units {
        // SAFETY: the caller's promise.
        let b = unsafe { *b.add(u * stride).cast::<[u32; LANES]>() };
        for r in 0..ROWS {
            // SAFETY: as above.
            let a = unsafe { *a[r].add(u) };
            for l in 0..LANES {
                sums[r][l] = step(a, b[l], sums[r][l]);
            }
        }
    }
    sums
}
