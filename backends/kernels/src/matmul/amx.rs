//! bf16 products on the tiles of Intel's AMX: sixteen rows of sixteen units at an instruction.
//!
//! The packing is that of the other kernels: a left operand by rows of units, a right one in panels of `[unit][column]`,
//! which is the form that `tdpbf16ps` wants. Rustc 1.95 knows its mnemonics but not yet its intrinsics or its features,
//! hence assembly and CPUID by hand.
//!
//! `tdpbf16ps` says in Rust what the instruction does (Intel SDM, "TDPBF16PS"): the even and the odd halves of the
//! units of a tile make two chains of fused sums from zero, which are added to each other and then to the output;
//! subnormal numbers count as zero, before and after. The sums are therefore not those of `vdpbf16ps` to the last bit.
//! Tests run the blocking below with it on any CPU, and a CPU that has the tiles is compared with it before they are
//! used.
//!
//! No CPU with tiles was at hand when this was written. Bochs 3.1, which models a Sapphire Rapids in software of its own,
//! agrees with `tdpbf16ps` to the bit and passes the tests of this crate on tiles under Linux (once it saves tiles rightly
//! when threads change, which it did not).
#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop, reason = "the formula's indices")]

use super::kernel::{LANES, Tile};

/// Rows of a tile, and its units or columns.
const SIDE: usize = 16;
/// Rows and columns that are summed at once: two tiles by two.
const BLOCK: usize = 2 * SIDE;

/// Sums of a block, row by row.
#[derive(Clone)]
#[repr(C, align(64))]
struct Sums([[f32; BLOCK]; BLOCK]);

/// Whole tiles of units of a left operand.
#[derive(Clone, Copy)]
struct Rows {
    first: *const u32,
    /// Units from one row to the next.
    stride: usize,
}

/// Whole tiles of units of a panel.
#[derive(Clone, Copy)]
struct Columns {
    first: *const u32,
    /// Units of columns from one unit of the inner dimension to the next.
    stride: usize,
}

/// Where tiles are multiplied.
pub trait Tiles {
    /// Prepares for blocks of `rows` rows, 1 to `BLOCK`.
    ///
    /// # Safety
    /// The CPU must have what this type uses.
    unsafe fn configure(rows: usize);
    /// Adds the products of `blocks` tiles of units to `sums`, for the rows prepared for and `vectors` (1 or 2) vectors
    /// of columns.
    ///
    /// # Safety
    /// The operands must be readable: `16 * blocks` units of every row, and of `vectors` vectors of columns. The CPU must
    /// have what this type uses, and [`Tiles::configure`] come before.
    #[allow(private_interfaces, reason = "implemented in this file alone")]
    unsafe fn add(rows: usize, vectors: usize, blocks: usize, a: Rows, b: Columns, sums: &mut Sums);
    /// After the last block.
    ///
    /// # Safety
    /// The CPU must have what this type uses.
    unsafe fn release();
}

