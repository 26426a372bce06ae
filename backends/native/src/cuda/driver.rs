//! A GPU behind NVIDIA's driver: one context, one stream, the driver's own pool of memory, cuBLAS.
#![allow(unsafe_code)]

mod api;
mod cublas;
mod facts;
mod library;

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_int, c_void};
use std::path::Path;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use karat_backend::BackendError;

use self::api::{Address, Blas, Cuda, CudaStatus, Handle};
use self::cublas::GemmCall;
pub use self::facts::found;
use self::facts::{OLDEST_DRIVER, count, device_facts, driver_version, missing, ok, status_text, version_text};
use super::device::{Arg, Facts, Gemm, Gpu, Launch, RawBuffer};
use super::pool::Pools;
use super::raw::{DeviceMemory, RawGraph};
use crate::error::Result;

/// Dynamic shared memory that a kernel gets without asking, whatever it declares beside it (48 KiB
/// in all).
const UNASKED_SHARED: u32 = 24 << 10;
/// Bytes that cuBLAS may use for parts of sums; with memory of its own its results are the same
/// from run to run.
const WORKSPACE: usize = 32 << 20;

/// A GPU.
pub struct Driver {
    cuda: Cuda,
    blas: Blas,
    facts: Facts,
    device: c_int,
    context: Handle,
    stream: Handle,
    pool: Handle,
    cublas: Handle,
    module: Handle,
    workspace: Address,
    pools: Pools,
    state: Mutex<State>,
}

/// State behind the lock.
#[derive(Default)]
struct State {
    /// Kernels by name, with the dynamic shared memory that each was allowed so far.
    kernels: HashMap<&'static str, (usize, u32)>,
    /// The stream records.
    recording: bool,
    /// Memory that was given back meanwhile.
    freed: Vec<Address>,
}

impl State {
    /// An operation that a graph cannot replay.
    fn not_recorded(&self, what: &str) -> Result<()> {
        match self.recording {
            true => Err(BackendError::failed(format!("{what} while a graph is recorded"))),
            false => Ok(()),
        }
    }
}

// SAFETY: the driver may be called from any thread in which the context is current, which every
// method sees to; cuBLAS's handle is used by one thread at a time because `state` is held
// meanwhile.
unsafe impl Send for Driver {}
// SAFETY: as above.
unsafe impl Sync for Driver {}

impl Driver {
    /// The driver's functions and where they came from, initialised.
    fn load() -> Result<(Cuda, &'static Path)> {
        let found = library::driver().map_err(missing)?;
        // SAFETY: it is the driver, and never unloaded.
        let cuda = unsafe { Cuda::of(found.library) }
            .map_err(|name| missing(format!("the driver {} is too old: it has no {name}", found.place.display())))?;
        // SAFETY: the one call that may come first.
        match unsafe { (cuda.cuInit)(0) } {
            0 => Ok((cuda, &found.place)),
            api::status::NO_DEVICE => Err(missing("the driver is there but finds no device")),
            status => Err(missing(format!("the driver does not start: {}", status_text(&cuda, status)))),
        }
    }

    /// Opens device `ordinal` and gives it the kernels of `ptx`, a text that ends with a zero.
    ///
    /// # Errors
    /// Names what is missing or too old: the driver, a device, cuBLAS.
    pub fn open(ordinal: usize, ptx: &CStr) -> Result<Self> {
        let (cuda, _) = Self::load()?;
        let version = driver_version(&cuda);
        if version < OLDEST_DRIVER {
            return Err(missing(format!(
                "the driver is for CUDA {}, the kernels need one for {} (release 580 or later)",
                version_text(version),
                version_text(OLDEST_DRIVER)
            )));
        }
        let count = count(&cuda)?;
        if ordinal as i32 >= count {
            return Err(missing(format!("there is no device {ordinal}, the machine has {count} (counted from 0)")));
        }
        let facts = device_facts(&cuda, ordinal as i32)?;
        if facts.compute_capability < (8, 0) {
            let (major, minor) = facts.compute_capability;
            return Err(missing(format!(
                "{} has compute capability {major}.{minor}, the kernels need 8.0 (Ampere) or later",
                facts.name
            )));
        }
        let found = library::cublas().map_err(missing)?;
        // SAFETY: it is cuBLAS, and never unloaded.
        let blas = unsafe { Blas::of(found.library) }
            .map_err(|name| missing(format!("{} is too old: it has no {name}", found.place.display())))?;
        let mut driver = Driver {
            cuda,
            blas,
            facts,
            device: ordinal as c_int,
            context: ptr::null_mut(),
            stream: ptr::null_mut(),
            pool: ptr::null_mut(),
            cublas: ptr::null_mut(),
            module: ptr::null_mut(),
            workspace: 0,
            pools: Pools::default(),
            state: Mutex::default(),
        };
        driver.start(ptx)?;
        Ok(driver)
    }

