//! What a download tells its caller, and how the caller stops it.

use karat_system::{Error, Result};
use std::time::Duration;

/// Something that happened.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Files will be fetched: how many, and how many bytes of them are not here yet.
    Begin {
        /// The repository.
        id: &'a str,
        /// Files.
        files: usize,
        /// Bytes still to come.
        bytes: u64,
    },
    /// Bytes came. What was thrown away because it was wrong or could not be continued lowers `done`.
    Bytes {
        /// The file that is being fetched.
        file: &'a str,
        /// Of all files, so far.
        done: u64,
        /// Of all files.
        total: u64,
    },
    /// All of it is here.
    End,
    /// Something that the user should know, as a sentence's fragment.
    Note(&'a str),
}

/// Who is told, and may ask to stop.
pub trait Progress: Sync {
    /// Something happened.
    fn event(&self, event: Event<'_>);

    /// Whether to stop: asked at least every quarter of a second while something is waited for.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Nobody.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _: Event<'_>) {}
}

/// An error if the caller asked to stop.
pub(crate) fn go_on(progress: &dyn Progress) -> Result<()> {
    if progress.cancelled() { Err(Error::interrupted()) } else { Ok(()) }
}

/// Waits, unless the caller asks to stop.
pub(crate) fn wait(duration: Duration, progress: &dyn Progress) -> Result<()> {
    const STEP: Duration = Duration::from_millis(100);
    let mut left = duration;
    loop {
        go_on(progress)?;
        let now = left.min(STEP);
        if now.is_zero() {
            return Ok(());
        }
        std::thread::sleep(now);
        left -= now;
    }
}
