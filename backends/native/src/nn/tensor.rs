//! What the operations work on: numbers with a shape, and what the host decides about a pass.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use karat_backend::BackendError;
use karat_model::Rope;

use super::Result;
use super::narrowed::Narrowed;
use crate::cuda::{self, Device};
use crate::ops::buffers::{self, Buffer};
use crate::ops::elementwise;
use crate::ops::rope::Table;

/// Numbers with a shape, on the CPU or on a CUDA device; clones share them.
#[derive(Clone, Debug)]
pub struct Tensor(Place);

#[derive(Clone, Debug)]
enum Place {
    Cpu(Arc<Held>),
    /// On the CPU, rounded for the products that read it: [`super::narrowed`].
    Narrowed(Arc<Narrowed>),
    Cuda(cuda::Tensor),
}

/// Contiguous f32 numbers on the CPU with their shape.
#[derive(Debug)]
struct Held {
    data: RwLock<Storage>,
    shape: Vec<usize>,
}

/// Where the numbers of a CPU tensor lie.
#[derive(Debug)]
enum Storage {
    /// Memory of its own, for what stays: parameters and their moments.
    Own(Vec<f32>),
    /// Memory of the arena, for what goes: activations and gradients.
    Lent(Buffer),
}

impl Deref for Storage {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match self {
            Storage::Own(data) => data,
            Storage::Lent(data) => data,
        }
    }
}

impl DerefMut for Storage {
    fn deref_mut(&mut self) -> &mut [f32] {
        match self {
            Storage::Own(data) => data,
            Storage::Lent(data) => data,
        }
    }
}