    fn start(&mut self, ptx: &CStr) -> Result<()> {
        let cuda = self.cuda;
        let mut pools = 0;
        // SAFETY: every pointer is to a value of the right type that lives through the call, and
        // handles are passed as the driver gave them.
        unsafe {
            ok(&cuda, "find the device", (cuda.cuDeviceGet)(&mut self.device, self.facts.ordinal as c_int))?;
            ok(&cuda, "open the device", (cuda.cuDevicePrimaryCtxRetain)(&mut self.context, self.device))?;
            ok(&cuda, "open the device", (cuda.cuCtxSetCurrent)(self.context))?;
            let ask = (cuda.cuDeviceGetAttribute)(&mut pools, api::attribute::MEMORY_POOLS, self.device);
            ok(&cuda, "ask the device", ask)?;
            if pools == 0 {
                return Err(missing("the device does not support pools of memory"));
            }
            ok(&cuda, "make a stream", (cuda.cuStreamCreate)(&mut self.stream, api::STREAM_NON_BLOCKING))?;
            ok(&cuda, "find the pool", (cuda.cuDeviceGetDefaultMemPool)(&mut self.pool, self.device))?;
            // What is freed stays with this process, ready for the next allocation.
            let mut everything = u64::MAX;
            let threshold = (&raw mut everything).cast();
            let set = (cuda.cuMemPoolSetAttribute)(self.pool, api::pool::RELEASE_THRESHOLD, threshold);
            ok(&cuda, "set up the pool", set)?;
        }
        self.module = self.compile(ptx)?;
        self.workspace = self.alloc(WORKSPACE)?.address;
        // SAFETY: as above; the workspace lives as long as the handle.
        unsafe {
            let started = (self.blas.cublasCreate_v2)(&mut self.cublas);
            self.blas_ok("start", started)?;
            self.blas_ok("take the stream", (self.blas.cublasSetStream_v2)(self.cublas, self.stream))?;
            let workspace = self.workspace as *mut c_void;
            let set = (self.blas.cublasSetWorkspace_v2)(self.cublas, workspace, WORKSPACE);
            self.blas_ok("take its workspace", set)?;
            self.blas_ok("set its precision", (self.blas.cublasSetMathMode)(self.cublas, api::blas::WHOLE_SUMS))
        }
    }

    fn compile(&self, ptx: &CStr) -> Result<Handle> {
        let cuda = &self.cuda;
        let mut module = ptr::null_mut();
        let mut log = vec![0u8; 8 << 10];
        let mut options = [api::JIT_ERROR_LOG, api::JIT_ERROR_LOG_BYTES];
        let mut values = [log.as_mut_ptr().cast::<c_void>(), log.len() as *mut c_void];
        // SAFETY: the text ends with a zero, there are two options with their values, and the log
        // is as long as is said.
        let status = unsafe {
            let text = ptx.as_ptr().cast();
            (cuda.cuModuleLoadDataEx)(&mut module, text, 2, options.as_mut_ptr(), values.as_mut_ptr())
        };
        match status {
            0 => Ok(module),
            api::status::UNSUPPORTED_PTX => Err(missing(format!(
                "the driver is too old for the kernels (it is for CUDA {})",
                version_text(driver_version(cuda))
            ))),
            _ => {
                let log = String::from_utf8_lossy(log.split(|b| *b == 0).next().unwrap_or_default()).into_owned();
                Err(missing(format!("the kernels do not compile: {}; {}", status_text(cuda, status), log.trim())))
            }
        }
    }

    fn ok(&self, what: &str, status: CudaStatus) -> Result<()> {
        ok(&self.cuda, what, status)
    }

