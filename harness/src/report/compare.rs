//! Models of two reports, compared as if they stood in one: refused where they did not answer the
//! same thing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

use super::model::{Comparison, Fingerprints, Report};
use super::significance::{self, Paired};

/// What must be equal for two reports to be compared, by the names that [`Mismatch::what`] has.
pub const MUST_BE_EQUAL: [&str; 5] = ["data", "prompts", "template", "decoding", "items"];

/// What keeps two reports from being compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mismatch {
    /// One of [`MUST_BE_EQUAL`].
    pub what: String,
    /// In the first report.
    pub first: String,
    /// In the second report.
    pub second: String,
}

/// Everything about which two reports differ that must be equal for a paired comparison; empty if
/// they may be compared. A fingerprint that one of them alone does not know counts as different;
/// one that neither knows is equal as far as anyone can tell ([`unknown`]).
pub fn mismatches(first: &Report, second: &Report) -> Vec<Mismatch> {
    let mut found = differing(&first.fingerprints, &second.fingerprints);
    found.extend(other_items(first, second));
    found
}

/// The same of one model of each report, which may have been asked otherwise than the others of its
/// report.
fn mismatches_of((first, a): (&Report, &str), (second, b): (&Report, &str)) -> Vec<Mismatch> {
    let mut found = differing(first.fingerprints_of(a), second.fingerprints_of(b));
    found.extend(other_items(first, second));
    found
}

/// The fingerprints that are not equal.
pub(crate) fn differing(a: &Fingerprints, b: &Fingerprints) -> Vec<Mismatch> {
    let differ = prints(a, b).into_iter().filter(|(_, a, b)| a != b);
    differ.map(|(what, a, b)| Mismatch { what: what.into(), first: known(a), second: known(b) }).collect()
}

fn other_items(first: &Report, second: &Report) -> Option<Mismatch> {
    let ids = |r: &Report| r.items.iter().map(|i| i.id.clone()).collect::<Vec<_>>();
    let (x, y) = (ids(first), ids(second));
    (x != y).then(|| {
        let differing = x.iter().zip(&y).position(|(a, b)| a != b).unwrap_or(x.len().min(y.len()));
        let describe = |ids: &[String]| match ids.get(differing) {
            Some(id) => format!("{} items, number {} is `{id}`", ids.len(), differing + 1),
            None => format!("{} items", ids.len()),
        };
        Mismatch { what: "items".into(), first: describe(&x), second: describe(&y) }
    })
}

/// What neither of two reports knows of how it came about, and so nobody can check.
pub fn unknown(first: &Report, second: &Report) -> Vec<String> {
    let all = prints(&first.fingerprints, &second.fingerprints).into_iter();
    all.filter(|(_, a, b)| a.is_empty() && b.is_empty()).map(|(what, ..)| what.to_string()).collect()
}

/// The fingerprints of two reports, by name.
pub(super) fn prints<'a>(a: &'a Fingerprints, b: &'a Fingerprints) -> [(&'static str, &'a str, &'a str); 4] {
    [
        ("data", &a.data, &b.data),
        ("prompts", &a.prompts, &b.prompts),
        ("template", &a.template, &b.template),
        ("decoding", &a.decoding, &b.decoding),
    ]
}

fn known(hash: &str) -> String {
    if hash.is_empty() { "unknown".to_string() } else { hash.to_string() }
}

/// Compares the model `candidate` of one report with the model `baseline` of another (or the same),
/// on all metrics that both have.
///
/// # Errors
/// Any of [`mismatches`] that `allow` does not name; a model that is not there; metrics of one name
/// and two directions. What was allowed stands in the comparison. Where the items differ, those
/// present in both are paired.
pub fn compare(baseline: (&Report, &str), candidate: (&Report, &str), allow: &[String]) -> Result<Comparison> {
    let ((first, a), (second, b)) = (baseline, candidate);
    for (report, name) in [baseline, candidate] {
        if report.model(name).is_none() {
            let names: Vec<&str> = report.models.iter().map(|m| m.name.as_str()).collect();
            return Err(Error::usage(format!("there is no model `{name}` in the report of `{}`", report.suite.name))
                .help(format!("its models are: {}", names.join(", "))));
        }
    }
    let (allowed, differing): (Vec<Mismatch>, Vec<Mismatch>) =
        mismatches_of(baseline, candidate).into_iter().partition(|m| allow.contains(&m.what));
    if !differing.is_empty() {
        let list: Vec<String> =
            differing.iter().map(|m| format!("{} ({} against {})", m.what, m.first, m.second)).collect();
        return Err(Error::usage(format!("the two reports cannot be compared: they differ in {}", list.join("; ")))
            .help(format!(
                "evaluate both models on the same data, prompts and settings, or compare them all the same with --allow {}",
                differing.iter().map(|m| m.what.as_str()).collect::<Vec<_>>().join(",")
            )));
    }
    let candidates: BTreeMap<&str, _> =
        second.items.iter().filter_map(|i| Some((i.id.as_str(), i.models.get(b)?))).collect();
    let mut paired = Vec::new();
    for metric in &first.metrics {
        let Some(other) = second.metric(&metric.name) else { continue };
        if other.direction != metric.direction {
            return Err(Error::data(format!("`{}` is better in opposite directions in the two reports", metric.name)));
        }
        paired.push(Paired {
            metric: &metric.name,
            direction: metric.direction,
            baseline: first.items.iter().map(|i| i.models.get(a)?.of(&metric.name)).collect(),
            candidate: first.items.iter().map(|i| candidates.get(i.id.as_str())?.of(&metric.name)).collect(),
            clusters: first.items.iter().map(|i| i.cluster.as_deref().unwrap_or(&i.id)).collect(),
        });
    }
    Ok(Comparison {
        baseline: a.to_string(),
        candidate: b.to_string(),
        metrics: significance::compare(paired, &first.statistics),
        allowed,
    })
}
