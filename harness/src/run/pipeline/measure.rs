//! The second half of a run: every model asked, and what it answered made a report.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Stages, Subject, generate_config};
use crate::backend::GenerateConfig;
use crate::data::companions;
use crate::data::notes::stray_texts;
use crate::data::tokens::Unnamed;
use crate::error::{Error, Result};
use crate::eval::{Prediction, metric};
use crate::fsio::{self, sha256_digests, sha256_model};
use crate::report::{self, AdapterCheck, Direction, Environment, Report, Warning};
use crate::run::evaluate::{EvalJob, Evaluated, Query, derived_seed, evaluate};
use crate::run::external_predictions::{StoredModel, read_stored};
use crate::run::left::checkpoints;
use crate::run::machine::machine;
use crate::run::recorded::{Recorded, RecordedCheckpoint, RecordedChoice, RecordedTraining};
use crate::run::renderings::{Renderings, fingerprints};
use crate::run::report_inputs::{Measured, plugin, report_measured};
use crate::run::train::EVALUATE_IT;
use crate::run::{Answered, LoadedBackend, Notice, Prepared, SessionCache, adapter, left, left_over, metrics};

/// What stays open from one model to the next.
#[derive(Default)]
struct Open {
    sessions: SessionCache,
    /// Those that were used.
    plugins: Vec<LoadedBackend>,
}

/// How a model is asked, beside what the suite says.
struct Asking<'a> {
    /// The seed of sampled answers.
    seed: u64,
    /// With the proof of its adapter.
    proven: bool,
    /// What is asked.
    queries: &'a [Query],
    /// What is scored beside it.
    beside: &'a [Query],
}

impl<'a> Asking<'a> {
    /// All that a suite asks, once more.
    fn all(prepared: &'a Prepared, seed: u64) -> Asking<'a> {
        let beside = prepared.general.as_ref().map_or(&[][..], |g| g.windows.as_slice());
        Asking { seed, proven: false, queries: &prepared.queries, beside }
    }
}

impl Stages<'_> {
    /// SHA-256 over the files of a model folder, which is read once.
    pub(super) fn read(&mut self, folder: &Path) -> Result<String> {
        if let Some(sha256) = self.read.get(folder) {
            return Ok(sha256.clone());
        }
        let sha256 = sha256_model(folder)?;
        self.read.insert(folder.into(), sha256.clone());
        Ok(sha256)
    }

    /// SHA-256 over the files of `folder`, which `subject` is opened from: what training left
    /// there, or what it started from, and still the same.
    fn weights(&mut self, subject: &Subject, folder: &Path) -> Result<String> {
        let name = left::name(folder);
        let trained = subject.trained.as_ref();
        let is_base = subject.from.as_deref() == Some(folder);
        if let Some(found) = trained.filter(|_| !is_base).and_then(|trained| trained.found.get(&name)) {
            return Ok(sha256_digests(found));
        }
        if let Some(files) = trained.filter(|_| !is_base).and_then(|trained| trained.left.get(&name)) {
            let help = format!("put it back, or run with --fresh to train anew; {EVALUATE_IT}");
            return Ok(sha256_digests(&left::hold(folder, files, fsio::is_of_model, &help)?));
        }
        let sha256 = self.read(folder)?;
        match trained {
            Some(trained) if is_base && !trained.base_sha256.is_empty() && trained.base_sha256 != sha256 => {
                Err(Error::data(format!(
                    "this is not the model that {} was trained from: a file was changed",
                    subject.name
                ))
                .at(folder.display())
                .help("put it back, or run again to train on what is there now"))
            }
            _ => Ok(sha256),
        }
    }

    fn evaluate(
        &mut self,
        subject: &Subject,
        prepared: &Prepared,
        backend: &LoadedBackend,
        sessions: &mut SessionCache,
    ) -> Result<(Evaluated, Option<AdapterCheck>, String)> {
        let asking = Asking { proven: true, ..Asking::all(prepared, self.suite.seed) };
        self.answers(subject, prepared, backend, sessions, &asking)
    }

