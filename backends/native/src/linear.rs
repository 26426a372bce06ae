//! Linear layers, with or without LoRA adapters, forward and backward. Those that read the same
//! input are worked on together where their adapters are concerned: a product with few columns pays
//! when it is one of several.

use std::collections::BTreeMap;
use std::sync::Arc;

use karat_backend::{BackendError, Dtype};
use karat_model::Rounding;
use karat_model::peft::check_merged;
pub use karat_model::train::Dropout;

use crate::cpu;
use crate::device::{
    Affine, Device, DownGradient, DownProjected, DownProjection, Dropped, LoraPair, Mask, Precision, UpProjection,
    WeightGradient,
};
use crate::error::Result;
use crate::ops::dropout::Key;
use crate::tensor::{self, Gradient, Tensor, view};
use crate::weight::Weight;

/// Gradients of the tensors that are trained, by name; a tensor that is not in here is frozen and
/// costs nothing.
#[derive(Debug, Default)]
pub struct Gradients(pub BTreeMap<String, Gradient>);

impl Gradients {
    /// Those of every tensor of `trained`, which lie on `device`, with nothing in them; `one_batch`
    /// if each step has one micro-batch: [`Device::gradient`].
    ///
    /// # Errors
    /// If the device has no room.
    pub fn new(device: &dyn Device, trained: &BTreeMap<String, Tensor>, one_batch: bool) -> Result<Self> {
        let of = |(name, t): (&String, &Tensor)| Ok((name.clone(), device.gradient(t, one_batch)?));
        trained.iter().map(of).collect::<Result<_>>().map(Gradients)
    }
    /// Where the gradient of `name` is summed, if it is trained.
    pub fn of(&self, name: &str) -> Option<&Gradient> {
        self.0.get(name)
    }
    /// Nothing is in them from now on; activations get the memory of `device` that they leave.
    ///
    /// # Errors
    /// If the device fails.
    pub fn clear(&self, device: &dyn Device) -> Result<()> {
        self.0.values().try_for_each(Gradient::clear)?;
        if !self.0.values().all(Gradient::lasts) {
            device.trim();
        }
        Ok(())
    }
}

/// `y += scale * B(A(dropout(x)))` (Hu et al., arXiv 2106.09685); with [`Dora`], rows scaled to
/// their magnitudes.
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

/// Weight-decomposed low-rank adaptation (Liu et al., arXiv 2402.09353): `y = g (W + s B A) x` with
/// `g = m / n`, row by row, `n` the norms of the rows of `W + s B A`. They count as constants in
/// the backward pass (its section 4.3). As PEFT has it, dropout concerns what the adapter adds:
/// `y = W x + (g - 1) W x' + g s B A x'` with `x' = dropout(x)`.
#[derive(Clone, Debug)]
pub struct Dora {
    /// `m`, `[out]`.
    pub magnitude: Tensor,
    /// `n`, `[out]`; a function of the weight and the adapter, made anew by [`Linear::renorm`] when
    /// these change.
    pub norms: Tensor,
    /// PEFT's name of `m`.
    pub name: String,
}

impl Dora {
    /// `g = m / n`.
    fn gain(&self, device: &dyn Device) -> Result<Tensor> {
        device.ratio(&self.magnitude, &self.norms)
    }
}

/// Activations of an adapter's forward pass that its backward pass reads.
#[derive(Debug)]
pub struct Adapted {
    /// `A(dropout(x))`.
    low: DownProjected,
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

    /// Its change of the weight.
    fn delta(&self) -> LoraPair<'_> {
        LoraPair { a: &self.a, b: &self.b, scale: self.scale }
    }

    /// The GEMM with `A`.
    fn down<'a>(&'a self, Dropped { x, factor }: &'a Dropped) -> DownProjection<'a> {
        DownProjection { x, a: &self.a, factor: *factor, scale: self.scale }
    }

    /// The GEMM with `B`.
    fn up<'a>(&'a self, DownProjected { low, scale }: &'a DownProjected) -> UpProjection<'a> {
        UpProjection { low, b: &self.b, scale: *scale }
    }

    /// Which elements of `x` enter `A`, if not all.
    fn mask(&self, device: &dyn Device, x: &Tensor, dropout: Option<Dropout>) -> Option<Mask> {
        let d = dropout.filter(|_| self.dropout > 0.0)?;
        let width = x.dims()[1] as u64;
        let key = Key { seed: d.seed, step: d.step, module: self.module, first: d.first_token * width };
        Some(device.mask(x.elem_count(), self.dropout, key))
    }
}

/// `x` as it enters `A`, but for a factor.
fn dropped(device: &dyn Device, x: &Tensor, mask: Option<&Mask>) -> Result<Dropped> {
    mask.map_or_else(|| Ok(Dropped { x: x.clone(), factor: 1.0 }), |mask| device.dropout(x, mask))
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
    /// Where it is computed.
    device: Arc<dyn Device>,
    weight_name: String,
    bias_name: String,
}

