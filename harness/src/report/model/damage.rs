//! Validation of a report that was read, by the key: a report can come from anywhere.

use std::collections::BTreeSet;

use super::{Metric, Report};
use crate::error::{Error, Result};

/// Most decimals that a table can have: more than a double holds.
const MOST_DECIMALS: usize = 17;

/// Refuses what no report that was built here has, and what pages and statistics rely on.
pub(super) fn check(report: &Report, place: &str) -> Result<()> {
    let fail = |key: String, what: String| {
        Err(Error::data(format!("the report is damaged: `{key}`: {what}"))
            .at(place)
            .help("make it again with `karat run` or `karat eval`"))
    };
    if let Some((key, what)) = report.statistics.fault() {
        return fail(format!("statistics.{key}"), what);
    }
    let lists = [
        ("models", twice(report.models.iter().map(|m| m.name.as_str()))),
        ("metrics", twice(report.metrics.iter().map(|m| m.name.as_str()))),
        ("items", twice(report.items.iter().map(|i| i.id.as_str()))),
    ];
    for (key, found) in lists {
        if let Some(name) = found {
            return fail(key.into(), format!("two are called {name:?}"));
        }
    }
    let general = report.general.iter().flat_map(|g| &g.metrics);
    let named = |list: &str, metric: &Metric| format!("{list}.{}.decimals", metric.name);
    let metrics = report.metrics.iter().map(|m| (named("metrics", m), m));
    for (key, metric) in metrics.chain(general.map(|m| (named("general.metrics", m), m))) {
        if metric.decimals > MOST_DECIMALS {
            return fail(key, format!("{} must be at most {MOST_DECIMALS}", metric.decimals));
        }
    }
    match metrics_fault(report).or_else(|| items_fault(report)).or_else(|| comparisons_fault(report)) {
        Some((key, what)) => fail(key, what),
        None => Ok(()),
    }
}

/// What a name that stands nowhere else means.
const NO_MODEL: &str = "no model of the report has this name";
const NO_METRIC: &str = "no metric of the report has this name";

/// A key, and what is wrong there.
type Fault = Option<(String, String)>;

/// The values of metrics that no metric can have, and of models that are not there.
fn metrics_fault(report: &Report) -> Fault {
    for (i, metric) in report.metrics.iter().enumerate() {
        if let Some(best) = metric.best.iter().find(|name| report.model(name).is_none()) {
            return Some((format!("metrics[{i}].best"), format!("{best:?}: {NO_MODEL}")));
        }
        for (name, value) in &metric.models {
            let key = format!("metrics[{i}].models.{name}");
            if report.model(name).is_none() {
                return Some((key, NO_MODEL.into()));
            }
            let (n, missing, items) = (value.n, value.missing, report.items.len());
            if n.checked_add(missing) != Some(items) {
                let what = format!("n = {n} with and missing = {missing} without a value are not the {items} items");
                return Some((key, what));
            }
            for (part, x) in [("value", value.value), ("ci_low", value.ci_low), ("ci_high", value.ci_high)] {
                if let Some(what) = x.and_then(|x| out_of_range(&metric.name, x)) {
                    return Some((format!("{key}.{part}"), what));
                }
            }
            if let (Some(low), Some(high)) = (value.ci_low, value.ci_high)
                && low > high
            {
                return Some((format!("{key}.ci_low"), format!("{low} is above ci_high = {high}")));
            }
        }
    }
    None
}

/// The same of the values of items.
fn items_fault(report: &Report) -> Fault {
    let models: BTreeSet<&str> = report.models.iter().map(|m| m.name.as_str()).collect();
    let metrics: BTreeSet<&str> = report.metrics.iter().map(|m| m.name.as_str()).collect();
    for (i, item) in report.items.iter().enumerate() {
        for (name, values) in &item.models {
            let key = || format!("items[{i}].models.{name}");
            if !models.contains(name.as_str()) {
                return Some((key(), NO_MODEL.into()));
            }
            for (metric, value) in &values.metrics {
                let fault = match metrics.contains(metric.as_str()) {
                    false => Some(NO_METRIC.to_string()),
                    true => value.and_then(|x| out_of_range(metric, x)),
                };
                if let Some(what) = fault {
                    return Some((format!("{}.metrics.{metric}", key()), what));
                }
            }
        }
    }
    None
}

