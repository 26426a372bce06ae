//! Several answers to each item: what sampling adds to the spread, and how often one of k is right.

use std::collections::BTreeMap;

use super::inputs::{Inputs, ModelRun};
use super::model::{SampleValues, Samples};
use crate::error::Result;
use crate::eval::metric::{self, Reads};
use crate::eval::stats::{mean, pass_at_k, sample_spread};

/// The samples of all models that were asked several times; none if no model was.
///
/// # Errors
/// None that values of one shape run into.
pub(super) fn samples(inputs: &Inputs<'_>) -> Result<Option<Samples>> {
    let Some(count) = inputs.models.iter().map(|m| m.samples.len()).max().filter(|n| *n > 1) else { return Ok(None) };
    let mut models = BTreeMap::new();
    for run in inputs.models.iter().filter(|run| run.samples.len() == count) {
        let mut metrics = BTreeMap::new();
        // What the model finds of the references is the same every time.
        let sampled =
            |name: &str| metric::info(name).is_none_or(|m| !matches!(m.reads, Reads::Reference | Reads::Options));
        for info in inputs.metrics.iter().filter(|info| sampled(&info.name)) {
            if let Some(values) = of_metric(&info.name, run)? {
                metrics.insert(info.name.clone(), values);
            }
        }
        models.insert(run.name.clone(), metrics);
    }
    Ok(Some(Samples { count, models }))
}

/// One metric over the items that have a value in every sample; none below two.
fn of_metric(name: &str, run: &ModelRun) -> Result<Option<SampleValues>> {
    let mut by_item: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for result in run.samples.iter().flatten() {
        if let Some(value) = result.metrics.get(name).copied().flatten().filter(|v| v.is_finite()) {
            by_item.entry(&result.prediction.id).or_default().push(value);
        }
    }
    let rows: Vec<Vec<f64>> = by_item.into_values().filter(|values| values.len() == run.samples.len()).collect();
    if rows.len() < 2 {
        return Ok(None);
    }
    let spread = sample_spread(&rows)?;
    let right = |value: f64| metric::info(name).and_then(|m| m.is_right(value));
    let mut pass_at = BTreeMap::new();
    if right(rows[0][0]).is_some() {
        let n = run.samples.len() as u64;
        let counts: Vec<u64> =
            rows.iter().map(|row| row.iter().filter(|v| right(**v) == Some(true)).count() as u64).collect();
        // 1, 2, 4, ... and all.
        let sizes = std::iter::successors(Some(1), |k| Some(k * 2)).take_while(|k| *k < n).chain([n]);
        for k in sizes {
            let each: Vec<f64> = counts.iter().filter_map(|right| pass_at_k(n, *right, k)).collect();
            pass_at.insert(k, mean(&each));
        }
    }
    Ok(Some(SampleValues {
        n: rows.len(),
        mean: spread.mean,
        between_samples: spread.between_samples,
        between_items: spread.between_items,
        pass_at,
    }))
}
