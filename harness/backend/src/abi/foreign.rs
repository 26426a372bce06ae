//! The host's side: from a table to a [`Backend`].

use std::any::Any;
use std::ffi::c_void;
use std::mem::offset_of;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

use serde_json::Value;

use super::wire::{self, AdaptRequest, Measure, OpenReply, Provide};
use super::{
    AdaptFn, BackendV1, CloseFn, DescribeFn, ExportFn, GenerateFn, Labelled, MAJOR, MINOR, MeasureFn, OpenFn, Owned,
    ProvideFn, ScoreFn, ScoresOut, Sink, Slice, Status, Tokens, TrainFn,
};
use crate::{
    Backend, BackendError, BackendErrorKind, Completion, Descriptor, Evaluator, Event, EventSink, ExportConfig,
    ExportSummary, Flow, GenerateConfig, LabelledView, OpenConfig, Provisions, Scores, Session, SessionInfo,
    TokensView, TrainPlan, TrainSummary, Trainer,
};

/// A backend on the other side of the boundary.
#[derive(Clone, Debug)]
pub struct Foreign {
    calls: Calls,
    descriptor: Descriptor,
}

/// The functions of a table whose version has been checked.
#[derive(Clone, Copy, Debug)]
struct Calls {
    minor: u16,
    describe: DescribeFn,
    open: OpenFn,
    close: CloseFn,
    score: Option<ScoreFn>,
    generate: Option<GenerateFn>,
    train: Option<TrainFn>,
    export: Option<ExportFn>,
    adapt: Option<AdaptFn>,
    provide: Option<ProvideFn>,
    measure: Option<MeasureFn>,
}

impl Foreign {
    /// `B` behind its own boundary, without a library in between.
    ///
    /// # Errors
    /// If `B` cannot describe itself.
    pub fn in_process<B: Backend + Default>() -> Result<Foreign, BackendError> {
        // SAFETY: made by this crate.
        unsafe { Foreign::from_table(super::table::<B>()) }
    }

    /// Checks the version of a table and asks the backend to describe itself.
    ///
    /// # Safety
    /// `table` is null, or points for ever at `size` bytes of a table whose functions keep the
    /// contract of [`crate::abi`]. (What can be checked is checked.)
    ///
    /// # Errors
    /// If the table is of another major version or lacks a required function, or if describing
    /// fails.
    pub unsafe fn from_table(table: *const BackendV1) -> Result<Foreign, BackendError> {
        // SAFETY: passed on.
        let calls = unsafe { Calls::read(table) }?;
        let json = call(calls.minor, None, |_, out| {
            // SAFETY: `out` may be written.
            unsafe { (calls.describe)(out) }
        })?;
        Ok(Foreign { calls, descriptor: wire::decode_descriptor(&json)? })
    }

    /// The version of the interface it was built for.
    pub fn version(&self) -> (u16, u16) {
        (MAJOR, self.calls.minor)
    }
}

/// Reads a field of a table, or `None` if the table ends before it.
macro_rules! field {
    ($table:expr, $size:expr, $field:ident) => {{
        let end = offset_of!(BackendV1, $field) + size_of_val(&BLANK.$field);
        // SAFETY: the field lies within `size`, which is readable.
        if $size >= end { unsafe { std::ptr::addr_of!((*$table).$field).read() } } else { BLANK.$field }
    }};
}

const BLANK: BackendV1 = BackendV1 {
    size: 0,
    major: 0,
    minor: 0,
    describe: None,
    open: None,
    close: None,
    score: None,
    generate: None,
    train: None,
    export: None,
    adapt: None,
    provide: None,
    measure: None,
};

