//! All that a report is made of, and its values item by item.

use std::collections::BTreeMap;

use crate::backend::{SessionInfo, StepEvent, TrainSummary};
use crate::error::{Error, Result};
use crate::eval::stats::StatsOptions;
use crate::eval::think::ThinkTags;
use crate::eval::{Item, ItemResult, PartScore};

use super::model::*;
use super::number::fixed;
use super::recommend::Priorities;

/// All that a report is made of.
#[derive(Clone, Debug)]
pub struct Inputs<'a> {
    /// The language of its pages.
    pub language: Language,
    /// The experiment.
    pub suite: Suite,
    /// Every seed by purpose.
    pub seeds: BTreeMap<String, u64>,
    /// Hashes of what must be equal for a comparison.
    pub fingerprints: Fingerprints,
    /// Where the items come from.
    pub data: Data,
    /// How texts were generated; none where nobody knows.
    pub decoding: Option<Decoding>,
    /// How intervals and p-values are drawn.
    pub stats: StatsOptions,
    /// The items, in the order of the data.
    pub items: &'a [Item],
    /// The models, in the order of the columns: base, lora, full.
    pub models: Vec<ModelRun>,
    /// Pairs to be compared beside the usual ones: the names of baseline and candidate.
    pub pairs: Vec<(String, String)>,
    /// The metrics, in the order of the rows.
    pub metrics: Vec<MetricInfo>,
    /// Recipes that were trained with several seeds, and the names of their models.
    pub recipes: Vec<(String, Vec<String>)>,
    /// Pairs of recipes, or of a recipe and a model, to be compared beside every recipe with the
    /// baseline.
    pub recipe_pairs: Vec<(String, String)>,
    /// What the suite holds its models to, if it says.
    pub priorities: Option<Priorities>,
    /// Ids of the items shown in full; empty takes [`Inputs::EXAMPLES`] evenly spread over the
    /// data.
    pub examples: Vec<String>,
    /// General texts and their scores, if the suite has any.
    pub general: Option<GeneralText>,
    /// Texts of token ids, as far as they are known.
    pub tokens: BTreeMap<u32, String>,
    /// Overfitting is named when the last evaluation loss is above the best by more than this share
    /// of it.
    pub overfitting_margin: f64,
    /// What the caller found, on top of what `build` finds.
    pub warnings: Vec<Warning>,
    /// What is volatile; `costs` is filled from the models.
    pub environment: Environment,
}

impl Inputs<'_> {
    /// How many items a report shows in full.
    pub const EXAMPLES: usize = 5;
    /// The usual [`Inputs::overfitting_margin`].
    pub const OVERFITTING_MARGIN: f64 = 0.02;
}

/// General texts and what every model finds of them.
#[derive(Clone, Debug)]
pub struct GeneralText {
    /// Where they come from; `rows` are texts.
    pub file: DataFile,
    /// By model name, one score a text, in order. A model that is not named was not asked.
    pub scores: BTreeMap<String, Vec<PartScore>>,
}

/// Results of one model.
#[derive(Clone, Debug)]
pub struct ModelRun {
    /// Unique within the report.
    pub name: String,
    /// Its part.
    pub role: Role,
    /// SHA-256 over its checkpoint's files; empty where nobody knows.
    pub checkpoint_sha256: String,
    /// What it was asked, where that is not what [`Inputs::fingerprints`] say.
    pub fingerprints: Option<Fingerprints>,
    /// What its session said; none of texts that were brought along.
    pub session: Option<SessionInfo>,
    /// Which tags hold its reasoning.
    pub think_tags: ThinkTags,
    /// Its results, in any order; an item without one counts as missing.
    pub items: Vec<ItemResult>,
    /// Its results sample by sample, where every item was answered several times; `items` then holds
    /// their means and the first texts.
    pub samples: Vec<Vec<ItemResult>>,
    /// Corpus values by metric name, for metrics that are pooled over the items. Metrics not named
    /// here are means.
    pub pooled: BTreeMap<String, Pooled>,
    /// How it was trained, if in this run.
    pub training: Option<TrainingRecord>,
    /// What was found of its adapter.
    pub adapter: Option<AdapterCheck>,
    /// What it cost. `device`, `threads` and `kernels` are filled from the session.
    pub cost: Cost,
}

/// A value pooled over the items, with its interval if one was drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pooled {
    /// The value, none where undefined.
    pub value: Option<f64>,
    /// Its interval.
    pub interval: Option<(f64, f64)>,
}

/// Record of a training.
#[derive(Clone, Debug)]
pub struct TrainingRecord {
    /// Every optimizer step.
    pub events: Vec<StepEvent>,
    /// The step of the checkpoint that the model is, if it is known.
    pub step: Option<usize>,
    /// What that was chosen by, if not by the loss.
    pub chosen: Option<ChosenBy>,
    /// Other checkpoints on the way, by rising step.
    pub checkpoints: Vec<CheckpointRecord>,
    /// Evaluations: after which step, mean loss in nats a token.
    pub evaluations: Vec<(usize, f64)>,
    /// Totals.
    pub summary: TrainSummary,
}

