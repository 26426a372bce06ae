//! The whole way of a suite: data, training, evaluation, report.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::backend::{GenerateConfig, Method, OpenConfig, bounded_threads};
use crate::data::companions;
use crate::data::notes::stray_texts;
use crate::data::tokens::Unnamed;
use crate::error::{Error, Result};
use crate::fsio::{self, sha256_digests, sha256_model};
use crate::report::{self, AdapterCheck, Environment, Report, Role};
use crate::run::evaluate::{EvalJob, Evaluated, evaluate};
use crate::run::machine::machine;
use crate::run::recorded::{Recorded, RecordedTraining};
use crate::run::report_inputs::{plugin, report_recorded};
use crate::run::train::{Base, EVALUATE_IT, TrainJob, Trained, plan, train};
use crate::run::{
    Backends, Cancel, LoadedBackend, Notice, Observer, Prepared, SessionCache, adapter, decided, folder, left,
    left_over, models, prepare,
};
use crate::suite::{CheckpointChoice, Suite};

/// A model of the run: what is opened, and how it came to be.
struct Subject {
    name: String,
    role: Role,
    model: PathBuf,
    adapter: Option<PathBuf>,
    trained: Option<Trained>,
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
    let mut stages = Stages::new(suite, chosen, folder, backends, observer, cancel);
    let prepared = stages.data()?;
    let mut subjects = vec![Subject {
        name: "base".into(),
        role: Role::Base,
        model: suite.model.base.clone(),
        adapter: None,
        trained: None,
    }];
    for (name, _) in suite.runs() {
        subjects.push(stages.train(name, &prepared)?);
    }
    // Results of a model that the suite no longer trains would be taken for results of this run.
    for name in ["lora", "full"].into_iter().filter(|name| subjects.iter().all(|s| s.name != *name)) {
        let stale = folder.join("results").join(format!("{name}.json"));
        if stale.is_file() {
            std::fs::remove_file(&stale).map_err(|e| Error::io("remove", &stale, e))?;
        }
    }
    let models: Vec<(String, PathBuf)> =
        subjects.iter().map(|s| (s.name.clone(), s.adapter.as_ref().unwrap_or(&s.model).clone())).collect();
    let report = stages.report(&prepared, subjects)?;
    models::link(folder, &models)?;
    let names: Vec<String> = models.iter().map(|(name, _)| format!("{}:{name}", folder.display())).collect();
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
    let Brought { name, model, adapter } = brought;
    let name_ok = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.starts_with('.') || !name.chars().all(name_ok) {
        return Err(
            Error::usage(format!("the name {name:?} cannot name a file")).help("use letters, digits, '-' and '_'")
        );
    }
    let _lock = folder::take(folder)?;
    let (mut suite, chosen) = decided(suite, Some(&model), backends, observer)?;
    if has_other_tokenizer(&model, &suite.model.base)? {
        observer.notice(Notice::Warning(format!(
            "{} has a tokenizer of its own: it is asked in its own tokens and template, not in those of the suite's base",
            model.display()
        )));
        suite.model.base = std::path::absolute(&model).map_err(|e| Error::io("resolve", &model, e))?;
    }
    let mut stages = Stages::new(&suite, &chosen, folder, backends, observer, cancel);
    stages.doubt(&model, adapter.as_deref())?;
    let prepared = stages.data()?;
    stages.report(&prepared, vec![Subject { name, role: Role::Other, model, adapter, trained: None }])
}

/// Whether `model` has a tokenizer, and not the one of `base`.
fn has_other_tokenizer(model: &Path, base: &Path) -> Result<bool> {
    let (theirs, ours) = (model.join("tokenizer.json"), base.join("tokenizer.json"));
    Ok(theirs.is_file() && (!ours.is_file() || fsio::sha256_file(&theirs)? != fsio::sha256_file(&ours)?))
}

