//! The plugin's side: from a [`Backend`] to a table.

use std::any::Any;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::wire::{self, AdaptRequest, Measure, OpenReply, Provide};
use super::{BackendV1, Labelled, MAJOR, MINOR, Owned, ScoresOut, Sink, Slice, Status, Tokens};
use crate::{
    Backend, BackendError, BackendErrorKind, Evaluator, Event, EventSink, Flow, LabelledView, Level, Session,
    TokensView, Trainer,
};

/// The table of `B`. Backends are stateless, so each call that needs one makes it anew.
pub fn table<B: Backend + Default>() -> &'static BackendV1 {
    &Exported::<B>::TABLE
}

struct Exported<B>(PhantomData<B>);

impl<B: Backend + Default> Exported<B> {
    const TABLE: BackendV1 = BackendV1 {
        size: size_of::<BackendV1>(),
        major: MAJOR,
        minor: MINOR,
        describe: Some(describe::<B>),
        open: Some(open::<B>),
        close: Some(close),
        score: Some(score),
        generate: Some(generate),
        train: Some(train),
        export: Some(export::<B>),
        adapt: Some(adapt),
        provide: Some(provide::<B>),
        measure: Some(measure::<B>),
    };
}

unsafe extern "C" fn provide<B: Backend + Default>(request: Slice, out: *mut Owned) -> i32 {
    let work = || {
        // SAFETY: lent for this call.
        let Provide { fix, device } = wire::decode("the request to provide", unsafe { bytes(request) }?)?;
        wire::encode("the provisions", &B::default().provide(fix, &device)?)
    };
    // SAFETY: `out` is the caller's.
    unsafe { answer(out, work) }
}

unsafe extern "C" fn measure<B: Backend + Default>(request: Slice, out: *mut Owned) -> i32 {
    let work = || {
        // SAFETY: lent for this call.
        let Measure { device } = wire::decode("the request to measure", unsafe { bytes(request) }?)?;
        wire::encode("what was measured", &B::default().measure(&device)?)
    };
    // SAFETY: `out` is the caller's.
    unsafe { answer(out, work) }
}

/// What a session pointer points at.
struct Held {
    session: Box<dyn Session>,
    /// What the panic said that ended its use.
    poison: Option<String>,
}

unsafe extern "C" fn describe<B: Backend + Default>(out: *mut Owned) -> i32 {
    // SAFETY: `out` is the caller's.
    unsafe { answer(out, || wire::encode("the descriptor", &B::default().describe())) }
}

unsafe extern "C" fn open<B: Backend + Default>(config: Slice, session: *mut *mut c_void, out: *mut Owned) -> i32 {
    let work = || {
        if session.is_null() {
            return Err(BackendError::failed("the host gave no place for the session"));
        }
        // SAFETY: lent for this call.
        let config = wire::decode("the open configuration", unsafe { bytes(config) }?)?;
        let mut opened = B::default().open(&config)?;
        let answer = OpenReply {
            info: opened.info(),
            evaluator: opened.evaluator().is_some(),
            trainer: opened.trainer().is_some(),
        };
        let json = wire::encode("the session's facts", &answer)?;
        let held = Box::into_raw(Box::new(Held { session: opened, poison: None }));
        // SAFETY: not null, and the caller's to write.
        unsafe { session.write(held.cast()) };
        Ok(json)
    };
    // SAFETY: `out` is the caller's.
    unsafe { answer(out, work) }
}

unsafe extern "C" fn close(session: *mut c_void) -> i32 {
    if session.is_null() {
        return Status::Ok as i32;
    }
    // SAFETY: made by `open`, and closed once.
    match catch_unwind(AssertUnwindSafe(|| drop(unsafe { Box::from_raw(session.cast::<Held>()) }))) {
        Ok(()) => Status::Ok as i32,
        Err(payload) => {
            explain(payload);
            Status::Panicked as i32
        }
    }
}

unsafe extern "C" fn score(session: *mut c_void, rows: Tokens, sink: Sink, scores: ScoresOut, out: *mut Owned) -> i32 {
    let work = |session: &mut dyn Session| {
        // SAFETY: lent for this call.
        let rows = unsafe { tokens(rows) }?;
        let mut sink = HostSink::new(sink)?;
        let made = evaluator(session)?.score(rows, &mut sink)?;
        if made.logprobs.len() != scores.len || made.greedy.len() != scores.len {
            return Err(BackendError::failed(format!(
                "{} log-probabilities and {} flags were made for {} scored tokens: a bug of the backend",
                made.logprobs.len(),
                made.greedy.len(),
                scores.len
            )));
        }
        if scores.len > 0 {
            if scores.logprobs.is_null() || scores.greedy.is_null() {
                return Err(BackendError::failed("the host gave no place for the scores"));
            }
            // SAFETY: both have room for `len`, which is what was made; `bool` is one byte, 0 or 1.
            unsafe {
                scores.logprobs.copy_from_nonoverlapping(made.logprobs.as_ptr(), scores.len);
                scores.greedy.copy_from_nonoverlapping(made.greedy.as_ptr().cast(), scores.len);
            }
        }
        Ok(Vec::new())
    };
    // SAFETY: as this function's caller promises.
    unsafe { answer_with(session, out, work) }
}

