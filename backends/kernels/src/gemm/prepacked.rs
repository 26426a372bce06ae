//! Prepacked weights: right operands that lie packed in a file. Nothing is packed at run time, and
//! a mapped file is the only copy.
//!
//! A weight `W` `[n, k]` of a linear layer (`y = x W^T`) is cut into panels of [`PANEL`] of its
//! rows, the columns of the product. A panel is `[units][columns]`, columns padded with zeros to a
//! multiple of [`LANES`], units as in [`microkernel`]: one f32, or two bf16. Panels follow each
//! other without a gap, so a weight is packed a stretch of rows at a time.
//!
//! A weight stored in bf16 serves both precisions. In f32 it is widened, which is exact: the bits
//! of a product are those of [`super::gemm`] of the same numbers, in half the bytes. In bf16 it is
//! read as it is.
#![allow(unsafe_code)]

use std::ops::Range;

use super::amx::task as tile_task;
use super::executor::Executor;
use super::executor::{ROWS, TASKS};
use super::isa::Isa;
use super::matrix::Mat;
use super::microkernel;
use super::pack::{self, Part};
use super::scratch::with_lines;
use super::tile::{LANES, PANEL, Precision, Tile};
use crate::memory::arena::{self, Buffer};

/// How the numbers of a packed weight are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackedType {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
}

impl PackedType {
    /// The smallest that loses nothing of `values`. Subnormal numbers, which products in bf16 take
    /// as zero, need f32.
    pub fn without_loss(values: &[f32]) -> Self {
        let is_bf16 = |x: &f32| x.to_bits() & 0xffff == 0 && !x.is_subnormal();
        if values.iter().all(is_bf16) { PackedType::Bf16 } else { PackedType::F32 }
    }

    fn precision(self) -> Precision {
        match self {
            PackedType::F32 => Precision::F32,
            PackedType::Bf16 => Precision::Bf16,
        }
    }

    fn units(self, k: usize) -> usize {
        k.div_ceil(self.precision().per_unit())
    }

    /// Bytes of a packed weight `[n, k]`.
    pub fn bytes(self, n: usize, k: usize) -> usize {
        size_of::<u32>() * self.units(k) * n.next_multiple_of(LANES)
    }

    /// Packs rows of a weight, `[rows, k]`; all stretches but the last must be of whole panels. To
    /// [`PackedType::Bf16`] numbers are rounded (to nearest, ties to even) and subnormal ones
    /// become zero.
    pub fn pack(self, values: &[f32], k: usize, on: &dyn Executor) -> Vec<u32> {
        self.pack_by(Isa::of_this_cpu(), values, k, on)
    }

    fn pack_by(self, isa: Isa, values: &[f32], k: usize, on: &dyn Executor) -> Vec<u32> {
        let n = values.len().checked_div(k).unwrap_or(0);
        let units = self.units(k);
        let mut packed = vec![0u32; units * n.next_multiple_of(LANES)];
        let mat = Mat::new(values, n, k).t();
        let panels = DisjointChunks::new(&mut packed, PANEL * units);
        on.each(n.div_ceil(PANEL), &|panel| {
            let first = panel * PANEL;
            let across = PANEL.min(n - first);
            let part = Part { start: 0, along: k, first, across };
            // SAFETY: every panel is taken by one task.
            let out = unsafe { panels.take(panel) };
            pack::right(isa, self.precision(), &mat, part, across.div_ceil(LANES), out);
        });
        packed
    }
}

/// A slice in pieces that tasks write, each its own.
pub(super) struct DisjointChunks<T> {
    data: *mut T,
    len: usize,
    each: usize,
}

// SAFETY: a piece is used by one thread at a time ([`DisjointChunks::take`]), and outlives no
// borrow of the slice.
unsafe impl<T: Send> Sync for DisjointChunks<T> {}

impl<T> DisjointChunks<T> {
    pub(super) fn new(slice: &mut [T], each: usize) -> Self {
        DisjointChunks { data: slice.as_mut_ptr(), len: slice.len(), each }
    }

