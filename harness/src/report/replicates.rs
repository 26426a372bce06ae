//! Recipes with several seeds: their replicates pooled, and compared over items and seeds.

use super::inputs::{Inputs, ModelResults, finite};
use super::model::{Direction, Metric, RecipeComparison, RecipeMetric, Role};
use super::significance::Weighted;
use crate::error::{Error, Result};
use crate::eval::metric::{self, Corpus};
use crate::eval::stats::{compare_replicated, holm};

/// A side of a comparison: its name and its replicates, at least one.
type Side<'a> = (&'a str, Vec<&'a ModelResults<'a>>);

/// Every recipe against the model that all are compared with, then the pairs of recipes that are
/// wanted; of exactly two recipes the pair without being asked. `values` gives a model's values of
/// a metric by item.
///
/// # Errors
/// Data, for a recipe of a model that is not there.
pub(super) fn compare(
    inputs: &Inputs<'_>,
    runs: &[ModelResults<'_>],
    metrics: &[Metric],
    values: impl Fn(&str, &ModelResults<'_>) -> Vec<Option<Weighted>>,
) -> Result<Vec<RecipeComparison>> {
    let find = |name: &str| {
        let missing = || Error::data(format!("the recipe names `{name}`, which is no model of the report"));
        runs.iter().find(|run| run.0.name == name).ok_or_else(missing)
    };
    let mut recipes: Vec<Side<'_>> = Vec::new();
    for (name, models) in &inputs.recipes {
        recipes.push((name, models.iter().map(|model| find(model)).collect::<Result<_>>()?));
    }
    let of_role = |role: Role| runs.iter().find(|run| run.0.role == role);
    let anchor = of_role(Role::Baseline).or(of_role(Role::Base)).or(runs.first());
    let anchor = anchor.filter(|anchor| recipes.iter().all(|(_, of)| of.iter().all(|run| run.0.name != anchor.0.name)));
    let mut pairs: Vec<(Side<'_>, Side<'_>)> = Vec::new();
    if let Some(anchor) = anchor {
        pairs.extend(recipes.iter().map(|recipe| ((anchor.0.name.as_str(), vec![anchor]), recipe.clone())));
    }
    for (baseline, candidate) in &inputs.recipe_pairs {
        let side = |name: &String| match recipes.iter().find(|(recipe, _)| recipe == name) {
            Some(recipe) => Ok(recipe.clone()),
            None => find(name).map(|run| (run.0.name.as_str(), vec![run])),
        };
        pairs.push((side(baseline)?, side(candidate)?));
    }
    if let ([first, second], true) = (recipes.as_slice(), inputs.recipe_pairs.is_empty()) {
        pairs.push((first.clone(), second.clone()));
    }
    let compared = pairs.iter().map(|(baseline, candidate)| one(baseline, candidate, inputs, metrics, &values));
    let mut compared: Vec<RecipeComparison> = compared.collect::<Result<_>>()?;
    adjust(&mut compared);
    Ok(compared)
}

/// Holm's adjustment over all metrics of all comparisons of recipes.
fn adjust(comparisons: &mut [RecipeComparison]) {
    let metrics = comparisons.iter_mut().flat_map(|comparison| comparison.metrics.values_mut());
    let mut tested: Vec<&mut RecipeMetric> = metrics.filter(|metric| metric.p_value.is_some()).collect();
    let p: Vec<f64> = tested.iter().filter_map(|metric| metric.p_value).collect();
    for (metric, adjusted) in tested.iter_mut().zip(holm(&p)) {
        metric.p_adjusted = Some(adjusted);
    }
}

fn one(
    baseline: &Side<'_>,
    candidate: &Side<'_>,
    inputs: &Inputs<'_>,
    metrics: &[Metric],
    values: &impl Fn(&str, &ModelResults<'_>) -> Vec<Option<Weighted>>,
) -> Result<RecipeComparison> {
    let mut compared: Vec<(&Metric, RecipeMetric)> = Vec::new();
    for metric in metrics.iter().filter(|m| metric::info(&m.name).is_none_or(|m| m.corpus != Corpus::ExpOfPooled)) {
        let of = |side: &Side<'_>| side.1.iter().map(|run| values(&metric.name, run)).collect::<Vec<_>>();
        let (a, b) = (of(baseline), of(candidate));
        // The items that every replicate of both has a value for.
        let all = |i: &usize| a.iter().chain(&b).all(|run| run[*i].is_some());
        let items: Vec<usize> = (0..inputs.items.len()).filter(all).collect();
        if items.is_empty() {
            continue;
        }
        let clusters: Vec<&str> = items.iter().map(|&i| inputs.items[i].cluster.as_str()).collect();
        // A model that exists is what it is: only one that is trained here could have had another seed.
        let trained = [baseline, candidate].map(|side| side.1.iter().any(|run| run.0.training.is_some()));
        let found = compare_replicated(&rows(&a, &items), &rows(&b, &items), trained, &clusters, &inputs.stats)?;
        let c = &found.comparison;
        compared.push((
            metric,
            RecipeMetric {
                n: c.n,
                mean_baseline: c.mean_a,
                mean_candidate: c.mean_b,
                difference: c.difference,
                ci_low: finite(c.ci_low),
                ci_high: finite(c.ci_high),
                p_value: finite(c.p_value),
                p_adjusted: None,
                seed_share: found.seed_share.and_then(finite),
                seed_difference: found.seed_difference.and_then(finite),
                within_seeds: found.within_seeds().filter(|_| metric.direction != Direction::Neutral),
            },
        ));
    }
    Ok(RecipeComparison {
        baseline: baseline.0.into(),
        candidate: candidate.0.into(),
        baseline_seeds: baseline.1.len(),
        candidate_seeds: candidate.1.len(),
        metrics: compared.into_iter().map(|(metric, c)| (metric.name.clone(), c)).collect(),
    })
}

/// A row an item with its value under each replicate; where items weigh, as shares of the whole, so
/// that their mean is the pooled value.
fn rows(runs: &[Vec<Option<Weighted>>], items: &[usize]) -> Vec<Vec<f64>> {
    let total = |run: &Vec<Option<Weighted>>| -> Option<f64> { items.iter().map(|&i| run[i]?.1).sum() };
    let totals: Vec<Option<f64>> = runs.iter().map(total).collect();
    let share = |run: usize, item: usize| {
        let (value, weight) = runs[run][item].unwrap_or((f64::NAN, None));
        match (weight, totals[run]) {
            (Some(weight), Some(total)) if total > 0.0 => value * weight * items.len() as f64 / total,
            _ => value,
        }
    };
    items.iter().map(|&item| (0..runs.len()).map(|run| share(run, item)).collect()).collect()
}
