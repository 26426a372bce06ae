//! The form of a text: reasoning closed and followed by an answer, an end before the token limit,
//! its length.

use super::definition::{Direction, MetricDef, Reads, SHARE, unbounded};
use super::python;
use super::sample::{Sample, flag};
use crate::backend::StopReason;
use crate::eval::think::ThinkState;

/// Metrics of this file.
pub(super) const METRICS: &[MetricDef] = &[
    MetricDef::of(
        "format",
        SHARE,
        Direction::Higher,
        Reads::FullText,
        "reasoning closed (or absent where the reference has none), then an answer, nothing before",
        |s| flag(well_formed(s)),
    )
    .titled("Format kept", "格式正确率")
    .headline()
    .yes_or_no(),
    MetricDef::of(
        "truncated",
        SHARE,
        Direction::Lower,
        Reads::Stop,
        "generations cut off by the token limit or the context",
        |s| s.prediction.stop.and_then(|stop| flag(stop != StopReason::Stop)),
    )
    .titled("Truncated", "截断率")
    .yes_or_no(),
    MetricDef::of(
        "length_ratio",
        unbounded("ratio"),
        Direction::Neutral,
        Reads::Answer,
        "characters of the answer over those of the reference answer, white space left out",
        |s| {
            let visible = |text| python::visible(text).count() as f64;
            s.answered(|| visible(s.answer()) / visible(s.reference_answer()))
        },
    )
    .titled("Length ratio", "长度比")
    .decimals(2),
    MetricDef::of("generated_tokens", unbounded("tokens"), Direction::Neutral, Reads::Stop, "tokens generated", |s| {
        s.prediction.ids.as_ref().map(|ids| ids.len() as f64)
    })
    .titled("Generated tokens", "生成词元数")
    .decimals(1),
];

fn well_formed(s: &Sample<'_>) -> bool {
    let parts = &s.parts;
    let reasoned = match parts.state {
        ThinkState::Closed | ThinkState::CloseOnly => true,
        ThinkState::None => s.reference_think().is_empty(),
        ThinkState::Unclosed => false,
    };
    reasoned && parts.before.is_empty() && !parts.answer.is_empty() && !s.tags.stray(parts.answer)
}
