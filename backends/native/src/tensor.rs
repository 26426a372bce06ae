//! Tensors: numbers with a shape, in memory of the host or of a device.
//!
//! A [`Tensor`] knows its shape and how to bring its numbers to the host and back; all else is
//! asked of a [`crate::device::Device`]. It holds a [`Storage`], and only the device that made it
//! knows which: no type of a device stands here or above.

mod gradient;
mod host;

use std::any::Any;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use karat_backend::BackendError;

pub use self::gradient::Gradient;
pub use self::host::{Angles, DeviceCopy, Indices, Starts};
use crate::error::Result;
use crate::ops::{adamw, elementwise};
use crate::profile::Timer;
use karat_kernels::memory::arena::{self, Buffer};
use karat_kernels::memory::mmap::Elements;

/// The numbers of a tensor, where they lie. What a method does not say otherwise is done in host
/// memory.
pub trait Storage: Any + fmt::Debug + Send + Sync {
    /// Its shape.
    fn dims(&self) -> &[usize];

    /// The elements in f32; those of a device are waited for.
    ///
    /// # Errors
    /// If the device fails, or they are not kept in f32 on the host.
    fn view(&self) -> Result<View<'_>>;

    /// Changes the elements in place. Those of a device go to the host and back.
    ///
    /// # Errors
    /// As [`Storage::view`].
    fn edit(&self, f: &mut dyn FnMut(&mut [f32])) -> Result<()>;

    /// Puts `data` in.
    ///
    /// # Errors
    /// If the device fails.
    fn set(&self, data: &[f32]) -> Result<()> {
        self.edit(&mut |to| to.copy_from_slice(data))
    }

    /// Sets all elements to zero.
    ///
    /// # Errors
    /// If the device fails.
    fn clear(&self) -> Result<()> {
        self.edit(&mut |to| elementwise::clear(to))
    }

    /// A copy with memory of its own.
    ///
    /// # Errors
    /// If the device has no room.
    fn copy(&self) -> Result<Tensor> {
        tensor(self.view()?.to_vec(), self.dims())
    }

    /// Zeros of its shape in f32 beside it, for what lasts.
    ///
    /// # Errors
    /// If the device has no room.
    fn zeros_like(&self) -> Result<Tensor> {
        zeros(self.dims())
    }

    /// A tensor of `data` beside it, kept in f32: for what is trained.
    ///
    /// # Errors
    /// If the device has no room.
    fn master(&self, data: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
        tensor(data, shape)
    }
}

/// Numbers with a shape; clones share them.
#[derive(Clone, Debug)]
pub struct Tensor(Arc<dyn Storage>);

impl<S: Storage> From<S> for Tensor {
    fn from(storage: S) -> Self {
        Tensor(Arc::new(storage))
    }
}

impl Tensor {
    /// Its shape.
    pub fn dims(&self) -> &[usize] {
        self.0.dims()
    }
    /// Its number of elements.
    pub fn elem_count(&self) -> usize {
        self.dims().iter().product()
    }
    /// Its numbers, where they lie.
    pub fn storage(&self) -> &dyn Storage {
        &*self.0
    }
    /// Its numbers, if they are a device's `S`.
    pub fn storage_as<S: Storage>(&self) -> Option<&S> {
        (self.storage() as &dyn Any).downcast_ref()
    }
    /// Whether it is the same tensor and not only the same numbers.
    pub fn is(&self, other: &Tensor) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Rows and columns of a matrix.
///
/// # Errors
/// If it is none.
pub fn dims(t: &Tensor) -> Result<(usize, usize)> {
    match *t.dims() {
        [rows, columns] => Ok((rows, columns)),
        _ => Err(BackendError::failed(format!("a tensor of shape {:?} is no matrix", t.dims()))),
    }
}

/// A matrix that a GEMM may read as a weight: a [`crate::weight::Weight`], or a tensor that is
/// trained.
pub trait StoredWeight {
    /// Its shape.
    fn dims(&self) -> &[usize];
    /// Its elements.
    ///
    /// # Errors
    /// If the CPU's kernels cannot read it.
    fn view(&self) -> Result<WeightView<'_>>;
    /// The tensor, unless it is in a file alone.
    fn tensor(&self) -> Option<&Tensor>;
    /// Rows and columns.
    ///
    /// # Errors
    /// If it is no matrix.
    fn matrix(&self) -> Result<(usize, usize)> {
        match *self.dims() {
            [rows, columns] => Ok((rows, columns)),
            _ => Err(BackendError::failed(format!("a weight of shape {:?} is no matrix", self.dims()))),
        }
    }
}

impl StoredWeight for Tensor {
    fn dims(&self) -> &[usize] {
        self.dims()
    }
    fn view(&self) -> Result<WeightView<'_>> {
        view(self).map(WeightView::Owned)
    }
    fn tensor(&self) -> Option<&Tensor> {
        Some(self)
    }
}

