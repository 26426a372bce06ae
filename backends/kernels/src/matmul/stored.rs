//! Right operands that lie packed in a file, as the innermost loops read them: nothing is packed at run time, and a mapped
//! file is the only copy.
//!
//! A weight `W` `[n, k]` of a linear layer (`y = x W^T`) is cut into panels of [`PANEL`] of its rows, the columns of the
//! product. A panel is `[units][columns]`, columns padded with zeros to a multiple of [`LANES`], units as in [`kernel`]: one
//! f32, or two bf16. Panels follow each other without a gap, so a weight is packed a stretch of rows at a time.
//!
//! A weight stored in bf16 serves both precisions. In f32 it is widened, which is exact: the bits of a product are those of
//! [`super::product`] of the same numbers, in half the bytes. In bf16 it is read as it is.
#![allow(unsafe_code)]

use std::ops::Range;

use super::executor::Executor;
use super::kernel::{self, LANES, PANEL, Precision, Set, Tile};
use super::pack::{self, Part};
use super::{DEPTH, Mat, ROWS, TASKS, with_lines};
use crate::buffers::{self, Buffer};

/// How the numbers of a packed weight are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
}

impl Storage {
    /// The smallest that loses nothing of `values`. Subnormal numbers, which products in bf16 take as zero, need f32.
    pub fn without_loss(values: &[f32]) -> Self {
        let is_bf16 = |x: &f32| x.to_bits() & 0xffff == 0 && !x.is_subnormal();
        if values.iter().all(is_bf16) { Storage::Bf16 } else { Storage::F32 }
    }

    fn precision(self) -> Precision {
        match self {
            Storage::F32 => Precision::F32,
            Storage::Bf16 => Precision::Bf16,
        }
    }

    fn units(self, k: usize) -> usize {
        k.div_ceil(self.precision().per_unit())
    }

    /// Bytes of a packed weight `[n, k]`.
    pub fn bytes(self, n: usize, k: usize) -> usize {
        size_of::<u32>() * self.units(k) * n.next_multiple_of(LANES)
    }

    /// Packs rows of a weight, `[rows, k]`; all stretches but the last must be of whole panels. To [`Storage::Bf16`] numbers
    /// are rounded (to nearest, ties to even) and subnormal ones become zero.
    pub fn pack(self, values: &[f32], k: usize, on: &dyn Executor) -> Vec<u32> {
        self.pack_by(Set::of_this_cpu(), values, k, on)
    }

    fn pack_by(self, set: Set, values: &[f32], k: usize, on: &dyn Executor) -> Vec<u32> {
        let n = values.len().checked_div(k).unwrap_or(0);
        let units = self.units(k);
        let mut packed = vec![0u32; units * n.next_multiple_of(LANES)];
        let mat = Mat::new(values, n, k).t();
        let panels = Pieces::new(&mut packed, PANEL * units);
        on.each(n.div_ceil(PANEL), &|panel| {
            let first = panel * PANEL;
            let across = PANEL.min(n - first);
            let part = Part { start: 0, along: k, first, across };
            // SAFETY: every panel is taken by one task.
            let out = unsafe { panels.take(panel) };
            pack::right(set, self.precision(), &mat, part, across.div_ceil(LANES), out);
        });
        packed
    }
}

/// A slice in pieces that tasks write, each its own.
pub(super) struct Pieces<T> {
    data: *mut T,
    len: usize,
    each: usize,
}

// SAFETY: a piece is used by one thread at a time ([`Pieces::take`]), and outlives no borrow of the slice.
unsafe impl<T: Send> Sync for Pieces<T> {}

impl<T> Pieces<T> {
    pub(super) fn new(slice: &mut [T], each: usize) -> Self {
        Pieces { data: slice.as_mut_ptr(), len: slice.len(), each }
    }

    /// Where an element is.
    fn at(&self, offset: usize) -> *mut T {
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
pub struct Stored<'a> {
    units: &'a [u32],
    storage: Storage,
    n: usize,
    k: usize,
}

impl<'a> Stored<'a> {
    /// A weight as [`Storage::pack`] made it; none if the number of bytes is another one or they are not aligned to 4.
    pub fn new(bytes: &'a [u8], storage: Storage, n: usize, k: usize) -> Option<Self> {
        let units = bytemuck::try_cast_slice(bytes).ok()?;
        (bytes.len() == storage.bytes(n, k)).then_some(Stored { units, storage, n, k })
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
            Storage::F32 => out.iter_mut().zip(column).for_each(|(out, unit)| *out = f32::from_bits(*unit)),
            Storage::Bf16 => out.chunks_mut(2).zip(column).for_each(|(out, unit)| {
                out[0] = f32::from_bits(unit << 16);
                if let Some(second) = out.get_mut(1) {
                    *second = f32::from_bits(unit & 0xffff_0000);
                }
            }),
        }
    }
}

