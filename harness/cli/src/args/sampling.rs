//! Flags of sampling, for every command that generates.

use clap::Args;

use super::values;

/// Which of the probable tokens is taken.
#[derive(Args)]
pub struct SamplingArgs {
    /// Sample at this temperature [default: greedy]
    #[arg(long, value_name = "T", value_parser = values::temperature, allow_negative_numbers = true)]
    pub temperature: Option<f64>,
    /// Sample from the smallest set of tokens with this probability
    #[arg(
        long,
        value_name = "P",
        default_value_t = 1.0,
        value_parser = values::top_p,
        allow_negative_numbers = true,
        requires = "temperature"
    )]
    pub top_p: f64,
    /// Sample from the K most probable tokens; 0 is off
    #[arg(
        long,
        value_name = "K",
        default_value_t = 0,
        value_parser = values::top_k,
        allow_negative_numbers = true,
        requires = "temperature"
    )]
    pub top_k: usize,
    /// Seed of sampling
    #[arg(
        long,
        value_name = "N",
        default_value_t = 42,
        value_parser = values::seed,
        allow_negative_numbers = true,
        requires = "temperature"
    )]
    pub seed: u64,
}
