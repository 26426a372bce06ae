//! A device without a GPU: the kernels' own sources, compiled by the host's C++ compiler against `cuda/emulate.h`.
//!
//! It is for tests, never for work: slow, and strict instead. Fresh memory is NaN, as is every byte around a buffer; a
//! kernel that writes there, takes arguments of other types than it is given, divides a warp or misses a barrier is an
//! error that says so. Threads can be run in several orders, which must not show in the bits.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use karat::backend::BackendError;
use libloading::Library;

use super::device::{Arg, Element, Facts, Gemm, Gpu, Launch, Matrix, RawBuffer};
use crate::nn::Result;
use crate::ops::matmul::{Mat, MatMut, Precision, Threads, product};
use crate::rng::name_key;

/// The sources, by their names in `cuda/`.
const SOURCES: &[(&str, &str)] = &[
    ("emulate.cpp", include_str!("../../cuda/emulate.cpp")),
    ("emulate.h", include_str!("../../cuda/emulate.h")),
    ("common.h", include_str!("../../cuda/common.h")),
    ("ptx.h", include_str!("../../cuda/ptx.h")),
    ("kernels.h", include_str!("../../cuda/kernels.h")),
    ("attention.h", include_str!("../../cuda/attention.h")),
    ("philox.h", include_str!("../../cuda/philox.h")),
    ("attention_backward.cu", include_str!("../../cuda/attention_backward.cu")),
    ("attention_forward.cu", include_str!("../../cuda/attention_forward.cu")),
    ("attention_plain.cu", include_str!("../../cuda/attention_plain.cu")),
    ("cross_entropy.cu", include_str!("../../cuda/cross_entropy.cu")),
    ("decode.cu", include_str!("../../cuda/decode.cu")),
    ("dropout.cu", include_str!("../../cuda/dropout.cu")),
    ("elementwise.cu", include_str!("../../cuda/elementwise.cu")),
    ("embedding.cu", include_str!("../../cuda/embedding.cu")),
    ("low_rank.cu", include_str!("../../cuda/low_rank.cu")),
    ("norm.cu", include_str!("../../cuda/norm.cu")),
    ("optimizer.cu", include_str!("../../cuda/optimizer.cu")),
    ("rope.cu", include_str!("../../cuda/rope.cu")),
    ("sample.cu", include_str!("../../cuda/sample.cu")),
];

const FLAGS: &[&str] =
    &["-std=c++20", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off", "-w", "-DKARAT_EMULATE"];

/// Bytes before and after every buffer that no kernel may write.
const GUARD: usize = 4096;
/// A signaling NaN as f32 and as bf16, in the order of bytes: arithmetic never gives it, so what was overwritten shows.
const POISON: [u8; 2] = [0xa0, 0x7f];
/// What every device of compute capability 8.0 and later gives a block.
const SHARED_MEMORY: u32 = 99 << 10;

/// In which order the threads of a block run between barriers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// From the first to the last.
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
    state: Mutex<State>,
}

struct State {
    /// Bytes of each buffer by its address.
    buffers: BTreeMap<u64, usize>,
    held: u64,
    peak: u64,
    order: Order,
}

/// The compiled kernels.
struct Kernels {
    library: Library,
}

type Signature = unsafe extern "C" fn(*const c_char) -> *const c_char;
type Run = unsafe extern "C" fn(
    *const c_char,
    *const c_uint,
    *const c_uint,
    c_uint,
    *mut *mut c_void,
    u64,
    *mut c_char,
) -> c_int;

impl Kernels {
    /// Compiled once a process; kept from process to process under a name made of what went into them.
    fn get() -> Result<&'static Kernels> {
        static KERNELS: OnceLock<Result<Kernels, String>> = OnceLock::new();
        let kernels = KERNELS.get_or_init(|| {
            let path = compile()?;
            // SAFETY: a library of our own sources; loading it runs the constructors of its table of kernels only.
            unsafe { Library::new(&path) }
                .map(|library| Kernels { library })
                .map_err(|e| format!("{}: {e}", path.display()))
        });
        kernels.as_ref().map_err(|e| BackendError::unsupported(format!("no emulated CUDA device: {e}")))
    }

    /// The types of a kernel's parameters.
    fn signature(&self, kernel: &CStr) -> Option<&'static str> {
        // SAFETY: emulate.cpp exports it with this type; what it returns lives as long as the library, which stays.
        let signature = unsafe {
            let f = self.library.get::<Signature>(b"karat_emulate_signature").ok()?;
            let text = f(kernel.as_ptr());
            if text.is_null() {
                return None;
            }
            CStr::from_ptr(text)
        };
        signature.to_str().ok()
    }

    /// The names of all kernels.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        // SAFETY: emulate.cpp exports it with this type and returns names that live as long as the library, or null.
        unsafe {
            let Ok(next) = self.library.get::<Signature>(b"karat_emulate_next") else { return names };
            let mut name = next(std::ptr::null());
            while !name.is_null() {
                names.push(CStr::from_ptr(name).to_string_lossy().into_owned());
                name = next(name);
            }
        }
        names.sort();
        names
    }
}

