//! The numbers of training: gradients by candle's autograd, their norm, AdamW.

use std::collections::BTreeMap;

use candle_core::{D, Device, Tensor, Var};
use karat_backend::{AdamW, BackendError, IGNORE, LabelledView};

use crate::dropout::Dropout;
use crate::model::{Decoder, Rotary, log_probabilities};
use crate::weights::{Vars, values};
use crate::{Result, failed};

/// The two moments of AdamW for each trained tensor.
pub type Moments = BTreeMap<String, [Tensor; 2]>;

/// The labels of a row that are trained on: the places whose next token they are, and that token. The label of a row's first
/// token predicts nothing.
pub fn targets(labels: &[i32]) -> (Vec<u32>, Vec<u32>) {
    let labels = labels.iter().enumerate().skip(1).filter(|(_, label)| **label != IGNORE);
    labels.map(|(i, label)| (i as u32 - 1, *label as u32)).unzip()
}

/// Whether optimizers of the Hugging Face trainer leave this tensor out of weight decay: biases and norms.
fn excluded_from_decay(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.contains("bias")
        || name.contains("layernorm")
        || name.contains("rmsnorm")
        || name.split('.').any(|part| part == "norm" || part.ends_with("_norm"))
}

/// What is trained, with its gradients and moments.
pub struct Learner {
    /// Of variables where they are trained.
    pub decoder: Decoder,
    /// By their names in checkpoints.
    pub trained: Vars,
    /// Likewise.
    pub moments: Moments,
    gradients: BTreeMap<String, Tensor>,
}

impl Learner {
    /// Nothing is learned yet.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn new(decoder: Decoder, trained: Vars) -> Result<Self> {
        let zeros = |(name, var): (&String, &Var)| {
            let zero = || var.zeros_like().map_err(failed);
            Ok((name.clone(), [zero()?, zero()?]))
        };
        let moments = trained.iter().map(zeros).collect::<Result<_>>()?;
        Ok(Learner { decoder, trained, moments, gradients: BTreeMap::new() })
    }

    /// Adds the gradient of `scale` times the negative log-likelihood of the labels of `rows`, and returns the
    /// log-probability of each. `dropout` is that of the first row.
    ///
    /// # Errors
    /// If the device fails, or a trained tensor is not reached by a gradient.
    pub fn add(
        &mut self,
        data: LabelledView<'_>,
        rows: &[u32],
        scale: f64,
        mut dropout: Option<Dropout>,
        rotary: &mut Rotary,
    ) -> Result<Vec<f32>> {
        let mut logprobs = Vec::new();
        for &row in rows {
            let ids = data.tokens().row(row as usize);
            let (at, targets) = targets(data.row_labels(row as usize));
            if !at.is_empty() {
                let of_row = self.row(ids, &at, &targets, dropout, rotary).map_err(failed)?;
                logprobs.extend(values(&of_row)?);
                let loss = of_row.sum_all().and_then(|sum| sum.affine(-scale, 0.0)).map_err(failed)?;
                self.collect(&loss)?;
            }
            if let Some(dropout) = &mut dropout {
                dropout.first_token += ids.len() as u64;
            }
        }
        Ok(logprobs)
    }

    fn row(
        &self,
        ids: &[u32],
        at: &[u32],
        targets: &[u32],
        dropout: Option<Dropout>,
        rotary: &mut Rotary,
    ) -> candle_core::Result<Tensor> {
        let hidden = self.decoder.hidden(ids, rotary, None, dropout)?;
        let hidden = hidden.index_select(&Tensor::new(at, hidden.device())?, 0)?;
        log_probabilities(&self.decoder.logits(&hidden)?, targets)
    }

    fn collect(&mut self, loss: &Tensor) -> Result<()> {
        let mut all = loss.backward().map_err(failed)?;
        for (name, var) in &self.trained {
            let Some(gradient) = all.remove(var) else {
                return Err(BackendError::failed(format!("no gradient reaches {name}: the backward pass is cut")));
            };
            // The graph behind it is not wanted any more.
            let gradient = gradient.detach();
            let sum = match self.gradients.remove(name) {
                Some(sum) => (sum + gradient).map_err(failed)?,
                None => gradient,
            };
            self.gradients.insert(name.clone(), sum);
        }
        Ok(())
    }

    /// Sum of the squares of each gradient.
    ///
    /// # Errors
    /// If the device fails.
    pub fn squares(&self) -> Result<Vec<(&str, f64)>> {
        let of = |name: &String| self.gradients.get(name).map_or(Ok(0.0), sum_of_squares);
        self.trained.keys().map(|name| Ok((name.as_str(), of(name)?))).collect()
    }

    /// Whether a gradient other than zero has ever reached this tensor before this step: its second moment tells.
    ///
    /// # Errors
    /// If the device fails.
    pub fn reached(&self, name: &str) -> Result<bool> {
        self.moments.get(name).map_or(Ok(false), |[_, v]| Ok(sum_of_squares(v)? > 0.0))
    }

    /// Update number `step` (from 1) of AdamW, as `torch.optim.AdamW` defines it, from the gradients times `clip`, which are
    /// then none:
    /// `p -= lr wd p; m += (1 - b1)(g - m); v = b2 v + (1 - b2) g^2; p -= lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn update(&mut self, adamw: &AdamW, learning_rate: f64, step: usize, clip: f64) -> Result<()> {
        let AdamW { beta1, beta2, eps, weight_decay } = *adamw;
        let size = learning_rate / (1.0 - beta1.powf(step as f64));
        let root = (1.0 - beta2.powf(step as f64)).sqrt();
        for (name, var) in &self.trained {
            let Some([m, v]) = self.moments.get_mut(name) else { continue };
            let decay = if excluded_from_decay(name) { 0.0 } else { weight_decay };
            let gradient = self.gradients.remove(name);
            let apply = || {
                let g = match gradient {
                    Some(gradient) => (gradient * clip)?,
                    None => m.zeros_like()?,
                };
                *m = (&*m + ((&g - &*m)? * (1.0 - beta1))?)?;
                *v = ((&*v * beta2)? + (g.sqr()? * (1.0 - beta2))?)?;
                let change = (&*m / ((v.sqrt()? / root)? + eps)?)?;
                let kept = (var.as_detached_tensor() * (1.0 - learning_rate * decay))?;
                var.set(&(kept - (change * size)?)?)
            };
            apply().map_err(failed)?;
        }
        Ok(())
    }
}

