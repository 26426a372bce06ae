//! A linear layer, with or without a LoRA adapter, forward and backward.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cuda::Device;
use crate::cuda::pool::trim;
use crate::nn::{self, Gradient, Mask, Precision, Result, Tensor};
use crate::ops::dropout::Key;
use crate::weight::Weight;

/// Gradients of the tensors that are trained, by name; a tensor that is not in here is frozen and costs nothing.
#[derive(Debug, Default)]
pub struct Gradients(pub BTreeMap<String, Gradient>);

impl Gradients {
    /// Those of every tensor of `trained`, with nothing in them.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn new(trained: &BTreeMap<String, Tensor>) -> Result<Self> {
        trained.iter().map(|(name, t)| Ok((name.clone(), Gradient::new(t)?))).collect::<Result<_>>().map(Gradients)
    }
    /// As [`Gradients::new`], for steps of one micro-batch each: [`Gradient::of_one_batch`].
    ///
    /// # Errors
    /// If the device has no room.
    pub fn of_one_batch(trained: &BTreeMap<String, Tensor>) -> Result<Self> {
        let of = |(name, t): (&String, &Tensor)| Ok((name.clone(), Gradient::of_one_batch(t)?));
        trained.iter().map(of).collect::<Result<_>>().map(Gradients)
    }
    /// Where the gradient of `name` is summed, if it is trained.
    pub fn of(&self, name: &str) -> Option<&Gradient> {
        self.0.get(name)
    }
    /// Nothing is in them from now on.
    ///
    /// # Errors
    /// If the device fails.
    pub fn clear(&self) -> Result<()> {
        self.0.values().try_for_each(Gradient::clear)?;
        if let Some(device) = self.0.values().find_map(Gradient::shares) {
            trim(&*device.gpu);
        }
        Ok(())
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

/// `y += scale * B(A(dropout(x)))` (Hu et al., arXiv 2106.09685); with [`Dora`], rows scaled to their magnitudes.
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
    /// Set where magnitudes are trained too.
    pub dora: Option<Dora>,
}

/// Weight-decomposed low-rank adaptation (Liu et al., arXiv 2402.09353): `y = g (W + s B A) x` with `g = m / n`, row by row,
/// `n` the norms of the rows of `W + s B A`. They count as constants in the backward pass (its section 4.3). As PEFT has it,
/// dropout concerns what the adapter adds: `y = W x + (g - 1) W x' + g s B A x'` with `x' = dropout(x)`.
#[derive(Clone, Debug)]
pub struct Dora {
    /// `m`, `[out]`.
    pub magnitude: Tensor,
    /// `n`, `[out]`; a function of the weight and the adapter, made anew by [`Linear::renorm`] when these change.
    pub norms: Tensor,
    /// PEFT's name of `m`.
    pub name: String,
}

impl Dora {
    /// `g = m / n`.
    fn gain(&self) -> Result<Tensor> {
        nn::ratio(&self.magnitude, &self.norms)
    }
}

/// What the backward pass needs of an adapter's forward pass.
#[derive(Debug)]
pub struct Adapted {
    /// `A(dropout(x))`, `[tokens, r]`, as `B` reads it: [`nn::lowered`].
    low: Tensor,
    /// What it is still to be multiplied by for the adapter's scale.
    scale: f32,
    /// Which elements of `x` dropout has left.
    mask: Option<Mask>,
    /// With DoRA: `(W + s B A) dropout(x)`, `[tokens, out]`.
    product: Option<Tensor>,
}

impl Lora {
    /// Its trained tensors by their PEFT names.
    pub fn tensors(&self) -> impl Iterator<Item = (&String, &Tensor)> {
        let magnitude = self.dora.as_ref().map(|d| (&d.name, &d.magnitude));
        [(&self.a_name, &self.a), (&self.b_name, &self.b)].into_iter().chain(magnitude)
    }

    /// `A(dropout(x))` as `B` reads it, for the backward pass too; and `x` as it enters `A`, but for a factor.
    fn lowered(&self, precision: Precision, x: &Tensor, dropout: Option<Dropout>) -> Result<(Adapted, Tensor, f32)> {
        let mask = self.mask(x, dropout);
        let (dropped, factor) = dropped(x, mask.as_ref())?;
        let (low, scale) = nn::lowered(precision, &dropped, &self.a, factor, self.scale)?;
        Ok((Adapted { low, scale, mask, product: None }, dropped, factor))
    }