unsafe extern "C" fn generate(
    session: *mut c_void,
    prompts: Tokens,
    config: Slice,
    sink: Sink,
    out: *mut Owned,
) -> i32 {
    let work = |session: &mut dyn Session| {
        // SAFETY: lent for this call.
        let (prompts, config) = unsafe { (tokens(prompts)?, bytes(config)?) };
        let config = wire::decode("the generation configuration", config)?;
        let mut sink = HostSink::new(sink)?;
        let made = evaluator(session)?.generate(prompts, &config, &mut sink)?;
        wire::encode("the completions", &made)
    };
    // SAFETY: as this function's caller promises.
    unsafe { answer_with(session, out, work) }
}

unsafe extern "C" fn train(
    session: *mut c_void,
    train: Labelled,
    eval: Labelled,
    plan: Slice,
    sink: Sink,
    out: *mut Owned,
) -> i32 {
    let work = |session: &mut dyn Session| {
        // SAFETY: lent for this call.
        let (train, eval, plan) = unsafe { (labelled(train)?, labelled(eval)?, bytes(plan)?) };
        let plan = wire::decode("the training plan", plan)?;
        let mut sink = HostSink::new(sink)?;
        let trainer: &mut dyn Trainer =
            session.trainer().ok_or_else(|| BackendError::unsupported("this session cannot train"))?;
        wire::encode("the summary of the training", &trainer.train(train, eval, &plan, &mut sink)?)
    };
    // SAFETY: as this function's caller promises.
    unsafe { answer_with(session, out, work) }
}

unsafe extern "C" fn export<B: Backend + Default>(config: Slice, sink: Sink, out: *mut Owned) -> i32 {
    let work = || {
        // SAFETY: lent for this call.
        let config = wire::decode("the export configuration", unsafe { bytes(config) }?)?;
        let mut sink = HostSink::new(sink)?;
        wire::encode("the summary of the export", &B::default().export(&config, &mut sink)?)
    };
    // SAFETY: `out` is the caller's.
    unsafe { answer(out, work) }
}

unsafe extern "C" fn adapt(session: *mut c_void, adapter: Slice, out: *mut Owned) -> i32 {
    let work = |session: &mut dyn Session| {
        // SAFETY: lent for this call.
        let AdaptRequest { adapter } = wire::decode("the adapter's place", unsafe { bytes(adapter) }?)?;
        session.set_adapter(adapter.as_deref())?;
        wire::encode("the session's facts", &session.info())
    };
    // SAFETY: as this function's caller promises.
    unsafe { answer_with(session, out, work) }
}

fn evaluator(session: &mut dyn Session) -> Result<&mut dyn Evaluator, BackendError> {
    session.evaluator().ok_or_else(|| BackendError::unsupported("this session can neither score nor generate"))
}

/// Does `work` on a session, unless an earlier panic poisoned it; a panic in it does so.
///
/// # Safety
/// `session` is null or was made by [`open`] and is used by this thread alone; `out` as in
/// [`answer`].
unsafe fn answer_with(
    session: *mut c_void,
    out: *mut Owned,
    work: impl FnOnce(&mut dyn Session) -> Result<Vec<u8>, BackendError>,
) -> i32 {
    // SAFETY: `out` is passed on.
    unsafe {
        answer(out, || {
            // SAFETY: promised by the caller.
            let held = session
                .cast::<Held>()
                .as_mut()
                .ok_or_else(|| BackendError::failed("the host gave no session to work on"))?;
            if let Some(panic) = &held.poison {
                return Err(BackendError {
                    kind: BackendErrorKind::Panicked,
                    message: "this session cannot be used any more since the backend panicked in it; open a new one"
                        .into(),
                    causes: vec![panic.clone()],
                });
            }
            match catch_unwind(AssertUnwindSafe(|| work(&mut *held.session))) {
                Ok(result) => result,
                Err(payload) => {
                    let panic = explain(payload);
                    held.poison = Some(panic.clone());
                    Err(panicked(panic))
                }
            }
        })
    }
}

/// Runs `work` and hands its result or error to the host; a panic is an error too.
///
/// # Safety
/// `out` is null or may be written.
unsafe fn answer(out: *mut Owned, work: impl FnOnce() -> Result<Vec<u8>, BackendError>) -> i32 {
    if out.is_null() {
        return Status::Error as i32;
    }
    let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| Err(panicked(explain(payload))));
    let (status, bytes) = match result {
        Ok(bytes) => (Status::Ok, bytes),
        Err(error) => wire::encode_error(&error),
    };
    // SAFETY: not null; what was there belongs to the caller and is not dropped.
    unsafe { out.write(give(bytes)) };
    status as i32
}

