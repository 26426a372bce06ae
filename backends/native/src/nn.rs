//! Operations on tensors: the one place where a device is chosen.
//!
//! The layers above speak only in these functions; here the kernels of the device where the numbers lie are found for
//! them, the CPU's ([`crate::ops`]) or CUDA's ([`crate::cuda`]). On the CPU a [`Tensor`] is contiguous f32
//! whose buffers are used again; on CUDA, activations are bf16 or f32 as the device was opened, and sums are f32.
//! Frozen weights may also be bf16 or f16 in a file ([`crate::weight`]). Forward and backward are both written
//! out, without automatic differentiation: a fused operation has its own backward pass, and frozen weights do not pay
//! for theirs.

mod gradient;
mod heads;
mod narrowed;
mod products;
mod tensor;

use karat::backend::BackendError;

pub use self::gradient::Gradient;
pub use self::heads::{Attention, HeadNorm, NormedHeads, attend, attend_backward, attend_cached, rotate, turned};
pub use self::narrowed::operand;
use self::narrowed::{Narrowed, Operand};
pub use self::products::{
    Affine, Lower, bias_gradient, linear, linear_add, linear_dw, linear_dx, linear_dx_with, linears, lowered,
    lowered_gradients,
};
use self::tensor::activation;
pub use self::tensor::{
    Angles, Indices, Starts, Tensor, View, copy, edit, set, tensor, view, zero_activation, zeros, zeros_like,
};
use crate::cuda;
pub use crate::error::Result;
use crate::ops::adamw::Update;
use crate::ops::cross_entropy::{Sum, Target};
use crate::ops::dropout::Key;
use crate::ops::low_rank::{self, LowRank};
use crate::ops::mapped::Elements;
pub use crate::ops::matmul::Precision;
use crate::ops::number::Number;
use crate::ops::{adamw, buffers, cross_entropy, dropout, elementwise, embedding, norm, swiglu};
use crate::profile::Timer;
use crate::weight::{Weight, WeightView};

/// Rows and columns of a matrix.
pub(crate) fn dims(t: &Tensor) -> Result<(usize, usize)> {
    match *t.dims() {
        [rows, columns] => Ok((rows, columns)),
        _ => Err(BackendError::failed(format!("a tensor of shape {:?} is no matrix", t.dims()))),
    }
}

/// What a product may read as a weight: a [`Weight`], or a tensor that is trained.
pub trait Stored {
    /// Its shape.
    fn dims(&self) -> &[usize];
    /// Its elements.
    ///
    /// # Errors
    /// If the CPU's kernels cannot read it.
    fn view(&self) -> Result<WeightView<'_>>;
    /// The tensor on its CUDA device, if it lies on one.
    fn on_cuda(&self) -> Option<&cuda::Tensor>;
    /// Rows and columns.
    ///
    /// # Errors
    /// If it is no matrix.
    fn matrix(&self) -> Result<(usize, usize)> {
        match *self.dims() {
            [rows, columns] => Ok((rows, columns)),
            _ => Err(BackendError::failed(format!("a weight of shape {:?} is no matrix", self.dims()))),
        }
    }
}

impl Stored for Weight {
    fn dims(&self) -> &[usize] {
        self.dims()
    }
    fn view(&self) -> Result<WeightView<'_>> {
        self.view()
    }
    fn on_cuda(&self) -> Option<&cuda::Tensor> {
        self.placed().and_then(Tensor::cuda)
    }
}

impl Stored for Tensor {
    fn dims(&self) -> &[usize] {
        self.dims()
    }
    fn view(&self) -> Result<WeightView<'_>> {
        view(self).map(WeightView::Owned)
    }
    fn on_cuda(&self) -> Option<&cuda::Tensor> {
        self.cuda()
    }
}

