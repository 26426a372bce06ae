//! A report's own comparisons as JUnit XML: did fine-tuning make anything worse?

use super::{TestCase, TestOutcome, TestSuite, render};
use crate::report::model::{Direction, Report, Verdict};
use crate::report::{coverage, number, tables};

/// One case a comparison and metric that has a direction, class `SUITE.CANDIDATE-vs-BASELINE`:
/// significantly worse is a `failure`, undefined is `skipped`. "No clear difference" passes: only a
/// gate with a margin (`karat check`) says that nothing was lost.
pub fn junit(report: &Report) -> String {
    let suite = &report.suite.name;
    let mut cases = Vec::new();
    for comparison in &report.comparisons {
        for metric in report.metrics.iter().filter(|m| m.direction != Direction::Neutral) {
            let Some(c) = comparison.metrics.get(&metric.name) else { continue };
            let outcome = match c.verdict {
                Verdict::Worse => {
                    let d = tables::difference(metric, c, report.language);
                    let text = format!(
                        "{} of {} is significantly worse than that of {}: difference {}, adjusted p {}, n = {}",
                        metric.name, comparison.candidate, comparison.baseline, d.difference, d.adjusted, d.n
                    );
                    TestOutcome::Failure("worse".into(), text)
                }
                Verdict::Undefined => TestOutcome::Skipped("no item has a value on both sides".into()),
                Verdict::Better | Verdict::Different | Verdict::Unclear => TestOutcome::Pass,
            };
            cases.push(TestCase {
                class: format!("{suite}.{}-vs-{}", comparison.candidate, comparison.baseline),
                name: metric.name.clone(),
                outcome,
            });
        }
    }
    let properties = [
        ("items", number::grouped(report.items.len() as u64)),
        ("data", report.fingerprints.data.clone()),
        ("decoding", report.fingerprints.decoding.clone()),
        ("coverage", coverage(report).unwrap_or_else(|| "complete".to_string())),
    ];
    render(&TestSuite {
        name: format!("karat report {suite}"),
        properties: properties.map(|(name, value)| (name.to_string(), value)).to_vec(),
        cases,
    })
}
