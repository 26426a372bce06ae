//! Signals: a stop that was asked for leaves a checkpoint, and a model's file that shrinks under
//! its mapping is an error with a name.
//!
//! Ctrl-C (SIGINT), SLURM and `docker stop` (SIGTERM) and a lost connection (SIGHUP) all mean the
//! same: stop, and lose nothing. The exit code is 128 and the signal's number, as of a process that
//! the signal ended. A second signal ends the process at once. A SIGHUP that was ignored when the
//! process began (`nohup`) stays ignored.
//!
//! Backends map a model's weights: reading a model of 14 GB instead would take twice its memory for
//! as long as it is converted and the time of a whole read before the first token, and a mapping
//! costs neither. The price is that the system sends SIGBUS where a file has become shorter than
//! its mapping, at any later read; no check of its length beforehand could close that gap. So the
//! handler says which file it was, and ends the process with the exit code of a backend that
//! failed.
//!
//! Handlers may call little. These load and store atomics, read `/proc/self/maps` and write; they
//! neither allocate nor lock.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use karat::run::Cancel;
use karat::{Error, ErrorKind, Result, exit};

/// What is asked to stop.
static CANCEL: OnceLock<Cancel> = OnceLock::new();
/// The signal that asked first; 0 before.
static ASKED: AtomicI32 = AtomicI32::new(0);

/// A flag that SIGINT, SIGTERM and SIGHUP set; a second one ends the process at once.
///
/// # Errors
/// If the system does not take the handler.
pub fn cancel_on_signal() -> Result<Cancel> {
    let cancel = CANCEL.get_or_init(Cancel::new).clone();
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        if signal == libc::SIGHUP && is_ignored(signal) {
            continue;
        }
        handle(signal, stop as *const () as usize, libc::SA_RESTART)?;
    }
    Ok(cancel)
}

/// The exit code of an error: that of its kind, or of the signal that interrupted.
pub fn exit_code(error: &Error) -> u8 {
    match (error.kind(), ASKED.load(Ordering::SeqCst)) {
        (ErrorKind::Interrupted, signal @ 1..128) => 128 + signal as u8,
        (kind, _) => kind.exit_code(),
    }
}

extern "C" fn stop(signal: c_int) {
    if ASKED.swap(signal, Ordering::SeqCst) != 0 {
        // SAFETY: ends the process without running anything of it.
        unsafe { libc::_exit(128 + signal) }
    }
    if let Some(cancel) = CANCEL.get() {
        cancel.request();
    }
    write(libc::STDERR_FILENO, &[b"\nstopping cleanly; press Ctrl-C (or send the signal) again to stop at once\n"]);
}

/// Whether the process was started with `signal` ignored.
fn is_ignored(signal: c_int) -> bool {
    // SAFETY: a zeroed `sigaction` is one, and this call only fills it.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut now) == 0 && now.sa_sigaction == libc::SIG_IGN
    }
}

fn handle(signal: c_int, handler: libc::sighandler_t, flags: c_int) -> Result<()> {
    // SAFETY: the handlers of this file call nothing that a handler may not, and have the type that
    // their flags ask for.
    let done = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(signal, &action, std::ptr::null_mut())
    };
    match done {
        0 => Ok(()),
        _ => Err(Error::failed(format!("could not install the handler of signal {signal}"))
            .because(std::io::Error::last_os_error())),
    }
}

/// Whether errors are objects on standard output as well.
static JSON: AtomicBool = AtomicBool::new(false);

/// From now on a mapped file that became shorter ends the process with an error that names it.
pub fn name_files_that_shrink(json: bool) {
    JSON.store(json, Ordering::SeqCst);
    // Without the handler the process ends as well, without a word.
    let _ = handle(libc::SIGBUS, shrunk as *const () as usize, libc::SA_SIGINFO);
}

const WHAT: &[u8] = b"this file was cut short, or cannot be read any more, while it was in use";
const HELP: &[u8] = b"put it back; to replace a file of a model that may be in use, write it anew and rename it";

