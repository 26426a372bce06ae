//! Activations and their gradients in bf16: what feeds GEMMs alone, and what the backward pass
//! keeps.
//!
//! A GEMM in bf16 rounds its operands. What is an operand more than once (a normed input of three
//! projections, the gradient of an output for the input's and the weight's gradient) is rounded
//! once instead, in half the memory, and multiplied where it lies; the bits of all results stay
//! what they were. What the backward pass reads elementwise (gate and up, heads before their norm)
//! is kept rounded too, as PyTorch's autocast keeps the output of every product; kernels widen it
//! as they read ([`crate::ops::number`]).

use bytemuck::{cast_slice, cast_slice_mut};
use half::bf16;
use karat_backend::BackendError;

use crate::error::Result;
use crate::profile::Timer;
use crate::tensor::{Storage, Tensor, View, view};
use karat_kernels::gemm::{Mat, narrow};
use karat_kernels::memory::arena::{self, Buffer};

/// bf16 numbers of some shape in a lent buffer.
#[derive(Debug)]
pub(super) struct Bf16Storage {
    /// Two numbers to an element.
    buffer: Buffer,
    shape: Vec<usize>,
}

impl Bf16Storage {
    /// Of `shape`; `fill` writes all of it, with what [`narrow`] makes.
    pub(super) fn filled(shape: &[usize], fill: impl FnOnce(&mut [bf16])) -> Self {
        let mut made = Self::of(shape);
        fill(made.elements_mut());
        made
    }
    /// Of `shape`, with any contents: whoever asks for it writes all of it, with what [`narrow`]
    /// makes.
    pub(super) fn of(shape: &[usize]) -> Self {
        let n: usize = shape.iter().product();
        Bf16Storage { buffer: arena::alloc(n.div_ceil(2)), shape: shape.to_vec() }
    }
    /// `x` rounded, or itself if it is already.
    pub(super) fn round(x: &Tensor) -> Result<Tensor> {
        if x.storage_as::<Bf16Storage>().is_some() {
            return Ok(x.clone());
        }
        let _timer = Timer::new("rounding to bf16", 0.0);
        let xs = view(x)?;
        Ok(Self::filled(x.dims(), |y| narrow(&xs, y)).into())
    }
    pub(super) fn elements_mut(&mut self) -> &mut [bf16] {
        let n = self.shape.iter().product();
        &mut cast_slice_mut(&mut self.buffer)[..n]
    }
    pub(super) fn elements(&self) -> &[bf16] {
        &cast_slice(&self.buffer)[..self.shape.iter().product()]
    }
}

fn rounded() -> BackendError {
    BackendError::failed("numbers rounded for products reached a kernel of f32")
}

impl Storage for Bf16Storage {
    fn dims(&self) -> &[usize] {
        &self.shape
    }
    fn view(&self) -> Result<View<'_>> {
        Err(rounded())
    }
    fn edit(&self, _: &mut dyn FnMut(&mut [f32])) -> Result<()> {
        Err(rounded())
    }
}

/// An operand's elements, held for reading.
pub(super) enum Operand<'a> {
    F32(View<'a>),
    Bf16(&'a [bf16]),
}

impl<'a> Operand<'a> {
    pub(super) fn of(x: &'a Tensor) -> Result<Self> {
        Ok(match x.storage_as::<Bf16Storage>() {
            Some(held) => Operand::Bf16(held.elements()),
            None => Operand::F32(view(x)?),
        })
    }
    pub(super) fn mat(&self, rows: usize, cols: usize) -> Mat<'_> {
        match self {
            Operand::F32(x) => Mat::new(x, rows, cols),
            Operand::Bf16(x) => Mat::narrowed(x, rows, cols),
        }
    }
}