    /// What a model answers the second time and further, if the suite asks for samples. Each time
    /// has a seed of its own, which follows from the suite's.
    fn samples(
        &mut self,
        subject: &Subject,
        prepared: &Prepared,
        backend: &LoadedBackend,
        sessions: &mut SessionCache,
    ) -> Result<Vec<Vec<Prediction>>> {
        let mut samples = Vec::new();
        for sample in 1..self.suite.eval.samples {
            let asking = Asking::all(prepared, derived_seed(self.suite.seed, &format!("sample {sample}")));
            samples.push(self.answers(subject, prepared, backend, sessions, &asking)?.0.predictions);
        }
        Ok(samples)
    }

    /// What a model answers.
    fn answers(
        &mut self,
        subject: &Subject,
        prepared: &Prepared,
        backend: &LoadedBackend,
        sessions: &mut SessionCache,
        asking: &Asking<'_>,
    ) -> Result<(Evaluated, Option<AdapterCheck>, String)> {
        let mut open = self.open(&subject.model, &subject.entry);
        open.adapter.clone_from(&subject.adapter);
        open.options.clone_from(subject.entry.options.as_ref().unwrap_or(&self.suite.eval.options));
        if let Some(device) = self.suite.eval.device.as_ref().filter(|_| subject.entry.device.is_none()) {
            open.device.clone_from(device);
        }
        let mut key = BTreeMap::from([
            ("weights".to_string(), self.weights(subject, &subject.model)?),
            ("tokenizer".to_string(), prepared.formatter.tokenizer().sha256().to_string()),
        ]);
        if let Some(adapter) = &subject.adapter {
            key.insert("adapter".into(), self.weights(subject, adapter)?);
            let own = companions::differences(&subject.model, adapter)?;
            if !own.is_empty() {
                self.observer.notice(Notice::Warning(format!(
                    "the adapter of {} has its own {}, which differs from the model's and is not used: a suite asks all \
                     models the same; merge it (karat merge) and name the result as model.base to use its own",
                    subject.name,
                    own.join(" and ")
                )));
            }
        }
        let checkpoint = key.get("adapter").or(key.get("weights")).cloned().unwrap_or_default();
        let job = EvalJob {
            name: &subject.name,
            backend,
            open,
            key,
            queries: asking.queries,
            beside: asking.beside,
            generate: GenerateConfig { seed: asking.seed, ..generate_config(self.suite, prepared) },
            tokenizer: prepared.formatter.tokenizer(),
            folder: self.folder.join("eval"),
        };
        let proof = match asking.proven {
            true => adapter::prove(&job, sessions, self.observer, self.cancel)?,
            false => None,
        };
        let evaluated = evaluate(job.clone(), sessions, self.observer, self.cancel)?;
        let adapter = match proof {
            Some(proof) => {
                let (texts, scratch) = (&evaluated.predictions, self.folder);
                Some(adapter::merged(proof, &job, texts, scratch, sessions, self.observer, self.cancel)?)
            }
            None => None,
        };
        let (tokenizer, mut unnamed) = (prepared.formatter.tokenizer(), Unnamed::default());
        for prediction in &evaluated.predictions {
            unnamed.look(tokenizer, &prediction.id, prediction.ids.as_deref().unwrap_or_default());
        }
        let found = [unnamed.warning(), left_over(&subject.name, &evaluated.predictions, tokenizer)];
        found.into_iter().flatten().for_each(|text| self.observer.notice(Notice::Warning(text)));
        Ok((evaluated, adapter, checkpoint))
    }

