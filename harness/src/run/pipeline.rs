//! The whole way of a suite: data, training, evaluation, report.

mod measure;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::backend::{GenerateConfig, OpenConfig, bounded_threads};
use crate::error::{Error, Result};
use crate::fsio;
use crate::model_dir::ModelDir;
use crate::report::{Report, Role};
use crate::run::external_predictions::role;
use crate::run::precheck::precheck;
use crate::run::recorded::RecordedChoice;
use crate::run::renderings::{Renderings, has_other_tokenizer};
use crate::run::subject::{locate, rendering};
use crate::run::train::{Base, TrainJob, Trained, plan, train};
use crate::run::{Backends, Cancel, Notice, Observer, Prepared, decided, folder, left, models, prepare};
use crate::suite::{
    CheckpointChoice, Checkpoints, ModelRole, NamedModel, Suite, SuiteModel, TrainMethod, TrainModel, names_file,
};
use crate::track::{Follower, Tracking};

/// A model of the run: what is opened, and how it came to be.
#[derive(Clone)]
struct Subject {
    name: String,
    role: Role,
    /// Empty for texts that are there already.
    model: PathBuf,
    adapter: Option<PathBuf>,
    trained: Option<Trained>,
    /// The folder that its training started from.
    from: Option<PathBuf>,
    /// What its checkpoint was chosen by, if not by the loss.
    chosen: Option<RecordedChoice>,
    /// What its table says.
    entry: NamedModel,
}

impl Subject {
    /// A model that exists.
    fn existing(name: String, role: Role, found: ModelDir, entry: NamedModel) -> Subject {
        let ModelDir { model, adapter } = found;
        Subject { name, role, model, adapter, trained: None, from: None, chosen: None, entry }
    }

    /// The same at another checkpoint of its training.
    fn checkpoint(&self, step: usize, folder: PathBuf) -> Subject {
        let mut other = Subject { name: format!("{}@{step}", self.name), ..self.clone() };
        match &mut other.adapter {
            Some(adapter) => *adapter = folder,
            None => other.model = folder,
        }
        other
    }

    /// Where it lies, if it is no texts alone.
    fn place(&self) -> Option<&PathBuf> {
        self.adapter.as_ref().or(Some(&self.model)).filter(|place| !place.as_os_str().is_empty())
    }
}

/// A model that the user brings along to be evaluated instead of the suite's.
#[derive(Clone, Debug)]
pub struct Brought {
    /// Its name in the report.
    pub name: String,
    /// Its folder.
    pub model: PathBuf,
    /// An adapter on top.
    pub adapter: Option<PathBuf>,
}

/// Carries out `suite` in `folder` and gives the report; what an earlier run left there and still
/// fits is reused.
///
/// # Errors
/// Whatever goes wrong on the way; what was done stays in the folder and is used by the next run.
pub fn run(
    suite: &Suite,
    folder: &Path,
    backends: &dyn Backends,
    observer: &mut dyn Observer,
    cancel: &Cancel,
) -> Result<Report> {
    let _lock = folder::take(folder)?;
    let (suite, chosen) = &decided(suite, None, backends, observer)?;
    let run = std::path::absolute(folder).map_err(|e| Error::io("resolve", folder, e))?;
    let mut follower = Follower::new(observer, Tracking::of_suite(suite, &run)?)?;
    let result = carry_out(Stages::new(suite, chosen, folder, backends, &mut follower, cancel));
    follower.end(&result);
    result
}

fn carry_out(mut stages: Stages<'_>) -> Result<Report> {
    let (suite, folder) = (stages.suite, stages.folder);
    let renderings = stages.data(Renderings::new)?;
    precheck(suite, &renderings, stages.backends)?;
    let models = suite.all_models();
    let mut subjects: Vec<Option<Subject>> = vec![None; models.len()];
    for at in 0..models.len() {
        stages.subject(at, &models, &renderings, &mut subjects)?;
    }
    let subjects: Vec<Subject> = subjects.into_iter().flatten().collect();
    stages.forget(&subjects)?;
    let places: Vec<(String, PathBuf)> =
        subjects.iter().filter_map(|s| Some((s.name.clone(), s.place()?.clone()))).collect();
    let report = stages.report(&renderings, subjects)?;
    models::link(folder, &places)?;
    let names: Vec<String> = places.iter().map(|(name, _)| format!("{}:{name}", folder.display())).collect();
    stages.observer.notice(Notice::Done { name: "models", detail: format!("--model {}", names.join(", ")) });
    Ok(report)
}

