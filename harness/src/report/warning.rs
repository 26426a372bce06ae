//! Warnings are found in a report's data; [`Warning`] is what they say, `i18n` how.

use super::model::{Comparison, Data, General, Metric, Model, Role, Verdict, Warning};
use crate::eval::metric::{self, Asks};
use crate::eval::think::ThinkState;

/// Below this many items a report says what it cannot see.
const FEW_ITEMS: usize = 300;
/// From this share of texts cut off by the token limit a report warns.
const TRUNCATED_SHARE: f64 = 0.05;

/// All warnings of a report but those of the caller, the grave ones first; of so many items from so
/// many sources.
pub(super) fn find(
    (items, sources): (usize, usize),
    data: &Data,
    models: &[Model],
    metrics: &[Metric],
    comparisons: &[Comparison],
) -> Vec<Warning> {
    let mut found = Vec::new();
    if items == 0 {
        found.push(Warning::NoItems);
    }
    if models.len() == 1 {
        found.push(Warning::OneModel);
    } else if models.iter().all(|m| !matches!(m.role, Role::Base | Role::Baseline)) {
        found.push(Warning::NoBase);
    }
    found.extend(models.iter().filter_map(|model| yes_to_no(&model.name, metrics)));
    found.extend(models.iter().filter_map(overfitting));
    found.extend(models.iter().filter_map(merged_differs));
    found.extend(models.iter().filter_map(truncated));
    for model in models {
        let of_all = |m: &Metric| metric::info(&m.name).is_none_or(|info| info.asks == Asks::Anything);
        let missing = |m: &Metric| {
            Some((m.name.clone(), m.models.get(&model.name)?.missing)).filter(|(_, n)| *n > 0 && of_all(m))
        };
        let metrics: Vec<(String, usize)> = metrics.iter().filter_map(missing).collect();
        if !metrics.is_empty() {
            found.push(Warning::Missing { model: model.name.clone(), metrics, items });
        }
    }
    if data.bad_row_count > 0 {
        found.push(Warning::BadRows { count: data.bad_row_count });
    }
    let count = |name: &str| data.audit.get(name).copied().unwrap_or(0);
    if count("exact_leaks") + count("near_leaks") > 0 {
        found.push(Warning::Leaks { exact: count("exact_leaks"), near: count("near_leaks") });
    }
    if (1..FEW_ITEMS).contains(&items) && !comparisons.is_empty() {
        found.push(Warning::FewItems { items, detectable: detectable(metrics, comparisons) });
    }
    if sources < items {
        found.push(Warning::Clustered { items, sources });
    }
    if items > 0 {
        found.push(Warning::OverlapIsNotCorrectness);
    }
    found
}

fn truncated(model: &Model) -> Option<Warning> {
    let (truncated, items) = (model.truncated?, model.stop_known.unwrap_or(model.items));
    (truncated as f64 >= TRUNCATED_SHARE * items.max(1) as f64).then(|| Warning::Truncated {
        model: model.name.clone(),
        truncated,
        items,
        unclosed: model.thinking.get(&ThinkState::Unclosed).copied().unwrap_or(0).min(truncated),
    })
}

fn yes_to_no(model: &str, metrics: &[Metric]) -> Option<Warning> {
    // A share of items, and of how many.
    let share = |name: &str| {
        let value = metrics.iter().find(|m| m.name == name)?.models.get(model)?;
        Some(((value.value? * value.n as f64).round() as u64, value.n as u64))
    };
    let (count, of) = share("decision_yes_to_no").filter(|(count, _)| *count > 0)?;
    let (undecided, decisions) = share("decision_undecided").unwrap_or_default();
    Some(Warning::YesToNo { model: model.into(), count, of, undecided, decisions })
}

fn overfitting(model: &Model) -> Option<Warning> {
    let training = model.training.as_ref().filter(|t| t.overfitting == Some(true))?;
    let (best, last) = (training.best?, *training.evaluations.last()?);
    Some(Warning::Overfitting {
        model: model.name.clone(),
        best_step: best.step,
        best_loss: best.loss?,
        last_step: last.step,
        last_loss: last.loss?,
    })
}

/// Whether merging takes a notable part of what the adapter does.
fn merged_differs(model: &Model) -> Option<Warning> {
    let check = model.adapter.as_ref()?;
    let merged = check.merged.as_ref()?;
    check.merging_loses().then(|| Warning::MergedDiffers {
        model: model.name.clone(),
        dtype: model.dtype.clone(),
        effect: check.largest_change,
        difference: merged.largest_difference,
        mean_effect: check.mean_change,
        mean_difference: merged.mean_difference,
    })
}

/// Models that lost general text against the base, or against the first model where there is none.
pub(super) fn forgetting(general: &General) -> Vec<Warning> {
    let name = "general_bits_per_byte";
    let Some(metric) = general.metrics.iter().find(|m| m.name == name) else { return Vec::new() };
    let anchor = general.comparisons.first().map(|c| &c.baseline);
    let against = general.comparisons.iter().filter(|c| Some(&c.baseline) == anchor);
    let worse = against.filter(|c| c.metrics.get(name).is_some_and(|m| m.verdict == Verdict::Worse));
    let value = |model: &str| metric.models.get(model)?.value;
    worse
        .filter_map(|c| {
            Some(Warning::Forgetting {
                model: c.candidate.clone(),
                baseline: c.baseline.clone(),
                before: value(&c.baseline)?,
                after: value(&c.candidate)?,
            })
        })
        .collect()
}

fn detectable(metrics: &[Metric], comparisons: &[Comparison]) -> Vec<(String, f64)> {
    let worst = |name: &str| {
        comparisons.iter().filter_map(|c| c.metrics.get(name)?.detectable).max_by(|a: &f64, b| a.total_cmp(b))
    };
    metrics.iter().filter(|m| m.headline).filter_map(|m| Some((m.name.clone(), worst(&m.name)?))).collect()
}
