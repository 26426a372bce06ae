//! The training stage: one plan, one folder; done once, resumed where it stopped, reused when
//! nothing changed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::backend::lora::InitLora;
use crate::backend::peft::read_adapter_config;
use crate::backend::state::{RUN_STATE, RunState, TRAINER_STATE, TrainerState};
use crate::backend::{
    BackendError, Event, Level, LoraConfig, Method, OpenConfig, SessionInfo, TrainPlan, TrainSummary, Weights,
};
use crate::data::examples::LabelledRows;
use crate::error::{Error, ErrorKind, Result};
use crate::fsio::{self, Digests};
use crate::run::extent::extent;
use crate::run::folder::names;
use crate::run::left::{self, Left, last_checkpoint};
use crate::run::{Begun, Cancel, LoadedBackend, Notice, Observer, StageSink, backend_error, opening_warnings};
use crate::suite::Hyperparameters;
use crate::track::Tracking;
use crate::train::log::{Curves, EventLog, read};
use crate::train::plan::{Order, fingerprint, order};

/// One training run.
pub struct TrainJob<'a> {
    /// `lora`, `full`.
    pub name: &'a str,
    /// Who trains.
    pub backend: &'a LoadedBackend,
    /// What is trained.
    pub base: Base,
    /// Training rows.
    pub train: &'a LabelledRows,
    /// Rows for the evaluation loss.
    pub eval: &'a LabelledRows,
    /// The plan; its `output_dir` is the stage's folder, its `resume_from` is set here.
    pub plan: TrainPlan,
}

/// What a training starts from, as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Base {
    /// How it is opened.
    pub open: OpenConfig,
    /// SHA-256 over the files of its folder ([`fsio::sha256_model`]).
    pub sha256: String,
}

impl Base {
    /// Hashes the model that `open` names.
    ///
    /// # Errors
    /// If its folder cannot be read.
    pub fn of(open: OpenConfig) -> Result<Base> {
        let sha256 = fsio::sha256_model(&open.model)?;
        Ok(Base { open, sha256 })
    }
}

/// Lays out a training run: order, learning rates, fingerprint. `output_dir`, `resume_from` and
/// `init_adapter` are left to the caller.
///
/// The fingerprint covers everything that decides the result: rows, plan, the weights that are
/// started from, backend, device and element type. A checkpoint of another fingerprint is not
/// resumed.
///
/// # Errors
/// No rows, a broken setting, an unreadable model folder.
pub fn plan(
    train: &LabelledRows,
    eval: &LabelledRows,
    method: Method,
    h: &Hyperparameters,
    seed: u64,
    backend: &LoadedBackend,
    base: &Base,
) -> Result<TrainPlan> {
    let Order { steps, epochs } = order(train.len(), &h.plan_options(seed))?;
    let learning_rates = h.learning_rates(steps.len())?;
    let early_stopping = h.early_stopping("train")?;
    if early_stopping.is_some() && eval.is_empty() {
        return Err(Error::usage("early_stopping_patience needs rows for the evaluation loss")
            .help("give --eval-data, or a share for validation in data.split"));
    }
    let mut plan = TrainPlan {
        method,
        learning_rates,
        steps,
        epochs,
        optimizer: h.optimizer.clone(),
        max_grad_norm: h.max_grad_norm,
        eval_every: h.eval_every,
        eval_batch_size: EVAL_BATCH,
        save_every: h.save_every,
        save_total_limit: h.save_total_limit,
        early_stopping,
        recompute: h.recompute,
        output_dir: PathBuf::new(),
        resume_from: None,
        init_adapter: None,
        seed,
        fingerprint: String::new(),
    };
    let descriptor = backend.backend.describe();
    let rows = fingerprint(train.view(), eval.view(), &plan);
    let Base { open, sha256 } = base;
    let start = match open.weights {
        Weights::Load => sha256.clone(),
        Weights::Random => format!("drawn with seed {} for {sha256}", open.seed),
    };
    let parts = [rows, start, descriptor.name, descriptor.version, open.device.clone(), open.dtype.to_string()];
    plan.fingerprint = fsio::sha256(parts.join("\n").as_bytes());
    Ok(plan)
}

