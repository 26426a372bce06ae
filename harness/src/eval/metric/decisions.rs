//! Yes-or-no questions: what the answer decides at its head ([`decision`]) beside what is right,
//! each error by itself.

use super::definition::{Asks, Direction, MetricDef, Reads, SHARE};
use super::sample::{Sample, flag};
use crate::eval::decision::{self, Decision};

/// Metrics of this file.
pub(super) const METRICS: &[MetricDef] = &[
    MetricDef::of(
        "decision",
        SHARE,
        Direction::Higher,
        Reads::Answer,
        "yes-or-no items that the answer decides rightly at its head; one that decides nothing is wrong",
        |s| decided(s, |found, right| found == Some(right)),
    )
    .titled("Decisions right", "是否判断正确率")
    .headline()
    .yes_or_no()
    .asks(Asks::Decision),
    MetricDef::of(
        "decision_yes_to_no",
        SHARE,
        Direction::Lower,
        Reads::Answer,
        "items to be answered with no that the answer says yes to",
        |s| wrongly(s, Decision::No),
    )
    .titled("Yes where no is right", "应否而答可")
    .headline()
    .yes_or_no()
    .asks(Asks::WrongDecision),
    MetricDef::of(
        "decision_no_to_yes",
        SHARE,
        Direction::Lower,
        Reads::Answer,
        "items to be answered with yes that the answer says no to",
        |s| wrongly(s, Decision::Yes),
    )
    .titled("No where yes is right", "应可而答否")
    .yes_or_no()
    .asks(Asks::WrongDecision),
    MetricDef::of(
        "decision_undecided",
        SHARE,
        Direction::Lower,
        Reads::Answer,
        "yes-or-no items that the answer decides neither way",
        |s| decided(s, |found, _| found.is_none()),
    )
    .titled("Undecided", "未作判断")
    .yes_or_no()
    .asks(Asks::Decision),
];

/// Whether what the answer decides, beside what is right, is as `judge` says; `None` if it is no
/// question of yes or no.
fn decided(s: &Sample<'_>, judge: impl Fn(Option<Decision>, Decision) -> bool) -> Option<f64> {
    let right = s.item.decision?;
    flag(judge(decision::decide(s.answer()), right))
}

/// Of items whose right decision is `right`: whether the answer decides the other.
fn wrongly(s: &Sample<'_>, right: Decision) -> Option<f64> {
    decided(s, |found, _| found.is_some_and(|found| found != right)).filter(|_| s.item.decision == Some(right))
}
