//! bf16 GEMM on the tiles of Intel's AMX: sixteen rows of sixteen units at an instruction.
//!
//! The packing is that of the other kernels: a left operand by rows of units, a right one in panels
//! of `[unit][column]`, which is the form that `tdpbf16ps` wants. Rustc 1.95 knows its mnemonics
//! but not yet its intrinsics or its features, hence assembly and CPUID by hand (`hardware`).
//!
//! Sums of two by two tiles stay in tiles over all units of a panel and those of a tail: a short
//! second term costs a step or two of sixteen units, and no second pass. They leave for the output
//! itself where they are all that it is to hold, else for a block in the nearest cache, from where
//! AVX-512 scales and adds them.
//!
//! `emulated` says in Rust what the instruction does. Tests run the blocking below with it on any
//! CPU, the assembly itself on any with AVX-512 (`trapped`), and a CPU that has the tiles is
//! compared with it before they are used.
//!
//! Bochs 3.1, which models a Sapphire Rapids in software of its own, and an Emerald Rapids agree
//! with the emulation to the bit.
#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop, reason = "the formula's indices")]
#![cfg_attr(
    not(all(target_arch = "x86_64", target_os = "linux")),
    allow(dead_code, reason = "tests alone run tiles there")
)]

mod emulated;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod hardware;
#[cfg(test)]
mod tests;
#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
mod trapped;

use std::cell::Cell;
use std::mem::MaybeUninit;

use super::prefetch::Prefetcher;
use super::prefetch::prefetch_to_write;
use super::tile::{LANES, PANEL, Tail, Tile};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub use hardware::{agrees, ready, run, steps};

/// Rows of a tile, and its units or columns.
const SIDE: usize = 16;
/// Rows and columns that are summed at once: two tiles by two.
const BLOCK: usize = 2 * SIDE;

/// Steps of the inner dimension between two times that something is asked for.
const PART: usize = 3;

/// Cache lines of what comes later that are asked for in such a part at most: more than that hold
/// up the loads of the part.
const LINES: usize = 4 * PART;

/// Sums of a block, row by row.
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

/// How much of a block is summed.
#[derive(Clone, Copy)]
struct Shape {
    /// 1 to [`BLOCK`].
    rows: usize,
    /// Vectors of columns, 1 or 2.
    vectors: usize,
}

/// Where tiles are multiplied. A block's sums lie in them from [`Tiles::clear`] to
/// [`Tiles::store`].
trait Tiles {
    /// Whose they are.
    const WHOSE: Whose;
    /// Prepares for blocks of `rows` rows, 1 to [`BLOCK`].
    ///
    /// # Safety
    /// The CPU must have what this type uses.
    unsafe fn configure(rows: usize);
    /// After the last block.
    ///
    /// # Safety
    /// The CPU must have what this type uses.
    unsafe fn release();
    /// The sums are zero.
    ///
    /// # Safety
    /// The CPU must have what this type uses, and [`Tiles::configure`] come before, for the rows of
    /// `shape`.
    unsafe fn clear(&mut self, shape: Shape);
    /// Adds the products of `steps` tiles of units, at least one, to the sums.
    ///
    /// # Safety
    /// As [`Tiles::clear`], and the operands must be readable: `16 * steps` units of every row, and
    /// of the vectors of columns.
    unsafe fn add(&mut self, shape: Shape, steps: usize, a: Rows, b: Columns);
    /// Puts the sums to rows of whole vectors, `stride` numbers apart.
    ///
    /// # Safety
    /// As [`Tiles::clear`], and there must be room for them.
    unsafe fn store(&mut self, shape: Shape, to: *mut f32, stride: usize);
}

/// The implementations of [`Tiles`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// This CPU's.
    Hardware,
    /// Those of the emulation.
    Emulated,
}

/// The tile configuration of a thread.
#[derive(Clone, Copy)]
struct Configured {
    /// Whose tiles, and for how many rows.
    tiles: Option<(Whose, usize)>,
    /// Calls of [`task`] that have not returned.
    tasks: usize,
}

thread_local! {
    static CONFIGURED: Cell<Configured> = const { Cell::new(Configured { tiles: None, tasks: 0 }) };
}

/// Does `f`, most likely several products on this thread, between which tiles stay configured: to
/// configure them takes as long as some steps. Nothing else in it may use tiles.
pub fn task<R>(f: impl FnOnce() -> R) -> R {
    /// So that it ends after a panic too.
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            let before = CONFIGURED.get();
            CONFIGURED.set(Configured { tasks: before.tasks - 1, ..before });
            leave();
        }
    }
    let before = CONFIGURED.get();
    CONFIGURED.set(Configured { tasks: before.tasks + 1, ..before });
    let _end = End;
    f()
}