/// Evaluates one model on the suite's held-out items. A model with a tokenizer of its own is asked
/// in its own tokens, under its own template: under the suite's, its numbers would be noise.
///
/// # Errors
/// As [`run`]; a name that cannot name a file.
pub fn evaluate_brought(
    suite: &Suite,
    brought: Brought,
    folder: &Path,
    backends: &dyn Backends,
    observer: &mut dyn Observer,
    cancel: &Cancel,
) -> Result<Report> {
    evaluate_one(suite, brought, folder, backends, observer, cancel, false)
}

/// As [`evaluate_brought`], with the other models that were measured so in the same folder beside
/// it: those that were asked the same. A model called `base` is what the others are compared with.
///
/// # Errors
/// As [`evaluate_brought`].
pub fn evaluate_beside(
    suite: &Suite,
    brought: Brought,
    folder: &Path,
    backends: &dyn Backends,
    observer: &mut dyn Observer,
    cancel: &Cancel,
) -> Result<Report> {
    evaluate_one(suite, brought, folder, backends, observer, cancel, true)
}

fn evaluate_one(
    suite: &Suite,
    brought: Brought,
    folder: &Path,
    backends: &dyn Backends,
    observer: &mut dyn Observer,
    cancel: &Cancel,
    gathers: bool,
) -> Result<Report> {
    let Brought { name, model, adapter } = brought;
    if !names_file(&name) {
        return Err(
            Error::usage(format!("the name {name:?} cannot name a file")).help("use letters, digits, '-' and '_'")
        );
    }
    let _lock = folder::take(folder)?;
    let (mut suite, chosen) = decided(suite, Some(&model), backends, observer)?;
    let renders = rendering(&suite)?;
    if !suite.model.has_base() {
        suite.model.base.clone_from(&renders);
    }
    if has_other_tokenizer(&model, &renders)? {
        observer.notice(Notice::Warning(format!(
            "{} has a tokenizer of its own: it is asked in its own tokens and template, not in those of the suite's base",
            model.display()
        )));
        suite.model.base = std::path::absolute(&model).map_err(|e| Error::io("resolve", &model, e))?;
    }
    let mut stages = Stages::new(&suite, &chosen, folder, backends, observer, cancel);
    stages.doubt(&model, adapter.as_deref())?;
    let renderings = stages.data(|suite| Ok(Renderings::single(prepare(suite)?, suite)))?;
    let found = ModelDir { model, adapter };
    let role = if gathers { role(&name) } else { Role::Other };
    stages.gathers = gathers;
    stages.report(&renderings, vec![Subject::existing(name, role, found, NamedModel::default())])
}

struct Stages<'a> {
    suite: &'a Suite,
    /// Why the backends are those that `auto` came to.
    chosen: &'a BTreeMap<String, String>,
    folder: &'a Path,
    backends: &'a dyn Backends,
    observer: &'a mut dyn Observer,
    cancel: &'a Cancel,
    /// The report has the other results of the folder beside those that are made.
    gathers: bool,
    /// Worker threads of a session.
    threads: usize,
    /// SHA-256 over the model folders that a training started from, as they were read for it.
    started: BTreeMap<PathBuf, String>,
    /// SHA-256 over the model folders that have been read for evaluation.
    read: BTreeMap<PathBuf, String>,
}

impl<'a> Stages<'a> {
    /// The stages of `suite`, none of them done. Says if it asks for more threads than make sense
    /// here.
    fn new(
        suite: &'a Suite,
        chosen: &'a BTreeMap<String, String>,
        folder: &'a Path,
        backends: &'a dyn Backends,
        observer: &'a mut dyn Observer,
        cancel: &'a Cancel,
    ) -> Self {
        let (threads, warning) = bounded_threads("model.threads", suite.model.threads);
        warning.into_iter().for_each(|text| observer.notice(Notice::Warning(text)));
        let (started, read) = (BTreeMap::new(), BTreeMap::new());
        Stages { suite, chosen, folder, backends, observer, cancel, gathers: false, threads, started, read }
    }