/// The configuration of the LoRA adapter in `folder` (PEFT layout).
///
/// # Errors
/// Data, for a configuration that is missing, broken, or of a variant that is not implemented.
pub fn adapter_config(folder: &Path) -> Result<LoraConfig> {
    read_adapter_config(folder)
        .map_err(|e| Error::data("the adapter to start from cannot be used").at(folder.display()).because(e))
}

/// Makes `plan` start from the LoRA adapter in `folder`, whose configuration is
/// [`adapter_config`]'s. What the adapter holds belongs to the fingerprint: a checkpoint that began
/// with another one is not resumed.
///
/// # Errors
/// Usage, for a plan of another adapter, by the first key that contradicts; if the folder cannot be
/// read.
pub fn start_from_adapter(plan: &mut TrainPlan, folder: &Path) -> Result<()> {
    if let Method::Lora(planned) = &plan.method {
        let theirs = adapter_config(folder)?;
        // What is drawn and dropped in training is no part of what an adapter is.
        let shape = |config: &LoraConfig| LoraConfig {
            lora_dropout: 0.0,
            init_lora_weights: InitLora::default(),
            ..config.clone()
        };
        let value = |config: &LoraConfig| serde_json::to_value(shape(config)).unwrap_or_default();
        let (planned, theirs) = (value(planned), value(&theirs));
        if let Some(key) = LoraConfig::KEYS.into_iter().find(|key| planned.get(key) != theirs.get(key)) {
            let said = |config: &serde_json::Value| config.get(key).map_or("none".to_string(), ToString::to_string);
            return Err(Error::usage(format!(
                "{key} = {} contradicts the adapter that training starts from, which has {key} = {}",
                said(&planned),
                said(&theirs)
            ))
            .at(folder.display())
            .help(format!("leave {key} out to take the adapter's own, or train a new adapter")));
        }
    }
    let adapter = fsio::sha256_model(folder)?;
    plan.fingerprint = fsio::sha256(format!("{}\nstarted from the adapter {adapter}", plan.fingerprint).as_bytes());
    plan.init_adapter = Some(folder.into());
    Ok(())
}

/// Rows of an evaluation batch during training.
pub(super) const EVAL_BATCH: usize = 16;

/// What a training run gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trained {
    /// The backend's summary; paths are relative to the stage's folder, and the seconds are those
    /// of all calls that did the steps.
    pub summary: TrainSummary,
    /// What really ran.
    pub session: SessionInfo,
    /// The plan's fingerprint.
    pub fingerprint: String,
    /// SHA-256 over the base model's files that it started from; empty if an earlier version did
    /// not say.
    #[serde(default)]
    pub base_sha256: String,
    /// SHA-256 of every file of the checkpoints that the summary names, by the checkpoint's name,
    /// as training left them.
    #[serde(default)]
    pub left: BTreeMap<String, Digests>,
    /// The same of the files of the model alone, as this call found them: only of a training that
    /// was done before.
    #[serde(skip)]
    pub found: BTreeMap<String, Digests>,
    /// Where the base model lay: an adapter's own configuration has its name alone, so that it is
    /// the same bytes everywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<PathBuf>,
    /// The curves.
    #[serde(skip)]
    pub curves: Curves,
}

/// The marker and summary of a finished stage.
pub(crate) const DONE: &str = "done.json";
/// The log of a stage.
pub(crate) const EVENTS: &str = "events.jsonl";

