//! The plugin boundary, laid out in C.
//!
//! A plugin is a shared library that exports one function, `karat_backend_<crate name>`, which
//! returns a `&'static` [`BackendV1`]: a table of ten functions. Control (configurations, plans,
//! events, results, errors) crosses as JSON, data (token ids, labels, scores) as plain arrays, and
//! the return value of the one event callback says whether to go on. Rust's own types never cross:
//! plugin and host may be built by different compilers.
//!
//! An author writes safe Rust and never sees any of this:
//!
//! ```
//! use karat_backend::{Backend, BackendError, Descriptor, OpenConfig, Session};
//!
//! #[derive(Default)]
//! struct Mine;
//!
//! impl Backend for Mine {
//!     fn describe(&self) -> Descriptor {
//!         Descriptor {
//!             name: "mine".into(),
//!             version: "0.1.0".into(),
//!             capabilities: vec![],
//!             devices: vec!["cpu".into()],
//!             dtypes: vec![],
//!             model_families: vec![],
//!             build: Default::default(),
//!         }
//!     }
//!     fn open(&self, _: &OpenConfig) -> Result<Box<dyn Session>, BackendError> {
//!         Err(BackendError::unsupported("nothing can be opened yet"))
//!     }
//! }
//!
//! # // `cargo test --doc` does not set CARGO_CRATE_NAME, so the macro is shown and not expanded here;
//! # // examples/uniform is the living example.
//! # #[cfg(any())]
//! karat_backend::export_backend!(Mine);
//! # fn main() {}
//! ```
//!
//! The host's side is [`Foreign`], which implements [`Backend`](crate::Backend) over a table, so
//! that code cannot tell a plugin from a backend that is linked in. [`table`] makes the table of
//! any backend without a library in between: tests call across the boundary in one process, and two
//! backends that are linked into one binary never meet at a symbol.
//!
//! # The contract
//! - **Version.** `size`, `major` and `minor` stand at the same place for ever. A different major
//!   is refused; within a major the table only grows, and a field is read only if `size` covers it,
//!   so an older plugin simply lacks the newer functions and a newer one has some that are not
//!   called.
//! - **Memory.** What is lent ([`Slice`], [`Tokens`], [`Labelled`], [`ScoresOut`], [`Sink`]) is
//!   valid during the call only. What is given ([`Owned`]) is freed by the side that made it,
//!   through `release`.
//! - **Panics** cross in neither direction. The plugin's thunks catch them, answer
//!   [`Status::Panicked`] and poison the session, which then can only be closed. The host's
//!   callback catches a panic of the sink, answers stop, and lets the panic go on once the call has
//!   returned.
//! - **Threads.** A session is called from one thread at a time, and calls its sink from within the
//!   call only; different sessions may be called from different threads.
//! - **Numbers.** Enums cross as integers and are matched totally; booleans as `u8`.
//! - **Cancelling** works through events only: a backend sends one at least per optimizer step or
//!   token batch.

#![allow(unsafe_code)]

mod export;
pub mod float;
mod foreign;
mod wire;

use std::ffi::c_void;
use std::mem::offset_of;

pub use export::{owned_alive, table};
pub use foreign::Foreign;

/// Tables of another major are refused.
pub const MAJOR: u16 = 1;
/// Grows when the table does: 1 added `export` and `adapt`, 2 `provide`, 3 `measure`.
pub const MINOR: u16 = 3;
/// A plugin exports one function of this name followed by the name of its crate. The crate's name
/// is part of it because two rlibs that define the same symbol link silently to *one* of the two,
/// and a test binary links several backends.
pub const SYMBOL_PREFIX: &str = "karat_backend_";

/// Bytes lent for the duration of a call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Slice {
    /// First byte; anything if `len` is 0.
    pub ptr: *const u8,
    /// How many bytes.
    pub len: usize,
}

/// Bytes given away; the receiver calls `release` once, whatever it thinks of the contents.
#[repr(C)]
#[derive(Debug)]
pub struct Owned {
    /// First byte, or null if there are none.
    pub ptr: *mut u8,
    /// How many bytes.
    pub len: usize,
    /// How many bytes are allocated: the owner's business.
    pub cap: usize,
    /// Frees the bytes; `None` if there is nothing to free.
    pub release: Option<unsafe extern "C" fn(*mut Owned)>,
}

impl Owned {
    /// No bytes.
    pub const EMPTY: Owned = Owned { ptr: std::ptr::null_mut(), len: 0, cap: 0, release: None };
}

