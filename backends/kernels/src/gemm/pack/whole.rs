//! Operands packed whole, once, for many small GEMMs on the calling thread: where the same keys
//! meet one block of queries after the other, packing them anew each time would take as long as the
//! GEMMs.
#![allow(unsafe_code)]

use rayon::prelude::*;

use crate::gemm::amx::task;
use crate::gemm::executor::Threads;
use crate::gemm::isa::Isa;
use crate::gemm::lhs::{Lhs, left};
use crate::gemm::matrix::{Mat, MatMut};
use crate::gemm::microkernel;
use crate::gemm::pack::{self, Part};
use crate::gemm::prefetch::Prefetcher;
use crate::gemm::tile::{LANES, PANEL, Precision, Tile};
use crate::memory::arena::{self, Buffer};

/// A right operand `[rows, cols]`, packed whole, in a lent buffer.
pub struct PackedRhs {
    pub(in crate::gemm) isa: Isa,
    pub(in crate::gemm) precision: Precision,
    pub(in crate::gemm) rows: usize,
    pub(in crate::gemm) cols: usize,
    /// Panels of [`PANEL`] columns one after the other, the last one narrower.
    pub(in crate::gemm) buffer: Buffer,
    /// Where the first panel starts: at a cache line.
    pub(in crate::gemm) start: usize,
}

impl PackedRhs {
    /// Packs `b` on the calling thread.
    pub fn new(precision: Precision, b: Mat<'_>) -> Self {
        Self::by(Isa::of_this_cpu(), precision, b, Threads::One)
    }

    /// Packs `b` with the instructions of `isa`.
    pub(in crate::gemm) fn by(isa: Isa, precision: Precision, b: Mat<'_>, threads: Threads) -> Self {
        /// Units that a thread packs at once, of a panel and of whole rows.
        const UNITS: [usize; 2] = [128, 8];
        let units = b.rows.div_ceil(precision.per_unit());
        let size = units * b.cols.next_multiple_of(LANES);
        let mut room = Self::with_room(isa, precision, b.rows, b.cols);
        let start = room.start;
        // PackedLhs that lie side by side are read whole and in their order, the next ones fetched
        // meanwhile: reading some columns of each would wait for memory at every row.
        let in_rows = b.col_stride == 1;
        let each = UNITS[usize::from(in_rows)];
        let panels = || (0..b.cols).step_by(PANEL).map(|first| (first, PANEL.min(b.cols - first)));
        let mut parts: Vec<Vec<(Part, &mut [u32])>> = Vec::new();
        let mut rest: &mut [u32] = bytemuck::cast_slice_mut(&mut room.buffer[start..start + size]);
        for (number, (first, across)) in panels().enumerate() {
            let line = across.next_multiple_of(LANES);
            let (panel, tail) = rest.split_at_mut(units * line);
            rest = tail;
            for (i, out) in panel.chunks_mut(each * line).enumerate() {
                let start = i * each * precision.per_unit();
                let along = (each * precision.per_unit()).min(b.rows - start);
                let part = (Part { start, along, first, across }, out);
                match in_rows && number > 0 {
                    true => parts[i].push(part),
                    false => parts.push(vec![part]),
                }
            }
        }
        let pack = |parts: Vec<(Part, &mut [u32])>| {
            let rows = parts.first().map_or(0, |(part, _)| part.start + part.along);
            let next = rows..if in_rows { (rows + each * precision.per_unit()).min(b.rows) } else { rows };
            let mut ahead = Prefetcher::of(&b, next, 0..b.cols);
            let share = ahead.lines().div_ceil(parts.len().max(1));
            for (part, out) in parts {
                ahead.fetch(share);
                pack::right(isa, precision, &b, part, part.across.div_ceil(LANES), out);
            }
        };
        match threads {
            Threads::One => parts.into_iter().for_each(pack),
            Threads::Pool => parts.into_par_iter().for_each(pack),
        }
        room
    }

    /// Room for `[rows, cols]`, with any contents.
    pub(in crate::gemm) fn with_room(isa: Isa, precision: Precision, rows: usize, cols: usize) -> Self {
        let size = rows.div_ceil(precision.per_unit()) * cols.next_multiple_of(LANES);
        let buffer = arena::alloc(size + LANES);
        let start = buffer.as_ptr().align_offset(64).min(LANES);
        PackedRhs { isa, precision, rows, cols, buffer, start }
    }

