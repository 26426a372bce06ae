//! Matrix products, through the `gemm` crate.
//!
//! An element of a product is the same bits whatever the other rows and columns are, on any number of threads and any
//! instruction set: the general kernel of `gemm` runs one chain of fused multiply-adds over the inner dimension for
//! each element, as long as that dimension fits its depth block. So the inner dimension is cut here in blocks of
//! `DEPTH`, and the shapes for which `gemm` switches to kernels that sum in another order (outer products, single
//! rows or columns, tiny outputs) are padded or done by the plain loop below.
#![allow(unsafe_code)]

use gemm::Parallelism;

use super::mapped::Elements;
use super::simd::simd;

/// Inner dimensions beyond this are summed block by block; `gemm` never splits one of at most 512 by itself.
const DEPTH: usize = 512;
/// Outputs with at most so many elements would go to a kernel of another order of summation.
const TINY: usize = 256;

/// A read-only matrix with any strides.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// A row-major matrix without gaps.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }
    /// A row-major matrix without gaps, of numbers as they are stored.
    pub fn of(data: Elements<'a>, rows: usize, cols: usize) -> Self {
        match data {
            Elements::F32(data) => Self::new(data, rows, cols),
            _ => unreachable!("frozen weights of 16 bits are widened on load"),
        }
    }
    /// A row-major matrix whose rows start `row_stride` elements apart.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        check(data.len(), rows, cols, row_stride);
        Mat { data, rows, cols, row_stride, col_stride: 1 }
    }
    /// The transposed matrix; nothing moves.
    pub fn t(self) -> Self {
        Mat {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            data: self.data,
        }
    }
    fn at(&self, i: usize, j: usize) -> f32 {
        self.data[i * self.row_stride + j * self.col_stride]
    }
}

/// A writable row-major matrix.
pub struct MatMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
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

/// Whether a product may use the threads of the current rayon pool.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread alone: for products inside a parallel loop.
    One,
    /// All of the pool.
    Pool,
}

/// `c = alpha a b` or, with `add`, `c += alpha a b`.
pub fn product(c: MatMut<'_>, alpha: f32, a: Mat<'_>, b: Mat<'_>, add: bool, threads: Threads) {
    let (m, n, k) = (c.rows, c.cols, a.cols);
    assert!(a.rows == m && b.cols == n && b.rows == k, "product of {}x{k} and {}x{}", a.rows, b.rows, b.cols);
    if m == 0 || n == 0 {
        return;
    }
    if k <= 2 || n == 1 || (m * n <= TINY && m * k * n <= 1 << 18) {
        return plain(c, alpha, a, b, add);
    }
    // A single row, or few rows of few columns: more rows make it a shape of the general kernel.
    if m == 1 || m * n <= TINY {
        let rows = (TINY / n + 1).max(2);
        let mut padded_a = vec![0f32; rows * k];
        for i in 0..m {
            for j in 0..k {
                padded_a[i * k + j] = a.at(i, j);
            }
        }
        let mut padded_c = vec![0f32; rows * n];
        if add {
            for i in 0..m {
                padded_c[i * n..(i + 1) * n].copy_from_slice(&c.data[i * c.row_stride..][..n]);
            }
        }
        blocks(MatMut::new(&mut padded_c, rows, n), alpha, Mat::new(&padded_a, rows, k), b, add, threads);
        for i in 0..m {
            c.data[i * c.row_stride..][..n].copy_from_slice(&padded_c[i * n..(i + 1) * n]);
        }
        return;
    }
    blocks(c, alpha, a, b, add, threads);
}

/// The general kernel, one block of the inner dimension after the other.
fn blocks(c: MatMut<'_>, alpha: f32, a: Mat<'_>, b: Mat<'_>, add: bool, threads: Threads) {
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        Threads::Pool => Parallelism::Rayon(0),
    };
    for start in (0..a.cols).step_by(DEPTH) {
        let depth = DEPTH.min(a.cols - start);
        let (lhs, rhs) = (&a.data[start * a.col_stride..], &b.data[start * b.row_stride..]);
        // SAFETY: the constructors of `Mat` and `MatMut` checked that the last element of each matrix lies inside its
        // slice (`t` swaps rows with columns and their strides with them, so the extent stays the same), and a block
        // of the inner dimension ends where the matrix ends at the latest. `c` is borrowed mutably, so it overlaps
        // neither operand, and its rows do not overlap each other.
        unsafe {
            gemm::gemm(
                c.rows,
                c.cols,
                depth,
                c.data.as_mut_ptr(),
                1,
                c.row_stride as isize,
                add || start > 0,
                lhs.as_ptr(),
                a.col_stride as isize,
                a.row_stride as isize,
                rhs.as_ptr(),
                b.col_stride as isize,
                b.row_stride as isize,
                1.0,
                alpha,
                false,
                false,
                false,
                parallelism,
            );
        }
    }
}