    /// Says what is wrong with a model that is brought along out of a training's folder: it was
    /// changed after the training, or its adapter belongs to another base.
    fn doubt(&mut self, model: &Path, adapter: Option<&Path>) -> Result<()> {
        for checkpoint in [Some(model), adapter].into_iter().flatten() {
            let Some((left, base)) = left::known(checkpoint) else { continue };
            let wanted = |name: &str| left.contains_key(name);
            if let Some(what) = left::changed(&left, &fsio::digests(checkpoint, wanted)?) {
                let place = checkpoint.display();
                self.observer.notice(Notice::Warning(format!("{place} is not what training left there: {what}")));
            }
            if Some(checkpoint) == adapter && !base.is_empty() && self.read(model)? != base {
                let (adapter, model) = (checkpoint.display(), model.display());
                self.observer.notice(Notice::Warning(format!("{adapter} was trained on another base than {model}")));
            }
        }
        Ok(())
    }

    fn data(&mut self, render: impl FnOnce(&Suite) -> Result<Renderings>) -> Result<Renderings> {
        let detail = format!("reading the data of {}", self.suite.name);
        self.observer.notice(Notice::Stage { name: "data", detail });
        let renderings = render(self.suite)?;
        let prepared = &renderings.main;
        let effective = format!("{}{}", folder::HEAD, self.suite.to_toml()?);
        fsio::write_atomic(&self.folder.join(folder::SUITE), effective.as_bytes())?;
        fsio::write_json(&self.folder.join("data.json"), &prepared.audit)?;
        if !prepared.bad.is_empty() {
            let first = &prepared.bad[0];
            self.observer.notice(Notice::Warning(format!(
                "{} bad lines left out, the first at {}:{}: {}",
                prepared.bad.len(),
                first.file,
                first.line,
                first.reason
            )));
        }
        let generation = prepared.generation.notes();
        let notes = prepared.notes.iter().chain(generation.iter().flatten());
        let notes = notes.map(|note| &note.english).chain(&renderings.notes);
        notes.for_each(|note| self.observer.notice(Notice::Warning(note.clone())));
        self.observer.notice(Notice::Done {
            name: "data",
            detail: format!(
                "{} training items ({} tokens), {} for the loss, {} evaluated",
                prepared.train.len(),
                prepared.train.tokens().ids().len(),
                prepared.validation.len(),
                prepared.items.len()
            ),
        });
        // Reading the data takes no orders, and opening a model takes long.
        if self.cancel.requested() { Err(Error::interrupted()) } else { Ok(renderings) }
    }

