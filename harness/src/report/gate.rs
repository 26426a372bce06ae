//! The gate: is a new report at least as good as a baseline, within a stated margin?
//!
//! A gate is *non-inferiority*, not "p > 0.05": a metric passes if the whole interval of its paired
//! difference lies above minus the margin, regresses if the whole interval lies below, and is
//! inconclusive otherwise: so many items cannot tell. What they could have told stands beside it
//! (the minimum detectable difference), and how many would decide. Texts that did not change, by any
//! metric of any item, pass: they are the baseline's. A model, metric or item that the baseline has and
//! the report has not is a regression; reports of other data, prompts, template or decoding are
//! refused, unless that is allowed by name. What neither side knows (the prompts of texts that were
//! brought along) cannot differ, and is named; a metric that has no value in the baseline (the
//! likelihood of such texts) cannot be lost: it does not count, and is named too.
//!
//! The difference is that of the table's values: of means over the items, or of pooled values where
//! the metric is pooled over tokens or bytes (of means against a baseline of before items carried
//! their weights). Where items share a source, whole sources are drawn, as they are for the
//! report's own comparisons: ten wordings of one question are no ten questions.
//!
//! [`check`] decides; [`text`] writes for people, [`annotations`] for GitHub, [`junit`] for a CI
//! server; [`baseline`] keeps what is compared with; [`test`](fn@test) makes named tests of it for
//! `cargo test`:
//!
//! ```no_run
//! // tests/gate.rs, in a crate with `[[test]] name = "gate"`, `harness = false`
//! fn main() -> std::process::ExitCode {
//!     karat::gate::test(&[karat::gate::Gated::new("medical-r1")])
//! }
//! ```

pub mod annotations;
pub mod baseline;
pub mod junit;
pub mod locate;
mod noise;
mod test;
pub mod text;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::compare::{Mismatch, mismatches, unknown};
use super::model::{Direction, Metric, Report};
use super::significance;
use crate::error::{Error, Result};
use crate::eval::metric::{self, Reads};
use crate::eval::stats::{Gate, MarginVerdict, cluster_count, clustered_non_inferiority, mean, pooled_non_inferiority};
use crate::hub::{Moved, moved};

pub use baseline::Baseline;
pub use locate::Subject;
pub use noise::Noise;
pub use test::{Gated, test};

/// The verdict on one metric of one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// The model.
    pub model: String,
    /// The metric.
    pub metric: String,
    /// The metric's unit, empty for a plain number.
    pub unit: String,
    /// The verdict; a model, metric or item that the baseline has and the report has not is a
    /// regression.
    pub verdict: MarginVerdict,
    /// Mean of the baseline over its items.
    pub baseline: Option<f64>,
    /// Mean of the report over the same items.
    pub value: Option<f64>,
    /// What it rests on; none where something is missing.
    pub gate: Option<Gate>,
    /// Sources of these items, where some share one: whole sources were drawn for the interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<usize>,
    /// By how much each end of the interval was moved out for what is not deterministic; none where
    /// no certificate says it.
    pub allowance: Option<f64>,
    /// What is missing.
    pub missing: Option<String>,
    /// The model answers as the baseline's did: every metric of its texts (or of its likelihoods,
    /// where the metric reads those) has the same value on every item. It passes as the same model;
    /// of shares that happen to be equal alone so few items could not tell.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unchanged: bool,
}

/// All verdicts of a gate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checks {
    /// The worst of all.
    pub verdict: MarginVerdict,
    /// One a model and metric.
    pub checks: Vec<Check>,
    /// Metrics with a direction that no margin is stated for.
    pub ungated: Vec<String>,
    /// Models and metrics, as `model metric`, that the baseline has no value of: nothing can be
    /// lost of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undefined: Vec<String>,
    /// What the two sides differ in although it should be equal, by the leave of whoever checks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed: Vec<Mismatch>,
    /// What should be equal and neither side knows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unchecked: Vec<String>,
    /// Branches and tags of a hub that mean another commit in the report than in the baseline.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moved: Vec<Moved>,
    /// Coverage of the intervals.
    pub confidence: f64,
}