/// Computes `rows` rows of a tile of the output; see [`super::kernel::run`].
///
/// # Safety
/// As [`super::kernel::run`]; the CPU must have what `T` uses.
pub unsafe fn run<T: Tiles>(rows: usize, t: Tile) {
    let (whole, rest) = (t.units / SIDE, t.units % SIDE);
    // The last units, with zeros beyond them: what lies there in memory belongs to somebody else.
    let mut b_rest = [[0u32; super::kernel::PANEL]; SIDE];
    let width = t.vectors * LANES;
    for u in 0..rest {
        for column in 0..width {
            // SAFETY: the caller's promise covers `units` units of `width` columns.
            b_rest[u][column] = unsafe { *t.b.add((whole * SIDE + u) * width + column) };
        }
    }
    let mut prepared = 0;
    for first in (0..rows).step_by(BLOCK) {
        let rows = (rows - first).min(BLOCK);
        let a = t.a.wrapping_add(first * t.a_stride);
        let mut a_rest = [[0u32; SIDE]; BLOCK];
        for r in 0..rows {
            for u in 0..rest {
                // SAFETY: the caller's promise covers `units` units of each row.
                a_rest[r][u] = unsafe { *a.add(r * t.a_stride + whole * SIDE + u) };
            }
        }
        if rows != prepared {
            // SAFETY: the caller vouches for `T`.
            unsafe { T::configure(rows) };
            prepared = rows;
        }
        for vector in (0..t.vectors).step_by(2) {
            let vectors = (t.vectors - vector).min(2);
            let mut sums = Sums([[0.0; BLOCK]; BLOCK]);
            let rows_of = |first, stride| Rows { first, stride };
            // SAFETY: the caller's promise about `t`; the rests are whole tiles of their own.
            unsafe {
                if whole > 0 {
                    let b = Columns { first: t.b.add(vector * LANES), stride: width };
                    T::add(rows, vectors, whole, rows_of(a, t.a_stride), b, &mut sums);
                }
                if rest > 0 {
                    let b = Columns { first: b_rest[0][vector * LANES..].as_ptr(), stride: super::kernel::PANEL };
                    T::add(rows, vectors, 1, rows_of(a_rest.as_ptr().cast(), SIDE), b, &mut sums);
                }
            }
            let columns = t.columns.saturating_sub(vector * LANES).min(vectors * LANES);
            for r in 0..rows {
                // SAFETY: the caller's promise covers `rows` rows of `columns` elements of `c`.
                let c = unsafe {
                    std::slice::from_raw_parts_mut(t.c.add((first + r) * t.c_stride + vector * LANES), columns)
                };
                for (c, sum) in c.iter_mut().zip(&sums.0[r]) {
                    *c = if t.add { t.alpha.mul_add(*sum, *c) } else { t.alpha * sum };
                }
            }
        }
    }
    // SAFETY: the caller vouches for `T`.
    unsafe { T::release() };
}

/// A number as the tiles take and leave it: a subnormal one as zero of its sign.
fn flushed(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}

/// One product of tiles: `c[m][n] += sum over k of a[m][2k] b[k][2n] + a[m][2k+1] b[k][2n+1]`, as the instruction rounds.
fn tdpbf16ps(c: &mut [f32], a: &[u32; SIDE], b: &[[u32; SIDE]; SIDE]) {
    let halves = |u: u32| [f32::from_bits(u << 16), f32::from_bits(u & 0xffff_0000)].map(flushed);
    for (n, c) in c.iter_mut().enumerate() {
        let mut chains = [0f32; 2];
        for k in 0..SIDE {
            let (a, b) = (halves(a[k]), halves(b[k][n]));
            for half in 0..2 {
                chains[half] = flushed(a[half].mul_add(b[half], chains[half]));
            }
        }
        *c = flushed(flushed(*c) + flushed(chains[0] + chains[1]));
    }
}

/// The tiles as `tdpbf16ps` has them.
pub struct Emulated;