    fn blas_ok(&self, what: &str, status: CudaStatus) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: cuBLAS answers with a constant text for every status.
        let text = unsafe {
            let text = (self.blas.cublasGetStatusString)(status);
            if text.is_null() {
                format!("status {status}")
            } else {
                CStr::from_ptr(text).to_string_lossy().into_owned()
            }
        };
        Err(BackendError::failed(format!("cuBLAS failed to {what}: {text}")))
    }

    /// Makes the context current in this thread and keeps others away from what is not safe to
    /// share.
    fn enter(&self) -> Result<MutexGuard<'_, State>> {
        let guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the context lives as long as `self`.
        self.ok("enter the device", unsafe { (self.cuda.cuCtxSetCurrent)(self.context) })?;
        Ok(guard)
    }

    /// Version of cuBLAS, e.g. `13.0.2`.
    pub fn cublas_version(&self) -> String {
        let mut version = 0;
        // SAFETY: the handle is alive, the pointer to an integer.
        unsafe { (self.blas.cublasGetVersion_v2)(self.cublas, &mut version) };
        format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // SAFETY: each handle is one that the driver gave and nobody uses any more: buffers hold on
        // to the device.
        unsafe {
            (self.cuda.cuCtxSetCurrent)(self.context);
            for raw in self.pools.own().close() {
                (self.cuda.cuMemFreeAsync)(raw.address, self.stream);
            }
            if !self.cublas.is_null() {
                (self.blas.cublasDestroy_v2)(self.cublas);
            }
            if self.workspace != 0 {
                (self.cuda.cuMemFreeAsync)(self.workspace, self.stream);
            }
            if !self.stream.is_null() {
                (self.cuda.cuStreamSynchronize)(self.stream);
                (self.cuda.cuStreamDestroy_v2)(self.stream);
            }
            if !self.module.is_null() {
                (self.cuda.cuModuleUnload)(self.module);
            }
            if !self.context.is_null() {
                (self.cuda.cuDevicePrimaryCtxRelease_v2)(self.device);
            }
        }
    }
}

fn inside(buffer: RawBuffer, offset: usize, bytes: usize) -> Result<Address> {
    match offset.checked_add(bytes) {
        Some(end) if end <= buffer.bytes => Ok(buffer.address + offset as u64),
        _ => Err(BackendError::failed(format!("{bytes} bytes at {offset} of a buffer of {}", buffer.bytes))),
    }
}

impl DeviceMemory for Driver {
    fn alloc(&self, bytes: usize) -> Result<RawBuffer> {
        let state = self.enter()?;
        state.not_recorded("an allocation")?;
        let mut address = 0;
        // SAFETY: the stream is alive, the pointer to an address.
        match unsafe { (self.cuda.cuMemAllocAsync)(&mut address, bytes, self.stream) } {
            0 => Ok(RawBuffer { address, bytes }),
            api::status::OUT_OF_MEMORY => Err(BackendError::failed(format!(
                "{} has no room for {bytes} more bytes (of {} in all); train fewer tokens at once, with recomputation, or \
                 an adapter",
                self.facts.name, self.facts.memory
            ))),
            status => self.ok("allocate", status).map(|()| RawBuffer { address, bytes }),
        }
    }

    fn free(&self, buffer: RawBuffer) {
        if let Ok(mut state) = self.enter() {
            if state.recording {
                return state.freed.push(buffer.address);
            }
            // SAFETY: the address is one of `alloc`, given back once; what is queued before still
            // finds it.
            unsafe { (self.cuda.cuMemFreeAsync)(buffer.address, self.stream) };
        }
    }
}

impl Gpu for Driver {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn upload(&self, from: &[u8], to: RawBuffer, offset: usize) -> Result<()> {
        let to = inside(to, offset, from.len())?;
        let state = self.enter()?;
        state.not_recorded("a copy from the host")?;
        // SAFETY: both ranges are as long as is said. Memory of the host that is not pinned has
        // been read when the call returns.
        let status = unsafe { (self.cuda.cuMemcpyHtoDAsync_v2)(to, from.as_ptr().cast(), from.len(), self.stream) };
        self.ok("copy to the device", status)
    }

