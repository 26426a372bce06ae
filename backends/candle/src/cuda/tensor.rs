//! Numbers on a device.

use std::fmt;
use std::sync::Arc;

use half::bf16;
use karat::backend::BackendError;
use rayon::prelude::*;

use super::device::{Arg, Buffer, Element, Gpu, Matrix};
use crate::nn::Result;
use crate::ops::mapped::Elements;
use crate::ops::rope::Table;

/// A device with the element type that activations and products have on it.
pub struct Device {
    /// The device.
    pub gpu: Arc<dyn Gpu>,
    /// Of activations, their gradients, and the operands of products.
    pub activations: Element,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {:?}", self.gpu.facts().name, self.activations)
    }
}

/// A buffer as the argument of a kernel.
pub fn start(buffer: &Buffer) -> Arg<'_> {
    Arg::Buffer(buffer, 0)
}

/// A dense row-major tensor on a device; clones share it.
#[derive(Clone, Debug)]
pub struct Tensor(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    device: Arc<Device>,
    buffer: Buffer,
    element: Element,
    /// Of a matrix kept in f32 on a device that computes in bf16: the same numbers rounded, which products read.
    rounded: Option<Buffer>,
    shape: Vec<usize>,
}

impl Tensor {
    /// A tensor with any contents.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn any(device: &Arc<Device>, element: Element, shape: &[usize]) -> Result<Self> {
        let n: usize = shape.iter().product();
        let buffer = Buffer::new(&device.gpu, n * element.size())?;
        Ok(Tensor(Arc::new(Inner { device: device.clone(), buffer, element, rounded: None, shape: shape.to_vec() })))
    }

    /// An activation with any contents.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn activation(device: &Arc<Device>, shape: &[usize]) -> Result<Self> {
        Self::any(device, device.activations, shape)
    }

    /// `data` kept in f32; a matrix also has what products read of it.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn master(device: &Arc<Device>, data: &[f32], shape: &[usize]) -> Result<Self> {
        Self::own(device, data, shape, None)
    }

    fn own(device: &Arc<Device>, data: &[f32], shape: &[usize], rounded: Option<Buffer>) -> Result<Self> {
        let rounded = match (rounded, device.activations, shape.len()) {
            (Some(rounded), ..) => Some(rounded),
            (None, Element::Bf16, 2) => Some(Buffer::new(&device.gpu, data.len() * Element::Bf16.size())?),
            _ => None,
        };
        let buffer = Buffer::new(&device.gpu, data.len() * Element::F32.size())?;
        let (device, element) = (device.clone(), Element::F32);
        let t = Tensor(Arc::new(Inner { device, buffer, element, rounded, shape: shape.to_vec() }));
        t.set(data)?;
        Ok(t)
    }

    /// Numbers that stay as they are, in the element type of products.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn frozen(device: &Arc<Device>, data: Elements<'_>, shape: &[usize]) -> Result<Self> {
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
        &self.0.shape
    }
    /// Its number of elements.
    pub fn elem_count(&self) -> usize {
        self.0.shape.iter().product()
    }
    /// Rows and columns; a vector is one row.
    pub fn matrix_dims(&self) -> (usize, usize) {
        let width = self.0.shape.last().copied().unwrap_or(1);
        (self.elem_count() / width.max(1), width)
    }
    /// Where it lies.
    pub fn device(&self) -> &Arc<Device> {
        &self.0.device
    }
    /// How its elements are stored.
    pub fn element(&self) -> Element {
        self.0.element
    }
    /// Its memory.
    pub fn buffer(&self) -> &Buffer {
        &self.0.buffer
    }
    /// Its rounded copy, if it has one.
    pub fn rounded(&self) -> Option<&Buffer> {
        self.0.rounded.as_ref()
    }
    /// Its memory as the argument of a kernel.
    pub fn arg(&self) -> Arg<'_> {
        Arg::Buffer(&self.0.buffer, 0)
    }
    /// The same, from the element `first` on.
    pub fn from(&self, first: usize) -> Arg<'_> {
        Arg::Buffer(&self.0.buffer, first * self.0.element.size())
    }
    /// It as an operand of a product: rounded where the device computes in bf16.
    pub fn operand(&self) -> Matrix<'_> {
        let (buffer, element) = match &self.0.rounded {
            Some(rounded) => (rounded, Element::Bf16),
            None => (&self.0.buffer, self.0.element),
        };
        Matrix { buffer, first: 0, element, stride: self.matrix_dims().1, batch_stride: 0, transposed: false }
    }
    /// It as the result of a product.
    pub fn result(&self) -> Matrix<'_> {
        let (buffer, element) = (&self.0.buffer, self.0.element);
        Matrix { buffer, first: 0, element, stride: self.matrix_dims().1, batch_stride: 0, transposed: false }
    }

    fn upload(&self, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.0.device.gpu.upload(bytes, self.0.buffer.raw(), 0)
    }

    /// Puts `data` in, rounded where it is stored so.
    ///
    /// # Errors
    /// If `data` has another length, or the device fails.
    pub fn set(&self, data: &[f32]) -> Result<()> {
        if data.len() != self.elem_count() {
            return Err(BackendError::failed(format!("{} numbers for a tensor of {}", data.len(), self.elem_count())));
        }
        let round = || -> Vec<bf16> { data.par_iter().map(|x| bf16::from_f32(*x)).collect() };
        match (self.0.element, &self.0.rounded) {
            (Element::F32, None) => self.upload(bytemuck::cast_slice(data)),
            (Element::Bf16, _) => self.upload(bytemuck::cast_slice(&round())),
            (Element::F32, Some(rounded)) => {
                self.upload(bytemuck::cast_slice(data))?;
                self.0.device.gpu.upload(bytemuck::cast_slice(&round()), rounded.raw(), 0)
            }
        }
    }

    /// Its numbers, widened to f32. Waits for what is queued.
    ///
    /// # Errors
    /// If the device fails.
    pub fn download(&self) -> Result<Vec<f32>> {
        let n = self.elem_count();
        let gpu = &self.0.device.gpu;
        if n == 0 {
            return Ok(Vec::new());
        }
        Ok(match self.0.element {
            Element::F32 => {
                let mut data = vec![0f32; n];
                gpu.download(self.0.buffer.raw(), 0, bytemuck::cast_slice_mut(&mut data))?;
                data
            }
            Element::Bf16 => {
                let mut data = vec![bf16::ZERO; n];
                gpu.download(self.0.buffer.raw(), 0, bytemuck::cast_slice_mut(&mut data))?;
                data.par_iter().map(|x| x.to_f32()).collect()
            }
        })
    }

    /// Sets all its elements to zero.
    ///
    /// # Errors
    /// If the device fails.
    pub fn clear(&self) -> Result<()> {
        let gpu = &self.0.device.gpu;
        gpu.zero(self.0.buffer.raw(), 0, self.elem_count() * self.0.element.size())?;
        match &self.0.rounded {
            Some(rounded) => gpu.zero(rounded.raw(), 0, self.elem_count() * Element::Bf16.size()),
            None => Ok(()),
        }
    }
}

