//! Tensors' storage on a device.

use std::sync::Arc;

use half::bf16;
use karat_backend::BackendError;
use rayon::prelude::*;

use super::Cuda;
use super::device::{Arg, DeviceBuffer, Element, Matrix};
use crate::error::Result;
use crate::ops::rope::RotaryTable;
use crate::tensor::{Angles, Indices, Starts, Storage, Tensor, View};
use karat_kernels::memory::mmap::Elements;

/// A buffer as the argument of a kernel.
pub fn start(buffer: &DeviceBuffer) -> Arg<'_> {
    Arg::Buffer(buffer, 0)
}

/// `x` as the bf16 nearest to it, ties away from zero, and the distance of their bits, a signed
/// 16-bit number: nothing is lost, products read the first half alone, and a weight that is trained
/// takes 4 bytes instead of 6 (`cuda/common.h` has the same).
pub fn split(x: f32) -> (u16, u16) {
    let bits = x.to_bits();
    ((bits.wrapping_add(0x8000) >> 16) as u16, bits as u16)
}

/// A tensor that [`split`] has split.
pub fn join(upper: u16, lower: u16) -> f32 {
    f32::from_bits((u32::from(upper) << 16).wrapping_add(i32::from(lower as i16) as u32))
}

/// A dense row-major tensor on a GPU.
#[derive(Debug)]
pub struct CudaStorage {
    device: Cuda,
    buffer: DeviceBuffer,
    element: Element,
    /// Of a matrix kept in f32 on a device that computes in bf16: the lower halves of its numbers;
    /// `buffer` has the upper ones, which are what products read ([`split`]).
    lower: Option<DeviceBuffer>,
    shape: Vec<usize>,
}

