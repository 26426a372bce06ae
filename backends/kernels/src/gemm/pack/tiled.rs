//! Packed operands built tile by tile in reusable buffers, for chained single-thread GEMMs
//! (attention): each reads results of the one before while they are in the cache.
#![allow(unsafe_code)]

use std::ops::Range;

use crate::gemm::amx::task;
use crate::gemm::isa::Isa;
use crate::gemm::matrix::{Mat, MatMut};
use crate::gemm::microkernel;
use crate::gemm::pack::whole::PackedRhs;
use crate::gemm::pack::{self, Part};
use crate::gemm::tile::{LANES, PANEL, Precision, Tile};
use crate::memory::arena::{self, Buffer};

/// A left operand, packed tile by tile.
pub struct PackedLhs {
    pub(in crate::gemm) isa: Isa,
    pub(in crate::gemm) precision: Precision,
    pub(in crate::gemm) rows: usize,
    pub(in crate::gemm) cols: usize,
    pub(in crate::gemm) buffer: Buffer,
}

impl PackedLhs {
    /// Room for `[rows, cols]`, with any contents.
    pub fn room(precision: Precision, rows: usize, cols: usize) -> Self {
        Self::by(Isa::of_this_cpu(), precision, rows, cols)
    }

    /// [`PackedLhs::room`] for the instructions of `isa`.
    pub(in crate::gemm) fn by(isa: Isa, precision: Precision, rows: usize, cols: usize) -> Self {
        let stride = isa.row_stride(cols.div_ceil(precision.per_unit()));
        PackedLhs { isa, precision, rows, cols: stride * precision.per_unit(), buffer: arena::alloc(rows * stride) }
    }

    fn stride(&self) -> usize {
        self.cols / self.precision.per_unit()
    }

    /// Rounds `a` into the rows and columns from `row` and `column`, which is even; beside an odd
    /// last column comes a zero.
    pub fn put(&mut self, (row, column): (usize, usize), a: Mat<'_>) {
        let (stride, first) = (self.stride(), self.first((row, column), a.rows, a.cols));
        let part = Part { start: 0, along: a.cols, first: 0, across: a.rows };
        let units: &mut [u32] = bytemuck::cast_slice_mut(&mut self.buffer);
        pack::left(self.isa, self.precision, &a, part, stride, &mut units[first..]);
    }

    /// Its first rows and columns.
    pub fn part(&self, rows: usize, cols: usize) -> Mat<'_> {
        let all = match self.precision {
            Precision::F32 => Mat::new(&self.buffer, self.rows, self.cols),
            Precision::Bf16 => Mat::narrowed(bytemuck::cast_slice(&self.buffer), self.rows, self.cols),
        };
        all.part(0..rows, 0..cols)
    }

    /// The unit of `row` and `column`, from where on there is room for as many rows and columns.
    fn first(&self, (row, column): (usize, usize), rows: usize, cols: usize) -> usize {
        let per_unit = self.precision.per_unit();
        assert!(column.is_multiple_of(per_unit) && row + rows <= self.rows && column + cols <= self.cols);
        row * self.stride() + column / per_unit
    }

    /// Where so many rows and columns from `row` and `column` go, and the units from one row to the
    /// next.
    #[cfg(target_arch = "x86_64")]
    pub(in crate::gemm) fn place(&mut self, at: (usize, usize), rows: usize, cols: usize) -> (*mut u32, usize) {
        let (stride, first) = (self.stride(), self.first(at, rows, cols));
        let units: &mut [u32] = bytemuck::cast_slice_mut(&mut self.buffer);
        (units[first..].as_mut_ptr(), stride)
    }
}

impl PackedRhs {
    /// Room for `[rows, cols]`, with any contents.
    pub fn room(precision: Precision, rows: usize, cols: usize) -> Self {
        Self::with_room(Isa::of_this_cpu(), precision, rows, cols)
    }

    /// The room is for `[rows, cols]` now, not more numbers than before; what was in it is lost.
    pub fn reshape(&mut self, rows: usize, cols: usize) {
        let units = rows.div_ceil(self.precision.per_unit());
        assert!(self.start + units * cols.next_multiple_of(LANES) <= self.buffer.len(), "more than there is room for");
        (self.rows, self.cols) = (rows, cols);
    }

    /// Rounds `b` into the rows from `row`, which is even, and all columns of the panel from
    /// `column`; beneath an odd last row come zeros.
    pub fn put(&mut self, (row, column): (usize, usize), b: Mat<'_>) {
        let (isa, precision, vectors) = (self.isa, self.precision, b.cols.div_ceil(LANES));
        let first = self.first((row, column), b.rows, b.cols);
        let units: &mut [u32] = bytemuck::cast_slice_mut(&mut self.buffer);
        let part = Part { start: 0, along: b.rows, first: 0, across: b.cols };
        pack::right(isa, precision, &b, part, vectors, &mut units[first..]);
    }

    /// The unit of `row` and `column`, from where on there is room for as many rows of a panel of
    /// so many columns.
    fn first(&self, (row, column): (usize, usize), rows: usize, cols: usize) -> usize {
        let per_unit = self.precision.per_unit();
        assert!(row.is_multiple_of(per_unit) && column.is_multiple_of(PANEL));
        assert!(row + rows <= self.rows && column < self.cols && cols == PANEL.min(self.cols - column));
        let line = cols.next_multiple_of(LANES);
        let (first, units) = (self.start + column * self.rows.div_ceil(per_unit), self.rows.div_ceil(per_unit));
        assert!(first + units * line <= self.buffer.len());
        first + row / per_unit * line
    }