/// The same of comparisons, and probabilities that are none.
fn comparisons_fault(report: &Report) -> Fault {
    for (i, comparison) in report.comparisons.iter().enumerate() {
        for (part, name) in [("baseline", &comparison.baseline), ("candidate", &comparison.candidate)] {
            if report.model(name).is_none() {
                return Some((format!("comparisons[{i}].{part}"), format!("{name:?}: {NO_MODEL}")));
            }
        }
        for (metric, values) in &comparison.metrics {
            let key = format!("comparisons[{i}].metrics.{metric}");
            if report.metric(metric).is_none() {
                return Some((key, NO_METRIC.into()));
            }
            if let (Some(low), Some(high)) = (values.ci_low, values.ci_high)
                && low > high
            {
                return Some((format!("{key}.ci_low"), format!("{low} is above ci_high = {high}")));
            }
            if values.wins.saturating_add(values.losses) > values.n {
                let what =
                    format!("wins = {} and losses = {} are more than n = {}", values.wins, values.losses, values.n);
                return Some((key, what));
            }
            for (part, p) in [("p_value", values.p_value), ("p_adjusted", values.p_adjusted)] {
                if let Some(p) = p.filter(|p| !(0.0..=1.0).contains(p)) {
                    return Some((format!("{key}.{part}"), format!("{p} is no probability")));
                }
            }
        }
    }
    None
}

/// Why a metric cannot have this value; sums are rounded, so that a share may be a hair above 1.
fn out_of_range(metric: &str, x: f64) -> Option<String> {
    let (low, high) = crate::eval::metric::info(metric)?.range;
    let hair = 1e-9 * x.abs().max(1.0);
    (x < low - hair || x > high + hair).then(|| format!("{x} is not from {low} to {high}"))
}

/// The first name that is there twice.
fn twice<'a>(names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut seen = BTreeSet::new();
    names.into_iter().find(|name| !seen.insert(*name))
}

/// The key at a line and column (from 1, in bytes) of a JSON text, as `models[1].truncated`; empty
/// outside of any.
pub(super) fn key_at(text: &str, line: usize, column: usize) -> String {
    let start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    let bytes = text.as_bytes();
    let end = (start + column).min(bytes.len());
    // A closing bracket belongs to the object or list that lacks something; a value's last byte to
    // the value.
    let end = if end > 0 && matches!(bytes[end - 1], b'}' | b']') { end } else { end.saturating_sub(1) };
    let mut stack: Vec<Level> = Vec::new();
    let mut at = 0;
    while at < end {
        match bytes[at] {
            b'{' => stack.push(Level::Object { key: String::new(), named: false }),
            b'[' => stack.push(Level::List(0)),
            b'}' | b']' => drop(stack.pop()),
            b',' => match stack.last_mut() {
                Some(Level::Object { named, .. }) => *named = false,
                Some(Level::List(index)) => *index += 1,
                None => {}
            },
            b'"' => {
                let from = at + 1;
                at += 1;
                while at < end && bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                if let Some(Level::Object { key, named: named @ false }) = stack.last_mut() {
                    *key = String::from_utf8_lossy(&bytes[from..at.min(end)]).into_owned();
                    *named = true;
                }
            }
            _ => {}
        }
        at += 1;
    }
    let mut path = String::new();
    for level in stack {
        match level {
            Level::Object { key, .. } if key.is_empty() => {}
            Level::Object { key, .. } if path.is_empty() => path = key,
            Level::Object { key, .. } => path = format!("{path}.{key}"),
            Level::List(index) => path = format!("{path}[{index}]"),
        }
    }
    path
}

/// An object or a list that is open.
enum Level {
    /// The key last read, and whether it is that of the value that comes.
    Object { key: String, named: bool },
    /// The index of the value that comes.
    List(usize),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_in_a_json_text_is_named_by_its_key() {
        let text = "{\n \"a\": [1, {\"b\\\"c\": {\"d\": 5}}],\n \"e\": \"x\"\n}";
        let of = |needle: &str| {
            let end = text.find(needle).unwrap() + needle.len();
            let line = text[..end].matches('\n').count() + 1;
            key_at(text, line, end - text[..end].rfind('\n').map_or(0, |n| n + 1))
        };
        assert_eq!(of("\"d\": 5"), "a[1].b\\\"c.d");
        assert_eq!(of("[1"), "a[0]");
        assert_eq!(of("\"d\": 5}"), "a[1].b\\\"c", "the object that lacks something");
        assert_eq!(of("\"x\""), "e");
        assert_eq!(key_at("", 1, 0), "");
        assert_eq!(key_at("{", 9, 9), "");
    }
}
