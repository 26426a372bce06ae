//! A gate's verdicts in words: a table for a terminal, Markdown for a step summary, one sentence a
//! check.

use std::fmt::Write;

use super::{Check, Checks};
use crate::error::Error;
use crate::eval::stats::{Gate, MarginVerdict};
use crate::report::legible;

/// `pass`, `inconclusive`, `regress`.
pub fn word(verdict: MarginVerdict) -> &'static str {
    match verdict {
        MarginVerdict::Pass => "pass",
        MarginVerdict::Regress => "regress",
        MarginVerdict::Inconclusive => "inconclusive",
    }
}

/// What one check found, in one sentence with its numbers.
pub fn sentence(check: &Check, confidence: f64) -> String {
    let what = legible(&format!("{} of {}", check.metric, check.model));
    let (Some(gate), None) = (&check.gate, &check.missing) else {
        return format!("{what}: {}", legible(check.missing.as_deref().unwrap_or("nothing to compare")));
    };
    let unit = if check.unit.is_empty() { String::new() } else { format!(" {}", check.unit) };
    let how = match gate.verdict {
        MarginVerdict::Regress => format!("worse than the baseline by more than the margin of {}{unit}", gate.margin),
        MarginVerdict::Pass => format!("not worse than the baseline by more than the margin of {}{unit}", gate.margin),
        MarginVerdict::Inconclusive => format!(
            "{} cannot tell whether it is worse than the baseline by more than the margin of {}{unit}",
            size(check, gate),
            gate.margin
        ),
    };
    let level = percent(confidence);
    let values = format!("{} -> {}", number(check.baseline), number(check.value));
    let same = if check.unchanged { ", the model answering as the baseline's" } else { "" };
    let noise = match check.allowance {
        None | Some(0.0) => String::new(),
        Some(a) => format!(", of which {} each way is what the backend changes by itself", plain(a)),
    };
    let seen = match detectable(gate).as_str() {
        "-" => needed(check, gate),
        seen => match check.sources {
            None => format!(", n = {} detects {seen}{}", gate.n, needed(check, gate)),
            Some(_) => format!(", {} detect {seen}{}", size(check, gate), needed(check, gate)),
        },
    };
    format!(
        "{what}: {how}{same}: {values}, gain {} ({level} % interval [{}, {}]{noise}){seen}",
        signed(gate.gain),
        signed(gate.interval.low),
        signed(gate.interval.high),
    )
}

/// An error with its place, causes and remedy, in lines.
pub fn told(error: &Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text.push_str(&format!("\nbecause: {cause}"));
        next = cause.source();
    }
    if let Some(help) = error.help_text() {
        text.push_str(&format!("\nhelp: {help}"));
    }
    text
}

/// `regress: 1 of 18 checks regress, 2 inconclusive, 15 pass`.
pub fn summary(checks: &Checks) -> String {
    let count = |v: MarginVerdict| checks.checks.iter().filter(|c| c.verdict == v).count();
    let all = checks.checks.len();
    if all == 0 {
        return format!("{}: nothing could be checked", word(checks.verdict));
    }
    match checks.verdict {
        MarginVerdict::Pass => format!("pass: all of {all} checks"),
        _ => format!(
            "{}: {} of {all} checks regress, {} inconclusive, {} pass",
            word(checks.verdict),
            count(MarginVerdict::Regress),
            count(MarginVerdict::Inconclusive),
            count(MarginVerdict::Pass)
        ),
    }
}