/// Where compiled kernels are kept.
fn cache() -> PathBuf {
    let from = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    from("KARAT_CACHE")
        .or_else(|| from("XDG_CACHE_HOME").map(|p| p.join("karat")))
        .or_else(|| from("HOME").map(|p| p.join(".cache/karat")))
        .unwrap_or_else(|| std::env::temp_dir().join("karat"))
        .join("cuda")
}

/// Compiles the sources if that is not done yet; where the library lies.
fn compile() -> Result<PathBuf, String> {
    let compiler = std::env::var("CXX").ok().filter(|c| !c.is_empty()).unwrap_or_else(|| "g++".into());
    let version = Command::new(&compiler)
        .arg("--version")
        .output()
        .map_err(|e| format!("the C++ compiler {compiler:?} does not run ({e}); install g++ or set CXX"))?;
    let mut key = String::from_utf8_lossy(&version.stdout).into_owned() + &FLAGS.join(" ");
    SOURCES.iter().for_each(|(name, text)| key = format!("{key}\n{name}\n{text}"));
    let folder = cache();
    let library = folder.join(format!("emulator-{:016x}.so", name_key(&key)));
    if library.exists() {
        return Ok(library);
    }
    let at = |path: &Path, e: std::io::Error| format!("{}: {e}", path.display());
    let work = folder.join(format!("emulator-{:016x}-{}", name_key(&key), std::process::id()));
    std::fs::create_dir_all(&work).map_err(|e| at(&work, e))?;
    let build = || {
        for (name, text) in SOURCES {
            std::fs::write(work.join(name), text).map_err(|e| at(&work.join(name), e))?;
        }
        let output = Command::new(&compiler)
            .args(FLAGS)
            .args(["-x", "c++", "emulate.cpp", "-o", "emulator.so"])
            .current_dir(&work)
            .output()
            .map_err(|e| format!("{compiler}: {e}"))?;
        if !output.status.success() {
            return Err(format!("{compiler} fails:\n{}", String::from_utf8_lossy(&output.stderr)));
        }
        std::fs::rename(work.join("emulator.so"), &library).map_err(|e| at(&library, e))
    };
    let built = build();
    let _ = std::fs::remove_dir_all(&work);
    built.map(|()| library)
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
        let state = State { buffers: BTreeMap::new(), held: 0, peak: 0, order: Order::Forward };
        Ok(Arc::new(Emulator { kernels: Kernels::get()?, facts, state: Mutex::new(state) }))
    }

    /// Runs threads in this order from now on.
    pub fn set_order(&self, order: Order) {
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

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks that a range lies in a buffer of this device and gives its first byte.
    fn range(&self, buffer: RawBuffer, offset: usize, bytes: usize) -> Result<*mut u8> {
        let held = self.state().buffers.get(&buffer.address).copied();
        match held {
            Some(size) if offset.checked_add(bytes).is_some_and(|end| end <= size) => {
                Ok((buffer.address as *mut u8).wrapping_add(offset))
            }
            Some(size) => Err(failed(format!("bytes {offset}..+{bytes} of a buffer of {size}"))),
            None => Err(failed("a buffer that was freed, or of another device")),
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
    fn dense(&self, m: &Matrix<'_>, batch: usize, rows: usize, columns: usize) -> Result<Vec<f32>> {
        let mut all = Vec::with_capacity(batch * rows * columns);
        for b in 0..batch {
            for row in 0..rows {
                let bytes = m.element.size();
                let first = m.first + b * m.batch_stride + row * m.stride;
                let data = self.range(m.buffer.raw(), first * bytes, columns * bytes)?;
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
}

impl Gpu for Emulator {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn alloc(&self, bytes: usize) -> Result<RawBuffer> {
        let layout = layout(bytes)?;
        // SAFETY: the size is not 0.
        let start = unsafe { alloc(layout) };
        if start.is_null() {
            return Err(failed(format!("no room for {bytes} bytes on the emulated device")));
        }
        // SAFETY: just allocated, of that size.
        unsafe {
            for i in 0..layout.size() / 2 {
                start.cast::<[u8; 2]>().add(i).write(POISON);
            }
        }
        let address = start as u64 + GUARD as u64;
        let mut state = self.state();
        state.buffers.insert(address, bytes);
        state.held += bytes as u64;
        state.peak = state.peak.max(state.held);
        Ok(RawBuffer { address, bytes })
    }

    fn free(&self, buffer: RawBuffer) {
        let mut state = self.state();
        if let Some(bytes) = state.buffers.remove(&buffer.address)
            && let Ok(layout) = layout(bytes)
        {
            state.held -= bytes as u64;
            // SAFETY: `alloc` made it with this layout, and it was in the table until now.
            unsafe { dealloc((buffer.address as usize - GUARD) as *mut u8, layout) };
        }
    }

    fn upload(&self, from: &[u8], to: RawBuffer, offset: usize) -> Result<()> {
        let to = self.range(to, offset, from.len())?;
        // SAFETY: `range` checked the target, and no slice of ours lies in a device's buffer.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
        Ok(())
    }

    fn download(&self, from: RawBuffer, offset: usize, to: &mut [u8]) -> Result<()> {
        let from = self.range(from, offset, to.len())?;
        // SAFETY: as in `upload`.
        unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    fn copy(&self, from: (RawBuffer, usize), to: (RawBuffer, usize), bytes: usize) -> Result<()> {
        let (from, to) = (self.range(from.0, from.1, bytes)?, self.range(to.0, to.1, bytes)?);
        // SAFETY: `range` checked both.
        unsafe { std::ptr::copy(from, to, bytes) };
        Ok(())
    }

    fn zero(&self, buffer: RawBuffer, offset: usize, bytes: usize) -> Result<()> {
        let start = self.range(buffer, offset, bytes)?;
        // SAFETY: `range` checked it.
        unsafe { start.write_bytes(0, bytes) };
        Ok(())
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
        let mut values = Vec::with_capacity(arguments.len());
        for argument in arguments {
            values.push(match *argument {
                Arg::Buffer(buffer, offset) => self.range(buffer.raw(), offset, 0)? as u64,
                Arg::Null => 0,
                Arg::I32(x) => u64::from(x as u32),
                Arg::U32(x) => u64::from(x),
                Arg::I64(x) => x as u64,
                Arg::U64(x) => x,
                Arg::F32(x) => u64::from(x.to_bits()),
            });
        }
        // A little-endian host: the first bytes of a word are the narrower value's.
        let mut pointers: Vec<*mut c_void> = values.iter_mut().map(|v| std::ptr::from_mut(v).cast()).collect();
        let mode = match self.state().order {
            Order::Forward => 0,
            Order::Backward => 1,
            Order::Shuffled(seed) => seed.max(2),
        };
        let mut error = [0 as c_char; 512];
        // SAFETY: emulate.cpp exports it with this type; the arguments have the types of the kernel's parameters, and that
        // its pointers reach no further than their buffers is what the tests are for.
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
            if let Arg::Buffer(buffer, _) = argument
                && !self.intact(buffer.raw())
            {
                return Err(failed(format!(
                    "{kernel} writes outside its argument {i}, of {} bytes",
                    buffer.raw().bytes
                )));
            }
        }
        Ok(())
    }

    fn gemm(&self, g: &Gemm<'_>) -> Result<()> {
        let Gemm { m, n, k, alpha, beta, batch, .. } = *g;
        if g.a.element != g.b.element || (g.c.element != g.a.element && g.c.element != Element::F32) || g.c.transposed {
            return Err(failed("a product of element types that cuBLAS does not have"));
        }
        let shape = |x: &Matrix<'_>, rows, columns| if x.transposed { (columns, rows) } else { (rows, columns) };
        let ((a_rows, a_columns), (b_rows, b_columns)) = (shape(&g.a, m, k), shape(&g.b, k, n));
        for (what, x, columns) in [("A", &g.a, a_columns), ("B", &g.b, b_columns), ("C", &g.c, n)] {
            if x.stride < columns {
                return Err(failed(format!("rows of {columns} elements {} apart in {what}", x.stride)));
            }
        }
        let (a, b) = (self.dense(&g.a, batch, a_rows, a_columns)?, self.dense(&g.b, batch, b_rows, b_columns)?);
        let was = if beta == 0.0 { vec![0.0; batch * m * n] } else { self.dense(&g.c, batch, m, n)? };
        for i in 0..batch {
            let mut sums = vec![0f32; m * n];
            let (a, b) = (&a[i * m * k..][..m * k], &b[i * k * n..][..k * n]);
            let (a, b) = (Mat::new(a, a_rows, a_columns), Mat::new(b, b_rows, b_columns));
            let (a, b) = (if g.a.transposed { a.t() } else { a }, if g.b.transposed { b.t() } else { b });
            product(Precision::F32, MatMut::new(&mut sums, m, n), 1.0, a, b, false, Threads::One);
            for row in 0..m {
                let bytes = g.c.element.size();
                let first = g.c.first + i * g.c.batch_stride + row * g.c.stride;
                let to = self.range(g.c.buffer.raw(), first * bytes, n * bytes)?;
                for column in 0..n {
                    let at = row * n + column;
                    let mut x = alpha * sums[at];
                    if beta != 0.0 {
                        x += beta * was[i * m * n + at];
                    }
                    // SAFETY: `range` checked it; writes of any alignment.
                    unsafe {
                        match g.c.element {
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

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn peak_memory(&self, reset: bool) -> u64 {
        let mut state = self.state();
        let peak = state.peak;
        if reset {
            state.peak = state.held;
        }
        peak
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let left: Vec<RawBuffer> =
            self.state().buffers.iter().map(|(&address, &bytes)| RawBuffer { address, bytes }).collect();
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
