//! A finished run as trackers would have seen it: its own logs and results, through the same code.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::TrackerName;
use super::entry::Ending;
use super::feed::{Feed, Tracking, since_1970};
use crate::error::{Error, Result};
use crate::fsio;
use crate::report::{REPORT_JSON, Report};
use crate::run::models::MODELS;
use crate::run::{Answered, Begun, DONE, EVENTS, Left, Notice, Recorded, STORED_SUITE, Trained};
use crate::suite::{Suite, names_file};
use crate::train::log;

/// What was written for a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracked {
    /// The models, in the order in which they were written.
    pub models: Vec<String>,
    /// The folder of each tracker.
    pub folders: Vec<(TrackerName, PathBuf)>,
}

/// Writes what trackers keep of the run in `run`: of a suite, or of one training. `asked` says which
/// trackers, and may change what else of [`Tracking`].
///
/// # Errors
/// Usage, if there is no run; a broken log or result; a tracker whose files cannot be written.
pub fn export(run: &Path, asked: impl FnOnce(Tracking) -> Tracking) -> Result<Tracked> {
    let run = std::path::absolute(run).map_err(|e| Error::io("resolve", run, e))?;
    let alone = run.join(EVENTS).is_file();
    let suite = if alone { None } else { Some(stored_suite(&run)?) };
    let tracking = match &suite {
        Some(suite) => Tracking::of_suite(suite, &run)?,
        None => Tracking::new(&run),
    };
    let ended = [run.join("report").join(REPORT_JSON), run.join(DONE)].iter().find_map(|path| modified(path));
    let ended = since_1970(ended.unwrap_or_else(SystemTime::now));
    let tracking = asked(Tracking { clock: Box::new(move || ended), ..tracking });
    if tracking.to.is_empty() {
        let known = TrackerName::ALL.map(TrackerName::name).join(",");
        return Err(Error::usage("no tracker is named, and the suite names none").help(format!("give --to {known}")));
    }
    if !names_file(&tracking.title.name) {
        return Err(Error::usage(format!("the name {:?} cannot name a folder", tracking.title.name))
            .help("use letters, digits, '-' and '_'"));
    }
    let place = |tracker: &TrackerName| (*tracker, tracking.folder.join(tracker.name()).join(&tracking.inside));
    let folders = tracking.to.iter().map(place).collect();
    let mut feed = Feed::start(tracking)?;
    let mut models = Vec::new();
    let finished = match &suite {
        Some(suite) => all(&run, suite, &mut feed, &mut models)?,
        None => {
            let name = name_of(&run)?;
            models.push(name.clone());
            training(&run, &name, &mut feed)?
        }
    };
    if models.is_empty() {
        return Err(Error::usage("nothing was trained or measured here yet").at(run.display()));
    }
    let failures = match finished {
        true => feed.end(Ending::Finished, ""),
        false => feed.end(Ending::Stopped, "the run is not finished"),
    };
    match failures.first() {
        Some(failure) => Err(Error::failed(failure.as_str())),
        None => Ok(Tracked { models, folders }),
    }
}

/// Tells of all models of the run of a suite; returns whether the run is finished.
fn all(run: &Path, suite: &Suite, feed: &mut Feed, models: &mut Vec<String>) -> Result<bool> {
    for model in suite.all_models().into_iter().filter(|model| model.entry.train.is_some()) {
        if let Some(folder) = trained_in(run, &model.name) {
            training(&folder, &model.name, feed)?;
            models.push(model.name);
        }
    }
    let path = run.join("report").join(REPORT_JSON);
    if !path.is_file() {
        return Ok(false);
    }
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    let report = Report::from_json(&text, &path.display().to_string())?;
    let recorded = Recorded::read_all(&run.join("results"))?;
    let answered: Vec<Answered> = recorded
        .into_iter()
        .filter(|one| report.model(&one.name).is_some())
        .map(|one| Answered {
            step: one.training.and_then(|training| training.step).unwrap_or(0),
            name: one.name,
            predictions: one.predictions,
        })
        .collect();
    feed.notice(&Notice::Reported { report: &report, answered: &answered });
    models.extend(answered.into_iter().map(|one| one.name));
    models.sort();
    models.dedup();
    Ok(true)
}

/// Tells of the training in `folder`; returns whether it is finished.
fn training(folder: &Path, name: &str, feed: &mut Feed) -> Result<bool> {
    let log = folder.join(EVENTS);
    let curves = &log::read(&log)?;
    let Left { fingerprint, settings, extent, .. } = Left::read(folder)?.unwrap_or_default();
    let (fingerprint, settings, written) = (&fingerprint, &settings, modified(&log));
    feed.notice(&Notice::Begun(Begun { name, fingerprint, settings, extent, curves, after: None, written }));
    let done = folder.join(DONE);
    if !done.is_file() {
        return Ok(false);
    }
    let trained: Trained = fsio::read_sealed_json(&done)?;
    feed.notice(&Notice::Trained { name, summary: &trained.summary, curves });
    Ok(true)
}

/// The folder of the training of `name` in a run: the one that was measured, or the last.
fn trained_in(run: &Path, name: &str) -> Option<PathBuf> {
    let measured = run.join(MODELS).join(name).canonicalize().ok();
    if let Some(stage) = measured.as_deref().and_then(Path::parent).filter(|stage| stage.join(EVENTS).is_file()) {
        return Some(stage.into());
    }
    let of_name = |path: &PathBuf| {
        let key = path.file_name()?.to_str()?.strip_prefix(name)?.strip_prefix('-')?;
        (key.len() == 12 && key.bytes().all(|b| b.is_ascii_hexdigit())).then_some(())
    };
    let stages = std::fs::read_dir(run.join("train")).ok()?.flatten().map(|entry| entry.path());
    let logs = stages.filter(|path| of_name(path).is_some());
    let timed = logs.filter_map(|path| Some((modified(&path.join(EVENTS))?, path)));
    timed.max().map(|(_, path)| path)
}

/// What `karat train` called the model in `folder`.
fn name_of(folder: &Path) -> Result<String> {
    let method = Left::read(folder)?.and_then(|mut left| left.settings.remove("method"));
    Ok(method.unwrap_or_else(|| "model".into()))
}

/// The suite of a run, as it was carried out. Its files may be gone.
fn stored_suite(run: &Path) -> Result<Suite> {
    let path = run.join(STORED_SUITE);
    if !path.is_file() {
        return Err(Error::usage("there is no run here: no suite.toml and no events.jsonl")
            .at(run.display())
            .help("give the folder of a `karat run`, or the --out of a `karat train`"));
    }
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    toml::from_str(&text).map_err(|e| Error::data("the suite of the run is broken").at(path.display()).because(e))
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|metadata| metadata.modified()).ok()
}
