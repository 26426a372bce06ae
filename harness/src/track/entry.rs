//! What trackers are given: numbers and texts of a model at a step.

use std::time::Duration;

/// What a group of numbers is about. Trackers name some of them differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An optimizer step.
    Train,
    /// The loss of held-out rows during training.
    Evaluation,
    /// Totals of a training that is done.
    Totals,
    /// Metrics of a report.
    Metrics,
}

/// Something that is logged of one model.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// Numbers; NaN and infinity too, for they are what one looks for.
    Scalars {
        /// What they are about.
        kind: Kind,
        /// After so many optimizer steps.
        step: usize,
        /// By tag.
        values: Vec<(String, f64)>,
    },
    /// Texts, as they are.
    Texts {
        /// What they are, e.g. `Prediction`.
        tag: &'static str,
        /// After so many optimizer steps.
        step: usize,
        /// One by one.
        texts: Vec<Text>,
    },
}

/// A text and what it is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// The id of its item.
    pub caption: String,
    /// The text.
    pub text: String,
}

/// An entry and when it came about: since the beginning of 1970.
pub type Timed = (Duration, Entry);

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All was done.
    Finished,
    /// By an error.
    Crashed,
    /// The user stopped it.
    Stopped,
}
