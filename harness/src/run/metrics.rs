//! From predictions to the numbers of a report: every metric of every item, and how tables name
//! them.

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::eval::metric::{self, Corpus};
use crate::eval::stats::{self, StatsOptions};
use crate::eval::think::ThinkTags;
use crate::eval::{Item, ItemResult, Prediction, ReferenceScore};
use crate::report::{MetricInfo, Pooled};

/// Every metric of every item, on all cores, in the order of the items; `tags` tell reasoning from
/// answers.
///
/// # Errors
/// A metric that does not exist.
pub fn measure(
    tags: &ThinkTags,
    names: &[String],
    items: &[Item],
    predictions: Vec<Prediction>,
    references: Vec<ReferenceScore>,
) -> Result<Vec<ItemResult>> {
    let mut references: BTreeMap<String, ReferenceScore> = references.into_iter().map(|r| (r.id.clone(), r)).collect();
    let by_id: BTreeMap<&str, &Item> = items.iter().map(|i| (i.id.as_str(), i)).collect();
    let rows: Vec<(Prediction, Option<ReferenceScore>)> =
        predictions.into_iter().map(|p| (references.remove(&p.id), p)).map(|(r, p)| (p, r)).collect();
    rows.into_par_iter()
        .map(|(prediction, reference)| {
            let item = by_id.get(prediction.id.as_str()).ok_or_else(|| {
                Error::data(format!("`{}` is no item of the suite's data", prediction.id))
                    .help("these predictions were made from other data")
            })?;
            let metrics = metric::evaluate_by(tags, names, item, &prediction, reference.as_ref())?;
            Ok(ItemResult { prediction, reference, metrics })
        })
        .collect()
}

/// Makes every value of `results` the mean over `samples`, of which each has the same items: of
/// those samples that have a value.
pub fn average(results: &mut [ItemResult], samples: &[Vec<ItemResult>]) {
    let by_id = |sample: &'_ Vec<ItemResult>| -> BTreeMap<String, usize> {
        sample.iter().enumerate().map(|(at, r)| (r.prediction.id.clone(), at)).collect()
    };
    let places: Vec<BTreeMap<String, usize>> = samples.iter().map(by_id).collect();
    for result in results {
        let id = &result.prediction.id;
        let all: Vec<&ItemResult> =
            samples.iter().zip(&places).filter_map(|(sample, places)| Some(&sample[*places.get(id)?])).collect();
        for (name, value) in &mut result.metrics {
            let values: Vec<f64> = all.iter().filter_map(|r| r.metrics.get(name).copied()?).collect();
            // Equal values stay what they are to the bit.
            if let Some(first) = values.first()
                && values.iter().any(|v| v != first)
            {
                *value = Some(stats::mean(&values));
            }
        }
    }
}

/// The corpus values of metrics that are pooled over the items, with their intervals.
pub fn pooled(
    names: &[String],
    items: &[Item],
    results: &[ItemResult],
    options: &StatsOptions,
) -> BTreeMap<String, Pooled> {
    let clusters: BTreeMap<&str, &str> = items.iter().map(|i| (i.id.as_str(), i.cluster.as_str())).collect();
    let cluster_of = |id| clusters.get(id).copied().unwrap_or(id);
    let is_pooled = |name: &&String| metric::info(name).is_some_and(|m| m.corpus != Corpus::Mean);
    names
        .iter()
        .filter(is_pooled)
        .map(|name| {
            let (value, interval) = metric::aggregate_with_interval(name, results, cluster_of, options);
            (name.clone(), Pooled { value, interval: interval.map(|i| (i.low, i.high)) })
        })
        .collect()
}

/// How the named metrics appear in a report.
pub fn describe(names: &[String]) -> Vec<MetricInfo> {
    names
        .iter()
        .filter_map(|name| {
            let info = metric::info(name)?;
            let [english, chinese] = info.titles;
            Some(MetricInfo {
                name: name.clone(),
                title_en: english.into(),
                title_zh: chinese.into(),
                unit: info.unit.into(),
                direction: info.direction,
                decimals: info.decimals,
                headline: info.headline,
            })
        })
        .collect()
}
