//! Launches over all parameters at once: AdamW, the norm of the gradients and what it is clipped
//! to.

use std::sync::{Mutex, PoisonError};

use super::super::device::{Arg, DeviceBuffer, Element, Gpu, Launch};
use super::launch;
use crate::error::Result;
use crate::ops::adamw::Update;

/// Elements that a block takes; `cuda/optimizer.cu` has the same.
const CHUNK: usize = 8192;

/// A trained tensor without its gradient; all is f32 of `elements` elements, but for a split
/// parameter. Buffers from their beginning.
#[derive(Clone, Copy, Debug)]
pub struct TrainedTensor<'a> {
    /// The parameter.
    pub parameter: &'a DeviceBuffer,
    /// Its moments.
    pub moments: [&'a DeviceBuffer; 2],
    /// The parameter's lower halves, if it is split; `parameter` has the upper ones.
    pub lower: Option<&'a DeviceBuffer>,
    /// How many.
    pub elements: usize,
    /// Whether weight decay applies.
    pub decays: bool,
}

/// Words of a tensor in the table, and which of them say where its gradient is and whether that is
/// bf16.
const WORDS: usize = 8;
const GRADIENT: usize = 3;
const NARROW: usize = 7;

/// The table of all trained tensors on a device. It holds addresses: the buffers must stay where
/// they are, but for the gradients', which [`ParameterTable::point`] gives.
#[derive(Debug)]
pub struct ParameterTable {
    tensors: DeviceBuffer,
    /// How many entries `tensors` has.
    words: Mutex<Vec<u64>>,
    chunks: DeviceBuffer,
    firsts: DeviceBuffer,
    sums: DeviceBuffer,
    of_tensor: DeviceBuffer,
    clip: DeviceBuffer,
    blocks: usize,
    count: usize,
}

impl ParameterTable {
    /// Writes the table. Nothing here is made again from step to step.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn new(gpu: &std::sync::Arc<dyn Gpu>, trained: &[TrainedTensor<'_>]) -> Result<Self> {
        let (mut tensors, mut chunks, mut firsts) = (Vec::<u64>::new(), Vec::<u32>::new(), vec![0u32]);
        for (i, t) in (0u32..).zip(trained) {
            let [m, v] = t.moments.map(|m| m.raw().address);
            let lower = t.lower.map_or(0, |lower| lower.raw().address);
            tensors.extend([t.parameter.raw().address, m, v, 0, lower, t.elements as u64, u64::from(t.decays), 0]);
            (0..t.elements.div_ceil(CHUNK) as u32).for_each(|c| chunks.extend([i, c]));
            firsts.push(chunks.len() as u32 / 2);
        }
        let upload = |bytes: &[u8]| -> Result<DeviceBuffer> {
            let buffer = DeviceBuffer::new(gpu, bytes.len())?;
            if !bytes.is_empty() {
                gpu.upload(bytes, buffer.raw(), 0)?;
            }
            Ok(buffer)
        };
        let (blocks, count) = (chunks.len() / 2, trained.len());
        Ok(ParameterTable {
            tensors: upload(bytemuck::cast_slice(&tensors))?,
            chunks: upload(bytemuck::cast_slice(&chunks))?,
            firsts: upload(bytemuck::cast_slice(&firsts))?,
            sums: DeviceBuffer::new(gpu, blocks * 8)?,
            of_tensor: DeviceBuffer::new(gpu, count * 8)?,
            clip: DeviceBuffer::new(gpu, 8)?,
            words: Mutex::new(tensors),
            blocks,
            count,
        })
    }

    /// Says where the gradients are, in the order of the table, each f32 or bf16. Uploads the table
    /// if that has changed.
    ///
    /// # Errors
    /// As [`Gpu::launch`].
    pub fn point(&self, gpu: &dyn Gpu, gradients: &[(&DeviceBuffer, Element)]) -> Result<()> {
        let mut words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        let before = words.clone();
        for (tensor, (buffer, element)) in words.chunks_exact_mut(WORDS).zip(gradients) {
            tensor[GRADIENT] = buffer.raw().address;
            tensor[NARROW] = u64::from(*element == Element::Bf16);
        }
        match *words == before {
            true => Ok(()),
            false => gpu.upload(bytemuck::cast_slice(&words), self.tensors.raw(), 0),
        }
    }

    /// The norm of all gradients, then the factor that clips it to `max_norm` (0: never): two f32,
    /// where both are NaN if a gradient is not finite. They stay on the device;
    /// [`ParameterTable::adamw`] reads the factor there.
    pub fn norm_and_clip(&self) -> &DeviceBuffer {
        &self.clip
    }

    /// Sums of squares of each tensor's gradient, f64, in the order of the table; made by
    /// [`ParameterTable::measure`].
    pub fn sums_of_squares(&self) -> &DeviceBuffer {
        &self.of_tensor
    }

    /// Measures the gradients. Three launches, nothing comes to the host.
    ///
    /// # Errors
    /// As [`Gpu::launch`].
    pub fn measure(&self, gpu: &dyn Gpu, max_norm: f64) -> Result<()> {
        let at = |buffer| Arg::Buffer(buffer, 0);
        let args = [at(&self.tensors), at(&self.chunks), at(&self.sums)];
        launch(gpu, self.blocks, "karat_square_sums", Launch::linear(self.blocks, 256), &args)?;
        let args = [at(&self.sums), at(&self.firsts), at(&self.of_tensor)];
        launch(gpu, self.count, "karat_tensor_sums", Launch::linear(self.count, 256), &args)?;
        let args = [at(&self.of_tensor), at(&self.clip), Arg::I32(self.count as i32), Arg::F32(max_norm as f32)];
        gpu.launch("karat_clip", Launch::linear(1, 256), &args)
    }

    /// Updates all parameters; `update.gradient_scale` is not read, the factor of
    /// [`ParameterTable::measure`] is. Where that is not finite, nothing changes.
    ///
    /// # Errors
    /// As [`Gpu::launch`].
    pub fn adamw(&self, gpu: &dyn Gpu, update: &Update) -> Result<()> {
        let Update { lr, beta1, beta2, eps, weight_decay, step, .. } = *update;
        let t = f64::from(step);
        // Rounded as ops/adamw.rs rounds them.
        let numbers = [
            lr / (1.0 - beta1.powf(t)),
            (1.0 - beta2.powf(t)).sqrt(),
            1.0 - lr * weight_decay,
            1.0 - beta1,
            1.0 - beta2,
            beta2,
            eps,
        ];
        let mut args = vec![Arg::Buffer(&self.tensors, 0), Arg::Buffer(&self.chunks, 0), Arg::Buffer(&self.clip, 4)];
        args.extend(numbers.map(|x| Arg::F32(x as f32)));
        launch(gpu, self.blocks, "karat_adamw", Launch::linear(self.blocks, 256), &args)
    }
}