/// Releases this thread's tiles, unless it is inside of a task.
#[inline(always)]
fn leave() {
    let Configured { tiles: Some((whose, _)), tasks: 0 } = CONFIGURED.get() else { return };
    CONFIGURED.set(Configured { tiles: None, tasks: 0 });
    // SAFETY: tiles that were configured are there.
    unsafe {
        match whose {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Whose::Hardware => hardware::Hardware::release(),
            _ => emulated::Emulated::release(),
        }
    }
}

/// Configures this thread's tiles for blocks of `rows` rows, unless they are.
///
/// # Safety
/// The CPU must have what `T` uses.
#[inline(always)]
unsafe fn enter<T: Tiles>(rows: usize) {
    // Sixteen rows leave the lower tiles alone, whatever these are configured for.
    let rows = if rows == SIDE { BLOCK } else { rows };
    let (before, wanted) = (CONFIGURED.get(), Some((T::WHOSE, rows)));
    if before.tiles != wanted {
        // SAFETY: the caller vouches for `T`.
        unsafe { T::configure(rows) };
        CONFIGURED.set(Configured { tiles: wanted, ..before });
    }
}

/// Rows of a block of the output, asked for while its sums are made: a tile that is stored to where
/// it is not in a near cache waits for longer than a step takes.
struct Awaited {
    next: *const f32,
    stride: usize,
    /// Rows that are left.
    rows: usize,
    /// A row has two cache lines.
    wide: bool,
    /// Rows at a time.
    each: usize,
}

impl Awaited {
    /// The rows of `shape` from `c` on, in `parts` parts. Of few parts each would be many lines,
    /// more than a core has in flight; and what has a short inner dimension are tiles of attention,
    /// which are near.
    #[inline(always)]
    fn new(c: *const f32, stride: usize, shape: Shape, parts: usize) -> Self {
        let rows = if parts > 1 { shape.rows } else { 0 };
        Awaited { next: c, stride, rows, wide: shape.vectors > 1, each: rows.div_ceil(parts.max(1)) }
    }

    #[inline(always)]
    fn fetch(&mut self) {
        for _ in 0..self.each.min(self.rows) {
            prefetch_to_write(self.next.cast());
            if self.wide {
                prefetch_to_write(self.next.wrapping_add(LANES).cast());
            }
            self.next = self.next.wrapping_add(self.stride);
        }
        self.rows -= self.each.min(self.rows);
    }
}

/// Vector operations around the tiles: loads, stores, padding.
trait Vectors {
    /// Copies `n` units, at most 16, and zeros after them.
    ///
    /// # Safety
    /// `n` units must be readable, and there must be room for 16 at `to`. The CPU must have what
    /// this type uses.
    unsafe fn pad(from: *const u32, n: usize, to: *mut u32);
    /// Puts sums into the rows of the output from `first` and the columns from `column` on.
    ///
    /// # Safety
    /// The output must have the rows and all of the tile's columns, `sums` hold the rows and
    /// vectors of `shape`. The CPU must have what this type uses.
    unsafe fn put(sums: &MaybeUninit<Sums>, shape: Shape, t: &Tile, first: usize, column: usize);
}

/// The last units of an operand's lines, with zeros beyond them: what lies there in memory belongs
/// to somebody else. Each line begins a cache line, for a tile whose rows straddle two takes two to
/// four times as long to load.
#[repr(C, align(64))]
struct Padded<const LINES: usize, const WIDTH: usize>(MaybeUninit<[[[u32; LANES]; WIDTH]; LINES]>);

impl<const LINES: usize, const WIDTH: usize> Padded<LINES, WIDTH> {
    /// Puts `there` lines of `width` units, `stride` units apart, and zeros in the lines after them
    /// up to `lines`.
    ///
    /// # Safety
    /// They must be readable. The CPU must have what `V` uses.
    #[inline(always)]
    unsafe fn fill<V: Vectors>(
        &mut self,
        first: *const u32,
        stride: usize,
        (there, lines): (usize, usize),
        width: usize,
    ) {
        debug_assert!(there <= lines && lines <= LINES && width <= WIDTH * LANES);
        let to: *mut u32 = self.0.as_mut_ptr().cast();
        for line in 0..lines {
            for at in (0..width).step_by(LANES) {
                let n = if line < there { (width - at).min(LANES) } else { 0 };
                // SAFETY: the caller's promise; a line has room for `WIDTH` vectors.
                unsafe { V::pad(first.wrapping_add(line * stride + at), n, to.add(line * WIDTH * LANES + at)) };
            }
        }
    }

