//! Faults of the table, which only unsafe code can have; and the entry point.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_void};
use std::path::Path;
use std::ptr::null_mut;

use karat_backend::abi::{BackendV1, MAJOR, MINOR, Owned, ScoresOut, Sink, Slice, Status, Tokens};

use crate::Hostile;

/// What `export_backend!` would write, but with a table that depends on the file's name.
#[unsafe(export_name = concat!("karat_backend_", env!("CARGO_CRATE_NAME")))]
extern "C" fn entry() -> *const BackendV1 {
    table(fault_of_this_file().as_deref().unwrap_or_default())
}

/// What the name of this library's file says after the first `-`.
pub(crate) fn fault_of_this_file() -> Option<String> {
    let mut info = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: null_mut(),
    };
    // SAFETY: any address may be asked for, and `info` may be written.
    let known = unsafe { libc::dladdr(entry as *const c_void, &mut info) } != 0 && !info.dli_fname.is_null();
    if !known {
        return None;
    }
    // SAFETY: the loader's own text, which lives as long as this library.
    let file = unsafe { CStr::from_ptr(info.dli_fname) }.to_str().ok()?;
    let stem = Path::new(file).file_stem()?.to_str()?;
    stem.strip_prefix("libkarat_hostile-").map(str::to_owned)
}

/// The table with `fault`, or an honest one if there is no such fault.
pub fn table(fault: &str) -> *const BackendV1 {
    let good = *karat_backend::abi::table::<Hostile>();
    let bad = match fault {
        "null_table" => return std::ptr::null(),
        "wrong_major" => BackendV1 { major: MAJOR + 6, minor: 3, ..good },
        "empty_table" => BackendV1 { size: 8, ..good },
        "short_table" => BackendV1 { size: 24, describe: good.describe, ..good },
        "cut_in_a_field" => BackendV1 { size: 60, ..good },
        "no_open" => BackendV1 { open: None, ..good },
        "old_table" => BackendV1 { size: 40, ..good },
        "version_1_0" => BackendV1 { size: 64, minor: 0, ..good },
        "newer_minor" => BackendV1 { size: 4096, minor: MINOR + 1, score: Some(score_of_the_future), ..good },
        "describe_null_bytes" => BackendV1 { describe: Some(null_bytes), ..good },
        "describe_huge" => BackendV1 { describe: Some(huge), ..good },
        "describe_garbage" => BackendV1 { describe: Some(garbage), ..good },
        "describe_bad_utf8" => BackendV1 { describe: Some(bad_utf8), ..good },
        "describe_strange_status" => BackendV1 { describe: Some(strange_status), ..good },
        "no_session" => BackendV1 { open: Some(opens_nothing), ..good },
        "open_garbage" => BackendV1 { open: Some(opens_with_garbage), ..good },
        "score_bad_utf8" => BackendV1 { score: Some(score_bad_utf8), ..good },
        "score_unwritten" => BackendV1 { score: Some(score_unwritten), ..good },
        "score_bad_flags" => BackendV1 { score: Some(score_bad_flags), ..good },
        "event_garbage" => BackendV1 { score: Some(event_garbage), ..good },
        "event_null" => BackendV1 { score: Some(event_null), ..good },
        "event_of_the_future" => BackendV1 { score: Some(score_of_the_future), ..good },
        _ => good,
    };
    // A table lives for ever, and a test makes few.
    Box::leak(Box::new(bad))
}

fn leak(text: &'static [u8]) -> Owned {
    // Nothing to release: the text is the library's.
    Owned { ptr: text.as_ptr().cast_mut(), len: text.len(), cap: 0, release: None }
}

unsafe extern "C" fn null_bytes(out: *mut Owned) -> i32 {
    // SAFETY: the host's place for the answer; so in all functions below.
    unsafe { out.write(Owned { ptr: null_mut(), len: 10, cap: 10, release: None }) };
    Status::Ok as i32
}

unsafe extern "C" fn huge(out: *mut Owned) -> i32 {
    // SAFETY: as above.
    unsafe { out.write(Owned { len: usize::MAX, ..leak(b"{}") }) };
    Status::Ok as i32
}

unsafe extern "C" fn garbage(out: *mut Owned) -> i32 {
    // SAFETY: as above.
    unsafe { out.write(leak(b"\x7fELF, or so it seems")) };
    Status::Ok as i32
}

unsafe extern "C" fn bad_utf8(out: *mut Owned) -> i32 {
    // SAFETY: as above.
    unsafe { out.write(leak(b"{\"message\": \"the tape \xc3\x28 is torn\", \"causes\": [\"\xff\"]}")) };
    Status::Error as i32
}

