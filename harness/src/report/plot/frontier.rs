//! Quality against cost: one panel a kind of cost, one mark a model, and a line through the models
//! that no other beats on both.

use super::super::model::{Direction, Metric, Model, Report};
use super::super::number::{bytes, duration, grouped, value};
use super::axis::{Scale, label, ticks};
use super::color_class;
use super::svg::{Anchor, Svg, WIDTH, fitted, text_width};

const HEIGHT: f64 = 250.0;
const LEFT: f64 = 52.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = HEIGHT - 40.0;
const RIGHT: f64 = 14.0;

/// What a model costs in one way, as a number and in words.
struct Cost {
    title: &'static str,
    of: fn(&Report, &Model) -> Option<f64>,
    words: fn(f64) -> String,
}

/// The panels: trainable parameters, training time, peak memory, bytes on disk. Only those in which
/// two models differ.
pub fn frontier_panels(report: &Report) -> Vec<String> {
    let l = report.language.labels();
    let costs = [
        Cost {
            title: l.trainable,
            of: |_, model| model.trainable_parameters.map(|n| n as f64),
            words: |x| grouped(x as u64),
        },
        Cost {
            title: l.train_time,
            of: |report, model| report.environment.costs.get(&model.name)?.train_seconds,
            words: duration,
        },
        Cost {
            title: l.memory,
            of: |report, model| Some(report.environment.costs.get(&model.name)?.peak_memory? as f64),
            words: |x| bytes(x as u64),
        },
        Cost {
            title: l.disk,
            of: |report, model| Some(report.environment.costs.get(&model.name)?.disk_bytes? as f64),
            words: |x| bytes(x as u64),
        },
    ];
    let Some(metric) = quality(report) else { return Vec::new() };
    costs.iter().filter_map(|cost| panel(report, metric, cost)).collect()
}

/// The metric that the suite decides by, else its first headline metric with a direction.
fn quality(report: &Report) -> Option<&Metric> {
    let primary = report.recommendation.as_ref().and_then(|r| report.metric(&r.primary));
    let headline = || report.metrics.iter().find(|m| m.headline && m.direction != Direction::Neutral);
    primary.or_else(headline)
}

fn panel(report: &Report, metric: &Metric, cost: &Cost) -> Option<String> {
    let points: Vec<(&Model, f64, f64)> = report
        .models
        .iter()
        .filter_map(|m| Some((m, (cost.of)(report, m).filter(|x| *x > 0.0)?, metric.models.get(&m.name)?.value?)))
        .collect();
    let (low, high) = ends(points.iter().map(|p| p.1));
    if points.len() < 2 || low == high {
        return None;
    }
    // Costs lie orders of magnitude apart.
    let x = Scale::new(low.ln(), high.ln(), LEFT + 16.0, WIDTH - RIGHT - 16.0);
    let (worst, best) = ends(points.iter().map(|p| p.2));
    let (marks, decimals) = ticks(worst, best, 4);
    let y_ends = (marks.first().copied().unwrap_or(worst), marks.last().copied().unwrap_or(best));
    let y = Scale::new(y_ends.0, y_ends.1, BOTTOM, TOP);

    let quality = format!("{} {}", metric.title(report.language), metric.arrow());
    let mut svg = Svg::new(&format!("{} / {}", quality.trim_end(), cost.title));
    svg.text((0.0, 17.0), Anchor::Start, "head", &fitted(quality.trim_end(), WIDTH / 2.0));
    svg.text((WIDTH, 17.0), Anchor::End, "soft", &fitted(cost.title, WIDTH / 2.0));
    for mark in marks {
        svg.line((LEFT, y.at(mark)), (WIDTH - RIGHT, y.at(mark)), "grid");
        svg.text((LEFT - 7.0, y.at(mark) + 4.5), Anchor::End, "soft", &label(mark, decimals));
    }
    for (cost_of, anchor, at) in [(low, Anchor::Start, LEFT), (high, Anchor::End, WIDTH - RIGHT)] {
        svg.text((at, BOTTOM + 22.0), anchor, "soft", &(cost.words)(cost_of));
    }
    let line: Vec<(f64, f64)> =
        frontier(&points, metric.direction).into_iter().map(|(c, q)| (x.at(c.ln()), y.at(q))).collect();
    svg.polyline(&line, "frontier");
    let mut taken: Vec<(f64, f64, f64)> = Vec::new();
    for (model, c, q) in &points {
        let (px, py) = (x.at(c.ln()), y.at(*q));
        svg.circle((px, py), 5.0, &format!("{} fill", color_class(report, &model.name)));
        let text =
            format!("{} {}", model.name, metric.models.get(&model.name).map_or(String::new(), |v| value(metric, v)));
        let text = fitted(&text, WIDTH / 2.0);
        let width = text_width(&text);
        let right = px + 9.0 + width <= WIDTH;
        let from = if right { px + 9.0 } else { px - 9.0 - width };
        // Names that would lie on each other step aside, up or down.
        let free = |y: f64| taken.iter().all(|t| (t.2 - y).abs() >= 13.0 || t.0 > from + width || t.1 < from);
        let steps = (0..12).flat_map(|k| [f64::from(k), -f64::from(k)]).map(|k| py + 4.5 + 6.5 * k);
        let inside = |y: &f64| (TOP - 8.0..=BOTTOM + 6.0).contains(y);
        let at = steps.filter(inside).find(|y| free(*y)).unwrap_or(py + 4.5);
        taken.push((from, from + width, at));
        let anchor = if right { Anchor::Start } else { Anchor::End };
        svg.text((if right { px + 9.0 } else { px - 9.0 }, at), anchor, "", &text);
    }
    Some(svg.inline(HEIGHT))
}

fn ends(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)))
}

/// The points that are better than every cheaper one, by rising cost.
fn frontier(points: &[(&Model, f64, f64)], direction: Direction) -> Vec<(f64, f64)> {
    let sign = if direction == Direction::Lower { -1.0 } else { 1.0 };
    let mut sorted: Vec<(f64, f64)> = points.iter().map(|p| (p.1, p.2)).collect();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0).then((sign * b.1).total_cmp(&(sign * a.1))));
    let mut best = f64::NEG_INFINITY;
    sorted.retain(|(_, quality)| {
        let better = sign * quality > best;
        best = best.max(sign * quality);
        better
    });
    sorted
}
