//! A warning: what to know before a number is believed, as data; worded in `i18n`.

use serde::{Deserialize, Serialize};

/// One thing to know, with its numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Warning {
    /// No item was evaluated.
    NoItems,
    /// There is no base model to compare with.
    NoBase,
    /// There is only one model: nothing is compared.
    OneModel,
    /// The evaluation loss rose after its best point.
    Overfitting {
        /// The model.
        model: String,
        /// Step of the lowest evaluation loss.
        best_step: usize,
        /// The lowest loss.
        best_loss: f64,
        /// Step of the last evaluation.
        last_step: usize,
        /// The last loss.
        last_loss: f64,
    },
    /// General text has become significantly less probable than under the model compared with.
    Forgetting {
        /// The model.
        model: String,
        /// The one it is compared with.
        baseline: String,
        /// Bits per byte of the baseline.
        before: f64,
        /// Bits per byte of the model.
        after: f64,
    },
    /// A model says yes where no is right: the dangerous error of a yes-or-no question.
    YesToNo {
        /// The model.
        model: String,
        /// How many.
        count: u64,
        /// Of how many items to be answered with no.
        of: u64,
        /// Yes-or-no items that it does not decide.
        undecided: u64,
        /// Of how many.
        decisions: u64,
    },
    /// Texts were cut off by the token limit.
    Truncated {
        /// The model.
        model: String,
        /// How many.
        truncated: usize,
        /// Of how many of which it is known why they ended.
        items: usize,
        /// Of these, with an unclosed `<think>`: no answer at all.
        unclosed: usize,
    },
    /// Metrics that are undefined for some items, which their table values and comparisons leave
    /// out.
    Missing {
        /// The model.
        model: String,
        /// Metric and number of items without a value.
        metrics: Vec<(String, usize)>,
        /// Of how many.
        items: usize,
    },
    /// Merged into the weights and computed in the element type of the run, an adapter is another
    /// model than beside them.
    MergedDiffers {
        /// The model.
        model: String,
        /// The element type.
        dtype: String,
        /// Largest effect of the adapter on the log-probability of a token, in nats.
        effect: f64,
        /// Largest difference that merging makes, in nats.
        difference: f64,
        /// Mean effect.
        mean_effect: f64,
        /// Mean difference.
        mean_difference: f64,
    },
    /// Rows of the data could not be used.
    BadRows {
        /// How many.
        count: u64,
    },
    /// Items that also stand in the training data.
    Leaks {
        /// Word for word.
        exact: u64,
        /// Nearly.
        near: u64,
    },
    /// Few items: what could be missed.
    FewItems {
        /// How many.
        items: usize,
        /// Per headline metric, the smallest detectable difference (the largest over the
        /// comparisons).
        detectable: Vec<(String, f64)>,
    },
    /// Items share sources: whole sources are drawn.
    Clustered {
        /// How many items.
        items: usize,
        /// How many sources.
        sources: usize,
    },
    /// Overlap metrics do not measure correctness.
    OverlapIsNotCorrectness,
    /// Items whose whole answer fell to the maximum length.
    Dropped {
        /// How many.
        count: u64,
    },
    /// Items of a part of the data are cut at the maximum length.
    Cut {
        /// `train`, `validation` or `heldout`.
        part: String,
        /// How many.
        cut: u64,
        /// Of how many.
        of: u64,
        /// Tokens that are kept.
        max_length: usize,
        /// Tokens of the longest item of all parts.
        keeps_all: usize,
        /// Positions that the model has, if it says so.
        holds: Option<usize>,
    },
    /// Something the caller found.
    Other {
        /// In the report's language.
        text: String,
    },
}

impl Warning {
    /// Whether it merely informs (and stands below the others).
    pub fn is_note(&self) -> bool {
        matches!(self, Warning::OverlapIsNotCorrectness | Warning::FewItems { .. } | Warning::Clustered { .. })
    }
}
