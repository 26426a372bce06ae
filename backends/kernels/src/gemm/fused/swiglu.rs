//! Fused SwiGLU: `silu(x G^T) * (x U^T)`, the gate applied while the outputs of both GEMMs are in
//! the cache.
#![allow(unsafe_code)]

use crate::gemm::amx::task as tile_task;
use crate::gemm::executor::Executor;
use crate::gemm::isa::Isa;
use crate::gemm::prepacked::{DisjointChunks, InputRows, MAX_ROWS, Prepacked, rows_of_task};
use crate::gemm::tile::{PANEL, Precision};
use crate::memory::arena;
use crate::simd;

/// `silu(x G^T) * (x U^T)`, `silu(z) = z / (1 + e^-z)` (Shazeer, arXiv 2002.05202), of `x` `[m, k]`
/// into `output` `[m, n]`.
///
/// # Panics
/// As [`multiply`](crate::gemm::prepacked::multiply).
pub fn swiglu(
    precision: Precision,
    x: &[f32],
    k: usize,
    [gate, up]: [Prepacked<'_>; 2],
    output: &mut [f32],
    on: &dyn Executor,
) {
    swiglu_by(Isa::of_this_cpu(), precision, x, k, [gate, up], output, on);
}

pub(in crate::gemm) fn swiglu_by(
    isa: Isa,
    precision: Precision,
    x: &[f32],
    k: usize,
    [gate, up]: [Prepacked<'_>; 2],
    output: &mut [f32],
    on: &dyn Executor,
) {
    let left = InputRows::new(isa, precision, x, k, on);
    let n = gate.outputs();
    gate.fits(precision, k);
    up.fits(precision, k);
    assert!(
        up.outputs() == n && output.len() == left.m * n,
        "gate and up of {n} and {}, output {}",
        up.outputs(),
        output.len()
    );
    let panels = n.div_ceil(PANEL);
    let rows = rows_of_task(left.m, panels, MAX_ROWS / 2);
    let parts = left.m.div_ceil(rows);
    let output = DisjointChunks::new(output, 1);
    on.each(panels * parts, &|task| {
        let (panel, first) = (task / parts, task % parts * rows);
        let rows = first..(first + rows).min(left.m);
        let columns = PANEL.min(n - panel * PANEL);
        let size = rows.len() * columns;
        let mut both = arena::alloc(2 * size);
        let (gates, ups) = both.split_at_mut(size);
        // SAFETY: the buffers have room for these rows of the panel's columns, and are this task's
        // own.
        tile_task(|| unsafe {
            left.times(rows.clone(), &gate, panel, gates.as_mut_ptr(), columns);
            left.times(rows.clone(), &up, panel, ups.as_mut_ptr(), columns);
        });
        for (i, row) in rows.enumerate() {
            // SAFETY: a row of the panel's columns inside the output; no two tasks have a tile in
            // common.
            let out = unsafe { std::slice::from_raw_parts_mut(output.at(row * n + panel * PANEL), columns) };
            let (gates, ups) = (&gates[i * columns..][..columns], &ups[i * columns..][..columns]);
            simd::simd(
                #[inline(always)]
                || {
                    for ((out, &gate), &up) in out.iter_mut().zip(gates).zip(ups) {
                        *out = gate * simd::sigmoid(gate) * up;
                    }
                },
            );
        }
    });
}
