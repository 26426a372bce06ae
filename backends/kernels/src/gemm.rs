//! GEMM in f32 or with operands rounded to bf16.
//!
//! An element of a product is the same bits whatever the other rows and columns are, on any number
//! of threads and any instruction set but AMX's tiles ([`amx`]): it is one chain of fused
//! multiply-adds over each block of the inner dimension ([`tile::DEPTH`]), the blocks' sums added in
//! order ([`microkernel`] says how for bf16). A product may have several terms,
//! `c = a1 b1 + a2 b2`: they are then summed while a tile of the output is in the cache; in bf16 a
//! short one ([`SHORT`]) goes on with the last chain of the term before it, while its sums are in
//! registers.
//!
//! Operands are packed block by block just before use ([`pack`]): a weight is read where it lies,
//! in the type it is stored in, for one row as for many.
#![allow(unsafe_code)]

pub mod amx;
pub mod executor;
pub mod fused;
pub mod isa;
mod lhs;
pub mod matrix;
pub mod microkernel;
#[cfg(target_arch = "x86_64")]
mod mixed;
pub mod pack;
mod prefetch;
pub mod prepacked;
mod scratch;
pub mod self_check;
pub mod skinny;
#[cfg(test)]
mod tests;
pub mod tile;

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

pub use self::amx::task;
pub use self::executor::Threads;
use self::executor::{Executor, ROWS, TASKS};
use self::isa::Isa;
use self::lhs::{Lhs, in_place, left};
pub use self::matrix::{Mat, MatMut};
use self::pack::Part;
use self::pack::whole::PackedRhs;
use self::prefetch::Prefetcher;
use self::scratch::with_lines;
pub use self::tile::Precision;
use self::tile::{LANES, PANEL, Tail, Tile, Unpacked};
use crate::memory::mmap::Elements;

/// Largest K for which a bf16 term is accumulated into the registers of the term before it, if both
/// have the same factor: the ranks of adapters.
pub const SHORT: usize = 64;
/// Columns up to which the right operand may be packed for all tasks even if it is the larger one.
const WIDE: usize = 1024;

/// `alpha a b`, a term of a gemm.
#[derive(Clone, Copy)]
pub struct Term<'a> {
    /// Factor.
    pub alpha: f32,
    /// Lhs operand.
    pub a: Mat<'a>,
    /// PackedRhs operand.
    pub b: Mat<'a>,
}

/// `c = sum of the terms` or, with `add`, `c += sum of the terms`.
pub struct Gemm<'a> {
    /// The output.
    pub c: MatMut<'a>,
    /// Whether to add to what is in it.
    pub add: bool,
    /// At least one.
    pub terms: Vec<Term<'a>>,
}

/// `c = alpha a b` or, with `add`, `c += alpha a b`.
pub fn gemm(precision: Precision, c: MatMut<'_>, alpha: f32, a: Mat<'_>, b: Mat<'_>, add: bool, threads: Threads) {
    gemms(precision, vec![Gemm { c, add, terms: vec![Term { alpha, a, b }] }], threads);
}

/// Several products at once: a left operand that they share is rounded once, and small ones share
/// the threads.
pub fn gemms(precision: Precision, products: Vec<Gemm<'_>>, threads: Threads) {
    gemms_by(Isa::of_this_cpu(), precision, products, threads);
}

/// Rounds `x` to bf16 as products round their operands, for what is multiplied more than once:
/// [`Mat::narrowed`]. Blocks of it are shared out among the threads of the current pool.
pub fn narrow(x: &[f32], out: &mut [bf16]) {
    const CHUNK: usize = 1 << 14;
    let isa = Isa::of_this_cpu();
    assert_eq!(x.len(), out.len(), "numbers and their rounded forms");
    match x.len() <= CHUNK {
        true => pack::narrow(isa, x, out),
        false => {
            x.par_chunks(CHUNK).zip(out.par_chunks_mut(CHUNK)).for_each(|(x, out)| pack::narrow(isa, x, out));
        }
    }
}

/// [`narrow`] on the calling thread.
pub fn narrow_here(x: &[f32], out: &mut [bf16]) {
    assert_eq!(x.len(), out.len(), "numbers and their rounded forms");
    pack::narrow(Isa::of_this_cpu(), x, out);
}

/// An output that tasks write disjoint tiles of.
struct Output {
    data: *mut f32,
    cols: usize,
    row_stride: usize,
    add: bool,
}

// SAFETY: the pointer comes from a mutable borrow that outlives all tasks, and no two tasks have a
// tile in common.
unsafe impl Sync for Output {}
// SAFETY: as above.
unsafe impl Send for Output {}

