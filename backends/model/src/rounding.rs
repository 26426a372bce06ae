//! Rounding loss of merged weights, where they are stored in the element type of their checkpoint.

use half::{bf16, f16};
use karat_backend::Dtype;

/// From this share of an adapter's change on, losing it is worth a warning.
const LOST: f64 = 0.25;

/// Sums over the matrices that a merge changes: `|round(W + D) - (W + D)|^2` and `|D|^2`. An
/// element of bf16 has 8 bits: a change smaller than half of its last one is gone, and a LoRA of a
/// few steps changes most elements by less.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rounding {
    lost: f64,
    change: f64,
    dtype: Option<Dtype>,
}

impl Rounding {
    /// Adds a matrix: `before` as it was stored, in `dtype`, and `after` with the adapter merged
    /// into it.
    pub fn add(&mut self, dtype: Dtype, before: &[f32], after: &[f32]) {
        let rounded = |x: f32| match dtype {
            Dtype::F32 => x,
            Dtype::Bf16 => bf16::from_f32(x).to_f32(),
            Dtype::F16 => f16::from_f32(x).to_f32(),
        };
        if dtype == Dtype::F32 {
            return;
        }
        self.dtype = Some(dtype);
        for (before, after) in before.iter().zip(after) {
            self.change += (f64::from(*after) - f64::from(*before)).powi(2);
            self.lost += (f64::from(rounded(*after)) - f64::from(*after)).powi(2);
        }
    }

    /// The share of the change that rounding takes, by norm: 0 where nothing is lost.
    pub fn share(&self) -> f64 {
        if self.change > 0.0 { (self.lost / self.change).sqrt() } else { 0.0 }
    }

    /// What to say of it, if it is much.
    pub fn warning(&self) -> Option<String> {
        let dtype = self.dtype.filter(|_| self.share() >= LOST)?;
        Some(format!(
            "the merged weights are written in f32; rounded to {dtype}, in which the base is stored, they would lose about \
             {:.0} % of what the adapter changes: keep and compute them in f32, or use the adapter beside its base",
            100.0 * self.share().min(1.0)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_below_the_last_bit_of_bf16_is_lost_and_said_a_large_one_is_not() {
        let before: Vec<f32> = (0..256).map(|i| bf16::from_f32(0.5 + i as f32 / 512.0).to_f32()).collect();
        let merged = |by: f32| {
            let after: Vec<f32> = before.iter().map(|x| x + by).collect();
            let mut rounding = Rounding::default();
            rounding.add(Dtype::Bf16, &before, &after);
            rounding
        };
        let small = merged(1e-4);
        assert!((small.share() - 1.0).abs() < 1e-3, "{small:?}");
        assert!(small.warning().is_some_and(|w| w.contains("bf16") && w.contains("100 %")));
        assert_eq!(merged(0.25).warning(), None);
        let mut none = Rounding::default();
        none.add(Dtype::F32, &before, &before);
        assert_eq!(none.warning(), None);
    }
}