unsafe extern "C" fn strange_status(_: *mut Owned) -> i32 {
    77
}

unsafe extern "C" fn opens_nothing(_: Slice, session: *mut *mut c_void, out: *mut Owned) -> i32 {
    // SAFETY: as above.
    unsafe {
        session.write(null_mut());
        out.write(leak(b"{}"));
    }
    Status::Ok as i32
}

/// Opens a session in earnest and, if the option `fault` is the same as this table's, describes it
/// wrongly: the host must close it.
unsafe extern "C" fn opens_with_garbage(config: Slice, session: *mut *mut c_void, out: *mut Owned) -> i32 {
    let Some(open) = karat_backend::abi::table::<Hostile>().open else { return Status::Error as i32 };
    // SAFETY: lent by the host, and never empty.
    let text = unsafe { std::slice::from_raw_parts(config.ptr, config.len) };
    if !String::from_utf8_lossy(text).contains("open_garbage") {
        // SAFETY: the host's arguments are passed on.
        return unsafe { open(config, session, out) };
    }
    let mut answer = Owned::EMPTY;
    // SAFETY: the host's arguments are passed on; the answer is released by its maker and replaced.
    unsafe {
        let status = open(config, session, &mut answer);
        if let Some(release) = answer.release {
            release(&mut answer);
        }
        out.write(leak(b"{\"info\": \"all is well\"}"));
        status
    }
}

unsafe extern "C" fn score_bad_utf8(_: *mut c_void, _: Tokens, _: Sink, _: ScoresOut, out: *mut Owned) -> i32 {
    // SAFETY: as above.
    unsafe { out.write(leak(b"\xfe\xffthe tape is torn\x00")) };
    Status::Error as i32
}

unsafe extern "C" fn score_unwritten(_: *mut c_void, _: Tokens, _: Sink, _: ScoresOut, _: *mut Owned) -> i32 {
    Status::Ok as i32
}

unsafe extern "C" fn score_bad_flags(_: *mut c_void, _: Tokens, _: Sink, scores: ScoresOut, _: *mut Owned) -> i32 {
    for i in 0..scores.len {
        // SAFETY: both arrays have `len` elements.
        unsafe {
            scores.logprobs.add(i).write(-1.0);
            scores.greedy.add(i).write(2);
        }
    }
    Status::Ok as i32
}

/// Sends `events` and returns what the host answered to the last.
fn send(sink: Sink, events: &[Slice]) -> i32 {
    let Some(event) = sink.event else { return -1 };
    // SAFETY: the host's callback with the host's context, within the call.
    events.iter().fold(0, |_, slice| unsafe { event(sink.ctx, *slice) })
}

fn slice(text: &'static [u8]) -> Slice {
    Slice { ptr: text.as_ptr(), len: text.len() }
}

/// Goes on, whatever the host says to its garbage, and claims success.
unsafe extern "C" fn event_garbage(_: *mut c_void, _: Tokens, sink: Sink, scores: ScoresOut, out: *mut Owned) -> i32 {
    send(sink, &[slice(b"\xff\x00{"), slice(b"{\"type\":\"log\",\"level\":\"info\",\"message\":\"after\"}")]);
    // SAFETY: the host's arguments are passed on.
    unsafe { score_bad_flags(null_mut(), NO_ROWS, sink, scores, out) }
}

unsafe extern "C" fn event_null(_: *mut c_void, _: Tokens, sink: Sink, _: ScoresOut, _: *mut Owned) -> i32 {
    send(sink, &[Slice { ptr: std::ptr::null(), len: 5 }, Slice { ptr: std::ptr::null(), len: 0 }]);
    Status::Cancelled as i32
}

const NO_ROWS: Tokens = Tokens { ids: std::ptr::null(), offsets: std::ptr::null(), rows: 0 };

/// Sends an event that version 1.0 does not know, and scores everything as improbable.
unsafe extern "C" fn score_of_the_future(
    _: *mut c_void,
    _: Tokens,
    sink: Sink,
    scores: ScoresOut,
    _: *mut Owned,
) -> i32 {
    if send(sink, &[slice(b"{\"type\":\"mood\",\"value\":\"good\"}")]) != 0 {
        return Status::Cancelled as i32;
    }
    for i in 0..scores.len {
        // SAFETY: both arrays have `len` elements.
        unsafe {
            scores.logprobs.add(i).write(-9.0);
            scores.greedy.add(i).write(0);
        }
    }
    Status::Ok as i32
}