    fn download(&self, from: RawBuffer, offset: usize, to: &mut [u8]) -> Result<()> {
        let from = inside(from, offset, to.len())?;
        let state = self.enter()?;
        state.not_recorded("a copy to the host")?;
        // SAFETY: both ranges are as long as is said, and `to` is borrowed until all has arrived.
        unsafe {
            let status = (self.cuda.cuMemcpyDtoHAsync_v2)(to.as_mut_ptr().cast(), from, to.len(), self.stream);
            self.ok("copy from the device", status)?;
            self.ok("finish what was queued", (self.cuda.cuStreamSynchronize)(self.stream))
        }
    }

    fn copy(&self, from: (RawBuffer, usize), to: (RawBuffer, usize), bytes: usize) -> Result<()> {
        let (from, to) = (inside(from.0, from.1, bytes)?, inside(to.0, to.1, bytes)?);
        let _guard = self.enter()?;
        // SAFETY: both ranges are inside their buffers.
        self.ok("copy", unsafe { (self.cuda.cuMemcpyDtoDAsync_v2)(to, from, bytes, self.stream) })
    }

    fn zero(&self, buffer: RawBuffer, offset: usize, bytes: usize) -> Result<()> {
        let at = inside(buffer, offset, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        let _guard = self.enter()?;
        // SAFETY: the range is inside the buffer.
        self.ok("clear memory", unsafe { (self.cuda.cuMemsetD8Async)(at, 0, bytes, self.stream) })
    }

    fn launch(&self, kernel: &'static str, launch: Launch, arguments: &[Arg<'_>]) -> Result<()> {
        let mut state = self.enter()?;
        let (function, allowed) = match state.kernels.get(kernel) {
            Some(known) => *known,
            None => {
                let name = CString::new(kernel).map_err(|_| BackendError::failed("a kernel's name with a zero"))?;
                let mut function = ptr::null_mut();
                // SAFETY: the module is alive, the name ends with a zero.
                let status = unsafe { (self.cuda.cuModuleGetFunction)(&mut function, self.module, name.as_ptr()) };
                self.ok(&format!("find the kernel {kernel}"), status)?;
                *state.kernels.entry(kernel).or_insert((function as usize, UNASKED_SHARED))
            }
        };
        if launch.shared > allowed {
            // SAFETY: the function is of this module.
            let status = unsafe {
                let (f, bytes) = (function as Handle, launch.shared as c_int);
                (self.cuda.cuFuncSetAttribute)(f, api::FUNCTION_SHARED_MEMORY, bytes)
            };
            self.ok(&format!("give {kernel} {} bytes of shared memory", launch.shared), status)?;
            state.kernels.insert(kernel, (function, launch.shared));
        }
        // Every argument in eight bytes of its own; the driver reads as many as the kernel says.
        let mut values: Vec<u64> = arguments
            .iter()
            .map(|argument| match *argument {
                Arg::Buffer(buffer, offset) => buffer.raw().address + offset as u64,
                Arg::Null => 0,
                Arg::I32(x) => u64::from(x as u32),
                Arg::U32(x) => u64::from(x),
                Arg::I64(x) => x as u64,
                Arg::U64(x) => x,
                Arg::F32(x) => u64::from(x.to_bits()),
            })
            .collect();
        let mut pointers: Vec<*mut c_void> = values.iter_mut().map(|value| ptr::from_mut(value).cast()).collect();
        let Launch { grid, block, shared } = launch;
        // SAFETY: the pointers are to the arguments, which the driver copies before it returns;
        // that they are the kernel's in number and type is what the emulator checks in the tests.
        let status = unsafe {
            (self.cuda.cuLaunchKernel)(
                function as Handle,
                grid[0],
                grid[1],
                grid[2],
                block[0],
                block[1],
                block[2],
                shared,
                self.stream,
                pointers.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        self.ok(&format!("launch {kernel} on {grid:?} blocks of {block:?} threads"), status)
    }

    fn gemm(&self, g: &Gemm<'_>) -> Result<()> {
        let _guard = self.enter()?;
        let call = GemmCall::of(g)?;
        let (alpha, beta) = (ptr::from_ref(&g.alpha).cast(), ptr::from_ref(&g.beta).cast());
        let (a, b, c) =
            (call.a.address as *const c_void, call.b.address as *const c_void, call.c.address as *mut c_void);
        let (compute, algorithm) = (api::blas::COMPUTE_F32, api::blas::DEFAULT);
        // SAFETY: the handle is alive; the matrices lie inside their buffers, as `GemmCall::of` has
        // checked.
        let status = unsafe {
            if g.batch == 1 {
                (self.blas.cublasGemmEx)(
                    self.cublas,
                    call.a.operation,
                    call.b.operation,
                    call.m,
                    call.n,
                    call.k,
                    alpha,
                    a,
                    call.a.element,
                    call.a.leading,
                    b,
                    call.b.element,
                    call.b.leading,
                    beta,
                    c,
                    call.c.element,
                    call.c.leading,
                    compute,
                    algorithm,
                )
            } else {
                (self.blas.cublasGemmStridedBatchedEx)(
                    self.cublas,
                    call.a.operation,
                    call.b.operation,
                    call.m,
                    call.n,
                    call.k,
                    alpha,
                    a,
                    call.a.element,
                    call.a.leading,
                    call.a.batch,
                    b,
                    call.b.element,
                    call.b.leading,
                    call.b.batch,
                    beta,
                    c,
                    call.c.element,
                    call.c.leading,
                    call.c.batch,
                    g.batch as c_int,
                    compute,
                    algorithm,
                )
            }
        };
        self.blas_ok(&format!("multiply [{}, {}] x [{}, {}]", g.m, g.k, g.k, g.n), status)
    }

    fn synchronize(&self) -> Result<()> {
        let state = self.enter()?;
        state.not_recorded("waiting")?;
        // SAFETY: the stream is alive.
        self.ok("finish what was queued", unsafe { (self.cuda.cuStreamSynchronize)(self.stream) })
    }

    fn peak_memory(&self, reset: bool) -> u64 {
        let Ok(_guard) = self.enter() else { return 0 };
        let mut peak = 0u64;
        // SAFETY: the pool is alive, the attribute is 64 bits wide; only zero may be written to it.
        unsafe {
            (self.cuda.cuMemPoolGetAttribute)(self.pool, api::pool::USED_HIGH, (&raw mut peak).cast());
            if reset {
                let mut zero = 0u64;
                (self.cuda.cuMemPoolSetAttribute)(self.pool, api::pool::USED_HIGH, (&raw mut zero).cast());
            }
        }
        peak
    }

    fn pools(&self) -> &Pools {
        &self.pools
    }

    fn begin_graph(&self) -> Result<()> {
        let mut state = self.enter()?;
        state.not_recorded("a second recording")?;
        // SAFETY: the stream is alive, and not the legacy one.
        let begun = unsafe { (self.cuda.cuStreamBeginCapture_v2)(self.stream, api::CAPTURE_THIS_THREAD) };
        self.ok("begin to record a graph", begun)?;
        state.recording = true;
        Ok(())
    }

    fn end_graph(&self) -> Result<RawGraph> {
        let mut state = self.enter()?;
        let (mut graph, mut ready): (Handle, Handle) = (ptr::null_mut(), ptr::null_mut());
        state.recording = false;
        // SAFETY: the stream is alive, the pointers are to handles; the graph is done with once it
        // is made ready. What was given back is an address of `alloc`, and the recording that used
        // it has yet to run or never will.
        unsafe {
            let ended = (self.cuda.cuStreamEndCapture)(self.stream, &mut graph);
            for address in state.freed.drain(..) {
                (self.cuda.cuMemFreeAsync)(address, self.stream);
            }
            self.ok("record a graph", ended)?;
            if graph.is_null() {
                return Err(BackendError::failed("CUDA failed to record a graph: it holds nothing"));
            }
            let made = (self.cuda.cuGraphInstantiateWithFlags)(&mut ready, graph, 0);
            (self.cuda.cuGraphDestroy)(graph);
            self.ok("make a graph ready", made)?;
        }
        Ok(RawGraph(ready as u64))
    }

    fn play_graph(&self, graph: RawGraph) -> Result<()> {
        let state = self.enter()?;
        state.not_recorded("a graph")?;
        // SAFETY: the handle is one of `end_graph` that nobody has dropped: `CudaGraph` owns it.
        self.ok("launch a graph", unsafe { (self.cuda.cuGraphLaunch)(graph.0 as Handle, self.stream) })
    }

    fn drop_graph(&self, graph: RawGraph) {
        if let Ok(_guard) = self.enter() {
            // SAFETY: as above; where it still runs, it goes when that is done.
            unsafe { (self.cuda.cuGraphExecDestroy)(graph.0 as Handle) };
        }
    }
}
