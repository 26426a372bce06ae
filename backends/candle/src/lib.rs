//! The candle backend.
pub mod ops;
pub mod rng;
