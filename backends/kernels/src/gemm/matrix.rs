//! Matrices as views of slices: any strides to read, row-major to write.

use std::ops::Range;

use half::bf16;

use crate::memory::mmap::Elements;

/// A read-only matrix with any strides.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    pub(super) data: Elements<'a>,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
    /// It is what [`narrow`](super::narrow) leaves, so that rows can be multiplied in bf16 where they lie.
    pub(super) narrowed: bool,
}

impl<'a> Mat<'a> {
    /// A row-major matrix without gaps.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }
    /// A row-major matrix without gaps, of numbers as they are stored.
    pub fn of(data: Elements<'a>, rows: usize, cols: usize) -> Self {
        check(data.len(), rows, cols, cols);
        Mat { data, rows, cols, row_stride: cols, col_stride: 1, narrowed: false }
    }
    /// A row-major matrix without gaps, of what [`narrow`](super::narrow) left: no subnormal numbers are among
    /// them.
    pub fn narrowed(data: &'a [bf16], rows: usize, cols: usize) -> Self {
        Mat { narrowed: true, ..Self::of(Elements::Bf16(data), rows, cols) }
    }
    /// A row-major matrix whose rows start `row_stride` elements apart.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        check(data.len(), rows, cols, row_stride);
        Mat { data: Elements::F32(data), rows, cols, row_stride, col_stride: 1, narrowed: false }
    }
    /// Some of its rows and columns; nothing moves.
    pub fn part(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        assert!(rows.end <= self.rows && cols.end <= self.cols, "a part of a matrix lies outside of it");
        let first = (rows.start * self.row_stride + cols.start * self.col_stride).min(self.data.len());
        Mat { data: self.data.slice(first..self.data.len()), rows: rows.len(), cols: cols.len(), ..self }
    }
    /// Its rows and columns.
    pub fn dims(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }
    /// The transposed matrix; nothing moves.
    pub fn t(self) -> Self {
        Mat { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
    /// The same numbers at the same place in the same order.
    pub(super) fn same(&self, other: &Mat<'_>) -> bool {
        let place = |m: &Mat<'_>| match m.data {
            Elements::F32(x) => x.as_ptr().cast::<u8>(),
            Elements::Bf16(x) => x.as_ptr().cast(),
            Elements::F16(x) => x.as_ptr().cast(),
        };
        let shape = |m: &Mat<'_>| (m.rows, m.cols, m.row_stride, m.col_stride);
        std::mem::discriminant(&self.data) == std::mem::discriminant(&other.data)
            && place(self) == place(other)
            && shape(self) == shape(other)
    }
}

/// A writable row-major matrix.
pub struct MatMut<'a> {
    pub(super) data: &'a mut [f32],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
}

impl<'a> MatMut<'a> {
    /// A row-major matrix without gaps.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }
    /// A row-major matrix whose rows start `row_stride` elements apart.
    pub fn strided(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        check(data.len(), rows, cols, row_stride);
        assert!(rows <= 1 || row_stride >= cols, "rows of a writable matrix overlap");
        MatMut { data, rows, cols, row_stride }
    }
}

fn check(len: usize, rows: usize, cols: usize, row_stride: usize) {
    let needed = if rows == 0 || cols == 0 { 0 } else { (rows - 1) * row_stride + cols };
    assert!(needed <= len, "a matrix of {rows} x {cols} (row stride {row_stride}) needs {needed} elements, has {len}");
}
