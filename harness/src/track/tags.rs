//! From the events of a training and the results of a report to what trackers log, under the names
//! that transformers gives them: the curves of another trainer's run lie in the same charts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::entry::{Entry, Kind, Text, Timed};
use crate::backend::{Event, StepEvent, TrainSummary};
use crate::eval::Prediction;
use crate::report::Report;
use crate::train::log::{Curves, EvaluationPoint};
use std::time::Duration;

/// How much a training is, beside what its events say: for rates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Extent {
    /// Optimizer steps that were planned.
    pub steps: usize,
    /// Training rows over all of them, repeated ones counted again.
    pub rows: u64,
    /// Rows of an evaluation; 0 where nothing is evaluated.
    pub eval_rows: u64,
    /// Batches of an evaluation.
    pub eval_batches: u64,
    /// Parameters that a token passes through, embeddings and adapters left out; none where
    /// the files do not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters: Option<u64>,
    /// What is trained stands beside these parameters.
    pub adapter: bool,
}

/// What is logged of one training, event by event.
#[derive(Clone, Debug, Default)]
pub(super) struct Tags {
    extent: Extent,
    /// Tokens that were fed before the next step.
    tokens: u64,
    /// The most memory that a step ended with.
    memory: Option<u64>,
    /// The last step that was evaluated.
    evaluated: Option<usize>,
}

impl Tags {
    pub fn new(extent: Extent) -> Tags {
        Tags { extent, ..Tags::default() }
    }

    /// What is logged of a backend's event, if anything is.
    pub fn event(&mut self, event: &Event) -> Option<Entry> {
        match event {
            Event::Step(step) => Some(self.step(step)),
            Event::Evaluation { step, loss, tokens, seconds } => {
                self.evaluation(&EvaluationPoint { step: *step, loss: *loss, tokens: *tokens, seconds: *seconds })
            }
            _ => None,
        }
    }

    fn step(&mut self, step: &StepEvent) -> Entry {
        let mut values = named(&[
            ("train/loss", step.loss),
            ("train/grad_norm", step.grad_norm),
            ("train/learning_rate", step.learning_rate),
            ("train/epoch", step.epoch),
        ]);
        // Of a step out of a checkpoint's history neither is known.
        if step.seconds > 0.0 {
            let tokens = step.tokens.saturating_sub(self.tokens) as f64;
            values.extend(named(&[
                ("perf/tokens_per_second", tokens / step.seconds),
                ("perf/step_seconds", step.seconds),
            ]));
        }
        self.tokens = self.tokens.max(step.tokens);
        if step.memory.is_some() {
            self.memory = self.memory.max(step.memory);
            values.extend(self.memory.map(|bytes| ("perf/peak_memory_bytes".to_string(), bytes as f64)));
        }
        Entry::Scalars { kind: Kind::Train, step: step.step, values }
    }

    /// A training that goes on evaluates the step of its checkpoint again: the same loss.
    fn evaluation(&mut self, point: &EvaluationPoint) -> Option<Entry> {
        if self.evaluated >= Some(point.step) {
            return None;
        }
        self.evaluated = Some(point.step);
        let mut values = named(&[("eval/loss", point.loss)]);
        if point.seconds > 0.0 {
            values.extend(named(&[("eval/runtime", point.seconds)]));
            let counts = [
                ("eval/samples_per_second", self.extent.eval_rows),
                ("eval/steps_per_second", self.extent.eval_batches),
            ];
            let known = counts.iter().filter(|(_, count)| *count > 0);
            values.extend(known.map(|(tag, count)| (tag.to_string(), *count as f64 / point.seconds)));
        }
        Some(Entry::Scalars { kind: Kind::Evaluation, step: point.step, values })
    }