impl Linear {
    /// The layer at `name` without an adapter, on the CPU in f32.
    pub fn new(name: String, weight: Weight, bias: Option<Tensor>) -> Self {
        let (weight_name, bias_name) = (format!("{name}.weight"), format!("{name}.bias"));
        let device = cpu::Cpu::device(Precision::F32);
        Linear { name, weight, bias, lora: None, device, weight_name, bias_name }
    }

    /// `(in, out)`.
    pub fn widths(&self) -> (usize, usize) {
        (self.weight.dims()[1], self.weight.dims()[0])
    }

    /// Whether the gradient of its output is more than an operand of products: that of a bias or of
    /// DoRA's magnitudes is a sum of numbers that nothing has rounded.
    pub fn sums_its_gradient(&self) -> bool {
        self.bias.is_some() || self.lora.as_ref().is_some_and(|lora| lora.dora.is_some())
    }

    /// Brings its weight, its bias and its adapter to `device`.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn place(&mut self, device: &Arc<dyn Device>) -> Result<()> {
        self.device = device.clone();
        self.weight.place(&**device)?;
        let lora = self.lora.as_mut();
        let of_lora = lora.into_iter().flat_map(|lora| {
            let dora = lora.dora.as_mut().map(|dora| [&mut dora.magnitude, &mut dora.norms]);
            [&mut lora.a, &mut lora.b].into_iter().chain(dora.into_iter().flatten())
        });
        for t in self.bias.as_mut().into_iter().chain(of_lora) {
            *t = device.place(t)?;
        }
        Ok(())
    }

    /// Makes the norms of DoRA anew, after its weights have changed.
    ///
    /// # Errors
    /// If the device fails.
    pub fn renorm(&self) -> Result<()> {
        match &self.lora {
            Some(lora @ Lora { dora: Some(dora), .. }) => {
                self.device.merged_norms(&dora.norms, &self.weight, lora.delta())
            }
            _ => Ok(()),
        }
    }

    /// Takes the adapter off and puts what it does into the weight: `g (W + s B A)`, computed in
    /// f32 from the tensors as they are, so that the weight is rounded once if it is then written
    /// in fewer bits. What that would lose is added to `rounding`.
    ///
    /// # Errors
    /// If the device fails, or the merged weight is not finite; the adapter stays on then.
    pub fn merge(&mut self, rounding: &mut Rounding) -> Result<()> {
        if let Some(lora) = &self.lora {
            let gain = lora.dora.as_ref().map(|dora| dora.gain(&*self.device)).transpose()?;
            let merged = cpu::merged(&self.weight, lora.delta(), gain.as_ref())?;
            check_merged(&self.name, &view(&merged)?)?;
            let dtype = self.weight.dtype();
            if dtype != Dtype::F32 {
                rounding.add(dtype, &view(&self.weight.widened()?)?, &view(&merged)?);
            }
            self.weight = merged.into();
            self.lora = None;
        }
        Ok(())
    }

    /// `y` and what the backward pass needs, with DoRA, for `x` of which [`lora_down`] has made
    /// `adapted`.
    fn decomposed(&self, x: &Tensor, (lora, dora): (&Lora, &Dora), adapted: Adapted) -> Result<(Tensor, Adapted)> {
        let (device, weight, bias) = (&*self.device, &self.weight, self.bias.as_ref());
        let dropped = dropped(device, x, adapted.mask.as_ref())?;
        let product = device.linear(&dropped.x, weight, None)?;
        tensor::scale(&product, dropped.factor)?;
        let y = match (&adapted.mask, bias) {
            (Some(_), bias) => {
                // What dropout leaves of the base's share is replaced, not scaled twice.
                let y = device.linear(x, weight, bias)?;
                device.subtract(&y, &product)?;
                y
            }
            (None, bias) => device.rows(&product, bias)?,
        };
        device.linear_add(&product, adapted.low.scale, &adapted.low.low, &lora.b)?;
        device.add_scaled(&y, &product, &dora.gain(device)?)?;
        Ok((y, Adapted { product: Some(product), ..adapted }))
    }

    /// Its adapter, if that has magnitudes.
    fn dora(&self) -> Option<(&Lora, &Dora)> {
        self.lora.as_ref().and_then(|lora| Some((lora, lora.dora.as_ref()?)))
    }

    /// Recomputes what [`forward`] saves for the backward pass, to the bit, without the output.
    ///
    /// # Errors
    /// If the device fails.
    pub fn adapted(&self, x: &Tensor, dropout: Option<Dropout>) -> Result<Option<Adapted>> {
        if self.dora().is_some() {
            let [(_, adapted)] = forward([self], x, dropout)?;
            return Ok(adapted);
        }
        let [adapted] = lora_down([self], &self.device.operand(x)?, dropout)?;
        Ok(adapted)
    }
}

