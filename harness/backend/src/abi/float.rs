//! Floats in JSON, the non-finite ones included.
//!
//! JSON has no NaN, and serde_json writes `null` for it, which no float reads back. A loss that
//! diverged is just what an event must be able to say, so such values are written as the strings
//! `NaN`, `inf` and `-inf`.

use std::fmt;

use serde::de::{self, Deserializer, Visitor};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

/// Writes an `f64`; the module is for `#[serde(with = ...)]` on one.
///
/// # Errors
/// The serializer's.
pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if value.is_finite() { serializer.serialize_f64(*value) } else { serializer.collect_str(value) }
}

/// Reads an `f64`.
///
/// # Errors
/// Anything but a number or one of the three strings.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    struct Float;
    impl Visitor<'_> for Float {
        type Value = f64;
        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("a number, \"NaN\", \"inf\" or \"-inf\"")
        }
        fn visit_f64<E: de::Error>(self, value: f64) -> Result<f64, E> {
            Ok(value)
        }
        fn visit_i64<E: de::Error>(self, value: i64) -> Result<f64, E> {
            Ok(value as f64)
        }
        fn visit_u64<E: de::Error>(self, value: u64) -> Result<f64, E> {
            Ok(value as f64)
        }
        fn visit_str<E: de::Error>(self, value: &str) -> Result<f64, E> {
            match value {
                "NaN" => Ok(f64::NAN),
                "inf" => Ok(f64::INFINITY),
                "-inf" => Ok(f64::NEG_INFINITY),
                _ => Err(E::invalid_value(de::Unexpected::Str(value), &self)),
            }
        }
    }
    deserializer.deserialize_any(Float)
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct One(#[serde(with = "self")] f64);

/// For `#[serde(with = ...)]` on a `Vec<f64>`.
pub mod list {
    use super::{Deserialize, Deserializer, One, Serializer};

    /// Writes a list.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(values: &[f64], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(values.iter().copied().map(One))
    }
    /// Reads a list.
    ///
    /// # Errors
    /// Anything but a list of what [`super::deserialize`] reads.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
        Ok(Vec::<One>::deserialize(deserializer)?.into_iter().map(|One(value)| value).collect())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::{Event, StepEvent};

    #[test]
    fn a_diverged_step_crosses_as_json() {
        let step = StepEvent {
            step: 3,
            epoch: 0.5,
            loss: f64::NAN,
            micro_losses: vec![f64::INFINITY, f64::NEG_INFINITY, 1.0],
            learning_rate: 1e-4,
            grad_norm: f64::INFINITY,
            label_tokens: 7,
            tokens: 20,
            seconds: 0.25,
            memory: None,
        };
        let json = serde_json::to_string(&Event::Step(step)).unwrap();
        let Event::Step(back) = serde_json::from_str(&json).unwrap() else { panic!("another event came back: {json}") };
        assert!(back.loss.is_nan(), "{json}");
        assert_eq!(back.micro_losses, [f64::INFINITY, f64::NEG_INFINITY, 1.0]);
        assert_eq!(back.grad_norm, f64::INFINITY);
        assert_eq!(back.learning_rate, 1e-4);
    }

    #[test]
    fn a_finite_loss_keeps_every_bit() {
        let event = Event::Evaluation { step: 1, loss: 0.1 + 0.2, tokens: 1, seconds: 1.0 };
        let json = serde_json::to_string(&event).unwrap();
        assert!(json.contains("0.30000000000000004"), "{json}");
        assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event);
    }

    #[test]
    fn other_text_is_no_float() {
        let json = r#"{"type":"evaluation","step":1,"loss":"low","tokens":1,"seconds":1.0}"#;
        let error = serde_json::from_str::<Event>(json).unwrap_err().to_string();
        assert!(error.contains("low") && error.contains("NaN"), "{error}");
    }
}
