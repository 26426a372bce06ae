//! The report as one HTML file that needs nothing else: style, script and plots are inside.
//!
//! Texts of models and data can hold anything, so every one of them goes through the template's
//! escaping, and the page's own policy lets no script run but the one it was made with. Without
//! script everything is still there; sorting and filtering are not.

use base64::Engine as _;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment as Templates, context};
use sha2::{Digest, Sha256};

use super::escape::visible;
use super::i18n::sentences::{self, Labels};
use super::model::{Comparison, Direction, FlippedItem, General, ItemExample, ItemRow, Metric, Report, Verdict};
use super::number::{self, UNDEFINED};
use super::{diff, plot, provenance, tables};
use crate::backend::StopReason;
use crate::error::{Error, Result};
use crate::report::i18n::terms;

const TEMPLATE: &str = include_str!("html/report.html");
pub(super) const STYLE: &str = include_str!("html/style.css");
const SCRIPT: &str = include_str!("html/script.js");

/// The page, in the report's language.
///
/// # Errors
/// Only if the template itself is broken.
pub fn render(report: &Report) -> Result<String> {
    let broken = |e: minijinja::Error| Error::failed("could not render the report's page").because(e);
    let mut templates = Templates::new();
    templates.set_syntax(SyntaxConfig::builder().trim_blocks(true).build().map_err(broken)?);
    // The name's ending turns escaping on.
    templates.add_template("report.html", TEMPLATE).map_err(broken)?;
    let page = templates.get_template("report.html").and_then(|t| t.render(view(report))).map_err(broken)?;
    Ok(visible(&page))
}

fn view(report: &Report) -> Value {
    let language = report.language;
    let l = language.labels();
    let title = if report.suite.title.is_empty() { &report.suite.name } else { &report.suite.title };
    let svg = |text: String| Value::from_safe_string(text);
    let warnings: Vec<Value> = report
        .warnings
        .iter()
        .map(|w| context! { note => w.is_note(), text => sentences::warning(w, report, language) })
        .collect();
    let measured = !report.metrics.is_empty() && !report.models.is_empty();
    let metrics: Vec<Value> =
        if measured { report.metrics.iter().map(|m| metric_row(m, report)).collect() } else { Vec::new() };
    let against = report.against_base();
    let names = |c: &&Comparison| format!("{} {} {}", c.candidate, l.against, c.baseline);
    let items = if measured { report.items.as_slice() } else { &[] };
    let examples = report.examples.as_slice();
    let trained = tables::training(report);
    let nav: Vec<(&str, &str)> = [
        (!metrics.is_empty(), "results", l.results),
        (measured && !report.comparisons.is_empty(), "differences", l.differences),
        (report.samples.is_some(), "samples", l.samples),
        (!report.recipes.is_empty(), "recipes", l.recipes),
        (!report.flips.is_empty(), "flips", l.flips),
        (report.general.is_some(), "general", l.general),
        (!trained.is_empty(), "training", l.training),
        (!examples.is_empty(), "examples", l.examples),
        (!items.is_empty(), "items", l.items),
        (!report.environment.costs.is_empty(), "cost", l.cost),
        (true, "reproduce", l.reproduce),
    ]
    .into_iter()
    .filter_map(|(present, id, label)| present.then_some((id, label)))
    .collect();
    let page = context! {
        l => data(l),
        style => STYLE,
        script => SCRIPT,
        script_hash => format!("sha256-{}", base64::engine::general_purpose::STANDARD.encode(Sha256::digest(SCRIPT))),
        title => title.as_str(),
        suite => report.suite.name.as_str(),
        verdict => sentences::verdict_lines(report, language),
        description => report.suite.description.as_str(),
        models => report.models.iter().map(|m| context! { name => m.name.as_str(), color => color(report, &m.name) }).collect::<Vec<_>>(),
        item_count => number::grouped(report.items.len() as u64),
        warnings,
        nav => data(nav),
        metrics,
        against => against.iter().map(names).collect::<Vec<_>>(),
        compact => tables::compact(report),
        signatures => data(tables::signatures(report)),
        truncation_header => data(tables::truncation_header(l)),
        truncation => data(tables::truncation(report)),
        level => number::fixed(100.0 * report.statistics.confidence, 0),
    };
    let frontier = if measured { plot::frontier_panels(report) } else { Vec::new() };
    let any_headline = report.metrics.iter().any(|m| m.headline);
    let bars = |wanted: &dyn Fn(&Metric) -> bool| -> Vec<Value> {
        let shown = report.metrics.iter().filter(|m| wanted(m));
        shown.filter_map(|m| plot::metric_panel(report, m)).map(svg).collect()
    };
    let sections = context! {
        bars => bars(&|m| m.headline || !any_headline),
        more_bars => bars(&|m| any_headline && !m.headline),
        comparisons => if measured { comparisons(report, l) } else { Vec::new() },
        curves => report.models.iter().filter_map(|m| plot::curve_panel(report, m)).map(svg).collect::<Vec<_>>(),
        chosen => tables::chosen(report),
        checkpoints => plot::checkpoint_panels(report).into_iter().map(svg).collect::<Vec<_>>(),
        checkpoint_header => data(tables::checkpoint_header(report)),
        checkpoint_rows => data(tables::checkpoints(report)),
        training => trained.iter().map(|(model, cells)| training_row(report, model, cells)).collect::<Vec<_>>(),
        sample_header => data(tables::sample_header(l)),
        samples => data(tables::samples(report)),
        recipe_header => data(tables::recipe_header(report)),
        recipes => report.recipes.iter().map(|c| context! {
            title => tables::recipe_title(c, report.language), rows => data(tables::recipe(c, report)),
        }).collect::<Vec<_>>(),
        flips => data(tables::flips(report)),
        flip_choices => flip_choices(report),
        flipped => report.flipped.iter().take(SHOWN_FLIPS).map(|f| flipped(f, report, l)).collect::<Vec<_>>(),
        flips_cut => report.flipped.len() > SHOWN_FLIPS,
        general => report.general.as_ref().map(|g| general(g, report)),
        adapters => tables::adapters(report).iter().map(|(model, cells)| context! {
            name => model.name.as_str(), color => color(report, &model.name), cells => data(cells),
        }).collect::<Vec<_>>(),
        adapter_header => data(tables::adapter_header(l)),
        examples => examples.iter().map(|e| example(e, report, l)).collect::<Vec<_>>(),
        ..item_table(items, &against, report, l)
    };
    let foot = context! {
        frontier => frontier.into_iter().map(svg).collect::<Vec<_>>(),
        cost_header => data(tables::cost_header(report)),
        costs => tables::costs(report).iter().map(|(model, cells)| context! {
            name => model.name.as_str(), color => color(report, &model.name), cells => data(cells),
        }).collect::<Vec<_>>(),
        facts => data(provenance::facts(report)),
        bad_rows => data(&report.data.bad_rows),
        environment => data(provenance::environment(report)),
    };
    context! { ..page, ..sections, ..foot }
}

