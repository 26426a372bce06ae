//! From an item, its prediction and the reference's log-probabilities to values; from values to a
//! corpus.

use std::collections::BTreeMap;

use super::conformance::Texts;
use super::definition::ItemValue;
use super::sample::Sample;
use super::{Corpus, MetricDef, info, registry};
use crate::Result;
use crate::eval::stats::{Interval, StatsOptions, by_cluster, ratio_interval};
use crate::eval::think::{self, ThinkTags};
use crate::eval::{Item, ItemResult, Prediction, ReferenceScore};

/// The values of the named metrics on one item. `None` is "undefined here": no reference part to
/// compare with, no tokens, no `reference` score given, or an exception in the package that is
/// reproduced.
///
/// # Errors
/// Usage, for a name that is not in the registry, with the names nearest to it.
pub fn evaluate(
    names: &[String],
    item: &Item,
    prediction: &Prediction,
    reference: Option<&ReferenceScore>,
) -> Result<BTreeMap<String, Option<f64>>> {
    evaluate_by(&ThinkTags::default(), names, item, prediction, reference)
}

/// [`evaluate`], with reasoning told from answers by `tags`.
///
/// # Errors
/// As there.
pub fn evaluate_by(
    tags: &ThinkTags,
    names: &[String],
    item: &Item,
    prediction: &Prediction,
    reference: Option<&ReferenceScore>,
) -> Result<BTreeMap<String, Option<f64>>> {
    let sample = Sample::new(tags, item, prediction, reference);
    let full = think::join(&item.think, &item.answer);
    let full = Texts::new(&full, &prediction.text);
    let mut values = BTreeMap::new();
    for name in names {
        let metric = declared(name)?;
        let value = match metric.item {
            ItemValue::Sample(value) => value(&sample),
            ItemValue::Package => full.number(metric.name)?,
        };
        values.insert(name.clone(), value);
    }
    Ok(values)
}

fn declared(name: &str) -> Result<&'static MetricDef> {
    info(name).ok_or_else(|| super::unknown_name(name, registry().iter().map(|metric| metric.name)))
}

/// The corpus value of a metric over items' results, in order; `None` if no item has a value or the
/// metric does not exist.
///
/// Means and sums are taken in the order of the items, so the same items give the same bytes.
pub fn aggregate<'a>(name: &str, results: impl IntoIterator<Item = &'a ItemResult>) -> Option<f64> {
    let (sum, weight) = terms(name, results)?.iter().fold((0.0, 0.0), |(v, w), t| (v + t.0, w + t.1));
    let mean = (weight > 0.0).then(|| sum / weight)?;
    Some(if info(name)?.corpus == Corpus::ExpOfPooled { mean.exp() } else { mean })
}

/// [`aggregate`] with its interval within the metric's range, whole items being drawn, and with them all others of
/// their cluster; `cluster_of` an item's id names it.
pub fn aggregate_with_interval<'a>(
    name: &str,
    results: impl IntoIterator<Item = &'a ItemResult> + Clone,
    cluster_of: impl Fn(&'a str) -> &'a str,
    options: &StatsOptions,
) -> (Option<f64>, Option<Interval>) {
    let value = aggregate(name, results.clone());
    let with_value = results.clone().into_iter().filter(|r| r.metrics.get(name).copied().flatten().is_some());
    let clusters: Vec<&str> = with_value.map(|r| cluster_of(r.prediction.id.as_str())).collect();
    let terms = terms(name, results).map(|terms| by_cluster(clusters.into_iter().zip(terms)));
    let interval = terms.filter(|t| t.len() > 1 && value.is_some()).map(|terms| {
        let Interval { low, high } = ratio_interval(&terms, options);
        let interval = match info(name).map(|m| m.corpus) {
            Some(Corpus::ExpOfPooled) => Interval { low: low.exp(), high: high.exp() },
            _ => Interval { low, high },
        };
        info(name).map_or(interval, |m| m.within_range(interval))
    });
    (value, interval)
}

/// `(value * weight, weight)` of every item that has a value; of [`Corpus::ExpOfPooled`] the
/// value's logarithm.
fn terms<'a>(name: &str, results: impl IntoIterator<Item = &'a ItemResult>) -> Option<Vec<(f64, f64)>> {
    let metric = info(name)?;
    let mut terms = Vec::new();
    for result in results {
        let Some(value) = result.metrics.get(name).copied().flatten() else { continue };
        let weight = if metric.corpus == Corpus::Mean { 1.0 } else { weight(name, result)? };
        let value = if metric.corpus == Corpus::ExpOfPooled { value.ln() } else { value };
        terms.push((value * weight, weight));
    }
    Some(terms)
}

/// What an item weighs in the corpus value of a pooled metric: the scored tokens or bytes of its
/// reference. None for a metric that is a mean of items, and without a scored reference.
pub fn weight(name: &str, result: &ItemResult) -> Option<f64> {
    let metric = info(name)?;
    let part = (metric.part)(result.reference.as_ref()?);
    match metric.corpus {
        Corpus::Mean => None,
        Corpus::PooledByToken | Corpus::ExpOfPooled => Some(part.tokens as f64),
        Corpus::PooledByByte => Some(part.bytes as f64),
    }
}

/// A mean over items of which some were cut off while thinking.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Bounds {
    /// Over all items, the cut-off ones scoring as empty answers.
    pub all: f64,
    /// Over the items whose reasoning was closed; `None` if there are none.
    pub completed: Option<f64>,
    /// Items whose reasoning was closed (or that had none).
    pub n_completed: usize,
    /// Were every cut-off item to score the worst value of the range.
    pub low: f64,
    /// Were every cut-off item to score the best value of the range.
    pub high: f64,
}

/// What truncation can have done to a metric that reads the answer and has a finite range,
/// reasoning being told from answers by `tags`; `None` for others, or if no item has a value.
pub fn bounds<'a>(tags: &ThinkTags, name: &str, results: impl IntoIterator<Item = &'a ItemResult>) -> Option<Bounds> {
    let metric = info(name).filter(|m| m.reads == super::Reads::Answer && m.range.1.is_finite())?;
    let (mut all, mut completed, mut n, mut n_completed) = (0.0, 0.0, 0usize, 0usize);
    for result in results {
        let Some(value) = result.metrics.get(name).copied().flatten() else { continue };
        n += 1;
        all += value;
        if tags.split(&result.prediction.text).is_complete() {
            n_completed += 1;
            completed += value;
        }
    }
    if n == 0 {
        return None;
    }
    let cut_off = (n - n_completed) as f64;
    Some(Bounds {
        all: all / n as f64,
        completed: (n_completed > 0).then(|| completed / n_completed as f64),
        n_completed,
        low: (completed + cut_off * metric.range.0) / n as f64,
        high: (completed + cut_off * metric.range.1) / n as f64,
    })
}
