//! Activations and their gradients in bf16: what feeds products only, and what the backward pass keeps.
//!
//! A product in bf16 rounds its operands. What is an operand more than once (a normed input of three projections, the
//! gradient of an output for the input's and the weight's gradient) is rounded once instead, in half the memory, and
//! multiplied where it lies; the bits of all products stay what they were. What the backward pass reads elementwise
//! (gate and up, heads before their norm) is kept rounded too, as PyTorch's autocast keeps the output of every product;
//! kernels widen it as they read ([`crate::ops::number`]).

use bytemuck::{cast_slice, cast_slice_mut};
use half::bf16;

use super::tensor::{Tensor, View, view};
use super::{Precision, Result};
use crate::ops::buffers::{self, Buffer};
use crate::ops::matmul::{Mat, narrow};
use crate::profile::Timer;

/// bf16 numbers of some shape in a lent buffer.
#[derive(Debug)]
pub(super) struct Narrowed {
    /// Two numbers to an element.
    buffer: Buffer,
    shape: Vec<usize>,
}

impl Narrowed {
    /// Of `shape`; `fill` writes all of it, with what [`narrow`] makes.
    pub(super) fn new(shape: &[usize], fill: impl FnOnce(&mut [bf16])) -> Self {
        let mut made = Self::of(shape);
        fill(made.elements_mut());
        made
    }
    /// Of `shape`, with any contents: whoever asks for it writes all of it, with what [`narrow`] makes.
    pub(super) fn of(shape: &[usize]) -> Self {
        let n: usize = shape.iter().product();
        Narrowed { buffer: buffers::take(n.div_ceil(2)), shape: shape.to_vec() }
    }
    pub(super) fn elements_mut(&mut self) -> &mut [bf16] {
        let n = self.shape.iter().product();
        &mut cast_slice_mut(&mut self.buffer)[..n]
    }
    pub(super) fn dims(&self) -> &[usize] {
        &self.shape
    }
    pub(super) fn elements(&self) -> &[bf16] {
        &cast_slice(&self.buffer)[..self.shape.iter().product()]
    }
}

/// `x` as products in `precision` read it: rounded to bf16 on the CPU, itself elsewhere.
pub fn operand(precision: Precision, x: &Tensor) -> Result<Tensor> {
    if precision == Precision::F32 || x.cuda().is_some() || x.rounded().is_some() {
        return Ok(x.clone());
    }
    let _timer = Timer::new("rounding to bf16", 0.0);
    let xs = view(x)?;
    Ok(Narrowed::new(x.dims(), |y| narrow(&xs, y)).into())
}

/// An operand's elements, held for reading.
pub(super) enum Operand<'a> {
    Wide(View<'a>),
    Narrow(&'a [bf16]),
}

impl<'a> Operand<'a> {
    pub(super) fn of(x: &'a Tensor) -> Result<Self> {
        Ok(match x.rounded() {
            Some(held) => Operand::Narrow(held.elements()),
            None => Operand::Wide(view(x)?),
        })
    }
    pub(super) fn mat(&self, rows: usize, cols: usize) -> Mat<'_> {
        match self {
            Operand::Wide(x) => Mat::new(x, rows, cols),
            Operand::Narrow(x) => Mat::narrowed(x, rows, cols),
        }
    }
}