/// One term of a product with what of it is packed for all tasks.
struct Packed<'a> {
    term: Term<'a>,
    whole: Whole,
    /// A short term that goes on with the sums of this one, packed likewise.
    tail: Option<(Term<'a>, Whole)>,
}

enum Whole {
    /// The left operand, by its place among those of all products; tasks pack panels of the right
    /// one.
    Left(usize),
    /// The right operand; tasks pack rows of the left one.
    Right(PackedRhs),
}

impl Whole {
    fn left<'a, 'b>(&self, lefts: &'b [Lhs<'a>]) -> Option<&'b Lhs<'a>> {
        match self {
            Whole::Left(place) => lefts.get(*place),
            Whole::Right(_) => None,
        }
    }
    fn right(&self) -> Option<&PackedRhs> {
        match self {
            Whole::Left(_) => None,
            Whole::Right(right) => Some(right),
        }
    }
}

/// Rows and columns of one task.
struct Task {
    product: usize,
    rows: Range<usize>,
    columns: Range<usize>,
}

/// Whether the right operand is packed for all tasks, which then take rows of the output: where it
/// is not much larger than the left one, and that does not lie ready to be multiplied. Else tasks
/// take columns, whose panels each packs into its core's cache while the next ones are fetched.
fn by_rows(precision: Precision, a: &Mat<'_>, b: &Mat<'_>) -> bool {
    let ready = precision == Precision::Bf16 && in_place(precision, a).is_some();
    a.rows >= ROWS && !ready && (b.cols <= a.rows || b.cols <= WIDE)
}

/// `0..n` in parts of `size`, the last of them halved once or twice where that leaves multiples of
/// `least`.
fn split(n: usize, size: usize, least: usize) -> Vec<Range<usize>> {
    let (mut parts, mut first) = (Vec::new(), 0);
    while first < n {
        let halvings = match (n - first).div_ceil(size) {
            0..=2 => 2,
            3..=4 => 1,
            _ => 0,
        };
        let part = (0..halvings).fold(size, |part, _| if part.is_multiple_of(2 * least) { part / 2 } else { part });
        parts.push(first..(first + part).min(n));
        first += part;
    }
    parts
}

/// [`gemms`] with the instructions of `isa`.
fn gemms_by(isa: Isa, precision: Precision, products: Vec<Gemm<'_>>, threads: Threads) {
    let mut lefts: Vec<Lhs<'_>> = Vec::new();
    let mut outputs = Vec::with_capacity(products.len());
    let mut terms: Vec<Vec<Packed<'_>>> = Vec::with_capacity(products.len());
    let mut tasks = Vec::new();
    for (number, p) in products.into_iter().enumerate() {
        let (m, n) = (p.c.rows, p.c.cols);
        let by_rows = p.terms.first().is_some_and(|term| by_rows(precision, &term.a, &term.b));
        let mut mine: Vec<Packed<'_>> = Vec::with_capacity(p.terms.len());
        for term in p.terms {
            let (a, b) = (term.a, term.b);
            let k = a.cols;
            assert!(a.rows == m && b.cols == n && b.rows == k, "{m}x{n} from {}x{k} and {}x{}", a.rows, b.rows, b.cols);
            if m == 0 || n == 0 {
                continue;
            }
            let whole = if by_rows {
                Whole::Right(PackedRhs::by(isa, precision, b, threads))
            } else {
                Whole::Left(lefts.iter().position(|left| left.of.same(&a)).unwrap_or_else(|| {
                    lefts.push(left(isa, precision, a, threads));
                    lefts.len() - 1
                }))
            };
            let goes_on = |before: &&mut Packed<'_>| {
                let same = before.term.alpha.to_bits() == term.alpha.to_bits();
                precision == Precision::Bf16 && k <= SHORT && before.tail.is_none() && same
            };
            match mine.last_mut().filter(goes_on) {
                Some(before) => before.tail = Some((term, whole)),
                None => mine.push(Packed { term, whole, tail: None }),
            }
        }
        terms.push(mine);
        // Whole groups of rows, so that no part ends with a slow remainder. The last parts are
        // small: when one thread is done, the others are soon.
        let (rows, columns) = match (precision, by_rows) {
            (Precision::F32, true) => (split(m, m.div_ceil(TASKS).next_multiple_of(24), 24), split(n, n, n)),
            (Precision::Bf16, true) => (split(m, m.div_ceil(TASKS).next_multiple_of(48), 12), split(n, n, n)),
            (_, false) => {
                // Narrow panels rather than panels that are packed for several tasks.
                let narrow = precision == Precision::Bf16 && n > PANEL / 2 && n.div_ceil(PANEL) < TASKS;
                let width = if narrow { PANEL / 2 } else { PANEL };
                let parts = (TASKS.div_ceil(n.div_ceil(width).max(1))).min(m.div_ceil(ROWS)).max(1);
                let rows = m.div_ceil(parts).next_multiple_of(if precision == Precision::F32 { 48 } else { 12 });
                let least = if precision == Precision::F32 { PANEL } else { PANEL / 2 };
                (split(m, rows, rows), split(n, width, least))
            }
        };
        for rows in &rows {
            for columns in &columns {
                tasks.push(Task { product: number, rows: rows.clone(), columns: columns.clone() });
            }
        }
        outputs.push(Output { data: p.c.data.as_mut_ptr(), cols: n, row_stride: p.c.row_stride, add: p.add });
    }
    // What whoever takes a task takes next if all tasks take as long.
    let stride = if threads == Threads::Pool { rayon::current_num_threads() } else { 1 };
    let run = |number: usize| {
        let task = &tasks[number];
        let next = tasks.get(number + stride).and_then(|next| {
            let b = &terms[next.product].first()?.term.b;
            Some((b, next.columns.clone()))
        });
        let output = &outputs[task.product];
        let mut add = output.add;
        for Packed { term, whole, tail } in &terms[task.product] {
            let tail = tail.as_ref();
            match whole {
                Whole::Left(place) => {
                    let tail = tail.and_then(|(term, whole)| Some((term, whole.left(&lefts)?)));
                    columns_of(isa, precision, task, (term, &lefts[*place]), tail, output, add, next.clone());
                }
                Whole::Right(right) => {
                    let tail = tail.and_then(|(term, whole)| Some((term, whole.right()?)));
                    rows_of(isa, precision, task, (term, right), tail, output, add);
                }
            }
            add = true;
        }
    };
    threads.each(tasks.len(), &|number| amx::task(|| run(number)));
}

