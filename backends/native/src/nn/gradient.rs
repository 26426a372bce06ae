//! The gradient of a trained tensor, which takes no memory before there is something in it.

use std::sync::{Mutex, PoisonError};

use karat_backend::BackendError;

use super::tensor::{activation, edit};
use super::{Result, Tensor, clear, zeros_like};
use crate::cuda::device::Element;
use crate::cuda::{self, Device};
use crate::ops::{buffers, elementwise};

/// A sum that a step's micro-batches add to.
///
/// On the CPU the first to add stores instead, into memory that activations have left; it goes back when the sum is taken. So
/// gradients and activations share their memory as the backward pass turns one into the other, and nothing is set to zero.
/// On a CUDA device the sum has a place of its own; but where a step has one micro-batch, that of a matrix is there from
/// when it is written, and in bf16 if the device computes so: one product gives it, whose sums are f32. It and the logits then
/// take turns with the same memory.
#[derive(Debug)]
pub struct Gradient(Sum);

#[derive(Debug)]
enum Sum {
    Lent { shape: Vec<usize>, sum: Mutex<Option<Tensor>> },
    Placed(Tensor),
    Once { of: cuda::Tensor, sum: Mutex<Option<cuda::Tensor>> },
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

    /// As [`Gradient::new`], of what gets one micro-batch a step.
    ///
    /// # Errors
    /// As there.
    pub fn of_one_batch(t: &Tensor) -> Result<Self> {
        match t.cuda().filter(|t| t.dims().len() == 2) {
            Some(of) => Ok(Gradient(Sum::Once { of: of.clone(), sum: Mutex::new(None) })),
            None => Gradient::new(t),
        }
    }

    /// The sum on its CUDA device, if it lies on one, and whether there is anything in it: else what is in the memory means
    /// nothing, and the caller stores.
    pub(crate) fn cuda(&self) -> Option<Result<(cuda::Tensor, bool)>> {
        match &self.0 {
            Sum::Placed(t) => t.cuda().map(|t| Ok((t.clone(), true))),
            Sum::Once { of, sum } => {
                let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(sum) = &*sum {
                    return Some(Ok((sum.clone(), true)));
                }
                let new = cuda::Tensor::activation(of.device(), of.dims());
                Some(new.map(|new| (sum.insert(new).clone(), false)))
            }
            Sum::Lent { .. } => None,
        }
    }

    /// The device whose memory it takes turns with others for.
    pub(crate) fn shares(&self) -> Option<&Device> {
        match &self.0 {
            Sum::Once { of, .. } => Some(of.device()),
            Sum::Placed(_) | Sum::Lent { .. } => None,
        }
    }

    /// Whether it is kept with fewer bits than sums have.
    pub(crate) fn narrow(&self) -> bool {
        self.shares().is_some_and(|device| device.activations == Element::Bf16)
    }

    /// The sum on its CUDA device, zeros where nothing was added.
    ///
    /// # Errors
    /// If it lies on none, or the device fails.
    pub(crate) fn whole(&self) -> Result<cuda::Tensor> {
        let missing = || BackendError::failed("a gradient of the CPU reached a kernel of the GPU");
        let (sum, filled) = self.cuda().ok_or_else(missing)??;
        if !filled {
            sum.clear()?;
        }
        Ok(sum)
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
            Sum::Once { sum, .. } => sum.lock().unwrap_or_else(PoisonError::into_inner).clone().map(Tensor::from),
        }
    }

    /// Nothing is in it from now on; its memory goes to others unless it has a place of its own.
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
            Sum::Once { sum, .. } => {
                *sum.lock().unwrap_or_else(PoisonError::into_inner) = None;
                Ok(())
            }
        }
    }
}
