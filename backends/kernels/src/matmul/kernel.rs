//! The innermost loops: one tile of an output from packed operands.
//!
//! A *unit* is what one lane holds of the inner dimension: one f32, or two bf16 side by side, the lower half first in
//! the inner dimension. The packed right operand is `[units][columns]`, columns a multiple of 16; the left operand is
//! row-major in units. An output element sums one chain over the units in their order:
//!
//! - f32: `s = a b + s`, fused;
//! - bf16: `s = a1 b1 + s; s = a0 b0 + s`, both fused in f32, the *second* of a pair first. That is what
//!   `vdpbf16ps` does (Intel SDM, "VDPBF16PS"; checked on AMD Zen 5 below), but for subnormal numbers, which the
//!   instruction takes as zero. So a CPU without it gives the same bits, in the time of f32.
//!
//! The tiles of AMX ([`super::amx`]) sum in another order, and so to other last bits.
#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop, reason = "constant bounds, so that registers are used instead of memory")]

use super::ahead::Ahead;

/// Columns that a panel of the packed right operand has at most.
pub const PANEL: usize = 64;
/// Lanes of a vector.
pub const LANES: usize = 16;

/// What is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Precision {
    /// f32 operands, f32 sums.
    #[default]
    F32,
    /// Operands rounded to bf16 (to nearest, ties to even), f32 sums.
    Bf16,
}

impl Precision {
    /// Elements of the inner dimension in a unit.
    pub fn per_unit(self) -> usize {
        match self {
            Precision::F32 => 1,
            Precision::Bf16 => 2,
        }
    }
}

/// The instructions that are used, each set including those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub enum Set {
    /// Whatever the compiler makes of plain loops for this CPU.
    Portable,
    /// AVX-512 for f32 and for packing; bf16 pairs as two fused f32 products.
    Avx512,
    /// AVX-512 with `vdpbf16ps`.
    Avx512Bf16,
    /// The above for f32 and for packing, the tiles of AMX for bf16.
    AmxBf16,
    /// The tiles as Rust has them.
    #[cfg(test)]
    Emulated,
}

/// Names a set that is to be used in place of the best one, for comparisons.
pub const VARIABLE: &str = "KARAT_MATMUL";

impl Set {
    /// Its name in reports and in [`VARIABLE`].
    pub fn name(self) -> &'static str {
        match self {
            Set::Portable => "portable",
            Set::Avx512 => "avx512",
            Set::Avx512Bf16 => "avx512_bf16",
            Set::AmxBf16 => "amx_bf16",
            #[cfg(test)]
            Set::Emulated => "emulated",
        }
    }

    /// The best of this CPU, or the one that [`VARIABLE`] names if that is among those it has.
    pub fn of_this_cpu() -> Self {
        Self::chosen().as_ref().map_or_else(|_| best().0, |set| *set)
    }

    /// [`Set::of_this_cpu`]; read once.
    ///
    /// # Errors
    /// Says what is wrong with [`VARIABLE`].
    pub fn chosen() -> &'static Result<Self, String> {
        static SET: std::sync::OnceLock<Result<Set, String>> = std::sync::OnceLock::new();
        SET.get_or_init(|| Self::named(std::env::var(VARIABLE).ok().as_deref().unwrap_or("")))
    }

    fn named(name: &str) -> Result<Self, String> {
        let all = [Set::Portable, Set::Avx512, Set::Avx512Bf16, Set::AmxBf16];
        let here = all.into_iter().filter(|set| *set <= best().0);
        if name.is_empty() {
            return Ok(best().0);
        }
        here.clone().find(|set| set.name() == name).ok_or_else(|| {
            let names: Vec<&str> = here.map(Set::name).collect();
            format!("{VARIABLE}={name} names no instructions of this CPU (it has {})", names.join(", "))
        })
    }

    /// Units from the start of one packed row of a left operand to that of the next, if it has so many: for tiles whole cache
    /// lines, since one whose rows straddle them takes two to four times as long to load.
    pub(super) fn row_stride(self, units: usize) -> usize {
        match self {
            Set::AmxBf16 => units.next_multiple_of(LANES),
            #[cfg(test)]
            Set::Emulated => units.next_multiple_of(LANES),
            _ => units,
        }
    }

    /// What there is to say about the choice of [`Set::of_this_cpu`].
    pub fn remark() -> Option<&'static str> {
        best().1
    }
}

