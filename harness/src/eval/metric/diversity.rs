//! Diversity of an answer's words: distinct-n (Li et al. 2016).

use super::definition::{Direction, MetricDef, Reads, SHARE};
use super::tokens::distinct;

/// Metrics of this file.
pub(super) const METRICS: &[MetricDef] = &[
    MetricDef::of(
        "distinct1",
        SHARE,
        Direction::Neutral,
        Reads::Answer,
        "distinct jieba words among the words of the answer",
        |s| distinct(&s.words().candidate, 1),
    )
    .titled("Distinct words", "不同词占比"),
    MetricDef::of(
        "distinct2",
        SHARE,
        Direction::Neutral,
        Reads::Answer,
        "distinct pairs of jieba words among the pairs of the answer",
        |s| distinct(&s.words().candidate, 2),
    )
    .titled("Distinct word pairs", "不同词对占比"),
];