extern "C" fn shrunk(signal: c_int, info: *const libc::siginfo_t, _: *const libc::c_void) {
    static AT_WORK: AtomicBool = AtomicBool::new(false);
    while AT_WORK.swap(true, Ordering::SeqCst) {
        // Another thread met the same file, and will end the process.
        // SAFETY: waits for a signal.
        unsafe { libc::pause() };
    }
    // SAFETY: the system gives a valid `siginfo_t` to a handler with SA_SIGINFO.
    let address = unsafe { (*info).si_addr() } as usize;
    let mut line = [0u8; 6144];
    let Some(path) = mapped_file(address, &mut line) else {
        // No file: the fault comes again and ends the process as it would have.
        // SAFETY: sets a disposition.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    };
    for byte in path.iter_mut().filter(|b| b.is_ascii_control() || matches!(**b, b'"' | b'\\')) {
        *byte = b'?';
    }
    if JSON.load(Ordering::SeqCst) {
        let parts: [&[u8]; 7] = [
            b"{\"error\":{\"exit_code\":5,\"what\":\"",
            WHAT,
            b"\",\"where\":\"",
            path,
            b"\",\"causes\":[],\"help\":\"",
            HELP,
            b"\"}}\n",
        ];
        write(libc::STDOUT_FILENO, &parts);
    }
    write(libc::STDERR_FILENO, &[b"error: ", path, b": ", WHAT, b"\n  help: ", HELP, b"\n"]);
    // SAFETY: ends the process without running anything of it.
    unsafe { libc::_exit(exit::BACKEND.into()) }
}

/// The file whose mapping holds `address`; `line` is room to read in.
fn mapped_file(address: usize, line: &mut [u8]) -> Option<&mut [u8]> {
    // SAFETY: the path is a C string.
    let maps = unsafe { libc::open(c"/proc/self/maps".as_ptr(), libc::O_RDONLY) };
    let mut length = 0;
    let next = || {
        let mut byte = 0u8;
        // SAFETY: room for one byte.
        (unsafe { libc::read(maps, (&raw mut byte).cast(), 1) } == 1).then_some(byte)
    };
    let mut found = None;
    while let Some(byte) = next() {
        if byte != b'\n' {
            // A longer line loses its end; paths are shorter.
            if let Some(place) = line.get_mut(length) {
                *place = byte;
                length += 1;
            }
        } else if holds(&line[..length], address) {
            found = line[..length].iter().position(|b| *b == b'/').map(|path| path..length);
            break;
        } else {
            length = 0;
        }
    }
    // SAFETY: the descriptor of this call.
    unsafe { libc::close(maps) };
    line.get_mut(found?)
}

/// Whether a line of `/proc/self/maps`, which begins with `start-end`, is of a mapping that holds
/// `address`.
fn holds(line: &[u8], address: usize) -> bool {
    let (mut start, mut number) = (0usize, 0usize);
    for byte in line {
        match byte {
            b'-' => (start, number) = (number, 0),
            b' ' => break,
            digit => number = number << 4 | (*digit as char).to_digit(16).unwrap_or(0) as usize,
        }
    }
    (start..number).contains(&address)
}

fn write(to: c_int, parts: &[&[u8]]) {
    for part in parts {
        let mut rest = *part;
        while !rest.is_empty() {
            // SAFETY: the bytes of a slice.
            let n = unsafe { libc::write(to, rest.as_ptr().cast(), rest.len()) };
            // Nobody reads any more, or the disk is full: there is nobody to tell.
            let Some(left) = usize::try_from(n).ok().filter(|n| *n > 0).and_then(|n| rest.get(n..)) else { return };
            rest = left;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_map_holds_the_addresses_from_its_start_to_before_its_end() {
        let line = b"7f0000001000-7f0000003000 r--s 00000000 08:01 42      /models/a b/model.safetensors";
        for (address, inside) in
            [(0x7f0000000fff, false), (0x7f0000001000, true), (0x7f0000002fff, true), (0x7f0000003000, false)]
        {
            assert_eq!(holds(line, address), inside, "{address:x}");
        }
    }

    #[test]
    fn an_address_in_a_mapped_file_names_the_file() {
        if !std::path::Path::new("/proc/self/maps").exists() {
            println!("skipped: there is no /proc/self/maps here");
            return;
        }
        let mut line = [0u8; 6144];
        let path = mapped_file(stop as *const () as usize, &mut line).map(|path| path.to_vec()).unwrap_or_default();
        let this = std::env::current_exe().unwrap_or_default().canonicalize().unwrap_or_default();
        assert_eq!(String::from_utf8_lossy(&path), this.to_string_lossy());
        assert!(mapped_file(8, &mut line).is_none());
    }
}
