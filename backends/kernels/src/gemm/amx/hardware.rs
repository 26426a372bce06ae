//! AMX tiles of this CPU: the instructions.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

use super::emulated::Emulated;
use super::{
    BLOCK, Columns, LANES, Prefetcher, Rows, SIDE, Shape, Tail, Tile, Tiles, Whose, Wide, blocks, run_emulated_wide,
};

/// Computes `rows` rows of a tile of the output, the sums of `tail` in the same chains, and asks
/// for what lies `ahead` meanwhile; see [`super::super::microkernel::run_with`].
///
/// # Safety
/// As there; the CPU must have AMX for bf16 and AVX-512, and the system have granted the tiles.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub unsafe fn run(rows: usize, tile: Tile, tail: Tail, ahead: &mut Prefetcher) {
    // SAFETY: the caller's promise.
    unsafe { blocks::<_, Wide>(&mut Hardware, rows, &tile, &tail, ahead) }
}

/// Tiles 0 to 3 are sums, 4 and 5 rows, 6 and 7 columns.
///
/// Sums stay in tiles from one piece of assembly to the next: the compiler has no use for tiles of
/// its own, and nothing that stands between these pieces calls a function that might have one.
pub(super) struct Hardware;

/// The operand of `ldtilecfg`.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

/// Assembly with one list of instructions for each number of tiles: a tile that is not configured
/// must not be named.
macro_rules! by_shape {
    ($shape:expr, $run:ident,
        [$($both:literal)*] [$($left:literal)*] [$($upper:literal)*] [$($corner:literal)*] $operands:tt) => {
        match ($shape.rows > SIDE, $shape.vectors > 1) {
            (true, true) => $run!([$($both)*] $operands),
            (true, false) => $run!([$($left)*] $operands),
            (false, true) => $run!([$($upper)*] $operands),
            (false, false) => $run!([$($corner)*] $operands),
        }
    };
}

/// Assembly that changes tiles.
macro_rules! tiles {
    ([$($line:literal)*] [$($operands:tt)*]) => {
        // SAFETY: the caller vouches for AMX, for its configuration and for what is read and
        // written. Tiles are nobody else's.
        unsafe {
            asm!(
                $($line,)*
                $($operands)*
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack)
            )
        }
    };
}

impl Tiles for Hardware {
    const WHOSE: Whose = Whose::Hardware;

    #[inline(always)]
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