impl Calls {
    /// # Safety
    /// As [`Foreign::from_table`].
    unsafe fn read(table: *const BackendV1) -> Result<Calls, BackendError> {
        if table.is_null() || !table.is_aligned() {
            return Err(BackendError::failed(format!(
                "the plugin gave no table of functions but the address {table:p}"
            )));
        }
        // SAFETY: not null; every table starts with its size.
        let size = unsafe { table.cast::<usize>().read() };
        if size < offset_of!(BackendV1, describe) {
            return Err(BackendError::failed(format!(
                "the plugin's table has {size} bytes, too few even for its version: it was not made by export_backend!"
            )));
        }
        let (major, minor) = (field!(table, size, major), field!(table, size, minor));
        if major != MAJOR {
            return Err(BackendError::unsupported(format!(
                "the plugin speaks version {major}.{minor} of the plugin interface and this Karat speaks \
                 {MAJOR}.{MINOR}: build both from the same version of Karat"
            )));
        }
        let missing = |name: &str| {
            BackendError::failed(format!("the plugin's table ({size} bytes, version {major}.{minor}) has no `{name}`"))
        };
        Ok(Calls {
            minor,
            describe: field!(table, size, describe).ok_or_else(|| missing("describe"))?,
            open: field!(table, size, open).ok_or_else(|| missing("open"))?,
            close: field!(table, size, close).ok_or_else(|| missing("close"))?,
            score: field!(table, size, score),
            generate: field!(table, size, generate),
            train: field!(table, size, train),
            export: field!(table, size, export),
            adapt: field!(table, size, adapt),
            provide: field!(table, size, provide),
            measure: field!(table, size, measure),
        })
    }
}

impl Backend for Foreign {
    fn describe(&self) -> Descriptor {
        self.descriptor.clone()
    }

    fn open(&self, config: &OpenConfig) -> Result<Box<dyn Session>, BackendError> {
        let config = wire::encode("the open configuration", config)?;
        let mut raw = std::ptr::null_mut();
        let answer = call(self.calls.minor, None, |_, out| {
            // SAFETY: the configuration outlives the call; both places may be written.
            unsafe { (self.calls.open)(lend(&config), &mut raw, out) }
        })?;
        if raw.is_null() {
            return Err(BackendError::failed("the plugin says that the model was opened, but gave no session"));
        }
        // From here on, an error closes the session.
        let held = Raw { calls: self.calls, session: raw };
        let OpenReply { info, evaluator, trainer } = wire::decode("what the plugin says of the session", &answer)?;
        Ok(Box::new(ForeignSession { held, info, evaluator, trainer }))
    }

    fn provide(&self, fix: bool, device: &str) -> Result<Provisions, BackendError> {
        let Some(provide) = self.calls.provide else { return Ok(Provisions::default()) };
        let request = wire::encode("the request to provide", &Provide { fix, device: device.to_string() })?;
        let answer = call(self.calls.minor, None, |_, out| {
            // SAFETY: the request outlives the call; `out` may be written.
            unsafe { provide(lend(&request), out) }
        })?;
        wire::decode("what the plugin says of its provisions", &answer)
    }

    fn measure(&self, device: &str) -> Result<Provisions, BackendError> {
        let Some(measure) = self.calls.measure else { return Ok(Provisions::default()) };
        let request = wire::encode("the request to measure", &Measure { device: device.to_string() })?;
        let answer = call(self.calls.minor, None, |_, out| {
            // SAFETY: the request outlives the call; `out` may be written.
            unsafe { measure(lend(&request), out) }
        })?;
        wire::decode("what the plugin says of its speed", &answer)
    }

    fn export(&self, config: &ExportConfig, sink: &mut dyn EventSink) -> Result<ExportSummary, BackendError> {
        let export = self.calls.export.ok_or_else(|| lacks("export"))?;
        let config = wire::encode("the export configuration", config)?;
        let json = call(self.calls.minor, Some(sink), |sink, out| {
            // SAFETY: everything lent outlives the call.
            unsafe { export(lend(&config), sink, out) }
        })?;
        wire::decode("what the plugin says of the export", &json)
    }
}

/// A session's pointer, closed when dropped.
struct Raw {
    calls: Calls,
    session: *mut c_void,
}

// SAFETY: sessions may change threads (`Session: Send` on the other side, and so says the
// contract).
unsafe impl Send for Raw {}

impl Drop for Raw {
    fn drop(&mut self) {
        // SAFETY: given by `open`, and closed only here. A failure leaves nothing to be done.
        unsafe { (self.calls.close)(self.session) };
    }
}

struct ForeignSession {
    held: Raw,
    /// As it was when the session was opened or its adapter exchanged.
    info: SessionInfo,
    evaluator: bool,
    trainer: bool,
}

