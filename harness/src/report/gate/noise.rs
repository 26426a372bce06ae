//! Run-to-run noise: how far a second run of the same models may move a mean.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::eval::determinism::Certificate;
use crate::eval::metric::{self, Reads};
use crate::fsio;
use crate::report::model::Metric;

/// What is known of a backend's determinism on the machine that made the report: 0 where it repeats
/// itself to the bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Noise {
    /// Share of the generated texts that another batch size, thread count or run changes.
    pub flip_rate: f64,
    /// Largest change of a token's log-probability, in nats.
    pub logprob_drift: f64,
}

impl From<&Certificate> for Noise {
    fn from(c: &Certificate) -> Noise {
        Noise { flip_rate: c.flip_rate, logprob_drift: c.logprob_drift }
    }
}

impl Noise {
    /// What a certificate says (`karat --json doctor --determinism`), or any JSON object with these
    /// two fields.
    ///
    /// # Errors
    /// A file that is not there or has not both; numbers that are no share and no distance.
    pub fn read(certificate: &Path) -> Result<Noise> {
        let noise: Noise = fsio::read_json(certificate).map_err(|e| {
            e.help("give the output of karat --json doctor --determinism: it has flip_rate and logprob_drift")
        })?;
        let possible =
            (0.0..=1.0).contains(&noise.flip_rate) && noise.logprob_drift.is_finite() && noise.logprob_drift >= 0.0;
        match possible {
            true => Ok(noise),
            false => Err(Error::data(format!(
                "a flip rate of {} and a drift of {} cannot be",
                noise.flip_rate, noise.logprob_drift
            ))
            .at(certificate.display())),
        }
    }

    /// The most that the mean of a metric can move for no other reason than this; infinite where
    /// that has no bound, so that nothing can be concluded.
    ///
    /// A metric of generated texts: every flipped text may move its value by the metric's whole
    /// range. A metric of the reference's log-probabilities: every token may drift, by as much a
    /// token and, a token having at least one byte, at most as many nats a byte.
    pub fn allowance(&self, of: &Metric, value: f64) -> f64 {
        let info = metric::info(&of.name);
        if info.is_some_and(|m| m.reads == Reads::Reference) {
            return match of.unit.as_str() {
                _ if self.logprob_drift == 0.0 => 0.0,
                "nats/token" => self.logprob_drift,
                "bits/byte" => self.logprob_drift / std::f64::consts::LN_2,
                // A perplexity: the drift is in its exponent.
                "ratio" => value.abs() * self.logprob_drift.exp_m1(),
                _ => f64::INFINITY,
            };
        }
        if self.flip_rate == 0.0 {
            return 0.0;
        }
        let range = info.map(|m| m.range).unwrap_or(match of.unit.as_str() {
            "share" => (0.0, 1.0),
            "%" => (0.0, 100.0),
            _ => (0.0, f64::INFINITY),
        });
        self.flip_rate * (range.1 - range.0)
    }
}
