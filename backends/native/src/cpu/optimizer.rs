//! AdamW on the CPU, tensor by tensor.

use karat_model::train::clip_factor;

use super::Cpu;
use crate::device::{Optimizer, Parameter, TensorOps};
use crate::error::Result;
use crate::ops::adamw::{self, Update};
use crate::profile::Timer;
use crate::tensor::{Gradient, Tensor, edit, sum_of_squares, view};

/// AdamW over `parameters`.
pub struct AdamW {
    pub device: Cpu,
    pub parameters: Vec<Parameter>,
}

impl Optimizer for AdamW {
    fn step(&self, gradients: &[&Gradient], max_norm: f64, update: &Update) -> Result<Vec<f64>> {
        let of = |gradient: &&Gradient| match (gradient.squares(), gradient.sum()) {
            (Some(squares), _) => Ok(squares),
            (None, sum) => sum.map_or(Ok(0.0), |sum| sum_of_squares(&sum)),
        };
        let sums: Vec<f64> = gradients.iter().map(of).collect::<Result<_>>()?;
        if sums.iter().any(|sum| !sum.is_finite()) {
            return Ok(sums);
        }
        let norm = sums.iter().fold(0f64, |total, sum| total + sum).sqrt();
        let clip = clip_factor(norm, max_norm);
        for (parameter, gradient) in self.parameters.iter().zip(gradients) {
            let weight_decay = if parameter.decays { update.weight_decay } else { 0.0 };
            let update = Update { weight_decay, gradient_scale: clip, ..*update };
            let sum = gradient.sum().map_or_else(|| self.device.zero_activation(&parameter.tensor), Ok)?;
            // Its memory goes as soon as it is used.
            gradient.clear()?;
            apply(parameter, &sum, &update)?;
        }
        Ok(sums)
    }
}

/// One update of a tensor and its moments.
fn apply(Parameter { tensor, moments: [m, v], .. }: &Parameter, gradient: &Tensor, update: &Update) -> Result<()> {
    let _timer = Timer::new("AdamW", 0.0);
    let g = view(gradient)?;
    let (mut of_m, mut of_v) = (Ok(()), Ok(()));
    edit(tensor, |p| of_m = edit(m, |m| of_v = edit(v, |v| adamw::update(p, m, v, &g, update))))?;
    of_m.and(of_v)
}