/// `x[at]`, `[at, width]`.
pub fn gather(x: &Tensor, at: &Indices) -> Result<Tensor> {
    if let Some(x) = x.cuda() {
        return cuda::ops::gather(x, at);
    }
    let (_, width) = dims(x)?;
    let mut y = buffers::take(at.len() * width);
    embedding::gather(Elements::F32(&view(x)?), width, at, &mut y);
    activation(y, &[at.len(), width])
}

/// `table[ids]`, `[ids, width]`, as activations are stored.
pub fn embed(table: &Weight, ids: &Indices) -> Result<Tensor> {
    if let Some(table) = table.on_cuda() {
        return cuda::ops::gather(table, ids);
    }
    let _timer = Timer::new("embedding", 0.0);
    let (_, width) = table.matrix()?;
    let mut y = buffers::take(ids.len() * width);
    embedding::gather(table.view()?.elements(), width, ids, &mut y);
    activation(y, &[ids.len(), width])
}

/// `dtable[ids] += dy`.
pub fn scatter_add(dtable: &Tensor, ids: &Indices, dy: &Tensor) -> Result<()> {
    if let Some(dtable) = dtable.cuda() {
        return cuda::ops::scatter_add(dtable, ids, dy, None);
    }
    let _timer = Timer::new("rows scattered", 0.0);
    let (_, width) = dims(dtable)?;
    let dy = view(dy)?;
    edit(dtable, |dtable| embedding::scatter_add(dtable, width, ids, &dy))
}

/// Gradient of an embedding from where it is read: `dtable[ids] += dx` but for the id `pad`, which has none. `dx` is used
/// up.
pub fn embedding_gradient(dtable: &Gradient, ids: &Indices, dx: Tensor, pad: Option<u32>) -> Result<()> {
    if dtable.cuda().is_some() {
        return cuda::ops::scatter_add(&dtable.whole()?, ids, &dx, pad);
    }
    if let Some(pad) = pad
        && ids.contains(&pad)
    {
        let width = dims(&dx)?.1;
        edit(&dx, |dx| {
            let rows = dx.chunks_exact_mut(width).zip(ids.iter());
            rows.filter(|(_, id)| **id == pad).for_each(|(row, _)| row.fill(0.0));
        })?;
    }
    let _timer = Timer::new("embedding, dW", 0.0);
    let width = dims(&dx)?.1;
    let dx = view(&dx)?;
    dtable.edit(|dtable| embedding::scatter_add(dtable, width, ids, &dx))
}

/// RMSNorm of every run of `w.len()` elements; also the scale of each run in f32, which the backward pass needs.
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    if let Some(x) = x.cuda() {
        return cuda::ops::rms_norm(x, cuda::here(w)?, eps);
    }
    let _timer = Timer::new("RMSNorm", 0.0);
    let (xs, ws) = (view(x)?, view(w)?);
    let runs = xs.len() / ws.len();
    let (mut y, mut scale) = (buffers::take(xs.len()), buffers::take(runs));
    norm::forward(&xs, &ws, eps, &mut y, &mut scale);
    Ok((activation(y, x.dims())?, activation(scale, &[runs])?))
}

/// [`rms_norm`] of what only products in `precision` read.
pub fn rms_norm_operand(precision: Precision, x: &Tensor, w: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    if precision == Precision::F32 || x.cuda().is_some() {
        return rms_norm(x, w, eps);
    }
    let _timer = Timer::new("RMSNorm", 0.0);
    let (xs, ws) = (Operand::of(x)?, view(w)?);
    let mut scale = buffers::take(x.elem_count() / ws.len());
    let y = Narrowed::new(x.dims(), |y| match &xs {
        Operand::Wide(x) => norm::forward_narrow(x, &ws, eps, y, &mut scale),
        Operand::Narrow(x) => norm::forward_narrow(x, &ws, eps, y, &mut scale),
    });
    let runs = scale.len();
    Ok((y.into(), activation(scale, &[runs])?))
}