impl Tensor {
    /// Its shape.
    pub fn dims(&self) -> &[usize] {
        match &self.0 {
            Place::Cpu(held) => &held.shape,
            Place::Narrowed(held) => held.dims(),
            Place::Cuda(t) => t.dims(),
        }
    }
    /// Its number of elements.
    pub fn elem_count(&self) -> usize {
        self.dims().iter().product()
    }
    /// The tensor on its CUDA device, if it lies on one.
    pub(crate) fn cuda(&self) -> Option<&cuda::Tensor> {
        match &self.0 {
            Place::Cpu(_) | Place::Narrowed(_) => None,
            Place::Cuda(t) => Some(t),
        }
    }
    /// The same numbers on `device`, kept in f32: for what is trained, and for what is summed. A tensor that lies on a
    /// device already stays as it is.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn place(&self, device: &Arc<Device>) -> Result<Self> {
        match &self.0 {
            Place::Cpu(_) | Place::Narrowed(_) => {
                cuda::Tensor::master(device, &view(self)?, self.dims()).map(Tensor::from)
            }
            Place::Cuda(_) => Ok(self.clone()),
        }
    }
    /// Whether it is the same tensor and not only the same numbers.
    pub(super) fn is(&self, other: &Tensor) -> bool {
        match (&self.0, &other.0) {
            (Place::Cpu(a), Place::Cpu(b)) => Arc::ptr_eq(a, b),
            (Place::Narrowed(a), Place::Narrowed(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
    fn cpu(&self) -> Result<&Held> {
        match &self.0 {
            Place::Cpu(held) => Ok(held),
            Place::Narrowed(_) => Err(BackendError::failed("numbers rounded for products reached a kernel of f32")),
            Place::Cuda(_) => Err(BackendError::failed("a tensor of a CUDA device reached a CPU kernel")),
        }
    }
}

impl Tensor {
    /// The numbers, if they were rounded for products.
    pub(super) fn rounded(&self) -> Option<&Narrowed> {
        match &self.0 {
            Place::Narrowed(held) => Some(held),
            _ => None,
        }
    }
}

impl From<Narrowed> for Tensor {
    fn from(held: Narrowed) -> Self {
        Tensor(Place::Narrowed(Arc::new(held)))
    }
}

impl From<cuda::Tensor> for Tensor {
    fn from(t: cuda::Tensor) -> Self {
        Tensor(Place::Cuda(t))
    }
}

/// Whole numbers that the host decides and kernels read: ids, positions, places. A CUDA device gets its copy at the first
/// use.
#[derive(Debug, Default)]
pub struct Indices {
    host: Vec<u32>,
    device: OnceLock<cuda::Indices>,
}

impl Indices {
    /// Numbers that are on a device already: `host`, or what kernels make of them.
    pub(crate) fn placed(host: Vec<u32>, device: cuda::Indices) -> Self {
        Indices { host, device: OnceLock::from(device) }
    }
    /// The copy on `device`.
    pub(crate) fn on(&self, device: &Arc<Device>) -> Result<&cuda::Indices> {
        if let Some(there) = self.device.get() {
            return Ok(there);
        }
        let there = cuda::Indices::upload(device, &self.host)?;
        Ok(self.device.get_or_init(|| there))
    }
}

impl From<Vec<u32>> for Indices {
    fn from(host: Vec<u32>) -> Self {
        Indices { host, device: OnceLock::new() }
    }
}

impl Deref for Indices {
    type Target = [u32];
    fn deref(&self) -> &[u32] {
        &self.host
    }
}

/// Where rows packed back to back start among the tokens; one more entry than rows.
#[derive(Debug, Default)]
pub struct Starts {
    host: Vec<usize>,
    device: OnceLock<cuda::Rows>,
}

impl Starts {
    /// The copy on `device`.
    pub(crate) fn on(&self, device: &Arc<Device>) -> Result<&cuda::Rows> {
        if let Some(there) = self.device.get() {
            return Ok(there);
        }
        let there = cuda::Rows::upload(device, &self.host)?;
        Ok(self.device.get_or_init(|| there))
    }
}

impl From<Vec<usize>> for Starts {
    fn from(host: Vec<usize>) -> Self {
        Starts { host, device: OnceLock::new() }
    }
}

impl Deref for Starts {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.host
    }
}

/// Cosines and sines of the rotary embedding.
#[derive(Debug, Default)]
pub struct Angles {
    pub(super) table: Table,
    device: OnceLock<cuda::Angles>,
}

impl Angles {
    /// Those of the first `positions`: [`Table::new`].
    pub fn new(rope: &Rope, head_dim: usize, positions: usize) -> Self {
        Angles { table: Table::new(rope, head_dim, positions), device: OnceLock::new() }
    }
    /// Positions in the table.
    pub fn positions(&self) -> usize {
        self.table.positions()
    }
    /// The copy on `device`.
    pub(crate) fn on(&self, device: &Arc<Device>) -> Result<&cuda::Angles> {
        if let Some(there) = self.device.get() {
            return Ok(there);
        }
        let there = cuda::Angles::upload(device, &self.table)?;
        Ok(self.device.get_or_init(|| there))
    }
}

/// A tensor of `shape` on the CPU that owns `data`: for what lasts, parameters and their like.
pub fn tensor(data: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
    held(Storage::Own(data), shape)
}

/// Zeros of `shape` on the CPU, for what lasts.
pub fn zeros(shape: &[usize]) -> Result<Tensor> {
    tensor(buffers::zeroed(shape.iter().product()), shape)
}

/// Zeros in f32 where `t` lies and of its shape, for what lasts: gradients and moments.
pub fn zeros_like(t: &Tensor) -> Result<Tensor> {
    match t.cuda() {
        Some(t) => cuda::ops::zeros_like(t),
        None => zeros(t.dims()),
    }
}

/// A tensor of `shape` on the CPU in lent memory.
pub(super) fn activation(data: Buffer, shape: &[usize]) -> Result<Tensor> {
    held(Storage::Lent(data), shape)
}

fn held(data: Storage, shape: &[usize]) -> Result<Tensor> {
    if data.len() != shape.iter().product::<usize>() {
        return Err(BackendError::failed(format!("{} numbers for a tensor of shape {shape:?}", data.len())));
    }
    Ok(Tensor(Place::Cpu(Arc::new(Held { data: RwLock::new(data), shape: shape.to_vec() }))))
}

/// Zeros where `like` lies and of its shape, for what is soon gone.
pub fn zero_activation(like: &Tensor) -> Result<Tensor> {
    if let Some(like) = like.cuda() {
        return cuda::ops::zero_activation(like);
    }
    let mut data = buffers::take(like.elem_count());
    elementwise::clear(&mut data);
    activation(data, like.dims())
}

/// A copy with storage of its own.
pub fn copy(t: &Tensor) -> Result<Tensor> {
    match t.cuda() {
        Some(t) => cuda::ops::copy(t),
        None => tensor(view(t)?.to_vec(), t.dims()),
    }
}

/// A tensor's elements, held for reading.
pub struct View<'a>(Seen<'a>);

enum Seen<'a> {
    /// On the CPU.
    Here(RwLockReadGuard<'a, Storage>),
    /// Brought from a device.
    Brought(Vec<f32>),
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

/// The elements of a tensor; those of a device are waited for and widened to f32.
pub fn view(t: &Tensor) -> Result<View<'_>> {
    if let Some(t) = t.cuda() {
        return t.download().map(|data| View(Seen::Brought(data)));
    }
    Ok(View(Seen::Here(t.cpu()?.data.read().unwrap_or_else(PoisonError::into_inner))))
}

/// Changes a tensor's elements in place; every clone of it sees the change. Those of a device go to the host and back.
pub fn edit(t: &Tensor, f: impl FnOnce(&mut [f32])) -> Result<()> {
    if let Some(t) = t.cuda() {
        let mut data = t.download()?;
        f(&mut data);
        return t.set(&data);
    }
    f(&mut t.cpu()?.data.write().unwrap_or_else(PoisonError::into_inner));
    Ok(())
}

/// Puts `data` into a tensor; every clone of it sees the change.
pub fn set(t: &Tensor, data: &[f32]) -> Result<()> {
    match t.cuda() {
        Some(t) => t.set(data),
        None => edit(t, |t| t.copy_from_slice(data)),
    }
}