/// Carries out a training run, or goes on with it, or finds it done.
///
/// # Errors
/// The backend's error; [`ErrorKind::Interrupted`] when stopped (a checkpoint to go on from was
/// written); I/O.
pub fn train(job: TrainJob<'_>, observer: &mut dyn Observer, cancel: &Cancel) -> Result<Trained> {
    let folder = job.plan.output_dir.clone();
    check_folder(&folder)?;
    let _lock = fsio::lock(&folder)?;
    fsio::remove_rests(&folder)?;
    let stage = format!("train {}", job.name);
    let name = job.name;
    let written = modified(&folder.join(EVENTS));
    if let Some(mut done) = finished(&folder, &job.plan.fingerprint)? {
        done.curves = read(&folder.join(EVENTS))?;
        let steps = done.summary.steps;
        if restore_curves(&mut done.curves, &folder.join(&done.summary.last_checkpoint), steps, &stage, observer)? {
            EventLog::start(&folder.join(EVENTS), &done.curves)?;
        }
        let detail = format!("{} steps in {}", done.summary.steps, folder.display());
        observer.notice(Notice::Reused { name: &stage, detail });
        let Left { fingerprint, settings, extent, .. } = Left::read(&folder)?.unwrap_or_default();
        let (fingerprint, settings, curves) = (&fingerprint, &settings, &done.curves);
        observer.notice(Notice::Begun(Begun { name, fingerprint, settings, extent, curves, after: None, written }));
        observer.notice(Notice::Trained { name, summary: &done.summary, curves });
        return Ok(done);
    }
    let (settings, extent) = (left::settings(&job)?, extent(&job));
    let TrainJob { mut plan, base, .. } = job;
    let resume = last_checkpoint(&folder)?;
    let mut left = Left::read(&folder)?.unwrap_or_default();
    if let Some((_, checkpoint)) = &resume {
        // Before the log is touched: it is another training's.
        belongs(checkpoint, &plan.fingerprint, &folder, &left, &settings)?;
        if let Some(files) = left.checkpoints.get(&left::name(checkpoint)) {
            let help = format!(
                "put it back, or remove {} to go on from the checkpoint before it, or {} to train anew",
                checkpoint.display(),
                folder.display()
            );
            left::hold(checkpoint, files, |_| true, &help)?;
        }
    }
    let kept =
        if left.fingerprint == plan.fingerprint { std::mem::take(&mut left.checkpoints) } else { BTreeMap::new() };
    let mut left = Left { fingerprint: plan.fingerprint.clone(), settings, extent, checkpoints: kept };
    match &resume {
        // A kill came between the checkpoint and its hashes, or an earlier version wrote it.
        Some((_, checkpoint)) if !left.checkpoints.contains_key(&left::name(checkpoint)) => {
            left.keep(&folder, checkpoint)?
        }
        _ => left.write(&folder)?,
    }
    let (mut log, mut curves) = EventLog::resume(&folder.join(EVENTS), resume.as_ref().map_or(0, |(step, _)| *step))?;
    if let Some((step, checkpoint)) = &resume
        && restore_curves(&mut curves, checkpoint, *step, &stage, observer)?
    {
        log = EventLog::start(&folder.join(EVENTS), &curves)?;
    }
    let after = resume.as_ref().map(|(step, _)| *step);
    plan.resume_from = resume.map(|(_, path)| path);
    let earlier_seconds = curves.seconds();
    let total = plan.steps.len();
    let from = match &plan.resume_from {
        Some(path) => format!(", going on from {}", path.display()),
        None => String::new(),
    };
    let detail = format!("{} items, {total} steps{from}", job.train.len());
    observer.notice(Notice::Stage { name: &stage, detail });
    let (fingerprint, settings) = (&left.fingerprint, &left.settings);
    let written = written.filter(|_| after.is_some());
    observer.notice(Notice::Begun(Begun { name, fingerprint, settings, extent, curves: &curves, after, written }));

    let mut session = job.backend.open(&base.open)?;
    let info = session.info();
    opening_warnings(&base.open, &info).into_iter().for_each(|w| observer.notice(Notice::Warning(w)));
    let trainer = session.trainer().ok_or_else(|| {
        Error::backend(format!("backend {} cannot train", job.backend.backend.describe().name))
            .help("name another one: --backend, or model.backend in a suite")
    })?;
    let mut sink = StageSink {
        stage: &stage,
        total: Some(total),
        observer,
        cancel,
        keep: |event: &Event| match event {
            Event::Step(_) | Event::Evaluation { .. } => {
                curves.push(event);
                log.push(event)
            }
            Event::Checkpoint { path, .. } => {
                log.sync()?;
                left.keep(&folder, path)
            }
            _ => Ok(()),
        },
        error: None,
    };
    let result = trainer.train(job.train.view(), job.eval.view(), &plan, &mut sink);
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
    summary.seconds += earlier_seconds;
    for checkpoint in [Some(&summary.last_checkpoint), summary.best_checkpoint.as_ref()].into_iter().flatten() {
        if !checkpoint.is_dir() {
            return Err(Error::data("a checkpoint that this training needs was removed")
                .at(checkpoint.display())
                .help(format!("put it back, or remove {} to train anew", folder.display())));
        }
    }
    for path in [Some(&mut summary.last_checkpoint), summary.best_checkpoint.as_mut()].into_iter().flatten() {
        if let Ok(relative) = path.strip_prefix(&folder) {
            *path = relative.to_path_buf();
        }
    }
    let mut of_result = BTreeMap::new();
    for checkpoint in [Some(&summary.last_checkpoint), summary.best_checkpoint.as_ref()].into_iter().flatten() {
        let name = left::name(checkpoint);
        // A backend need not tell of each.
        let files = match left.checkpoints.remove(&name) {
            Some(files) => files,
            None if of_result.contains_key(&name) => continue,
            None => fsio::digests(&folder.join(checkpoint), |_| true)?,
        };
        of_result.insert(name, files);
    }
    let trained = Trained {
        summary,
        session: info,
        fingerprint: plan.fingerprint,
        base: std::path::absolute(&base.open.model).ok(),
        base_sha256: base.sha256,
        left: of_result,
        found: BTreeMap::new(),
        curves,
    };
    fsio::write_sealed_json(&folder.join(DONE), &trained)?;
    let loss = trained.curves.evaluations.last().map_or(String::new(), |e| format!(", eval loss {:.4}", e.loss));
    let rate = trained.summary.tokens as f64 / trained.summary.seconds.max(1e-9);
    observer.notice(Notice::Done {
        name: &stage,
        detail: format!("{}, {rate:.0} tokens/s{loss}", steps_done(trained.summary.steps, total)),
    });
    observer.notice(Notice::Trained { name, summary: &trained.summary, curves: &trained.curves });
    Ok(trained)
}

