//! A metric as an object: name, unit, direction, range, titles, its input and its value.

use super::sample::Sample;
use crate::eval::stats::Interval;
use crate::eval::{PartScore, ReferenceScore};

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// The more the better.
    Higher,
    /// The less the better.
    Lower,
    /// Neither: it describes.
    Neutral,
}

/// What a metric reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reads {
    /// The answer part of the generated text and of the reference.
    Answer,
    /// The reasoning part of both.
    Think,
    /// The whole generated text; and the whole reference, reasoning in tags, where it compares.
    FullText,
    /// Why the generation stopped.
    Stop,
    /// The reference's log-probabilities under the model.
    Reference,
    /// The log-probabilities of a multiple-choice item's options under the model.
    Options,
}

/// How the value of a corpus comes from its items.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Corpus {
    /// Mean over the items that have a value.
    Mean,
    /// Sum of log-probabilities over the sum of tokens.
    PooledByToken,
    /// Sum of log-probabilities over the sum of bytes.
    PooledByByte,
    /// `exp` of the pooled value per token.
    ExpOfPooled,
}

/// Which items a metric has a value for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    /// Any: an item without a value lacks one.
    Anything,
    /// Those that ask for a yes or a no: of the others nothing is missing.
    Decision,
    /// Those too, and it counts wrong decisions: a model that decides nothing makes none.
    WrongDecision,
}

/// How the value of one item is found.
#[derive(Clone, Copy, Debug)]
pub(super) enum ItemValue {
    /// From what is known of the item; `None` where it is undefined.
    Sample(fn(&Sample<'_>) -> Option<f64>),
    /// A number of a Python package's function, by its path in [`conformance`].
    Package,
}

/// A metric: all that is known of it, in one place.
#[derive(Clone, Debug, serde::Serialize)]
pub struct MetricDef {
    /// Its name, unique.
    pub name: &'static str,
    /// Unit of the value: `nats/token`, `bits/byte`, `%` (0 to 100), `share` (0 to 1), `ratio`,
    /// `tokens`, `calls`.
    pub unit: &'static str,
    /// Which way is better.
    pub direction: Direction,
    /// Smallest and greatest value it can have; infinite where there is no bound.
    #[serde(skip)]
    pub range: (f64, f64),
    /// What it reads.
    pub reads: Reads,
    /// How a corpus value comes from items.
    pub corpus: Corpus,
    /// What it says, in one sentence.
    pub description: &'static str,
    /// Every item's value is 0 or 1.
    pub binary: bool,
    /// The value from which on (in the metric's direction) an item counts as right; `None` where
    /// the metric grades and has no such point.
    pub right_from: Option<f64>,
    /// What an English and a Chinese table call it; the name where it has no title.
    #[serde(skip)]
    pub titles: [&'static str; 2],
    /// Decimals in tables.
    #[serde(skip)]
    pub decimals: usize,
    /// Whether the verdict names it and pictures draw it.
    #[serde(skip)]
    pub headline: bool,
    /// Which items it has a value for.
    #[serde(skip)]
    pub asks: Asks,
    /// The part of the reference whose tokens or bytes an item weighs in a pooled corpus value.
    #[serde(skip)]
    pub(super) part: fn(&ReferenceScore) -> PartScore,
    #[serde(skip)]
    pub(super) item: ItemValue,
}

impl MetricDef {
    /// The part of an interval of a value that values can lie in.
    pub fn within_range(&self, interval: Interval) -> Interval {
        // `clamp` keeps what is not a number.
        let [low, high] = [interval.low, interval.high].map(|end| end.clamp(self.range.0, self.range.1));
        Interval { low, high }
    }

    pub(super) const fn new(
        name: &'static str,
        (unit, range): (&'static str, (f64, f64)),
        direction: Direction,
        reads: Reads,
        description: &'static str,
        item: ItemValue,
    ) -> Self {
        MetricDef {
            name,
            unit,
            direction,
            range,
            reads,
            corpus: Corpus::Mean,
            description,
            binary: false,
            right_from: None,
            titles: [name, name],
            decimals: 3,
            headline: false,
            asks: Asks::Anything,
            part: ReferenceScore::whole,
            item,
        }
    }

    /// A metric of one item's texts and scores.
    pub(super) const fn of(
        name: &'static str,
        unit: (&'static str, (f64, f64)),
        direction: Direction,
        reads: Reads,
        description: &'static str,
        item: fn(&Sample<'_>) -> Option<f64>,
    ) -> Self {
        Self::new(name, unit, direction, reads, description, ItemValue::Sample(item))
    }

    /// With what tables call it, in English and in Chinese.
    pub(super) const fn titled(mut self, english: &'static str, chinese: &'static str) -> Self {
        self.titles = [english, chinese];
        self
    }

    /// With other decimals in tables than three.
    pub(super) const fn decimals(mut self, decimals: usize) -> Self {
        self.decimals = decimals;
        self
    }

    /// As a headline.
    pub(super) const fn headline(mut self) -> Self {
        self.headline = true;
        self
    }

    /// With a corpus value that is pooled over the tokens or bytes of `part`.
    pub(super) const fn pooled(mut self, corpus: Corpus, part: fn(&ReferenceScore) -> PartScore) -> Self {
        self.corpus = corpus;
        self.part = part;
        self
    }

    /// As a yes-or-no: right with a value of 1, or of 0 where less is better.
    pub(super) const fn yes_or_no(mut self) -> Self {
        self.binary = true;
        self.right_from = Some(match self.direction {
            Direction::Lower => 0.0,
            Direction::Higher | Direction::Neutral => 1.0,
        });
        self
    }

    /// With the value from which on an item is right.
    pub(super) const fn right_from(mut self, value: f64) -> Self {
        self.right_from = Some(value);
        self
    }

    /// With the items that have a value.
    pub(super) const fn asks(mut self, asks: Asks) -> Self {
        self.asks = asks;
        self
    }

    /// Whether an item with this value is right; `None` if the metric has no notion of right.
    pub fn is_right(&self, value: f64) -> Option<bool> {
        let from = self.right_from?;
        Some(match self.direction {
            Direction::Lower => value <= from,
            Direction::Higher | Direction::Neutral => value >= from,
        })
    }
}

/// From 0 to 1.
pub(super) const SHARE: (&str, (f64, f64)) = ("share", (0.0, 1.0));
/// From 0 to 100.
pub(super) const PERCENT: (&str, (f64, f64)) = ("%", (0.0, 100.0));

/// A unit whose values have no upper bound.
pub(super) const fn unbounded(unit: &'static str) -> (&'static str, (f64, f64)) {
    (unit, (0.0, f64::INFINITY))
}