/// Rows of the left operand that do not pay for packing the right one.
const FEW: usize = 16;

/// The elements of a right operand that can be multiplied where they lie, if slowly: rows of bf16,
/// by [`narrow`].
fn in_rows<'a>(isa: Isa, precision: Precision, b: &Mat<'a>) -> Option<&'a [bf16]> {
    match b.data {
        Elements::Bf16(data) if b.narrowed && b.col_stride == 1 => {
            (precision == Precision::Bf16 && isa == Isa::Avx512Bf16).then_some(data)
        }
        _ => None,
    }
}

/// A task with the left operand packed: its columns are packed as a panel, block by block of the
/// inner dimension. The next block is fetched meanwhile; after the last one, the columns of the
/// operand that `next` names.
#[allow(clippy::too_many_arguments, reason = "the parts of a task")]
fn columns_of(
    isa: Isa,
    precision: Precision,
    task: &Task,
    (term, left): (&Term<'_>, &Lhs<'_>),
    tail: Option<(&Term<'_>, &Lhs<'_>)>,
    to: &Output,
    add: bool,
    next: Option<(&Mat<'_>, Range<usize>)>,
) {
    debug_assert!(task.columns.end <= to.cols && task.columns.len() <= PANEL);
    let (vectors, depth, k) =
        (task.columns.len().div_ceil(LANES), isa.depth(precision) * precision.per_unit(), term.a.cols);
    let unpacked = in_rows(isa, precision, &term.b).filter(|_| task.rows.len() <= FEW && tail.is_none());
    let after = tail.map_or(0, |(tail, _)| tail.a.cols.div_ceil(precision.per_unit()));
    let units = depth.min(k).div_ceil(precision.per_unit());
    with_lines(if unpacked.is_some() { 0 } else { (units + after) * PANEL }, |lines| {
        let (panel, rest) = lines.split_at_mut(lines.len() - after * PANEL);
        let part_of = |start, along| Part { start, along, first: task.columns.start, across: task.columns.len() };
        let last = tail.map_or(Tail::NONE, |(tail, left)| {
            pack::right(isa, precision, &tail.b, part_of(0, tail.a.cols), vectors, rest);
            Tail { units: after, a: left.row(task.rows.start), a_stride: left.stride, b: rest.as_ptr() }
        });
        // An inner dimension of nothing still says what the output is.
        for start in (0..k.max(1)).step_by(depth) {
            let along = depth.min(k - start);
            let tile = |b| Tile {
                units: along.div_ceil(precision.per_unit()),
                a: left.row(task.rows.start).wrapping_add(start / precision.per_unit()),
                a_stride: left.stride,
                b,
                vectors,
                columns: task.columns.len(),
                // SAFETY: `MatMut` checked that its last element, and so this one, is inside.
                c: unsafe { to.data.add(task.rows.start * to.row_stride + task.columns.start) },
                c_stride: to.row_stride,
                alpha: term.alpha,
                add: add || start > 0,
            };
            match unpacked {
                Some(data) => {
                    let first = data[start * term.b.row_stride + task.columns.start..].as_ptr().cast();
                    let b = Unpacked { first, stride: term.b.row_stride, along };
                    // SAFETY: as below; `along` rows of these columns lie from `first`, and `isa`
                    // has the instructions.
                    unsafe { microkernel::run_unpacked(task.rows.len(), tile(panel.as_ptr()), b) };
                }
                None => {
                    pack::right(isa, precision, &term.b, part_of(start, along), vectors, panel);
                    let block = |b: &Mat<'_>, start: usize, columns| {
                        Prefetcher::of(b, start..(start + depth).min(b.rows), columns)
                    };
                    let (tail, mut ahead) = match &next {
                        _ if start + along < k => (Tail::NONE, block(&term.b, start + along, task.columns.clone())),
                        Some((b, columns)) => (last, block(b, 0, columns.clone())),
                        None => (last, Prefetcher::nothing()),
                    };
                    // SAFETY: `Mat` and `MatMut` checked their extents, the loop keeps to them,
                    // `right` packed `units * vectors * LANES` units of each term, and tiles of
                    // different tasks do not overlap.
                    unsafe {
                        microkernel::run_with(isa, precision, task.rows.len(), tile(panel.as_ptr()), tail, &mut ahead)
                    };
                }
            }
        }
    });
}

