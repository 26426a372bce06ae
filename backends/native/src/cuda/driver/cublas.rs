//! The arguments of a GEMM in the column-major terms of cuBLAS.

use std::ffi::c_int;

use karat_backend::BackendError;

use super::api::{self, Address};
use crate::cuda::device::{Element, Gemm, Matrix};
use crate::error::Result;

/// A product as cuBLAS takes it. Its matrices are column-major, so that ours are their transposes:
/// it is asked for `C^T = op(B)^T op(A)^T`, the operands exchanged.
#[derive(Debug, PartialEq)]
pub struct GemmCall {
    /// Rows of `C^T`.
    pub m: c_int,
    /// Its columns.
    pub n: c_int,
    /// Length of the sums.
    pub k: c_int,
    /// Its left operand, our right one.
    pub a: Column,
    /// Its right operand.
    pub b: Column,
    /// The result.
    pub c: Column,
}

/// One matrix of it.
#[derive(Debug, PartialEq)]
pub struct Column {
    /// Its first element.
    pub address: Address,
    /// `cublasOperation_t`.
    pub operation: c_int,
    /// `cudaDataType`.
    pub element: c_int,
    /// Elements from one column to the next.
    pub leading: c_int,
    /// Elements from one matrix of a batch to the next.
    pub batch: i64,
}

impl GemmCall {
    /// The call for `g`.
    ///
    /// # Errors
    /// If a matrix does not lie inside its buffer, or the result is transposed.
    pub fn of(g: &Gemm<'_>) -> Result<Self> {
        let Gemm { m, n, k, batch, .. } = *g;
        let stored = |x: &Matrix<'_>, [rows, columns]: [usize; 2]| -> Result<Column> {
            let [rows, columns] = if x.transposed { [columns, rows] } else { [rows, columns] };
            let size = x.element.size();
            let last = x.first + (batch.max(1) - 1) * x.batch_stride + rows.saturating_sub(1) * x.stride + columns;
            if x.stride < columns || last * size > x.buffer.raw().bytes || i32::try_from(x.stride).is_err() {
                return Err(BackendError::failed(format!(
                    "a matrix [{rows}, {columns}] with rows {} apart from {} on does not fit a buffer of {} bytes",
                    x.stride,
                    x.first,
                    x.buffer.raw().bytes
                )));
            }
            Ok(Column {
                address: x.buffer.raw().address + (x.first * size) as u64,
                operation: if x.transposed { api::blas::TRANSPOSED } else { api::blas::AS_IS },
                element: match x.element {
                    Element::F32 => api::blas::F32,
                    Element::Bf16 => api::blas::BF16,
                },
                leading: x.stride as c_int,
                batch: x.batch_stride as i64,
            })
        };
        if g.c.transposed {
            return Err(BackendError::failed("the result of a product cannot be transposed"));
        }
        Ok(GemmCall {
            m: n as c_int,
            n: m as c_int,
            k: k as c_int,
            a: stored(&g.b, [k, n])?,
            b: stored(&g.a, [m, k])?,
            c: stored(&g.c, [m, n])?,
        })
    }
}

#[cfg(test)]
#[allow(unsafe_code)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cuda::device::{DeviceBuffer, Gpu};
    use crate::cuda::emulator::Emulator;

    /// `cublasGemmStridedBatchedEx` as cuBLAS's reference defines it, on the memory of the
    /// emulator, in f32.
    fn column_major(call: &GemmCall, alpha: f32, beta: f32, batch: usize) {
        let at = |x: &Column, row: usize, column: usize, b: usize| -> *mut f32 {
            let (row, column) = if x.operation == api::blas::TRANSPOSED { (column, row) } else { (row, column) };
            (x.address as *mut f32).wrapping_add(row + column * x.leading as usize + b * x.batch as usize)
        };
        for b in 0..batch {
            for (i, j) in (0..call.m as usize).flat_map(|i| (0..call.n as usize).map(move |j| (i, j))) {
                // SAFETY: `GemmCall::of` has checked that the matrices lie inside their buffers.
                unsafe {
                    let sum: f32 = (0..call.k as usize).map(|l| *at(&call.a, i, l, b) * *at(&call.b, l, j, b)).sum();
                    let c = at(&call.c, i, j, b);
                    *c = alpha * sum + if beta == 0.0 { 0.0 } else { beta * *c };
                }
            }
        }
    }

    #[test]
    fn products_are_handed_to_cublas_as_its_reference_asks() {
        let Ok(emulator) = Emulator::new() else {
            eprintln!("skipped: no C++ compiler");
            return;
        };
        let gpu: Arc<dyn Gpu> = emulator;
        let ([m, n, k], first) = ([5, 7, 3], 8);
        for case in 0..16 {
            let (a_t, b_t, wide) = (case & 1 > 0, case & 2 > 0, case & 4 > 0);
            let (batch, beta) = if case & 8 > 0 { (3, 0.5) } else { (1, 0.0) };
            let fill = |seed: usize| -> DeviceBuffer {
                let data: Vec<f32> = (0..400).map(|i| ((i * 37 + seed * 11) % 19) as f32 - 9.0).collect();
                let buffer = DeviceBuffer::new(&gpu, 1600).unwrap();
                gpu.upload(bytemuck::cast_slice(&data), buffer.raw(), 0).unwrap();
                buffer
            };
            let (a, b, ours, theirs) = (fill(1), fill(2), fill(3), fill(3));
            let matrix = |buffer, rows: usize, columns: usize, transposed: bool| {
                let [rows, columns] = if transposed { [columns, rows] } else { [rows, columns] };
                // Rows of a matrix may lie further apart than they are long.
                let stride = columns + if wide { 4 } else { 0 };
                Matrix { buffer, first, element: Element::F32, stride, batch_stride: rows * stride, transposed }
            };
            let product = |c| Gemm {
                m,
                n,
                k,
                alpha: 2.0,
                a: matrix(&a, m, k, a_t),
                b: matrix(&b, k, n, b_t),
                beta,
                c: matrix(c, m, n, false),
                batch,
            };
            gpu.gemm(&product(&ours)).unwrap();
            column_major(&GemmCall::of(&product(&theirs)).unwrap(), 2.0, beta, batch);
            let read = |buffer: &DeviceBuffer| {
                let mut data = vec![0f32; 400];
                gpu.download(buffer.raw(), 0, bytemuck::cast_slice_mut(&mut data)).unwrap();
                data
            };
            // Small whole numbers: equal to the bit, whatever the order of the sums.
            assert_eq!(read(&ours), read(&theirs), "case {case}");
        }
        let small = DeviceBuffer::new(&gpu, 16).unwrap();
        let x =
            Matrix { buffer: &small, first: 0, element: Element::F32, stride: 2, batch_stride: 0, transposed: false };
        let beyond = Gemm { m: 3, n: 2, k: 2, alpha: 1.0, a: x, b: x, beta: 0.0, c: x, batch: 1 };
        assert!(GemmCall::of(&beyond).unwrap_err().message.contains("does not fit"));
    }
}
