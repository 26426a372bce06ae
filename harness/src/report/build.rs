//! From a run's results to its report: [`build`], a pure function.

use std::collections::{BTreeMap, BTreeSet};

use crate::backend::StopReason;
use crate::data::notes::stray_texts;
use crate::error::{Error, Result};
use crate::eval::stats::cluster_count;
use crate::eval::{Item, ItemResult, metric};

use super::compare::differing;
use super::inputs::{Inputs, MetricInfo, ModelResults, ModelRun, TrainingRecord, best, example, finite, pairs, values};
use super::model::*;
use super::recommend::recommend;
use super::{flips, general, replicates, samples, significance, warning};

/// Makes the report. Pure: the same inputs give the same report.
///
/// # Errors
/// Two models, items or metrics of one name, a model with a result for an unknown item or two for
/// one, an example that is no item.
pub fn build(inputs: &Inputs<'_>) -> Result<Report> {
    check_names("model", inputs.models.iter().map(|m| m.name.as_str()))?;
    check_names("metric", inputs.metrics.iter().map(|m| m.name.as_str()))?;
    check_names("item", inputs.items.iter().map(|i| i.id.as_str()))?;
    let runs =
        inputs.models.iter().map(|m| Ok((m, by_item(m, inputs.items)?))).collect::<Result<Vec<ModelResults<'_>>>>()?;

    let mut models: Vec<Model> = runs.iter().map(|run| model(run, inputs.overfitting_margin)).collect();
    for (model, run) in models.iter_mut().zip(&runs) {
        if let Some(training) = &mut model.training {
            training.checkpoints = checkpoints(run, inputs)?;
        }
    }
    let metrics: Vec<Metric> = inputs.metrics.iter().map(|info| metric(info, &runs, inputs)).collect();
    let pairs = pairs(&inputs.models, &inputs.pairs)?;
    let comparisons: Vec<Comparison> =
        pairs.iter().map(|&(a, b)| compare(&runs[a], &runs[b], &metrics, inputs)).collect();
    let general = inputs.general.as_ref().map(|texts| general::general(texts, &inputs.models, &pairs, &inputs.stats));
    let shared = shared_clusters(inputs.items);
    let sources = cluster_count(&inputs.items.iter().map(|i| i.cluster.as_str()).collect::<Vec<_>>());
    let mut warnings = inputs.warnings.clone();
    warnings.extend(warning::find((inputs.items.len(), sources), &inputs.data, &models, &metrics, &comparisons));
    // The grave ones stand first, and this one is.
    let forgetting = general.as_ref().map(warning::forgetting).unwrap_or_default();
    let stray = runs.iter().filter_map(|(run, _)| {
        let texts = run.items.iter().map(|r| (r.prediction.id.as_str(), r.prediction.text.as_str()));
        let note = stray_texts(&run.name, texts, &run.think_tags)?;
        Some(Warning::Other { text: inputs.language.pick(note.english, note.chinese) })
    });
    let stray: Vec<Warning> = stray.collect();
    let notes = warnings.iter().position(Warning::is_note).unwrap_or(warnings.len());
    warnings.splice(notes..notes, forgetting.into_iter().chain(stray));

    let recipes = replicates::compare(inputs, &runs, &metrics, |name, run| weighted(name, run, inputs.items))?;
    let recommendation = inputs
        .priorities
        .as_ref()
        .and_then(|priorities| recommend(priorities, &models, &metrics, &comparisons, general.as_ref()));
    let (flips, flipped) = flips::find(&comparisons, inputs, &runs);
    let mut data = inputs.data.clone();
    data.bad_rows.truncate(Data::LISTED_BAD_ROWS);
    data.leaks.truncate(Data::LISTED_LEAKS);
    let mut environment = inputs.environment.clone();
    // A cost of which nothing is known is none.
    let costs = inputs.models.iter().map(|m| (m.name.clone(), cost(m))).filter(|(_, cost)| *cost != Cost::default());
    environment.costs = costs.collect();
    for (name, record) in inputs.models.iter().filter_map(|m| Some((&m.name, m.training.as_ref()?))) {
        let folder = record.summary.last_checkpoint.display().to_string();
        environment.paths.insert(format!("checkpoint {name}"), folder);
    }

    Ok(Report {
        schema_version: SCHEMA_VERSION,
        language: inputs.language,
        suite: inputs.suite.clone(),
        seeds: inputs.seeds.clone(),
        fingerprints: inputs.fingerprints.clone(),
        data,
        decoding: inputs.decoding.clone(),
        statistics: inputs.stats.clone(),
        samples: samples::samples(inputs)?,
        recipes,
        recommendation,
        general,
        flips,
        flipped,
        items: inputs.items.iter().map(|item| item_row(item, &shared, &runs)).collect(),
        examples: examples(inputs, &runs)?,
        models,
        metrics,
        comparisons,
        warnings,
        environment,
    })
}