/// How a gate judges.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// Non-inferiority margins by metric, in its unit, over [`default_margin`].
    pub margins: BTreeMap<String, f64>,
    /// What a second run of the same models would change by itself; unless given, what the report's
    /// certificate says, or nothing.
    pub noise: Option<Noise>,
    /// What may differ although it should be equal: names of
    /// [`MUST_BE_EQUAL`](super::compare::MUST_BE_EQUAL).
    pub allow: Vec<String>,
}

/// The margin of a metric that nobody set one for, by its unit: 0.02 nats a token or bits a byte, 2
/// points of a share or percentage. Metrics in other units are only checked with a margin of their
/// own.
pub fn default_margin(unit: &str) -> Option<f64> {
    match unit {
        "nats/token" | "bits/byte" | "share" => Some(0.02),
        "%" => Some(2.0),
        _ => None,
    }
}

/// Metrics that are guarded though they are no headline: a table of overlap can look well while
/// texts are cut off, run in circles, or say the opposite.
pub const GUARDS: [&str; 7] = [
    "truncated",
    "repetition",
    "contradictions",
    "decision",
    "decision_yes_to_no",
    "decision_no_to_yes",
    "decision_undecided",
];

/// What is checked: every model of `baseline` with every headline metric, the [`GUARDS`], and every
/// metric that `rules` name, with its margin.
///
/// # Errors
/// A margin for a metric that the baseline does not have or that has no direction, or below 0; a
/// baseline with nothing to check.
pub fn plan<'a>(baseline: &'a Report, rules: &Rules) -> Result<Vec<(&'a str, &'a Metric, f64)>> {
    for (name, &margin) in &rules.margins {
        let Some(metric) = baseline.metric(name) else {
            return Err(Error::usage(format!("the baseline has no metric `{name}`")).help(format!(
                "its metrics are: {}",
                baseline.metrics.iter().map(|m| m.name.as_str()).collect::<Vec<_>>().join(", ")
            )));
        };
        if metric.direction == Direction::Neutral {
            return Err(Error::usage(format!("`{name}` is neither better high nor low: it cannot regress")));
        }
        if !(margin.is_finite() && margin >= 0.0) {
            return Err(Error::usage(format!("the margin of `{name}` is {margin}; it must be at least 0")));
        }
    }
    let mut planned = Vec::new();
    for model in &baseline.models {
        for metric in &baseline.metrics {
            if let Some(margin) = margin(metric, rules) {
                planned.push((model.name.as_str(), metric, margin));
            }
        }
    }
    if planned.is_empty() {
        return Err(Error::data("the baseline has nothing to check: no model, or no metric with a margin")
            .help("state a margin, for example --margin nll=0.02, or save a baseline with headline metrics"));
    }
    Ok(planned)
}

fn margin(metric: &Metric, rules: &Rules) -> Option<f64> {
    match rules.margins.get(&metric.name) {
        _ if metric.direction == Direction::Neutral => None,
        Some(&margin) => Some(margin),
        None if metric.headline || GUARDS.contains(&metric.name.as_str()) => default_margin(&metric.unit),
        None => None,
    }
}

/// Checks what [`plan`] names: not worse by more than the margin, by the whole interval of
/// the paired difference.
///
/// # Errors
/// Those of [`plan`]; reports of other data, prompts, template or decoding, naming each.
pub fn check(report: &Report, baseline: &Report, rules: &Rules) -> Result<Checks> {
    let planned = plan(baseline, rules)?;
    let allowed = comparable(report, baseline, &rules.allow)?;
    let values = Values { report: by_item(report), baseline: by_item(baseline) };
    let certified = || report.environment.determinism.as_ref().map(Noise::from);
    let noise = rules.noise.or_else(certified);
    let has_value = |model: &str, metric: &Metric| {
        baseline.items.iter().any(|i| i.models.get(model).is_some_and(|values| values.of(&metric.name).is_some()))
    };
    let (planned, undefined): (Vec<_>, Vec<_>) =
        planned.into_iter().partition(|(model, metric, _)| baseline.items.is_empty() || has_value(model, metric));
    let checks: Vec<Check> = planned
        .into_iter()
        .map(|(model, metric, margin)| one((report, baseline), &values, model, metric, margin, noise.as_ref()))
        .collect();
    let ungated = baseline.metrics.iter().filter(|m| m.direction != Direction::Neutral && margin(m, rules).is_none());
    Ok(Checks {
        verdict: checks.iter().map(|c| c.verdict).max().unwrap_or(MarginVerdict::Inconclusive),
        ungated: ungated.map(|m| m.name.clone()).collect(),
        undefined: undefined
            .into_iter()
            .map(|(model, metric, _)| format!("{model} {}", metric.name))
            .chain(unknown_to(baseline, report, rules))
            .collect(),
        allowed,
        unchecked: unknown(baseline, report),
        moved: moved(&baseline.suite.sources, &report.suite.sources),
        checks,
        confidence: baseline.statistics.confidence,
    })
}

