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
            for first in (0..rows).step_by(4) {
                let rows = (rows - first).min(4);
                for v in 0..t.vectors {
                    let mut sums = [[0f32; LANES]; 4];
                    let units = (0..t.units).map(|u| (t.a, t.a_stride, t.b, u));
                    for (a, a_stride, b, u) in units.chain((0..tail.units).map(|u| (tail.a, tail.a_stride, tail.b, u)))
                    {
                        // SAFETY: the caller's promise covers `units` units of `b` and of each row
                        // of `a`.
                        let b = unsafe { &*b.add((u * t.vectors + v) * LANES).cast::<[u32; LANES]>() };
                        for (r, sums) in sums.iter_mut().enumerate() {
                            let row = first + r.min(rows - 1);
                            // SAFETY: as above.
                            let a = unsafe { *a.add(row * a_stride + u) };
                            match precision {
                                Precision::F32 => {
                                    for l in 0..LANES {
                                        sums[l] = f32::from_bits(a).mul_add(f32::from_bits(b[l]), sums[l]);
                                    }
                                }
                                Precision::Bf16 => {
                                    for l in 0..LANES {
                                        sums[l] = low(a).mul_add(low(b[l]), high(a).mul_add(high(b[l]), sums[l]));
                                    }
                                }
                            }
                        }
                    }
                    let columns = t.columns.saturating_sub(v * LANES).min(LANES);
                    for (r, sums) in sums.iter().enumerate().take(rows) {
                        for (l, sum) in sums.iter().enumerate().take(columns) {
                            // SAFETY: the caller's promise covers `rows` rows of `columns` elements
                            // of `c`.
                            let c = unsafe { &mut *t.c.add((first + r) * t.c_stride + v * LANES + l) };
                            *c = if t.add { t.alpha.mul_add(*sum, *c) } else { t.alpha * *sum };
                        }
                    }
                }
            }
        },
    );
}