/// `x += y`, then [`rms_norm_operand`] of it.
pub fn add_rms_norm_operand(
    precision: Precision,
    x: &Tensor,
    y: &Tensor,
    w: &Tensor,
    eps: f32,
) -> Result<(Tensor, Tensor)> {
    if let Some(x) = x.cuda() {
        return cuda::ops::add_rms_norm(x, cuda::here(y)?, cuda::here(w)?, eps);
    }
    add(x, y)?;
    rms_norm_operand(precision, x, w, eps)
}

/// Backward of [`rms_norm`]: added to `dx` if that is given, else new; `dw` where the weight is trained.
pub fn rms_norm_backward(
    dx: Option<Tensor>,
    x: &Tensor,
    w: &Tensor,
    scale: &Tensor,
    dy: &Tensor,
    dw: Option<&Gradient>,
) -> Result<Tensor> {
    if let Some(x) = x.cuda() {
        let dw = dw.map(Gradient::whole).transpose()?;
        return cuda::ops::rms_norm_backward(dx, x, cuda::here(w)?, cuda::here(scale)?, cuda::here(dy)?, dw.as_ref());
    }
    let _timer = Timer::new("RMSNorm, gradient", 0.0);
    let (xs, ws, dys, scale) = (Operand::of(x)?, view(w)?, view(dy)?, view(scale)?);
    let mut sum = dw.map(|_| vec![0.0; ws.len()]);
    let mut backward = |dx: &mut [f32], add: bool| match &xs {
        Operand::Wide(x) => norm::backward(x, &ws, &scale, &dys, dx, add, sum.as_deref_mut()),
        Operand::Narrow(x) => norm::backward(x, &ws, &scale, &dys, dx, add, sum.as_deref_mut()),
    };
    let dx = match dx {
        Some(dx) => {
            edit(&dx, |dx| backward(dx, true))?;
            dx
        }
        None => {
            let mut dx = buffers::take(x.elem_count());
            backward(&mut dx, false);
            activation(dx, x.dims())?
        }
    };
    if let (Some(dw), Some(sum)) = (dw, sum) {
        dw.edit(|dw| dw.iter_mut().zip(&sum).for_each(|(dw, s)| *dw += s))?;
    }
    Ok(dx)
}

/// `silu(gate) * up`, for products in `precision`.
pub fn swiglu(precision: Precision, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if let Some(gate) = gate.cuda() {
        return cuda::ops::swiglu(gate, cuda::here(up)?);
    }
    let _timer = Timer::new("SwiGLU", 0.0);
    if precision == Precision::F32 {
        let mut y = buffers::take(gate.elem_count());
        swiglu::forward(&view(gate)?, &view(up)?, &mut y);
        return activation(y, gate.dims());
    }
    let y = match (Operand::of(gate)?, Operand::of(up)?) {
        (Operand::Wide(g), Operand::Wide(u)) => Narrowed::new(gate.dims(), |y| swiglu::forward(&g, &u, y)),
        (Operand::Narrow(g), Operand::Narrow(u)) => Narrowed::new(gate.dims(), |y| swiglu::forward(g, u, y)),
        _ => return Err(BackendError::failed("a gate that is rounded meets an input that is not")),
    };
    Ok(y.into())
}

/// [`swiglu()`], and what the backward pass reads of `gate` and `up`: on the CPU in bf16, for products in it.
pub fn swiglu_keeping(precision: Precision, gate: Tensor, up: Tensor) -> Result<(Tensor, [Tensor; 2])> {
    if precision == Precision::F32 || gate.cuda().is_some() {
        return Ok((swiglu(precision, &gate, &up)?, [gate, up]));
    }
    let _timer = Timer::new("SwiGLU", 0.0);
    let [mut y, mut kept_gate, mut kept_up] = [0; 3].map(|_| Narrowed::of(gate.dims()));
    let kept = [kept_gate.elements_mut(), kept_up.elements_mut()];
    swiglu::forward_keeping(&view(&gate)?, &view(&up)?, y.elements_mut(), kept);
    Ok((y.into(), [kept_gate.into(), kept_up.into()]))
}