/// Metrics that the report has, that would be gated, and that the baseline never had.
fn unknown_to(baseline: &Report, report: &Report, rules: &Rules) -> Vec<String> {
    let gated = |m: &&Metric| m.direction != Direction::Neutral && margin(m, rules).is_some();
    let new = report.metrics.iter().filter(gated).filter(|metric| baseline.metric(&metric.name).is_none());
    let of_models = |metric: &Metric| {
        let models = baseline.models.iter().filter(|model| metric.models.contains_key(&model.name));
        models.map(|model| format!("{} {}", model.name, metric.name)).collect::<Vec<_>>()
    };
    new.flat_map(of_models).collect()
}

/// Whether a report answers what its baseline answered, but for what `allow` names; what that was.
/// Items are no part of this: a missing one fails its checks by name.
fn comparable(report: &Report, baseline: &Report, allow: &[String]) -> Result<Vec<Mismatch>> {
    let found = mismatches(baseline, report).into_iter().filter(|m| m.what != "items");
    let (allowed, differing): (Vec<Mismatch>, Vec<Mismatch>) = found.partition(|m| allow.contains(&m.what));
    if differing.is_empty() {
        return Ok(allowed);
    }
    let list: Vec<String> =
        differing.iter().map(|m| format!("{} ({} against {})", m.what, short(&m.first), short(&m.second))).collect();
    let names: Vec<&str> = differing.iter().map(|m| m.what.as_str()).collect();
    Err(Error::usage(format!("the baseline and the report cannot be compared: they differ in {}", list.join("; "))).help(
        format!(
            "evaluate on the data, prompts and settings of the baseline, make a new one with --bless --reason TEXT, or check all the \
             same with --allow {}",
            names.join(",")
        ),
    ))
}

fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

/// The values of every item by its id.
struct Values<'a> {
    report: BTreeMap<&'a str, &'a super::model::ItemRow>,
    baseline: BTreeMap<&'a str, &'a super::model::ItemRow>,
}

impl Values<'_> {
    /// Whether a model answers as the baseline's did: every value of every metric that reads texts
    /// the same, as many tokens in each, and for a metric that reads likelihoods every likelihood,
    /// up to the last bits of another machine. Values that are all 0 or 1 do not show it.
    fn unchanged(&self, model: &str, metric: &str) -> bool {
        const LAST_BITS: f64 = 1e-6;
        let reads_likelihoods =
            |name: &str| metric::info(name).is_some_and(|m| matches!(m.reads, Reads::Reference | Reads::Options));
        let likelihoods = reads_likelihoods(metric);
        let mut graded = false;
        let same = self.baseline.iter().all(|(id, old)| {
            let Some(old) = old.models.get(model) else { return true };
            let Some(new) = self.report.get(id).and_then(|item| item.models.get(model)) else { return false };
            let mut beside = old.metrics.iter().filter(|(name, _)| reads_likelihoods(name) == likelihoods);
            (likelihoods || old.tokens == new.tokens)
                && beside.all(|(name, before)| match (before, new.metrics.get(name)) {
                    (Some(before), Some(Some(after))) => {
                        graded |= *before != 0.0 && *before != 1.0;
                        (before - after).abs() <= LAST_BITS * before.abs().max(after.abs())
                    }
                    (before, after) => *before == after.copied().flatten(),
                })
        });
        same && graded
    }
}

fn by_item(report: &Report) -> BTreeMap<&str, &super::model::ItemRow> {
    report.items.iter().map(|i| (i.id.as_str(), i)).collect()
}

