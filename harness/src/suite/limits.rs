//! The ranges of the numbers that people type: one check for a key of a suite and for a flag of the
//! command line. Each says what the number must be; who asks knows its name.

use crate::backend::most_threads;

/// Sampling temperature: 0 is greedy; at 1000 all tokens are about equally probable.
///
/// # Errors
/// Not a number from 0 to 1000.
pub fn temperature(x: f64) -> Result<f64, String> {
    match (0.0..=1000.0).contains(&x) {
        true => Ok(x),
        false => Err("it must be a number from 0 to 1000; 0 is greedy".into()),
    }
}

/// The probability of the nucleus: 1 is off.
///
/// # Errors
/// Not above 0, or above 1.
pub fn top_p(x: f64) -> Result<f64, String> {
    match x > 0.0 && x <= 1.0 {
        true => Ok(x),
        false => Err("it must be above 0 and at most 1; 1 is off".into()),
    }
}

/// More tokens than any model has positions for.
const TOKENS: u64 = 1 << 24;

/// New tokens of a text.
///
/// # Errors
/// 0, or more than any model has positions for.
pub fn max_new_tokens(n: u64) -> Result<usize, String> {
    within(n, 1, TOKENS)
}

/// Longest row of tokens that is kept.
///
/// # Errors
/// 0, or more than any model has positions for.
pub fn max_length(n: u64) -> Result<usize, String> {
    within(n, 1, TOKENS)
}

/// Rows decoded together: 0 lets the backend choose.
///
/// # Errors
/// More than 2^20.
pub fn decode_batch(n: u64) -> Result<usize, String> {
    within(n, 0, 1 << 20)
}

/// Worker threads: 0 is all cores.
///
/// # Errors
/// More than this machine has a use for: [`most_threads`].
pub fn threads(n: u64) -> Result<usize, String> {
    let most = most_threads();
    match usize::try_from(n) {
        Ok(n) if n <= most => Ok(n),
        _ => Err(format!("it must be at most {most}, all that this machine has a use for; 0 is one a core")),
    }
}

fn within(n: u64, least: u64, most: u64) -> Result<usize, String> {
    match (least..=most).contains(&n) {
        true => usize::try_from(n).map_err(|e| e.to_string()),
        false => Err(format!("it must be a whole number from {least} to {most}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_edges_of_every_range_are_where_they_are_said_to_be() {
        assert_eq!(temperature(0.0), Ok(0.0));
        assert!([-1.0, f64::NAN, f64::INFINITY, 1e30].into_iter().all(|x| temperature(x).is_err()));
        assert_eq!(top_p(1.0), Ok(1.0));
        assert!([0.0, 2.0, -0.5, f64::NAN].into_iter().all(|x| top_p(x).is_err()));
        let most = most_threads();
        assert_eq!((max_new_tokens(1), decode_batch(0), threads(most as u64)), (Ok(1), Ok(0), Ok(most)));
        assert!(max_new_tokens(0).is_err() && max_new_tokens(1_000_000_000_000).is_err());
        assert!(decode_batch(1 << 40).is_err() && threads(most as u64 + 1).is_err());
    }
}
