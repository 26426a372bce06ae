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
    /// A step adds to it once.
    once: bool,
    /// The sum of its squares, where that was made with it.
    squares: Mutex<Option<f64>>,
}

impl Gradient {
    /// That of a tensor of `shape`, with nothing in it and no memory.
    pub fn lent(shape: &[usize]) -> Self {
        Gradient {
            shape: shape.to_vec(),
            sum: Mutex::new(None),
            lasting: false,
            once: false,
            squares: Mutex::new(None),
        }
    }

    /// [`Gradient::lent`] that a step adds to once, most likely, if `once`.
    pub fn lent_once(shape: &[usize], once: bool) -> Self {
        Gradient { once, ..Self::lent(shape) }
    }

    /// One that is always in the place of `zeros`.
    pub fn placed(zeros: Tensor) -> Self {
        Gradient { lasting: true, sum: Mutex::new(Some(zeros.clone())), ..Self::lent(zeros.dims()) }
    }

    /// Its shape.
    pub fn dims(&self) -> &[usize] {
        &self.shape
    }

    /// Whether it has a place of its own.
    pub fn lasts(&self) -> bool {
        self.lasting
    }

    /// Whether a step adds to it once, most likely.
    pub fn once(&self) -> bool {
        self.once
    }

    /// The sum of the squares of what is in it, if it is known.
    pub fn squares(&self) -> Option<f64> {
        *self.squares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what the sum of the squares is, or that it is not known any more.
    pub fn set_squares(&self, squares: Option<f64>) {
        *self.squares.lock().unwrap_or_else(PoisonError::into_inner) = squares;
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
        self.set_squares(None);
        match &*sum {
            Some(placed) if self.lasting => placed.storage().clear(),
            _ => {
                *sum = None;
                Ok(())
            }
        }
    }
}