/// Gradients of `gate` and `up`, for products in `precision` alone.
pub fn swiglu_backward(precision: Precision, gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    if let Some(gate) = gate.cuda() {
        return cuda::ops::swiglu_backward(gate, cuda::here(up)?, cuda::here(dy)?);
    }
    let _timer = Timer::new("SwiGLU, gradient", 0.0);
    let (g, u, d) = (Operand::of(gate)?, Operand::of(up)?, view(dy)?);
    if precision == Precision::Bf16 {
        let [mut dg, mut du] = [gate, up].map(|x| Narrowed::of(x.dims()));
        swiglu_gradients((&g, &u), &d, dg.elements_mut(), du.elements_mut())?;
        return Ok((dg.into(), du.into()));
    }
    let [mut dg, mut du] = [gate, up].map(|x| buffers::take(x.elem_count()));
    swiglu_gradients((&g, &u), &d, &mut dg, &mut du)?;
    Ok((activation(dg, gate.dims())?, activation(du, up.dims())?))
}

fn swiglu_gradients<O: Number>(
    operands: (&Operand<'_>, &Operand<'_>),
    dy: &[f32],
    dgate: &mut [O],
    dup: &mut [O],
) -> Result<()> {
    match operands {
        (Operand::Wide(g), Operand::Wide(u)) => swiglu::backward(g, u, dy, dgate, dup),
        (Operand::Narrow(g), Operand::Narrow(u)) => swiglu::backward(g, u, dy, dgate, dup),
        _ => return Err(BackendError::failed("a gate that is rounded meets an input that is not")),
    }
    Ok(())
}

/// `x += y`.
pub fn add(x: &Tensor, y: &Tensor) -> Result<()> {
    if let Some(x) = x.cuda() {
        return cuda::ops::add(x, cuda::here(y)?);
    }
    let _timer = Timer::new("residual sums", 0.0);
    let y = view(y)?;
    edit(x, |x| elementwise::add(x, &y))
}

/// `x = 0`.
pub fn clear(x: &Tensor) -> Result<()> {
    if let Some(x) = x.cuda() {
        return x.clear();
    }
    let _timer = Timer::new("gradients set to zero", 0.0);
    edit(x, elementwise::clear)
}

/// A dropout mask: on the CPU it is drawn once for the forward and the backward pass, on CUDA kernels draw it as they go.
#[derive(Debug)]
pub struct Mask {
    p: f64,
    key: Key,
    drawn: Option<dropout::Mask>,
}

impl Mask {
    /// The mask of `x`'s elements under `key`.
    pub fn new(x: &Tensor, p: f64, key: Key) -> Self {
        let _timer = Timer::new("dropout, mask", 0.0);
        let drawn = x.cuda().is_none().then(|| dropout::Mask::draw(x.elem_count(), p, key));
        Mask { p, key, drawn }
    }
    fn drawn(&self) -> Result<&dropout::Mask> {
        self.drawn.as_ref().ok_or_else(|| BackendError::failed("a dropout mask of a CUDA device reached a CPU kernel"))
    }
}

/// What dropout leaves of `x`, and the factor that this is still to be multiplied by: 1 but for an operand of products in
/// bf16, which would be rounded twice.
pub fn dropout(x: &Tensor, mask: &Mask) -> Result<(Tensor, f32)> {
    if let Some(x) = x.cuda() {
        return Ok((cuda::ops::dropout(x, mask.p, mask.key)?, 1.0));
    }
    let (_timer, mask) = (Timer::new("dropout", 0.0), mask.drawn()?);
    if let Some(rounded) = x.rounded() {
        let y = Narrowed::new(x.dims(), |y| mask.keep(rounded.elements(), y));
        return Ok((y.into(), mask.scale()));
    }
    let xs = view(x)?;
    let mut y = buffers::take(xs.len());
    mask.apply(&xs, &mut y, false);
    Ok((activation(y, x.dims())?, 1.0))
}