    /// Which elements of `x` enter `A`, if not all.
    fn mask(&self, x: &Tensor, dropout: Option<Dropout>) -> Option<Mask> {
        let d = dropout.filter(|_| self.dropout > 0.0)?;
        let width = x.dims()[1] as u64;
        let key = Key { seed: d.seed, step: d.step, module: self.module, first: d.first_token * width };
        Some(Mask::new(x, self.dropout, key))
    }
}

/// `x` as it enters `A`, but for a factor.
fn dropped(x: &Tensor, mask: Option<&Mask>) -> Result<(Tensor, f32)> {
    mask.map_or_else(|| Ok((x.clone(), 1.0)), |mask| nn::dropout(x, mask))
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

    /// Whether the gradient of its output is more than an operand of products: that of a bias or of DoRA's magnitudes is
    /// a sum of numbers that nothing has rounded.
    pub fn sums_its_gradient(&self) -> bool {
        self.bias.is_some() || self.lora.as_ref().is_some_and(|lora| lora.dora.is_some())
    }

    /// Brings its weight, its bias and its adapter to `device`.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn place(&mut self, device: &Arc<Device>) -> Result<()> {
        self.weight.place(device)?;
        let lora = self.lora.as_mut();
        let of_lora = lora.into_iter().flat_map(|lora| {
            let dora = lora.dora.as_mut().map(|dora| [&mut dora.magnitude, &mut dora.norms]);
            [&mut lora.a, &mut lora.b].into_iter().chain(dora.into_iter().flatten())
        });
        for t in self.bias.as_mut().into_iter().chain(of_lora) {
            *t = t.place(device)?;
        }
        Ok(())
    }

    /// Makes the norms of DoRA anew, after its weights have changed.
    ///
    /// # Errors
    /// If the device fails.
    pub fn renorm(&self) -> Result<()> {
        match &self.lora {
            Some(Lora { a, b, scale, dora: Some(dora), .. }) => {
                nn::merged_norms(&dora.norms, &self.weight, [a, b], *scale)
            }
            _ => Ok(()),
        }
    }

    /// Takes the adapter off and puts what it does into the weight: `g (W + s B A)`, computed in f32 from the tensors as they
    /// are, so that the weight is rounded once if it is then written in fewer bits.
    ///
    /// # Errors
    /// If the device fails; the adapter stays on then.
    pub fn merge(&mut self) -> Result<()> {
        if let Some(Lora { a, b, scale, dora, .. }) = &self.lora {
            let gain = dora.as_ref().map(Dora::gain).transpose()?;
            self.weight = nn::merged(&self.weight, [a, b], *scale, gain.as_ref())?.into();
            self.lora = None;
        }
        Ok(())
    }

    /// `y` for `x` `[tokens, in]`, and what the backward pass needs of the adapter.
    ///
    /// # Errors
    /// If the device fails.
    pub fn forward(&self, x: &Tensor, dropout: Option<Dropout>) -> Result<(Tensor, Option<Adapted>)> {
        let (precision, weight, bias) = (self.precision, &self.weight, self.bias.as_ref());
        let x = &nn::operand(precision, x)?;
        let Some(lora) = &self.lora else { return Ok((nn::linear(precision, x, weight, bias)?, None)) };
        let (adapted, dropped, factor) = lora.lowered(precision, x, dropout)?;
        let Some(dora) = &lora.dora else {
            let y = nn::linear_with(precision, x, weight, bias, Some((adapted.scale, &adapted.low, &lora.b)))?;
            return Ok((y, Some(adapted)));
        };
        let product = nn::linear(precision, &dropped, weight, None)?;
        nn::scale(&product, factor)?;
        let y = match (&adapted.mask, bias) {
            (Some(_), bias) => {
                // What dropout leaves of the base's share is replaced, not scaled twice.
                let y = nn::linear(precision, x, weight, bias)?;
                nn::subtract(&y, &product)?;
                y
            }
            (None, bias) => nn::rows(&product, bias)?,
        };
        nn::linear_add(precision, &product, adapted.scale, &adapted.low, &lora.b)?;
        nn::add_scaled(&y, &product, &dora.gain()?)?;
        Ok((y, Some(Adapted { product: Some(product), ..adapted })))
    }

    /// What [`Linear::forward`] leaves for the backward pass, to the bit, without its output.
    ///
    /// # Errors
    /// If the device fails.
    pub fn adapted(&self, x: &Tensor, dropout: Option<Dropout>) -> Result<Option<Adapted>> {
        match &self.lora {
            None => Ok(None),
            Some(Lora { dora: Some(_), .. }) => self.forward(x, dropout).map(|(_, adapted)| adapted),
            Some(lora) => {
                let x = nn::operand(self.precision, x)?;
                Ok(Some(lora.lowered(self.precision, &x, dropout)?.0))
            }
        }
    }

    /// Adds the gradients of what is trained to `gradients` and returns that of the input as `dx` asks. The input is
    /// `x` and what [`Linear::forward`] left of it.
    ///
    /// # Errors
    /// If the device fails.
    pub fn backward(
        &self,
        (x, adapted): (&Tensor, Option<&Adapted>),
        dy: &Tensor,
        dx: InputGradient,
        gradients: &Gradients,
    ) -> Result<InputGradient> {
        let precision = self.precision;
        if let Some(db) = self.bias.as_ref().and_then(|_| gradients.of(&self.bias_name)) {
            nn::bias_gradient(db, dy)?;
        }
        let (whole, x, dy) = (dy, &nn::operand(precision, x)?, &nn::operand(precision, dy)?);
        if let Some(dw) = gradients.of(&self.weight_name) {
            nn::linear_dw(precision, dw, 1.0, dy, x)?;
        }
        let sum = match dx {
            InputGradient::Skip => None,
            InputGradient::New => Some(None),
            InputGradient::Sum(dx) => Some(Some(dx)),
        };
        let (Some(lora), Some(Adapted { low, scale, mask, product })) = (&self.lora, adapted) else {
            let dx = sum.map(|sum| nn::linear_dx(precision, sum, 1.0, dy, &self.weight)).transpose()?;
            return Ok(dx.map_or(InputGradient::Skip, InputGradient::Sum));
        };
        // The gradient of the adapted product, and of what stands beside it under dropout.
        let scaled = match (&lora.dora, product) {
            (Some(dora), Some(product)) => {
                let gain = dora.gain()?;
                if let Some(dm) = gradients.of(&dora.name) {
                    nn::magnitude_gradient(dm, whole, product, &dora.norms)?;
                }
                let scaled = nn::zero_activation(whole)?;
                nn::add_scaled(&scaled, whole, &gain)?;
                Some(scaled)
            }
            _ => None,
        };
        let inner = &scaled.as_ref().map_or_else(|| Ok(dy.clone()), |scaled| nn::operand(precision, scaled))?;
        let dlow = nn::linear_dx(precision, None, lora.scale, inner, &lora.b)?;
        if let Some(db) = gradients.of(&lora.b_name) {
            nn::linear_dw(precision, db, *scale, inner, low)?;
        }
        let dlow = nn::operand(precision, &dlow)?;
        if let Some(da) = gradients.of(&lora.a_name) {
            let (dropped, factor) = dropped(x, mask.as_ref())?;
            nn::linear_dw(precision, da, factor, &dlow, &dropped)?;
        }
        let Some(sum) = sum else { return Ok(InputGradient::Skip) };
        let Some(mask) = mask else {
            let dx = nn::linear_dx_with(precision, sum, 1.0, inner, &self.weight, Some((&dlow, &lora.a)))?;
            return Ok(InputGradient::Sum(dx));
        };
        let dx = nn::linear_dx(precision, sum, 1.0, dy, &self.weight)?;
        let mut dropped = nn::linear_dx(precision, None, 1.0, &dlow, &lora.a)?;
        if let Some(scaled) = &scaled {
            nn::subtract(scaled, whole)?;
            dropped = nn::linear_dx(precision, Some(dropped), 1.0, scaled, &self.weight)?;
        }
        nn::dropout_add(&dx, &dropped, mask)?;
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
