//! A metric over the steps of a training: a point with its whisker a checkpoint, the baseline as a
//! line.

use super::super::model::Metric;
use super::super::timeline::Timeline;
use super::axis::{Scale, label, ticks};
use super::svg::{Anchor, Svg, WIDTH, fitted, text_width};
use crate::eval::stats::MarginVerdict;
use crate::report::i18n::{terms, timeline::words};

const HEIGHT: f64 = 236.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = HEIGHT - 42.0;
/// Right of the plot, for the name of the line.
const RIGHT: f64 = 64.0;
/// Between two plots.
const BELOW: f64 = 16.0;
/// More whiskers than these run into each other: they lose their caps.
const CAPS: usize = 30;

/// One checkpoint in the plot.
struct Point {
    step: f64,
    value: f64,
    interval: Option<(f64, f64)>,
    regresses: bool,
}

/// All shown metrics, one below the other; none without a checkpoint of known step.
pub fn steps(timeline: &Timeline) -> Option<String> {
    let shown = timeline.shown();
    let drawn: Vec<&Metric> = shown.into_iter().filter(|metric| !points(timeline, metric).is_empty()).collect();
    if drawn.is_empty() {
        return None;
    }
    let mut svg = Svg::new(words(timeline.language).curves);
    for (i, metric) in drawn.iter().enumerate() {
        svg.shifted(i as f64 * (HEIGHT + BELOW), |svg| draw(svg, timeline, metric));
    }
    Some(svg.file(drawn.len() as f64 * (HEIGHT + BELOW) - BELOW))
}

/// One metric's plot; none without a checkpoint of known step.
pub fn step_panel(timeline: &Timeline, metric: &Metric) -> Option<String> {
    if points(timeline, metric).is_empty() {
        return None;
    }
    let mut svg = Svg::new(&format!("{}: {}", words(timeline.language).curves, metric.title(timeline.language)));
    draw(&mut svg, timeline, metric);
    Some(svg.inline(HEIGHT))
}

fn points(timeline: &Timeline, metric: &Metric) -> Vec<Point> {
    let all = timeline.current().into_iter();
    all.filter_map(|entry| {
        let value = entry.value(metric)?;
        let gate = entry.gate.iter().flat_map(|gate| &gate.checks).find(|check| check.metric == metric.name);
        Some(Point {
            step: entry.step? as f64,
            value: value.value?,
            interval: value.ci_low.zip(value.ci_high),
            regresses: gate.is_some_and(|check| check.verdict == MarginVerdict::Regress),
        })
    })
    .collect()
}

fn draw(svg: &mut Svg, timeline: &Timeline, metric: &Metric) {
    let points = points(timeline, metric);
    let words = words(timeline.language);
    let base = metric.models.get(&timeline.baseline).and_then(|value| value.value);
    let ends = || {
        points.iter().flat_map(|p| [p.value, p.interval.map_or(p.value, |i| i.0), p.interval.map_or(p.value, |i| i.1)])
    };
    let low = ends().chain(base).fold(f64::INFINITY, f64::min);
    let high = ends().chain(base).fold(f64::NEG_INFINITY, f64::max);
    let (y_ticks, decimals) = ticks(low, high, 4);
    let widest = y_ticks.iter().map(|tick| text_width(&label(*tick, decimals))).fold(0.0, f64::max);
    let (left, right) = ((widest + 12.0).max(44.0), WIDTH - RIGHT);

    let unit = fitted(&terms::unit(metric, timeline.language), WIDTH / 3.0);
    let title = format!("{} {}", metric.title(timeline.language), metric.arrow());
    svg.text((0.0, 15.0), Anchor::Start, "head", &fitted(title.trim_end(), WIDTH - 12.0 - text_width(&unit)));
    svg.text((WIDTH, 15.0), Anchor::End, "soft", &unit);

    let y = Scale::new(y_ticks.first().copied().unwrap_or(low), y_ticks.last().copied().unwrap_or(high), BOTTOM, TOP);
    for tick in y_ticks {
        svg.line((left, y.at(tick)), (right, y.at(tick)), "grid");
        svg.text((left - 7.0, y.at(tick) + 4.5), Anchor::End, "soft", &label(tick, decimals));
    }
    let x = x_scale(svg, &points, (left, right), timeline.language.labels().step_axis);

    if let Some(base) = base {
        svg.line((left, y.at(base)), (right, y.at(base)), "c-base stroke line guide");
        svg.text((right + 6.0, y.at(base) + 4.5), Anchor::Start, "soft", &fitted(&timeline.baseline, RIGHT - 6.0));
    }
    for point in &points {
        let Some((low, high)) = point.interval else { continue };
        let (at, low, high) = (x.at(point.step), y.at(low), y.at(high));
        svg.line((at, low), (at, high), "whisker");
        for end in [low, high].into_iter().filter(|_| points.len() <= CAPS) {
            svg.line((at - 3.0, end), (at + 3.0, end), "whisker");
        }
    }
    let line: Vec<(f64, f64)> = points.iter().map(|p| (x.at(p.step), y.at(p.value))).collect();
    svg.polyline(&line, "c-lora stroke line");
    for (point, at) in points.iter().zip(line) {
        match point.regresses {
            true => svg.circle(at, 4.5, "c-full fill"),
            false => svg.circle(at, 3.0, "c-lora fill"),
        }
    }
    if points.iter().any(|point| point.regresses) {
        let width = text_width(words.regress);
        svg.circle((WIDTH - width - 9.0, BOTTOM + 30.5), 4.5, "c-full fill");
        svg.text((WIDTH, BOTTOM + 35.0), Anchor::End, "soft", words.regress);
    }
}

/// From 0, where the training began, unless all that is there is far from it.
fn x_scale(svg: &mut Svg, points: &[Point], (left, right): (f64, f64), title: &str) -> Scale {
    let first = points.iter().map(|p| p.step).fold(f64::INFINITY, f64::min);
    let last = points.iter().map(|p| p.step).fold(1.0, f64::max);
    let begin = if first > 0.6 * last && first < last { first } else { 0.0 };
    // A point on the axis would hide its whisker.
    let inset = if begin > 0.0 { 12.0 } else { 0.0 };
    let scale = Scale::new(begin, last, left + inset, right - 6.0);
    let (ticks, decimals) = ticks(begin, last, 5);
    for tick in ticks.into_iter().filter(|tick| (begin..=last).contains(tick)) {
        svg.line((scale.at(tick), BOTTOM), (scale.at(tick), BOTTOM + 4.0), "grid");
        svg.text((scale.at(tick), BOTTOM + 18.0), Anchor::Middle, "soft", &label(tick, decimals));
    }
    svg.text(((left + right) / 2.0, BOTTOM + 35.0), Anchor::Middle, "soft", title);
    scale
}
