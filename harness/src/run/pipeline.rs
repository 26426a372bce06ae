//! The whole way of a suite: data, training, evaluation, report.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::backend::{GenerateConfig, Method, OpenConfig, bounded_threads};
use crate::data::companions;
use crate::data::notes::stray_texts;
use crate::data::tokens::Unnamed;
use crate::error::{Error, Result};
use crate::eval::stats::StatsOptions;
use crate::fsio::{self, sha256, sha256_digests, sha256_model};
use crate::report::{
    self, AdapterCheck, BadRow, Cost, Data, DataFile, Decoding, Environment, Fingerprints, GeneralText, Inputs,
    Language, Leak, ModelRun, Report, Role, TrainingRecord, Warning,
};
use crate::run::evaluate::{EvalJob, Evaluated, evaluate};
use crate::run::machine::machine;
use crate::run::recorded::{Recorded, RecordedTraining};
use crate::run::train::{Base, EVALUATE_IT, TrainJob, Trained, plan, train};
use crate::run::{
    Backends, Cancel, LoadedBackend, Notice, Observer, Prepared, Resident, adapter, folder, left, left_over, metrics,
    prepare,
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

/// Carries out `suite` in `folder` and gives the report; what an earlier run left there and still fits is reused.
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
    let mut stages =
        Stages { suite, folder, backends, observer, cancel, threads: 0, base_sha256: None, read: BTreeMap::new() };
    stages.bound_threads();
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
    stages.report(&prepared, subjects)
}

/// Evaluates one model on the suite's held-out items. A model with a tokenizer of its own is asked in its own tokens, under
/// its own template: under the suite's, its numbers would be noise.
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
    let mut suite = suite.clone();
    if has_other_tokenizer(&model, &suite.model.base)? {
        observer.notice(Notice::Warning(format!(
            "{} has a tokenizer of its own: it is asked in its own tokens and template, not in those of the suite's base",
            model.display()
        )));
        suite.model.base = std::path::absolute(&model).map_err(|e| Error::io("resolve", &model, e))?;
    }
    let mut stages = Stages {
        suite: &suite,
        folder,
        backends,
        observer,
        cancel,
        threads: 0,
        base_sha256: None,
        read: BTreeMap::new(),
    };
    stages.bound_threads();
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