impl CudaStorage {
    /// A tensor with any contents.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn any(device: &Cuda, element: Element, shape: &[usize]) -> Result<Self> {
        let n: usize = shape.iter().product();
        let buffer = DeviceBuffer::new(&device.gpu, n * element.size())?;
        Ok(CudaStorage { device: device.clone(), buffer, element, lower: None, shape: shape.to_vec() })
    }

    /// An activation with any contents.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn activation(device: &Cuda, shape: &[usize]) -> Result<Self> {
        Self::any(device, device.activations, shape)
    }

    /// `data` kept in f32; a matrix on a device that computes in bf16 is split.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn master(device: &Cuda, data: &[f32], shape: &[usize]) -> Result<Self> {
        let (element, lower) = match (device.activations, shape.len()) {
            (Element::Bf16, 2) => (Element::Bf16, Some(DeviceBuffer::new(&device.gpu, data.len() * size_of::<u16>())?)),
            _ => (Element::F32, None),
        };
        let buffer = DeviceBuffer::new(&device.gpu, data.len() * element.size())?;
        let t = CudaStorage { device: device.clone(), buffer, element, lower, shape: shape.to_vec() };
        t.set(data)?;
        Ok(t)
    }

    /// Numbers that stay as they are, in the element type of products.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn frozen(device: &Cuda, data: Elements<'_>, shape: &[usize]) -> Result<Self> {
        let t = Self::activation(device, shape)?;
        match (device.activations, data) {
            (Element::Bf16, Elements::Bf16(data)) => t.upload(bytemuck::cast_slice(data))?,
            (_, data) => {
                let mut wide = vec![0.0; data.len()];
                data.widen(&mut wide);
                t.set(&wide)?;
            }
        }
        Ok(t)
    }

    /// Its shape.
    pub fn dims(&self) -> &[usize] {
        &self.shape
    }
    /// Its number of elements.
    pub fn elem_count(&self) -> usize {
        self.shape.iter().product()
    }
    /// Rows and columns; a vector is one row.
    pub fn matrix_dims(&self) -> (usize, usize) {
        let width = self.shape.last().copied().unwrap_or(1);
        (self.elem_count() / width.max(1), width)
    }
    /// Where it lies.
    pub fn device(&self) -> &Cuda {
        &self.device
    }
    /// How its elements are stored, the upper halves of split ones.
    pub fn element(&self) -> Element {
        self.element
    }
    /// Its memory.
    pub fn buffer(&self) -> &DeviceBuffer {
        &self.buffer
    }
    /// The lower halves of its numbers, if it is split.
    pub fn lower(&self) -> Option<&DeviceBuffer> {
        self.lower.as_ref()
    }
    /// Its memory as the argument of a kernel, without lower halves.
    pub fn arg(&self) -> Arg<'_> {
        Arg::Buffer(&self.buffer, 0)
    }
    /// Its memory as two arguments of a kernel: the second is null where the first is all.
    pub fn halves(&self) -> [Arg<'_>; 2] {
        [self.arg(), self.lower.as_ref().map_or(Arg::Null, start)]
    }
    /// The same, from the element `first` on.
    pub fn from(&self, first: usize) -> Arg<'_> {
        Arg::Buffer(&self.buffer, first * self.element.size())
    }
    /// It as an operand of a product, or the result of one.
    pub fn matrix(&self) -> Matrix<'_> {
        let (buffer, element) = (&self.buffer, self.element);
        Matrix { buffer, first: 0, element, stride: self.matrix_dims().1, batch_stride: 0, transposed: false }
    }

    fn upload(&self, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.device.gpu.upload(bytes, self.buffer.raw(), 0)
    }

    /// Puts `data` in, rounded where it is stored so.
    ///
    /// # Errors
    /// If `data` has another length, or the device fails.
    pub fn set(&self, data: &[f32]) -> Result<()> {
        if data.len() != self.elem_count() {
            return Err(BackendError::failed(format!("{} numbers for a tensor of {}", data.len(), self.elem_count())));
        }
        match (self.element, &self.lower) {
            (Element::F32, _) => self.upload(bytemuck::cast_slice(data)),
            (Element::Bf16, None) => {
                let rounded: Vec<bf16> = data.par_iter().map(|x| bf16::from_f32(*x)).collect();
                self.upload(bytemuck::cast_slice(&rounded))
            }
            (Element::Bf16, Some(lower)) => {
                let (upper, rest): (Vec<u16>, Vec<u16>) = data.par_iter().map(|x| split(*x)).unzip();
                self.upload(bytemuck::cast_slice(&upper))?;
                match rest.is_empty() {
                    true => Ok(()),
                    false => self.device.gpu.upload(bytemuck::cast_slice(&rest), lower.raw(), 0),
                }
            }
        }
    }

    /// Its numbers in f32. Waits for what is queued.
    ///
    /// # Errors
    /// If the device fails.
    pub fn download(&self) -> Result<Vec<f32>> {
        let n = self.elem_count();
        let gpu = &self.device.gpu;
        if n == 0 {
            return Ok(Vec::new());
        }
        let halves = |buffer: &DeviceBuffer| -> Result<Vec<u16>> {
            let mut data = vec![0u16; n];
            gpu.download(buffer.raw(), 0, bytemuck::cast_slice_mut(&mut data))?;
            Ok(data)
        };
        Ok(match (self.element, &self.lower) {
            (Element::F32, _) => {
                let mut data = vec![0f32; n];
                gpu.download(self.buffer.raw(), 0, bytemuck::cast_slice_mut(&mut data))?;
                data
            }
            (Element::Bf16, None) => halves(&self.buffer)?.par_iter().map(|x| bf16::from_bits(*x).to_f32()).collect(),
            (Element::Bf16, Some(lower)) => {
                let (upper, lower) = (halves(&self.buffer)?, halves(lower)?);
                upper.par_iter().zip(&lower).map(|(upper, lower)| join(*upper, *lower)).collect()
            }
        })
    }

    /// Sets all its elements to zero.
    ///
    /// # Errors
    /// If the device fails.
    pub fn clear(&self) -> Result<()> {
        let gpu = &self.device.gpu;
        gpu.zero(self.buffer.raw(), 0, self.elem_count() * self.element.size())?;
        match &self.lower {
            Some(lower) => gpu.zero(lower.raw(), 0, self.elem_count() * size_of::<u16>()),
            None => Ok(()),
        }
    }
}

impl Storage for CudaStorage {
    fn dims(&self) -> &[usize] {
        &self.shape
    }
    fn view(&self) -> Result<View<'_>> {
        self.download().map(View::brought)
    }
    fn edit(&self, f: &mut dyn FnMut(&mut [f32])) -> Result<()> {
        let mut data = self.download()?;
        f(&mut data);
        CudaStorage::set(self, &data)
    }
    fn set(&self, data: &[f32]) -> Result<()> {
        CudaStorage::set(self, data)
    }
    fn clear(&self) -> Result<()> {
        CudaStorage::clear(self)
    }
    fn copy(&self) -> Result<Tensor> {
        let y = Self::any(&self.device, self.element, &self.shape)?;
        let bytes = self.elem_count() * self.element.size();
        self.device.gpu.copy((self.buffer.raw(), 0), (y.buffer.raw(), 0), bytes)?;
        Ok(y.into())
    }
    fn zeros_like(&self) -> Result<Tensor> {
        let zeros = Self::any(&self.device, Element::F32, &self.shape)?;
        zeros.clear()?;
        Ok(zeros.into())
    }
    fn master(&self, data: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
        CudaStorage::master(&self.device, &data, shape).map(Tensor::from)
    }
}

