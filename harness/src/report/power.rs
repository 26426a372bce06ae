//! What a report's items can tell, and how many would tell more: from the values of its items, pair
//! by pair and metric by metric.
//!
//! ```no_run
//! use karat::report::{Report, power};
//!
//! let report = Report::load("runs/medical-r1/report/report.json".as_ref())?;
//! let asked = power::Question { margins: [("rougeL".to_string(), 0.02)].into(), ..Default::default() };
//! print!("{}", power::text(&power::power(&report, &asked)?));
//! # Ok::<(), karat::Error>(())
//! ```

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::gate::default_margin;
use super::model::{Direction, ItemRow, Metric, Report};
use super::significance::{self, ALPHA, Weighted};
use super::{legible, number};
use crate::error::{Error, Result};
use crate::eval::stats::{Undetectable, adjusted_level, cluster_count};

/// What is asked of a report.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// Non-inferiority margins by metric, in its unit, over [`default_margin`].
    pub margins: BTreeMap<String, f64>,
    /// How often a true difference is to be found, and a model that is as good as its baseline to
    /// pass: above a half and below 1.
    pub power: f64,
    /// The model that all others are compared with; the report's own comparisons where none is
    /// given.
    pub baseline: Option<String>,
}

impl Default for Question {
    /// Four times out of five.
    fn default() -> Self {
        Question { margins: BTreeMap::new(), power: 0.8, baseline: None }
    }
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Power {
    /// As asked.
    pub power: f64,
    /// Coverage of a gate's interval.
    pub confidence: f64,
    /// One a pair and metric.
    pub rows: Vec<Row>,
}

/// One metric of a pair of models.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The model compared with.
    pub baseline: String,
    /// The model in question.
    pub candidate: String,
    /// The metric.
    pub metric: String,
    /// Its unit, empty for a plain number.
    pub unit: String,
    /// Items with a value of both models.
    pub n: usize,
    /// Sources of these items, where some share one. What is needed is then counted in sources.
    pub sources: Option<usize>,
    /// Candidate minus baseline.
    pub difference: f64,
    /// The smallest true difference that these items find so often, at the level of Holm's worst
    /// case over the metrics tested together; none with its reason.
    pub detectable: Option<f64>,
    /// Why none is.
    pub undetectable: Option<Undetectable>,
    /// The margin of a gate, where the metric has one.
    pub margin: Option<f64>,
    /// How many items, or sources, would pass a candidate that is as good as the baseline so often;
    /// none where there is no margin or the values do not vary.
    pub needed_for_margin: Option<u64>,
    /// How many would find a true difference of the size observed so often, at the same level; none
    /// where there is no difference or the values do not vary.
    pub needed_for_difference: Option<u64>,
}

/// What the items of a report can tell of its pairs of models.
///
/// # Errors
/// A margin of a metric that the report has not or that has no direction, or not above 0; a power
/// that is not between a half and 1; a baseline that is no model; a report with nothing to compare.
pub fn power(report: &Report, question: &Question) -> Result<Power> {
    check(report, question)?;
    let pairs: Vec<(&str, &str)> = match &question.baseline {
        Some(base) => {
            report.models.iter().filter(|m| m.name != *base).map(|m| (base.as_str(), m.name.as_str())).collect()
        }
        None => report.comparisons.iter().map(|c| (c.baseline.as_str(), c.candidate.as_str())).collect(),
    };
    if pairs.is_empty() {
        return Err(Error::data("the report compares nothing: it has one model")
            .help("give a report of two models or more: karat compare A B --out DIR"));
    }
    let rows =
        pairs.into_iter().flat_map(|(baseline, candidate)| pair(report, question, baseline, candidate)).collect();
    Ok(Power { power: question.power, confidence: report.statistics.confidence, rows })
}

fn check(report: &Report, question: &Question) -> Result<()> {
    for (name, &margin) in &question.margins {
        let Some(metric) = report.metric(name) else {
            let names: Vec<&str> = report.metrics.iter().map(|m| m.name.as_str()).collect();
            return Err(Error::usage(format!("the report has no metric `{name}`"))
                .help(format!("its metrics are: {}", names.join(", "))));
        };
        if metric.direction == Direction::Neutral {
            return Err(Error::usage(format!("`{name}` is neither better high nor low: it has no margin"))
                .help("leave its margin out"));
        }
        if !(margin.is_finite() && margin > 0.0) {
            return Err(Error::usage(format!("the margin of `{name}` is {margin}; it must be above 0"))
                .help("no number of items shows that two models are equal to the last digit"));
        }
    }
    if !(question.power > 0.5 && question.power < 1.0) {
        return Err(Error::usage(format!("a power of {} must be above 0.5 and below 1", question.power))
            .help("0.8 is usual: four times out of five"));
    }
    match question.baseline.as_deref().filter(|base| report.model(base).is_none()) {
        None => Ok(()),
        Some(base) => {
            let names: Vec<&str> = report.models.iter().map(|m| m.name.as_str()).collect();
            Err(Error::usage(format!("the report has no model `{base}`"))
                .help(format!("its models are: {}", names.join(", "))))
        }
    }
}

/// Both sides' values of a metric on the items that have both, with their sources.
type Sides<'a> = (Vec<Weighted>, Vec<Weighted>, Vec<&'a str>);