    /// Where an element is.
    pub(super) fn at(&self, offset: usize) -> *mut T {
        debug_assert!(offset < self.len);
        self.data.wrapping_add(offset)
    }

    /// The piece with this number; the last one may be shorter.
    ///
    /// # Safety
    /// The slice must be borrowed still, and no piece be taken twice.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn take(&self, number: usize) -> &mut [T] {
        let start = (number * self.each).min(self.len);
        // SAFETY: inside the slice; the caller vouches for the rest.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), self.each.min(self.len - start)) }
    }
}

/// A packed weight `[n, k]`.
#[derive(Clone, Copy, Debug)]
pub struct Prepacked<'a> {
    units: &'a [u32],
    storage: PackedType,
    n: usize,
    k: usize,
}

impl<'a> Prepacked<'a> {
    /// A weight as [`PackedType::pack`] made it; none if the number of bytes is another one or they
    /// are not aligned to 4.
    pub fn new(bytes: &'a [u8], storage: PackedType, n: usize, k: usize) -> Option<Self> {
        let units = bytemuck::try_cast_slice(bytes).ok()?;
        (bytes.len() == storage.bytes(n, k)).then_some(Prepacked { units, storage, n, k })
    }

    /// Outputs of the layer.
    pub fn outputs(&self) -> usize {
        self.n
    }

    /// The panel with this number and its vectors of columns.
    fn panel(&self, number: usize) -> (&'a [u32], usize) {
        let (units, first) = (self.storage.units(self.k), number * PANEL);
        let vectors = PANEL.min(self.n - first).div_ceil(LANES);
        (&self.units[first * units..][..units * vectors * LANES], vectors)
    }

    /// A row of the weight, widened.
    ///
    /// # Panics
    /// If there is no such row, or `out` has not `k` elements.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.n && out.len() == self.k, "row {row} of {} x {} into {}", self.n, self.k, out.len());
        let (panel, vectors) = self.panel(row / PANEL);
        let column = panel.iter().skip(row % PANEL).step_by(vectors * LANES);
        match self.storage {
            PackedType::F32 => out.iter_mut().zip(column).for_each(|(out, unit)| *out = f32::from_bits(*unit)),
            PackedType::Bf16 => out.chunks_mut(2).zip(column).for_each(|(out, unit)| {
                out[0] = f32::from_bits(unit << 16);
                if let Some(second) = out.get_mut(1) {
                    *second = f32::from_bits(unit & 0xffff_0000);
                }
            }),
        }
    }
}

/// The left operand `[m, k]`, as the innermost loops read it.
pub(super) struct InputRows<'a> {
    isa: Isa,
    precision: Precision,
    pub(super) m: usize,
    k: usize,
    units: Units<'a>,
    stride: usize,
}

enum Units<'a> {
    InPlace(&'a [f32]),
    /// Rounded, in a lent buffer.
    Packed(Buffer),
}

impl<'a> InputRows<'a> {
    pub(super) fn new(isa: Isa, precision: Precision, x: &'a [f32], k: usize, on: &dyn Executor) -> Self {
        /// InputRows that a task packs.
        const CHUNK: usize = 64;
        let m = x.len().checked_div(k).unwrap_or(0);
        let (units, stride) = match precision {
            Precision::F32 => (Units::InPlace(x), k),
            Precision::Bf16 => {
                let stride = isa.row_stride(k.div_ceil(precision.per_unit()));
                let mut buffer = arena::alloc(m * stride);
                let chunks = DisjointChunks::new(bytemuck::cast_slice_mut::<f32, u32>(&mut buffer), CHUNK * stride);
                let mat = Mat::new(x, m, k);
                on.each(m.div_ceil(CHUNK), &|chunk| {
                    let first = chunk * CHUNK;
                    let part = Part { start: 0, along: k, first, across: CHUNK.min(m - first) };
                    // SAFETY: every chunk is taken by one task.
                    pack::left(isa, precision, &mat, part, stride, unsafe { chunks.take(chunk) });
                });
                (Units::Packed(buffer), stride)
            }
        };
        InputRows { isa, precision, m, k, units, stride }
    }