impl Session for ForeignSession {
    fn evaluator(&mut self) -> Option<&mut dyn Evaluator> {
        if self.evaluator { Some(self) } else { None }
    }
    fn trainer(&mut self) -> Option<&mut dyn Trainer> {
        if self.trainer { Some(self) } else { None }
    }
    fn info(&self) -> SessionInfo {
        self.info.clone()
    }
    fn set_adapter(&mut self, adapter: Option<&Path>) -> Result<(), BackendError> {
        let adapt = self.held.calls.adapt.ok_or_else(|| lacks("adapt"))?;
        let place = wire::encode("the adapter's place", &AdaptRequest { adapter: adapter.map(Path::to_path_buf) })?;
        let json = call(self.held.calls.minor, None, |_, out| {
            // SAFETY: everything lent outlives the call.
            unsafe { adapt(self.held.session, lend(&place), out) }
        })?;
        self.info = wire::decode("what the plugin says of the session", &json)?;
        Ok(())
    }
}

/// What a flag holds until the plugin writes it.
const UNWRITTEN: u8 = 0xff;

impl Evaluator for ForeignSession {
    fn score(&mut self, tokens: TokensView<'_>, sink: &mut dyn EventSink) -> Result<Scores, BackendError> {
        let score = self.held.calls.score.ok_or_else(|| lacks("score"))?;
        let len = tokens.iter().map(|row| row.len().max(1) - 1).sum();
        let mut logprobs = vec![f32::NAN; len];
        let mut flags = vec![UNWRITTEN; len];
        call(self.held.calls.minor, Some(sink), |sink, out| {
            let scores = ScoresOut { logprobs: logprobs.as_mut_ptr(), greedy: flags.as_mut_ptr(), len };
            // SAFETY: everything lent outlives the call, and the two arrays have `len` elements.
            unsafe { score(self.held.session, lend_tokens(tokens), sink, scores, out) }
        })?;
        let mut greedy = Vec::with_capacity(len);
        for (i, flag) in flags.into_iter().enumerate() {
            greedy.push(match flag {
                0 => false,
                1 => true,
                _ => {
                    return Err(BackendError::failed(format!(
                        "the plugin says it scored {len} tokens, but left number {i} unscored (flag {flag})"
                    )));
                }
            });
        }
        Ok(Scores { logprobs, greedy })
    }

    fn generate(
        &mut self,
        prompts: TokensView<'_>,
        config: &GenerateConfig,
        sink: &mut dyn EventSink,
    ) -> Result<Vec<Completion>, BackendError> {
        let generate = self.held.calls.generate.ok_or_else(|| lacks("generate"))?;
        let config = wire::encode("the generation configuration", config)?;
        let json = call(self.held.calls.minor, Some(sink), |sink, out| {
            // SAFETY: everything lent outlives the call.
            unsafe { generate(self.held.session, lend_tokens(prompts), lend(&config), sink, out) }
        })?;
        let completions: Vec<Completion> = wire::decode("what the plugin says it generated", &json)?;
        if completions.len() != prompts.rows() {
            return Err(BackendError::failed(format!(
                "the plugin gave {} completions for {} prompts",
                completions.len(),
                prompts.rows()
            )));
        }
        Ok(completions)
    }
}

impl Trainer for ForeignSession {
    fn train(
        &mut self,
        train: LabelledView<'_>,
        eval: LabelledView<'_>,
        plan: &TrainPlan,
        sink: &mut dyn EventSink,
    ) -> Result<TrainSummary, BackendError> {
        let function = self.held.calls.train.ok_or_else(|| lacks("train"))?;
        let plan = wire::encode("the training plan", plan)?;
        let json = call(self.held.calls.minor, Some(sink), |sink, out| {
            // SAFETY: everything lent outlives the call.
            unsafe { function(self.held.session, lend_labelled(train), lend_labelled(eval), lend(&plan), sink, out) }
        })?;
        wire::decode("what the plugin says of the training", &json)
    }
}

fn lacks(function: &str) -> BackendError {
    BackendError::unsupported(format!("the plugin's table has no `{function}`"))
}

fn lend(bytes: &[u8]) -> Slice {
    Slice { ptr: bytes.as_ptr(), len: bytes.len() }
}

fn lend_tokens(tokens: TokensView<'_>) -> Tokens {
    Tokens { ids: tokens.ids().as_ptr(), offsets: tokens.offsets().as_ptr(), rows: tokens.rows() }
}

fn lend_labelled(rows: LabelledView<'_>) -> Labelled {
    Labelled { tokens: lend_tokens(rows.tokens()), labels: rows.labels().as_ptr() }
}