fn sides<'a>(items: &'a [ItemRow], metric: &str, baseline: &str, candidate: &str) -> Sides<'a> {
    let mut sides = (Vec::new(), Vec::new(), Vec::new());
    for item in items {
        let value = |model: &str| item.models.get(model)?.of(metric);
        if let (Some(before), Some(after)) = (value(baseline), value(candidate)) {
            sides.0.push(before);
            sides.1.push(after);
            sides.2.push(item.cluster.as_deref().unwrap_or(&item.id));
        }
    }
    sides
}

fn pair(report: &Report, question: &Question, baseline: &str, candidate: &str) -> Vec<Row> {
    let all: Vec<(&Metric, Sides<'_>)> = report
        .metrics
        .iter()
        .map(|metric| (metric, sides(&report.items, &metric.name, baseline, candidate)))
        .filter(|(_, sides)| !sides.0.is_empty())
        .collect();
    // As many as were tested together; with a pair that the report does not compare, those of the
    // pair too.
    let together = report.comparisons.iter().flat_map(|c| c.metrics.values()).filter(|m| m.p_value.is_some()).count();
    let compared = report.comparison(baseline, candidate).or_else(|| report.comparison(candidate, baseline));
    let tested = together + if compared.is_some() { 0 } else { all.len() };
    let level = adjusted_level(ALPHA, tested);
    let directed = all.into_iter().filter(|(metric, _)| metric.direction != Direction::Neutral);
    directed
        .map(|(metric, (before, after, sources))| {
            let (difference, spread) = significance::spread(&metric.name, [&before, &after], &sources);
            let margin = question.margins.get(&metric.name).copied().or_else(|| default_margin(&metric.unit));
            let detectable = spread.detectable(level, question.power, &report.statistics);
            let confidence = report.statistics.confidence;
            Row {
                baseline: baseline.to_string(),
                candidate: candidate.to_string(),
                metric: metric.name.clone(),
                unit: metric.unit.clone(),
                n: sources.len(),
                sources: Some(cluster_count(&sources)).filter(|count| *count < sources.len()),
                difference,
                detectable: detectable.ok(),
                undetectable: detectable.err(),
                margin,
                needed_for_margin: margin.and_then(|m| spread.needed_for_margin(m, confidence, question.power)),
                needed_for_difference: spread.needed(difference, level, question.power),
            }
        })
        .collect()
}

/// The table, for a terminal.
pub fn text(power: &Power) -> String {
    let percent = number::fixed(100.0 * power.power, 0);
    let header = ["metric", "n", "difference", "detectable", "margin", "needed for margin", "needed for difference"];
    let mut text = String::new();
    let mut pairs: Vec<(&str, &str)> = Vec::new();
    for row in &power.rows {
        if pairs.last() != Some(&(&row.baseline, &row.candidate)) {
            pairs.push((&row.baseline, &row.candidate));
        }
    }
    for (baseline, candidate) in pairs {
        let mut reasons: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let _ = writeln!(text, "{} against {}\n", legible(candidate), legible(baseline));
        let mut rows = vec![header.map(String::from)];
        for row in power.rows.iter().filter(|r| r.baseline == baseline && r.candidate == candidate) {
            if let Some(reason) = row.undetectable {
                reasons.entry(why(reason)).or_default().push(legible(&row.metric));
            }
            rows.push(cells(row));
        }
        let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
        for row in &rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let pad = " ".repeat(width(column) - cell.chars().count());
                let cell = if column == 0 { format!("{cell}{pad}") } else { format!("  {pad}{cell}") };
                line.push_str(&cell);
            }
            let _ = writeln!(text, "{}", line.trim_end());
        }
        for (reason, metrics) in reasons {
            let _ = writeln!(text, "nothing is detectable of {}: {reason}", metrics.join(", "));
        }
        text.push('\n');
    }
    let _ = writeln!(
        text,
        "detectable: the smallest true difference that these items find {percent} % of the time, whatever other metrics show\n\
         needed for margin: so many pass a model that is as good as its baseline {percent} % of the time\n\
         needed for difference: so many find the difference, if it is as observed, {percent} % of the time"
    );
    text
}

fn cells(row: &Row) -> [String; 7] {
    let number = |x: f64| format!("{x:.4}");
    let needed = |n: Option<u64>| match (n, row.sources) {
        (None, _) => "unknown".to_string(),
        (Some(n), None) => n.to_string(),
        (Some(n), Some(_)) => format!("{n} sources"),
    };
    [
        legible(&row.metric),
        row.sources.map_or(row.n.to_string(), |sources| format!("{} ({sources} sources)", row.n)),
        format!("{:+.4}", row.difference),
        row.detectable.map_or("-".into(), number),
        row.margin.map_or("-".into(), |margin| margin.to_string()),
        if row.margin.is_some() { needed(row.needed_for_margin) } else { "-".into() },
        if row.difference == 0.0 { "-".into() } else { needed(row.needed_for_difference) },
    ]
}

fn why(reason: Undetectable) -> String {
    match reason {
        Undetectable::TooFew { differ, needed } => {
            format!(
                "{differ} items or sources that differ are too few, {needed} are the least of which a test can be sure"
            )
        }
        Undetectable::FewResamples { needed } => {
            format!("the permutation test draws too few sign patterns, {needed} are the least")
        }
        Undetectable::OneSource => "all items are of one source".into(),
        Undetectable::NoSpread => "all items differ by the same".into(),
    }
}