/// Whole numbers on a device; clones share them.
#[derive(Clone, Debug)]
pub struct DeviceIndices {
    buffer: Arc<DeviceBuffer>,
    /// The first of them.
    first: usize,
}

impl DeviceIndices {
    /// A copy of `host`.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn upload(device: &Cuda, host: &[u32]) -> Result<Self> {
        let new = Self::any(device, host.len())?;
        new.set(device, host)?;
        Ok(new)
    }
    /// Room for `n` numbers.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn any(device: &Cuda, n: usize) -> Result<Self> {
        Ok(DeviceIndices { buffer: Arc::new(DeviceBuffer::new(&device.gpu, n * size_of::<u32>())?), first: 0 })
    }
    /// Puts `host` where they begin.
    ///
    /// # Errors
    /// If there is no room for as many, or the device fails.
    pub fn set(&self, device: &Cuda, host: &[u32]) -> Result<()> {
        match host.is_empty() {
            true => Ok(()),
            false => device.gpu.upload(bytemuck::cast_slice(host), self.buffer.raw(), self.first * size_of::<u32>()),
        }
    }
    /// The first `n` of them, once what is queued is done.
    ///
    /// # Errors
    /// If the device fails.
    pub fn get(&self, n: usize) -> Result<Vec<u32>> {
        let mut host = vec![0u32; n];
        let first = self.first * size_of::<u32>();
        self.buffer.gpu().download(self.buffer.raw(), first, bytemuck::cast_slice_mut(&mut host))?;
        Ok(host)
    }
    /// Those from `first` on, in the same place.
    pub fn part(&self, first: usize) -> Self {
        DeviceIndices { buffer: self.buffer.clone(), first: self.first + first }
    }
    /// As the argument of a kernel.
    pub fn arg(&self) -> Arg<'_> {
        self.from(0)
    }
    /// The same, from the element `first` on.
    pub fn from(&self, first: usize) -> Arg<'_> {
        Arg::Buffer(&self.buffer, (self.first + first) * size_of::<u32>())
    }
}

/// Rows packed back to back, on a device.
#[derive(Debug)]
pub struct DeviceRows {
    /// Where each starts; one more entry than rows.
    pub starts: DeviceIndices,
    /// How many.
    pub count: usize,
    /// Tokens of the longest.
    pub longest: usize,
}

impl DeviceRows {
    /// A copy of `starts`.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn upload(device: &Cuda, starts: &[usize]) -> Result<Self> {
        let host: Vec<u32> = starts.iter().map(|start| *start as u32).collect();
        let longest = starts.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0);
        Ok(DeviceRows { starts: DeviceIndices::upload(device, &host)?, count: starts.len() - 1, longest })
    }
}

/// Cosines and sines on a device, `[positions, head_dim / 2]` each, in f32.
#[derive(Debug)]
pub struct DeviceAngles {
    /// Cosines.
    pub cos: CudaStorage,
    /// Sines.
    pub sin: CudaStorage,
}

impl DeviceAngles {
    /// A copy of `table`.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn upload(device: &Cuda, table: &RotaryTable) -> Result<Self> {
        let copy = |data: &[f32]| -> Result<CudaStorage> {
            let t = CudaStorage::any(device, Element::F32, &[data.len()])?;
            t.set(data)?;
            Ok(t)
        };
        Ok(DeviceAngles { cos: copy(table.cos())?, sin: copy(table.sin())? })
    }
}

impl Cuda {
    /// Its copy of `indices`.
    ///
    /// # Errors
    /// If it has no room.
    pub(super) fn indices<'a>(&self, indices: &'a Indices) -> Result<&'a DeviceIndices> {
        indices.copy().get(|| DeviceIndices::upload(self, indices))
    }
    /// Its copy of `starts`.
    ///
    /// # Errors
    /// If it has no room.
    pub(super) fn rows<'a>(&self, starts: &'a Starts) -> Result<&'a DeviceRows> {
        starts.copy().get(|| DeviceRows::upload(self, starts))
    }
    /// Its copy of `angles`.
    ///
    /// # Errors
    /// If it has no room.
    pub(super) fn angles<'a>(&self, angles: &'a Angles) -> Result<&'a DeviceAngles> {
        angles.copy().get(|| DeviceAngles::upload(self, angles.table()))
    }
}