fn data(value: impl serde::Serialize) -> Value {
    Value::from(Serde(value))
}

fn color(report: &Report, model: &str) -> &'static str {
    plot::color_class(report, model)
}

/// Flipped items that the page shows in full; all of them, with full texts, are in the JSON.
const SHOWN_FLIPS: usize = 120;

/// What the flipped items can be filtered by: an item's `data-flips` holds the keys of its flips.
fn flip_choices(report: &Report) -> Vec<Value> {
    let l = report.language.labels();
    let both = report.flips.iter().enumerate().flat_map(|(i, t)| {
        let pair = format!("{} {} {}", t.candidate, l.against, t.baseline);
        let choice = move |way: &str, name: &str, n: usize| {
            let title = format!("{pair}, {}: {name} ({n})", tables::metric_title(report, &t.metric));
            (n > 0).then(|| context! { key => format!("{way}{i}"), title })
        };
        [choice("l", l.flip_lost, t.flips.right_to_wrong.len()), choice("w", l.flip_won, t.flips.wrong_to_right.len())]
    });
    both.flatten().collect()
}

fn flipped(flipped: &FlippedItem, report: &Report, l: &Labels) -> Value {
    let id = &flipped.item.id;
    let mut keys = Vec::new();
    let mut lost = Vec::new();
    let mut won = Vec::new();
    for (i, t) in report.flips.iter().enumerate() {
        let name = format!("{} {} {}: {}", t.candidate, l.against, t.baseline, tables::metric_title(report, &t.metric));
        for (way, ids, names) in [("l", &t.flips.right_to_wrong, &mut lost), ("w", &t.flips.wrong_to_right, &mut won)] {
            if ids.contains(id) {
                keys.push(format!("{way}{i}"));
                names.push(name.clone());
            }
        }
    }
    let parts: Vec<String> = flipped.divergences.iter().map(|d| tables::divergence(d, report.language)).collect();
    context! {
        keys => keys.join(" "), id, lost => data(lost), won => data(won), parts => data(parts),
        ..example(&flipped.item, report, l)
    }
}

