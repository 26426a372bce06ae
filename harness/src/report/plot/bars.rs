//! Metric values as bars with interval whiskers: one block a metric, one bar a model, each on a
//! scale from zero.

use super::super::model::{Metric, Report};
use super::super::number::value;
use super::axis::Scale;
use super::color_class;
use super::svg::{Anchor, Svg, WIDTH, fitted, text_width};

const HEAD: f64 = 26.0;
const ROW: f64 = 22.0;
const GAP: f64 = 16.0;
const BAR: f64 = 13.0;

/// The headline metrics (all, if none is named), one below the other; none without a value.
pub fn metric_bars(report: &Report) -> Option<String> {
    let drawable: Vec<&Metric> = report.metrics.iter().filter(|m| has_value(m)).collect();
    let headline: Vec<&Metric> = drawable.iter().copied().filter(|m| m.headline).collect();
    let shown = if headline.is_empty() { drawable } else { headline };
    if shown.is_empty() {
        return None;
    }
    let mut svg = Svg::new(report.language.labels().bars);
    let block = block_height(report) + GAP;
    for (i, metric) in shown.iter().enumerate() {
        svg.shifted(i as f64 * block, |svg| draw(svg, report, metric));
    }
    Some(svg.file(shown.len() as f64 * block - GAP))
}

/// One metric's block; none without a value.
pub fn metric_panel(report: &Report, metric: &Metric) -> Option<String> {
    if !has_value(metric) {
        return None;
    }
    let mut svg = Svg::new(metric.title(report.language));
    draw(&mut svg, report, metric);
    Some(svg.inline(block_height(report)))
}

fn has_value(metric: &Metric) -> bool {
    metric.models.values().any(|v| v.value.is_some())
}

fn block_height(report: &Report) -> f64 {
    HEAD + ROW * report.models.len() as f64 + 4.0
}

fn draw(svg: &mut Svg, report: &Report, metric: &Metric) {
    let names = report.models.iter().map(|m| text_width(&m.name)).fold(0.0, f64::max).min(110.0);
    let left = names + 10.0;
    let numbers = report.models.iter().filter_map(|m| metric.models.get(&m.name));
    // The best value is bold, and so a little wider.
    let right = WIDTH - 12.0 - 1.1 * numbers.map(|v| text_width(&value(metric, v))).fold(0.0, f64::max);
    let ends = || {
        let values = report.models.iter().filter_map(|m| metric.models.get(&m.name));
        values.flat_map(|v| [v.value, v.ci_low, v.ci_high]).flatten()
    };
    let scale = Scale::new(ends().fold(0.0, f64::min), ends().fold(0.0, f64::max), left, right);

    let unit = fitted(&crate::report::i18n::terms::unit(metric, report.language), WIDTH / 3.0);
    let title = format!("{} {}", metric.title(report.language), metric.arrow());
    svg.text((0.0, 15.0), Anchor::Start, "head", &fitted(title.trim_end(), WIDTH - 12.0 - text_width(&unit)));
    svg.text((WIDTH, 15.0), Anchor::End, "soft", &unit);
    let zero = scale.at(0.0);
    svg.line((zero, HEAD - 2.0), (zero, HEAD + ROW * report.models.len() as f64), "grid");
    for (i, model) in report.models.iter().enumerate() {
        let middle = HEAD + ROW * (i as f64 + 0.5);
        svg.text((left - 9.0, middle + 4.5), Anchor::End, "soft", &fitted(&model.name, names));
        let Some(entry) = metric.models.get(&model.name) else { continue };
        if let Some(x) = entry.value {
            let end = scale.at(x);
            let class = format!("{} fill", color_class(report, &model.name));
            svg.rect((zero.min(end), middle - BAR / 2.0), ((end - zero).abs().max(1.0), BAR), &class);
        }
        if let (Some(low), Some(high)) = (entry.ci_low, entry.ci_high) {
            let (low, high) = (scale.at(low), scale.at(high));
            // The halo keeps the whisker in sight on the bar's own colour.
            for class in ["halo", "whisker"] {
                svg.line((low, middle), (high, middle), class);
                for x in [low, high] {
                    svg.line((x, middle - 4.0), (x, middle + 4.0), class);
                }
            }
        }
        let weight = if metric.best.contains(&model.name) { "head" } else { "" };
        svg.text((WIDTH, middle + 4.5), Anchor::End, weight, &value(metric, entry));
    }
}
