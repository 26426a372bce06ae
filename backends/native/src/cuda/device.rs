//! The interface of a GPU: memory, launches of kernels by name, GEMMs, graphs.
//!
//! All work of one device goes into one queue and is done in that order, so memory that is freed
//! may be given out again at once, which [`super::pool`] does. Only [`Gpu::download`] and
//! [`Gpu::synchronize`] wait.

use std::fmt;
use std::sync::Arc;

use super::pool::{Pool, Pools};
pub use super::raw::{DeviceMemory, RawBuffer, RawGraph};
use crate::error::Result;

/// Device memory that is given back when its owner goes.
pub struct DeviceBuffer {
    gpu: Arc<dyn Gpu>,
    raw: RawBuffer,
    /// The pool that it is of.
    home: Arc<Pool>,
}

impl DeviceBuffer {
    /// At least `bytes` bytes (one where that is 0) with any contents.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn new(gpu: &Arc<dyn Gpu>, bytes: usize) -> Result<Self> {
        let home = gpu.pools().current();
        Ok(DeviceBuffer { gpu: gpu.clone(), raw: home.get(&**gpu, bytes.max(1))?, home })
    }
    /// Where it lies.
    pub fn raw(&self) -> RawBuffer {
        self.raw
    }
    /// The device it lies on.
    pub fn gpu(&self) -> &Arc<dyn Gpu> {
        &self.gpu
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        if let Some(raw) = self.home.give(&*self.gpu, self.raw) {
            self.gpu.free(raw);
        }
    }
}

impl fmt::Debug for DeviceBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of {}", self.raw.bytes, self.gpu.facts().name)
    }
}

/// An argument of a kernel, in the order of its parameters.
#[derive(Clone, Copy, Debug)]
pub enum Arg<'a> {
    /// A pointer into a buffer, so many *bytes* from its start.
    Buffer(&'a DeviceBuffer, usize),
    /// A null pointer: the kernel's word for "not given".
    Null,
    /// `int`.
    I32(i32),
    /// `unsigned`.
    U32(u32),
    /// `long long`.
    I64(i64),
    /// `unsigned long long`.
    U64(u64),
    /// `float`.
    F32(f32),
}

/// The geometry of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory of a block; above 48 KiB the device is told so before the
    /// launch.
    pub shared: u32,
}

impl Launch {
    /// `blocks` blocks of `threads` threads in a row.
    pub fn linear(blocks: usize, threads: u32) -> Self {
        Launch { grid: [blocks.max(1) as u32, 1, 1], block: [threads, 1, 1], shared: 0 }
    }
}

/// How an element of a matrix is stored on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// 32-bit float.
    F32,
    /// bfloat16.
    Bf16,
}

impl Element {
    /// Bytes of one.
    pub fn size(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::Bf16 => 2,
        }
    }
}

/// A row-major matrix on a device, or several of them a stride apart.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// Where its numbers lie.
    pub buffer: &'a DeviceBuffer,
    /// Its first *element*, counted from the start of the buffer.
    pub first: usize,
    /// How they are stored.
    pub element: Element,
    /// Elements from one row to the next.
    pub stride: usize,
    /// Elements from one matrix of a batch to the next.
    pub batch_stride: usize,
    /// It takes part in the product transposed.
    pub transposed: bool,
}

/// `C = alpha op(A) op(B) + beta C`, sums in f32, for each of `batch` matrices. With `m` rows and
/// `n` columns of `C`, `op(A)` is `[m, k]` and `op(B)` is `[k, n]`. `A` and `B` have one element
/// type; `C` has theirs or f32. `C` is never transposed. With `beta` 0, what was in `C` is not
/// read.
#[derive(Clone, Copy, Debug)]
pub struct Gemm<'a> {
    /// Rows of `C`.
    pub m: usize,
    /// Columns of `C`.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// Factor of the product.
    pub alpha: f32,
    /// Left operand.
    pub a: Matrix<'a>,
    /// Right operand.
    pub b: Matrix<'a>,
    /// Factor of what is in `C`.
    pub beta: f32,
    /// Result.
    pub c: Matrix<'a>,
    /// How many.
    pub batch: usize,
}

/// Properties of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its name, e.g. `NVIDIA H200`; the emulator says that it is one.
    pub name: String,
    /// Number among the machine's devices.
    pub ordinal: usize,
    /// Major and minor version of what it can do.
    pub compute_capability: (u32, u32),
    /// Bytes of memory.
    pub memory: u64,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of shared memory that a block may ask for.
    pub shared_memory: u32,
    /// It is no hardware.
    pub emulated: bool,
}

/// A device: [`crate::cuda`].
pub trait Gpu: DeviceMemory {
    /// Its properties.
    fn facts(&self) -> &Facts;

    /// Copies `from` to `to`, `offset` bytes from its start. `from` may change as soon as this
    /// returns.
    ///
    /// # Errors
    /// If the device fails, or the range lies outside.
    fn upload(&self, from: &[u8], to: RawBuffer, offset: usize) -> Result<()>;

    /// Waits for what is queued, then copies from `from`, `offset` bytes from its start.
    ///
    /// # Errors
    /// If the device or something queued before fails, or the range lies outside.
    fn download(&self, from: RawBuffer, offset: usize, to: &mut [u8]) -> Result<()>;

    /// Copies `bytes` bytes between buffers that do not overlap, given with the offset of the first
    /// byte.
    ///
    /// # Errors
    /// If the device fails, or a range lies outside.
    fn copy(&self, from: (RawBuffer, usize), to: (RawBuffer, usize), bytes: usize) -> Result<()>;

    /// Sets `bytes` bytes from `offset` on to zero.
    ///
    /// # Errors
    /// If the device fails, or the range lies outside.
    fn zero(&self, buffer: RawBuffer, offset: usize, bytes: usize) -> Result<()>;

    /// Queues the kernel `karat_NAME` for `kernel` = `karat_NAME`.
    ///
    /// # Errors
    /// If there is no such kernel or the device refuses the launch; a fault while it runs shows at
    /// the next wait.
    fn launch(&self, kernel: &'static str, launch: Launch, arguments: &[Arg<'_>]) -> Result<()>;

    /// Queues a matrix product.
    ///
    /// # Errors
    /// If the device refuses it.
    fn gemm(&self, product: &Gemm<'_>) -> Result<()>;

    /// Waits for all that is queued.
    ///
    /// # Errors
    /// If something queued has failed.
    fn synchronize(&self) -> Result<()>;

    /// Most bytes that buffers ever took at the same time, those that wait in a pool included, and
    /// since when that is asked again with `reset`.
    fn peak_memory(&self, reset: bool) -> u64;

    /// Its pools of memory.
    fn pools(&self) -> &Pools;

    /// Records from now on, instead of doing it, what this thread queues:
    /// [`super::graph::CudaGraph`].
    ///
    /// # Errors
    /// If the device cannot, or records already.
    fn begin_graph(&self) -> Result<()>;

    /// The recording.
    ///
    /// # Errors
    /// If something was asked for meanwhile that cannot be recorded.
    fn end_graph(&self) -> Result<RawGraph>;

    /// Queues what was recorded.
    ///
    /// # Errors
    /// If the device refuses.
    fn play_graph(&self, graph: RawGraph) -> Result<()>;

    /// Forgets a recording, once what is queued has been done.
    fn drop_graph(&self, graph: RawGraph);
}
