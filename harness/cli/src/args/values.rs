//! Values of flags, read and checked: what is out of range is refused under the flag's name. The
//! ranges of decoding are those of suites ([`karat::suite::limits`]).

use karat::suite::limits;
use serde_json::Value;

pub fn share(text: &str) -> Result<f64, String> {
    match not_negative(text)? {
        x if x <= 1.0 => Ok(x),
        _ => Err("a share is between 0 and 1".to_string()),
    }
}

pub fn not_negative(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x.is_finite() && x >= 0.0 => Ok(x),
        _ => Err("give a number of at least 0".to_string()),
    }
}

fn real(text: &str) -> Result<f64, String> {
    text.parse().map_err(|_| "it must be a number".to_string())
}

fn whole(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "it must be a whole number of at least 0".to_string())
}

pub fn temperature(text: &str) -> Result<f64, String> {
    real(text).and_then(limits::temperature)
}

pub fn top_p(text: &str) -> Result<f64, String> {
    real(text).and_then(limits::top_p)
}

pub fn top_k(text: &str) -> Result<usize, String> {
    usize::try_from(whole(text)?).map_err(|e| e.to_string())
}

pub fn max_new_tokens(text: &str) -> Result<usize, String> {
    whole(text).and_then(limits::max_new_tokens)
}

pub fn decode_batch(text: &str) -> Result<usize, String> {
    whole(text).and_then(limits::decode_batch)
}

/// Worker threads that this machine has a use for.
pub fn threads(text: &str) -> Result<usize, String> {
    whole(text).and_then(limits::threads)
}

/// Threads to compare with one.
pub fn several_threads(text: &str) -> Result<usize, String> {
    threads(text).and_then(|n| if n < 2 { Err("give at least 2".to_string()) } else { Ok(n) })
}

pub fn seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("a seed is a whole number from 0 to {}", u64::MAX))
}

/// `KEY=VALUE` of a backend's option; a value is JSON, or a text where it is none.
pub fn option(text: &str) -> Result<(String, Value), String> {
    let Some((key, value)) = text.split_once('=').filter(|(key, _)| !key.trim().is_empty()) else {
        return Err("it must be of the form KEY=VALUE, for example spin=true".into());
    };
    Ok((key.trim().into(), serde_json::from_str(value).unwrap_or_else(|_| Value::from(value))))
}

/// A time: `10`, `0.5`.
pub fn seconds(text: &str) -> Result<std::time::Duration, String> {
    std::time::Duration::try_from_secs_f64(not_negative(text)?).map_err(|e| e.to_string())
}

/// A size in bytes: `500000`, `500KB`, `2GB`.
pub fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        other => return Err(format!("unknown unit {other:?}; KB, MB and GB are known")),
    };
    let number: u64 = digits.trim().parse().map_err(|_| "give a whole number, with KB, MB or GB behind it")?;
    number.checked_mul(unit).filter(|&n| n > 0).ok_or_else(|| "out of range".into())
}
