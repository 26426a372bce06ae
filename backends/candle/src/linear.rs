//! A linear layer, with or without a LoRA adapter, forward and backward.

use std::collections::BTreeMap;

use crate::nn::{self, Precision, Result, Tensor};
use crate::ops::dropout::Key;
use crate::weight::Weight;

/// Gradients of the tensors that are trained, by name; a tensor that is not in here is frozen and costs nothing.
#[derive(Clone, Debug, Default)]
pub struct Gradients(pub BTreeMap<String, Tensor>);

impl Gradients {
    /// Zeros for every tensor of `trained`.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn zeros(trained: &BTreeMap<String, Tensor>) -> Result<Self> {
        trained.iter().map(|(name, t)| Ok((name.clone(), nn::zeros(t.dims())?))).collect::<Result<_>>().map(Gradients)
    }
    /// Where the gradient of `name` is summed, if it is trained.
    pub fn of(&self, name: &str) -> Option<&Tensor> {
        self.0.get(name)
    }
    /// Back to zero.
    ///
    /// # Errors
    /// Never on the CPU.
    pub fn clear(&self) -> Result<()> {
        self.0.values().try_for_each(|g| nn::edit(g, |g| g.fill(0.0)))
    }
}

/// What makes this pass's dropout masks: seed and step of the run, and the tokens of the step that came before.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// Seed of the run.
    pub seed: u64,
    /// Optimizer step, from 1.
    pub step: u32,
    /// Tokens of earlier micro-batches of this step.
    pub first_token: u64,
}

/// `y += scale * B(A(dropout(x)))` (Hu et al., arXiv 2106.09685).
#[derive(Clone, Debug)]
pub struct Lora {
    /// `[r, in]`.
    pub a: Tensor,
    /// `[out, r]`.
    pub b: Tensor,
    /// `lora_alpha / r`, or `/ sqrt(r)`.
    pub scale: f32,
    /// Probability of dropping an input, during training.
    pub dropout: f64,
    /// Number of the module in the model; names its dropout masks.
    pub module: u32,
    /// PEFT's name of `a`.
    pub a_name: String,
    /// PEFT's name of `b`.
    pub b_name: String,
}

impl Lora {
    /// `x` as it enters `A`.
    fn dropped(&self, x: &Tensor, dropout: Option<Dropout>) -> Result<Tensor> {
        match self.key(x, dropout) {
            Some(key) => nn::dropout(x, self.dropout, key),
            None => Ok(x.clone()),
        }
    }
    fn key(&self, x: &Tensor, dropout: Option<Dropout>) -> Option<Key> {
        let d = dropout.filter(|_| self.dropout > 0.0)?;
        let width = x.dims()[1] as u64;
        Some(Key { seed: d.seed, step: d.step, module: self.module, first: d.first_token * width })
    }
}

/// `y = x W^T + bias`, plus the adapter's share.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Module path, e.g. `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// `[out, in]`.
    pub weight: Weight,
    /// `[out]`.
    pub bias: Option<Tensor>,
    /// The adapter, if this module has one.
    pub lora: Option<Lora>,
    /// What its products and its adapter's are computed in.
    pub precision: Precision,
    weight_name: String,
    bias_name: String,
}

impl Linear {
    /// The layer at `name` without an adapter, computing in f32.
    pub fn new(name: String, weight: Weight, bias: Option<Tensor>) -> Self {
        let (weight_name, bias_name) = (format!("{name}.weight"), format!("{name}.bias"));
        Linear { name, weight, bias, lora: None, precision: Precision::F32, weight_name, bias_name }
    }

    /// `(in, out)`.
    pub fn widths(&self) -> (usize, usize) {
        (self.weight.dims()[1], self.weight.dims()[0])
    }

    /// `y` for `x` `[tokens, in]`, and what the backward pass needs of the adapter: `A(dropout(x))` `[tokens, r]`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn forward(&self, x: &Tensor, dropout: Option<Dropout>) -> Result<(Tensor, Option<Tensor>)> {
        let (weight, bias) = (&self.weight, self.bias.as_ref());
        let Some(lora) = &self.lora else { return Ok((nn::linear(self.precision, x, weight, bias)?, None)) };
        let low = nn::linear(self.precision, &lora.dropped(x, dropout)?, &lora.a, None)?;
        let y = nn::linear_with(self.precision, x, weight, bias, Some((lora.scale, &low, &lora.b)))?;
        Ok((y, Some(low)))
    }

    /// Adds the gradients of what is trained to `gradients` and returns that of the input as `dx` asks. The input is
    /// `x` and what [`Linear::forward`] left of it.
    ///
    /// # Errors
    /// If the device fails.
    pub fn backward(
        &self,
        (x, low): (&Tensor, Option<&Tensor>),
        dy: &Tensor,
        dx: InputGradient,
        dropout: Option<Dropout>,
        gradients: &Gradients,
    ) -> Result<InputGradient> {
        let precision = self.precision;
        if let Some(dw) = gradients.of(&self.weight_name) {
            nn::linear_dw(precision, dw, 1.0, dy, x)?;
        }
        if let Some(db) = self.bias.as_ref().and_then(|_| gradients.of(&self.bias_name)) {
            nn::bias_gradient(db, dy)?;
        }
        let (wanted, sum) = match dx {
            InputGradient::Skip => (false, None),
            InputGradient::New => (true, None),
            InputGradient::Sum(dx) => (true, Some(dx)),
        };
        let mut low_gradient = None;
        if let (Some(lora), Some(low)) = (&self.lora, low) {
            let dlow = nn::linear_dx(precision, None, lora.scale, dy, &lora.b)?;
            if let Some(db) = gradients.of(&lora.b_name) {
                nn::linear_dw(precision, db, lora.scale, dy, low)?;
            }
            if let Some(da) = gradients.of(&lora.a_name) {
                nn::linear_dw(precision, da, 1.0, &dlow, &lora.dropped(x, dropout)?)?;
            }
            low_gradient = Some((dlow, lora));
        }
        if !wanted {
            return Ok(InputGradient::Skip);
        }
        let dx = match low_gradient {
            None => nn::linear_dx(precision, sum, 1.0, dy, &self.weight)?,
            Some((dlow, lora)) => match lora.key(x, dropout) {
                None => nn::linear_dx_with(precision, sum, 1.0, dy, &self.weight, Some((&dlow, &lora.a)))?,
                Some(key) => {
                    let dx = nn::linear_dx(precision, sum, 1.0, dy, &self.weight)?;
                    let dropped = nn::linear_dx(precision, None, 1.0, &dlow, &lora.a)?;
                    nn::dropout_add(&dx, &dropped, lora.dropout, key)?;
                    dx
                }
            },
        };
        Ok(InputGradient::Sum(dx))
    }
}

/// The gradient of a layer's input, as several branches sum it up.
#[derive(Clone, Debug)]
pub enum InputGradient {
    /// Nobody needs it.
    Skip,
    /// Needed, nothing summed yet.
    New,
    /// The sum so far.
    Sum(Tensor),
}

impl InputGradient {
    /// The sum, if it was asked for.
    pub fn taken(self) -> Option<Tensor> {
        match self {
            InputGradient::Sum(dx) => Some(dx),
            InputGradient::Skip | InputGradient::New => None,
        }
    }
}