/// The left operand `[m, k]`, as the innermost loops read it.
pub(super) struct Rows<'a> {
    set: Set,
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

impl<'a> Rows<'a> {
    pub(super) fn new(set: Set, precision: Precision, x: &'a [f32], k: usize, on: &dyn Executor) -> Self {
        /// Rows that a task packs.
        const CHUNK: usize = 64;
        let m = x.len().checked_div(k).unwrap_or(0);
        let (units, stride) = match precision {
            Precision::F32 => (Units::InPlace(x), k),
            Precision::Bf16 => {
                let stride = k.div_ceil(precision.per_unit());
                let mut buffer = buffers::take(m * stride);
                let chunks = Pieces::new(bytemuck::cast_slice_mut::<f32, u32>(&mut buffer), CHUNK * stride);
                let mat = Mat::new(x, m, k);
                on.each(m.div_ceil(CHUNK), &|chunk| {
                    let first = chunk * CHUNK;
                    let part = Part { start: 0, along: k, first, across: CHUNK.min(m - first) };
                    // SAFETY: every chunk is taken by one task.
                    pack::left(set, precision, &mat, part, stride, unsafe { chunks.take(chunk) });
                });
                (Units::Packed(buffer), stride)
            }
        };
        Rows { set, precision, m, k, units, stride }
    }

    /// The product of `rows` with a panel of `weight`, at `c`, whose rows are `c_stride` apart.
    ///
    /// # Safety
    /// `c` must have room for `rows` rows of the panel's columns, and nothing else use it meanwhile.
    pub(super) unsafe fn times(
        &self,
        rows: Range<usize>,
        weight: &Stored<'_>,
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
        let depth = DEPTH * self.precision.per_unit();
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
            // SAFETY: `data` holds `m` rows of `stride` units, the panel its units from `start` on; the caller vouches for `c`.
            unsafe {
                match (self.precision, weight.storage) {
                    (Precision::F32, Storage::Bf16) => widened(self.set, rows.len(), tile, along, b),
                    _ => kernel::run(self.set, self.precision, rows.len(), tile),
                }
            }
        }
    }
}

/// An f32 tile with `along` elements of a panel that is stored in bf16.
///
/// # Safety
/// As [`kernel::run`], but for the panel: it is `pairs`.
unsafe fn widened(set: Set, rows: usize, tile: Tile, along: usize, pairs: &[u32]) {
    #[cfg(target_arch = "x86_64")]
    if rows <= FEW && matches!(set, Set::Avx512 | Set::Avx512Bf16 | Set::AmxBf16) {
        let tile = Tile { units: along.div_ceil(2), ..tile };
        // SAFETY: the caller's promise; the set has AVX-512.
        return unsafe { super::widened::run(rows, tile, along % 2 == 1) };
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
        unsafe { kernel::run(set, Precision::F32, rows, Tile { b: lines.as_ptr(), ..tile }) };
    });
}

/// Rows up to which widening in registers is faster than unpacking a panel for all of them.
#[cfg(target_arch = "x86_64")]
const FEW: usize = 16;

/// Rows of a task at most: what is computed of them stays in the cache.
const MOST: usize = 480;

/// Rows that each task takes of `m`, where there are so many panels.
fn rows_of_task(m: usize, panels: usize, most: usize) -> usize {
    let parts = TASKS.div_ceil(panels.max(1)).min(m.div_ceil(ROWS)).max(m.div_ceil(most)).max(1);
    // Whole groups of rows, so that no part ends with a slow remainder.
    m.div_ceil(parts).max(1).next_multiple_of(48)
}

/// A weight and where its product goes.
pub struct Layer<'a> {
    /// `[n, k]`.
    pub weight: Stored<'a>,
    /// `[m, n]`.
    pub output: &'a mut [f32],
}

