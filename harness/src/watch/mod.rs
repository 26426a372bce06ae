//! Following a training: each checkpoint that a trainer leaves in its output folder is evaluated on
//! a suite's held-out items, held against a baseline by the gate, and entered in one history.
//!
//! ```text
//! OUT/settings.json                     what all lines of the history have in common
//!     baseline.json                     the report of the baseline
//!     baseline/                         the run folder in which the suite's base was evaluated
//!     checkpoints/NAME-<digest>/        the run folder of each checkpoint: stored answers, its own report
//!     history.jsonl                     one line a checkpoint, appended and never changed
//!     watch.json watch.md watch.html    the history as data and pages, with a curve of each metric
//! ```
//!
//! Nothing is asked of the trainer: any that writes `checkpoint-N` folders in the Hugging Face or
//! PEFT layout can be followed, also from another machine over a shared file system. A checkpoint is
//! known by its bytes, not by its name: one that was overwritten is evaluated again, one of the same
//! bytes under another name is not. A trainer may remove a checkpoint at any time (transformers'
//! `save_total_limit`); that is said, and the watch goes on. The oldest come first, for they are the
//! first to go.
//!
//! A kill at any moment costs the item in flight: answers are stored as they come, a line of the
//! history is written whole, and the same command goes on where it was.

mod adapter_base;
mod checkpoint;
mod follow;
mod history;
mod reference;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::exit;
use crate::fsio;
use crate::model_dir::given;
use crate::report::Report;
use crate::report::gate::Rules;
use crate::report::timeline::{Entry, Failure, TIMELINE_JSON, Timeline};
use crate::run::{Backends, Cancel, Observer};
use crate::suite::Suite;

use follow::Follower;
use history::{HISTORY, History};
use reference::{BASELINE, SETTINGS, Settings};

pub use checkpoint::FINAL;
pub use reference::{only, renamed};

/// What is followed, and how.
#[derive(Clone, Debug)]
pub struct Watch<'a> {
    /// The trainer's output folder.
    pub folder: PathBuf,
    /// The folder of the watch.
    pub out: PathBuf,
    /// What every checkpoint is asked.
    pub suite: &'a Suite,
    /// The report of one model that checkpoints are compared with; none for the suite's base, which
    /// is then evaluated first.
    pub baseline: Option<Report>,
    /// How the gate judges.
    pub rules: Rules,
    /// The model that adapters lie on, whatever base they name.
    pub adapter_base: Option<PathBuf>,
    /// Time between two looks at the folder.
    pub interval: Duration,
    /// How long nothing of a checkpoint must have changed.
    pub quiet: Duration,
    /// End when all whole checkpoints that are there are evaluated.
    pub once: bool,
    /// End at the first checkpoint that regresses.
    pub fail_fast: bool,
}

/// How a watch ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// All checkpoints, in order.
    pub timeline: Timeline,
    /// The first checkpoint that is there and regresses, if regressions end the watch.
    pub regressed: Option<String>,
    /// What is wrong with the first checkpoint that is there and could not be measured or judged.
    pub failure: Option<Failure>,
}

impl Outcome {
    /// The exit code of the command line.
    pub fn exit_code(&self) -> u8 {
        match (&self.regressed, &self.failure) {
            (Some(_), _) => exit::REGRESSION,
            (None, Some(failure)) => failure.exit_code,
            (None, None) => exit::GOOD,
        }
    }
}

/// What takes a line of the history as it is made.
pub type Each<'a> = &'a mut dyn FnMut(&Timeline, &Entry) -> Result<()>;

/// Follows a training. Returns with [`Watch::once`] and [`Watch::fail_fast`]; otherwise it ends with
/// an error, of which [`ErrorKind::Interrupted`](crate::ErrorKind::Interrupted) is the usual one.
///
/// # Errors
/// Usage, for a folder of the watch that holds something else, or a history of other settings; what
/// is wrong with the suite, the baseline or the backend; with `once`, data, if there is no whole
/// checkpoint and never was. What is wrong with one checkpoint is no error: it is entered.
pub fn watch(
    watch: &Watch<'_>,
    backends: &dyn Backends,
    observer: &mut dyn Observer,
    each: Each<'_>,
    cancel: &Cancel,
) -> Result<Outcome> {
    if watch.once {
        given(&watch.folder)?;
    }
    if watch.folder.is_file() {
        return Err(Error::usage("this is a file; a trainer's output folder is wanted").at(watch.folder.display()));
    }
    let _lock = take(watch)?;
    // Before hours are waited for what cannot be asked.
    backends.backend(watch.suite.eval_backend())?;
    let history = History::open(&watch.out)?;
    let settings = Settings::of(watch)?;
    settings.hold(&watch.out, history.entries().is_empty())?;
    Follower {
        watch,
        backends,
        observer,
        each,
        cancel,
        history,
        settings,
        reference: None,
        looked: BTreeMap::new(),
        said: BTreeSet::new(),
    }
    .follow()
}

/// Takes hold of the folder of a watch: it is new or empty, or a watch's.
fn take(watch: &Watch<'_>) -> Result<std::fs::File> {
    let out = &watch.out;
    let absolute = |path: &Path| std::path::absolute(path).map_err(|e| Error::io("resolve", path, e));
    if absolute(out)? == absolute(&watch.folder)? {
        return Err(Error::usage("a watch does not write into the folder that it watches")
            .at(out.display())
            .help("give --out another folder; one inside it will do"));
    }
    let ours = [SETTINGS, HISTORY, BASELINE, TIMELINE_JSON].iter().any(|name| out.join(name).is_file());
    let entries = std::fs::read_dir(out).into_iter().flatten().flatten();
    let foreign = entries.filter_map(|entry| entry.file_name().into_string().ok()).find(|name| !name.starts_with('.'));
    if let Some(name) = foreign.filter(|_| !ours) {
        return Err(Error::usage(format!("this is no folder of a watch: there is {name:?}; nothing was written"))
            .at(out.display())
            .help("give --out a new folder, an empty one, or that of an earlier watch"));
    }
    let lock = fsio::lock(out)?;
    fsio::remove_rests(out)?;
    Ok(lock)
}