/// Sources of more than one item.
fn shared_clusters(items: &[Item]) -> BTreeSet<&str> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for item in items {
        *counts.entry(item.cluster.as_str()).or_default() += 1;
    }
    counts.into_iter().filter(|(_, n)| *n > 1).map(|(cluster, _)| cluster).collect()
}

fn check_names<'a>(what: &str, names: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(Error::data(format!("two {what}s of a report are called `{name}`"))
                .help(format!("give every {what} a name of its own")));
        }
    }
    Ok(())
}

/// The metrics of a training's checkpoints, the model itself among them; none of one alone.
fn checkpoints(run: &ModelResults<'_>, inputs: &Inputs<'_>) -> Result<Vec<CheckpointValues>> {
    let Some(record) = run.0.training.as_ref().filter(|record| !record.checkpoints.is_empty()) else {
        return Ok(Vec::new());
    };
    let values = |step: usize, run: &ModelResults<'_>| CheckpointValues {
        step,
        metrics: inputs.metrics.iter().map(|m| (m.name.clone(), metric_value(&m.name, run, inputs))).collect(),
    };
    let mut all: Vec<CheckpointValues> = record.step.map(|step| values(step, run)).into_iter().collect();
    for checkpoint in &record.checkpoints {
        let other = ModelRun { items: checkpoint.items.clone(), pooled: checkpoint.pooled.clone(), ..run.0.clone() };
        let by_item = by_item(&other, inputs.items)?;
        all.push(values(checkpoint.step, &(&other, by_item)));
    }
    all.sort_by_key(|checkpoint| checkpoint.step);
    Ok(all)
}

fn by_item<'a>(run: &'a ModelRun, items: &[Item]) -> Result<BTreeMap<&'a str, &'a ItemResult>> {
    let known: BTreeSet<&str> = items.iter().map(|i| i.id.as_str()).collect();
    let mut results = BTreeMap::new();
    for result in &run.items {
        let id = result.prediction.id.as_str();
        if !known.contains(id) {
            return Err(Error::data(format!("`{id}` is no item of the report's data"))
                .at(format!("predictions of `{}`", run.name))
                .help("these predictions were made from other data: evaluate the model on this data first"));
        }
        if results.insert(id, result).is_some() {
            return Err(Error::data(format!("two predictions for `{id}`")).at(format!("predictions of `{}`", run.name)));
        }
    }
    Ok(results)
}

/// The same with what each item weighs, if the metric is pooled.
fn weighted(name: &str, run: &ModelResults<'_>, items: &[Item]) -> Vec<Option<significance::Weighted>> {
    let weight = |item: &Item| metric::weight(name, run.1.get(item.id.as_str())?);
    values(name, run, items).into_iter().zip(items).map(|(v, item)| Some((v?, weight(item)))).collect()
}

fn model((run, results): &ModelResults<'_>, margin: f64) -> Model {
    let mut thinking = BTreeMap::new();
    for result in results.values() {
        *thinking.entry(run.think_tags.split(&result.prediction.text).state).or_insert(0) += 1;
    }
    let session = run.session.as_ref();
    let stops: Vec<StopReason> = results.values().filter_map(|r| r.prediction.stop).collect();
    Model {
        name: run.name.clone(),
        role: run.role,
        checkpoint_sha256: run.checkpoint_sha256.clone(),
        fingerprints: run.fingerprints.clone(),
        parameters: session.map(|s| s.parameters),
        adapter_parameters: session.map(|s| s.adapter_parameters),
        trainable_parameters: run.training.as_ref().map(|t| t.summary.trainable_parameters),
        dtype: session.map_or_else(String::new, |s| s.dtype.to_string()),
        items: results.len(),
        thinking,
        truncated: (!stops.is_empty()).then(|| stops.iter().filter(|s| **s != StopReason::Stop).count()),
        stop_known: Some(stops.len()).filter(|known| *known < results.len()),
        training: run.training.as_ref().map(|record| training(record, margin)),
        adapter: run.adapter.clone(),
    }
}