impl Tiles for Emulated {
    unsafe fn configure(_: usize) {}
    #[allow(private_interfaces, reason = "implemented in this file alone")]
    unsafe fn add(rows: usize, vectors: usize, blocks: usize, a: Rows, b: Columns, sums: &mut Sums) {
        for block in 0..blocks {
            for vector in 0..vectors {
                let mut of_b = [[0u32; SIDE]; SIDE];
                for (k, row) in of_b.iter_mut().enumerate() {
                    // SAFETY: the caller's promise covers the units and columns of `b`.
                    *row = unsafe {
                        b.first.add((block * SIDE + k) * b.stride + vector * SIDE).cast::<[u32; SIDE]>().read()
                    };
                }
                for m in 0..rows {
                    // SAFETY: the caller's promise covers the units of every row of `a`.
                    let of_a = unsafe { a.first.add(m * a.stride + block * SIDE).cast::<[u32; SIDE]>().read() };
                    tdpbf16ps(&mut sums.0[m][vector * SIDE..][..SIDE], &of_a, &of_b);
                }
            }
        }
    }
    unsafe fn release() {}
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub use hardware::{Hardware, ready};

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod hardware {
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

    use super::{BLOCK, Columns, Emulated, Rows, SIDE, Sums, Tiles};

    /// The tiles of this CPU: 0 to 3 are sums, 4 and 5 rows, 6 and 7 columns.
    pub struct Hardware;

    /// What `ldtilecfg` reads.
    #[repr(C, align(64))]
    struct Configuration {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        bytes: [u16; 16],
        rows: [u8; 16],
    }

    impl Tiles for Hardware {
        unsafe fn configure(rows: usize) {
            let (upper, lower) = (rows.min(SIDE) as u8, rows.saturating_sub(SIDE) as u8);
            let side = SIDE as u8;
            let mut configuration =
                Configuration { palette: 1, start_row: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
            for (tile, rows) in [upper, upper, lower, lower, upper, lower, side, side].into_iter().enumerate() {
                configuration.rows[tile] = rows;
                configuration.bytes[tile] = if rows > 0 { 4 * SIDE as u16 } else { 0 };
            }
            // SAFETY: the caller vouches for AMX; the configuration is valid and read only.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &configuration, options(nostack, readonly, preserves_flags)) };
        }

        #[allow(private_interfaces, reason = "implemented in this file alone")]
        unsafe fn add(rows: usize, vectors: usize, blocks: usize, a: Rows, b: Columns, sums: &mut Sums) {
            let lower = a.first.wrapping_add(SIDE * a.stride);
            let (a_bytes, b_bytes, c_bytes) = (4 * a.stride, 4 * b.stride, 4 * BLOCK);
            // One loop for each number of tiles: a tile that is not configured must not be named.
            macro_rules! tiles {
                ($load:tt, $multiply:tt, $store:tt) => {
                    // SAFETY: the caller vouches for AMX, for its configuration and for the operands; `sums` is written
                    // inside its bounds. Tiles are nobody else's.
                    unsafe {
                        tiles!(@asm $load $multiply $store)
                    }
                };
                (@asm [$($load:literal)*] [$($multiply:literal)*] [$($store:literal)*]) => {
                    asm!(
                        $($load,)*
                        "2:",
                        $($multiply,)*
                        "add {a}, 64",
                        "add {lower}, 64",
                        "add {b}, {step}",
                        "dec {n}",
                        "jnz 2b",
                        $($store,)*
                        a = inout(reg) a.first => _, lower = inout(reg) lower => _, b = inout(reg) b.first => _,
                        n = inout(reg) blocks => _, step = in(reg) SIDE * b_bytes,
                        a_bytes = in(reg) a_bytes, b_bytes = in(reg) b_bytes,
                        c = in(reg) sums.0.as_mut_ptr(), c_bytes = in(reg) c_bytes,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                        options(nostack)
                    )
                };
            }
            // The right half of the sums is 64 bytes on, the lower half 16 rows of 128 bytes.
            match (rows > SIDE, vectors > 1) {
                (true, true) => tiles!(
                    ["tileloadd tmm0, [{c} + {c_bytes}*1]" "tileloadd tmm1, [{c} + {c_bytes}*1 + 64]"
                     "tileloadd tmm2, [{c} + {c_bytes}*1 + 2048]" "tileloadd tmm3, [{c} + {c_bytes}*1 + 2112]"],
                    ["tileloadd tmm4, [{a} + {a_bytes}*1]" "tileloadd tmm6, [{b} + {b_bytes}*1]"
                     "tileloadd tmm7, [{b} + {b_bytes}*1 + 64]" "tdpbf16ps tmm0, tmm4, tmm6"
                     "tdpbf16ps tmm1, tmm4, tmm7" "tileloadd tmm5, [{lower} + {a_bytes}*1]"
                     "tdpbf16ps tmm2, tmm5, tmm6" "tdpbf16ps tmm3, tmm5, tmm7"],
                    ["tilestored [{c} + {c_bytes}*1], tmm0" "tilestored [{c} + {c_bytes}*1 + 64], tmm1"
                     "tilestored [{c} + {c_bytes}*1 + 2048], tmm2" "tilestored [{c} + {c_bytes}*1 + 2112], tmm3"]
                ),
                (true, false) => tiles!(
                    ["tileloadd tmm0, [{c} + {c_bytes}*1]" "tileloadd tmm2, [{c} + {c_bytes}*1 + 2048]"],
                    ["tileloadd tmm4, [{a} + {a_bytes}*1]" "tileloadd tmm6, [{b} + {b_bytes}*1]"
                     "tdpbf16ps tmm0, tmm4, tmm6" "tileloadd tmm5, [{lower} + {a_bytes}*1]"
                     "tdpbf16ps tmm2, tmm5, tmm6"],
                    ["tilestored [{c} + {c_bytes}*1], tmm0" "tilestored [{c} + {c_bytes}*1 + 2048], tmm2"]
                ),
                (false, true) => tiles!(
                    ["tileloadd tmm0, [{c} + {c_bytes}*1]" "tileloadd tmm1, [{c} + {c_bytes}*1 + 64]"],
                    ["tileloadd tmm4, [{a} + {a_bytes}*1]" "tileloadd tmm6, [{b} + {b_bytes}*1]"
                     "tileloadd tmm7, [{b} + {b_bytes}*1 + 64]" "tdpbf16ps tmm0, tmm4, tmm6"
                     "tdpbf16ps tmm1, tmm4, tmm7"],
                    ["tilestored [{c} + {c_bytes}*1], tmm0" "tilestored [{c} + {c_bytes}*1 + 64], tmm1"]
                ),
                (false, false) => tiles!(
                    ["tileloadd tmm0, [{c} + {c_bytes}*1]"],
                    ["tileloadd tmm4, [{a} + {a_bytes}*1]" "tileloadd tmm6, [{b} + {b_bytes}*1]"
                     "tdpbf16ps tmm0, tmm4, tmm6"],
                    ["tilestored [{c} + {c_bytes}*1], tmm0"]
                ),
            }
        }

        unsafe fn release() {
            // SAFETY: the caller vouches for AMX.
            unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
        }
    }

    /// Whether this CPU has AMX for bf16 and the system lets this process use it; asks the system for it.
    pub fn ready() -> bool {
        #[target_feature(enable = "xsave")]
        fn system_saves_tiles() -> bool {
            // SAFETY: XGETBV of register 0 is there wherever OSXSAVE is set, which the caller checked.
            let saved = unsafe { _xgetbv(0) };
            // Tile configuration and tile data.
            saved & 0x6_0000 == 0x6_0000
        }
        let osxsave = __cpuid(1).ecx & (1 << 27) != 0;
        if !osxsave || __cpuid(0).eax < 7 || !is_x86_feature_detected!("xsave") {
            return false;
        }
        // AMX-BF16 and AMX-TILE.
        let wanted = 1 << 22 | 1 << 24;
        // SAFETY: the feature was detected just now.
        if __cpuid_count(7, 0).edx & wanted != wanted || !unsafe { system_saves_tiles() } {
            return false;
        }
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const TILE_DATA: libc::c_long = 18;
        // SAFETY: a system call without pointers; it grants the state to all threads of this process.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 }
    }

    impl Hardware {
        /// Whether this CPU's products of every shape of block are those of the emulation, to the bit. [`ready`] must have
        /// said yes.
        ///
        /// # Safety
        /// The CPU must have AMX and the system have granted it.
        pub unsafe fn agrees() -> bool {
            const BLOCKS: usize = 3;
            let mut state = 1u32;
            let mut draw = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // A sign, an exponent from 2^-16 to 2^15 and the mantissa of a bf16.
                ((state >> 9) & 0x8000) as u16 | ((111 + (state >> 11 & 31)) << 7) as u16 | (state >> 24 & 0x7f) as u16
            };
            let mut units =
                |n: usize| -> Vec<u32> { (0..n).map(|_| u32::from(draw()) | u32::from(draw()) << 16).collect() };
            let (a, b) = (units(BLOCK * BLOCKS * SIDE), units(BLOCKS * SIDE * BLOCK));
            [1, 7, SIDE, 21, BLOCK].into_iter().all(|rows| {
                [1, 2].into_iter().all(|vectors| {
                    let of_a = Rows { first: a.as_ptr(), stride: BLOCKS * SIDE };
                    let of_b = Columns { first: b.as_ptr(), stride: BLOCK };
                    let mut both = [Sums([[0.5; BLOCK]; BLOCK]), Sums([[0.5; BLOCK]; BLOCK])];
                    let [real, wanted] = &mut both;
                    // SAFETY: the caller vouches for AMX; the operands have the sizes that are named.
                    unsafe {
                        Hardware::configure(rows);
                        Hardware::add(rows, vectors, BLOCKS, of_a, of_b, real);
                        Hardware::release();
                        Emulated::add(rows, vectors, BLOCKS, of_a, of_b, wanted);
                    }
                    let bits = |s: &Sums| s.0.as_flattened().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    bits(real) == bits(wanted)
                })
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::super::kernel::{Precision, Set};
    use super::super::{Mat, MatMut, Product, Term, Threads, products_by};
    use super::*;
    use crate::testing::noise;

    fn emulated(m: usize, n: usize, k: usize, a: Mat<'_>, b: Mat<'_>) -> Vec<f32> {
        let mut c = vec![0.5f32; m * n];
        let terms = vec![Term { alpha: 1.5, a, b }];
        let product = Product { c: MatMut::new(&mut c, m, n), add: true, terms };
        assert!(k > 0);
        products_by(Set::Emulated, Precision::Bf16, vec![product], Threads::One);
        c
    }

    #[test]
    fn the_blocking_over_tiles_gives_the_product_of_every_shape() {
        for (m, n, k) in [(1, 1, 1), (5, 8, 64), (33, 40, 70), (16, 16, 32), (130, 70, 2), (100, 130, 1100)] {
            let (a, b) = (noise(m * k, 1), noise(k * n, 2));
            let rounded = |x: f32| f64::from(bf16::from_f32(x).to_f32());
            let c = emulated(m, n, k, Mat::new(&a, m, k), Mat::new(&b, k, n));
            for i in 0..m {
                for j in 0..n {
                    let terms = (0..k).map(|l| rounded(a[i * k + l]) * rounded(b[l * n + j]));
                    let (sum, size) = terms.fold((0.0, 0.0), |(s, z), x| (s + x, z + x.abs()));
                    let error = (f64::from(c[i * n + j]) - 0.5 - 1.5 * sum).abs();
                    assert!(error < 1e-5 * (1.0 + size), "{m}x{n}x{k}: {error}");
                }
            }
        }
    }

    #[test]
    fn a_row_or_column_does_not_depend_on_the_others() {
        let (m, n, k) = (70, 100, 200);
        let (a, b) = (noise(m * k, 1), noise(n * k, 2));
        let whole = emulated(m, n, k, Mat::new(&a, m, k), Mat::new(&b, n, k).t());
        for rows in [1, 15, 16, 17, 33] {
            let part = emulated(rows, n, k, Mat::new(&a[k..], rows, k), Mat::new(&b, n, k).t());
            assert_eq!(whole[n..(1 + rows) * n], part, "{rows} rows");
        }
        for columns in [1, 17, 64, 65] {
            let part = emulated(m, columns, k, Mat::new(&a, m, k), Mat::new(&b, columns, k).t());
            let of_whole: Vec<f32> = whole.chunks(n).flat_map(|row| row[..columns].to_vec()).collect();
            assert_eq!(of_whole, part, "{columns} columns");
        }
    }

    #[test]
    fn the_chains_of_both_halves_are_summed_apart_and_subnormal_numbers_are_zero() {
        let unit = |low: f32, high: f32| {
            u32::from(bf16::from_f32(low).to_bits()) | u32::from(bf16::from_f32(high).to_bits()) << 16
        };
        let (mut a, mut b, mut c) = ([0u32; SIDE], [[0u32; SIDE]; SIDE], [0.25f32, 1e-40]);
        // In one chain the ones would be lost beside 2^25 before it is taken away again.
        a[0] = unit(33_554_432.0, 1.0);
        a[1] = unit(-33_554_432.0, 1.0);
        (b[0][0], b[1][0]) = (unit(1.0, 1.0), unit(1.0, 1.0));
        tdpbf16ps(&mut c, &a, &b);
        assert_eq!(c, [2.25, 0.0]);
        // A product too small for a normal number, and an operand that is none.
        (a[0], a[1]) = (unit(2e-38, 1e-39), 0);
        b[0][0] = unit(0.25, 1.0);
        let mut c = [0.0f32];
        tdpbf16ps(&mut c, &a, &b);
        assert_eq!(c, [0.0]);
    }

    #[test]
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    fn the_tiles_of_this_cpu_are_those_of_the_emulation() {
        if !ready() {
            eprintln!("skipped: this CPU has no AMX for bf16, or the system does not let this process use it");
            return;
        }
        // SAFETY: `ready` said yes.
        assert!(unsafe { Hardware::agrees() });
    }
}