    #[inline(always)]
    unsafe fn release() {
        // SAFETY: the caller vouches for AMX.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }

    #[inline(always)]
    unsafe fn clear(&mut self, shape: Shape) {
        by_shape!(shape, tiles,
            ["tilezero tmm0" "tilezero tmm1" "tilezero tmm2" "tilezero tmm3"]
            ["tilezero tmm0" "tilezero tmm2"]
            ["tilezero tmm0" "tilezero tmm1"]
            ["tilezero tmm0"]
            [])
    }

    #[inline(always)]
    unsafe fn add(&mut self, shape: Shape, steps: usize, a: Rows, b: Columns) {
        let lower = a.first.wrapping_add(SIDE * a.stride);
        let (a_bytes, b_bytes) = (4 * a.stride, 4 * b.stride);
        macro_rules! steps {
            ([$($line:literal)*] [$($operands:tt)*]) => {
                tiles!(["2:" $($line)* "add {a}, 64" "add {lower}, 64" "add {b}, {step}" "dec {n}" "jnz 2b"]
                    [$($operands)*])
            };
        }
        by_shape!(shape, steps,
            ["tileloadd tmm4, [{a} + {a_bytes}*1]" "tileloadd tmm6, [{b} + {b_bytes}*1]"
             "tileloadd tmm7, [{b} + {b_bytes}*1 + 64]" "tdpbf16ps tmm0, tmm4, tmm6"
             "tdpbf16ps tmm1, tmm4, tmm7" "tileloadd tmm5, [{lower} + {a_bytes}*1]"
             "tdpbf16ps tmm2, tmm5, tmm6" "tdpbf16ps tmm3, tmm5, tmm7"]
            ["tileloadd tmm4, [{a} + {a_bytes}*1]" "tileloadd tmm6, [{b} + {b_bytes}*1]"
             "tdpbf16ps tmm0, tmm4, tmm6" "tileloadd tmm5, [{lower} + {a_bytes}*1]"
             "tdpbf16ps tmm2, tmm5, tmm6"]
            ["tileloadd tmm4, [{a} + {a_bytes}*1]" "tileloadd tmm6, [{b} + {b_bytes}*1]"
             "tileloadd tmm7, [{b} + {b_bytes}*1 + 64]" "tdpbf16ps tmm0, tmm4, tmm6"
             "tdpbf16ps tmm1, tmm4, tmm7"]
            ["tileloadd tmm4, [{a} + {a_bytes}*1]" "tileloadd tmm6, [{b} + {b_bytes}*1]"
             "tdpbf16ps tmm0, tmm4, tmm6"]
            [a = inout(reg) a.first => _, lower = inout(reg) lower => _, b = inout(reg) b.first => _,
             n = inout(reg) steps => _, step = in(reg) SIDE * b_bytes,
             a_bytes = in(reg) a_bytes, b_bytes = in(reg) b_bytes,])
    }

    #[inline(always)]
    unsafe fn store(&mut self, shape: Shape, to: *mut f32, stride: usize) {
        let lower = to.wrapping_add(SIDE * stride);
        by_shape!(shape, tiles,
            ["tilestored [{c} + {bytes}*1], tmm0" "tilestored [{c} + {bytes}*1 + 64], tmm1"
             "tilestored [{lower} + {bytes}*1], tmm2" "tilestored [{lower} + {bytes}*1 + 64], tmm3"]
            ["tilestored [{c} + {bytes}*1], tmm0" "tilestored [{lower} + {bytes}*1], tmm2"]
            ["tilestored [{c} + {bytes}*1], tmm0" "tilestored [{c} + {bytes}*1 + 64], tmm1" "/* {lower} */"]
            ["tilestored [{c} + {bytes}*1], tmm0" "/* {lower} */"]
            [c = in(reg) to, lower = in(reg) lower, bytes = in(reg) 4 * stride,])
    }
}

/// Multiplies `n` blocks of two by two tiles in registers, to see what the tiles could do; the
/// floating-point operations of all.
///
/// # Safety
/// The CPU must have AMX for bf16, and the system have granted the tiles.
pub unsafe fn steps(n: usize) -> f64 {
    let shape = Shape { rows: BLOCK, vectors: 2 };
    // SAFETY: the caller's promise.
    unsafe {
        Hardware::configure(BLOCK);
        Hardware.clear(shape);
    }
    tiles!(["tilezero tmm4" "tilezero tmm5" "tilezero tmm6" "tilezero tmm7" "2:" "tdpbf16ps tmm0, tmm4, tmm6"
        "tdpbf16ps tmm1, tmm4, tmm7" "tdpbf16ps tmm2, tmm5, tmm6" "tdpbf16ps tmm3, tmm5, tmm7" "dec {n}" "jnz 2b"]
        [n = inout(reg) n.max(1) => _,]);
    // SAFETY: as above.
    unsafe { Hardware::release() };
    // Each of the four has 16 by 16 sums of 32 products.
    2.0 * (n * 4 * SIDE * SIDE * 2 * SIDE) as f64
}

/// Whether this CPU has AMX for bf16 and the system lets this process use it; asks the system for
/// it.
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

/// Whether this CPU's products of every shape of block are those of the emulation, to the bit:
/// whole and partial tiles, a tail, stored and added to. [`ready`] must have said yes.
///
/// # Safety
/// The CPU must have AMX and AVX-512, and the system have granted the tiles.
pub unsafe fn agrees() -> bool {
    /// Two tiles of units and a part of one, and the same of a tail.
    const UNITS: usize = 2 * SIDE + 5;
    const TAIL: usize = SIDE + 3;
    const WIDTH: usize = 2 * LANES;
    let mut state = 1u32;
    let mut draw = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // A sign, an exponent from 2^-16 to 2^15 and the mantissa of a bf16.
        ((state >> 9) & 0x8000) as u16 | ((111 + (state >> 11 & 31)) << 7) as u16 | (state >> 24 & 0x7f) as u16
    };
    let mut units = |n: usize| -> Vec<u32> { (0..n).map(|_| u32::from(draw()) | u32::from(draw()) << 16).collect() };
    let (a, b) = (units(BLOCK * UNITS), units(UNITS * WIDTH));
    let (a_tail, b_tail) = (units(BLOCK * TAIL), units(TAIL * WIDTH));
    let tail = Tail { units: TAIL, a: a_tail.as_ptr(), a_stride: TAIL, b: b_tail.as_ptr() };
    [1, 7, SIDE, 21, BLOCK].into_iter().all(|rows| {
        [(1, LANES), (1, 9), (2, WIDTH), (2, 23)].into_iter().all(|(vectors, columns)| {
            [(1.0, false), (0.75, false), (0.75, true)].into_iter().all(|(alpha, add)| {
                let mut both = [vec![0.5f32; BLOCK * WIDTH], vec![0.5f32; BLOCK * WIDTH]];
                let [real, wanted] = both.each_mut().map(|c| Tile {
                    units: UNITS,
                    a: a.as_ptr(),
                    a_stride: UNITS,
                    b: b.as_ptr(),
                    vectors,
                    columns,
                    c: c.as_mut_ptr(),
                    c_stride: WIDTH,
                    alpha,
                    add,
                });
                // SAFETY: the caller vouches for the instructions; the operands have the sizes that
                // are named.
                unsafe {
                    run(rows, real, tail, &mut Prefetcher::nothing());
                    run_emulated_wide(&mut Emulated::new(), rows, wanted, tail, &mut Prefetcher::nothing());
                }
                let bits = |c: &[f32]| c.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                bits(&both[0]) == bits(&both[1])
            })
        })
    })
}