    /// The texts of a model that are there already.
    fn read_texts(&mut self, subject: &Subject, file: &Path, prepared: &Prepared) -> Result<Recorded> {
        let detail = format!("reading {}", file.display());
        self.observer.notice(Notice::Stage { name: &format!("eval {}", subject.name), detail });
        let mut stored = read_stored(file, Some(&subject.name), prepared)?;
        match (stored.pop(), stored.is_empty()) {
            (Some(StoredModel { recorded, known }), true) => {
                let (name, role) = (subject.name.clone(), subject.role);
                let fingerprints = known.fingerprints(prepared, self.suite).or(recorded.fingerprints.clone());
                Ok(Recorded { name, role, fingerprints, brought: recorded.brought || known.is_unknown(), ..recorded })
            }
            _ => Err(Error::usage("there are results of several models here")
                .at(file.display())
                .help("name the file of one of them, as results/NAME.json")),
        }
    }

    pub(super) fn report(&mut self, renderings: &Renderings, subjects: Vec<Subject>) -> Result<Report> {
        let results = self.folder.join("results");
        let warnings: Vec<Warning> = renderings.warning(self.suite.language).into_iter().collect();
        let (mut measured, mut open) = (Vec::new(), Open::default());
        for subject in subjects {
            if self.cancel.requested() {
                return Err(Error::interrupted());
            }
            let prepared = renderings.of(&subject.name);
            let recorded = match &subject.entry.predictions {
                Some(file) => self.read_texts(&subject, file, prepared)?,
                None => {
                    let own = self.gathers.then(|| fingerprints(prepared, self.suite));
                    let fingerprints = renderings.fingerprints(&subject.name, self.suite).or(own);
                    Recorded { fingerprints, ..self.measure(subject, prepared, &mut open)? }
                }
            };
            recorded.notes.iter().for_each(|note| self.observer.notice(Notice::Warning(note.english.clone())));
            let one = Measured { recorded, prepared };
            if self.gathers && one.recorded.replaces(&results) {
                let text = format!("{} takes the place of another model of that name here", one.recorded.name);
                self.observer.notice(Notice::Warning(text));
            }
            one.recorded.write(&results)?;
            let texts = one.recorded.predictions.iter().map(|p| (p.id.as_str(), p.text.as_str()));
            if let Some(note) = stray_texts(&one.recorded.name, texts, &self.suite.data.think_tags) {
                self.observer.notice(Notice::Warning(note.english));
            }
            measured.push(one);
        }
        open.sessions.close();
        if self.gathers {
            self.gather(&results, &renderings.main, &mut measured)?;
        }
        let environment = Environment {
            karat: env!("CARGO_PKG_VERSION").into(),
            machine: machine(),
            plugins: open.plugins.iter().map(plugin).collect(),
            paths: BTreeMap::from([("run".to_string(), self.folder.display().to_string())]),
            notes: self.chosen.clone(),
            ..Environment::default()
        };
        let answered: Vec<Answered> = measured.iter().map(|one| self.answered(one)).collect();
        let report = report_measured(self.suite, &renderings.main, measured, warnings, environment)?;
        let folder = self.folder.join("report");
        report::write(&report, &folder)?;
        self.observer.notice(Notice::Reported { report: &report, answered: &answered });
        self.observer.notice(Notice::Done { name: "report", detail: folder.join("report.html").display().to_string() });
        Ok(report)
    }

    /// What trackers show of a model: its first texts.
    fn answered(&self, one: &Measured<'_>) -> Answered {
        let Recorded { name, training, predictions, .. } = &one.recorded;
        let of_item = |item: &crate::eval::Item| predictions.iter().find(|p| p.id == item.id).cloned();
        Answered {
            name: name.clone(),
            step: training.as_ref().and_then(|training| training.step).unwrap_or(0),
            predictions: one.prepared.items.iter().filter_map(of_item).take(self.suite.track.samples).collect(),
        }
    }