fn training(record: &TrainingRecord, margin: f64) -> Training {
    let evaluations: Vec<Evaluation> =
        record.evaluations.iter().map(|&(step, loss)| Evaluation { step, loss: finite(loss) }).collect();
    let best = evaluations
        .iter()
        .copied()
        .filter(|e| e.loss.is_some())
        .min_by(|a, b| a.loss.unwrap_or(f64::MAX).total_cmp(&b.loss.unwrap_or(f64::MAX)));
    // A last loss that is not a number is the worst there is.
    let last = evaluations.last().map(|e| e.loss.unwrap_or(f64::INFINITY));
    let overfitting = match (best.and_then(|b| b.loss), last) {
        (Some(best), Some(last)) => Some(last > best * (1.0 + margin)),
        _ => None,
    };
    let folder = |p: &std::path::Path| Some(p.file_name()?.to_string_lossy().into_owned());
    Training {
        steps: record.summary.steps,
        tokens: record.summary.tokens,
        curve: record
            .events
            .iter()
            .map(|e| CurvePoint {
                step: e.step,
                epoch: e.epoch,
                loss: finite(e.loss),
                learning_rate: finite(e.learning_rate),
                grad_norm: finite(e.grad_norm),
            })
            .collect(),
        evaluations,
        best,
        best_checkpoint: record.summary.best_checkpoint.as_deref().and_then(folder),
        chosen: record.chosen.clone(),
        checkpoints: Vec::new(),
        overfitting,
    }
}