/// The best set of this CPU, and why it is not a better one.
fn best() -> (Set, Option<&'static str>) {
    static BEST: std::sync::OnceLock<(Set, Option<&'static str>)> = std::sync::OnceLock::new();
    *BEST.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        if has_avx512() {
            if !is_x86_feature_detected!("avx512bf16") {
                return (Set::Avx512, None);
            }
            #[cfg(target_os = "linux")]
            if super::amx::ready() {
                // SAFETY: `ready` said that the CPU has the tiles and the system lets this process use them.
                return match unsafe { super::amx::agrees() } {
                    true => (Set::AmxBf16, None),
                    false => (Set::Avx512Bf16, Some("the tiles of AMX failed their self-check and are not used")),
                };
            }
            return (Set::Avx512Bf16, None);
        }
        (Set::Portable, None)
    })
}

/// Whether this CPU has the parts of AVX-512 that the kernels use.
#[cfg(target_arch = "x86_64")]
pub(super) fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
}

/// A tile's place in memory.
#[derive(Clone, Copy)]
pub struct Tile {
    /// Units of the inner dimension.
    pub units: usize,
    /// The left operand's first row.
    pub a: *const u32,
    /// Units from one of its rows to the next.
    pub a_stride: usize,
    /// The packed right operand, `[units][vectors * LANES]`.
    pub b: *const u32,
    /// Vectors of columns.
    pub vectors: usize,
    /// Columns that are written, at most `vectors * LANES`.
    pub columns: usize,
    /// The output's first element.
    pub c: *mut f32,
    /// Elements from one of its rows to the next.
    pub c_stride: usize,
    /// The sum is multiplied by this, then added.
    pub alpha: f32,
    /// The output holds something to add to.
    pub add: bool,
}

/// Units that the chains of a tile's sums end with, of operands of their own: a second term of few units costs those units
/// alone, and no second pass over the output.
#[derive(Clone, Copy)]
pub struct Tail {
    /// Units of the inner dimension.
    pub units: usize,
    /// The left operand's first row.
    pub a: *const u32,
    /// Units from one of its rows to the next.
    pub a_stride: usize,
    /// The packed right operand, `[units][vectors * LANES]`.
    pub b: *const u32,
}

impl Tail {
    /// Nothing more.
    pub const NONE: Tail = Tail { units: 0, a: std::ptr::null(), a_stride: 0, b: std::ptr::null() };
}

/// A right operand that is multiplied where it lies: rows of bf16.
#[derive(Clone, Copy)]
pub struct Unpacked {
    /// The first row's first column.
    pub first: *const u16,
    /// Elements from one row to the next.
    pub stride: usize,
    /// Rows.
    pub along: usize,
}

/// Computes `rows` rows of a bf16 tile whose right operand is `b` in place of the tile's own; a pair of its rows is put
/// side by side for every group of rows, so that few should be asked for. The bits are those of [`run`].
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

