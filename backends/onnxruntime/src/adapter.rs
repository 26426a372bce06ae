//! A LoRA adapter, merged into a checkpoint or as the factors that a graph multiplies by.

pub mod merge;

use karat_backend::BackendError;
use karat_model::peft::{Adapter, Factors, Linears};
use rayon::prelude::*;

/// The factors of a module as a graph multiplies them: `x A^T (s B^T)`.
pub struct Transposed {
    /// The rank.
    pub rank: usize,
    /// `[input, rank]`.
    pub a: Vec<f32>,
    /// `[rank, output]`, scaled.
    pub b: Vec<f32>,
}

/// The factors of every module of `adapter`, in order, for a model of the `linears` that it was
/// opened for.
///
/// # Errors
/// A variant that only a merge can apply; a file that cannot be read.
pub fn transposed(adapter: &Adapter, linears: &Linears) -> Result<Vec<(String, Transposed)>, BackendError> {
    adapter.check_low_rank()?;
    let mut all = Vec::new();
    for module in adapter.modules() {
        let (Some(Factors { a, b, shape, .. }), Some(&[input, output])) =
            (adapter.factors(module)?, linears.get(module))
        else {
            continue;
        };
        let mut b = transpose(&b, output, shape.r);
        b.iter_mut().for_each(|b| *b *= shape.scale as f32);
        all.push((module.to_owned(), Transposed { rank: shape.r, a: transpose(&a, shape.r, input), b }));
    }
    Ok(all)
}

/// `[rows, columns]` to `[columns, rows]`.
pub fn transpose(matrix: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut transposed = vec![0f32; matrix.len()];
    // Blocks of columns, so that each thread writes its own stretch and reads lines it will use
    // again.
    const BLOCK: usize = 32;
    transposed.par_chunks_mut(BLOCK * rows).enumerate().for_each(|(block, out)| {
        let first = block * BLOCK;
        for row in 0..rows {
            for (k, column) in (first..columns.min(first + BLOCK)).enumerate() {
                out[k * rows + row] = matrix[row * columns + column];
            }
        }
    });
    transposed
}
