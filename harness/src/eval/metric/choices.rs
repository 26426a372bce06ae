//! Multiple choice: whether the right option is the most probable one, and whether the answer names
//! it.

use super::definition::{Direction, MetricDef, Reads, SHARE};
use super::sample::{Sample, flag};
use crate::eval::choice::{self, Choice, Normalisation};

/// Metrics of this file.
pub(super) const METRICS: &[MetricDef] = &[
    MetricDef::of("acc", SHARE, Direction::Higher, Reads::Options, "the right option is the most probable one", |s| {
        accuracy(s, Normalisation::Raw)
    })
    .titled("Accuracy (log-likelihood)", "准确率（对数似然）")
    .headline()
    .yes_or_no(),
    MetricDef::of(
        "acc_norm",
        SHARE,
        Direction::Higher,
        Reads::Options,
        "the right option is the most probable one per character",
        |s| accuracy(s, Normalisation::Characters),
    )
    .titled("Accuracy (per character)", "准确率（按字符归一）")
    .headline()
    .yes_or_no(),
    MetricDef::of(
        "acc_bytes",
        SHARE,
        Direction::Higher,
        Reads::Options,
        "the right option is the most probable one per UTF-8 byte",
        |s| accuracy(s, Normalisation::Bytes),
    )
    .titled("Accuracy (per byte)", "准确率（按字节归一）")
    .yes_or_no(),
    MetricDef::of(
        "acc_extracted",
        SHARE,
        Direction::Higher,
        Reads::Answer,
        "the option that the answer names is the right one; an answer that names none is wrong",
        |s| extracted(s, |found, choice| found == Some(choice.gold)),
    )
    .titled("Accuracy (extracted)", "准确率（抽取）")
    .headline()
    .yes_or_no(),
    MetricDef::of(
        "unparsed",
        SHARE,
        Direction::Lower,
        Reads::FullText,
        "answers to multiple-choice items that name no option, or not one alone",
        |s| extracted(s, |found, _| found.is_none()),
    )
    .titled("Unparsed answers", "未能解析的回答")
    .yes_or_no(),
];

/// Whether the most probable option is the right one; `None` if the options were not scored.
fn accuracy(s: &Sample<'_>, by: Normalisation) -> Option<f64> {
    let choice = s.item.choice.as_ref()?;
    let scores = &s.reference?.options;
    let best = choice::most_probable(scores, by).filter(|_| scores.len() == choice.options.len())?;
    flag(best == choice.gold)
}

/// Whether the option that the answer names is as `judge` says. A reasoning that was never closed
/// has no answer.
fn extracted(s: &Sample<'_>, judge: impl Fn(Option<usize>, &Choice) -> bool) -> Option<f64> {
    let choice = s.item.choice.as_ref()?;
    flag(judge(choice::extract(&choice.options, s.answer()), choice))
}