    /// Puts the other models that were measured in this folder beside those of `measured`, if they
    /// were asked the same.
    fn gather<'p>(&mut self, results: &Path, prepared: &'p Prepared, measured: &mut Vec<Measured<'p>>) -> Result<()> {
        let ours = fingerprints(prepared, self.suite);
        let mut beside = Vec::new();
        for recorded in Recorded::read_all(results)? {
            if measured.iter().any(|one| one.recorded.name == recorded.name) {
                continue;
            }
            match &recorded.fingerprints {
                Some(theirs) if *theirs == ours || (recorded.brought && theirs.data == ours.data) => {
                    beside.push(Measured { recorded, prepared });
                }
                _ => self.observer.notice(Notice::Warning(format!(
                    "{} was measured in this folder too, but asked otherwise: it is left out of the report",
                    recorded.name
                ))),
            }
        }
        measured.append(&mut beside);
        measured.sort_by(|a, b| a.recorded.place().cmp(&b.recorded.place()));
        Ok(())
    }

    /// Evaluates a model, and the other checkpoints of its training that the suite asks for.
    fn measure(&mut self, subject: Subject, prepared: &Prepared, open: &mut Open) -> Result<Recorded> {
        let backend = self.backends.backend(subject.entry.backend.as_deref().unwrap_or(self.suite.eval_backend()))?;
        let trained_by = subject.entry.backend.as_ref().unwrap_or(&self.suite.model.backend);
        let trainer = subject.trained.as_ref().map(|_| self.backends.backend(trained_by)).transpose()?;
        let sessions = &mut open.sessions;
        let (evaluated, adapter, checkpoint_sha256) = self.evaluate(&subject, prepared, &backend, sessions)?;
        let samples = self.samples(&subject, prepared, &backend, sessions)?;
        let checkpoints = self.checkpoints(&subject, prepared, &backend, sessions)?;
        for used in [Some(backend), trainer].into_iter().flatten() {
            if open.plugins.iter().all(|known| known.backend.describe().name != used.backend.describe().name) {
                open.plugins.push(used);
            }
        }
        let Evaluated { predictions, references, beside: general, effort } = evaluated;
        let disk_bytes = subject.place().and_then(|place| fsio::model_bytes(place).ok());
        let step = subject.place().and_then(|place| left::step(place)).filter(|_| subject.trained.is_some());
        let Subject { name, role, trained, chosen, .. } = subject;
        let training =
            trained.map(|t| RecordedTraining { summary: t.summary, curves: t.curves, step, chosen, checkpoints });
        Ok(Recorded {
            name,
            role,
            checkpoint_sha256,
            fingerprints: None,
            brought: false,
            notes: Vec::new(),
            effort: Some(effort),
            disk_bytes,
            training,
            predictions,
            samples,
            references,
            general,
            adapter,
        })
    }

    /// The checkpoint of a training that is best by `metric` on the validation part: its folder, and
    /// what it was chosen by. Of equals the first.
    pub(super) fn choose(
        &mut self,
        subject: &Subject,
        metric: &str,
        prepared: &Prepared,
    ) -> Result<(PathBuf, RecordedChoice)> {
        let place = subject.place().ok_or_else(|| Error::failed("nothing was trained"))?;
        let (items, queries) = prepared.validation_items()?.ok_or_else(|| {
            Error::usage(format!("checkpoint_metric = {metric:?} chooses by the validation part, and there is none"))
        })?;
        let lower = metric::info(metric).is_some_and(|m| m.direction == Direction::Lower);
        let backend = self.backends.backend(subject.entry.backend.as_deref().unwrap_or(self.suite.eval_backend()))?;
        let (mut sessions, mut best) = (SessionCache::default(), None::<(f64, usize, PathBuf)>);
        let mut values = Vec::new();
        for (step, folder) in checkpoints(place.parent().unwrap_or(place))? {
            let other = subject.checkpoint(step, folder.clone());
            let asking = Asking { queries: &queries, beside: &[], ..Asking::all(prepared, self.suite.seed) };
            let (found, ..) = self.answers(&other, prepared, &backend, &mut sessions, &asking)?;
            let names = [metric.to_string()];
            let (tags, Evaluated { predictions, references, .. }) = (&self.suite.data.think_tags, found);
            let results = metrics::measure(tags, &names, &items, predictions, references)?;
            let value = metric::aggregate(metric, &results);
            values.push((step, value));
            let Some(value) = value.filter(|v| v.is_finite()) else { continue };
            let quality = if lower { -value } else { value };
            if best.as_ref().is_none_or(|(known, ..)| quality > *known) {
                best = Some((quality, step, folder));
            }
        }
        let Some((_, step, folder)) = best else {
            return Err(Error::data(format!(
                "no checkpoint of {} has a value of {metric} on the validation part",
                subject.name
            ))
            .help("choose by another metric, or by the loss: leave checkpoint_metric out"));
        };
        let detail = format!("step {step}, by {metric} of {} validation items", items.len());
        self.observer.notice(Notice::Done { name: &format!("checkpoint {}", subject.name), detail });
        let of_chosen = values.iter().find(|(at, _)| *at == step).and_then(|(_, value)| *value);
        let equal = values.iter().filter(|(_, value)| of_chosen.is_some() && *value == of_chosen).count();
        if equal > 1 {
            self.observer.notice(Notice::Warning(format!(
                "{metric} cannot choose between {equal} checkpoints of {}, which have the same value: the first is taken",
                subject.name
            )));
        }
        Ok((folder, RecordedChoice { metric: metric.into(), items: items.len(), step, values }))
    }

    /// The other checkpoints of a training that `eval.checkpoints` names, by rising step.
    fn checkpoints(
        &mut self,
        subject: &Subject,
        prepared: &Prepared,
        backend: &LoadedBackend,
        sessions: &mut SessionCache,
    ) -> Result<Vec<RecordedCheckpoint>> {
        let Some(choice) = self.suite.eval.checkpoints.as_ref().filter(|choice| choice.over_time()) else {
            return Ok(Vec::new());
        };
        let Some(place) = subject.place().filter(|_| subject.trained.is_some()) else { return Ok(Vec::new()) };
        let stage = place.parent().unwrap_or(place);
        let saved = checkpoints(stage)?;
        let steps: Vec<String> = saved.iter().map(|(step, _)| step.to_string()).collect();
        if let Some(missing) = choice.steps().iter().find(|step| saved.iter().all(|(known, _)| known != *step)) {
            return Err(Error::usage(format!(
                "eval.checkpoints names step {missing}, which {} did not keep",
                subject.name
            ))
            .at(stage.display())
            .help(format!(
                "it kept {}; save_every and save_total_limit of [train] decide what is kept",
                steps.join(", ")
            )));
        }
        let last = saved.iter().map(|(step, _)| *step).max().unwrap_or_default();
        let made = subject.entry.train.as_ref().map_or(0, |train| train.hyperparameters.saved_steps(last).len());
        if choice.steps().is_empty() && made > saved.len() {
            self.observer.notice(Notice::Warning(format!(
                "of {} {} of {made} checkpoints were kept and are measured; save_total_limit = 0 in [train] keeps all",
                subject.name,
                saved.len()
            )));
        }
        let asking = Asking::all(prepared, self.suite.seed);
        let mut recorded = Vec::new();
        for (step, folder) in saved.into_iter().filter(|(step, path)| choice.asks_for(*step) && path != place) {
            if self.cancel.requested() {
                return Err(Error::interrupted());
            }
            let other = subject.checkpoint(step, folder);
            let (Evaluated { predictions, references, .. }, checkpoint_sha256) =
                self.answers(&other, prepared, backend, sessions, &asking).map(|(found, _, sha256)| (found, sha256))?;
            recorded.push(RecordedCheckpoint { step, checkpoint_sha256, predictions, references });
        }
        Ok(recorded)
    }
}
