//! The loop of a watch: look, deal with what is ready, enter it, wait.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::checkpoint::{self, Checkpoint, Seen, State};
use super::history::{self, History};
use super::reference::{self, Settings, only};
use super::{Each, Outcome, Watch, adapter_base};
use crate::error::{Error, ErrorKind, Result};
use crate::eval::stats::MarginVerdict;
use crate::fsio::{self, sha256};
use crate::model_dir::{check_files, holds_both, near, said_of_both};
use crate::report::gate::{check, text};
use crate::report::timeline::{Entry, Failure, Status, Timeline};
use crate::report::{Report, legible};
use crate::run::{Backends, Brought, Cancel, Notice, Observer, evaluate_brought, prepare};

/// What one look at the folder came to.
enum Pass {
    /// A checkpoint was dealt with: look again, things have changed meanwhile.
    Did,
    /// There is nothing to do yet. Whether some checkpoint only has to stay quiet for a while, the
    /// names of those that are there, and what is missing of those that are not whole, with whether
    /// they have weights.
    Idle { settling: bool, there: Vec<String>, partial: Vec<(String, bool)> },
}

/// A watch at work.
pub(super) struct Follower<'a> {
    pub watch: &'a Watch<'a>,
    pub backends: &'a dyn Backends,
    pub observer: &'a mut dyn Observer,
    pub each: Each<'a>,
    pub cancel: &'a Cancel,
    pub history: History,
    pub settings: Settings,
    pub reference: Option<Report>,
    /// The stamp that each folder had, and since when.
    pub looked: BTreeMap<PathBuf, (String, Instant)>,
    /// Lines that need no second time.
    pub said: BTreeSet<String>,
}

/// How the standard library ends its text of `ENOSPC`.
const DISK_FULL: &str = "(os error 28)";

/// A checkpoint that is not whole and of which nothing comes is spoken of after this time.
const STALLED: Duration = Duration::from_secs(60);