/// `dx += dropout(dy)` under the same mask.
pub fn dropout_add(dx: &Tensor, dy: &Tensor, mask: &Mask) -> Result<()> {
    if let Some(dx) = dx.cuda() {
        return cuda::ops::dropout_add(dx, cuda::here(dy)?, mask.p, mask.key);
    }
    let (_timer, mask) = (Timer::new("dropout, gradient", 0.0), mask.drawn()?);
    let dy = view(dy)?;
    edit(dx, |dx| mask.apply(&dy, dx, true))
}

/// `x *= factor`, on the CPU; a factor of 1 leaves any tensor as it is.
pub fn scale(x: &Tensor, factor: f32) -> Result<()> {
    match factor == 1.0 {
        true => Ok(()),
        false => edit(x, |x| x.iter_mut().for_each(|x| *x *= factor)),
    }
}

/// `W + scale B A`, each row times its `gain` if one is given: a new tensor `[out, in]`, made on the CPU.
pub fn merged(w: &Weight, [a, b]: [&Tensor; 2], scale: f32, gain: Option<&Tensor>) -> Result<Tensor> {
    let (merged, n_in) = (w.widened()?, w.matrix()?.1);
    let (a, b) = (view(a)?, view(b)?);
    let gain = gain.map(view).transpose()?;
    edit(&merged, |w| low_rank::merge(w, LowRank { a: &a, b: &b, scale, n_in }, gain.as_deref()))?;
    Ok(merged)
}

/// The L2 norm of every row of `W + scale B A`, into `norms` `[out]`.
pub fn merged_norms(norms: &Tensor, w: &Weight, [a, b]: [&Tensor; 2], scale: f32) -> Result<()> {
    if let (Some(norms), Some(w)) = (norms.cuda(), w.on_cuda()) {
        return cuda::ops::merged_norms(norms, w, [cuda::here(a)?, cuda::here(b)?], scale);
    }
    let (ws, a, b, n_in) = (w.view()?, view(a)?, view(b)?, w.matrix()?.1);
    edit(norms, |norms| low_rank::norms(ws.elements(), LowRank { a: &a, b: &b, scale, n_in }, norms))
}

/// `m / n`, element by element, in f32.
pub fn ratio(m: &Tensor, n: &Tensor) -> Result<Tensor> {
    if let Some(m) = m.cuda() {
        return cuda::ops::ratio(m, cuda::here(n)?);
    }
    tensor(view(m)?.iter().zip(view(n)?.iter()).map(|(m, n)| m / n).collect(), m.dims())
}

/// `y += gain * x`, column by column.
pub fn add_scaled(y: &Tensor, x: &Tensor, gain: &Tensor) -> Result<()> {
    if let Some(y) = y.cuda() {
        return cuda::ops::add_scaled(y, cuda::here(x)?, cuda::here(gain)?);
    }
    let (x, gain) = (view(x)?, view(gain)?);
    edit(y, |y| low_rank::add_scaled(y, &x, &gain))
}

/// `y -= x`.
pub fn subtract(y: &Tensor, x: &Tensor) -> Result<()> {
    if let Some(y) = y.cuda() {
        return cuda::ops::subtract(y, cuda::here(x)?);
    }
    let minus = vec![-1.0; dims(x)?.1];
    let x = view(x)?;
    edit(y, |y| low_rank::add_scaled(y, &x, &minus))
}

/// The row `bias`, or zeros, for each row of `like`.
pub fn rows(like: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if let Some(like) = like.cuda() {
        return cuda::ops::rows(like, bias.map(cuda::here).transpose()?);
    }
    let Some(bias) = bias else { return zero_activation(like) };
    let bias = view(bias)?;
    let mut y = buffers::take(like.elem_count());
    y.chunks_exact_mut(bias.len()).for_each(|y| y.copy_from_slice(&bias));
    activation(y, like.dims())
}

