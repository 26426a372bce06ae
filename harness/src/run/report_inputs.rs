//! From recorded results to a report: the inputs that `report::build` takes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::data::format::Format;
use crate::data::notes::Note;
use crate::error::Result;
use crate::eval::ItemResult;
use crate::eval::stats::StatsOptions;
use crate::fsio::sha256;
use crate::hub;
use crate::report::{
    self, BadRow, CheckpointRecord, ChosenBy, Cost, Data, DataFile, Decoding, Environment, Fingerprints, GeneralText,
    Inputs, Language, Leak, ModelRun, Priorities, Report, TrainingRecord, Warning,
};
use crate::run::pipeline::generate_config;
use crate::run::recorded::{Recorded, RecordedCheckpoint};
use crate::run::renderings::fingerprints;
use crate::run::{LoadedBackend, Prepared, metrics};
use crate::suite::{Suite, TrackConfig, VerdictConfig};

/// The results of one model, and the items as it was asked them.
pub(super) struct Measured<'a> {
    /// What it did.
    pub recorded: Recorded,
    /// The items.
    pub prepared: &'a Prepared,
}

/// Makes the report of recorded results, without any model: metrics, statistics, report. The
/// models stand in the order of the suite. `environment` is what is volatile about it.
///
/// # Errors
/// Results that do not belong to the suite's items, a metric that does not exist.
pub fn report_recorded(
    suite: &Suite,
    prepared: &Prepared,
    mut recorded: Vec<Recorded>,
    environment: Environment,
) -> Result<Report> {
    let order: Vec<String> = suite.all_models().into_iter().map(|model| model.name).collect();
    // Stable: models that the suite does not name stay as they are, after the others.
    recorded.sort_by_key(|r| order.iter().position(|name| *name == r.name).unwrap_or(order.len()));
    let measured = recorded.into_iter().map(|recorded| Measured { recorded, prepared });
    report_measured(suite, prepared, measured.collect(), Vec::new(), environment)
}

/// As [`report_recorded`], of models that were not all asked the same; `prepared` is what the suite
/// asks, `warnings` are what the caller found.
///
/// # Errors
/// As [`report_recorded`].
pub(super) fn report_measured(
    suite: &Suite,
    prepared: &Prepared,
    measured: Vec<Measured<'_>>,
    mut warnings: Vec<Warning>,
    environment: Environment,
) -> Result<Report> {
    let unknown: Vec<&str> = measured.iter().filter(|m| m.recorded.brought).map(|m| m.recorded.name.as_str()).collect();
    warnings.extend(brought_along(&unknown, suite.language));
    let notes = measured.iter().flat_map(|m| &m.recorded.notes);
    warnings.extend(notes.map(|note| told(note, suite.language)));
    if measured.iter().any(|m| !m.recorded.brought) {
        warnings.extend(prepared.generation.notes().iter().flatten().map(|note| told(note, suite.language)));
    }
    let general = general_text(prepared, &measured)?;
    let ours = fingerprints(prepared, suite);
    let models = measured.into_iter().map(|m| model_run(m, suite, &ours)).collect::<Result<Vec<_>>>()?;
    let mut inputs = Inputs { general, ..inputs(suite, prepared, models, ours, environment)? };
    inputs.warnings.extend(warnings);
    let mut report = report::build(&inputs)?;
    // No examples named would be some chosen.
    report.examples.truncate(suite.eval.show);
    Ok(report)
}

/// What is said of texts of unknown origin.
pub(super) fn brought_along(names: &[&str], language: Language) -> Option<Warning> {
    if names.is_empty() {
        return None;
    }
    let text = language.pick(
        format!(
            "The texts of {} were brought along: how they were asked and decoded is not known here.",
            names.join(", ")
        ),
        format!("{} 的文本来自外部：其提示与解码方式未知。", names.join(", ")),
    );
    Some(Warning::Other { text })
}

/// The general text and what every model that was asked finds of it.
fn general_text(prepared: &Prepared, measured: &[Measured<'_>]) -> Result<Option<GeneralText>> {
    let Some(texts) = &prepared.general else { return Ok(None) };
    let mut scores = BTreeMap::new();
    for Measured { recorded, prepared, .. } in measured.iter().filter(|m| !m.recorded.general.is_empty()) {
        // In windows of its own tokens.
        let texts = prepared.general.as_ref().unwrap_or(texts);
        scores.insert(recorded.name.clone(), texts.by_text(&recorded.general)?);
    }
    let file =
        DataFile { name: texts.name.clone(), sha256: texts.sha256.clone(), rows: texts.texts as u64, read_as: None };
    Ok(Some(GeneralText { file, scores }))
}

/// Every seed by purpose; of a training with a seed of its own, that one too.
fn seeds(suite: &Suite) -> BTreeMap<String, u64> {
    let mut seeds: BTreeMap<String, u64> =
        ["split", "train", "generate", "statistics"].map(|k| (k.to_string(), suite.seed)).into();
    let models = suite.all_models().into_iter();
    let own = models.filter(|model| model.entry.train.is_some() && model.seed != suite.seed);
    seeds.extend(own.map(|model| (format!("train {}", model.name), model.seed)));
    seeds
}

/// A note as a report's warning.
pub(super) fn told(note: &Note, language: Language) -> Warning {
    let text = match language {
        Language::English => sentence(&note.english),
        Language::Chinese => format!("{}。", note.chinese),
    };
    Warning::Other { text }
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
    fingerprints: Fingerprints,
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
    warnings.extend(prepared.lengths.warnings());
    warnings.extend(prepared.notes.iter().map(|note| told(note, suite.language)));
    let read: BTreeSet<&String> = models.iter().filter_map(|m| m.session.as_ref()).flat_map(|s| &s.warnings).collect();
    warnings.extend(read.into_iter().map(|text| Warning::Other { text: text.clone() }));
    let recipes = suite.recipes();
    let wanted = suite.compare.iter().map(|pair| (pair.baseline.clone(), pair.candidate.clone()));
    let of_recipe = |name: &String| recipes.iter().any(|(recipe, _)| recipe == name);
    let (recipe_pairs, pairs) = wanted.partition(|(baseline, candidate)| of_recipe(baseline) || of_recipe(candidate));
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
            sources: suite.sources.clone(),
        },
        seeds: seeds(suite),
        fingerprints,
        pairs,
        recipe_pairs,
        recipes,
        data: Data {
            files: prepared
                .files
                .iter()
                .map(|file| DataFile {
                    name: file.name.clone(),
                    sha256: file.sha256.clone(),
                    rows: file.rows as u64,
                    read_as: Some(file.read_as.name().to_string()).filter(|_| file.read_as != Format::Columns),
                })
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
                    let place = |p: &crate::data::audit::RowPlace| format!("{} {}", p.split, p.id);
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
        priorities: suite
            .verdict
            .as_ref()
            .map(|VerdictConfig { primary, floors }| Priorities { primary: primary.clone(), floors: floors.clone() }),
        metrics: metrics::describe(&suite.eval.metrics),
        examples: (0..shown).map(|k| items[k * items.len() / shown].id.clone()).collect(),
        general: None,
        tokens,
        overfitting_margin: Inputs::OVERFITTING_MARGIN,
        warnings,
        environment,
    })
}