/// One chain of fused multiply-adds an element, as in the general kernel, for shapes too small for it.
fn plain(c: MatMut<'_>, alpha: f32, a: Mat<'_>, b: Mat<'_>, add: bool) {
    simd(
        #[inline(always)]
        || {
            for i in 0..c.rows {
                for j in 0..c.cols {
                    let out = &mut c.data[i * c.row_stride + j];
                    let mut total = if add { *out } else { 0.0 };
                    for start in (0..a.cols).step_by(DEPTH) {
                        let mut sum = 0f32;
                        for l in start..(start + DEPTH).min(a.cols) {
                            sum = a.at(i, l).mul_add(b.at(l, j), sum);
                        }
                        total = alpha.mul_add(sum, total);
                    }
                    *out = total;
                }
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{noise, with_threads};

    fn reference(m: usize, n: usize, k: usize, a: &[f32], b: &[f32]) -> Vec<f64> {
        let mut c = vec![0f64; m * n];
        for i in 0..m {
            for j in 0..n {
                c[i * n + j] = (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[l * n + j])).sum();
            }
        }
        c
    }

    fn transposed(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
        (0..cols).flat_map(|j| (0..rows).map(move |i| x[i * cols + j])).collect()
    }

    const SHAPES: [(usize, usize, usize); 9] = [
        (1, 1, 1),
        (1, 300, 40),
        (2, 3, 700),
        (5, 8, 64),
        (33, 8, 192),
        (64, 192, 1300),
        (130, 70, 2),
        (40, 1, 9),
        (1, 64, 100),
    ];

    #[test]
    fn products_of_all_layouts_match_f64() {
        for (m, n, k) in SHAPES {
            let (a, b) = (noise(m * k, 1), noise(k * n, 2));
            let want = reference(m, n, k, &a, &b);
            let (at, bt) = (transposed(&a, m, k), transposed(&b, k, n));
            let lhs = [Mat::new(&a, m, k), Mat::new(&at, k, m).t()];
            let rhs = [Mat::new(&b, k, n), Mat::new(&bt, n, k).t()];
            for a in lhs {
                for b in rhs {
                    let mut c = vec![1f32; m * n];
                    product(MatMut::new(&mut c, m, n), 0.5, a, b, true, Threads::Pool);
                    product(MatMut::new(&mut c, m, n), 1.0, a, b, true, Threads::One);
                    for (c, want) in c.iter().zip(&want) {
                        assert!((f64::from(*c) - 1.0 - 1.5 * want).abs() < 1e-4 * (1.0 + k as f64).sqrt());
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_the_other_rows_nor_on_threads() {
        for (n, k) in [(192, 192), (8, 192), (192, 8), (64, 1100), (500, 576)] {
            let (a, b) = (noise(200 * k, 3), noise(n * k, 4));
            let mut whole = vec![0f32; 200 * n];
            let (w, x) = (Mat::new(&b, n, k).t(), Mat::new(&a, 200, k));
            with_threads(1, || product(MatMut::new(&mut whole, 200, n), 1.0, x, w, false, Threads::Pool));
            for threads in [2, 3] {
                let mut again = vec![0f32; 200 * n];
                with_threads(threads, || product(MatMut::new(&mut again, 200, n), 1.0, x, w, false, Threads::Pool));
                assert_eq!(whole, again, "{threads} threads");
            }
            for rows in [1, 2, 3, 7, 31, 32, 33, 64, 65, 199] {
                let mut part = vec![0f32; rows * n];
                let x = Mat::new(&a[k..], rows, k);
                product(MatMut::new(&mut part, rows, n), 1.0, x, w, false, Threads::Pool);
                assert_eq!(whole[n..(1 + rows) * n], part, "{rows} rows of {n} from {k}");
            }
        }
    }
}