fn panicked(message: String) -> BackendError {
    BackendError::new(BackendErrorKind::Panicked, format!("the backend panicked: {message}"))
}

/// What a panic said.
fn explain(payload: Box<dyn Any + Send>) -> String {
    let message = if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "it did not say why".to_owned()
    };
    // A payload may panic while it is dropped, and what that one carries may too: the second is let
    // go.
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(second);
    }
    message
}

static ALIVE: AtomicUsize = AtomicUsize::new(0);

/// How many [`Owned`] that this copy of the library gave away have not been released yet: 0 when
/// nothing leaks.
pub fn owned_alive() -> usize {
    ALIVE.load(Ordering::SeqCst)
}

fn give(bytes: Vec<u8>) -> Owned {
    if bytes.is_empty() {
        return Owned::EMPTY;
    }
    ALIVE.fetch_add(1, Ordering::SeqCst);
    let mut bytes = std::mem::ManuallyDrop::new(bytes);
    Owned { ptr: bytes.as_mut_ptr(), len: bytes.len(), cap: bytes.capacity(), release: Some(release) }
}

unsafe extern "C" fn release(owned: *mut Owned) {
    // SAFETY: null, or an `Owned` of `give` that the receiver hands back.
    if let Some(owned) = unsafe { owned.as_mut() }
        && !owned.ptr.is_null()
    {
        // SAFETY: the parts of the vector that `give` took apart, and never twice since they are
        // forgotten now.
        drop(unsafe { Vec::from_raw_parts(owned.ptr, owned.len, owned.cap) });
        *owned = Owned::EMPTY;
        ALIVE.fetch_sub(1, Ordering::SeqCst);
    }
}

/// # Safety
/// `ptr` is good for `len` elements for `'a`, if it is not null.
unsafe fn array<'a, T>(what: &str, ptr: *const T, len: usize) -> Result<&'a [T], BackendError> {
    if len == 0 {
        return Ok(&[]);
    }
    if ptr.is_null() || !ptr.is_aligned() || len > isize::MAX as usize / size_of::<T>() {
        return Err(BackendError::failed(format!("the host gave no proper {what}: {len} elements at {ptr:p}")));
    }
    // SAFETY: checked as far as it can be, promised beyond.
    Ok(unsafe { std::slice::from_raw_parts(ptr, len) })
}

/// # Safety
/// As [`array`].
unsafe fn bytes<'a>(slice: Slice) -> Result<&'a [u8], BackendError> {
    // SAFETY: passed on.
    unsafe { array("JSON text", slice.ptr, slice.len) }
}

/// # Safety
/// As [`array`], for both arrays of `raw`.
unsafe fn tokens<'a>(raw: Tokens) -> Result<TokensView<'a>, BackendError> {
    // SAFETY: passed on; the last offset counts the ids.
    unsafe {
        let offsets = array("row offsets", raw.offsets, raw.rows.saturating_add(1))?;
        let ids = array("token ids", raw.ids, offsets.last().copied().unwrap_or_default())?;
        TokensView::new(ids, offsets)
    }
}

/// # Safety
/// As [`array`], for all arrays of `raw`.
unsafe fn labelled<'a>(raw: Labelled) -> Result<LabelledView<'a>, BackendError> {
    // SAFETY: passed on; there is a label for each id.
    unsafe {
        let rows = tokens(raw.tokens)?;
        LabelledView::new(rows, array("labels", raw.labels, rows.ids().len())?)
    }
}

/// The host's callback as an [`EventSink`].
struct HostSink {
    event: unsafe extern "C" fn(*mut c_void, Slice) -> i32,
    ctx: *mut c_void,
    stopped: bool,
}

impl HostSink {
    fn new(sink: Sink) -> Result<Self, BackendError> {
        let event = sink.event.ok_or_else(|| BackendError::failed("the host gave no callback for events"))?;
        Ok(HostSink { event, ctx: sink.ctx, stopped: false })
    }
    fn send(&mut self, json: &[u8]) {
        // SAFETY: the host's callback, called within the call that lent it.
        let go_on = unsafe { (self.event)(self.ctx, Slice { ptr: json.as_ptr(), len: json.len() }) };
        // Once stopped, always stopped: a backend that missed the first answer gets it again.
        self.stopped |= go_on != 0;
    }
}

impl EventSink for HostSink {
    fn event(&mut self, event: Event) -> Flow {
        match serde_json::to_vec(&event) {
            Ok(json) => self.send(&json),
            // Only a path that is not UTF-8 comes here; the event is lost, but not silently.
            Err(error) => {
                let message = format!("an event could not be written as JSON: {error}");
                if let Ok(json) = serde_json::to_vec(&Event::Log { level: Level::Warn, message }) {
                    self.send(&json);
                }
            }
        }
        if self.stopped { Flow::Stop } else { Flow::Continue }
    }
}

#[cfg(test)]
mod tests;
