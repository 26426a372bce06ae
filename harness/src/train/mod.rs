//! What training is told and what it leaves: configuration, schedule, plan, checkpoint state, log.

pub mod config;
pub mod log;
pub mod peft;
pub mod plan;
pub mod schedule;
pub mod state;

pub use config::LoraConfig;
