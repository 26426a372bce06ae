//! The emulator, a CUDA device without a GPU: the kernels' own sources, compiled by the host's C++
//! compiler against `cuda/emulate.h`.
//!
//! It is for tests, never for work: slow, and strict instead. Fresh memory is NaN, as is every byte
//! around a buffer; a kernel that writes there, takes arguments of other types than it is given,
//! divides a warp or misses a barrier is an error that says so. Threads can be run in several
//! orders, which must not show in the bits. What is recorded is done when it is played, and what a
//! GPU could not record is refused.
#![allow(unsafe_code)]

mod library;
mod recording;

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use karat_backend::BackendError;

use self::library::{Kernels, Run};
pub use self::recording::DeviceCounts;
use self::recording::{GemmCopy, MatrixCopy, Op, Word};
use super::device::{Arg, Element, Facts, Gemm, Gpu, Launch, RawBuffer};
use super::pool::Pools;
use super::raw::{DeviceMemory, RawGraph};
use crate::error::Result;
use karat_kernels::gemm::{Mat, MatMut, Precision, Threads, gemm};

/// Bytes before and after every buffer that no kernel may write.
const GUARD: usize = 4096;
/// A signaling NaN as f32 and as bf16, in the order of bytes: arithmetic never gives it, so what
/// was overwritten shows.
const POISON: [u8; 2] = [0xa0, 0x7f];
/// Shared memory that every device of compute capability 8.0 and later gives a block.
const SHARED_MEMORY: u32 = 99 << 10;

/// In which order the threads of a block run between barriers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BlockOrder {
    /// From the first to the last.
    #[default]
    Forward,
    /// From the last to the first.
    Backward,
    /// In another order each time, drawn from this seed.
    Shuffled(u64),
}

/// The emulated device.
pub struct Emulator {
    kernels: &'static Kernels,
    facts: Facts,
    pools: Pools,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Bytes of each buffer by its address, and who may use it.
    buffers: BTreeMap<u64, (usize, Holder)>,
    held: u64,
    peak: u64,
    order: BlockOrder,
    counts: DeviceCounts,
    recording: Option<Vec<Op>>,
    /// A request made while recording that cannot be recorded.
    refused: Option<String>,
    playing: bool,
    graphs: BTreeMap<u64, Arc<[Op]>>,
}

/// Who may use a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    Owner,
    /// Nobody: it waits in the device's pool.
    Pool,
    /// It waits in a private pool, for recordings made with it.
    Arena,
}

fn failed(message: impl Into<String>) -> BackendError {
    BackendError::failed(message)
}

impl Emulator {
    /// The device; its kernels are compiled if that was not done on this machine yet (seconds).
    ///
    /// # Errors
    /// If there is no C++ compiler, with what to do.
    pub fn new() -> Result<Arc<Self>> {
        let facts = Facts {
            name: "CUDA emulator (no GPU: for tests)".into(),
            ordinal: 0,
            compute_capability: (8, 0),
            memory: 8 << 30,
            multiprocessors: 4,
            shared_memory: SHARED_MEMORY,
            emulated: true,
        };
        let (pools, state) = (Pools::default(), Mutex::default());
        Ok(Arc::new(Emulator { kernels: Kernels::get()?, facts, pools, state }))
    }

    /// Runs threads in this order from now on.
    pub fn set_order(&self, order: BlockOrder) {
        self.state().order = order;
    }

    /// The names of all kernels, sorted.
    pub fn kernels(&self) -> Vec<String> {
        self.kernels.names()
    }

