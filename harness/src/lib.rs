//! **What did fine-tuning do to this model?** Karat answers with evidence: it trains a base model into a LoRA and a
//! full-parameter checkpoint, measures all three on the same items and writes reports that a test can hold on to.

pub mod abi;
pub mod backend;
pub mod conformance;
pub mod data;
pub mod error;
pub mod eval;
pub mod fsio;
pub mod plugin;
pub mod report;
pub mod run;
pub mod suite;
pub mod train;

pub use error::{Error, ErrorKind, Result};
