//! The report: data first, pages as pure functions of it.

mod build;
mod facts;
pub mod markdown;
pub mod model;
mod number;
mod significance;
mod warning;
mod words;

pub use build::{Inputs, MetricInfo, ModelRun, Pooled, TrainingRecord, build};
pub use model::*;
pub use warning::Warning;