    /// The types of a kernel's parameters, separated by commas; a pointer is `*`.
    pub fn signature(&self, kernel: &str) -> Option<&'static str> {
        self.kernels.signature(&CString::new(kernel).ok()?)
    }

    /// How often it was asked for what.
    pub fn counts(&self) -> DeviceCounts {
        self.state().counts
    }

    /// Refuses what cannot be recorded while recording, and counts it otherwise.
    fn now(&self, what: &str, count: impl FnOnce(&mut DeviceCounts)) -> Result<()> {
        let mut state = self.state();
        if state.recording.is_some() {
            let message = format!("{what} while a graph is recorded");
            state.refused.get_or_insert_with(|| message.clone());
            return Err(failed(message));
        }
        count(&mut state.counts);
        Ok(())
    }

    /// Records `op`, or counts it and does it.
    fn queue(&self, op: Op) -> Result<()> {
        let mut state = self.state();
        if let Some(recording) = &mut state.recording {
            recording.push(op);
            return Ok(());
        }
        let counts = &mut state.counts;
        *match &op {
            Op::Launch { .. } => &mut counts.launches,
            Op::Gemm(_) => &mut counts.products,
            Op::Copy { .. } | Op::Zero { .. } => &mut counts.fills,
        } += 1;
        drop(state);
        self.perform(&op)
    }

    fn perform(&self, op: &Op) -> Result<()> {
        match op {
            Op::Launch { kernel, launch, arguments } => self.run(kernel, *launch, arguments),
            Op::Gemm(product) => self.multiply(product),
            Op::Copy { from, to, bytes } => {
                let (from, to) = (self.range(from.0, from.1, *bytes)?, self.range(to.0, to.1, *bytes)?);
                // SAFETY: `range` checked both.
                unsafe { std::ptr::copy(from, to, *bytes) };
                Ok(())
            }
            Op::Zero { to, bytes } => {
                let start = self.range(to.0, to.1, *bytes)?;
                // SAFETY: `range` checked it.
                unsafe { start.write_bytes(0, *bytes) };
                Ok(())
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks that a range lies in a buffer of this device and gives its first byte.
    fn range(&self, buffer: RawBuffer, offset: usize, bytes: usize) -> Result<*mut u8> {
        let state = self.state();
        match state.buffers.get(&buffer.address) {
            Some((size, Holder::Owner)) if offset.checked_add(bytes).is_some_and(|end| end <= *size) => {
                Ok((buffer.address as *mut u8).wrapping_add(offset))
            }
            Some((size, Holder::Arena))
                if state.playing && offset.checked_add(bytes).is_some_and(|end| end <= *size) =>
            {
                Ok((buffer.address as *mut u8).wrapping_add(offset))
            }
            Some((size, Holder::Owner)) => Err(failed(format!("bytes {offset}..+{bytes} of a buffer of {size}"))),
            Some(_) | None => Err(failed("a buffer that was given back, or of another device")),
        }
    }

    /// Whether the zones around a buffer are as they were.
    fn intact(&self, buffer: RawBuffer) -> bool {
        let start = buffer.address as *const u8;
        // SAFETY: `alloc` made both zones, and the buffer is held by its owner.
        let zones = unsafe {
            [(start.sub(GUARD), 0), (start.add(buffer.bytes), buffer.bytes)]
                .map(|(zone, first)| (std::slice::from_raw_parts(zone, GUARD), first))
        };
        zones.iter().all(|(zone, first)| zone.iter().zip(*first..).all(|(byte, i)| *byte == POISON[i % 2]))
    }

    /// A matrix of a product as dense f32, one after another of its batch.
    fn dense(&self, m: &MatrixCopy, batch: usize, rows: usize, columns: usize) -> Result<Vec<f32>> {
        let mut all = Vec::with_capacity(batch * rows * columns);
        for b in 0..batch {
            for row in 0..rows {
                let bytes = m.element.size();
                let first = m.first + b * m.batch_stride + row * m.stride;
                let data = self.range(m.buffer, first * bytes, columns * bytes)?;
                for i in 0..columns {
                    // SAFETY: `range` checked it; reads of any alignment.
                    all.push(unsafe {
                        match m.element {
                            Element::F32 => data.cast::<f32>().add(i).read_unaligned(),
                            Element::Bf16 => data.cast::<half::bf16>().add(i).read_unaligned().to_f32(),
                        }
                    });
                }
            }
        }
        Ok(all)
    }

    /// Runs a kernel to its end.
    fn run(&self, kernel: &'static str, launch: Launch, arguments: &[Word]) -> Result<()> {
        let name = CString::new(kernel).map_err(|_| failed("a kernel's name with a zero in it"))?;
        let mut values = Vec::with_capacity(arguments.len());
        for argument in arguments {
            values.push(match *argument {
                Word::Buffer(buffer, offset) => self.range(buffer, offset, 0)? as u64,
                Word::Value(value) => value,
            });
        }
        // A little-endian host: the first bytes of a word are the narrower value's.
        let mut pointers: Vec<*mut c_void> = values.iter_mut().map(|v| std::ptr::from_mut(v).cast()).collect();
        let mode = match self.state().order {
            BlockOrder::Forward => 0,
            BlockOrder::Backward => 1,
            BlockOrder::Shuffled(seed) => seed.max(2),
        };
        let mut error = [0 as c_char; 512];
        // SAFETY: emulate.cpp exports it with this type; the arguments have the types of the
        // kernel's parameters, and that its pointers reach no further than their buffers is what
        // the tests are for.
        let code = unsafe {
            let run = self.kernels.library.get::<Run>(b"karat_emulate_launch").map_err(|e| failed(e.to_string()))?;
            run(
                name.as_ptr(),
                launch.grid.as_ptr(),
                launch.block.as_ptr(),
                launch.shared,
                pointers.as_mut_ptr(),
                mode,
                error.as_mut_ptr(),
            )
        };
        if code != 0 {
            // SAFETY: 512 bytes that end with a zero, which `snprintf` wrote.
            return Err(failed(unsafe { CStr::from_ptr(error.as_ptr()) }.to_string_lossy()));
        }
        for (i, argument) in arguments.iter().enumerate() {
            if let Word::Buffer(buffer, _) = argument
                && !self.intact(*buffer)
            {
                return Err(failed(format!("{kernel} writes outside its argument {i}, of {} bytes", buffer.bytes)));
            }
        }
        Ok(())
    }

    /// Computes a product.
    fn multiply(&self, g: &GemmCopy) -> Result<()> {
        let GemmCopy { shape: [m, n, k], factors: [alpha, beta], matrices: [a, b, c], batch } = g;
        let (&m, &n, &k, &alpha, &beta, &batch) = (m, n, k, alpha, beta, batch);
        let shape = |x: &MatrixCopy, rows, columns| if x.transposed { (columns, rows) } else { (rows, columns) };
        let ((a_rows, a_columns), (b_rows, b_columns)) = (shape(a, m, k), shape(b, k, n));
        for (what, x, columns) in [("A", a, a_columns), ("B", b, b_columns), ("C", c, n)] {
            if x.stride < columns {
                return Err(failed(format!("rows of {columns} elements {} apart in {what}", x.stride)));
            }
        }
        let (left, right) = (self.dense(a, batch, a_rows, a_columns)?, self.dense(b, batch, b_rows, b_columns)?);
        let was = if beta == 0.0 { vec![0.0; batch * m * n] } else { self.dense(c, batch, m, n)? };
        for i in 0..batch {
            let mut sums = vec![0f32; m * n];
            let (x, y) = (&left[i * m * k..][..m * k], &right[i * k * n..][..k * n]);
            let (x, y) = (Mat::new(x, a_rows, a_columns), Mat::new(y, b_rows, b_columns));
            let (x, y) = (if a.transposed { x.t() } else { x }, if b.transposed { y.t() } else { y });
            gemm(Precision::F32, MatMut::new(&mut sums, m, n), 1.0, x, y, false, Threads::One);
            for row in 0..m {
                let bytes = c.element.size();
                let first = c.first + i * c.batch_stride + row * c.stride;
                let to = self.range(c.buffer, first * bytes, n * bytes)?;
                for column in 0..n {
                    let at = row * n + column;
                    let mut x = alpha * sums[at];
                    if beta != 0.0 {
                        x += beta * was[i * m * n + at];
                    }
                    // SAFETY: `range` checked it; writes of any alignment.
                    unsafe {
                        match c.element {
                            Element::F32 => to.cast::<f32>().add(column).write_unaligned(x),
                            Element::Bf16 => {
                                to.cast::<half::bf16>().add(column).write_unaligned(half::bf16::from_f32(x));
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

impl DeviceMemory for Emulator {
    fn alloc(&self, bytes: usize) -> Result<RawBuffer> {
        self.now("an allocation", |counts| counts.allocated += 1)?;
        let layout = layout(bytes)?;
        // SAFETY: the size is not 0.
        let start = unsafe { alloc(layout) };
        if start.is_null() {
            return Err(failed(format!("no room for {bytes} bytes on the emulated device")));
        }
        poison(start, layout.size());
        let address = start as u64 + GUARD as u64;
        let mut state = self.state();
        state.buffers.insert(address, (bytes, Holder::Owner));
        state.held += bytes as u64;
        state.peak = state.peak.max(state.held);
        Ok(RawBuffer { address, bytes })
    }

    fn free(&self, buffer: RawBuffer) {
        let mut state = self.state();
        if state.recording.is_some() {
            // A GPU would make this a part of the recording; the buffer is lost here, and the
            // recording too.
            state.refused.get_or_insert_with(|| "memory given back to the device while a graph is recorded".into());
            return;
        }
        if let Some((bytes, _)) = state.buffers.remove(&buffer.address)
            && let Ok(layout) = layout(bytes)
        {
            state.held -= bytes as u64;
            state.counts.freed += 1;
            // SAFETY: `alloc` made it with this layout, and it was in the table until now.
            unsafe { dealloc((buffer.address as usize - GUARD) as *mut u8, layout) };
        }
    }

    fn lent(&self, buffer: RawBuffer) {
        poison(buffer.address as *mut u8, buffer.bytes.next_multiple_of(2));
        self.state().buffers.insert(buffer.address, (buffer.bytes, Holder::Owner));
    }

    fn parked(&self, buffer: RawBuffer, private: bool) {
        let holder = if private { Holder::Arena } else { Holder::Pool };
        self.state().buffers.insert(buffer.address, (buffer.bytes, holder));
    }
}

impl Gpu for Emulator {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn upload(&self, from: &[u8], to: RawBuffer, offset: usize) -> Result<()> {
        self.now("a copy from the host", |counts| counts.uploads += 1)?;
        let to = self.range(to, offset, from.len())?;
        // SAFETY: `range` checked the target, and no slice of ours lies in a device's buffer.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
        Ok(())
    }

    fn download(&self, from: RawBuffer, offset: usize, to: &mut [u8]) -> Result<()> {
        self.now("a copy to the host", |counts| counts.downloads += 1)?;
        let from = self.range(from, offset, to.len())?;
        // SAFETY: as in `upload`.
        unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    fn copy(&self, from: (RawBuffer, usize), to: (RawBuffer, usize), bytes: usize) -> Result<()> {
        self.queue(Op::Copy { from, to, bytes })
    }

    fn zero(&self, buffer: RawBuffer, offset: usize, bytes: usize) -> Result<()> {
        self.queue(Op::Zero { to: (buffer, offset), bytes })
    }

    fn launch(&self, kernel: &'static str, launch: Launch, arguments: &[Arg<'_>]) -> Result<()> {
        let name = CString::new(kernel).map_err(|_| failed("a kernel's name with a zero in it"))?;
        let signature = self.kernels.signature(&name).ok_or_else(|| failed(format!("there is no kernel {kernel}")))?;
        let given: Vec<&str> = arguments.iter().map(type_of).collect();
        let wanted: Vec<&str> = signature.split(',').map(|t| t.trim_start_matches("const ")).collect();
        if given != wanted {
            return Err(failed(format!("{kernel} takes ({signature}), not ({})", given.join(","))));
        }
        if launch.grid.contains(&0) || launch.grid[1] > 65535 || launch.grid[2] > 65535 {
            return Err(failed(format!("{kernel}: a grid of {:?} blocks", launch.grid)));
        }
        if launch.shared > SHARED_MEMORY {
            return Err(failed(format!("{kernel}: {} bytes of shared memory", launch.shared)));
        }
        self.queue(Op::Launch { kernel, launch, arguments: arguments.iter().map(Word::from).collect() })
    }

    fn gemm(&self, g: &Gemm<'_>) -> Result<()> {
        if g.a.element != g.b.element || (g.c.element != g.a.element && g.c.element != Element::F32) || g.c.transposed {
            return Err(failed("a product of element types that cuBLAS does not have"));
        }
        self.queue(Op::Gemm(GemmCopy::from(g)))
    }

    fn synchronize(&self) -> Result<()> {
        self.now("waiting", |counts| counts.waits += 1)
    }

    fn peak_memory(&self, reset: bool) -> u64 {
        let mut state = self.state();
        let peak = state.peak;
        if reset {
            state.peak = state.held;
        }
        peak
    }

    fn pools(&self) -> &Pools {
        &self.pools
    }

    fn begin_graph(&self) -> Result<()> {
        self.now("a second recording", |counts| counts.recorded += 1)?;
        let mut state = self.state();
        (state.recording, state.refused) = (Some(Vec::new()), None);
        Ok(())
    }

    fn end_graph(&self) -> Result<RawGraph> {
        let mut state = self.state();
        let ops = state.recording.take().ok_or_else(|| failed("nothing is being recorded"))?;
        if let Some(refused) = state.refused.take() {
            return Err(failed(refused));
        }
        let number = state.graphs.last_key_value().map_or(1, |(last, _)| last + 1);
        state.graphs.insert(number, ops.into());
        Ok(RawGraph(number))
    }

    fn play_graph(&self, graph: RawGraph) -> Result<()> {
        self.now("a graph", |counts| counts.played += 1)?;
        let mut state = self.state();
        let ops = state.graphs.get(&graph.0).cloned().ok_or_else(|| failed("a graph that was dropped"))?;
        state.playing = true;
        drop(state);
        let done = ops.iter().try_for_each(|op| self.perform(op));
        self.state().playing = false;
        done
    }

    fn drop_graph(&self, graph: RawGraph) {
        self.state().graphs.remove(&graph.0);
    }
}

/// Fills memory of the host, an even number of bytes, so that reading it shows.
fn poison(start: *mut u8, bytes: usize) {
    for i in 0..bytes / 2 {
        // SAFETY: callers give memory of a buffer, or a buffer with its zones.
        unsafe { start.cast::<[u8; 2]>().add(i).write(POISON) };
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let left: Vec<RawBuffer> =
            self.state().buffers.iter().map(|(&address, &(bytes, _))| RawBuffer { address, bytes }).collect();
        left.into_iter().for_each(|buffer| self.free(buffer));
    }
}

fn layout(bytes: usize) -> Result<Layout> {
    bytes
        .checked_next_multiple_of(2)
        .and_then(|even| even.checked_add(2 * GUARD))
        .and_then(|size| Layout::from_size_align(size, 4096).ok())
        .ok_or_else(|| failed(format!("no buffer has {bytes} bytes")))
}

fn type_of(argument: &Arg<'_>) -> &'static str {
    match argument {
        Arg::Buffer(..) | Arg::Null => "*",
        Arg::I32(_) => "i32",
        Arg::U32(_) => "u32",
        Arg::I64(_) => "i64",
        Arg::U64(_) => "u64",
        Arg::F32(_) => "f32",
    }
}