/// A task with the right operand packed: its rows are packed unless they can be read in place,
/// block by block of the inner dimension, and multiplied with all panels.
fn rows_of(
    isa: Isa,
    precision: Precision,
    task: &Task,
    (term, right): (&Term<'_>, &PackedRhs),
    tail: Option<(&Term<'_>, &PackedRhs)>,
    to: &Output,
    add: bool,
) {
    debug_assert!(task.columns == (0..to.cols));
    let (depth, k, rows) = (isa.depth(precision) * precision.per_unit(), term.a.cols, task.rows.len());
    // Rows a power of two apart would share few places of the cache.
    let stride_of =
        |a: &Mat<'_>| isa.row_stride(isa.depth(precision).min(a.cols.div_ceil(precision.per_unit()))) + LANES;
    let room_of = |a: &Mat<'_>| if in_place(precision, a).is_some() { 0 } else { rows * stride_of(a) };
    let after = tail.map_or(0, |(tail, _)| room_of(&tail.a));
    with_lines(room_of(&term.a) + after, |lines| {
        let (packed, rest) = lines.split_at_mut(lines.len() - after);
        // A block of the task's rows, and how far apart they are.
        let block = |a: &Mat<'_>, start: usize, along: usize, packed: &mut [u32]| match in_place(precision, a) {
            Some((units, stride)) => {
                (units[task.rows.start * stride + start / precision.per_unit()..].as_ptr(), stride)
            }
            None => {
                let part = Part { start, along, first: task.rows.start, across: rows };
                pack::left(isa, precision, a, part, stride_of(a), packed);
                (packed.as_ptr(), stride_of(a))
            }
        };
        let last = tail.map(|(tail, right)| (block(&tail.a, 0, tail.a.cols, rest), tail.a.cols, right));
        for start in (0..k.max(1)).step_by(depth) {
            let along = depth.min(k - start);
            let (a, a_stride) = block(&term.a, start, along, packed);
            let first = start / precision.per_unit();
            for column in (0..to.cols).step_by(PANEL) {
                let columns = PANEL.min(to.cols - column);
                let (b, vectors) = right.panel(column, first);
                let tile = Tile {
                    units: along.div_ceil(precision.per_unit()),
                    a,
                    a_stride,
                    b: b.as_ptr(),
                    vectors,
                    columns,
                    // SAFETY: `MatMut` checked that its last element, and so this one, is inside.
                    c: unsafe { to.data.add(task.rows.start * to.row_stride + column) },
                    c_stride: to.row_stride,
                    alpha: term.alpha,
                    add: add || start > 0,
                };
                let tail = last.filter(|_| start + along == k).map_or(Tail::NONE, |((a, a_stride), k, right)| {
                    let b = right.panel(column, 0).0.as_ptr();
                    Tail { units: k.div_ceil(precision.per_unit()), a, a_stride, b }
                });
                // SAFETY: as in `columns_of`; `rows` rows of `units` units were packed or lie in
                // the operand, and the panel holds its units from `first` on.
                unsafe { microkernel::run_with(isa, precision, rows, tile, tail, &mut Prefetcher::nothing()) };
            }
        }
    });
}
