//! Per-item results as CSV (RFC 4180, line feeds): one row an item and model, one column a metric, full precision.

use super::model::{ItemValues, Report};

/// All items of all models, in the report's order. An undefined value is an empty field.
pub fn items(report: &Report) -> String {
    let mut csv = String::new();
    let fixed = ["id", "model", "thinking", "stop", "tokens", "question"];
    let metrics = report.metrics.iter().map(|m| m.name.as_str());
    row(&mut csv, fixed.into_iter().chain(metrics).map(String::from));
    for item in &report.items {
        for (name, values) in report.models.iter().filter_map(|m| Some((&m.name, item.models.get(&m.name)?))) {
            let (thinking, stop) = states(values);
            let facts = [item.id.clone(), name.clone(), thinking, stop, values.tokens.to_string(), item.question.clone()];
            let metric = |name: &str| values.metrics.get(name).copied().flatten().map_or(String::new(), |v| v.to_string());
            row(&mut csv, facts.into_iter().chain(report.metrics.iter().map(|m| metric(&m.name))));
        }
    }
    csv
}

/// The names that JSON uses.
fn states(values: &ItemValues) -> (String, String) {
    let name = |v: serde_json::Result<serde_json::Value>| match v {
        Ok(serde_json::Value::String(s)) => s,
        _ => String::new(),
    };
    (name(serde_json::to_value(values.thinking)), name(serde_json::to_value(values.stop)))
}

fn row(csv: &mut String, fields: impl Iterator<Item = String>) {
    for (i, field) in fields.enumerate() {
        if i > 0 {
            csv.push(',');
        }
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