    /// The product of `rows` with a panel of `weight`, at `c`, whose rows are `c_stride` apart.
    ///
    /// # Safety
    /// `c` must have room for `rows` rows of the panel's columns, and nothing else use it
    /// meanwhile.
    pub(super) unsafe fn times(
        &self,
        rows: Range<usize>,
        weight: &Prepacked<'_>,
        panel: usize,
        c: *mut f32,
        c_stride: usize,
    ) {
        assert!(rows.end <= self.m && weight.k == self.k, "rows {rows:?} of {} x {}", self.m, self.k);
        let (b, vectors) = weight.panel(panel);
        let columns = PANEL.min(weight.n - panel * PANEL);
        let data: &[f32] = match &self.units {
            Units::InPlace(data) => data,
            Units::Packed(data) => data,
        };
        let depth = self.isa.depth(self.precision) * self.precision.per_unit();
        // An inner dimension of nothing still says what the output is.
        for start in (0..self.k.max(1)).step_by(depth) {
            let along = depth.min(self.k - start);
            let stored = weight.storage.precision().per_unit();
            let b = &b[start / stored * vectors * LANES..];
            let tile = Tile {
                units: along.div_ceil(self.precision.per_unit()),
                a: data[rows.start * self.stride + start / self.precision.per_unit()..].as_ptr().cast(),
                a_stride: self.stride,
                b: b.as_ptr(),
                vectors,
                columns,
                c,
                c_stride,
                alpha: 1.0,
                add: start > 0,
            };
            // SAFETY: `data` holds `m` rows of `stride` units, the panel its units from `start` on;
            // the caller vouches for `c`.
            unsafe {
                match (self.precision, weight.storage) {
                    (Precision::F32, PackedType::Bf16) => widened(self.isa, rows.len(), tile, along, b),
                    _ => microkernel::run(self.isa, self.precision, rows.len(), tile),
                }
            }
        }
    }
}

/// An f32 tile with `along` elements of a panel that is stored in bf16.
///
/// # Safety
/// As [`microkernel::run`], but for the panel: it is `pairs`.
unsafe fn widened(isa: Isa, rows: usize, tile: Tile, along: usize, pairs: &[u32]) {
    #[cfg(target_arch = "x86_64")]
    if rows <= FEW && matches!(isa, Isa::Avx512 | Isa::Avx512Bf16 | Isa::AmxBf16) {
        let tile = Tile { units: along.div_ceil(2), ..tile };
        // SAFETY: the caller's promise; the set has AVX-512.
        return unsafe { super::mixed::run(rows, tile, along % 2 == 1) };
    }
    let width = tile.vectors * LANES;
    with_lines(along * width, |lines| {
        let (pairs, lines) = (&pairs[..along.div_ceil(2) * width], &mut lines[..along * width]);
        crate::simd::simd(
            #[inline(always)]
            || {
                for (pairs, lines) in pairs.chunks_exact(width).zip(lines.chunks_mut(2 * width)) {
                    let (low, high) = lines.split_at_mut(width);
                    low.iter_mut().zip(pairs).for_each(|(unit, pair)| *unit = pair << 16);
                    high.iter_mut().zip(pairs).for_each(|(unit, pair)| *unit = pair & 0xffff_0000);
                }
            },
        );
        // SAFETY: the caller's promise; `lines` are `along` units of `vectors` vectors.
        unsafe { microkernel::run(isa, Precision::F32, rows, Tile { b: lines.as_ptr(), ..tile }) };
    });
}

/// InputRows up to which widening in registers is faster than unpacking a panel for all of them
/// (Zen 5: by a tenth at 32, slower at 48).
#[cfg(target_arch = "x86_64")]
const FEW: usize = 32;