/// The outputs of `layers` for the `x` `[tokens, in]` that all of them read, each with what the
/// backward pass needs of the layer's adapter.
///
/// # Errors
/// If the device fails.
pub fn forward<const N: usize>(
    layers: [&Linear; N],
    x: &Tensor,
    dropout: Option<Dropout>,
) -> Result<[(Tensor, Option<Adapted>); N]> {
    let Some(device) = layers.first().map(|layer| &*layer.device) else { return Err(missing()) };
    let x = &device.operand(x)?;
    let adapted = lora_down(layers, x, dropout)?;
    // With magnitudes an output is made of several products.
    let plain: Vec<Affine<'_>> = layers
        .iter()
        .zip(&adapted)
        .filter(|(layer, _)| layer.dora().is_none())
        .map(|(layer, adapted)| {
            let lora = layer.lora.as_ref().zip(adapted.as_ref()).map(|(lora, of)| lora.up(&of.low));
            Affine { w: &layer.weight, bias: layer.bias.as_ref(), lora }
        })
        .collect();
    let mut plain = device.linears(x, &plain)?.into_iter();
    let mut made = Vec::with_capacity(N);
    for (layer, adapted) in layers.into_iter().zip(adapted) {
        match (layer.dora(), adapted) {
            (Some(dora), Some(adapted)) => {
                let (y, adapted) = layer.decomposed(x, dora, adapted)?;
                made.push((y, Some(adapted)));
            }
            (_, adapted) => made.extend(plain.next().map(|y| (y, adapted))),
        }
    }
    made.try_into().map_err(|_| missing())
}

fn missing() -> BackendError {
    BackendError::failed("a product is missing")
}

/// Down-projections `x A^T` of the adapters of `layers`, which all read `x` `[tokens, in]`, rounded
/// for GEMMs, and their backward passes need.
fn lora_down<const N: usize>(
    layers: [&Linear; N],
    x: &Tensor,
    dropout: Option<Dropout>,
) -> Result<[Option<Adapted>; N]> {
    let mut adapted = [const { None }; N];
    let Some(device) = layers.iter().find(|layer| layer.lora.is_some()).map(|layer| &*layer.device) else {
        return Ok(adapted);
    };
    let mut entering = Vec::with_capacity(N);
    for (layer, adapted) in layers.iter().zip(&mut adapted) {
        if let Some(lora) = &layer.lora {
            let mask = lora.mask(device, x, dropout);
            let dropped = dropped(device, x, mask.as_ref())?;
            entering.push((lora, dropped, mask, adapted));
        }
    }
    let products: Vec<DownProjection<'_>> = entering.iter().map(|(lora, dropped, ..)| lora.down(dropped)).collect();
    let lows = device.lora_down(&products)?;
    drop(products);
    for (low, (.., mask, adapted)) in lows.into_iter().zip(entering) {
        *adapted = Some(Adapted { low, mask, product: None });
    }
    Ok(adapted)
}

/// One of the layers that read the same input, in the backward pass, and what that uses up.
pub struct Branch<'a> {
    /// The layer.
    pub layer: &'a Linear,
    /// Activations that its forward pass saved.
    pub adapted: Option<Adapted>,
    /// The gradient of its output.
    pub dy: Tensor,
}

/// The gradient of a branch's output as its products read it.
struct Upstream<'a> {
    layer: &'a Linear,
    adapted: Option<Adapted>,
    dy: Tensor,
    /// That of the adapted product where that is another one, and the whole unrounded: with DoRA.
    scaled: Option<[Tensor; 2]>,
    /// That of the adapted product for products.
    inner: Tensor,
}

impl Upstream<'_> {
    /// Its adapter and what that has left.
    fn adapter(&self) -> Option<(&Lora, &Adapted)> {
        self.layer.lora.as_ref().zip(self.adapted.as_ref())
    }
}

