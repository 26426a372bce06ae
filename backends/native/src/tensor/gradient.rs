//! The gradient of a trained tensor, which may take no memory before there is something in it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Tensor;
use crate::error::Result;

/// A sum that a step's micro-batches add to.
///
/// Where it has no place of its own, the first to add stores instead, into memory that others have
/// left; it goes back when the sum is taken. So gradients and activations share their memory as the
/// backward pass turns one into the other, and nothing is set to zero. Which gradients have a place
/// of their own is the device's choice: [`crate::device::Device::gradient`].
#[derive(Debug)]
pub struct Gradient {
    shape: Vec<usize>,
    sum: Mutex<Option<Tensor>>,
    lasting: bool,
}

impl Gradient {
    /// That of a tensor of `shape`, with nothing in it and no memory.
    pub fn lent(shape: &[usize]) -> Self {
        Gradient { shape: shape.to_vec(), sum: Mutex::new(None), lasting: false }
    }

    /// One that is always in the place of `zeros`.
    pub fn placed(zeros: Tensor) -> Self {
        Gradient { shape: zeros.dims().to_vec(), sum: Mutex::new(Some(zeros)), lasting: true }
    }

    /// Its shape.
    pub fn dims(&self) -> &[usize] {
        &self.shape
    }

    /// Whether it has a place of its own.
    pub fn lasts(&self) -> bool {
        self.lasting
    }

    /// The sum, for the device that adds to it; nothing where nothing was added.
    pub fn lock(&self) -> MutexGuard<'_, Option<Tensor>> {
        self.sum.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sum, if anything was added.
    pub fn sum(&self) -> Option<Tensor> {
        self.lock().clone()
    }

    /// Nothing is in it from now on; its memory goes to others unless it has a place of its own.
    ///
    /// # Errors
    /// If the device fails.
    pub fn clear(&self) -> Result<()> {
        let mut sum = self.lock();
        match &*sum {
            Some(placed) if self.lasting => placed.storage().clear(),
            _ => {
                *sum = None;
                Ok(())
            }
        }
    }
}