    /// Results of a model that the suite no longer has would be taken for results of this run.
    fn forget(&self, subjects: &[Subject]) -> Result<()> {
        let results = self.folder.join("results");
        for entry in std::fs::read_dir(&results).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
            let is_result = path.extension().is_some_and(|e| e == "json");
            if is_result && subjects.iter().all(|s| Some(&s.name) != name.as_ref()) {
                std::fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
            }
        }
        Ok(())
    }

    fn open(&self, model: &Path, entry: &NamedModel) -> OpenConfig {
        let config = &self.suite.model;
        OpenConfig {
            device: entry.device.clone().unwrap_or_else(|| config.device.clone()),
            dtype: entry.dtype.unwrap_or(config.dtype),
            threads: self.threads,
            seed: self.suite.seed,
            ..OpenConfig::new(model)
        }
    }

    /// Puts the model number `at` into `done`, trained if the suite trains it, after the one that
    /// it starts from.
    fn subject(
        &mut self,
        at: usize,
        models: &[SuiteModel],
        renderings: &Renderings,
        done: &mut [Option<Subject>],
    ) -> Result<()> {
        if done[at].is_some() {
            return Ok(());
        }
        let SuiteModel { name, entry, .. } = &models[at];
        let of_role = |usual: Role| match entry.role {
            Some(ModelRole::Base) => Role::Base,
            Some(ModelRole::Baseline) => Role::Baseline,
            None => usual,
        };
        done[at] = Some(match &entry.train {
            Some(train) => {
                let from = models.iter().position(|model| Some(&model.name) == train.from.as_ref());
                let from = from.ok_or_else(|| Error::failed(format!("{name} starts from no model of the suite")))?;
                self.subject(from, models, renderings, done)?;
                let start = done[from].as_ref().map(|from| from.model.clone()).unwrap_or_default();
                let mut subject = self.train(&models[at], train, &start, renderings.of(name))?;
                subject.role = of_role(subject.role);
                subject
            }
            None if entry.predictions.is_some() => {
                let nowhere = ModelDir { model: PathBuf::new(), adapter: None };
                Subject::existing(name.clone(), of_role(Role::Other), nowhere, entry.clone())
            }
            None => {
                // The base of a suite was looked at when the suite was read.
                let found = match name == "base" && self.suite.model.has_base() {
                    true => ModelDir { model: self.suite.model.base.clone(), adapter: None },
                    false => locate(entry)?,
                };
                self.doubt(&found.model, found.adapter.as_deref())?;
                let usual = if found.adapter.is_some() { Role::Lora } else { Role::Other };
                Subject::existing(name.clone(), of_role(usual), found, entry.clone())
            }
        });
        Ok(())
    }

    fn train(
        &mut self,
        model: &SuiteModel,
        train_model: &TrainModel,
        start: &Path,
        prepared: &Prepared,
    ) -> Result<Subject> {
        let (suite, SuiteModel { name, entry, seed, .. }) = (self.suite, model);
        let TrainModel { method, hyperparameters, .. } = train_model;
        let backend = self.backends.backend(entry.backend.as_ref().unwrap_or(&suite.model.backend))?;
        let open = self.open(start, entry);
        // Several start from the same files.
        let base = match self.started.get(start) {
            Some(sha256) => Base { open, sha256: sha256.clone() },
            None => Base::of(open)?,
        };
        self.started.insert(start.into(), base.sha256.clone());
        let (rows, eval) = (&prepared.train, &prepared.validation);
        let mut plan = plan(rows, eval, train_model.backend_method(), hyperparameters, *seed, &backend, &base)?;
        let stage = self.folder.join("train").join(format!("{name}-{}", &plan.fingerprint[..12]));
        plan.output_dir.clone_from(&stage);
        let trained =
            train(TrainJob { name, backend: &backend, base, train: rows, eval, plan }, self.observer, self.cancel)?;
        let choice =
            suite.eval.checkpoints.as_ref().and_then(Checkpoints::measured).unwrap_or(hyperparameters.checkpoint);
        let best = trained.summary.best_checkpoint.clone().filter(|_| choice == CheckpointChoice::Best);
        let checkpoint = stage.join(best.unwrap_or_else(|| trained.summary.last_checkpoint.clone()));
        let (role, model, adapter) = match method {
            TrainMethod::Lora => (Role::Lora, start.to_path_buf(), Some(checkpoint)),
            TrainMethod::Full => (Role::Full, checkpoint, None),
        };
        let (trained, from) = (Some(trained), Some(start.to_path_buf()));
        let mut subject =
            Subject { name: name.clone(), role, model, adapter, trained, from, chosen: None, entry: entry.clone() };
        if let Some(metric) = hyperparameters.checkpoint_metric.as_ref().filter(|_| choice == CheckpointChoice::Best) {
            let (folder, chosen) = self.choose(&subject, metric, prepared)?;
            subject = Subject {
                name: subject.name.clone(),
                chosen: Some(chosen.clone()),
                ..subject.checkpoint(chosen.step, folder)
            };
        }
        Ok(subject)
    }
}

/// How a suite's items are generated.
pub(super) fn generate_config(suite: &Suite, prepared: &Prepared) -> GenerateConfig {
    let settings = &prepared.generation;
    GenerateConfig {
        max_new_tokens: settings.max_new_tokens,
        temperature: settings.temperature,
        top_p: settings.top_p,
        top_k: settings.top_k,
        seed: suite.seed,
        stop_ids: prepared.formatter.stop_ids(),
        batch_size: suite.eval.batch_size,
    }
}