/// Whole numbers on a device.
#[derive(Debug)]
pub struct Indices {
    buffer: Buffer,
}

impl Indices {
    /// A copy of `host`.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn upload(device: &Arc<Device>, host: &[u32]) -> Result<Self> {
        let buffer = Buffer::new(&device.gpu, size_of_val(host))?;
        if !host.is_empty() {
            device.gpu.upload(bytemuck::cast_slice(host), buffer.raw(), 0)?;
        }
        Ok(Indices { buffer })
    }
    /// As the argument of a kernel.
    pub fn arg(&self) -> Arg<'_> {
        Arg::Buffer(&self.buffer, 0)
    }
    /// The same, from the element `first` on.
    pub fn from(&self, first: usize) -> Arg<'_> {
        Arg::Buffer(&self.buffer, first * size_of::<u32>())
    }
}

/// Rows packed back to back, on a device.
#[derive(Debug)]
pub struct Rows {
    /// Where each starts; one more entry than rows.
    pub starts: Indices,
    /// How many.
    pub count: usize,
    /// Tokens of the longest.
    pub longest: usize,
}

impl Rows {
    /// A copy of `starts`.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn upload(device: &Arc<Device>, starts: &[usize]) -> Result<Self> {
        let host: Vec<u32> = starts.iter().map(|start| *start as u32).collect();
        let longest = starts.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0);
        Ok(Rows { starts: Indices::upload(device, &host)?, count: starts.len() - 1, longest })
    }
}

/// Cosines and sines on a device, `[positions, head_dim / 2]` each, in f32.
#[derive(Debug)]
pub struct Angles {
    /// Cosines.
    pub cos: Tensor,
    /// Sines.
    pub sin: Tensor,
}

impl Angles {
    /// A copy of `table`.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn upload(device: &Arc<Device>, table: &Table) -> Result<Self> {
        let copy = |data: &[f32]| -> Result<Tensor> {
            let t = Tensor::any(device, Element::F32, &[data.len()])?;
            t.set(data)?;
            Ok(t)
        };
        Ok(Angles { cos: copy(table.cos())?, sin: copy(table.sin())? })
    }
}