    /// The first line from a vector on.
    fn from(&self, vector: usize) -> *const u32 {
        self.0.as_ptr().cast::<u32>().wrapping_add(vector * LANES)
    }
}

/// Units of the inner dimension, and where those of a panel and of the left operand's rows lie.
#[derive(Clone, Copy)]
struct Term {
    units: usize,
    a: *const u32,
    a_stride: usize,
    b: *const u32,
    /// Units of columns.
    width: usize,
}

impl Term {
    /// Its steps of whole tiles.
    fn whole(&self) -> usize {
        self.units / SIDE
    }

    fn rest(&self) -> usize {
        self.units % SIDE
    }

    /// The first row of a block's rows.
    fn rows(&self, first: usize) -> Rows {
        Rows { first: self.a.wrapping_add(first * self.a_stride), stride: self.a_stride }
    }

    /// The columns of a block from the one named on.
    fn columns(&self, column: usize) -> Columns {
        Columns { first: self.b.wrapping_add(column), stride: self.width }
    }
}

/// Computes `rows` rows of a tile of the output, the sums of `tail` in the same chains, and asks
/// for what lies `ahead` meanwhile; see [`super::microkernel::run_with`].
///
/// # Safety
/// As there; the CPU must have what `T` and `V` use.
#[inline(always)]
unsafe fn blocks<T: Tiles, V: Vectors>(tiles: &mut T, rows: usize, t: &Tile, tail: &Tail, ahead: &mut Prefetcher) {
    let width = t.vectors * LANES;
    let terms = [
        Term { units: t.units, a: t.a, a_stride: t.a_stride, b: t.b, width },
        Term { units: tail.units, a: tail.a, a_stride: tail.a_stride, b: tail.b, width },
    ];
    let mut b_rests = [const { Padded::<SIDE, { PANEL / LANES }>(MaybeUninit::uninit()) }; 2];
    let mut a_rests = [const { Padded::<BLOCK, 1>(MaybeUninit::uninit()) }; 2];
    for (term, rest) in terms.iter().zip(&mut b_rests) {
        if term.rest() > 0 {
            let first = term.columns(0).first.wrapping_add(term.whole() * SIDE * width);
            // SAFETY: the caller's promise covers `units` units of `width` columns.
            unsafe { rest.fill::<V>(first, width, (term.rest(), SIDE), width) };
        }
    }
    // All of what lies ahead, in the same share between any two parts, as far as that is bearable.
    let parts = terms[0].whole().div_ceil(PART);
    let share = ahead.lines().div_ceil((parts * rows.div_ceil(BLOCK) * t.columns.div_ceil(BLOCK)).max(1)).min(LINES);
    let mut sums = MaybeUninit::<Sums>::uninit();
    let mut prepared = 0;
    for first in (0..rows).step_by(BLOCK) {
        let height = (rows - first).min(BLOCK);
        for (term, rest) in terms.iter().zip(&mut a_rests) {
            if term.rest() > 0 {
                let first = term.rows(first).first.wrapping_add(term.whole() * SIDE);
                // SAFETY: the caller's promise covers `units` units of each row.
                unsafe { rest.fill::<V>(first, term.a_stride, (height, height), term.rest()) };
            }
        }
        if height != prepared {
            // SAFETY: the caller vouches for `T`.
            unsafe { enter::<T>(height) };
            prepared = height;
        }
        for column in (0..t.columns).step_by(BLOCK) {
            let columns = (t.columns - column).min(BLOCK);
            let shape = Shape { rows: height, vectors: columns.div_ceil(LANES) };
            let c = t.c.wrapping_add(first * t.c_stride + column);
            let mut awaited = Awaited::new(c, t.c_stride, shape, parts);
            // SAFETY: the caller's promise about `t` and `tail`; the rests are whole tiles of their
            // own.
            unsafe {
                tiles.clear(shape);
                for ((term, a_rest), b_rest) in terms.iter().zip(&a_rests).zip(&b_rests) {
                    let (mut a, mut b) = (term.rows(first), term.columns(column));
                    for step in (0..term.whole()).step_by(PART) {
                        let steps = PART.min(term.whole() - step);
                        awaited.fetch();
                        ahead.fetch(share);
                        tiles.add(shape, steps, a, b);
                        a.first = a.first.wrapping_add(steps * SIDE);
                        b.first = b.first.wrapping_add(steps * SIDE * width);
                    }
                    if term.rest() > 0 {
                        let b = Columns { first: b_rest.from(column / LANES), stride: PANEL };
                        tiles.add(shape, 1, Rows { first: a_rest.from(0), stride: SIDE }, b);
                    }
                }
                // What is multiplied by one stays what it is.
                match t.alpha == 1.0 && !t.add && columns == shape.vectors * LANES {
                    true => tiles.store(shape, c, t.c_stride),
                    false => {
                        tiles.store(shape, sums.as_mut_ptr().cast(), BLOCK);
                        V::put(&sums, shape, t, first, column);
                    }
                }
            }
        }
    }
    leave();
}