impl Stages<'_> {
    /// Says if the suite asks for more threads than make sense here.
    fn bound_threads(&mut self) {
        let (threads, warning) = bounded_threads("model.threads", self.suite.model.threads);
        self.threads = threads;
        warning.into_iter().for_each(|text| self.observer.notice(Notice::Warning(text)));
    }

    /// Says what is wrong with a model that is brought along out of a training's folder: it was changed after the training, or
    /// its adapter belongs to another base.
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

    /// SHA-256 over the files of `folder`, which `subject` is opened from: what training left there, or what it started from,
    /// and still the same.
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
        resident: &mut Resident,
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
        let adapter = adapter::check(&job, self.folder, resident, self.observer, self.cancel)?;
        let evaluated = evaluate(job, resident, self.observer, self.cancel)?;
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
        let (mut recorded, mut resident) = (Vec::new(), Resident::default());
        for subject in subjects {
            if self.cancel.requested() {
                return Err(Error::interrupted());
            }
            let (evaluated, adapter, checkpoint_sha256) = self.evaluate(&subject, prepared, &backend, &mut resident)?;
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
        resident.close();
        let mut plugins = vec![backend];
        if self.suite.model.backend != self.suite.eval_backend() {
            plugins.push(self.backends.backend(&self.suite.model.backend)?);
        }
        let environment = Environment {
            karat: env!("CARGO_PKG_VERSION").into(),
            machine: machine(),
            plugins: plugins.iter().map(plugin).collect(),
            paths: BTreeMap::from([("run".to_string(), self.folder.display().to_string())]),
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
fn generate_config(suite: &Suite, prepared: &Prepared) -> GenerateConfig {
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

/// How a suite's intervals and p-values are drawn.
fn stats_options(suite: &Suite) -> StatsOptions {
    StatsOptions { seed: suite.seed, resamples: suite.stats.resamples, confidence: suite.stats.confidence }
}

/// Makes the report of recorded results, without any model: metrics, statistics, report. `environment` is what is
/// volatile about it.
///
/// # Errors
/// Results that do not belong to the suite's items, a metric that does not exist.
pub fn report_recorded(
    suite: &Suite,
    prepared: &Prepared,
    recorded: Vec<Recorded>,
    environment: Environment,
) -> Result<Report> {
    let general = general_text(prepared, &recorded)?;
    let models = recorded.into_iter().map(|r| model_run(r, suite, prepared)).collect::<Result<Vec<_>>>()?;
    let mut report = report::build(&Inputs { general, ..inputs(suite, prepared, models, environment)? })?;
    // No examples named would be some chosen.
    report.examples.truncate(suite.eval.show);
    Ok(report)
}

/// The general text and what every model that was asked finds of it.
fn general_text(prepared: &Prepared, recorded: &[Recorded]) -> Result<Option<GeneralText>> {
    let Some(texts) = &prepared.general else { return Ok(None) };
    let asked = recorded.iter().filter(|r| !r.general.is_empty());
    let scores = asked.map(|r| Ok((r.name.clone(), texts.by_text(&r.general)?))).collect::<Result<_>>()?;
    let file = DataFile { name: texts.name.clone(), sha256: texts.sha256.clone(), rows: texts.texts as u64 };
    Ok(Some(GeneralText { file, scores }))
}

/// A fragment as a sentence.
fn sentence(fragment: &str) -> String {
    let mut characters = fragment.chars();
    let first: String = characters.next().map(|c| c.to_uppercase().collect()).unwrap_or_default();
    format!("{first}{}.", characters.as_str())
}

fn inputs<'a>(
    suite: &Suite,
    prepared: &'a Prepared,
    models: Vec<ModelRun>,
    environment: Environment,
) -> Result<Inputs<'a>> {
    let generate = generate_config(suite, prepared);
    let options = prepared.formatter.options();
    let file_name = |p: &str| Path::new(p).file_name().map_or(p.to_string(), |n| n.to_string_lossy().into_owned());
    let audit = &prepared.audit;
    let sum =
        |of: fn(&crate::data::audit::SplitAudit) -> usize| audit.splits.values().map(|s| of(s) as u64).sum::<u64>();
    // Evenly spread over the data, so that nobody picked them.
    let (items, shown) = (&prepared.items, prepared.items.len().min(suite.eval.show));
    let mut warnings = Vec::new();
    let dropped = sum(|s| s.dropped.len());
    if dropped > 0 {
        warnings.push(Warning::Dropped { count: dropped });
    }
    warnings.extend(prepared.notes.iter().map(|note| Warning::Other {
        text: match suite.language {
            Language::English => sentence(&note.english),
            Language::Chinese => format!("{}。", note.chinese),
        },
    }));
    let read: BTreeSet<&String> = models.iter().filter_map(|m| m.session.as_ref()).flat_map(|s| &s.warnings).collect();
    warnings.extend(read.into_iter().map(|text| Warning::Other { text: text.clone() }));
    // Only those that were generated: the texts of two models part at one of them.
    let generated: BTreeSet<u32> =
        models.iter().flat_map(|m| &m.items).flat_map(|r| r.prediction.ids.iter().flatten().copied()).collect();
    let text = |id: u32| Some((id, prepared.formatter.tokenizer().text_of(id)?));
    let tokens = generated.into_iter().filter_map(text).collect();
    Ok(Inputs {
        language: suite.language,
        suite: report::Suite {
            name: suite.name.clone(),
            title: suite.title.clone(),
            description: suite.description.clone(),
            sha256: sha256(comparable(suite)?.as_bytes()),
        },
        seeds: ["split", "train", "generate", "statistics"].map(|k| (k.to_string(), suite.seed)).into(),
        fingerprints: Fingerprints {
            data: prepared.data_fingerprint(),
            prompts: prepared.prompts_fingerprint(),
            template: prepared.template_fingerprint(),
            decoding: sha256(generate.deciding().as_bytes()),
        },
        data: Data {
            files: prepared
                .files
                .iter()
                .map(|(name, sha256, rows)| DataFile { name: name.clone(), sha256: sha256.clone(), rows: *rows as u64 })
                .collect(),
            splits: prepared.parts.iter().map(|(name, records)| (name.clone(), records.len() as u64)).collect(),
            split_rule: Some(prepared.split_rule.clone()),
            bad_rows: prepared
                .bad
                .iter()
                .map(|b| BadRow { file: file_name(&b.file), line: b.line as u64, reason: b.reason.clone() })
                .collect(),
            bad_row_count: prepared.bad.len() as u64,
            leaks: audit
                .leaks
                .iter()
                .map(|pair| {
                    let place = |p: &crate::data::audit::Place| format!("{} {}", p.split, p.id);
                    let (first, second) = (place(&pair.first), place(&pair.second));
                    Leak { first, second, similarity: pair.similarity, exact: pair.exact }
                })
                .collect(),
            audit: BTreeMap::from([
                ("duplicates".to_string(), audit.counts.duplicates),
                ("exact_leaks".to_string(), audit.counts.exact_leaks),
                ("near_leaks".to_string(), audit.counts.near_leaks),
                ("truncated_rows".to_string(), sum(|s| s.truncated.len())),
                ("dropped_rows".to_string(), dropped),
            ]),
        },
        decoding: Some(Decoding {
            template: file_name(prepared.formatter.template().origin()),
            enable_thinking: options.enable_thinking,
            max_length: options.max_length,
            generate,
        }),
        stats: stats_options(suite),
        items: &prepared.items,
        models,
        metrics: metrics::describe(&suite.eval.metrics),
        examples: (0..shown).map(|k| items[k * items.len() / shown].id.clone()).collect(),
        general: None,
        tokens,
        overfitting_margin: Inputs::OVERFITTING_MARGIN,
        warnings,
        environment,
    })
}

/// The suite without what is not part of the experiment: where its files lie, and how many threads work.
fn comparable(suite: &Suite) -> Result<String> {
    let mut suite = suite.clone();
    let name = |p: &Path| p.file_name().map(PathBuf::from).unwrap_or_default();
    let data = &mut suite.data;
    for path in [&mut data.file, &mut data.train, &mut data.validation, &mut data.heldout].into_iter().flatten() {
        *path = name(path);
    }
    if let Some(general) = &mut suite.eval.general {
        general.file = name(&general.file);
    }
    suite.model.base = name(&suite.model.base);
    suite.model.threads = 0;
    suite.to_toml()
}

fn plugin(loaded: &LoadedBackend) -> report::Plugin {
    let descriptor = loaded.backend.describe();
    report::Plugin {
        name: descriptor.name,
        version: descriptor.version,
        sha256: loaded.origin.sha256.clone().unwrap_or_default(),
        path: loaded.origin.path.as_ref().map_or_else(String::new, |p| p.display().to_string()),
    }
}

fn model_run(recorded: Recorded, suite: &Suite, prepared: &Prepared) -> Result<ModelRun> {
    let Recorded { name, role, checkpoint_sha256, effort, training, predictions, references, adapter, .. } = recorded;
    let results =
        metrics::measure(&suite.data.think_tags, &suite.eval.metrics, &prepared.items, predictions, references)?;
    let summary = training.as_ref().map(|t| &t.summary);
    Ok(ModelRun {
        name,
        role,
        checkpoint_sha256,
        adapter,
        think_tags: suite.data.think_tags.clone(),
        pooled: metrics::pooled(&suite.eval.metrics, &prepared.items, &results, &stats_options(suite)),
        items: results,
        cost: Cost {
            train_seconds: summary.map(|s| s.seconds),
            score_seconds: effort.as_ref().map(|e| e.score_seconds),
            generate_seconds: effort.as_ref().map(|e| e.generate_seconds),
            generated_tokens: effort.as_ref().map(|e| e.generated_tokens),
            peak_memory: summary.and_then(|s| s.peak_memory).or(effort.as_ref().and_then(|e| e.peak_memory)),
            ..Cost::default()
        },
        session: effort.map(|e| e.session),
        training: training.map(|t| TrainingRecord {
            events: t.curves.steps,
            evaluations: t.curves.evaluations.iter().map(|e| (e.step, e.loss)).collect(),
            summary: t.summary,
        }),
    })
}
