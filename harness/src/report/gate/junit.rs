//! A gate's verdicts as JUnit XML: a regression is a `failure`, what the items cannot tell an
//! `error`, and so is a gate that could not judge at all.

use super::{Checks, text};
use crate::error::Error;
use crate::eval::stats::MarginVerdict;
use crate::report::junit::{TestCase, TestOutcome, TestSuite, render};
use crate::report::model::Report;

/// The document: one case a model and metric, class `SUITE.MODEL`, named by the metric. `help`
/// stands under every text: the command to bless what is meant.
pub fn junit(checks: &Checks, report: &Report, baseline: &str, help: &str) -> String {
    let suite = &report.suite.name;
    let cases = checks
        .checks
        .iter()
        .map(|check| {
            let words = || format!("{}\n{help}", text::sentence(check, checks.confidence));
            let kind = || text::word(check.verdict).to_string();
            TestCase {
                class: format!("{suite}.{}", check.model),
                name: check.metric.clone(),
                outcome: match check.verdict {
                    MarginVerdict::Pass => TestOutcome::Pass,
                    MarginVerdict::Regress if check.missing.is_some() => {
                        TestOutcome::Failure("missing".into(), words())
                    }
                    MarginVerdict::Regress => TestOutcome::Failure(kind(), words()),
                    MarginVerdict::Inconclusive => TestOutcome::Error(kind(), words()),
                },
            }
        })
        .collect();
    let properties = [
        ("baseline", baseline.to_string()),
        ("verdict", text::word(checks.verdict).to_string()),
        ("data", report.fingerprints.data.clone()),
        ("confidence", checks.confidence.to_string()),
        ("coverage", crate::report::coverage(report).unwrap_or_else(|| "complete".to_string())),
    ];
    render(&TestSuite {
        name: format!("karat check {suite}"),
        properties: properties.map(|(name, value)| (name.to_string(), value)).to_vec(),
        cases,
    })
}

/// The document of a gate that could not judge: reports of another question, no baseline, a broken
/// file. One case, an `error`, so that a CI server does not show the last verdict, or none, for a
/// gate that failed.
pub fn refusal(error: &Error, what: &str, baseline: &str) -> String {
    render(&TestSuite {
        name: format!("karat check {what}"),
        properties: [("baseline", baseline), ("verdict", "not-judged")]
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .to_vec(),
        cases: vec![TestCase {
            class: what.to_string(),
            name: "judged".into(),
            outcome: TestOutcome::Error("not-judged".into(), text::told(error)),
        }],
    })
}