/// Adds the gradients of what is trained in `branches` to `gradients` and returns that of the input
/// `x` of all of them as `dx` asks.
///
/// # Errors
/// If the device fails.
pub fn backward<const N: usize>(
    branches: [Branch<'_>; N],
    x: &Tensor,
    dx: InputGradient,
    gradients: &Gradients,
) -> Result<InputGradient> {
    let Some(device) = branches.first().map(|branch| &*branch.layer.device) else { return Ok(dx) };
    let x = &device.operand(x)?;
    let mut upstreams = Vec::with_capacity(N);
    for branch in branches {
        upstreams.push(branch.upstream(x, gradients)?);
    }
    let dlows = adapter_gradients(device, &upstreams, x, gradients)?;
    let mut sum = match dx {
        InputGradient::Skip => return Ok(InputGradient::Skip),
        InputGradient::New => None,
        InputGradient::Sum(dx) => Some(dx),
    };
    let mut dlows = dlows.iter();
    for up in upstreams {
        let dlow = up.adapter().and_then(|adapter| Some((adapter, dlows.next()?)));
        sum = Some(up.add_to(sum, dlow)?);
    }
    Ok(sum.map_or(InputGradient::New, InputGradient::Sum))
}

/// Adds the gradients of the adapters' matrices to `gradients` and returns those of what the first
/// ones give, of every branch that has an adapter.
fn adapter_gradients(
    device: &dyn Device,
    upstreams: &[Upstream<'_>],
    x: &Tensor,
    gradients: &Gradients,
) -> Result<Vec<Tensor>> {
    let adapters: Vec<_> = upstreams.iter().filter_map(|up| Some((up, up.adapter()?))).collect();
    let products: Vec<_> =
        adapters.iter().map(|(up, (lora, _))| UpProjection { low: &up.inner, b: &lora.b, scale: lora.scale }).collect();
    let dlows = device.lora_down_gradients(&products)?;
    let entered = adapters.iter().map(|(_, (_, adapted))| dropped(device, x, adapted.mask.as_ref()));
    let entered: Vec<Dropped> = entered.collect::<Result<_>>()?;
    let of = adapters.iter().zip(&dlows).zip(&entered).flat_map(|(((up, (lora, adapted)), dlow), dropped)| {
        let of = |name, alpha, dy, x| gradients.of(name).map(|dw| WeightGradient { dw, alpha, dy, x });
        let db = of(&lora.b_name, adapted.low.scale, &up.inner, &adapted.low.low);
        db.into_iter().chain(of(&lora.a_name, dropped.factor, dlow, &dropped.x))
    });
    device.linear_dws(&of.collect::<Vec<_>>())?;
    Ok(dlows)
}

impl<'a> Branch<'a> {
    /// Adds the gradients of its bias, its weight and its magnitudes, and rounds that of its output
    /// for products.
    fn upstream(self, x: &Tensor, gradients: &Gradients) -> Result<Upstream<'a>> {
        let (layer, device) = (self.layer, &*self.layer.device);
        if let Some(db) = layer.bias.as_ref().and_then(|_| gradients.of(&layer.bias_name)) {
            device.bias_gradient(db, &self.dy)?;
        }
        let dy = device.operand(&self.dy)?;
        if let Some(dw) = gradients.of(&layer.weight_name) {
            device.linear_dw(dw, 1.0, &dy, x)?;
        }
        let dora = layer.dora().map(|(_, dora)| dora);
        let product = self.adapted.as_ref().and_then(|adapted| adapted.product.as_ref());
        // The gradient of the adapted product, and of what stands beside it under dropout.
        let scaled = match dora.zip(product) {
            Some((dora, product)) => {
                let gain = dora.gain(device)?;
                if let Some(dm) = gradients.of(&dora.name) {
                    device.magnitude_gradient(dm, &self.dy, product, &dora.norms)?;
                }
                let scaled = device.zero_activation(&self.dy)?;
                device.add_scaled(&scaled, &self.dy, &gain)?;
                Some([scaled, self.dy])
            }
            None => None,
        };
        let inner = scaled.as_ref().map_or_else(|| Ok(dy.clone()), |[scaled, _]| device.operand(scaled))?;
        Ok(Upstream { layer, adapted: self.adapted, dy, scaled, inner })
    }
}

impl Upstream<'_> {
    /// The gradient of the branch's input added to `dx`, that of what its adapter made of it given.
    fn add_to(&self, dx: Option<Tensor>, adapter: Option<((&Lora, &Adapted), &Tensor)>) -> Result<Tensor> {
        let (weight, device) = (&self.layer.weight, &*self.layer.device);
        let Some(((lora, adapted), dlow)) = adapter else {
            return device.linear_dx(dx, &self.dy, weight, None);
        };
        let Some(mask) = &adapted.mask else {
            return device.linear_dx(dx, &self.inner, weight, Some(DownGradient { dlow, a: &lora.a }));
        };
        let dx = device.linear_dx(dx, &self.dy, weight, None)?;
        let Some([scaled, whole]) = &self.scaled else {
            return device.dropout_add_dx(&dx, dlow, &lora.a, mask).map(|()| dx);
        };
        let dropped = device.linear_dx(None, dlow, &lora.a, None)?;
        device.subtract(scaled, whole)?;
        let dropped = device.linear_dx(Some(dropped), scaled, weight, None)?;
        device.dropout_add(&dx, &dropped, mask)?;
        Ok(dx)
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