/// Ragged rows of token ids, lent: row `i` is `ids[offsets[i]..offsets[i + 1]]`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Tokens {
    /// The ids of all rows, back to back.
    pub ids: *const u32,
    /// `rows + 1` offsets that rise from 0 to the number of ids.
    pub offsets: *const usize,
    /// How many rows.
    pub rows: usize,
}

/// Rows of token ids with one label per id, lent.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Labelled {
    /// The ids.
    pub tokens: Tokens,
    /// As many labels as ids; see [`crate::IGNORE`].
    pub labels: *const i32,
}

/// Where scores go: arrays of the host's, since it knows how many there will be.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ScoresOut {
    /// `len` log-probabilities, to be filled.
    pub logprobs: *mut f32,
    /// `len` flags, 0 or 1, to be filled.
    pub greedy: *mut u8,
    /// The sum over rows of `max(n, 1) - 1`.
    pub len: usize,
}

/// Where events go.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Sink {
    /// Handed back to `event`.
    pub ctx: *mut c_void,
    /// Takes one [`Event`](crate::Event) as JSON; 0 says go on, anything else stop.
    pub event: Option<unsafe extern "C" fn(ctx: *mut c_void, event: Slice) -> i32>,
}

/// How a call ended, as the integer that crosses.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It worked; the out-parameter holds the result.
    Ok = 0,
    /// It failed; the out-parameter holds `{"message", "causes"}`, with `"usage": true` where the
    /// caller named what cannot be meant (an older host passes over that). All below have the first
    /// two.
    Error = 1,
    /// The sink said stop.
    Cancelled = 2,
    /// The backend panicked; the session is poisoned.
    Panicked = 3,
    /// The backend does not implement it.
    Unsupported = 4,
}

impl Status {
    /// The status that `code` stands for, if any.
    pub fn from_code(code: i32) -> Option<Status> {
        match code {
            0 => Some(Status::Ok),
            1 => Some(Status::Error),
            2 => Some(Status::Cancelled),
            3 => Some(Status::Panicked),
            4 => Some(Status::Unsupported),
            _ => None,
        }
    }
}

/// Writes a [`Descriptor`](crate::Descriptor) as JSON.
pub type DescribeFn = unsafe extern "C" fn(out: *mut Owned) -> i32;
/// Takes an [`OpenConfig`](crate::OpenConfig) as JSON; writes the session and, as JSON,
/// `{"info": SessionInfo, "evaluator": bool, "trainer": bool}`.
pub type OpenFn = unsafe extern "C" fn(config: Slice, session: *mut *mut c_void, out: *mut Owned) -> i32;
/// Ends a session; to be called once for each.
pub type CloseFn = unsafe extern "C" fn(session: *mut c_void) -> i32;
/// Fills `scores`.
pub type ScoreFn =
    unsafe extern "C" fn(session: *mut c_void, rows: Tokens, sink: Sink, scores: ScoresOut, out: *mut Owned) -> i32;
/// Takes a [`GenerateConfig`](crate::GenerateConfig) as JSON and writes the completions of all rows
/// as a JSON list (they are few and slow to come by: an array layout would win nothing).
pub type GenerateFn =
    unsafe extern "C" fn(session: *mut c_void, prompts: Tokens, config: Slice, sink: Sink, out: *mut Owned) -> i32;
/// Takes a [`TrainPlan`](crate::TrainPlan) as JSON and writes a
/// [`TrainSummary`](crate::TrainSummary).
pub type TrainFn = unsafe extern "C" fn(
    session: *mut c_void,
    train: Labelled,
    eval: Labelled,
    plan: Slice,
    sink: Sink,
    out: *mut Owned,
) -> i32;

/// Takes an [`ExportConfig`](crate::ExportConfig) as JSON and writes an
/// [`ExportSummary`](crate::ExportSummary).
pub type ExportFn = unsafe extern "C" fn(config: Slice, sink: Sink, out: *mut Owned) -> i32;
/// Takes `{"adapter": path or null}`, exchanges the session's adapter and writes its
/// [`SessionInfo`](crate::SessionInfo).
pub type AdaptFn = unsafe extern "C" fn(session: *mut c_void, adapter: Slice, out: *mut Owned) -> i32;
/// Takes `{"fix": bool}` and writes [`Provisions`](crate::Provisions) as JSON.
pub type ProvideFn = unsafe extern "C" fn(request: Slice, out: *mut Owned) -> i32;
/// Takes `{"device": name}` and writes [`Provisions`](crate::Provisions) as JSON.
pub type MeasureFn = unsafe extern "C" fn(request: Slice, out: *mut Owned) -> i32;