/// InputRows of a task at most: what is computed of them stays in the cache.
pub(super) const MAX_ROWS: usize = 480;

/// InputRows that each task takes of `m`, where there are so many panels.
pub(super) fn rows_of_task(m: usize, panels: usize, most: usize) -> usize {
    let parts = TASKS.div_ceil(panels.max(1)).min(m.div_ceil(ROWS)).max(m.div_ceil(most)).max(1);
    // Whole groups of rows, so that no part ends with a slow remainder.
    m.div_ceil(parts).max(1).next_multiple_of(48)
}

/// A weight and where its product goes.
pub struct PrepackedLinear<'a> {
    /// `[n, k]`.
    pub weight: Prepacked<'a>,
    /// `[m, n]`.
    pub output: &'a mut [f32],
}

/// `y = x W^T` for several weights and one `x` `[m, k]`.
///
/// # Panics
/// If shapes do not fit, or a weight that is not stored in bf16 is to be multiplied in it.
pub fn multiply(precision: Precision, x: &[f32], k: usize, layers: &mut [PrepackedLinear<'_>], on: &dyn Executor) {
    multiply_by(Isa::of_this_cpu(), precision, x, k, layers, on);
}

fn multiply_by(
    isa: Isa,
    precision: Precision,
    x: &[f32],
    k: usize,
    layers: &mut [PrepackedLinear<'_>],
    on: &dyn Executor,
) {
    let left = InputRows::new(isa, precision, x, k, on);
    let panels: usize = layers.iter().map(|layer| layer.weight.n.div_ceil(PANEL)).sum();
    let rows = rows_of_task(left.m, panels, MAX_ROWS);
    let (mut tasks, mut outputs) = (Vec::new(), Vec::new());
    for (number, layer) in layers.iter_mut().enumerate() {
        layer.weight.fits(precision, k);
        assert!(layer.output.len() == left.m * layer.weight.n, "an output of {} elements", layer.output.len());
        for panel in 0..layer.weight.n.div_ceil(PANEL) {
            tasks.extend((0..left.m).step_by(rows).map(|first| (number, panel, first)));
        }
        outputs.push((layer.weight, DisjointChunks::new(layer.output, 1)));
    }
    on.each(tasks.len(), &|task| {
        let (number, panel, first) = tasks[task];
        let (weight, output) = &outputs[number];
        let c = output.at(first * weight.n + panel * PANEL);
        let rows = first..(first + rows).min(left.m);
        // SAFETY: the output has `m` rows of `n` elements, and no two tasks have a tile in common.
        tile_task(|| unsafe { left.times(rows, weight, panel, c, weight.n) });
    });
}

impl Prepacked<'_> {
    pub(super) fn fits(&self, precision: Precision, k: usize) {
        assert!(self.k == k, "a weight [{}, {}] for {k} inputs", self.n, self.k);
        assert!(
            precision == Precision::F32 || self.storage == PackedType::Bf16,
            "a product in bf16 needs a weight stored in it"
        );
    }
}

/// InputRows `ids` of a weight into `output` `[ids, k]`.
///
/// # Panics
/// If an id is none of its rows or the output has another shape.
pub fn gather(weight: Prepacked<'_>, ids: &[usize], output: &mut [f32], on: &dyn Executor) {
    /// InputRows that a task takes.
    const CHUNK: usize = 32;
    assert!(output.len() == ids.len() * weight.k, "{} ids into {}", ids.len(), output.len());
    let rows = DisjointChunks::new(output, CHUNK * weight.k);
    on.each(ids.len().div_ceil(CHUNK), &|chunk| {
        // SAFETY: every chunk is taken by one task.
        let out = unsafe { rows.take(chunk) };
        let ids = &ids[chunk * CHUNK..];
        out.chunks_exact_mut(weight.k.max(1)).zip(ids).for_each(|(out, &id)| weight.row(id, out));
    });
}

#[cfg(test)]
mod tests;