/// When a file was last written.
fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|metadata| metadata.modified()).ok()
}

fn steps_done(steps: usize, planned: usize) -> String {
    match steps < planned {
        true => format!("stopped early after {steps} of {planned} steps"),
        false => format!("{steps} steps"),
    }
}

/// The finished run in `folder`, if it was made by this plan and its checkpoints are still there.
fn finished(folder: &Path, fingerprint: &str) -> Result<Option<Trained>> {
    let path = folder.join(DONE);
    if !path.is_file() {
        return Ok(None);
    }
    let mut done: Trained =
        fsio::read_sealed_json(&path).map_err(|e| e.help(format!("remove {} to train anew", folder.display())))?;
    let there: Vec<PathBuf> = [Some(&done.summary.last_checkpoint), done.summary.best_checkpoint.as_ref()]
        .into_iter()
        .flatten()
        .cloned()
        .collect();
    // A name of a folder, and nothing that leads elsewhere.
    let inside = |c: &PathBuf| c.file_name() == Some(c.as_os_str()) && folder.join(c).is_dir();
    if done.fingerprint != fingerprint || !there.iter().all(inside) {
        return Ok(None);
    }
    for checkpoint in there {
        let (place, name) = (folder.join(&checkpoint), left::name(&checkpoint));
        if let (Some(files), false) = (done.left.get(&name), done.found.contains_key(&name)) {
            let help = format!("put it back, or remove {} to train anew; {EVALUATE_IT}", folder.display());
            done.found.insert(name, left::hold(&place, files, fsio::is_of_model, &help)?);
        }
    }
    Ok(Some(done))
}

