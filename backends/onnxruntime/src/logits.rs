//! From logits to probabilities: in f32 where rounding cannot matter, sums in f64, always in one order.

use karat::backend::BackendError;

/// The most probable id; ties go to the lowest.
///
/// # Errors
/// If a logit is not a number: the model is broken, and any choice would be noise.
pub fn argmax(logits: &[f32]) -> Result<u32, BackendError> {
    let (mut best, mut highest) = (0, f32::NEG_INFINITY);
    for (id, &x) in logits.iter().enumerate() {
        if x.is_nan() {
            return Err(BackendError::failed(format!("the model's logit of id {id} is not a number")));
        }
        if x > highest {
            (best, highest) = (id, x);
        }
    }
    Ok(best as u32)
}

/// `log softmax(logits)[id]` in nats, and whether `id` is the most probable one.
///
/// # Errors
/// As [`argmax`].
pub fn log_probability(logits: &[f32], id: u32) -> Result<(f32, bool), BackendError> {
    let best = argmax(logits)?;
    let highest = logits[best as usize];
    let total: f64 =
        logits.chunks(64).map(|chunk| f64::from(chunk.iter().map(|&x| (x - highest).exp()).sum::<f32>())).sum();
    let value = f64::from(logits[id as usize] - highest) - total.ln();
    Ok((value as f32, best == id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_sum_to_one_and_survive_large_logits() {
        let logits: Vec<f32> = (0..1000).map(|i| 500.0 + (i as f32 * 0.7).sin() * 8.0).collect();
        let sum: f64 = (0..1000).map(|i| f64::from(log_probability(&logits, i).unwrap().0).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{sum}");
    }

    #[test]
    fn ties_go_to_the_lowest_id_and_a_nan_is_an_error() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0]).unwrap(), 1);
        assert!(argmax(&[1.0, f32::NAN]).unwrap_err().message.contains("id 1"));
    }
}
