//! What a tracker's files are opened with, and what is then put into them.

use std::path::PathBuf;
use std::time::Duration;

use super::entry::{Ending, Timed};
use crate::error::Result;

/// The files of one tracker for one model.
pub(super) trait Sink: Send {
    /// Puts an entry at the end.
    ///
    /// # Errors
    /// I/O.
    fn write(&mut self, entry: &Timed) -> Result<()>;

    /// Hands what was written to the operating system: it outlives this process.
    ///
    /// # Errors
    /// I/O.
    fn flush(&mut self) -> Result<()>;

    /// Values that were taken and are not where they should be yet.
    fn unsent(&self) -> usize {
        0
    }

    /// Says how the run ended, and `why` if not well.
    ///
    /// # Errors
    /// I/O.
    fn end(&mut self, at: Duration, ending: Ending, why: &str) -> Result<()>;
}

/// Where a process writes from; event files are named after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The machine's name.
    pub host: String,
    /// The process.
    pub pid: u32,
}

impl Origin {
    /// This process on this machine.
    pub fn here() -> Origin {
        let read = |path| std::fs::read_to_string(path).ok().map(|name| name.trim().to_string());
        let host = read("/proc/sys/kernel/hostname").or_else(|| read("/etc/hostname"));
        let host = host.or_else(|| std::env::var("COMPUTERNAME").ok()).unwrap_or_default();
        // It becomes part of a file's name.
        let host: String = host.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' }).collect();
        Origin { host: if host.is_empty() { "localhost".into() } else { host }, pid: std::process::id() }
    }
}

/// Where the entries of an opening begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the beginning: what is there of an earlier time is replaced.
    Anew,
    /// After this step: a training goes on from its checkpoint.
    After(usize),
}

/// What the files of a model are opened with.
#[derive(Clone, Debug)]
pub(super) struct Opening {
    /// The tracker's folder.
    pub folder: PathBuf,
    /// The folder of the run inside that, where several runs share it; or empty.
    pub inside: PathBuf,
    /// The model's name.
    pub model: String,
    /// Eight letters and digits that tell this training from others.
    pub id: String,
    /// The experiment, as trackers show it.
    pub title: Title,
    /// The settings, as one JSON object.
    pub config: serde_json::Value,
    /// Whether something is there that is gone on with.
    pub start: Start,
    /// When the first entry came about.
    pub began: Duration,
    /// When it is opened.
    pub now: Duration,
    /// Everything so far, for trackers that keep one file.
    pub history: Vec<Timed>,
    /// Who writes.
    pub origin: Origin,
}

impl Opening {
    /// The folder of the model.
    pub fn of_model(&self) -> PathBuf {
        self.folder.join(&self.inside).join(&self.model)
    }
}

/// An experiment's names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Title {
    /// What it belongs to.
    pub project: String,
    /// Whose it is, if not the user's own.
    pub workspace: String,
    /// Its name; a model's name is added.
    pub name: String,
}
