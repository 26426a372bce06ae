//! The cells of the table of checkpoints as plain text, unescaped: Markdown, the page and the
//! command line lay out the same ones.

use super::super::escape::legible;
use super::super::i18n::timeline::{Words, words};
use super::super::number::{self, UNDEFINED, duration, fixed, grouped, signed};
use super::{Entry, Status, Timeline};
use crate::report::Metric;
use crate::report::gate::Check;

/// A checkpoint's row.
pub(super) struct Row<'a> {
    pub entry: &'a Entry,
    pub step: String,
    /// `pass`, `failed`.
    pub verdict: &'static str,
    /// A value and half its interval, by column.
    pub values: Vec<(String, Option<String>)>,
    pub seconds: String,
}

pub(super) fn rows(timeline: &Timeline) -> Vec<Row<'_>> {
    let (words, shown) = (words(timeline.language), timeline.shown());
    let row = |entry| {
        let value = |metric: &&Metric| match Entry::value(entry, metric) {
            Some(value) => (number::value(metric, value), number::plus_minus(metric, value)),
            None => (UNDEFINED.to_string(), None),
        };
        Row {
            step: step(entry),
            verdict: verdict(entry, words),
            values: shown.iter().map(value).collect(),
            seconds: if entry.status == Status::Measured { duration(entry.seconds) } else { UNDEFINED.into() },
            entry,
        }
    };
    timeline.current().into_iter().map(row).collect()
}

impl Entry {
    /// The value of a metric, where the checkpoint has one.
    pub(in crate::report) fn value(&self, metric: &Metric) -> Option<&super::MetricValue> {
        self.metrics.get(&metric.name).filter(|value| value.value.is_some())
    }
}

fn step(entry: &Entry) -> String {
    entry.step.map_or_else(|| UNDEFINED.to_string(), grouped)
}

/// The word for what became of a checkpoint.
pub(super) fn verdict(entry: &Entry, words: &Words) -> &'static str {
    match (entry.status, entry.verdict) {
        (Status::Failed, _) => words.failed,
        (Status::Vanished, _) => words.vanished,
        (_, Some(verdict)) => words.verdict(verdict),
        (_, None) => words.unjudged,
    }
}

/// The baseline's row: its values by column.
pub(super) fn baseline(timeline: &Timeline) -> Vec<(String, Option<String>)> {
    let value = |metric: &&Metric| match metric.models.get(&timeline.baseline) {
        Some(value) => (number::value(metric, value), number::plus_minus(metric, value)),
        None => (UNDEFINED.to_string(), None),
    };
    timeline.shown().iter().map(value).collect()
}

/// A check of a gate: metric, baseline, now, gain with its interval, margin.
pub(super) fn check(check: &Check, timeline: &Timeline) -> [String; 5] {
    let metric = timeline.metrics.iter().find(|metric| metric.name == check.metric);
    let decimals = metric.map_or(4, |metric| metric.decimals);
    let number = |x: Option<f64>| x.map_or_else(|| UNDEFINED.to_string(), |x| fixed(x, decimals));
    let title = metric.map_or_else(
        || check.metric.clone(),
        |metric| format!("{} {}", metric.title(timeline.language), metric.arrow()).trim_end().to_string(),
    );
    let gain = match (&check.gate, &check.missing) {
        (_, Some(missing)) => missing.clone(),
        (Some(gate), None) => {
            let [gain, low, high] = [gate.gain, gate.interval.low, gate.interval.high].map(|x| signed(x, decimals));
            format!("{gain} [{low}, {high}]")
        }
        (None, None) => UNDEFINED.to_string(),
    };
    let margin = check.gate.as_ref().map_or_else(|| UNDEFINED.to_string(), |gate| gate.margin.to_string());
    [title, number(check.baseline), number(check.value), gain, margin]
}

/// What a terminal shows of a checkpoint: one line with its headline metrics.
pub fn line(timeline: &Timeline, entry: &Entry) -> String {
    let words = words(timeline.language);
    let mut text = format!("{}  {}", entry.name, verdict(entry, words));
    if entry.has_values() {
        for metric in timeline.shown() {
            let Some(value) = entry.value(metric) else { continue };
            let spread = number::plus_minus(metric, value).map_or_else(String::new, |spread| format!(" {spread}"));
            text.push_str(&format!("  {} {}{spread}", metric.name, number::value(metric, value)));
        }
    }
    for note in notes(timeline, entry) {
        text.push_str(&format!("  ({note})"));
    }
    legible(&text)
}

/// What else must be said of a checkpoint.
pub(super) fn notes(timeline: &Timeline, entry: &Entry) -> Vec<String> {
    let (words, mut notes) = (words(timeline.language), Vec::new());
    let regressed = timeline.regressed(entry);
    if !regressed.is_empty() {
        notes.push(format!("{}: {}", words.worse_by, regressed.join(", ")));
    }
    if let Some(same) = &entry.same_as {
        notes.push(format!("{} {same}", words.same_as));
    }
    if entry.replaces.is_some() {
        notes.push(words.replaced.to_string());
    }
    if let Some(error) = &entry.error {
        notes.push(error.what.clone());
    }
    notes
}