fn general(general: &General, report: &Report) -> Value {
    let against = report.against_base_of(&general.comparisons);
    let row = |metric: &Metric| {
        let differences: Vec<Value> = against
            .iter()
            .map(|c| match c.metrics.get(&metric.name) {
                Some(c) => context! {
                    text => number::difference(metric, c), mark => c.mark.as_str(), tone => tone(c.verdict),
                },
                None => context! { text => UNDEFINED },
            })
            .collect();
        context! { changes => differences, ..metric_row(metric, report) }
    };
    context! {
        source => tables::general_source(general, report.language),
        against => against.iter().map(|c| format!("{} − {}", c.candidate, c.baseline)).collect::<Vec<_>>(),
        metrics => general.metrics.iter().map(row).collect::<Vec<_>>(),
        bars => general.metrics.iter().filter_map(|m| plot::metric_panel(report, m)).map(Value::from_safe_string).collect::<Vec<_>>(),
    }
}

fn metric_row(metric: &Metric, report: &Report) -> Value {
    let against = report.against_base();
    let change = |comparison: &Comparison| match comparison.metrics.get(&metric.name) {
        Some(c) => context! {
            text => number::improvement(metric, c),
            mark => c.mark.as_str(),
            tone => tone(c.verdict),
        },
        None => context! { text => UNDEFINED },
    };
    let values: Vec<Value> = report
        .models
        .iter()
        .map(|model| match metric.models.get(&model.name) {
            Some(v) => context! {
                text => number::value(metric, v),
                spread => number::plus_minus(metric, v),
                best => metric.best.contains(&model.name),
                change => against.iter().find(|c| c.candidate == model.name).map(|c| change(c)),
            },
            None => context! { text => UNDEFINED },
        })
        .collect();
    let changes: Vec<Value> = against.iter().map(|comparison| change(comparison)).collect();
    context! {
        title => metric.title(report.language),
        arrow => metric.arrow(),
        unit => terms::unit(metric, report.language),
        values,
        changes,
        n => tables::sample_size(metric, report),
    }
}

fn tone(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Better => "good",
        Verdict::Worse => "bad",
        Verdict::Unclear | Verdict::Undefined => "soft",
        Verdict::Different => "",
    }
}

fn comparisons(report: &Report, l: &Labels) -> Vec<Value> {
    let row = |metric: &Metric, comparison: &Comparison| {
        let c = comparison.metrics.get(&metric.name)?;
        let d = tables::difference(metric, c, report.language);
        Some(context! {
            title => metric.title(report.language),
            arrow => metric.arrow(),
            n => d.n, difference => d.difference, p => d.p, adjusted => d.adjusted, mark => d.mark,
            wins => d.wins, detectable => d.detectable, verdict => d.verdict,
            tone => tone(c.verdict),
        })
    };
    let table = |c: &Comparison| {
        context! {
            title => format!("{} {} {}", c.candidate, l.against, c.baseline),
            allowed => c.allowed.iter().map(|m| sentences::allowed(m, report.language)).collect::<Vec<_>>(),
            rows => report.metrics.iter().filter_map(|m| row(m, c)).collect::<Vec<_>>(),
        }
    };
    report.comparisons.iter().map(table).collect()
}

fn training_row(report: &Report, model: &super::model::Model, cells: &[String; 7]) -> Value {
    let [parameters, trainable, steps, tokens, train_loss, best, last] = cells;
    context! {
        name => model.name.as_str(), color => color(report, &model.name),
        parameters => parameters.as_str(), trainable => trainable.as_str(), steps => steps.as_str(),
        tokens => tokens.as_str(), train_loss => train_loss.as_str(), best => best.as_str(), last => last.as_str(),
        overfits => model.training.as_ref().is_some_and(|t| t.overfitting == Some(true)),
    }
}

fn example(example: &ItemExample, report: &Report, l: &Labels) -> Value {
    let text = |name: &str| match example.models.get(name) {
        Some(t) => context! {
            name, color => color(report, name),
            note => sentences::state_note(t.thinking, t.stop, report.language),
            think => t.think.as_str(),
            pieces => data(if t.answer.is_empty() { Vec::new() } else { diff::pieces(&example.answer, &t.answer) }),
            absent => l.no_answer,
        },
        None => context! { name, color => color(report, name), pieces => Vec::<Value>::new(), absent => l.no_result },
    };
    context! {
        question => example.question.as_str(),
        think => example.think.as_str(),
        answer => example.answer.as_str(),
        texts => report.models.iter().map(|m| text(&m.name)).collect::<Vec<_>>(),
    }
}

