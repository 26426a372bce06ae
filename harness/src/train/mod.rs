//! A training run on the host's side: the plan, the schedule, the log.

pub mod log;
pub mod plan;
pub mod schedule;

pub use crate::backend::LoraConfig;