/// Makes one call: gives it a callback and a place for its answer, and reads that answer.
///
/// # Errors
/// What the plugin reports, or that its report makes no sense.
fn call(
    minor: u16,
    sink: Option<&mut dyn EventSink>,
    function: impl FnOnce(Sink, *mut Owned) -> i32,
) -> Result<Vec<u8>, BackendError> {
    let mut ears = Ears { sink, newer: minor > MINOR, stopped: false, garbage: None, panic: None };
    let mut owned = Owned::EMPTY;
    let code = function(Sink { ctx: (&raw mut ears).cast(), event: Some(hear) }, &mut owned);
    let bytes = take(owned);
    if let Some(payload) = ears.panic {
        // The plugin has returned, so nothing foreign is unwound.
        resume_unwind(payload);
    }
    let bytes = bytes?;
    if let Some(garbage) = ears.garbage {
        return Err(BackendError::failed(garbage));
    }
    let kind = match Status::from_code(code) {
        Some(Status::Ok) => return Ok(bytes),
        Some(Status::Error) => BackendErrorKind::Failed,
        Some(Status::Cancelled) => BackendErrorKind::Cancelled,
        Some(Status::Panicked) => BackendErrorKind::Panicked,
        Some(Status::Unsupported) => BackendErrorKind::Unsupported,
        None => {
            return Err(BackendError::failed(format!("the plugin answered with status {code}, which means nothing")));
        }
    };
    Err(wire::decode_error(kind, &bytes))
}

/// Copies the bytes of `owned` and has its maker free them.
fn take(mut owned: Owned) -> Result<Vec<u8>, BackendError> {
    let (ptr, len) = (owned.ptr, owned.len);
    let bytes = if len == 0 {
        Ok(Vec::new())
    } else if ptr.is_null() || len > isize::MAX as usize {
        Err(BackendError::failed(format!("the plugin answered with {len} bytes at address {ptr:p}, which cannot be")))
    } else {
        // SAFETY: not null; that `len` bytes are there is the plugin's word.
        Ok(unsafe { std::slice::from_raw_parts(ptr, len) }.to_vec())
    };
    if let Some(release) = owned.release {
        // SAFETY: the maker's own function, called once.
        unsafe { release(&mut owned) };
    }
    bytes
}

/// What the callback needs: where events go, and what became of them.
struct Ears<'a> {
    sink: Option<&'a mut dyn EventSink>,
    /// The plugin may know events that this host does not.
    newer: bool,
    stopped: bool,
    garbage: Option<String>,
    panic: Option<Box<dyn Any + Send>>,
}

impl Ears<'_> {
    fn event(&mut self, json: &[u8]) {
        let event = match serde_json::from_slice::<Event>(json) {
            Ok(event) => event,
            Err(_) if self.newer && is_tagged(json) => return,
            Err(error) => {
                self.garbage =
                    Some(format!("the plugin sent an event that cannot be read: `{}`: {error}", wire::excerpt(json)));
                self.stopped = true;
                return;
            }
        };
        if let Some(sink) = &mut self.sink {
            self.stopped |= sink.event(event) == Flow::Stop;
        }
    }
}

/// Whether this may be an event of a later version.
fn is_tagged(json: &[u8]) -> bool {
    serde_json::from_slice::<Value>(json).is_ok_and(|value| value.get("type").is_some_and(Value::is_string))
}

unsafe extern "C" fn hear(ctx: *mut c_void, event: Slice) -> i32 {
    // SAFETY: the context of `call`, which is waiting for the plugin to return.
    let Some(ears) = (unsafe { ctx.cast::<Ears>().as_mut() }) else { return 1 };
    if ears.panic.is_some() || ears.garbage.is_some() {
        return 1;
    }
    if event.ptr.is_null() || event.len > isize::MAX as usize {
        ears.garbage = Some(format!(
            "the plugin sent an event of {} bytes at address {:p}, which cannot be",
            event.len, event.ptr
        ));
        return 1;
    }
    // SAFETY: not null; lent by the plugin for this call.
    let json = unsafe { std::slice::from_raw_parts(event.ptr, event.len) };
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| ears.event(json))) {
        ears.panic = Some(payload);
        ears.stopped = true;
    }
    ears.stopped.into()
}
