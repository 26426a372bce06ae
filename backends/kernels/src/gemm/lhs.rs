//! The left operand of a GEMM: in place where its rows can be read as they lie, else packed.

use rayon::prelude::*;

use super::executor::Threads;
use super::isa::Isa;
use super::matrix::Mat;
use super::pack::{self, Part};
use super::tile::Precision;
use crate::memory::arena::{self, Buffer};
use crate::memory::mmap::Elements;

/// A left operand, ready for the innermost loops.
pub(super) struct Lhs<'a> {
    pub(super) of: Mat<'a>,
    units: Units<'a>,
    pub(super) stride: usize,
}

enum Units<'a> {
    /// The matrix itself, its rows without gaps inside: f32, or bf16 that are [`narrow`](super::narrow)'s.
    InPlace(&'a [u32]),
    /// Packed, in a lent buffer.
    Packed(Buffer),
}

impl Lhs<'_> {
    pub(super) fn row(&self, row: usize) -> *const u32 {
        match &self.units {
            Units::InPlace(units) => units[row * self.stride..].as_ptr(),
            Units::Packed(data) => data[row * self.stride..].as_ptr().cast(),
        }
    }
}

/// Its units and how many lie between the starts of its rows, if rows can be multiplied where they
/// lie.
pub(super) fn in_place<'a>(precision: Precision, a: &Mat<'a>) -> Option<(&'a [u32], usize)> {
    match (precision, a.data) {
        _ if a.col_stride != 1 => None,
        (Precision::F32, Elements::F32(data)) => Some((bytemuck::cast_slice(data), a.row_stride)),
        // Pairs must not straddle rows.
        (Precision::Bf16, Elements::Bf16(data))
            if a.narrowed && a.cols.is_multiple_of(2) && a.row_stride.is_multiple_of(2) =>
        {
            let units = bytemuck::try_cast_slice(&data[..data.len() / 2 * 2]).ok()?;
            Some((units, a.row_stride / 2))
        }
        _ => None,
    }
}

pub(super) fn left<'a>(isa: Isa, precision: Precision, a: Mat<'a>, threads: Threads) -> Lhs<'a> {
    if let Some((units, stride)) = in_place(precision, &a) {
        return Lhs { of: a, units: Units::InPlace(units), stride };
    }
    let stride = isa.row_stride(a.cols.div_ceil(precision.per_unit()));
    let mut buffer = arena::alloc(a.rows * stride);
    let units: &mut [u32] = bytemuck::cast_slice_mut(&mut buffer);
    const CHUNK: usize = 64;
    let pack = |(i, units): (usize, &mut [u32])| {
        let first = i * CHUNK;
        let part = Part { start: 0, along: a.cols, first, across: CHUNK.min(a.rows - first) };
        pack::left(isa, precision, &a, part, stride, units);
    };
    match threads {
        Threads::One => units.chunks_mut((CHUNK * stride).max(1)).enumerate().for_each(pack),
        Threads::Pool => units.par_chunks_mut((CHUNK * stride).max(1)).enumerate().for_each(pack),
    }
    Lhs { of: a, units: Units::Packed(buffer), stride }
}
