//! What a reader should know before believing a number: found in the data, worded elsewhere (`words`).

use serde::{Deserialize, Serialize};

use super::model::{Comparison, Data, General, Metric, Model, Role, Verdict};
use crate::eval::metric::{self, Asks};
use crate::eval::think::ThinkState;

/// Below this many items a report says what it cannot see.
const FEW_ITEMS: usize = 300;
/// From this share of texts cut off by the token limit a report warns.
const TRUNCATED_SHARE: f64 = 0.05;

/// One thing to know, with its numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Warning {
    /// No item was evaluated.
    NoItems,
    /// There is no base model to compare with.
    NoBase,
    /// There is only one model: nothing is compared.
    OneModel,
    /// The evaluation loss rose after its best point.
    Overfitting {
        /// The model.
        model: String,
        /// Step of the lowest evaluation loss.
        best_step: usize,
        /// The lowest loss.
        best_loss: f64,
        /// Step of the last evaluation.
        last_step: usize,
        /// The last loss.
        last_loss: f64,
    },
    /// General text has become significantly less probable than under the model compared with.
    Forgetting {
        /// The model.
        model: String,
        /// The one it is compared with.
        baseline: String,
        /// Bits per byte of the baseline.
        before: f64,
        /// Bits per byte of the model.
        after: f64,
    },
    /// A model says yes where no is right: the dangerous error of a yes-or-no question.
    YesToNo {
        /// The model.
        model: String,
        /// How many.
        count: u64,
        /// Of how many items to be answered with no.
        of: u64,
        /// Yes-or-no items that it does not decide.
        undecided: u64,
        /// Of how many.
        decisions: u64,
    },
    /// Texts were cut off by the token limit.
    Truncated {
        /// The model.
        model: String,
        /// How many.
        truncated: usize,
        /// Of how many of which it is known why they ended.
        items: usize,
        /// Of these, with an unclosed `<think>`: no answer at all.
        unclosed: usize,
    },
    /// Metrics that are undefined for some items, which their table values and comparisons leave out.
    Missing {
        /// The model.
        model: String,
        /// Metric and number of items without a value.
        metrics: Vec<(String, usize)>,
        /// Of how many.
        items: usize,
    },
    /// Merged into the weights and computed in the element type of the run, an adapter is another model than beside them.
    MergedDiffers {
        /// The model.
        model: String,
        /// The element type.
        dtype: String,
        /// Largest effect of the adapter on the log-probability of a token, in nats.
        effect: f64,
        /// Largest difference that merging makes, in nats.
        difference: f64,
        /// Mean effect.
        mean_effect: f64,
        /// Mean difference.
        mean_difference: f64,
    },
    /// Rows of the data could not be used.
    BadRows {
        /// How many.
        count: u64,
    },
    /// Items that also stand in the training data.
    Leaks {
        /// Word for word.
        exact: u64,
        /// Nearly.
        near: u64,
    },
    /// Few items: what could be missed.
    FewItems {
        /// How many.
        items: usize,
        /// Per headline metric, the smallest detectable difference (the largest over the comparisons).
        detectable: Vec<(String, f64)>,
    },
    /// Items share sources: whole sources are drawn.
    Clustered {
        /// How many items.
        items: usize,
        /// How many sources.
        sources: usize,
    },
    /// Overlap metrics do not measure correctness.
    OverlapIsNotCorrectness,
    /// Items whose whole answer fell to the maximum length.
    Dropped {
        /// How many.
        count: u64,
    },
    /// Something the caller found.
    Other {
        /// In the report's language.
        text: String,
    },
}

impl Warning {
    /// Whether it merely informs (and stands below the others).
    pub fn is_note(&self) -> bool {
        matches!(self, Warning::OverlapIsNotCorrectness | Warning::FewItems { .. } | Warning::Clustered { .. })
    }
}

/// All warnings of a report but those of the caller, the grave ones first; of so many items from so many sources.
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
    } else if models.iter().all(|m| m.role != Role::Base) {
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