/// Results of a checkpoint on the way of a training.
#[derive(Clone, Debug)]
pub struct CheckpointRecord {
    /// After so many optimizer steps.
    pub step: usize,
    /// Its results, in any order.
    pub items: Vec<ItemResult>,
    /// Corpus values, as those of [`ModelRun::pooled`].
    pub pooled: BTreeMap<String, Pooled>,
}

/// Name, unit and titles of a metric.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricInfo {
    /// The name in [`ItemResult::metrics`].
    pub name: String,
    /// What an English table calls it.
    pub title_en: String,
    /// What a Chinese table calls it.
    pub title_zh: String,
    /// Its unit, empty for a plain number.
    pub unit: String,
    /// Which way is better.
    pub direction: Direction,
    /// Decimals in tables.
    pub decimals: usize,
    /// Named in the verdict and drawn in `metrics.svg`.
    pub headline: bool,
}

/// A model with its results by item id.
pub(super) type ModelResults<'a> = (&'a ModelRun, BTreeMap<&'a str, &'a ItemResult>);

/// Every model against the one that they are compared with (the baseline, else the base, else the
/// first), then full against LoRA where there is one of each, then the `wanted` ones.
///
/// # Errors
/// Data, for a wanted pair of a model that is not there.
pub(super) fn pairs(models: &[ModelRun], wanted: &[(String, String)]) -> Result<Vec<(usize, usize)>> {
    let of = |role: Role| models.iter().enumerate().filter(move |(_, m)| m.role == role).map(|(i, _)| i);
    let anchor = of(Role::Baseline).chain(of(Role::Base)).next().or(if models.is_empty() { None } else { Some(0) });
    let mut pairs: Vec<(usize, usize)> =
        anchor.into_iter().flat_map(|a| (0..models.len()).filter(move |&b| b != a).map(move |b| (a, b))).collect();
    let mut push = |pair: (usize, usize)| {
        if !pairs.contains(&pair) && !pairs.contains(&(pair.1, pair.0)) {
            pairs.push(pair);
        }
    };
    let only = |role: Role| of(role).next().filter(|_| of(role).count() == 1);
    if let (Some(lora), Some(full)) = (only(Role::Lora), only(Role::Full)) {
        push((lora, full));
    }
    let find = |name: &String| {
        let missing =
            || Error::data(format!("the pair to be compared names `{name}`, which is no model of the report"));
        models.iter().position(|m| m.name == *name).ok_or_else(missing)
    };
    for (baseline, candidate) in wanted {
        push((find(baseline)?, find(candidate)?));
    }
    Ok(pairs)
}

pub(super) fn finite(x: f64) -> Option<f64> {
    Some(x).filter(|x| x.is_finite())
}

/// The values of `metric` in the order of the items; none where the model has no result or the
/// metric no value.
pub(super) fn values(metric: &str, run: &ModelResults<'_>, items: &[Item]) -> Vec<Option<f64>> {
    items.iter().map(|i| run.1.get(i.id.as_str())?.metrics.get(metric).copied()?.and_then(finite)).collect()
}

/// The models with the best value as it is printed: what a reader sees as equal is not told apart.
pub(super) fn best<'a>(
    direction: Direction,
    decimals: usize,
    order: impl Iterator<Item = &'a str>,
    models: &BTreeMap<String, MetricValue>,
) -> Vec<String> {
    let values: Vec<(&str, f64)> = order.filter_map(|name| Some((name, models.get(name)?.value?))).collect();
    let top = match direction {
        Direction::Higher => values.iter().map(|v| v.1).max_by(f64::total_cmp),
        Direction::Lower => values.iter().map(|v| v.1).min_by(f64::total_cmp),
        Direction::Neutral => None,
    };
    let Some(top) = top.map(|top| fixed(top, decimals)) else { return Vec::new() };
    let (best, rest): (Vec<_>, Vec<_>) = values.into_iter().partition(|v| fixed(v.1, decimals) == top);
    // Where all are equal none stands out.
    if rest.is_empty() { Vec::new() } else { best.into_iter().map(|v| v.0.to_string()).collect() }
}

pub(super) fn example(item: &Item, runs: &[ModelResults<'_>]) -> ItemExample {
    let models = runs
        .iter()
        .filter_map(|(run, results)| {
            let prediction = &results.get(item.id.as_str())?.prediction;
            let parts = run.think_tags.split(&prediction.text);
            let text = ExampleText {
                think: parts.think.trim().to_string(),
                answer: parts.answer.trim().to_string(),
                thinking: parts.state,
                stop: prediction.stop,
            };
            Some((run.name.clone(), text))
        })
        .collect();
    ItemExample {
        id: item.id.clone(),
        question: item.question.clone(),
        think: item.think.trim().to_string(),
        answer: item.answer.trim().to_string(),
        models,
    }
}