    /// Where so many rows from `row` of the panel at `column` go, all its columns.
    #[cfg(target_arch = "x86_64")]
    pub(in crate::gemm) fn place(&mut self, at: (usize, usize), rows: usize, cols: usize) -> *mut u32 {
        let first = self.first(at, rows, cols);
        let units: &mut [u32] = bytemuck::cast_slice_mut(&mut self.buffer);
        units[first..].as_mut_ptr()
    }
}

/// `c = alpha a b` or, with `add`, `c += alpha a b`, of parts of `a` and `b` in the same precision:
/// of `a` as many rows as `c` has from `row`, and the columns `along`; of `b` the rows from
/// `first`, and as many columns as `c` has from `column`, where a panel starts. `along` and `first`
/// start at a unit, and what completes the last unit is finite.
pub fn multiply(
    c: MatMut<'_>,
    alpha: f32,
    (a, row, along): (&PackedLhs, usize, Range<usize>),
    (b, first, column): (&PackedRhs, usize, usize),
    add: bool,
) {
    let (per_unit, m, n, k) = (a.precision.per_unit(), c.rows, c.cols, along.len());
    assert!(
        a.precision == b.precision && row + m <= a.rows && along.end <= a.cols && n > 0,
        "a part of a left operand"
    );
    assert!(along.start.is_multiple_of(per_unit) && first.is_multiple_of(per_unit) && column.is_multiple_of(PANEL));
    let units: &[u32] = bytemuck::cast_slice(&a.buffer);
    let depth = b.isa.depth(b.precision);
    let of_panel = |at: usize| {
        for start in (0..k).step_by(depth * per_unit) {
            let units_here = (depth * per_unit).min(k - start).div_ceil(per_unit);
            let (panel, vectors) = b.panel(column + at, (first + start) / per_unit);
            assert!(panel.len() >= units_here * vectors * LANES && at + PANEL.min(n - at) <= b.cols - column);
            let tile = Tile {
                units: units_here,
                a: units[row * a.stride() + (along.start + start) / per_unit..].as_ptr(),
                a_stride: a.stride(),
                b: panel.as_ptr(),
                vectors,
                columns: PANEL.min(n - at),
                // SAFETY: `MatMut` checked that its last element, and so this one, is inside.
                c: unsafe { c.data.as_mut_ptr().add(at) },
                c_stride: c.row_stride,
                alpha,
                add: add || start > 0,
            };
            // SAFETY: the rows and columns of `a` are inside of it, as its units then are; the
            // panel has these units; `MatMut` checked its extent and is borrowed mutably.
            unsafe { microkernel::run(b.isa, b.precision, m, tile) };
        }
    };
    task(|| (0..n).step_by(PANEL).for_each(of_panel));
}

/// `out` `[cols, rows]` from `x` `[rows, cols]`.
pub fn transpose(x: &[f32], rows: usize, cols: usize, stride: usize, out: &mut [f32]) {
    let x = Mat::strided(x, rows, cols, stride).t();
    let part = Part { start: 0, along: rows, first: 0, across: cols };
    pack::left(Isa::of_this_cpu(), Precision::F32, &x, part, rows, bytemuck::cast_slice_mut(out));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::{Threads, gemm};
    use crate::testing::noise;

    #[test]
    fn operands_put_part_by_part_give_the_bits_of_a_plain_product_and_so_do_parts_of_them() {
        for precision in [Precision::F32, Precision::Bf16] {
            let (m, n, k) = (70, 150, 90);
            let (a, b) = (noise(m * k, 1), noise(k * n, 2));
            let mut left = PackedLhs::room(precision, m, k);
            let mut right = PackedRhs::room(precision, 200, 200);
            right.reshape(k, n);
            for rows in [0..64, 64..m] {
                for columns in [0..64, 64..k] {
                    left.put((rows.start, columns.start), Mat::new(&a, m, k).part(rows.clone(), columns));
                }
            }
            for rows in [0..32, 32..k] {
                for columns in [0..64, 64..128, 128..n] {
                    right.put((rows.start, columns.start), Mat::new(&b, k, n).part(rows.clone(), columns));
                }
            }
            for (rows, along, columns) in [(0..m, 0..k, 0..n), (5..20, 12..80, 64..150), (64..m, 0..32, 128..140)] {
                let (height, width) = (rows.len(), columns.len());
                let [mut want, mut got] = [0, 1].map(|_| vec![0.5f32; height * width]);
                let a = Mat::new(&a, m, k).part(rows.clone(), along.clone());
                let b = Mat::new(&b, k, n).part(along.clone(), columns.clone());
                gemm(precision, MatMut::new(&mut want, height, width), 0.3, a, b, true, Threads::One);
                let from = (&right, along.start, columns.start);
                multiply(MatMut::new(&mut got, height, width), 0.3, (&left, rows.start, along), from, true);
                assert_eq!(got, want, "{precision:?} {rows:?} {columns:?}");
            }
        }
    }

    #[test]
    fn transposing_moves_every_number_to_its_place() {
        let (rows, cols, stride) = (37, 21, 40);
        let x = noise(rows * stride, 1);
        let mut transposed = vec![0f32; rows * cols];
        transpose(&x, rows, cols, stride, &mut transposed);
        assert!((0..rows * cols).all(|i| transposed[i] == x[i % rows * stride + i / rows]));
    }
}