/// The table of all items: a column a model and a column a difference, each holding the values of
/// all metrics, of which the script shows one; without script that is the first.
fn item_table(items: &[ItemRow], against: &[&Comparison], report: &Report, l: &Labels) -> Value {
    // Headline metrics first: the first is what is shown.
    let (head, rest): (Vec<&Metric>, Vec<&Metric>) = report.metrics.iter().partition(|m| m.headline);
    let metrics = [head, rest].concat();
    let options: Vec<Value> = metrics
        .iter()
        .map(|m| {
            let better = match m.direction {
                Direction::Higher => 1,
                Direction::Lower => -1,
                Direction::Neutral => 0,
            };
            let title = format!("{} {}", m.title(report.language), m.arrow());
            context! { title => title.trim_end(), decimals => m.decimals, better }
        })
        .collect();
    let mut columns: Vec<Value> =
        report.models.iter().map(|m| context! { title => m.name.as_str(), color => color(report, &m.name) }).collect();
    columns.extend(against.iter().map(|c| context! { title => format!("{} − {}", c.candidate, c.baseline) }));
    let shows: Vec<(String, String)> = against
        .iter()
        .enumerate()
        .flat_map(|(i, c)| {
            let column = report.models.len() + i;
            let label = |verdict| {
                format!(
                    "{} {} {}: {}",
                    c.candidate,
                    l.against,
                    c.baseline,
                    sentences::verdict_word(verdict, report.language)
                )
            };
            [(format!("better:{column}"), label(Verdict::Better)), (format!("worse:{column}"), label(Verdict::Worse))]
        })
        .collect();
    let rows: Vec<Value> = items.iter().map(|item| item_row(item, &metrics, against, report)).collect();
    context! { options, item_columns => columns, shows => data(shows), items => rows }
}

fn item_row(item: &ItemRow, metrics: &[&Metric], against: &[&Comparison], report: &Report) -> Value {
    let value = |model: &str, metric: &Metric| item.models.get(model)?.metrics.get(&metric.name).copied()?;
    let mut cells: Vec<Value> = report
        .models
        .iter()
        .map(|model| {
            let values: Vec<Option<f64>> = metrics.iter().map(|m| value(&model.name, m)).collect();
            let cut = item.models.get(&model.name).filter(|v| v.stop.is_some_and(|stop| stop != StopReason::Stop));
            context! {
                values => joined(&values),
                text => shown(&values, metrics, number::fixed),
                note => cut.map(|v| sentences::state_note(v.thinking, v.stop, report.language)),
            }
        })
        .collect();
    cells.extend(against.iter().map(|c| {
        let difference = |m: &&Metric| Some(value(&c.candidate, m)? - value(&c.baseline, m)?);
        let values: Vec<Option<f64>> = metrics.iter().map(difference).collect();
        let tone = match (values.first().copied().flatten(), metrics.first().map(|m| m.direction)) {
            (Some(d), Some(Direction::Higher)) if d != 0.0 => {
                if d > 0.0 {
                    "good"
                } else {
                    "bad"
                }
            }
            (Some(d), Some(Direction::Lower)) if d != 0.0 => {
                if d < 0.0 {
                    "good"
                } else {
                    "bad"
                }
            }
            _ => "",
        };
        context! { values => joined(&values), text => shown(&values, metrics, number::signed), delta => true, tone }
    }));
    let cut = item.models.values().any(|v| v.stop.is_some_and(|stop| stop != StopReason::Stop));
    context! { id => item.id.as_str(), question => item.question.as_str(), cut => u8::from(cut), cells }
}

/// `0.5||1`: what the script reads.
fn joined(values: &[Option<f64>]) -> String {
    values.iter().map(|v| v.map_or(String::new(), |v| v.to_string())).collect::<Vec<_>>().join("|")
}

fn shown(values: &[Option<f64>], metrics: &[&Metric], format: fn(f64, usize) -> String) -> String {
    match (values.first().copied().flatten(), metrics.first()) {
        (Some(x), Some(metric)) => format(x, metric.decimals),
        _ => UNDEFINED.to_string(),
    }
}