/// The suite without what is not part of the experiment: where its files lie, and how many threads
/// work.
pub(crate) fn comparable(suite: &Suite) -> Result<String> {
    let mut suite = suite.pinned();
    // An id says what it is, with the commit in it; of a path, the last name does.
    let name = |p: &Path| match hub::is_id(p) {
        true => p.to_path_buf(),
        false => p.file_name().map(PathBuf::from).unwrap_or_default(),
    };
    suite.data.paths_mut().for_each(|path| *path = name(path));
    if let Some(general) = &mut suite.eval.general {
        general.file = name(&general.file);
    }
    suite.model.base = name(&suite.model.base);
    for (_, model) in &mut suite.models.0 {
        [&mut model.path, &mut model.adapter, &mut model.predictions].into_iter().flatten().for_each(|p| *p = name(p));
    }
    suite.model.threads = 0;
    suite.track = TrackConfig::default();
    suite.to_toml()
}

pub(super) fn plugin(loaded: &LoadedBackend) -> report::PluginInfo {
    let descriptor = loaded.backend.describe();
    report::PluginInfo {
        name: descriptor.name,
        version: descriptor.version,
        sha256: loaded.origin.sha256.clone().unwrap_or_default(),
        path: loaded.origin.path.as_ref().map_or_else(String::new, |p| p.display().to_string()),
    }
}

fn model_run(measured: Measured<'_>, suite: &Suite, ours: &Fingerprints) -> Result<ModelRun> {
    let Measured { recorded, prepared } = measured;
    let Recorded {
        name,
        role,
        checkpoint_sha256,
        fingerprints,
        effort,
        disk_bytes,
        training,
        predictions,
        samples,
        references,
        adapter,
        ..
    } = recorded;
    let (names, options) = (&suite.eval.metrics, stats_options(suite));
    let measure = |predictions, references| {
        metrics::measure(&suite.data.think_tags, names, &prepared.items, predictions, references)
    };
    let mut checkpoints = Vec::new();
    for RecordedCheckpoint { step, predictions, references, .. } in training.iter().flat_map(|t| t.checkpoints.clone())
    {
        let items = measure(predictions, references)?;
        let pooled = metrics::pooled(names, &prepared.items, &items, &options);
        checkpoints.push(CheckpointRecord { step, items, pooled });
    }
    let mut samples: Vec<Vec<ItemResult>> =
        samples.into_iter().map(|again| measure(again, references.clone())).collect::<Result<_>>()?;
    let mut results = measure(predictions, references)?;
    if !samples.is_empty() {
        samples.insert(0, results.clone());
        metrics::average(&mut results, &samples);
    }
    let summary = training.as_ref().map(|t| &t.summary);
    Ok(ModelRun {
        name,
        role,
        checkpoint_sha256,
        fingerprints: fingerprints.filter(|theirs| theirs != ours),
        adapter,
        think_tags: suite.data.think_tags.clone(),
        pooled: metrics::pooled(names, &prepared.items, &results, &options),
        items: results,
        samples,
        cost: Cost {
            train_seconds: summary.map(|s| s.seconds),
            score_seconds: effort.as_ref().map(|e| e.score_seconds),
            generate_seconds: effort.as_ref().map(|e| e.generate_seconds),
            generated_tokens: effort.as_ref().map(|e| e.generated_tokens),
            disk_bytes,
            peak_memory: summary.and_then(|s| s.peak_memory).or(effort.as_ref().and_then(|e| e.peak_memory)),
            ..Cost::default()
        },
        session: effort.map(|e| e.session),
        training: training.map(|t| TrainingRecord {
            step: t.step,
            chosen: t.chosen.map(|c| ChosenBy { metric: c.metric, items: c.items, step: c.step, values: c.values }),
            checkpoints,
            events: t.curves.steps,
            evaluations: t.curves.evaluations.iter().map(|e| (e.step, e.loss)).collect(),
            summary: t.summary,
        }),
    })
}

/// How a suite's intervals and p-values are drawn.
fn stats_options(suite: &Suite) -> StatsOptions {
    StatsOptions { seed: suite.seed, resamples: suite.stats.resamples, confidence: suite.stats.confidence }
}
