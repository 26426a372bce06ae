//! The gate: is a new report at least as good as a baseline, within a stated margin?

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::compare::mismatches;
use super::model::{Direction, Metric, Report};
use crate::error::{Error, Result};
use crate::eval::stats::{Gate, Verdict, non_inferiority};

/// The verdict on one metric of one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// The model.
    pub model: String,
    /// The metric.
    pub metric: String,
    /// The verdict; a model, metric or item that the baseline has and the report has not is a regression.
    pub verdict: Verdict,
    /// What it rests on; none where something is missing.
    pub gate: Option<Gate>,
    /// What is missing.
    pub missing: Option<String>,
}

/// All verdicts of a gate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checks {
    /// The worst of all.
    pub verdict: Verdict,
    /// One a model and metric.
    pub checks: Vec<Check>,
}

/// The margin of a metric that nobody set one for, by its unit: 0.02 nats a token or bits a byte, 2 points of a share
/// or percentage. Metrics in other units are only checked with a margin of their own.
pub fn default_margin(unit: &str) -> Option<f64> {
    match unit {
        "nats/token" | "bits/byte" | "share" => Some(0.02),
        "%" => Some(2.0),
        _ => None,
    }
}

/// Checks every model and headline metric of `baseline` in `report`, and every metric that `margins` names: not worse by
/// more than the margin, by the whole bootstrap interval of the paired difference.
///
/// # Errors
/// Reports of other data, prompts, template or decoding; a margin for a metric that the baseline does not have, or below 0.
pub fn check(report: &Report, baseline: &Report, margins: &BTreeMap<String, f64>) -> Result<Checks> {
    for (name, &margin) in margins {
        if baseline.metric(name).is_none() {
            return Err(Error::usage(format!("the baseline has no metric `{name}`")));
        }
        if margin.is_nan() || margin < 0.0 {
            return Err(Error::usage(format!("the margin of `{name}` is {margin}; it must be at least 0")));
        }
    }
    let differing: Vec<&str> = mismatches(baseline, report).iter().map(|m| m.what).filter(|w| *w != "items").collect();
    if !differing.is_empty() {
        return Err(Error::usage(format!("the report and its baseline differ in {}", differing.join(", ")))
            .help("evaluate on the data, prompts and settings of the baseline, or make a new baseline"));
    }
    let mut checks = Vec::new();
    for model in &baseline.models {
        for metric in &baseline.metrics {
            let margin = match margins.get(&metric.name) {
                Some(&margin) => Some(margin),
                None if metric.headline => default_margin(&metric.unit),
                None => None,
            };
            if let Some(margin) = margin.filter(|_| metric.direction != Direction::Neutral) {
                checks.push(one(report, baseline, &model.name, metric, margin));
            }
        }
    }
    let verdict = checks.iter().map(|c| c.verdict).max().unwrap_or(Verdict::Inconclusive);
    Ok(Checks { verdict, checks })
}

fn one(report: &Report, baseline: &Report, model: &str, metric: &Metric, margin: f64) -> Check {
    let failed = |missing: String| Check {
        model: model.to_string(),
        metric: metric.name.clone(),
        verdict: Verdict::Regress,
        gate: None,
        missing: Some(missing),
    };
    if report.model(model).is_none() {
        return failed(format!("the report has no model `{model}`"));
    }
    if report.metric(&metric.name).is_none() {
        return failed(format!("the report has no metric `{}`", metric.name));
    }
    let value = |r: &Report, id: &str| {
        let item = r.items.iter().find(|i| i.id == id)?;
        item.models.get(model)?.metrics.get(&metric.name).copied().flatten()
    };
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for item in &baseline.items {
        let Some(old) = value(baseline, &item.id) else { continue };
        let Some(new) = value(report, &item.id) else {
            return failed(format!("the report has no value for item `{}`", item.id));
        };
        before.push(old);
        after.push(new);
    }
    let gate = non_inferiority(&before, &after, metric.direction == Direction::Higher, margin, &baseline.statistics);
    Check {
        model: model.to_string(),
        metric: metric.name.clone(),
        verdict: gate.verdict,
        gate: Some(gate),
        missing: None,
    }
}