struct Stages<'a> {
    suite: &'a Suite,
    /// Why the backends are those that `auto` came to.
    chosen: &'a BTreeMap<String, String>,
    folder: &'a Path,
    backends: &'a dyn Backends,
    observer: &'a mut dyn Observer,
    cancel: &'a Cancel,
    /// Worker threads of a session.
    threads: usize,
    /// SHA-256 over the suite's base model, once it has been read for training.
    base_sha256: Option<String>,
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
        Stages { suite, chosen, folder, backends, observer, cancel, threads, base_sha256: None, read: BTreeMap::new() }
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

    fn data(&mut self) -> Result<Prepared> {
        let detail = format!("reading the data of {}", self.suite.name);
        self.observer.notice(Notice::Stage { name: "data", detail });
        let prepared = prepare(self.suite)?;
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
        for note in &prepared.notes {
            self.observer.notice(Notice::Warning(note.english.clone()));
        }
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
        if self.cancel.requested() { Err(Error::interrupted()) } else { Ok(prepared) }
    }

    fn open(&self, model: &Path) -> OpenConfig {
        let config = &self.suite.model;
        OpenConfig {
            device: config.device.clone(),
            dtype: config.dtype,
            threads: self.threads,
            seed: self.suite.seed,
            ..OpenConfig::new(model)
        }
    }

    fn train(&mut self, name: &str, prepared: &Prepared) -> Result<Subject> {
        let suite = self.suite;
        let train_section = &suite.train;
        let (method, hyperparameters) = match (name, &train_section.lora, &train_section.full) {
            ("lora", Some(lora), _) => (Method::Lora(lora.adapter.clone()), &lora.hyperparameters),
            (_, _, Some(full)) => (Method::Full, &full.hyperparameters),
            _ => return Err(Error::failed(format!("the suite has no training run {name}"))),
        };
        let backend = self.backends.backend(&suite.model.backend)?;
        let open = self.open(&suite.model.base);
        // LoRA and full start from the same files.
        let base = match self.base_sha256.take() {
            Some(sha256) => Base { open, sha256 },
            None => Base::of(open)?,
        };
        self.base_sha256 = Some(base.sha256.clone());
        let mut plan =
            plan(&prepared.train, &prepared.validation, method, hyperparameters, suite.seed, &backend, &base)?;
        let stage = self.folder.join("train").join(format!("{name}-{}", &plan.fingerprint[..12]));
        plan.output_dir.clone_from(&stage);
        let job = TrainJob { name, backend: &backend, base, train: &prepared.train, eval: &prepared.validation, plan };
        let trained = train(job, self.observer, self.cancel)?;
        let best =
            trained.summary.best_checkpoint.clone().filter(|_| hyperparameters.checkpoint == CheckpointChoice::Best);
        let checkpoint = stage.join(best.unwrap_or_else(|| trained.summary.last_checkpoint.clone()));
        let (role, model, adapter) = match name {
            "lora" => (Role::Lora, suite.model.base.clone(), Some(checkpoint)),
            _ => (Role::Full, checkpoint, None),
        };
        Ok(Subject { name: name.into(), role, model, adapter, trained: Some(trained) })
    }

    /// SHA-256 over the files of a model folder, which is read once.
    fn read(&mut self, folder: &Path) -> Result<String> {
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
        let is_base = *folder == *self.suite.model.base;
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
        let mut open = self.open(&subject.model);
        open.adapter.clone_from(&subject.adapter);
        open.options.clone_from(&self.suite.eval.options);
        if let Some(device) = &self.suite.eval.device {
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
            queries: &prepared.queries,
            beside: prepared.general.as_ref().map_or(&[], |g| g.windows.as_slice()),
            generate: generate_config(self.suite, prepared),
            tokenizer: prepared.formatter.tokenizer(),
            folder: self.folder.join("eval"),
        };
        // Before hours are spent on an adapter that was not applied.
        let adapter = adapter::check(&job, self.folder, sessions, self.observer, self.cancel)?;
        let evaluated = evaluate(job, sessions, self.observer, self.cancel)?;
        let (tokenizer, mut unnamed) = (prepared.formatter.tokenizer(), Unnamed::default());
        for prediction in &evaluated.predictions {
            unnamed.look(tokenizer, &prediction.id, prediction.ids.as_deref().unwrap_or_default());
        }
        let found = [unnamed.warning(), left_over(&subject.name, &evaluated.predictions, tokenizer)];
        found.into_iter().flatten().for_each(|text| self.observer.notice(Notice::Warning(text)));
        Ok((evaluated, adapter, checkpoint))
    }

    fn report(&mut self, prepared: &Prepared, subjects: Vec<Subject>) -> Result<Report> {
        let backend = self.backends.backend(self.suite.eval_backend())?;
        let results = self.folder.join("results");
        let (mut recorded, mut sessions) = (Vec::new(), SessionCache::default());
        for subject in subjects {
            if self.cancel.requested() {
                return Err(Error::interrupted());
            }
            let (evaluated, adapter, checkpoint_sha256) = self.evaluate(&subject, prepared, &backend, &mut sessions)?;
            let Evaluated { predictions, references, beside: general, effort } = evaluated;
            let Subject { name, role, trained, .. } = subject;
            let training = trained.map(|t| RecordedTraining { summary: t.summary, curves: t.curves });
            let one = Recorded {
                name,
                role,
                checkpoint_sha256,
                effort: Some(effort),
                training,
                predictions,
                references,
                general,
                adapter,
            };
            one.write(&results)?;
            let texts = one.predictions.iter().map(|p| (p.id.as_str(), p.text.as_str()));
            if let Some(note) = stray_texts(&one.name, texts, &self.suite.data.think_tags) {
                self.observer.notice(Notice::Warning(note.english));
            }
            recorded.push(one);
        }
        sessions.close();
        let mut plugins = vec![backend];
        if self.suite.model.backend != self.suite.eval_backend() {
            plugins.push(self.backends.backend(&self.suite.model.backend)?);
        }
        let environment = Environment {
            karat: env!("CARGO_PKG_VERSION").into(),
            machine: machine(),
            plugins: plugins.iter().map(plugin).collect(),
            paths: BTreeMap::from([("run".to_string(), self.folder.display().to_string())]),
            notes: self.chosen.clone(),
            ..Environment::default()
        };
        let report = report_recorded(self.suite, prepared, recorded, environment)?;
        let folder = self.folder.join("report");
        report::write(&report, &folder)?;
        self.observer.notice(Notice::Done { name: "report", detail: folder.join("report.html").display().to_string() });
        Ok(report)
    }
}

/// How a suite's items are generated.
pub(super) fn generate_config(suite: &Suite, prepared: &Prepared) -> GenerateConfig {
    let eval = &suite.eval;
    GenerateConfig {
        max_new_tokens: eval.max_new_tokens,
        temperature: eval.temperature,
        top_p: eval.top_p,
        top_k: eval.top_k,
        seed: suite.seed,
        stop_ids: prepared.formatter.stop_ids(),
        batch_size: eval.batch_size,
    }
}