fn one(
    (report, baseline): (&Report, &Report),
    values: &Values<'_>,
    model: &str,
    metric: &Metric,
    margin: f64,
    noise: Option<&Noise>,
) -> Check {
    let mut check = Check {
        model: model.to_string(),
        metric: metric.name.clone(),
        unit: metric.unit.clone(),
        verdict: MarginVerdict::Regress,
        baseline: None,
        value: None,
        gate: None,
        sources: None,
        allowance: None,
        missing: None,
        unchanged: false,
    };
    if report.model(model).is_none() {
        check.missing = Some(format!("the report has no model `{model}`"));
        return check;
    }
    match report.metric(&metric.name) {
        None => {
            check.missing = Some(format!("the report has no metric `{}`", metric.name));
            return check;
        }
        Some(now) if now.direction != metric.direction || now.unit != metric.unit => {
            check.missing =
                Some(format!("`{}` is another metric in the report: its unit or direction changed", metric.name));
            return check;
        }
        Some(_) => {}
    }
    let value =
        |items: &BTreeMap<&str, &super::model::ItemRow>, id: &str| items.get(id)?.models.get(model)?.of(&metric.name);
    let (mut before, mut after, mut sources, mut absent) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for item in &baseline.items {
        let Some(old) = value(&values.baseline, &item.id) else { continue };
        match value(&values.report, &item.id) {
            Some(new) => {
                before.push(old);
                after.push(new);
                sources.push(source(item, values.report.get(item.id.as_str()).copied()));
            }
            None => absent.push(item.id.as_str()),
        }
    }
    if !absent.is_empty() {
        check.missing = Some(missing_items(&absent, before.len() + absent.len()));
        return check;
    }
    let options = &baseline.statistics;
    let higher = metric.direction == Direction::Higher;
    let (from, to, gate) = match significance::compare_pooled_metric(&metric.name, [&before, &after], &sources, options)
    {
        Some(p) => (p.baseline, p.candidate, pooled_non_inferiority(&p, before.len(), higher, margin, options)),
        // Means of items, or a baseline of before weights were reported.
        None => {
            let (before, after) = (significance::values(&before), significance::values(&after));
            let gate = clustered_non_inferiority(&before, &after, &sources, higher, margin, options);
            (mean(&before), mean(&after), gate)
        }
    };
    check.sources = Some(cluster_count(&sources)).filter(|count| *count < sources.len());
    check.baseline = Some(from).filter(|x| x.is_finite());
    check.value = Some(to).filter(|x| x.is_finite());
    let allowance = noise.map(|noise| noise.allowance(metric, check.value.unwrap_or(0.0)));
    if allowance.is_some_and(f64::is_infinite) {
        check.verdict = MarginVerdict::Inconclusive;
        check.missing = Some("the backend changes texts by itself, which moves this metric without bound".into());
        return check;
    }
    check.allowance = allowance;
    let gate = gate.widened(allowance.unwrap_or(0.0));
    check.unchanged = values.unchanged(model, &metric.name);
    check.verdict = match gate.verdict {
        // One item, or one source, has no spread to resample: whatever it shows, it shows nothing of
        // the next.
        _ if gate.n < 2 || check.sources == Some(1) => MarginVerdict::Inconclusive,
        MarginVerdict::Inconclusive if check.unchanged && allowance.unwrap_or(0.0) <= margin => MarginVerdict::Pass,
        verdict => verdict,
    };
    check.gate = Some(Gate { verdict: check.verdict, ..gate });
    check
}

/// The source of an item, and whether it has a name; an item that shares none is its own. A
/// baseline of before sources were reported has none: the report's are as good, for the items are
/// the same.
fn source<'a>(old: &'a super::model::ItemRow, new: Option<&'a super::model::ItemRow>) -> (bool, &'a str) {
    let shared = old.cluster.as_deref().or_else(|| new?.cluster.as_deref());
    shared.map_or((false, old.id.as_str()), |source| (true, source))
}

/// `the report has no value for 3 of 130 items: a, b, c`.
fn missing_items(ids: &[&str], of: usize) -> String {
    const NAMED: usize = 5;
    let names: Vec<String> = ids.iter().take(NAMED).map(|id| format!("`{id}`")).collect();
    let more = if ids.len() > NAMED { format!(" and {} more", ids.len() - NAMED) } else { String::new() };
    format!("the report has no value for {} of {of} items: {}{more}", ids.len(), names.join(", "))
}
