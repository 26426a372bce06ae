//! LoRA down-projections `x A^T`, and the gradients of up-projections, in bf16: skinny GEMMs.
//!
//! Such a product reads a large operand for little arithmetic, and takes no longer for starting
//! threads only if several are made at once: those that read the same rows are made side by side,
//! and what comes out is rounded where it is made.

use half::bf16;
use rayon::prelude::*;

use karat_kernels::gemm::skinny::{self, SkinnyRhs};
use karat_kernels::gemm::{Mat, narrow_here};
use karat_kernels::memory::arena;

/// Rows that a task takes.
const ROWS: usize = 48;

/// One output of a down-projection: some of its columns, scaled.
pub struct DownOutput<'a> {
    /// Columns: the adapter's rank.
    pub columns: usize,
    /// Factor of each element.
    pub factor: f32,
    /// `[rows, columns]`.
    pub out: &'a mut [bf16],
}

/// A product `[rows, k]` by `[k, columns]`, its columns shared out.
pub struct LoraDown<'a> {
    /// `[rows, k]`.
    pub x: Mat<'a>,
    /// `[k, columns]`.
    pub w: SkinnyRhs,
    /// All of its columns in their order.
    pub to: Vec<DownOutput<'a>>,
}

/// Makes them all, each element rounded once, after its factor.
pub fn lora_down(all: Vec<LoraDown<'_>>) {
    /// Rows of a product, and where its columns go.
    struct Task<'a, 'b> {
        x: Mat<'a>,
        w: &'b SkinnyRhs,
        to: Vec<DownOutput<'b>>,
    }
    let mut all = all;
    let mut tasks: Vec<Task<'_, '_>> = Vec::new();
    for LoraDown { x, w, to } in &mut all {
        let ((rows, k), before) = (x.dims(), tasks.len());
        for first in (0..rows).step_by(ROWS) {
            let part = x.part(first..(first + ROWS).min(rows), 0..k);
            tasks.push(Task { x: part, w, to: Vec::with_capacity(to.len()) });
        }
        for DownOutput { columns, factor, out } in to {
            let parts = out.chunks_mut((ROWS * *columns).max(1));
            tasks[before..]
                .iter_mut()
                .zip(parts)
                .for_each(|(task, out)| task.to.push(DownOutput { columns: *columns, factor: *factor, out }));
        }
    }
    tasks.into_par_iter().with_max_len(1).for_each(|Task { x, w, to }| {
        let width = w.count();
        let mut product = arena::alloc(x.dims().0 * width);
        skinny::gemm(x, w, &mut product);
        let (mut first, mut mine) = (0, Vec::with_capacity(product.len()));
        for DownOutput { columns, factor, out } in to {
            mine.clear();
            for row in product.chunks_exact(width.max(1)) {
                mine.extend(row[first..first + columns].iter().map(|x| factor * x));
            }
            narrow_here(&mine, out);
            first += columns;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{noise, with_threads};

    fn rounded(x: &[f32]) -> Vec<bf16> {
        let mut y = vec![bf16::ZERO; x.len()];
        narrow_here(x, &mut y);
        y
    }

    #[test]
    fn products_made_at_once_have_the_bits_of_each_alone_on_any_number_of_threads() {
        // Ranks odd, even and larger than a tile; rows in one task and in several; inner dimensions
        // of several blocks.
        for (rows, k, ranks) in [(5, 70, vec![8, 3, 1]), (130, 1100, vec![8, 8, 8]), (97, 40, vec![64, 70])] {
            let (x, y) = (rounded(&noise(rows * k, 1)), rounded(&noise(rows * k, 2)));
            let weights: Vec<Vec<f32>> = ranks.iter().map(|r| noise(r * k, *r as u64)).collect();
            let turned = noise(k * 5, 9);
            let alone = |x: &[bf16], w: Mat<'_>, factor: f32| {
                let mut wide = vec![0f32; rows * w.dims().1];
                skinny::gemm(Mat::narrowed(x, rows, k), &SkinnyRhs::new(k, &[w]), &mut wide);
                wide.iter_mut().for_each(|x| *x *= factor);
                rounded(&wide)
            };
            let mut want: Vec<Vec<bf16>> = weights
                .iter()
                .zip(&ranks)
                .enumerate()
                .map(|(i, (w, r))| alone(&x, Mat::new(w, *r, k).t(), 1.1 + i as f32))
                .collect();
            want.push(alone(&y, Mat::new(&turned, k, 5), 0.3));
            for threads in [1, 2, 3] {
                let mut got: Vec<Vec<bf16>> = want.iter().map(|x| vec![bf16::ONE; x.len()]).collect();
                let (last, first) = got.split_last_mut().unwrap();
                let to = first.iter_mut().zip(&ranks).enumerate();
                let to = to
                    .map(|(i, (to, r))| DownOutput { columns: *r, factor: 1.1 + i as f32, out: &mut to[..] })
                    .collect();
                let matrices: Vec<Mat<'_>> = weights.iter().zip(&ranks).map(|(w, r)| Mat::new(w, *r, k).t()).collect();
                let jobs = vec![
                    LoraDown { x: Mat::narrowed(&x, rows, k), w: SkinnyRhs::new(k, &matrices), to },
                    LoraDown {
                        x: Mat::narrowed(&y, rows, k),
                        w: SkinnyRhs::new(k, &[Mat::new(&turned, k, 5)]),
                        to: vec![DownOutput { columns: 5, factor: 0.3, out: last }],
                    },
                ];
                with_threads(threads, || lora_down(jobs));
                assert_eq!(got, want, "{rows} rows, {k}, {threads} threads");
            }
        }
    }
}
