//! Which items changed sides between two models, and where their texts part.

use serde::{Deserialize, Serialize};

use super::ItemExample;
use crate::eval::flips::Flips;

/// The items that one metric calls right of one model and wrong of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlipTable {
    /// The model compared with.
    pub baseline: String,
    /// The model in question.
    pub candidate: String,
    /// The metric that says what is right.
    pub metric: String,
    /// Ids and counts.
    pub flips: Flips,
}

/// An item that changed sides in some [`FlipTable`], in full.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlippedItem {
    /// Its texts.
    pub item: ItemExample,
    /// Where the texts of two models part, one entry a comparison in which the item flipped.
    pub divergences: Vec<Divergence>,
}

/// The first generated token that two models have not in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Divergence {
    /// The model compared with.
    pub baseline: String,
    /// The model in question.
    pub candidate: String,
    /// Generated tokens that both have in common, from the start.
    pub at: usize,
    /// The baseline's next token; none where its text ends there.
    pub baseline_token: Option<Token>,
    /// The candidate's next token.
    pub candidate_token: Option<Token>,
}

/// A token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Its text; empty where unknown.
    pub text: String,
}
