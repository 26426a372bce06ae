//! The cells of the report's tables as plain text, unescaped: Markdown and the page lay out the same ones.

use super::model::{Direction, Language, Metric, MetricComparison, Model, Report};
use super::number::{self, UNDEFINED};
use super::words::{self, Labels};

/// One number where all models have the same, `18–20` where they differ.
pub(super) fn sample_size(metric: &Metric, report: &Report) -> String {
    let sizes = || report.models.iter().filter_map(|m| Some(metric.models.get(&m.name)?.n));
    match (sizes().min(), sizes().max()) {
        (Some(a), Some(b)) if a == b => a.to_string(),
        (Some(a), Some(b)) => format!("{a}–{b}"),
        _ => UNDEFINED.to_string(),
    }
}

/// A row of a table of paired differences.
pub(super) struct Difference {
    pub n: String,
    pub difference: String,
    pub p: String,
    pub adjusted: String,
    pub mark: String,
    pub wins: String,
    pub detectable: String,
    pub verdict: &'static str,
}

pub(super) fn difference(metric: &Metric, c: &MetricComparison, language: Language) -> Difference {
    Difference {
        n: c.n.to_string(),
        difference: number::difference(metric, c),
        p: number::p_value(c.p_value),
        adjusted: number::p_value(c.p_adjusted),
        mark: c.mark.clone(),
        wins: match metric.direction {
            Direction::Neutral => UNDEFINED.to_string(),
            _ => format!("{} / {}", c.wins, c.losses),
        },
        detectable: c.detectable.map_or(UNDEFINED.into(), |d| number::fixed(d, metric.decimals)),
        verdict: words::verdict_word(c.verdict, language),
    }
}

/// The header of [`training`]: the model, its cells, a note.
pub(super) fn training_header(l: &Labels) -> [&'static str; 9] {
    [l.model, l.parameters, l.trainable, l.steps, l.tokens, l.train_loss, l.best_eval, l.last_eval, ""]
}

/// The trained models and their cells.
pub(super) fn training(report: &Report) -> Vec<(&Model, [String; 7])> {
    let l = report.language.labels();
    let loss = |x: Option<f64>| x.map_or(UNDEFINED.to_string(), |x| number::fixed(x, 4));
    let trained = report.models.iter().filter_map(|m| Some((m, m.training.as_ref()?)));
    trained
        .map(|(model, t)| {
            let best = |b: super::model::Evaluation| format!("{} ({} {})", loss(b.loss), l.at_step, b.step);
            let cells = [
                number::grouped(model.parameters),
                model.trainable_parameters.map_or(UNDEFINED.into(), number::grouped),
                number::grouped(t.steps as u64),
                number::grouped(t.tokens),
                loss(t.curve.last().and_then(|p| p.loss)),
                t.best.map_or(UNDEFINED.into(), best),
                loss(t.evaluations.last().and_then(|e| e.loss)),
            ];
            (model, cells)
        })
        .collect()
}

/// The header of [`costs`]: the model and its cells.
pub(super) fn cost_header(l: &Labels) -> [&'static str; 7] {
    [l.model, l.device, l.train_time, l.score_time, l.generate_time, l.speed, l.memory]
}

/// The models whose cost is known and their cells.
pub(super) fn costs(report: &Report) -> Vec<(&Model, [String; 6])> {
    let seconds = |s: Option<f64>| s.map_or(UNDEFINED.to_string(), number::duration);
    let known = report.models.iter().filter_map(|m| Some((m, report.environment.costs.get(&m.name)?)));
    known
        .map(|(model, cost)| {
            let cells = [
                cost.device.clone(),
                seconds(cost.train_seconds),
                seconds(cost.score_seconds),
                seconds(cost.generate_seconds),
                cost.tokens_per_second().map_or(UNDEFINED.into(), |s| number::fixed(s, 0)),
                cost.peak_memory.map_or(UNDEFINED.into(), number::bytes),
            ];
            (model, cells)
        })
        .collect()
}