/// The table of all checks, for a terminal.
pub fn table(checks: &Checks) -> String {
    let rows = rows(checks);
    let header = header(checks);
    let width = |column: usize| rows.iter().chain([&header]).map(|r| r[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut text = String::new();
    for row in [&header].into_iter().chain(&rows) {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let pad = " ".repeat(widths[column] - cell.chars().count());
            // Words left, numbers right.
            let cell = if column < 3 { format!("{cell}{pad}") } else { format!("{pad}{cell}") };
            let _ = write!(line, "{}{cell}", if column == 0 { "" } else { "  " });
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    for check in checks.checks.iter().filter(|c| c.missing.is_some()) {
        let _ = writeln!(text, "{}", sentence(check, checks.confidence));
    }
    for note in notes(checks) {
        let _ = writeln!(text, "{note}");
    }
    let _ = writeln!(text, "{}", summary(checks));
    text
}

/// The same as Markdown: the verdict, the table with what is no pass in bold, what was not checked.
pub fn markdown(checks: &Checks, suite: &str, baseline: &str) -> String {
    let sign = match checks.verdict {
        MarginVerdict::Pass => "✅",
        MarginVerdict::Inconclusive => "⚠️",
        MarginVerdict::Regress => "❌",
    };
    let mut text = format!("### {sign} {} against {}\n\n{}\n\n", cell(suite), cell(baseline), summary(checks));
    let header = header(checks);
    let _ = writeln!(text, "| {} |", header.join(" | "));
    let _ = writeln!(text, "| :-- | :-- | :-- |{}", " --: |".repeat(header.len() - 3));
    for (row, check) in rows(checks).into_iter().zip(&checks.checks) {
        let mut row: Vec<String> = row.iter().map(|c| cell(c)).collect();
        if check.verdict != MarginVerdict::Pass {
            row[0] = format!("**{}**", row[0]);
        }
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    let missing: Vec<&Check> = checks.checks.iter().filter(|c| c.missing.is_some()).collect();
    if !missing.is_empty() {
        text.push('\n');
    }
    for check in missing {
        let _ = writeln!(text, "- {}", cell(&sentence(check, checks.confidence)));
    }
    for note in notes(checks) {
        let (first, rest) = note.split_at(1);
        let _ = writeln!(text, "\n{}{}.", first.to_uppercase(), cell(rest));
    }
    text
}

/// What was not checked, and why.
fn notes(checks: &Checks) -> Vec<String> {
    let mut notes: Vec<String> = checks
        .allowed
        .iter()
        .map(|m| format!("although they differ in {}: {} against {}", m.what, m.first, m.second))
        .collect();
    notes.extend(checks.moved.iter().map(|moved| format!("since the baseline, {}", legible(&moved.to_string()))));
    for (what, names) in [
        ("not checked, having no margin", &checks.ungated),
        ("not checked, the baseline having no value", &checks.undefined),
        ("not checked, neither side knowing them", &checks.unchecked),
    ] {
        if !names.is_empty() {
            notes.push(format!("{what}: {}", legible(&names.join(", "))));
        }
    }
    notes
}

const COLUMNS: usize = 10;

fn header(checks: &Checks) -> [String; COLUMNS] {
    let level = percent(checks.confidence);
    [
        "verdict".into(),
        "model".into(),
        "metric".into(),
        "baseline".into(),
        "now".into(),
        format!("gain [{level} %]"),
        "margin".into(),
        "detectable".into(),
        "n".into(),
        "would decide".into(),
    ]
}

fn rows(checks: &Checks) -> Vec<[String; COLUMNS]> {
    let none = || "-".to_string();
    let row = |c: &Check| {
        let gate = c.gate.as_ref();
        [
            word(c.verdict).to_string(),
            legible(&c.model),
            legible(&c.metric),
            number(c.baseline),
            number(c.value),
            gate.map_or_else(none, |g| {
                format!("{} [{}, {}]", signed(g.gain), signed(g.interval.low), signed(g.interval.high))
            }),
            gate.map_or_else(none, |g| g.margin.to_string()),
            gate.map_or_else(none, detectable),
            gate.map_or_else(none, |g| match c.sources {
                None => g.n.to_string(),
                Some(sources) => format!("{} ({sources} sources)", g.n),
            }),
            gate.and_then(|g| undecided(c, g)?.needed).map_or_else(none, |needed| match c.sources {
                None => needed.to_string(),
                Some(_) => format!("{needed} sources"),
            }),
        ]
    };
    checks.checks.iter().map(row).collect()
}

/// Without the last bits of a product: 0.95 is 95 %.
fn percent(confidence: f64) -> f64 {
    (confidence * 1e6).round() / 1e4
}

fn number(x: Option<f64>) -> String {
    x.map_or("-".to_string(), plain)
}

fn plain(x: f64) -> String {
    format!("{x:.4}")
}

fn signed(x: f64) -> String {
    if !x.is_finite() {
        return "-".to_string();
    }
    let text = format!("{x:+.4}");
    // A difference of nothing has no sign.
    if text.trim_start_matches(['+', '-']).chars().all(|c| matches!(c, '0' | '.')) { plain(0.0) } else { text }
}

/// `130 items`, `130 items of 26 sources`.
fn size(check: &Check, gate: &Gate) -> String {
    let items = format!("{} item{}", gate.n, plural(gate.n));
    match check.sources {
        None => items,
        Some(sources) => format!("{items} of {sources} source{}", plural(sources)),
    }
}

fn plural(n: usize) -> &'static str {
    if n == 1 { "" } else { "s" }
}

/// The gate, if more items might decide it.
fn undecided<'a>(check: &Check, gate: &'a Gate) -> Option<&'a Gate> {
    (check.verdict == MarginVerdict::Inconclusive && gate.needed.is_some_and(|n| n > drawn(check, gate)))
        .then_some(gate)
}

/// What is drawn: items, or the sources that they share. More items of the same sources teach
/// little.
fn drawn(check: &Check, gate: &Gate) -> u64 {
    check.sources.unwrap_or(gate.n) as u64
}

/// How many items would decide an inconclusive check.
fn needed(check: &Check, gate: &Gate) -> String {
    let what = if check.sources.is_some() { "such sources" } else { "items" };
    match gate.needed {
        _ if check.verdict != MarginVerdict::Inconclusive || drawn(check, gate) < 2 => String::new(),
        None => ", and how many items would decide is not known".to_string(),
        Some(n) if n > drawn(check, gate) => {
            format!(", about {n} {what} would decide four times out of five if the two are equal")
        }
        Some(_) => ", so many would have decided four times out of five if the two were equal".to_string(),
    }
}

fn detectable(gate: &Gate) -> String {
    number(gate.minimum_detectable)
}

/// Text of strangers in a Markdown table.
fn cell(text: &str) -> String {
    crate::report::escape::escaped(text).replace('|', "\\|").replace(['\n', '\r'], " ")
}