/// The table of a backend. Only ever appended to within a major.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BackendV1 {
    /// Bytes of this table; fields beyond it are not there.
    pub size: usize,
    /// Must be [`MAJOR`].
    pub major: u16,
    /// May be anything.
    pub minor: u16,
    /// Required.
    pub describe: Option<DescribeFn>,
    /// Required.
    pub open: Option<OpenFn>,
    /// Required.
    pub close: Option<CloseFn>,
    /// Without it, scoring is unsupported.
    pub score: Option<ScoreFn>,
    /// Without it, generating is unsupported.
    pub generate: Option<GenerateFn>,
    /// Without it, training is unsupported.
    pub train: Option<TrainFn>,
    /// Since 1.1. Without it, exporting is unsupported.
    pub export: Option<ExportFn>,
    /// Since 1.1. Without it, a session keeps its adapter.
    pub adapt: Option<AdaptFn>,
    /// Since 1.2. Without it, the backend needs nothing of the machine.
    pub provide: Option<ProvideFn>,
    /// Since 1.3. Without it, there is nothing to be measured.
    pub measure: Option<MeasureFn>,
}

// SAFETY: a table is immutable and holds function pointers and numbers only.
unsafe impl Sync for BackendV1 {}

/// The layout is the interface: a change here is a new major.
const _: () = {
    const WORD: usize = size_of::<usize>();
    assert!(WORD == 8, "the boundary is laid out for 64-bit machines");
    assert!(offset_of!(BackendV1, size) == 0);
    assert!(offset_of!(BackendV1, major) == 8);
    assert!(offset_of!(BackendV1, minor) == 10);
    assert!(offset_of!(BackendV1, describe) == 16);
    assert!(offset_of!(BackendV1, open) == 24);
    assert!(offset_of!(BackendV1, close) == 32);
    assert!(offset_of!(BackendV1, score) == 40);
    assert!(offset_of!(BackendV1, generate) == 48);
    assert!(offset_of!(BackendV1, train) == 56);
    assert!(offset_of!(BackendV1, export) == 64);
    assert!(offset_of!(BackendV1, adapt) == 72);
    assert!(offset_of!(BackendV1, provide) == 80);
    assert!(offset_of!(BackendV1, measure) == 88);
    assert!(size_of::<BackendV1>() == 96 && align_of::<BackendV1>() == 8);
    assert!(offset_of!(Slice, ptr) == 0 && offset_of!(Slice, len) == 8 && size_of::<Slice>() == 16);
    assert!(offset_of!(Owned, ptr) == 0 && offset_of!(Owned, len) == 8 && offset_of!(Owned, cap) == 16);
    assert!(offset_of!(Owned, release) == 24 && size_of::<Owned>() == 32);
    assert!(offset_of!(Tokens, ids) == 0 && offset_of!(Tokens, offsets) == 8 && offset_of!(Tokens, rows) == 16);
    assert!(size_of::<Tokens>() == 24);
    assert!(offset_of!(Labelled, tokens) == 0 && offset_of!(Labelled, labels) == 24 && size_of::<Labelled>() == 32);
    assert!(offset_of!(ScoresOut, logprobs) == 0 && offset_of!(ScoresOut, greedy) == 8);
    assert!(offset_of!(ScoresOut, len) == 16 && size_of::<ScoresOut>() == 24);
    assert!(offset_of!(Sink, ctx) == 0 && offset_of!(Sink, event) == 8 && size_of::<Sink>() == 16);
};

/// Makes a crate a plugin: exports the table of `$backend`, which is a [`Backend`](crate::Backend)
/// and [`Default`]. Once per crate, whose `Cargo.toml` says `crate-type = ["cdylib", "rlib"]`; the
/// crate name `karat-foo` makes the plugin be found as `foo`.
///
/// ```ignore
/// karat_backend::export_backend!(Native);
/// ```
#[macro_export]
macro_rules! export_backend {
    ($backend:ty) => {
        const _: () = {
            #[cfg(panic = "abort")]
            compile_error!(
                "a Karat plugin must be built with panic = \"unwind\": with \"abort\", a panic in it would end the host"
            );

            // The one thing an author cannot write in safe Rust. The name holds the crate's, see
            // `SYMBOL_PREFIX`.
            #[allow(unsafe_code)]
            #[unsafe(export_name = concat!("karat_backend_", env!("CARGO_CRATE_NAME")))]
            extern "C" fn karat_backend() -> *const $crate::abi::BackendV1 {
                $crate::abi::table::<$backend>()
            }
        };
    };
}