fn metric(info: &MetricInfo, runs: &[ModelResults<'_>], inputs: &Inputs<'_>) -> Metric {
    let models: BTreeMap<String, MetricValue> =
        runs.iter().map(|run| (run.0.name.clone(), metric_value(&info.name, run, inputs))).collect();
    Metric {
        name: info.name.clone(),
        title_en: info.title_en.clone(),
        title_zh: info.title_zh.clone(),
        unit: info.unit.clone(),
        direction: info.direction,
        decimals: info.decimals,
        headline: info.headline,
        signature: metric::signature(&info.name),
        best: best(
            info.direction,
            info.decimals,
            runs.iter().filter(|run| !silent(&info.name, run, inputs.items)).map(|r| r.0.name.as_str()),
            &models,
        ),
        models,
    }
}

/// The value of a metric over all items of a model.
fn metric_value(name: &str, run: &ModelResults<'_>, inputs: &Inputs<'_>) -> MetricValue {
    let values = values(name, run, inputs.items);
    let with_value = values.iter().zip(inputs.items).filter_map(|(v, item)| Some(((*v)?, item.cluster.as_str())));
    let (present, clusters): (Vec<f64>, Vec<&str>) = with_value.unzip();
    let pooled = run.0.pooled.get(name);
    let (value, interval) = match pooled {
        Some(p) => (p.value.and_then(finite), p.interval),
        None => match significance::mean_interval(&present, &clusters, &inputs.stats) {
            Some((mean, interval)) => (Some(mean), interval),
            None => (None, None),
        },
    };
    MetricValue {
        value,
        pooled: pooled.is_some(),
        n: present.len(),
        missing: values.len() - present.len(),
        ci_low: interval.and_then(|i| finite(i.0)),
        ci_high: interval.and_then(|i| finite(i.1)),
        truncation: truncation(name, run, inputs.items),
    }
}

/// Whether a metric counts wrong decisions and the model decided nothing: it made no error because
/// it gave no answer.
fn silent(name: &str, run: &ModelResults<'_>, items: &[Item]) -> bool {
    metric::info(name).is_some_and(|info| info.asks == metric::Asks::WrongDecision) && {
        let undecided = values("decision_undecided", run, items);
        undecided.iter().any(Option::is_some) && undecided.iter().flatten().all(|value| *value == 1.0)
    }
}

/// What unclosed reasoning can have done to a metric of answers; none where all of it was closed.
fn truncation(name: &str, (run, results): &ModelResults<'_>, items: &[Item]) -> Option<metric::Bounds> {
    let valued = |r: &&ItemResult| r.metrics.get(name).copied().flatten().is_some_and(f64::is_finite);
    let valued: Vec<&ItemResult> =
        items.iter().filter_map(|i| results.get(i.id.as_str()).copied()).filter(valued).collect();
    metric::bounds(&run.think_tags, name, valued.iter().copied()).filter(|b| b.n_completed < valued.len())
}

fn compare(
    baseline: &ModelResults<'_>,
    candidate: &ModelResults<'_>,
    metrics: &[Metric],
    inputs: &Inputs<'_>,
) -> Comparison {
    let paired = metrics
        .iter()
        .map(|metric| significance::Paired {
            metric: &metric.name,
            direction: metric.direction,
            baseline: weighted(&metric.name, baseline, inputs.items),
            candidate: weighted(&metric.name, candidate, inputs.items),
            clusters: inputs.items.iter().map(|i| i.cluster.as_str()).collect(),
        })
        .collect();
    Comparison {
        baseline: baseline.0.name.clone(),
        candidate: candidate.0.name.clone(),
        metrics: significance::compare(paired, &inputs.stats),
        allowed: {
            let of = |run: &ModelResults<'_>| run.0.fingerprints.clone().unwrap_or_else(|| inputs.fingerprints.clone());
            differing(&of(baseline), &of(candidate))
        },
    }
}

fn item_row(item: &Item, shared: &BTreeSet<&str>, runs: &[ModelResults<'_>]) -> ItemRow {
    let models = runs
        .iter()
        .filter_map(|(run, results)| {
            let result = results.get(item.id.as_str())?;
            let values = ItemValues {
                thinking: run.think_tags.split(&result.prediction.text).state,
                stop: result.prediction.stop,
                tokens: result.prediction.ids.as_ref().map(Vec::len),
                metrics: result.metrics.iter().map(|(k, v)| (k.clone(), v.and_then(finite))).collect(),
                weights: result.metrics.keys().filter_map(|k| Some((k.clone(), metric::weight(k, result)?))).collect(),
            };
            Some((run.name.clone(), values))
        })
        .collect();
    let cluster = Some(item.cluster.clone()).filter(|c| shared.contains(c.as_str()));
    ItemRow { id: item.id.clone(), question: item.question.clone(), cluster, models }
}

fn examples(inputs: &Inputs<'_>, runs: &[ModelResults<'_>]) -> Result<Vec<ItemExample>> {
    let chosen: Vec<&Item> = if inputs.examples.is_empty() {
        // Evenly spread over the data, so that nobody picked them.
        let (n, shown) = (inputs.items.len(), inputs.items.len().min(Inputs::EXAMPLES));
        (0..shown).map(|k| &inputs.items[k * n / shown]).collect()
    } else {
        let find = |id: &String| {
            inputs.items.iter().find(|i| &i.id == id).ok_or_else(|| {
                Error::usage(format!("the example `{id}` is no item of the data"))
                    .help("name ids of held-out items, or none to have them chosen")
            })
        };
        inputs.examples.iter().map(find).collect::<Result<_>>()?
    };
    Ok(chosen.into_iter().map(|item| example(item, runs)).collect())
}

fn cost(run: &ModelRun) -> Cost {
    let (record, session) = (run.training.as_ref(), run.session.as_ref());
    // Nobody knows how many there are, where one text's are unknown.
    let tokens = || run.items.iter().map(|i| Some(i.prediction.ids.as_ref()?.len() as u64)).sum();
    Cost {
        train_seconds: run.cost.train_seconds.or(record.map(|t| t.summary.seconds)),
        peak_memory: run.cost.peak_memory.or(record.and_then(|t| t.summary.peak_memory)),
        generated_tokens: run.cost.generated_tokens.or_else(tokens),
        device: session.map_or_else(String::new, |s| s.device.clone()),
        threads: session.map(|s| s.threads),
        kernels: session.map_or_else(Vec::new, |s| s.kernels.clone()),
        ..run.cost.clone()
    }
}
