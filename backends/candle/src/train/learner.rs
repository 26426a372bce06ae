//! The numbers of training: gradients by candle's autograd, their norm, AdamW.

use std::collections::BTreeMap;

use candle_core::{D, Device, Tensor, Var};
use karat_backend::{AdamW, BackendError};
use karat_model::publish::{Put, Shapes};
use karat_model::train::{
    Dropout, Label, Learner, MicroBatch, OptimizerStep, TensorState, clip_factor, excluded_from_decay,
};

use crate::causal::score;
use crate::dropout::Masks;
use crate::model::{Decoder, Rotary, log_probabilities};
use crate::weights::{Vars, set, shapes, values};
use crate::{Result, failed};

/// The trained variables, with their gradients and moments.
pub struct CandleLearner<'a> {
    /// Of variables where they are trained.
    decoder: Decoder,
    /// Of the same tensors, none of which is learned.
    evaluator: &'a Decoder,
    rotary: &'a mut Rotary,
    device: &'a Device,
    /// By their names in checkpoints.
    trained: Vars,
    /// The two moments of AdamW for each.
    moments: BTreeMap<String, [Tensor; 2]>,
    gradients: BTreeMap<String, Tensor>,
    /// Probability of dropping an input of the adapter.
    dropout: f64,
}

impl<'a> CandleLearner<'a> {
    /// Nothing is learned yet of `trained`.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn new(
        decoder: Decoder,
        evaluator: &'a Decoder,
        rotary: &'a mut Rotary,
        device: &'a Device,
        trained: Vars,
        dropout: f64,
    ) -> Result<Self> {
        let zeros = |(name, var): (&String, &Var)| {
            let zero = || var.zeros_like().map_err(failed);
            Ok((name.clone(), [zero()?, zero()?]))
        };
        let moments = trained.iter().map(zeros).collect::<Result<_>>()?;
        let gradients = BTreeMap::new();
        Ok(CandleLearner { decoder, evaluator, rotary, device, trained, moments, gradients, dropout })
    }

    /// The log-probabilities of `targets` in the row `ids`.
    fn row(&mut self, ids: &[u32], targets: &[Label], masks: Option<Masks>) -> candle_core::Result<Tensor> {
        let hidden = self.decoder.hidden(ids, self.rotary, None, masks)?;
        let at: Vec<u32> = targets.iter().map(|target| target.at as u32).collect();
        let hidden = hidden.index_select(&Tensor::new(at, hidden.device())?, 0)?;
        let ids: Vec<u32> = targets.iter().map(|target| target.id).collect();
        log_probabilities(&self.decoder.logits(&hidden)?, &ids)
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
}

impl Learner for CandleLearner<'_> {
    type LogProbs = Vec<f32>;

    fn trained(&self) -> Shapes {
        shapes(&self.trained)
    }

    fn zero_gradients(&mut self) -> Result<()> {
        self.gradients.clear();
        Ok(())
    }

    /// Row by row: the graph of one is let go before the next.
    fn add_gradients(&mut self, batch: MicroBatch<'_>, scale: f64, dropout: Option<Dropout>) -> Result<Vec<f32>> {
        let (mut logprobs, p) = (Vec::new(), self.dropout);
        let mut masks = dropout.filter(|_| p > 0.0).map(|of| Masks { p, of });
        for (ids, targets) in batch.rows() {
            let targets: Vec<Label> = targets.collect();
            if !targets.is_empty() {
                let of_row = self.row(ids, &targets, masks).map_err(failed)?;
                logprobs.extend(values(&of_row)?);
                let loss = of_row.sum_all().and_then(|sum| sum.affine(-scale, 0.0)).map_err(failed)?;
                self.collect(&loss)?;
            }
            if let Some(masks) = &mut masks {
                masks.of.first_token += ids.len() as u64;
            }
        }
        Ok(logprobs)
    }

    fn log_probs(&self, of: Vec<f32>) -> Result<Vec<f32>> {
        Ok(of)
    }

    /// AdamW as `torch.optim.AdamW` defines it:
    /// `p -= lr wd p; m += (1 - b1)(g - m); v = b2 v + (1 - b2) g^2; p -= lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)`.
    fn update(&mut self, step: OptimizerStep<'_>) -> Result<Vec<f64>> {
        let square = |name: &String| self.gradients.get(name).map_or(Ok(0.0), sum_of_squares);
        let squares: Vec<f64> = self.trained.keys().map(square).collect::<Result<_>>()?;
        if squares.iter().any(|square| !square.is_finite()) {
            return Ok(squares);
        }
        let clip = clip_factor(squares.iter().sum::<f64>().sqrt(), step.max_grad_norm);
        let OptimizerStep { number, learning_rate, adamw: &AdamW { beta1, beta2, eps, weight_decay }, .. } = step;
        let size = learning_rate / (1.0 - beta1.powf(number as f64));
        let root = (1.0 - beta2.powf(number as f64)).sqrt();
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
        Ok(squares)
    }

    fn score(&mut self, batch: MicroBatch<'_>) -> Result<Vec<f32>> {
        let mut logprobs = Vec::new();
        for (ids, targets) in batch.rows() {
            let targets: Vec<Label> = targets.collect();
            if !targets.is_empty() {
                let scores = score(&mut self.evaluator.row(self.rotary), ids)?;
                logprobs.extend(targets.iter().map(|target| scores.logprobs[target.at]));
            }
        }
        Ok(logprobs)
    }

    fn read(&self, of: TensorState, name: &str, put: &mut Put<'_>) -> Result<()> {
        let tensor = match of {
            TensorState::Parameter => self.trained.get(name).map(Var::as_tensor),
            TensorState::FirstMoment => self.moments.get(name).map(|[m, _]| m),
            TensorState::SecondMoment => self.moments.get(name).map(|[_, v]| v),
        };
        put(&values(tensor.ok_or_else(|| untrained(name))?)?)
    }

    fn write(&mut self, of: TensorState, name: &str, values: Vec<f32>) -> Result<()> {
        let moment = match of {
            TensorState::Parameter => {
                return set(self.trained.get(name).ok_or_else(|| untrained(name))?, values, self.device);
            }
            TensorState::FirstMoment => self.moments.get_mut(name).map(|[m, _]| m),
            TensorState::SecondMoment => self.moments.get_mut(name).map(|[_, v]| v),
        };
        let moment = moment.ok_or_else(|| untrained(name))?;
        *moment = Tensor::from_vec(values, moment.dims(), self.device).map_err(failed)?;
        Ok(())
    }
}

fn untrained(name: &str) -> BackendError {
    BackendError::failed(format!("{name} is not trained"))
}

/// Sums of squares row by row in f32, and of those in f64. What is not a number stays visible.
fn sum_of_squares(x: &Tensor) -> Result<f64> {
    let rows = x.sqr().and_then(|squares| squares.sum(D::Minus1)).map_err(failed)?;
    Ok(values(&rows)?.into_iter().map(f64::from).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// candle's fused operations cut the gradient without a word; the forms that the decoder is
    /// made of must not.
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