/// Asks for the cache line of an address, which need not be one of this process; nothing happens where that cannot be.
#[inline(always)]
pub fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch touches no memory that the program can see and never faults.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// [`prefetch`] of what is written soon: the line comes as this core's own.
#[inline(always)]
pub fn prefetch_to_write(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above. The intrinsic makes a read of it, unless a feature says that there is such an instruction; it does
    // nothing where there is none.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) address, options(readonly, nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// [`run_with`] nothing more.
///
/// # Safety
/// As there.
pub unsafe fn run(set: Set, precision: Precision, rows: usize, tile: Tile) {
    // SAFETY: the caller's promise.
    unsafe { run_with(set, precision, rows, tile, Tail::NONE, &mut Ahead::nothing()) }
}

/// Computes `rows` rows of a tile, the sums of `tail` in the same chains. Meanwhile AVX-512 and tiles ask for as much of
/// what lies `ahead` as they can: a few cache lines at a time between many multiplications, for a processor that waits for
/// many already forgets what else it is asked for.
///
/// # Safety
/// All that `tile` describes must lie inside its buffers: `rows` rows of `units` units from `a`, `units * vectors *
/// LANES` units from `b`, `rows` rows of `columns` elements from `c`, which nothing else reads or writes meanwhile; so
/// must what `tail` describes. The CPU must have the instructions of `set`.
pub unsafe fn run_with(set: Set, precision: Precision, rows: usize, tile: Tile, tail: Tail, ahead: &mut Ahead) {
    // SAFETY: the caller vouches for the tile and for the set.
    unsafe {
        match (set, precision) {
            #[cfg(target_arch = "x86_64")]
            (Set::Avx512Bf16, Precision::Bf16) => x86::run_bf16(rows, tile, tail, ahead),
            #[cfg(target_arch = "x86_64")]
            (Set::AmxBf16 | Set::Avx512Bf16 | Set::Avx512, Precision::F32) => x86::run_f32(rows, tile, tail, ahead),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            (Set::AmxBf16, Precision::Bf16) => super::amx::run(rows, tile, tail, ahead),
            #[cfg(test)]
            (Set::Emulated, Precision::Bf16) => super::amx::run_emulated(rows, tile, tail, ahead),
            #[cfg(target_arch = "x86_64")]
            (Set::Avx512, Precision::Bf16) => x86::run_pairs(rows, tile, tail, ahead),
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
                        // SAFETY: the caller's promise covers `units` units of `b` and of each row of `a`.
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
                            // SAFETY: the caller's promise covers `rows` rows of `columns` elements of `c`.
                            let c = unsafe { &mut *t.c.add((first + r) * t.c_stride + v * LANES + l) };
                            *c = if t.add { t.alpha.mul_add(*sum, *c) } else { t.alpha * *sum };
                        }
                    }
                }
            }
        },
    );
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Ahead, LANES, Tail, Tile, Unpacked};

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
        pub(in crate::matmul) unsafe fn store<const ROWS: usize, const VECTORS: usize>(
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
        ahead: &mut Ahead,
    ) {
        // SAFETY: the caller's promise about `t`; masks keep loads and stores of `c` to its columns.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
            // A weight gradient lies in main memory: what it is added to is fetched while the sums are made.
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
                47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2,
                33, 1, 32, 0,
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
                    super::prefetch(row.wrapping_add(AHEAD * b.stride).cast());
                    super::prefetch(row.wrapping_add((AHEAD + 1) * b.stride).cast());
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
    unsafe fn rows<S: Step, const MOST: usize, const VECTORS: usize>(
        rows: usize,
        t: &Tile,
        tail: &Tail,
        ahead: &mut Ahead,
    ) {
        let mut first = 0;
        // SAFETY: the caller's promise; every group ends at `rows`.
        unsafe {
            while rows - first >= MOST {
                tile::<S, MOST, VECTORS>(t, tail, first, ahead);
                first += MOST;
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
    unsafe fn by_vectors<S: Step>(n: usize, t: Tile, tail: Tail, ahead: &mut Ahead) {
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
    pub unsafe fn run_bf16(n: usize, t: Tile, tail: Tail, ahead: &mut Ahead) {
        // SAFETY: the caller's promise; the features are enabled here.
        unsafe { by_vectors::<Pair>(n, t, tail, ahead) }
    }

    /// # Safety
    /// As [`super::run`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub unsafe fn run_f32(n: usize, t: Tile, tail: Tail, ahead: &mut Ahead) {
        // SAFETY: the caller's promise; the features are enabled here.
        unsafe { by_vectors::<Single>(n, t, tail, ahead) }
    }

    /// # Safety
    /// As [`super::run`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub unsafe fn run_pairs(n: usize, t: Tile, tail: Tail, ahead: &mut Ahead) {
        // SAFETY: the caller's promise; the features are enabled here.
        unsafe { by_vectors::<Halves>(n, t, tail, ahead) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_chosen_by_name_if_this_cpu_has_it() {
        let best = best().0;
        assert_eq!(Set::named(""), Ok(best));
        assert_eq!(Set::named(best.name()), Ok(best));
        assert_eq!(Set::named("portable"), Ok(Set::Portable));
        let message = Set::named("avx1024").unwrap_err();
        assert!(message.contains("KARAT_MATMUL=avx1024") && message.contains(best.name()), "{message}");
    }
}
