//! The gradient of a trained tensor, which takes no memory before there is something in it.

use std::sync::{Mutex, PoisonError};

use karat::backend::BackendError;

use super::tensor::{activation, edit};
use super::{Result, Tensor, clear, zeros_like};
use crate::cuda;
use crate::ops::{buffers, elementwise};

/// A sum that a step's micro-batches add to.
///
/// On the CPU the first to add stores instead, into memory that activations have left; it goes back when the sum is taken. So
/// gradients and activations share their memory as the backward pass turns one into the other, and nothing is set to zero.
/// On a CUDA device the sum has a place of its own, which the optimizer's kernels know.
#[derive(Debug)]
pub struct Gradient(Sum);

#[derive(Debug)]
enum Sum {
    Lent { shape: Vec<usize>, sum: Mutex<Option<Tensor>> },
    Placed(Tensor),
}

impl Gradient {
    /// That of `t`, with nothing in it.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn new(t: &Tensor) -> Result<Self> {
        Ok(Gradient(match t.cuda() {
            Some(_) => Sum::Placed(zeros_like(t)?),
            None => Sum::Lent { shape: t.dims().to_vec(), sum: Mutex::new(None) },
        }))
    }

    /// The sum on its CUDA device, if it lies on one.
    pub(crate) fn cuda(&self) -> Option<&cuda::Tensor> {
        match &self.0 {
            Sum::Placed(t) => t.cuda(),
            Sum::Lent { .. } => None,
        }
    }

    /// Lets `f` add to the sum, or where it is told `false` store: what is in the memory then means nothing.
    ///
    /// # Errors
    /// If the sum lies on a CUDA device.
    pub(super) fn add(&self, f: impl FnOnce(&mut [f32], bool)) -> Result<()> {
        let Sum::Lent { shape, sum } = &self.0 else {
            return Err(BackendError::failed("a gradient of a CUDA device reached a CPU kernel"));
        };
        let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sum) = &*sum {
            return edit(sum, |sum| f(sum, true));
        }
        let mut data = buffers::take_lasting(shape.iter().product());
        f(&mut data, false);
        *sum = Some(activation(data, shape)?);
        Ok(())
    }

    /// [`Gradient::add`] for what can only add: the memory holds zeros at first.
    ///
    /// # Errors
    /// As there.
    pub(super) fn edit(&self, f: impl FnOnce(&mut [f32])) -> Result<()> {
        self.add(|sum, add| {
            if !add {
                elementwise::clear(sum);
            }
            f(sum);
        })
    }

    /// The sum, if anything was added.
    pub fn sum(&self) -> Option<Tensor> {
        match &self.0 {
            Sum::Placed(t) => Some(t.clone()),
            Sum::Lent { sum, .. } => sum.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Nothing is in it from now on; on the CPU its memory goes to others.
    ///
    /// # Errors
    /// If the device fails.
    pub fn clear(&self) -> Result<()> {
        match &self.0 {
            Sum::Placed(t) => clear(t),
            Sum::Lent { sum, .. } => {
                *sum.lock().unwrap_or_else(PoisonError::into_inner) = None;
                Ok(())
            }
        }
    }
}