/// AVX-512.
#[cfg(target_arch = "x86_64")]
struct Wide;

#[cfg(target_arch = "x86_64")]
impl Vectors for Wide {
    #[inline(always)]
    unsafe fn pad(from: *const u32, n: usize, to: *mut u32) {
        use std::arch::x86_64::*;
        // SAFETY: the caller vouches for AVX-512; the mask keeps to `n` units.
        unsafe {
            let there = ((1u32 << n) - 1) as __mmask16;
            _mm512_storeu_si512(to.cast(), _mm512_maskz_loadu_epi32(there, from.cast()));
        }
    }

    #[inline(always)]
    unsafe fn put(sums: &MaybeUninit<Sums>, shape: Shape, t: &Tile, first: usize, column: usize) {
        use std::arch::x86_64::*;
        let sums: *const f32 = sums.as_ptr().cast();
        for r in 0..shape.rows {
            let row = sums.wrapping_add(r * BLOCK);
            // SAFETY: the caller's promise; the row has `vectors` vectors.
            unsafe {
                let left = _mm512_load_ps(row);
                match shape.vectors {
                    1 => t.store(first + r, column, [[left]]),
                    _ => t.store(first + r, column, [[left, _mm512_load_ps(row.wrapping_add(LANES))]]),
                }
            }
        }
    }
}

/// Plain loops.
#[cfg(test)]
struct Plain;

#[cfg(test)]
impl Vectors for Plain {
    unsafe fn pad(from: *const u32, n: usize, to: *mut u32) {
        for i in 0..LANES {
            // SAFETY: the caller's promise covers `n` units, and room for 16.
            unsafe { *to.add(i) = if i < n { *from.add(i) } else { 0 } };
        }
    }

    unsafe fn put(sums: &MaybeUninit<Sums>, shape: Shape, t: &Tile, first: usize, column: usize) {
        for r in 0..shape.rows {
            for i in 0..(t.columns - column).min(shape.vectors * LANES) {
                // SAFETY: the caller's promise covers the rows and columns of both.
                unsafe {
                    let sum = *sums.as_ptr().cast::<f32>().add(r * BLOCK + i);
                    let c = &mut *t.c.add((first + r) * t.c_stride + column + i);
                    *c = if t.add { t.alpha.mul_add(sum, *c) } else { t.alpha * sum };
                }
            }
        }
    }
}

/// [`super::microkernel::run_with`] on the tiles of the emulation.
///
/// # Safety
/// As there.
#[cfg(test)]
pub unsafe fn run_emulated(rows: usize, tile: Tile, tail: Tail, ahead: &mut Prefetcher) {
    let mut tiles = emulated::Emulated::new();
    #[cfg(target_arch = "x86_64")]
    if crate::simd::has_avx512() {
        // SAFETY: the caller's promise; the CPU has AVX-512.
        return unsafe { run_emulated_wide(&mut tiles, rows, tile, tail, ahead) };
    }
    // SAFETY: the caller's promise.
    unsafe { blocks::<_, Plain>(&mut tiles, rows, &tile, &tail, ahead) }
}

/// The emulation between the vectors that the tiles of a CPU have around them.
///
/// # Safety
/// As [`super::microkernel::run_with`]; the CPU must have AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn run_emulated_wide(
    tiles: &mut emulated::Emulated,
    rows: usize,
    tile: Tile,
    tail: Tail,
    ahead: &mut Prefetcher,
) {
    // SAFETY: the caller's promise.
    unsafe { blocks::<_, Wide>(tiles, rows, &tile, &tail, ahead) }
}