    /// The panel of the columns from `column`, a multiple of [`PANEL`], from its unit `first` on,
    /// and its vectors.
    pub(in crate::gemm) fn panel(&self, column: usize, first: usize) -> (&[u32], usize) {
        let units = self.rows.div_ceil(self.precision.per_unit());
        let vectors = PANEL.min(self.cols - column).div_ceil(LANES);
        let start = self.start + column * units + first * vectors * LANES;
        (&bytemuck::cast_slice(&self.buffer)[start..self.start + column * units + units * vectors * LANES], vectors)
    }
}

/// A left operand, packed whole where it has to be.
pub struct PackedLhs<'a>(Lhs<'a>);

impl<'a> PackedLhs<'a> {
    /// Packs `a`.
    pub fn new(precision: Precision, a: Mat<'a>, threads: Threads) -> Self {
        PackedLhs(left(Isa::of_this_cpu(), precision, a, threads))
    }
}

/// `c = alpha a b` or, with `add`, `c += alpha a b`, of the first rows of `b`, as many as `a` has
/// columns, and its first columns, as many as `c` has; on the calling thread. The bits are those of
/// [`crate::gemm::gemm`].
///
/// In bf16 a row that is left out beside one that is not (an odd number of rows) must be finite: it
/// is multiplied by zero.
pub fn multiply(c: MatMut<'_>, alpha: f32, a: Mat<'_>, b: &PackedRhs, add: bool) {
    multiply_rows(c, alpha, &PackedLhs::new(b.precision, a, Threads::One), b, add);
}

/// [`multiply`] of an operand that is packed already, in the same precision.
pub fn multiply_rows(c: MatMut<'_>, alpha: f32, PackedLhs(a): &PackedLhs<'_>, b: &PackedRhs, add: bool) {
    let (m, n, k) = (c.rows, c.cols, a.of.cols);
    assert!(a.of.rows == m && n <= b.cols && k <= b.rows, "{m}x{n} from {}x{k} and {}x{}", a.of.rows, b.rows, b.cols);
    let (per_unit, depth) = (b.precision.per_unit(), b.isa.depth(b.precision));
    let of_panel = |column: usize| {
        for start in (0..k.max(1)).step_by(depth * per_unit) {
            let first = start / per_unit;
            let (panel, vectors) = b.panel(column, first);
            let tile = Tile {
                units: (depth * per_unit).min(k - start).div_ceil(per_unit),
                a: a.row(0).wrapping_add(first),
                a_stride: a.stride,
                b: panel.as_ptr(),
                vectors,
                columns: PANEL.min(n - column),
                // SAFETY: `MatMut` checked that its last element, and so this one, is inside.
                c: unsafe { c.data.as_mut_ptr().add(column) },
                c_stride: c.row_stride,
                alpha,
                add: add || start > 0,
            };
            // SAFETY: `Mat` and `MatMut` checked their extents and `c` is borrowed mutably; the
            // panel holds its units from `first` on.
            unsafe { microkernel::run(b.isa, b.precision, m, tile) };
        }
    };
    task(|| (0..n).step_by(PANEL).for_each(of_panel));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::gemm;
    use crate::testing::noise;

    #[test]
    fn a_packed_operand_gives_the_bits_of_a_plain_product_and_so_do_its_first_rows_and_columns() {
        for precision in [Precision::F32, Precision::Bf16] {
            for (m, n, k, columns, depth) in [
                (5, 70, 40, 70, 40),
                (64, 200, 64, 130, 64),
                (7, 64, 1300, 64, 1200),
                (3, 40, 9, 17, 9),
                (2, 5, 6, 5, 2),
            ] {
                let (a, b) = (noise(m * k, 1), noise(k * n, 2));
                let transposed: Vec<f32> = (0..n).flat_map(|j| b.iter().skip(j).step_by(n).copied()).collect();
                let a = Mat::strided(&a, m, depth, k);
                let mut want = vec![0.5f32; m * columns];
                let part = Mat::strided(&b, depth, columns, n);
                gemm(precision, MatMut::new(&mut want, m, columns), 0.3, a, part, true, Threads::One);
                for b in [Mat::new(&b, k, n), Mat::new(&transposed, n, k).t()] {
                    let mut got = vec![0.5f32; m * columns];
                    multiply(MatMut::new(&mut got, m, columns), 0.3, a, &PackedRhs::new(precision, b), true);
                    assert_eq!(got, want, "{precision:?} {m}x{n}x{k}");
                }
            }
        }
    }
}