/// What to do with a checkpoint that was changed on purpose.
pub(super) const EVALUATE_IT: &str =
    "to measure it as it is, give a copy elsewhere to karat eval (--model, or --adapter for LoRA)";

/// Refuses a folder with files that no training wrote.
fn check_folder(folder: &Path) -> Result<()> {
    let names = names(folder)?;
    let ours = |n: &&String| {
        n.starts_with("checkpoint-") || [DONE, EVENTS, left::FILE, Tracking::FOLDER].contains(&n.as_str())
    };
    let foreign = names.iter().filter(|n| !n.starts_with('.')).find(|n| !ours(n));
    // A copy may have lost the hidden lock, but a training's folder holds nothing else.
    match foreign {
        Some(foreign) if !names.iter().any(|n| n == fsio::LOCK) => {
            Err(Error::usage(format!("there is {foreign:?} here, which no training wrote; nothing was written"))
                .at(folder.display())
                .help("give --out a new folder, an empty one, or that of a training to go on with"))
        }
        _ => Ok(()),
    }
}

/// Where the log of a stage has lost some of its first `steps` steps, takes them from the history
/// of `checkpoint` and says so; returns whether it did.
fn restore_curves(
    curves: &mut Curves,
    checkpoint: &Path,
    steps: usize,
    stage: &str,
    observer: &mut dyn Observer,
) -> Result<bool> {
    let lost = steps.saturating_sub(curves.steps.len());
    if lost == 0 {
        return Ok(false);
    }
    let found = match checkpoint.join(TRAINER_STATE).is_file() {
        true => curves.complete(&TrainerState::read(checkpoint).map_err(broken_state)?),
        false => 0,
    };
    let message = match found {
        0 => format!(
            "{EVENTS} has lost {lost} of {steps} steps and the checkpoint has no history: the curves have a gap"
        ),
        _ => format!(
            "{EVENTS} had lost {lost} of {steps} steps: {found} are taken from the checkpoint's history, without seconds, \
             memory and tokens"
        ),
    };
    let event = Event::Log { level: Level::Warn, message };
    observer.notice(Notice::Backend { stage, total: None, event: &event });
    Ok(found > 0)
}

fn broken_state(error: BackendError) -> Error {
    Error::data("the state of the checkpoint cannot be read").because(error)
}

/// Whether a checkpoint was left by this plan, where it says so; a backend that says it elsewhere
/// checks for itself.
fn belongs(
    checkpoint: &Path,
    fingerprint: &str,
    folder: &Path,
    left: &Left,
    settings: &BTreeMap<String, String>,
) -> Result<()> {
    let of_this = match checkpoint.join(RUN_STATE).is_file() {
        true => RunState::read(checkpoint).map_err(broken_state)?.fingerprint == fingerprint,
        false => left.fingerprint.is_empty() || left.fingerprint == fingerprint,
    };
    if of_this {
        return Ok(());
    }
    // What is written there may be of yet another one, and an earlier version wrote nothing.
    let differs = match left.fingerprint.is_empty() || left.fingerprint == fingerprint {
        true => Vec::new(),
        false => left.differences(settings),
    };
    let what = match differs.is_empty() {
        true => "the data, the model or a setting differs".to_string(),
        false => differs.join(", "),
    };
    Err(Error::usage(format!("this folder holds checkpoints of another training: {what}"))
        .at(checkpoint.display())
        .help(format!("give --out another folder, or remove {}", folder.display())))
}