    /// What was logged of `curves`, of which the last entry came about at `end`.
    pub fn history(&mut self, curves: &Curves, end: Duration) -> Vec<Timed> {
        let steps = curves.steps.iter().map(|step| (step.step, 0, Event::Step(step.clone()), step.seconds));
        let evaluations = curves.evaluations.iter().map(|&EvaluationPoint { step, loss, tokens, seconds }| {
            (step, 1, Event::Evaluation { step, loss, tokens, seconds }, seconds)
        });
        let mut events: Vec<_> = steps.chain(evaluations).collect();
        events.sort_by_key(|(step, kind, ..)| (*step, *kind));
        let span = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or_default();
        let mut left: f64 = events.iter().map(|(.., seconds)| seconds).sum();
        let timed = events.iter().filter_map(|(.., event, seconds)| {
            left -= seconds;
            Some((end.saturating_sub(span(left)), self.event(event)?))
        });
        timed.collect()
    }

    /// Totals of the training, as transformers logs them once at the end.
    pub fn totals(&self, summary: &TrainSummary, curves: &Curves) -> Entry {
        let mut values = Vec::new();
        let mut put = |tag: &str, value: f64| values.push((tag.to_string(), value));
        if summary.seconds > 0.0 {
            put("train_runtime", summary.seconds);
            // Of a training that stopped early it is not known how many rows it saw.
            if summary.steps == self.extent.steps {
                put("train_samples_per_second", self.extent.rows as f64 / summary.seconds);
            }
            put("train_steps_per_second", summary.steps as f64 / summary.seconds);
        }
        if let Some(parameters) = self.extent.parameters {
            let parameters = parameters + if self.extent.adapter { summary.trainable_parameters } else { 0 };
            // Two operations a parameter forward, four backward.
            put("total_flos", 6.0 * parameters as f64 * summary.tokens as f64);
        }
        if !curves.steps.is_empty() {
            put("train_loss", curves.steps.iter().map(|step| step.loss).sum::<f64>() / curves.steps.len() as f64);
        }
        Entry::Scalars { kind: Kind::Totals, step: summary.steps, values }
    }
}

fn named(values: &[(&str, f64)]) -> Vec<(String, f64)> {
    values.iter().map(|(tag, value)| (tag.to_string(), *value)).collect()
}

/// What a report says of the model `name`, which was measured after `step` optimizer steps (0 where
/// it was not trained here): by step, those of the other checkpoints among them.
pub(super) fn metrics(report: &Report, name: &str, step: usize) -> Vec<Entry> {
    let mut by_step: BTreeMap<usize, Vec<(String, f64)>> = BTreeMap::new();
    let training = report.model(name).and_then(|model| model.training.as_ref());
    for point in training.into_iter().flat_map(|training| &training.checkpoints).filter(|point| point.step != step) {
        let values = report
            .metrics
            .iter()
            .filter_map(|metric| Some((format!("metrics/{}", metric.name), point.metrics.get(&metric.name)?.value?)));
        by_step.entry(point.step).or_default().extend(values);
    }
    let values = report
        .metrics
        .iter()
        .filter_map(|metric| Some((format!("metrics/{}", metric.name), metric.models.get(name)?.value?)));
    by_step.entry(step).or_default().extend(values);
    by_step
        .into_iter()
        .filter(|(_, values)| !values.is_empty())
        .map(|(step, values)| Entry::Scalars { kind: Kind::Metrics, step, values })
        .collect()
}

/// What a model answered, in the words of the published scripts: the first `count` items.
pub(super) fn answers(report: &Report, predictions: &[Prediction], count: usize) -> Vec<Text> {
    let by_id: BTreeMap<&str, &str> = predictions.iter().map(|p| (p.id.as_str(), p.text.as_str())).collect();
    let answered = report.items.iter().filter_map(|item| Some((item, by_id.get(item.id.as_str())?)));
    let text = |(item, text): (&crate::report::ItemRow, &&str)| Text {
        caption: item.id.clone(),
        text: format!("Question: {}\n\nLLM:{text}", item.question),
    };
    answered.take(count).map(text).collect()
}
