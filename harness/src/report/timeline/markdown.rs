//! The checkpoints as Markdown.

use std::fmt::Write;

use super::super::i18n::timeline::{summary, words};
use super::super::markdown::{cell, inline};
use super::rows::{self, rows};
use super::{Entry, Timeline};
use crate::eval::stats::MarginVerdict;

/// Of so many of the checkpoints that do not pass, the newest, the checks are shown; the page has all.
const DETAILED: usize = 3;

/// The whole page, in the timeline's language.
pub fn render(timeline: &Timeline) -> String {
    let (words, l) = (words(timeline.language), timeline.language.labels());
    let mut md = String::new();
    let title = if timeline.suite.title.is_empty() { &timeline.suite.name } else { &timeline.suite.title };
    let _ = writeln!(md, "# {}: {}\n", inline(title), words.title);
    let _ = writeln!(md, "**{}**\n", inline(&summary(timeline)));
    let _ = writeln!(md, "{}: {}\n", words.folder, inline(&timeline.folder));
    if timeline.checkpoints.iter().any(|entry| entry.step.is_some() && entry.has_values()) {
        let _ = writeln!(md, "![{}](steps.svg)\n", words.title);
    }
    md.push_str(&results_table(timeline));
    let _ = writeln!(md, "\n<sub>{} {}</sub>\n", inline(words.legend), inline(words.chosen));
    let open = timeline.current().into_iter().rev().filter(|entry| entry.verdict != Some(MarginVerdict::Pass));
    for (entry, gate) in open.filter_map(|entry| Some((entry, entry.gate.as_ref()?))).take(DETAILED) {
        let _ = writeln!(md, "### {} {} {}\n", cell(&entry.name), l.against, cell(&timeline.baseline));
        let _ = writeln!(md, "| {} |", words.checks.join(" | "));
        let _ = writeln!(md, "| :-- | :-- | --: | --: | --: | --: |");
        for check in gate.checks.iter().filter(|check| check.verdict != MarginVerdict::Pass) {
            let cells = rows::check(check, timeline).map(|text| cell(&text)).join(" | ");
            let _ = writeln!(md, "| {} | {cells} |", words.verdict(check.verdict));
        }
        md.push('\n');
    }
    md.truncate(md.trim_end().len());
    md.push('\n');
    md
}

/// The table of all checkpoints, the baseline first.
pub fn results_table(timeline: &Timeline) -> String {
    let words = words(timeline.language);
    let shown = timeline.shown();
    let with = |(value, spread): &(String, Option<String>)| match spread {
        Some(spread) => format!("{value} {spread}"),
        None => value.clone(),
    };
    let titles = shown.iter().map(|m| cell(format!("{} {}", m.title(timeline.language), m.arrow()).trim_end()));
    let header: Vec<String> = [words.step, words.checkpoint, words.outcome]
        .into_iter()
        .map(String::from)
        .chain(titles)
        .chain([words.seconds.to_string()])
        .collect();
    let mut table = format!("| {} |\n| --: | :-- | :-- |{}\n", header.join(" | "), " --: |".repeat(shown.len() + 1));
    let base: Vec<String> = rows::baseline(timeline).iter().map(with).collect();
    let _ = writeln!(table, "|  | {} | {} | {} |  |", cell(&timeline.baseline), words.baseline, base.join(" | "));
    for row in rows(timeline) {
        let verdict = match row.entry.verdict {
            Some(MarginVerdict::Pass) => row.verdict.to_string(),
            _ => format!("**{}**", row.verdict),
        };
        let notes = notes(row.entry, timeline);
        let values: Vec<String> = row.values.iter().map(with).collect();
        let name = cell(&row.entry.name);
        let _ =
            writeln!(table, "| {} | {name} | {verdict}{notes} | {} | {} |", row.step, values.join(" | "), row.seconds);
    }
    table
}

fn notes(entry: &Entry, timeline: &Timeline) -> String {
    let notes = rows::notes(timeline, entry);
    if notes.is_empty() { String::new() } else { format!(" ({})", cell(&notes.join("; "))) }
}
