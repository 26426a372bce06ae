//! Running code of others on files of others: on a thread with stack enough, and a panic there is
//! an error here.
//!
//! Parsers of templates, tokenizers and regular expressions are libraries that meet files which
//! nobody vouches for. What they may allocate is bounded by their callers beforehand; what is left
//! is a stack that is too small and a panic.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

thread_local! {
    /// Set while a panic of this thread is expected and will be told as an error.
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`; its panic is returned as a text and not printed.
///
/// # Errors
/// What the panic said.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !CAUGHT.try_with(Cell::get).unwrap_or(false) {
                before(info);
            }
        }));
    });
    let was = CAUGHT.with(|caught| caught.replace(true));
    let result = catch_unwind(AssertUnwindSafe(work));
    CAUGHT.with(|caught| caught.set(was));
    result.map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|s| (*s).to_string());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        let mut text = text.unwrap_or_else(|| "it panicked".into());
        // Some quote the whole input.
        if let Some((at, _)) = text.char_indices().nth(300) {
            text.truncate(at);
        }
        text
    })
}

/// Runs `work` on a thread of its own with `stack` bytes of stack.
///
/// # Errors
/// What its panic said, or why there is no thread.
pub(crate) fn on_large_stack<T: Send>(stack: usize, work: impl FnOnce() -> T + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("karat-untrusted".into()).stack_size(stack);
        let thread = thread.spawn_scoped(scope, || caught(work)).map_err(|e| format!("no thread for it: {e}"))?;
        thread.join().unwrap_or_else(|_| Err("it panicked".into()))
    })
}

/// Runs `work` on a thread of its own for at most `time`. A thread that takes longer is left to
/// itself until the process ends: there is no way to stop it.
///
/// # Errors
/// What its panic said, or that it took too long.
pub(crate) fn in_time<T: Send + 'static>(
    time: Duration,
    stack: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let (sender, receiver) = channel();
    std::thread::Builder::new()
        .name("karat-untrusted".into())
        .stack_size(stack)
        .spawn(move || sender.send(caught(work)))
        .map_err(|e| format!("no thread for it: {e}"))?;
    match receiver.recv_timeout(time) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => Err(format!("it takes longer than {} s", time.as_secs())),
        Err(RecvTimeoutError::Disconnected) => Err("it panicked".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_text_and_what_takes_too_long_is_left() {
        assert_eq!(caught(|| 3), Ok(3));
        assert_eq!(caught(|| -> u8 { panic!("no {}", "more") }), Err("no more".into()));
        assert_eq!(on_large_stack(1 << 20, || -> u8 { panic!("no more") }), Err("no more".into()));
        let slow = in_time(Duration::from_millis(20), 1 << 20, || std::thread::sleep(Duration::from_millis(400)));
        assert!(slow.unwrap_err().contains("longer"));
        assert_eq!(in_time(Duration::from_secs(60), 1 << 20, || 4), Ok(4));
    }
}