/// Sums of squares row by row in f32, and of those in f64. What is not a number stays visible.
fn sum_of_squares(x: &Tensor) -> Result<f64> {
    let rows = x.sqr().and_then(|squares| squares.sum(D::Minus1)).map_err(failed)?;
    Ok(values(&rows)?.into_iter().map(f64::from).sum())
}

/// Puts `numbers` into a variable.
///
/// # Errors
/// If the device fails.
pub fn set(var: &Var, numbers: Vec<f32>, device: &Device) -> Result<()> {
    Tensor::from_vec(numbers, var.dims(), device).and_then(|tensor| var.set(&tensor)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_label_predicts_nothing_and_what_is_ignored_is_no_target() {
        assert_eq!(targets(&[5, IGNORE, 7, 8]), (vec![1, 2], vec![7, 8]));
        assert_eq!(targets(&[5]), (vec![], vec![]));
        assert_eq!(targets(&[]), (vec![], vec![]));
    }

    /// candle's fused operations cut the gradient without a word; the forms that the decoder is made of must not.
    #[test]
    fn the_slow_forms_have_gradients_and_the_fused_ones_have_none() {
        use candle_nn::{ops, rotary_emb};
        let device = &Device::Cpu;
        let x = Var::from_vec((0..16).map(|i| i as f32 * 0.1 - 0.7).collect(), (1, 1, 4, 4), device).unwrap();
        let weight = Tensor::ones(4, candle_core::DType::F32, device).unwrap();
        let (cos, sin) = (Tensor::full(0.8f32, (4, 2), device).unwrap(), Tensor::full(0.6f32, (4, 2), device).unwrap());
        let reaches = |y: Tensor| {
            let gradients = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            gradients.get(&x).is_some()
        };
        assert!(reaches(ops::rms_norm_slow(&x, &weight, 1e-6).unwrap()));
        assert!(reaches(rotary_emb::rope_slow(&x, &cos, &sin).unwrap()));
        assert!(!reaches(ops::rms_norm(&x, &weight, 1e-6).unwrap()));
        assert!(!reaches(rotary_emb::rope(&x, &cos, &sin).unwrap()));
        assert!(!reaches(ops::softmax_last_dim(&x).unwrap()));
    }
}