/// A weight's elements, held for reading.
pub enum WeightView<'a> {
    /// Of a tensor.
    Owned(View<'a>),
    /// Of a file.
    Mapped(Elements<'a>),
}

impl WeightView<'_> {
    /// The elements as they are stored.
    pub fn elements(&self) -> Elements<'_> {
        match self {
            WeightView::Owned(view) => Elements::F32(view.deref()),
            WeightView::Mapped(elements) => *elements,
        }
    }
}

/// Contiguous f32 numbers in host memory with their shape.
#[derive(Debug)]
pub struct HostStorage {
    data: RwLock<Memory>,
    shape: Vec<usize>,
}

/// Host memory of a tensor.
#[derive(Debug)]
enum Memory {
    /// Of its own, for what stays: parameters and their moments.
    Own(Vec<f32>),
    /// Of the arena, for what goes: activations and gradients.
    Lent(Buffer),
}

impl Deref for Memory {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match self {
            Memory::Own(data) => data,
            Memory::Lent(data) => data,
        }
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [f32] {
        match self {
            Memory::Own(data) => data,
            Memory::Lent(data) => data,
        }
    }
}

impl HostStorage {
    fn tensor(data: Memory, shape: &[usize]) -> Result<Tensor> {
        if data.len() != shape.iter().product::<usize>() {
            return Err(BackendError::failed(format!("{} numbers for a tensor of shape {shape:?}", data.len())));
        }
        Ok(HostStorage { data: RwLock::new(data), shape: shape.to_vec() }.into())
    }
}

impl Storage for HostStorage {
    fn dims(&self) -> &[usize] {
        &self.shape
    }
    fn view(&self) -> Result<View<'_>> {
        Ok(View(Seen::Here(self.data.read().unwrap_or_else(PoisonError::into_inner))))
    }
    fn edit(&self, f: &mut dyn FnMut(&mut [f32])) -> Result<()> {
        f(&mut self.data.write().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }
}

/// A tensor's elements, held for reading.
pub struct View<'a>(Seen<'a>);

enum Seen<'a> {
    /// On the host.
    Here(RwLockReadGuard<'a, Memory>),
    /// Brought from a device.
    Brought(Vec<f32>),
}

impl View<'_> {
    /// Elements that were brought from a device.
    pub fn brought(data: Vec<f32>) -> Self {
        View(Seen::Brought(data))
    }
}

impl Deref for View<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match &self.0 {
            Seen::Here(data) => data,
            Seen::Brought(data) => data,
        }
    }
}

/// A tensor of `shape` on the host that owns `data`: for what lasts, parameters and their like.
///
/// # Errors
/// If `data` has another length.
pub fn tensor(data: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
    HostStorage::tensor(Memory::Own(data), shape)
}

/// Zeros of `shape` on the host, for what lasts.
///
/// # Errors
/// As [`tensor`].
pub fn zeros(shape: &[usize]) -> Result<Tensor> {
    tensor(arena::zeroed(shape.iter().product()), shape)
}

/// A tensor of `shape` on the host in lent memory.
///
/// # Errors
/// If `data` has another length.
pub fn activation(data: Buffer, shape: &[usize]) -> Result<Tensor> {
    HostStorage::tensor(Memory::Lent(data), shape)
}

/// Zeros in f32 where `t` lies and of its shape, for what lasts: moments.
///
/// # Errors
/// If the device has no room.
pub fn zeros_like(t: &Tensor) -> Result<Tensor> {
    t.storage().zeros_like()
}

/// A copy with memory of its own.
///
/// # Errors
/// If the device has no room.
pub fn copy(t: &Tensor) -> Result<Tensor> {
    t.storage().copy()
}

/// The elements of a tensor; those of a device are waited for and widened to f32.
///
/// # Errors
/// As [`Storage::view`].
pub fn view(t: &Tensor) -> Result<View<'_>> {
    t.storage().view()
}

/// Changes a tensor's elements in place; every clone of it sees the change. Those of a device go to
/// the host and back.
///
/// # Errors
/// As [`Storage::view`].
pub fn edit(t: &Tensor, f: impl FnOnce(&mut [f32])) -> Result<()> {
    let mut f = Some(f);
    t.storage().edit(&mut |data| {
        if let Some(f) = f.take() {
            f(data);
        }
    })
}

/// Puts `data` into a tensor; every clone of it sees the change.
///
/// # Errors
/// If the device fails.
pub fn set(t: &Tensor, data: &[f32]) -> Result<()> {
    t.storage().set(data)
}

/// `x *= factor`, on the host; a factor of 1 leaves any tensor as it is.
///
/// # Errors
/// As [`Storage::view`].
pub fn scale(x: &Tensor, factor: f32) -> Result<()> {
    match factor == 1.0 {
        true => Ok(()),
        false => edit(x, |x| x.iter_mut().for_each(|x| *x *= factor)),
    }
}

/// Sum of squares in f64, on the host.
///
/// # Errors
/// As [`Storage::view`].
pub fn sum_of_squares(t: &Tensor) -> Result<f64> {
    let _timer = Timer::new("gradient norm", 0.0);
    Ok(adamw::sum_of_squares(&view(t)?))
}
