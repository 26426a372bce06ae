//! Results as CSV (RFC 4180, line feeds), in full precision: a row an item and model, or a row a
//! metric and model.
//!
//! A text that a spreadsheet would take for a formula gets an apostrophe before it (OWASP, "CSV
//! Injection"), numbers stay numbers; control characters other than line breaks and tabs are
//! written out (`\u{1b}`).

use super::escape::legible_lines;
use super::model::{Direction, ItemValues, Report};

/// All items of all models, in the report's order. An undefined value is an empty field.
pub fn items(report: &Report) -> String {
    let mut csv = String::new();
    let fixed = ["id", "model", "thinking", "stop", "tokens", "question"];
    let metrics = report.metrics.iter().map(|m| m.name.as_str());
    row(&mut csv, fixed.into_iter().chain(metrics).map(String::from));
    for item in &report.items {
        for (name, values) in report.models.iter().filter_map(|m| Some((&m.name, item.models.get(&m.name)?))) {
            let (thinking, stop) = states(values);
            let facts = [
                item.id.clone(),
                name.clone(),
                thinking,
                stop,
                values.tokens.map_or(String::new(), |n| n.to_string()),
                item.question.clone(),
            ];
            let metric =
                |name: &str| values.metrics.get(name).copied().flatten().map_or(String::new(), |v| v.to_string());
            row(&mut csv, facts.into_iter().chain(report.metrics.iter().map(|m| metric(&m.name))));
        }
    }
    csv
}

/// The table of results: every metric of every model with its interval, and beside it the paired
/// difference to the model that the others are compared with. What is undefined, or has no
/// comparison, is an empty field.
pub fn metrics(report: &Report) -> String {
    let mut csv = String::new();
    let header = [
        "metric",
        "unit",
        "better",
        "model",
        "value",
        "ci_low",
        "ci_high",
        "n",
        "missing",
        "pooled",
        "best",
        "closed_n",
        "closed_value",
        "unclosed_worst",
        "unclosed_best",
        "against",
        "paired_n",
        "difference",
        "difference_ci_low",
        "difference_ci_high",
        "p_value",
        "p_adjusted",
        "improvement_percent",
        "detectable",
        "verdict",
    ];
    row(&mut csv, header.into_iter().map(String::from));
    let number = |x: Option<f64>| x.map_or(String::new(), |x| x.to_string());
    for metric in &report.metrics {
        let better = match metric.direction {
            Direction::Higher => "higher",
            Direction::Lower => "lower",
            Direction::Neutral => "",
        };
        for (model, value) in report.models.iter().filter_map(|m| Some((&m.name, metric.models.get(&m.name)?))) {
            let mut fields = vec![
                metric.name.clone(),
                metric.unit.clone(),
                better.to_string(),
                model.clone(),
                number(value.value),
                number(value.ci_low),
                number(value.ci_high),
                value.n.to_string(),
                value.missing.to_string(),
                value.pooled.to_string(),
                metric.best.contains(model).to_string(),
                number(value.truncation.map(|b| b.n_completed as f64)),
                number(value.truncation.and_then(|b| b.completed)),
                number(value.truncation.map(|b| b.low)),
                number(value.truncation.map(|b| b.high)),
            ];
            let comparison = report.against_base().into_iter().find(|c| &c.candidate == model);
            match comparison.and_then(|c| Some((c, c.metrics.get(&metric.name)?))) {
                Some((comparison, c)) => fields.extend([
                    comparison.baseline.clone(),
                    c.n.to_string(),
                    number(c.difference),
                    number(c.ci_low),
                    number(c.ci_high),
                    number(c.p_value),
                    number(c.p_adjusted),
                    number(c.improvement_percent),
                    number(c.detectable),
                    name(serde_json::to_value(c.verdict)),
                ]),
                None => fields.resize(header.len(), String::new()),
            }
            row(&mut csv, fields.into_iter());
        }
    }
    csv
}

/// The names that JSON uses.
fn states(values: &ItemValues) -> (String, String) {
    (name(serde_json::to_value(values.thinking)), name(serde_json::to_value(values.stop)))
}

fn name(value: serde_json::Result<serde_json::Value>) -> String {
    match value {
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    }
}

/// `field` as no spreadsheet calculates it.
fn guarded(field: &str) -> String {
    let number = field.chars().all(|c| c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | 'e' | 'E'))
        && field.parse::<f64>().is_ok();
    // Spreadsheets trim what cannot be seen, and those of East Asia read the wide forms as the
    // narrow ones.
    let unseen = |c: char| c.is_whitespace() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}');
    let begins = field.trim_start_matches(unseen).starts_with(['=', '+', '-', '@', '＝', '＋', '－', '＠']);
    let calculates = (begins || field.starts_with(['\t', '\r', '\n'])) && !number;
    format!("{}{}", if calculates { "'" } else { "" }, legible_lines(field))
}

fn row(csv: &mut String, fields: impl Iterator<Item = String>) {
    for (i, field) in fields.enumerate() {
        if i > 0 {
            csv.push(',');
        }
        let field = guarded(&field);
        if field.contains(['"', ',', '\n', '\r']) {
            csv.push('"');
            csv.push_str(&field.replace('"', "\"\""));
            csv.push('"');
        } else {
            csv.push_str(&field);
        }
    }
    csv.push('\n');
}
