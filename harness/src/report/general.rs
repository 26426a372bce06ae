//! General text under every model: pooled values, and differences paired by text.

use std::collections::BTreeMap;
use std::f64::consts::LN_2;

use super::inputs::{GeneralText, ModelRun, best, finite};
use super::model::{Comparison, Direction, General, Metric, MetricValue};
use super::significance::{self, Paired};
use crate::eval::PartScore;
use crate::eval::stats::{StatsOptions, bootstrap_ratio_ci};

/// What one measure of a text is: its sum and its weight.
type Terms = fn(&PartScore) -> (f64, f64);

/// Name, titles, unit, and the terms that are pooled.
const MEASURES: [(&str, &str, &str, &str, Terms); 2] = [
    ("general_nll", "General NLL", "通用文本负对数似然", "nats/token", |s| (-s.logprob, s.tokens as f64)),
    ("general_bits_per_byte", "General bits per byte", "通用文本每字节比特数", "bits/byte", |s| {
        (-s.logprob / LN_2, s.bytes as f64)
    }),
];

/// Decimals of all of them in tables.
const DECIMALS: usize = 3;

/// `pairs` are the places of baseline and candidate among `models`.
pub(super) fn general(
    texts: &GeneralText,
    models: &[ModelRun],
    pairs: &[(usize, usize)],
    stats: &StatsOptions,
) -> General {
    let asked: Vec<&ModelRun> = models.iter().filter(|m| texts.scores.contains_key(&m.name)).collect();
    let scores = |name: &str| texts.scores.get(name).map_or(&[][..], Vec::as_slice);
    let metrics: Vec<Metric> = MEASURES
        .iter()
        .map(|(name, title_en, title_zh, unit, terms)| {
            let values: BTreeMap<String, MetricValue> =
                asked.iter().map(|m| (m.name.clone(), value(scores(&m.name), *terms, stats))).collect();
            Metric {
                name: (*name).into(),
                title_en: (*title_en).into(),
                title_zh: (*title_zh).into(),
                unit: (*unit).into(),
                direction: Direction::Lower,
                decimals: DECIMALS,
                headline: true,
                signature: None,
                best: best(Direction::Lower, DECIMALS, asked.iter().map(|m| m.name.as_str()), &values),
                models: values,
            }
        })
        .collect();
    // Every text is a source of its own.
    let sources: Vec<String> = (0..asked.first().map_or(0, |m| scores(&m.name).len())).map(|i| i.to_string()).collect();
    let comparisons = pairs
        .iter()
        .map(|&(a, b)| (&models[a].name, &models[b].name))
        .filter(|(a, b)| texts.scores.contains_key(*a) && texts.scores.contains_key(*b))
        .map(|(a, b)| {
            let paired = metrics.iter().zip(&MEASURES).map(|(metric, (.., terms))| {
                let each =
                    |name: &str| scores(name).iter().map(|s| Some((ratio(terms(s))?, Some(terms(s).1)))).collect();
                Paired {
                    metric: &metric.name,
                    direction: Direction::Lower,
                    baseline: each(a),
                    candidate: each(b),
                    clusters: sources.iter().map(String::as_str).collect(),
                }
            });
            Comparison {
                baseline: a.clone(),
                candidate: b.clone(),
                metrics: significance::compare(paired.collect(), stats),
                allowed: Vec::new(),
            }
        })
        .collect();
    let first = asked.first().map_or(&[][..], |m| scores(&m.name));
    General {
        file: texts.file.clone(),
        tokens: first.iter().map(|s| s.tokens).sum(),
        bytes: first.iter().map(|s| s.bytes).sum(),
        metrics,
        comparisons,
    }
}

fn ratio((sum, weight): (f64, f64)) -> Option<f64> {
    finite(sum / weight)
}

fn value(scores: &[PartScore], terms: Terms, stats: &StatsOptions) -> MetricValue {
    let terms: Vec<(f64, f64)> = scores.iter().map(terms).filter(|t| t.1 > 0.0).collect();
    let all = terms.iter().fold((0.0, 0.0), |(sum, weight), t| (sum + t.0, weight + t.1));
    let interval = (terms.len() > 1).then(|| bootstrap_ratio_ci(&terms, stats));
    MetricValue {
        value: ratio(all),
        pooled: true,
        n: terms.len(),
        missing: scores.len() - terms.len(),
        ci_low: interval.as_ref().and_then(|i| finite(i.low)),
        ci_high: interval.as_ref().and_then(|i| finite(i.high)),
        truncation: None,
    }
}
