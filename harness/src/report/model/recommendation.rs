//! Which model the suite's own priorities speak for.

use serde::{Deserialize, Serialize};

/// What the priorities of a suite (`[verdict]`) come to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recommendation {
    /// The metric that decides.
    pub primary: String,
    /// The model that the others are held against.
    pub baseline: String,
    /// The best model by the primary metric among those that are significantly better than the
    /// baseline by it and are shown to keep every floor; none where there is no such model.
    pub ship: Option<String>,
    /// Floors that a model breaks, or is not shown to keep.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub floors: Vec<Floor>,
}

/// A floor that a model is not shown to keep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Floor {
    /// The model.
    pub model: String,
    /// The metric.
    pub metric: String,
    /// How much worse than the baseline it may be, in the metric's unit.
    pub most: f64,
    /// What it gained over the baseline; negative is worse, none where nobody knows.
    pub gain: Option<f64>,
    /// What the items say.
    pub state: FloorState,
}

/// What the interval of a difference says of a floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FloorState {
    /// The whole interval is above it.
    Kept,
    /// The whole interval is below it.
    Broken,
    /// These items cannot tell.
    Open,
}
