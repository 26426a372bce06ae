//! The metrics as github-action-benchmark reads them: a JSON array of
//! `{name, unit, value, range, extra}`.
//!
//! The action's tool says for a whole file which way is better (`customSmallerIsBetter`,
//! `customBiggerIsBetter`), so one file holds the metrics of one direction; those without direction
//! are in neither.

use serde_json::{Value, json};

use super::model::{Direction, Report};
use crate::error::{Error, Result};

/// The defined values of the metrics of one direction, by model: `nll / full`.
///
/// # Errors
/// Usage, where no metric has this direction.
pub fn github(report: &Report, better: Direction) -> Result<String> {
    let mut entries = Vec::new();
    for metric in report.metrics.iter().filter(|m| m.direction == better) {
        for model in &report.models {
            let Some(value) = metric.models.get(&model.name) else { continue };
            let Some(number) = value.value else { continue };
            let of = report.items.len();
            let n = if value.n < of { format!("n = {} of {of}", value.n) } else { format!("n = {of}") };
            let mut entry = json!({
                "name": format!("{} / {}", metric.name, model.name),
                "unit": if metric.unit.is_empty() { "score" } else { &metric.unit },
                "value": number,
                "extra": n,
            });
            if let (Some(low), Some(high), Value::Object(fields)) = (value.ci_low, value.ci_high, &mut entry) {
                fields.insert("range".into(), json!(format!("± {:.4}", (high - low) / 2.0)));
                let level = (100.0 * report.statistics.confidence * 1e6).round() / 1e6;
                let interval = format!("{level} % interval [{low:.4}, {high:.4}]");
                fields.insert("extra".into(), json!(format!("{n}\n{interval}")));
            }
            entries.push(entry);
        }
    }
    if entries.is_empty() {
        return Err(Error::usage("the report has no value of a metric that is better in this direction")
            .help("give the other one: --better lower or --better higher"));
    }
    Ok(format!("{:#}\n", Value::Array(entries)))
}