/// `y = x W^T` for several weights and one `x` `[m, k]`.
///
/// # Panics
/// If shapes do not fit, or a weight that is not stored in bf16 is to be multiplied in it.
pub fn multiply(precision: Precision, x: &[f32], k: usize, layers: &mut [Layer<'_>], on: &dyn Executor) {
    multiply_by(Set::of_this_cpu(), precision, x, k, layers, on);
}

fn multiply_by(set: Set, precision: Precision, x: &[f32], k: usize, layers: &mut [Layer<'_>], on: &dyn Executor) {
    let left = Rows::new(set, precision, x, k, on);
    let panels: usize = layers.iter().map(|layer| layer.weight.n.div_ceil(PANEL)).sum();
    let rows = rows_of_task(left.m, panels, MOST);
    let (mut tasks, mut outputs) = (Vec::new(), Vec::new());
    for (number, layer) in layers.iter_mut().enumerate() {
        layer.weight.fits(precision, k);
        assert!(layer.output.len() == left.m * layer.weight.n, "an output of {} elements", layer.output.len());
        for panel in 0..layer.weight.n.div_ceil(PANEL) {
            tasks.extend((0..left.m).step_by(rows).map(|first| (number, panel, first)));
        }
        outputs.push((layer.weight, Pieces::new(layer.output, 1)));
    }
    on.each(tasks.len(), &|task| {
        let (number, panel, first) = tasks[task];
        let (weight, output) = &outputs[number];
        let c = output.at(first * weight.n + panel * PANEL);
        // SAFETY: the output has `m` rows of `n` elements, and no two tasks have a tile in common.
        unsafe { left.times(first..(first + rows).min(left.m), weight, panel, c, weight.n) };
    });
}

impl Stored<'_> {
    pub(super) fn fits(&self, precision: Precision, k: usize) {
        assert!(self.k == k, "a weight [{}, {}] for {k} inputs", self.n, self.k);
        assert!(
            precision == Precision::F32 || self.storage == Storage::Bf16,
            "a product in bf16 needs a weight stored in it"
        );
    }
}

/// `silu(x G^T) * (x U^T)`, `silu(z) = z / (1 + e^-z)` (Shazeer, arXiv 2002.05202), of `x` `[m, k]` into `output` `[m, n]`.
///
/// # Panics
/// As [`multiply`].
pub fn swiglu(
    precision: Precision,
    x: &[f32],
    k: usize,
    [gate, up]: [Stored<'_>; 2],
    output: &mut [f32],
    on: &dyn Executor,
) {
    swiglu_by(Set::of_this_cpu(), precision, x, k, [gate, up], output, on);
}

fn swiglu_by(
    set: Set,
    precision: Precision,
    x: &[f32],
    k: usize,
    [gate, up]: [Stored<'_>; 2],
    output: &mut [f32],
    on: &dyn Executor,
) {
    let left = Rows::new(set, precision, x, k, on);
    let n = gate.n;
    gate.fits(precision, k);
    up.fits(precision, k);
    assert!(up.n == n && output.len() == left.m * n, "gate and up of {n} and {}, output {}", up.n, output.len());
    let panels = n.div_ceil(PANEL);
    let rows = rows_of_task(left.m, panels, MOST / 2);
    let parts = left.m.div_ceil(rows);
    let output = Pieces::new(output, 1);
    on.each(panels * parts, &|task| {
        let (panel, first) = (task / parts, task % parts * rows);
        let rows = first..(first + rows).min(left.m);
        let columns = PANEL.min(n - panel * PANEL);
        let size = rows.len() * columns;
        let mut both = buffers::take(2 * size);
        let (gates, ups) = both.split_at_mut(size);
        // SAFETY: the buffers have room for these rows of the panel's columns, and are this task's own.
        unsafe {
            left.times(rows.clone(), &gate, panel, gates.as_mut_ptr(), columns);
            left.times(rows.clone(), &up, panel, ups.as_mut_ptr(), columns);
        }
        for (i, row) in rows.enumerate() {
            // SAFETY: a row of the panel's columns inside the output; no two tasks have a tile in common.
            let out = unsafe { std::slice::from_raw_parts_mut(output.at(row * n + panel * PANEL), columns) };
            let (gates, ups) = (&gates[i * columns..][..columns], &ups[i * columns..][..columns]);
            crate::simd::simd(
                #[inline(always)]
                || {
                    for ((out, &gate), &up) in out.iter_mut().zip(gates).zip(ups) {
                        *out = gate * crate::simd::sigmoid(gate) * up;
                    }
                },
            );
        }
    });
}

/// Rows `ids` of a weight into `output` `[ids, k]`.
///
/// # Panics
/// If an id is none of its rows or the output has another shape.
pub fn gather(weight: Stored<'_>, ids: &[usize], output: &mut [f32], on: &dyn Executor) {
    /// Rows that a task takes.
    const CHUNK: usize = 32;
    assert!(output.len() == ids.len() * weight.k, "{} ids into {}", ids.len(), output.len());
    let rows = Pieces::new(output, CHUNK * weight.k);
    on.each(ids.len().div_ceil(CHUNK), &|chunk| {
        // SAFETY: every chunk is taken by one task.
        let out = unsafe { rows.take(chunk) };
        let ids = &ids[chunk * CHUNK..];
        out.chunks_exact_mut(weight.k.max(1)).zip(ids).for_each(|(out, &id)| weight.row(id, out));
    });
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::super::{MatMut, Threads, product};
    use super::*;
    use crate::mapped::Elements;
    use crate::testing::{noise, with_threads};

    const SHAPES: [(usize, usize, usize); 9] = [
        (1, 1, 1),
        (1, 300, 40),
        (2, 70, 700),
        (5, 8, 513),
        (33, 200, 1027),
        (130, 65, 1029),
        (500, 49, 66),
        (3, 129, 2),
        (0, 20, 7),
    ];

    fn sets() -> Vec<Set> {
        let all = [Set::Portable, Set::Avx512, Set::Avx512Bf16];
        all.into_iter().filter(|set| *set <= Set::of_this_cpu()).collect()
    }

    fn bytes(packed: &[u32]) -> &[u8] {
        bytemuck::cast_slice(packed)
    }

    /// The product of the same numbers by the kernels that pack as they go.
    fn unpacked(precision: Precision, x: &[f32], w: &[bf16], (m, n, k): (usize, usize, usize)) -> Vec<f32> {
        let mut want = vec![0f32; m * n];
        let weight = Mat::of(Elements::Bf16(w), n, k).t();
        product(precision, MatMut::new(&mut want, m, n), 1.0, Mat::new(x, m, k), weight, false, Threads::One);
        want
    }

    #[test]
    fn a_stored_weight_gives_the_bits_of_a_plain_product_in_every_shape_and_instruction_set() {
        for (m, n, k) in SHAPES {
            let (x, w) = (noise(m * k, 1), noise(n * k, 2));
            let narrow: Vec<bf16> = w.iter().map(|x| bf16::from_f32(*x)).collect();
            let wide: Vec<f32> = narrow.iter().map(|x| x.to_f32()).collect();
            for set in sets() {
                for (storage, precision) in
                    [(Storage::F32, Precision::F32), (Storage::Bf16, Precision::F32), (Storage::Bf16, Precision::Bf16)]
                {
                    let packed = storage.pack_by(set, &wide, k, &Threads::One);
                    assert_eq!(bytes(&packed).len(), storage.bytes(n, k));
                    let weight = Stored::new(bytes(&packed), storage, n, k).unwrap();
                    let mut got = vec![f32::NAN; m * n];
                    let mut layers = [Layer { weight, output: &mut got }];
                    multiply_by(set, precision, &x, k, &mut layers, &Threads::Pool);
                    let want = unpacked(precision, &x, &narrow, (m, n, k));
                    assert!(got == want, "{set:?} {storage:?} {precision:?} {m}x{n}x{k}");
                }
            }
        }
    }

    #[test]
    fn rounding_into_storage_is_rounding_of_the_product() {
        let (m, n, k) = (7, 130, 77);
        let (x, w) = (noise(m * k, 1), noise(n * k, 2));
        let mut want = vec![0f32; m * n];
        let weight = Mat::new(&w, n, k).t();
        product(Precision::Bf16, MatMut::new(&mut want, m, n), 1.0, Mat::new(&x, m, k), weight, false, Threads::One);
        let packed = Storage::Bf16.pack(&w, k, &Threads::Pool);
        let weight = Stored::new(bytes(&packed), Storage::Bf16, n, k).unwrap();
        let mut got = vec![0f32; m * n];
        multiply(Precision::Bf16, &x, k, &mut [Layer { weight, output: &mut got }], &Threads::Pool);
        assert!(got == want);
    }

    #[test]
    fn a_weight_packed_in_stretches_of_panels_is_the_weight_packed_at_once() {
        let (n, k) = (64 * 3 + 20, 33);
        let w = noise(n * k, 4);
        for storage in [Storage::F32, Storage::Bf16] {
            let whole = storage.pack(&w, k, &Threads::Pool);
            let parts = w.chunks(2 * PANEL * k).flat_map(|rows| storage.pack(rows, k, &Threads::One));
            assert_eq!(parts.collect::<Vec<u32>>(), whole);
        }
    }

    #[test]
    fn rows_come_back_as_they_went_in() {
        for (n, k) in [(1, 1), (70, 5), (200, 64), (64, 33)] {
            let w: Vec<f32> = noise(n * k, 6).iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
            for storage in [Storage::F32, Storage::Bf16] {
                let packed = storage.pack(&w, k, &Threads::Pool);
                let weight = Stored::new(bytes(&packed), storage, n, k).unwrap();
                let ids: Vec<usize> = (0..3 * n).map(|i| i * 7 % n).collect();
                let mut got = vec![0f32; ids.len() * k];
                gather(weight, &ids, &mut got, &Threads::Pool);
                let want: Vec<f32> = ids.iter().flat_map(|id| w[id * k..][..k].to_vec()).collect();
                assert_eq!(got, want);
            }
        }
    }

    #[test]
    fn what_bf16_would_lose_is_stored_in_f32() {
        assert_eq!(Storage::without_loss(&[1.0, -0.0, 0.15625, f32::INFINITY]), Storage::Bf16);
        assert_eq!(Storage::without_loss(&[1.0, 0.1]), Storage::F32);
        // A bf16, but one that products in bf16 take as zero.
        assert_eq!(Storage::without_loss(&[f32::from_bits(1 << 16)]), Storage::F32);
        assert!(Stored::new(bytes(&[0; 16]), Storage::Bf16, 1, 3).is_none());
        assert!(Stored::new(bytes(&[0; 32]), Storage::Bf16, 1, 3).is_some());
    }

    #[test]
    fn several_weights_at_once_are_the_same_as_one_by_one_on_any_number_of_threads() {
        let (m, k) = (150, 96);
        let x = noise(m * k, 1);
        let weights: Vec<(usize, Vec<u32>)> =
            [90, 8, 64].map(|n| (n, Storage::Bf16.pack(&noise(n * k, n as u64), k, &Threads::One))).into();
        for precision in [Precision::F32, Precision::Bf16] {
            let run = |which: &[usize], threads| {
                let mut outputs: Vec<Vec<f32>> = which.iter().map(|&i| vec![0f32; m * weights[i].0]).collect();
                let mut layers: Vec<Layer<'_>> = Vec::new();
                for (&i, output) in which.iter().zip(&mut outputs) {
                    let (n, packed) = &weights[i];
                    layers.push(Layer { weight: Stored::new(bytes(packed), Storage::Bf16, *n, k).unwrap(), output });
                }
                with_threads(threads, || multiply(precision, &x, k, &mut layers, &Threads::Pool));
                outputs
            };
            let together = run(&[0, 1, 2], 3);
            assert!(together == [run(&[0], 1), run(&[1], 2), run(&[2], 1)].concat());
        }
    }

    #[test]
    fn swiglu_is_the_two_products_and_the_gate_in_every_instruction_set() {
        for (m, n, k) in [(1, 70, 33), (250, 130, 600), (17, 64, 64)] {
            let (x, g, u) = (noise(m * k, 1), noise(n * k, 2), noise(n * k, 3));
            let packed = [&g, &u].map(|w| Storage::Bf16.pack(w, k, &Threads::Pool));
            let weights = [0, 1].map(|i| Stored::new(bytes(&packed[i]), Storage::Bf16, n, k).unwrap());
            for precision in [Precision::F32, Precision::Bf16] {
                let products = weights.map(|weight| {
                    let mut output = vec![0f32; m * n];
                    multiply(precision, &x, k, &mut [Layer { weight, output: &mut output }], &Threads::Pool);
                    output
                });
                let want: Vec<f32> = products[0]
                    .iter()
                    .zip(&products[1])
                    .map(|(&gate, &up)| gate * crate::simd::sigmoid(gate) * up)
                    .collect();
                for set in sets() {
                    let mut got = vec![0f32; m * n];
                    swiglu_by(set, precision, &x, k, weights, &mut got, &Threads::Pool);
                    assert!(got == want, "{set:?} {precision:?} {m}x{n}x{k}");
                }
            }
        }
    }
}
