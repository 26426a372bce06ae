//! The training stage: one plan, one folder; done once, resumed where it stopped, reused when nothing changed.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::backend::{Event, LabelledView, OpenConfig, SessionInfo, Tokens, TrainPlan, TrainSummary};
use crate::error::{Error, ErrorKind, Result};
use crate::fsio;
use crate::run::{Cancel, LoadedBackend, Notice, Observer, StageSink, backend_error};
use crate::train::log::{Curves, EventLog, read};

/// Rows of token ids with their labels, owned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelledRows {
    /// The ids.
    pub tokens: Tokens,
    /// One label per id.
    pub labels: Vec<i32>,
}

impl LabelledRows {
    /// Appends a row.
    pub fn push(&mut self, ids: &[u32], labels: &[i32]) {
        self.tokens.push(ids);
        self.labels.extend_from_slice(labels);
    }

    /// A borrowed view.
    ///
    /// # Errors
    /// If the number of labels is not the number of ids.
    pub fn view(&self) -> Result<LabelledView<'_>> {
        LabelledView::new(self.tokens.view(), &self.labels).map_err(|e| backend_error("broken training rows", e))
    }

    /// How many rows.
    pub fn rows(&self) -> usize {
        self.tokens.view().rows()
    }

    /// How many labelled tokens.
    pub fn label_tokens(&self) -> usize {
        self.labels.iter().filter(|&&l| l != crate::backend::IGNORE).count()
    }
}

/// One training run.
pub struct TrainJob<'a> {
    /// `lora`, `full`.
    pub name: &'a str,
    /// Who trains.
    pub backend: &'a LoadedBackend,
    /// What is trained.
    pub open: OpenConfig,
    /// Training rows.
    pub train: &'a LabelledRows,
    /// Rows for the evaluation loss.
    pub eval: &'a LabelledRows,
    /// The plan; its `output_dir` is the stage's folder, its `resume_from` is set here.
    pub plan: TrainPlan,
}

/// What a training run gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trained {
    /// The backend's summary; paths are relative to the stage's folder.
    pub summary: TrainSummary,
    /// What really ran.
    pub session: SessionInfo,
    /// The plan's fingerprint.
    pub fingerprint: String,
    /// The curves.
    #[serde(skip)]
    pub curves: Curves,
}

/// The marker and summary of a finished stage.
const DONE: &str = "done.json";
/// The log of a stage.
const EVENTS: &str = "events.jsonl";

/// Carries out a training run, or goes on with it, or finds it done.
///
/// # Errors
/// The backend's error; [`ErrorKind::Interrupted`] when stopped (a checkpoint to go on from was written); I/O.
pub fn train(job: TrainJob<'_>, observer: &mut dyn Observer, cancel: &Cancel) -> Result<Trained> {
    let folder = job.plan.output_dir.clone();
    let stage = format!("train {}", job.name);
    if let Some(done) = finished(&folder, &job.plan.fingerprint)? {
        let detail = format!("{} steps in {}", done.summary.steps, folder.display());
        observer.notice(Notice::Reused { name: &stage, detail });
        return Ok(done);
    }
    std::fs::create_dir_all(&folder).map_err(|e| Error::io("create the folder", &folder, e))?;
    let mut plan = job.plan;
    let resume = last_checkpoint(&folder)?;
    let (mut log, mut curves) = EventLog::resume(&folder.join(EVENTS), resume.as_ref().map_or(0, |(step, _)| *step))?;
    plan.resume_from = resume.map(|(_, path)| path);
    let total = plan.steps.len();
    let from = match &plan.resume_from {
        Some(path) => format!(", going on from {}", path.display()),
        None => String::new(),
    };
    let detail = format!("{} items, {total} steps{from}", job.train.rows());
    observer.notice(Notice::Stage { name: &stage, detail });

    let mut session = job.backend.open(&job.open)?;
    let info = session.info();
    let trainer = session.trainer().ok_or_else(|| {
        Error::backend(format!("backend {} cannot train", job.backend.backend.describe().name))
            .help("name another one as model.backend")
    })?;
    let mut sink = StageSink {
        stage: &stage,
        total: Some(total),
        observer,
        cancel,
        keep: |event: &Event| {
            if matches!(event, Event::Step(_) | Event::Evaluation { .. }) {
                curves.push(event);
                log.push(event)?;
            }
            Ok(())
        },
        error: None,
    };
    let result = trainer.train(job.train.view()?, job.eval.view()?, &plan, &mut sink);
    if let Some(error) = sink.error {
        return Err(error);
    }
    let mut summary = result.map_err(|e| {
        let error = backend_error(&format!("training {} failed", job.name), e);
        match error.kind() {
            ErrorKind::Interrupted => error.help("run the same command again to go on from the last checkpoint"),
            _ => error,
        }
    })?;
    let relative = |path: &Path| path.strip_prefix(&folder).unwrap_or(path).to_path_buf();
    summary.last_checkpoint = relative(&summary.last_checkpoint);
    summary.best_checkpoint = summary.best_checkpoint.as_deref().map(relative);
    let trained = Trained { summary, session: info, fingerprint: plan.fingerprint, curves };
    fsio::write_json(&folder.join(DONE), &trained)?;
    let loss = trained.curves.evaluations.last().map_or(String::new(), |e| format!(", eval loss {:.4}", e.loss));
    let rate = trained.summary.tokens as f64 / trained.summary.seconds.max(1e-9);
    observer.notice(Notice::Done {
        name: &stage,
        detail: format!("{} steps, {rate:.0} tokens/s{loss}", trained.summary.steps),
    });
    Ok(trained)
}

/// The finished run in `folder`, if it was made by this plan and its checkpoints are still there.
fn finished(folder: &Path, fingerprint: &str) -> Result<Option<Trained>> {
    let path = folder.join(DONE);
    if !path.is_file() {
        return Ok(None);
    }
    let mut done: Trained = fsio::read_json(&path)?;
    let there = [Some(&done.summary.last_checkpoint), done.summary.best_checkpoint.as_ref()];
    if done.fingerprint != fingerprint || !there.into_iter().flatten().all(|c| folder.join(c).is_dir()) {
        return Ok(None);
    }
    done.curves = read(&folder.join(EVENTS))?;
    Ok(Some(done))
}

/// The checkpoint with the highest step in `folder`. Checkpoints appear under their final name only when complete, so
/// the name is enough.
///
/// # Errors
/// If the folder cannot be read.
pub fn last_checkpoint(folder: &Path) -> Result<Option<(usize, PathBuf)>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("read the folder", folder, e)),
    };
    let mut last = None;
    for entry in entries {
        let path = entry.map_err(|e| Error::io("read the folder", folder, e))?.path();
        let step = path
            .file_name()
            .and_then(|n| n.to_str())
            .and_then(|n| n.strip_prefix("checkpoint-"))
            .and_then(|n| n.parse::<usize>().ok());
        if let Some(step) = step
            && path.is_dir()
            && last.as_ref().is_none_or(|(s, _)| *s < step)
        {
            last = Some((step, path));
        }
    }
    Ok(last)
}