impl Follower<'_> {
    /// Goes on until the watch ends; see [`watch`](super::watch).
    pub fn follow(&mut self) -> Result<Outcome> {
        if !self.watch.once {
            let folder = &self.watch.folder;
            if !folder.is_dir() {
                let near = near(folder).map_or_else(String::new, |near| format!("; {near}"));
                self.say_once(format!("{}: there is no such folder yet{near}", folder.display()));
            }
            self.reference()?;
            self.publish()?;
        }
        loop {
            let Pass::Idle { settling, there, partial } = self.pass()? else { continue };
            if let Some(name) = self.regressed(&there) {
                return self.outcome(Some(name), &there);
            }
            if self.watch.fail_fast && self.broken(&there) {
                return self.outcome(None, &there);
            }
            if self.watch.once && !settling {
                return self.end(&there, partial);
            }
            let folder = self.watch.folder.display();
            if there.is_empty() && !self.watch.once {
                self.say_once(format!("{folder}: there is no checkpoint yet; waiting (Ctrl-C ends the watch)"));
            }
            self.sleep()?;
        }
    }

    /// The end of a call that takes what is there.
    fn end(&mut self, there: &[String], partial: Vec<(String, bool)>) -> Result<Outcome> {
        if self.history.entries().is_empty() {
            let folder = self.watch.folder.display();
            return Err(Error::data("there is no whole checkpoint in this folder")
                .at(folder)
                .with_lines(partial.into_iter().map(|(text, _)| format!("  {text}")))
                .help("checkpoints are folders such as checkpoint-200; without --once karat watch waits for them"));
        }
        partial.iter().for_each(|(text, _)| self.observer.notice(Notice::Warning(format!("left out: {text}"))));
        let outcome = self.outcome(None, there)?;
        // One that is there and was not measured is no success, whatever the others are.
        let broken = partial.into_iter().find(|(_, weights)| *weights);
        let broken = broken.map(|(what, _)| Failure { exit_code: ErrorKind::Data.exit_code(), what });
        Ok(Outcome { failure: outcome.failure.or(broken), ..outcome })
    }

    fn outcome(&mut self, regressed: Option<String>, there: &[String]) -> Result<Outcome> {
        self.reference()?;
        let timeline = self.publish()?;
        let mut current = timeline.current().into_iter();
        let failure = current.find_map(|entry| entry.error.clone().filter(|_| there.contains(&entry.name)));
        Ok(Outcome { regressed, failure, timeline })
    }

    /// The first checkpoint that is there and regresses, where that ends the watch.
    fn regressed(&self, there: &[String]) -> Option<String> {
        let regresses = |name: &&String| self.history.last(name)?.verdict.filter(|v| *v == MarginVerdict::Regress);
        there.iter().find(|name| self.watch.fail_fast && regresses(name).is_some()).cloned()
    }

    /// Whether a checkpoint that is there cannot be measured for what its files hold: weights that are
    /// not numbers are of a training that has diverged.
    fn broken(&self, there: &[String]) -> bool {
        let data = ErrorKind::Data.exit_code();
        let error = |name: &String| self.history.last(name)?.error.clone();
        there.iter().filter_map(error).any(|error| error.exit_code == data)
    }

    /// Looks at every checkpoint in order and deals with the first that is ready.
    fn pass(&mut self) -> Result<Pass> {
        let found = match checkpoint::find(&self.watch.folder) {
            Ok(found) => found,
            // A file system that is away for a while is no reason to end a watch of days.
            Err(error) if !self.watch.once => {
                self.say_once(format!("warning: {}", text::told(&error)));
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        self.looked.retain(|path, _| found.iter().any(|checkpoint| checkpoint.path == *path));
        let (mut settling, mut partial) = (false, Vec::new());
        let there: Vec<String> = found.iter().map(|checkpoint| checkpoint.name.clone()).collect();
        if self.regressed(&there).is_some() {
            return Ok(Pass::Idle { settling, there, partial });
        }
        for checkpoint in &found {
            if self.cancel.requested() {
                return Err(Error::interrupted());
            }
            match checkpoint::look(checkpoint) {
                Ok(State::Gone) => {}
                Ok(State::Partial(what, seen)) => {
                    let text = format!("{} is not whole: {what}", checkpoint.name);
                    let unchanged = self.unchanged(checkpoint, &seen);
                    if !self.watch.once && unchanged >= STALLED.max(self.watch.quiet) {
                        self.say_once(format!("{text}; nothing of it has changed for a while"));
                    }
                    // Who looks once waits for what is being written.
                    settling |= !(seen.is_quiet(self.watch.quiet) || unchanged >= self.watch.quiet);
                    partial.push((text, checkpoint::has_weights(checkpoint)));
                }
                Ok(State::Whole(seen)) if self.history.knows(checkpoint, &seen.stamp) => {}
                Ok(State::Whole(seen)) => {
                    let unchanged = self.unchanged(checkpoint, &seen);
                    if seen.is_quiet(self.watch.quiet) || unchanged >= self.watch.quiet {
                        self.deal_with(checkpoint, &seen)?;
                        // What is there may have changed meanwhile.
                        return Ok(Pass::Did);
                    }
                    settling = true;
                }
                Err(error) => self.say_once(format!("warning: {}", text::told(&error))),
            }
        }
        Ok(Pass::Idle { settling, there, partial })
    }

    /// How long its files have looked the same to this process.
    fn unchanged(&mut self, checkpoint: &Checkpoint, seen: &Seen) -> Duration {
        let now = (seen.stamp.clone(), Instant::now());
        let before = self.looked.entry(checkpoint.path.clone()).or_insert_with(|| now.clone());
        if before.0 != seen.stamp {
            *before = now;
        }
        before.1.elapsed()
    }

    /// Enters one checkpoint in the history: measures it, unless its bytes were measured before.
    fn deal_with(&mut self, checkpoint: &Checkpoint, seen: &Seen) -> Result<()> {
        let began = Instant::now();
        let digest = match checkpoint::digest(checkpoint) {
            Ok(digest) if self.is_as(checkpoint, seen) => digest,
            Ok(_) => return self.changed(checkpoint),
            Err(_) if self.is_gone(checkpoint, seen) => return self.vanished(checkpoint, seen, "", began),
            // What cannot be read has no digest: its files are known by their names and times.
            Err(error) => return self.failed(checkpoint, seen, &format!("unread {}", seen.stamp), &error, began),
        };
        if let Some(known) = self.history.of_digest(&digest).cloned() {
            let entry = Entry {
                status: if known.has_values() { Status::Same } else { known.status },
                same_as: Some(known.name.clone()).filter(|name| *name != checkpoint.name),
                ..self.entry(checkpoint, seen, &digest, began)
            };
            let Entry { verdict, metrics, gate, error, report, .. } = known;
            return self.enter(Entry { verdict, metrics, gate, error, report, ..entry });
        }
        let baseline = self.reference()?;
        let detail = match self.history.last(&checkpoint.name).filter(|last| last.digest != digest) {
            Some(_) => "was overwritten, and is evaluated again".to_string(),
            None => checkpoint.path.display().to_string(),
        };
        self.observer.notice(Notice::Stage { name: &checkpoint.name, detail });
        let folder = format!("checkpoints/{}-{}", checkpoint.name, &digest[..12]);
        let measured = self.measure(checkpoint, seen, &self.watch.out.join(&folder));
        match measured {
            Err(error) if error.kind() == ErrorKind::Interrupted => Err(error),
            Err(_) if self.is_gone(checkpoint, seen) => self.vanished(checkpoint, seen, &digest, began),
            Err(_) if !self.is_as(checkpoint, seen) => self.changed(checkpoint),
            Err(error) => {
                // What the watch itself has no room for is no fault of the checkpoint. Backends tell the
                // cause as text.
                if text::told(&error).contains(DISK_FULL) {
                    return Err(error);
                }
                self.writable()?;
                self.failed(checkpoint, seen, &digest, &error, began)
            }
            // One that went away after the last byte was read is as good as one that stayed.
            Ok(_) if !self.is_as(checkpoint, seen) && !self.is_gone(checkpoint, seen) => self.changed(checkpoint),
            Ok(report) => {
                let name = &checkpoint.name;
                let judged = check(&report, &reference::renamed(&baseline, name), &self.watch.rules);
                let values = report.metrics.iter();
                let values = values.filter_map(|m| Some((m.name.clone(), m.models.get(name)?.clone())));
                self.enter(Entry {
                    verdict: judged.as_ref().ok().map(|checks| checks.verdict),
                    metrics: values.collect(),
                    error: judged.as_ref().err().map(failure),
                    gate: judged.ok(),
                    report: Some(format!("{folder}/report")),
                    ..self.entry(checkpoint, seen, &digest, began)
                })
            }
        }
    }

    /// Whether the folder of the watch takes what a checkpoint's answers and texts need.
    ///
    /// # Errors
    /// I/O: the disk is full, or the folder cannot be written to.
    fn writable(&self) -> Result<()> {
        const ROOM: usize = 1 << 20;
        let probe = self.watch.out.join(".room");
        let wrote = fsio::write_atomic(&probe, &vec![0; ROOM]);
        let removed = std::fs::remove_file(&probe);
        wrote.and_then(|()| removed.map_err(|e| Error::io("remove", &probe, e)))
    }

    /// Evaluates a checkpoint in a run folder of its own.
    fn measure(&mut self, checkpoint: &Checkpoint, seen: &Seen, folder: &Path) -> Result<Report> {
        check_files(&checkpoint.path)?;
        let path = checkpoint.path.clone();
        let (model, adapter) = match seen.adapter {
            true => {
                let (base, taken) = adapter_base::base_of(&path, self.watch)?;
                taken.into_iter().for_each(|text| self.say_once(format!("note: {text}")));
                (base, Some(path))
            }
            false => {
                if holds_both(&path) {
                    self.say_once(format!("note: {}", said_of_both(&path)));
                }
                (path, None)
            }
        };
        let brought = Brought { name: checkpoint.name.clone(), model, adapter };
        evaluate_brought(self.watch.suite, brought, folder, self.backends, self.observer, self.cancel)
    }

    /// The report of what checkpoints are compared with; made once, and kept.
    fn reference(&mut self) -> Result<Report> {
        if let Some(report) = &self.reference {
            return Ok(report.clone());
        }
        let (watch, out) = (self.watch, &self.watch.out);
        let report = match &watch.baseline {
            Some(report) => {
                if kept_is_other(out, report) || self.history.entries().is_empty() {
                    reference::fits(report, watch, Some(&prepare(watch.suite)?))?;
                    reference::keep(out, "given", report)?;
                }
                report.clone()
            }
            None => self.base()?,
        };
        Ok(self.reference.insert(report).clone())
    }

    /// The report of the suite's base.
    fn base(&mut self) -> Result<Report> {
        let (watch, out) = (self.watch, &self.watch.out);
        let model = watch.suite.model.base.clone();
        let backend = self.backends.backend(watch.suite.eval_backend())?;
        let described = backend.backend.describe();
        let own = Checkpoint { name: "base".into(), step: None, path: model.clone() };
        let stamp = match checkpoint::look(&own)? {
            State::Whole(seen) | State::Partial(_, seen) => seen.stamp,
            State::Gone => String::new(),
        };
        let plugin = backend.origin.sha256.unwrap_or_default();
        let key = [&self.settings.suite, &stamp, &described.name, &described.version, &plugin].map(String::as_str);
        let key = sha256(key.join(" ").as_bytes());
        if let Some(report) = reference::kept(out, &key) {
            return Ok(report);
        }
        self.observer
            .notice(Notice::Stage { name: "baseline", detail: format!("the suite's base, {}", model.display()) });
        let brought = Brought { name: "base".into(), model, adapter: None };
        let folder = out.join("baseline");
        let report = evaluate_brought(watch.suite, brought, &folder, self.backends, self.observer, self.cancel)?;
        let report = only(report, None, "base")?;
        reference::fits(&report, watch, None)?;
        let weights = report.models.first().map(|model| model.checkpoint_sha256.clone());
        if !self.history.entries().is_empty() && reference::kept_weights(out).is_some_and(|kept| Some(kept) != weights)
        {
            return Err(Error::usage(
                "the suite's base is another model than the one that the history is compared with",
            )
            .at(watch.suite.model.base.display())
            .help("put it back, or give --out another folder"));
        }
        reference::keep(out, &key, &report)?;
        Ok(report)
    }

    /// A line of the history that says nothing of what was found yet.
    fn entry(&self, checkpoint: &Checkpoint, seen: &Seen, digest: &str, began: Instant) -> Entry {
        let last = self.history.last(&checkpoint.name).filter(|last| last.status != Status::Vanished);
        Entry {
            name: checkpoint.name.clone(),
            step: checkpoint.step,
            status: Status::Measured,
            digest: digest.into(),
            stamp: seen.stamp.clone(),
            verdict: None,
            metrics: BTreeMap::new(),
            gate: None,
            same_as: None,
            replaces: last.map(|last| last.digest.clone()).filter(|before| before != digest),
            error: None,
            report: None,
            seconds: (began.elapsed().as_secs_f64() * 1e3).round() / 1e3,
            at: history::now(),
        }
    }

    fn failed(
        &mut self,
        checkpoint: &Checkpoint,
        seen: &Seen,
        digest: &str,
        error: &Error,
        began: Instant,
    ) -> Result<()> {
        let entry = self.entry(checkpoint, seen, digest, began);
        self.enter(Entry { status: Status::Failed, error: Some(failure(error)), ..entry })
    }

    fn vanished(&mut self, checkpoint: &Checkpoint, seen: &Seen, digest: &str, began: Instant) -> Result<()> {
        let entry = self.entry(checkpoint, seen, digest, began);
        self.enter(Entry { status: Status::Vanished, ..entry })
    }

    /// Its files are others now: it is looked at again once they are quiet.
    fn changed(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.looked.remove(&checkpoint.path);
        self.observer.notice(Notice::Said(format!("{} changed while it was read: once more later", checkpoint.name)));
        self.sleep()
    }

    /// Whether the trainer has removed it. A folder is removed file by file: what is not as it was is
    /// given a moment.
    fn is_gone(&self, checkpoint: &Checkpoint, seen: &Seen) -> bool {
        let listed =
            || checkpoint::find(&self.watch.folder).is_ok_and(|all| all.iter().any(|c| c.path == checkpoint.path));
        for _ in 0..20 {
            if !listed() {
                return true;
            }
            if self.is_as(checkpoint, seen) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        false
    }

    fn is_as(&self, checkpoint: &Checkpoint, seen: &Seen) -> bool {
        matches!(checkpoint::look(checkpoint), Ok(State::Whole(now)) if now.stamp == seen.stamp)
    }

    /// Adds a line to the history, and makes the pages of it.
    fn enter(&mut self, entry: Entry) -> Result<()> {
        self.history.append(entry.clone())?;
        self.reference()?;
        let timeline = self.publish()?;
        (self.each)(&timeline, &entry)
    }

    /// Writes the pages.
    fn publish(&mut self) -> Result<Timeline> {
        let baseline = self.reference()?;
        let folder = self.watch.folder.display().to_string();
        let timeline = Timeline::new(&baseline, &folder, self.watch.suite.language, self.history.entries());
        timeline.write(&self.watch.out)?;
        Ok(timeline)
    }

    fn say_once(&mut self, line: String) {
        if self.said.insert(line.clone()) {
            self.observer.notice(Notice::Said(line));
        }
    }

    /// Waits for the next look.
    fn sleep(&self) -> Result<()> {
        // What ends with the last quiet checkpoint need not wait longer than that takes.
        let whole = if self.watch.once { self.watch.quiet / 8 } else { self.watch.interval };
        let until = Instant::now() + whole.clamp(Duration::from_millis(10), Duration::from_secs(86_400));
        while Instant::now() < until {
            if self.cancel.requested() {
                return Err(Error::interrupted());
            }
            std::thread::sleep(Duration::from_millis(100).min(until.saturating_duration_since(Instant::now())));
        }
        Ok(())
    }
}

/// Whether another report is kept than `report`, or none.
fn kept_is_other(out: &Path, report: &Report) -> bool {
    reference::kept(out, "given").is_none_or(|kept| kept != report.without_environment())
}

/// An error as the history keeps it.
fn failure(error: &Error) -> Failure {
    let lines: Vec<String> = text::told(error).lines().map(legible).collect();
    Failure { exit_code: error.kind().exit_code(), what: lines.join("; ") }
}
