//! A metric over the checkpoints of the trainings: all models on the same axes, each point with its
//! interval, the model that they are compared with as a line across.

use super::super::model::{CheckpointValues, Metric, Model, Report};
use super::axis::{Scale, label, ticks};
use super::color_class;
use super::svg::{Anchor, Svg, WIDTH, fitted, text_width};

const HEIGHT: f64 = 236.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = HEIGHT - 42.0;
/// Right of the plot, for the names of the lines.
const RIGHT: f64 = 78.0;

/// A panel for each headline metric (for each metric, if none is one) that checkpoints have a value
/// of.
pub fn checkpoint_panels(report: &Report) -> Vec<String> {
    let any_headline = report.metrics.iter().any(|m| m.headline);
    let shown = report.metrics.iter().filter(|m| m.headline || !any_headline);
    shown.filter_map(|metric| panel(report, metric)).collect()
}

/// A checkpoint in a plot: its step, the value, and the ends of its interval.
type Point = (f64, f64, Option<(f64, f64)>);

/// The checkpoints of a model with their steps and values.
fn points(model: &Model, metric: &Metric) -> Vec<Point> {
    let checkpoints = model.training.iter().flat_map(|training| &training.checkpoints);
    let point = |c: &CheckpointValues| {
        let value = c.metrics.get(&metric.name)?;
        Some((c.step as f64, value.value?, value.ci_low.zip(value.ci_high)))
    };
    checkpoints.filter_map(point).collect()
}

fn panel(report: &Report, metric: &Metric) -> Option<String> {
    let lines: Vec<(&Model, Vec<Point>)> =
        report.models.iter().map(|model| (model, points(model, metric))).filter(|(_, p)| p.len() > 1).collect();
    if lines.is_empty() {
        return None;
    }
    let guide = report.baseline().filter(|model| lines.iter().all(|(line, _)| line.name != model.name));
    let guide = guide.and_then(|model| Some((model, metric.models.get(&model.name)?.value?)));
    let all = || lines.iter().flat_map(|(_, points)| points);
    let values = || all().flat_map(|(_, value, interval)| [Some(*value), interval.map(|i| i.0), interval.map(|i| i.1)]);
    let ends = values().flatten().chain(guide.map(|g| g.1));
    let (low, high) = ends.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    let (marks, decimals) = ticks(low, high, 4);
    let widest = marks.iter().map(|mark| text_width(&label(*mark, decimals))).fold(0.0, f64::max);
    let (left, right) = ((widest + 12.0).max(44.0), WIDTH - RIGHT);
    let (first, last) = (marks.first().copied().unwrap_or(low), marks.last().copied().unwrap_or(high));
    let y = Scale::new(first, last, BOTTOM, TOP);

    let l = report.language.labels();
    let title = format!("{} {}", metric.title(report.language), metric.arrow());
    let mut svg = Svg::new(&format!("{}: {}", l.checkpoints, title.trim_end()));
    svg.text((0.0, 15.0), Anchor::Start, "head", &fitted(title.trim_end(), WIDTH * 0.6));
    for mark in marks {
        svg.line((left, y.at(mark)), (right, y.at(mark)), "grid");
        svg.text((left - 7.0, y.at(mark) + 4.5), Anchor::End, "soft", &label(mark, decimals));
    }
    let steps = all().map(|(step, ..)| *step).fold(1.0, f64::max);
    let x = Scale::new(0.0, steps, left, right - 6.0);
    let (marks, decimals) = ticks(0.0, steps, 5);
    for mark in marks.into_iter().filter(|mark| *mark <= steps) {
        svg.line((x.at(mark), BOTTOM), (x.at(mark), BOTTOM + 4.0), "grid");
        svg.text((x.at(mark), BOTTOM + 18.0), Anchor::Middle, "soft", &label(mark, decimals));
    }
    svg.text(((left + right) / 2.0, BOTTOM + 35.0), Anchor::Middle, "soft", l.step_axis);

    let mut names: Vec<(f64, String)> = Vec::new();
    if let Some((model, value)) = guide {
        svg.line(
            (left, y.at(value)),
            (right, y.at(value)),
            &format!("{} stroke guide", color_class(report, &model.name)),
        );
        names.push((y.at(value), model.name.clone()));
    }
    for (model, points) in &lines {
        let color = color_class(report, &model.name);
        for (step, _, interval) in points {
            if let Some((low, high)) = interval {
                svg.line((x.at(*step), y.at(*low)), (x.at(*step), y.at(*high)), &format!("{color} stroke thin"));
            }
        }
        let line: Vec<(f64, f64)> = points.iter().map(|(step, value, _)| (x.at(*step), y.at(*value))).collect();
        svg.polyline(&line, &format!("{color} stroke line"));
        line.iter().for_each(|&point| svg.circle(point, 3.0, &format!("{color} fill")));
        names.push((line[line.len() - 1].1, model.name.clone()));
    }
    // Names from the top down, none on another.
    names.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut from = TOP - 14.0;
    for (at, name) in names {
        let at = at.max(from + 14.0);
        svg.text((right + 6.0, at + 4.5), Anchor::Start, "", &fitted(&name, RIGHT - 6.0));
        from = at;
    }
    Some(svg.inline(HEIGHT))
}
