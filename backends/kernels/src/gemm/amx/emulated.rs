//! AMX tiles emulated in Rust.
//!
//! `tdpbf16ps` (Intel SDM, "TDPBF16PS"): the even and the odd halves of the units of a tile make
//! two chains of fused sums from zero, which are added to each other and then to the output;
//! subnormal numbers count as zero, before and after. The sums are therefore not those of
//! `vdpbf16ps` to the last bit.

use std::cell::Cell;

use super::{BLOCK, Columns, Rows, SIDE, Shape, Sums, Tiles, Whose};

/// A number as the tiles take and leave it: a subnormal one as zero of its sign.
#[inline(always)]
fn flushed(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}

/// One product of tiles: `c[m][n] += sum over k of a[m][2k] b[k][2n] + a[m][2k+1] b[k][2n+1]`, as
/// the instruction rounds.
#[inline(always)]
pub(super) fn tdpbf16ps(c: &mut [f32; SIDE], a: &[u32; SIDE], b: &[[u32; SIDE]; SIDE]) {
    let halves = |u: u32| [f32::from_bits(u << 16), f32::from_bits(u & 0xffff_0000)].map(flushed);
    let mut chains = [[0f32; SIDE]; 2];
    for k in 0..SIDE {
        let a = halves(a[k]);
        for n in 0..SIDE {
            let b = halves(b[k][n]);
            for half in 0..2 {
                chains[half][n] = flushed(a[half].mul_add(b[half], chains[half][n]));
            }
        }
    }
    for n in 0..SIDE {
        c[n] = flushed(flushed(c[n]) + flushed(chains[0][n] + chains[1][n]));
    }
}

thread_local! {
    /// Rows that the tiles of this thread are configured for.
    static CONFIGURED: Cell<usize> = const { Cell::new(0) };
    /// How often they were.
    #[cfg(test)]
    pub(super) static CONFIGURATIONS: Cell<usize> = const { Cell::new(0) };
    /// Operands whose rows straddled cache lines.
    #[cfg(test)]
    pub(super) static STRADDLING: Cell<usize> = const { Cell::new(0) };
}

/// The tiles as `tdpbf16ps` has them.
pub(super) struct Emulated(Sums);

impl Emulated {
    pub(super) fn new() -> Self {
        Emulated(Sums([[f32::NAN; BLOCK]; BLOCK]))
    }

    /// A tile that is not configured for these rows is not there.
    fn check(shape: Shape) {
        let (rows, configured) = (shape.rows, CONFIGURED.get());
        let fits = rows.min(SIDE) == configured.min(SIDE) && (rows <= SIDE || rows == configured);
        assert!(fits && (1..=2).contains(&shape.vectors), "{rows} rows in tiles for {configured}");
    }
}

impl Tiles for Emulated {
    const WHOSE: Whose = Whose::Emulated;

    unsafe fn configure(rows: usize) {
        #[cfg(test)]
        CONFIGURATIONS.set(CONFIGURATIONS.get() + 1);
        CONFIGURED.set(rows);
    }
    unsafe fn release() {
        CONFIGURED.set(0);
    }
    unsafe fn clear(&mut self, shape: Shape) {
        Self::check(shape);
        self.0 = Sums([[0.0; BLOCK]; BLOCK]);
    }
    #[inline(always)]
    unsafe fn add(&mut self, shape: Shape, steps: usize, a: Rows, b: Columns) {
        Self::check(shape);
        #[cfg(test)]
        for (first, stride) in [(a.first, a.stride), (b.first, b.stride)] {
            let straddles = first.align_offset(64) != 0 || !stride.is_multiple_of(SIDE);
            STRADDLING.set(STRADDLING.get() + usize::from(straddles));
        }
        for step in 0..steps {
            for vector in 0..shape.vectors {
                let mut of_b = [[0u32; SIDE]; SIDE];
                for (k, row) in of_b.iter_mut().enumerate() {
                    // SAFETY: the caller's promise covers the units and columns of `b`.
                    *row = unsafe {
                        b.first.add((step * SIDE + k) * b.stride + vector * SIDE).cast::<[u32; SIDE]>().read()
                    };
                }
                for m in 0..shape.rows {
                    // SAFETY: the caller's promise covers the units of every row of `a`.
                    let of_a = unsafe { a.first.add(m * a.stride + step * SIDE).cast::<[u32; SIDE]>().read() };
                    let sums = self.0.0[m].as_chunks_mut().0;
                    tdpbf16ps(&mut sums[vector], &of_a, &of_b);
                }
            }
        }
    }
    unsafe fn store(&mut self, shape: Shape, to: *mut f32, stride: usize) {
        Self::check(shape);
        for (m, row) in self.0.0.iter().enumerate().take(shape.rows) {
            for (n, sum) in row.iter().enumerate().take(shape.vectors * SIDE) {
                // SAFETY: the caller's promise covers whole vectors of each row.
                unsafe { *to.add(m * stride + n) = *sum };
            }
        }
    }
}