/// `dm += (sum over the rows of dy * x) / n`, column by column.
pub fn magnitude_gradient(dm: &Gradient, dy: &Tensor, x: &Tensor, n: &Tensor) -> Result<()> {
    if let Some(dy) = dy.cuda() {
        return cuda::ops::magnitude_gradient(&dm.whole()?, dy, cuda::here(x)?, cuda::here(n)?);
    }
    let (dy, x, n) = (view(dy)?, view(x)?, view(n)?);
    let mut dgain = vec![0.0; n.len()];
    low_rank::gain_gradient(&mut dgain, &dy, &x);
    dm.edit(|dm| dm.iter_mut().zip(dgain).zip(n.iter()).for_each(|((m, g), n)| *m += g / n))
}

/// Log-probabilities of `targets` given `hidden` and the output projection.
pub fn score(precision: Precision, hidden: &Tensor, targets: &Indices, head: &Weight) -> Result<Vec<Target>> {
    if let Some(hidden) = hidden.cuda() {
        return cuda::ops::score(hidden, targets, cuda::stored(head)?);
    }
    Ok(cross_entropy::score(precision, &view(hidden)?, targets, head.view()?.elements(), head.matrix()?.1))
}

/// Logits `[tokens, vocab]` in f32.
pub fn logits(precision: Precision, hidden: &Tensor, head: &Weight) -> Result<Tensor> {
    if let Some(hidden) = hidden.cuda() {
        return cuda::ops::logits(hidden, cuda::stored(head)?);
    }
    linear(precision, hidden, head, None)
}

/// Loss `scale * sum of -log p` of `targets`: their log-probabilities in f32 and the gradient of `hidden`; that of the
/// projection is added to `dhead`.
pub fn head_loss(
    precision: Precision,
    hidden: &Tensor,
    targets: &Indices,
    head: &Weight,
    scale: f32,
    dhead: Option<&Gradient>,
) -> Result<(Tensor, Tensor)> {
    if let Some(hidden) = hidden.cuda() {
        return cuda::ops::head_loss(hidden, targets, cuda::stored(head)?, scale, dhead);
    }
    let (hs, ws, width) = (view(hidden)?, head.view()?, head.matrix()?.1);
    let products = if dhead.is_some() { 3 } else { 2 };
    let _timer = Timer::product("head and loss", [products * targets.len(), ws.elements().len() / width, width]);
    let mut dhidden = buffers::take(hs.len());
    let logprobs = match dhead {
        Some(dhead) => {
            let mut logprobs = Vec::new();
            dhead.add(|sum, add| {
                let sum = Some(Sum { sum, add });
                logprobs =
                    cross_entropy::train(precision, &hs, targets, ws.elements(), width, scale, &mut dhidden, sum);
            })?;
            logprobs
        }
        None => cross_entropy::train(precision, &hs, targets, ws.elements(), width, scale, &mut dhidden, None),
    };
    let count = logprobs.len();
    Ok((tensor(logprobs, &[count])?, activation(dhidden, hidden.dims())?))
}

/// One AdamW update of `p` and its moments.
pub fn adamw(p: &Tensor, m: &Tensor, v: &Tensor, g: &Tensor, update: &Update) -> Result<()> {
    let _timer = Timer::new("AdamW", 0.0);
    let g = view(g)?;
    let (mut of_m, mut of_v) = (Ok(()), Ok(()));
    edit(p, |p| of_m = edit(m, |m| of_v = edit(v, |v| adamw::update(p, m, v, &g, update))))?;
    of_m.and(of_v)
}

/// Sum of squares in f64.
pub fn sum_of_squares(t: &Tensor) -> Result<f64> {
    let _timer = Timer::new("gradient norm", 0.0);
    Ok(adamw::sum_of_squares(&view(t)?))
}
