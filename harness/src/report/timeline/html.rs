//! The checkpoints as one HTML file that needs nothing else, and no script.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment as Templates, context};

use super::super::escape::visible;
use super::super::html::STYLE;
use super::super::i18n::timeline::{summary, words};
use super::super::plot;
use super::rows::{self, Row, rows};
use super::{Status, Timeline};
use crate::error::{Error, Result};
use crate::eval::stats::MarginVerdict;
use crate::report::i18n::terms;

const TEMPLATE: &str = include_str!("../html/timeline.html");

/// The page, in the timeline's language.
///
/// # Errors
/// Only if the template itself is broken.
pub fn render(timeline: &Timeline) -> Result<String> {
    let broken = |e: minijinja::Error| Error::failed("could not render the page of a watch").because(e);
    let mut templates = Templates::new();
    templates.set_syntax(SyntaxConfig::builder().trim_blocks(true).build().map_err(broken)?);
    // The name's ending turns escaping on.
    templates.add_template("timeline.html", TEMPLATE).map_err(broken)?;
    let page = templates.get_template("timeline.html").and_then(|t| t.render(view(timeline))).map_err(broken)?;
    Ok(visible(&page))
}

fn view(timeline: &Timeline) -> Value {
    let (words, l) = (words(timeline.language), timeline.language.labels());
    let metrics: Vec<Value> = timeline
        .shown()
        .iter()
        .map(|m| {
            let (title, unit) = (m.title(timeline.language), terms::unit(m, timeline.language));
            context! { title, arrow => m.arrow(), unit }
        })
        .collect();
    let curves = timeline.shown().into_iter().filter_map(|metric| plot::step_panel(timeline, metric));
    let all = rows(timeline);
    let judged = all.iter().rev().filter(|row| row.entry.gate.is_some());
    context! {
        l => Value::from(Serde(l)),
        w => Value::from(Serde(words)),
        style => STYLE,
        title => if timeline.suite.title.is_empty() { &timeline.suite.name } else { &timeline.suite.title },
        suite => timeline.suite.name.as_str(),
        verdict => summary(timeline),
        folder => timeline.folder.as_str(),
        items => timeline.items,
        baseline => timeline.baseline.as_str(),
        base => Value::from(Serde(rows::baseline(timeline))),
        metrics,
        curves => curves.map(Value::from_safe_string).collect::<Vec<_>>(),
        rows => all.iter().map(|row| checkpoint(row, timeline)).collect::<Vec<_>>(),
        gates => judged.map(|row| gate(row, timeline)).collect::<Vec<_>>(),
    }
}

fn checkpoint(row: &Row<'_>, timeline: &Timeline) -> Value {
    let entry = row.entry;
    context! {
        step => row.step.as_str(), name => entry.name.as_str(), verdict => row.verdict,
        tone => match entry.status {
            Status::Failed => "bad",
            Status::Vanished => "soft",
            _ => tone(entry.verdict),
        },
        cells => Value::from(Serde(&row.values)),
        seconds => row.seconds.as_str(),
        notes => Value::from(Serde(rows::notes(timeline, entry))),
        report => entry.report.as_deref().map(|folder| format!("{folder}/report.html")),
    }
}

fn gate(row: &Row<'_>, timeline: &Timeline) -> Value {
    let words = words(timeline.language);
    let checks = row.entry.gate.iter().flat_map(|gate| &gate.checks);
    let rows = checks.map(|check| {
        let [title, baseline, now, gain, margin] = rows::check(check, timeline);
        let (verdict, tone) = (words.verdict(check.verdict), tone(Some(check.verdict)));
        context! { title, baseline, now, gain, margin, verdict, tone }
    });
    context! { name => row.entry.name.as_str(), verdict => row.verdict, rows => rows.collect::<Vec<_>>() }
}

fn tone(verdict: Option<MarginVerdict>) -> &'static str {
    match verdict {
        Some(MarginVerdict::Pass) => "good",
        Some(MarginVerdict::Regress) => "bad",
        Some(MarginVerdict::Inconclusive) | None => "soft",
    }
}
