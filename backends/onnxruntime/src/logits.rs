//! From logits to probabilities: in f32 where rounding cannot matter, sums in f64, always in one
//! order, so that the bits do not depend on how wide the processor's registers are.

use std::sync::LazyLock;

use karat_backend::BackendError;
use karat_model::sampling::argmax;
use pulp::Arch;

/// The widest instructions of this processor.
pub(crate) static WIDEST: LazyLock<Arch> = LazyLock::new(Arch::new);

/// The most probable id, or an error that names a logit that is not a number.
fn highest(logits: &[f32]) -> Result<u32, BackendError> {
    argmax(logits).map(|id| id as u32).ok_or_else(|| {
        let id = logits.iter().position(|x| x.is_nan()).unwrap_or_default();
        BackendError::failed(format!("the model's logit of id {id} is not a number"))
    })
}

/// Numbers worked on side by side.
const LANES: usize = 16;

/// `e^x` for `x` of at most 0, to within 2 units in the last place; below -87, where it is under
/// 2e-38, 0.
///
/// `e^x = 2^n e^r` with `n` the nearest whole number to `x / ln 2`; `e^r` by its Taylor polynomial,
/// whose remainder over `|r| <= ln(2) / 2` is below 1e-8. Written so that the compiler can work on
/// several numbers at once, which it cannot with the library's function.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // ln 2 in two parts, the first short enough that its product with n is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding it rounds to a whole number, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let shifted = x.max(-87.0) * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x.max(-87.0) - n * LN2_HIGH - n * LN2_LOW;
    let p = 1.0 / 5040.0;
    let p = p * r + 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    let scale = f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { p * scale }
}

/// `log softmax(logits)[id]` in nats, and whether `id` is the most probable one.
///
/// # Errors
/// If a logit is not a number: the model is broken, and any choice would be noise.
pub fn log_probability(logits: &[f32], id: u32) -> Result<(f32, bool), BackendError> {
    let best = highest(logits)?;
    let total = WIDEST.dispatch(
        #[inline(always)]
        || sum_of_exps(logits, logits[best as usize]),
    );
    let value = f64::from(logits[id as usize] - logits[best as usize]) - total.ln();
    Ok((value as f32, best == id))
}

/// The sum of `e^(x - highest)`.
#[inline(always)]
fn sum_of_exps(logits: &[f32], highest: f32) -> f64 {
    let mut total = 0.0f64;
    // Sums of a few hundred in f32, each in its lane; those in f64.
    for stretch in logits.chunks(32 * LANES) {
        let mut sums = [0.0f32; LANES];
        for values in stretch.chunks(LANES) {
            sums.iter_mut().zip(values).for_each(|(sum, &x)| *sum += exp(x - highest));
        }
        total += sums.iter().map(|&sum| f64::from(sum)).sum::<f64>();
    }
    total
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
    fn the_exponential_is_the_librarys_to_the_last_places() {
        let (mut x, mut worst) = (0.0f32, 0.0f64);
        while x > -87.0 {
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
            x -= 0.000_77;
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst:e}");
        assert_eq!((exp(0.0), exp(-88.0), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
    }

    #[test]
    fn a_logit_that_is_not_a_number_is_named() {
        assert!(log_probability(&[1.0, f32::NAN], 0).unwrap_err().message.contains("id 1"));
    }
}
