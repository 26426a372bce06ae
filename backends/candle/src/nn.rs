//! Operations on tensors: the one place where a device is chosen.
//!
//! The layers above speak only in these functions; here the kernels of the device where the numbers lie are found for
//! them, the CPU's ([`crate::ops`]) or CUDA's ([`crate::cuda`]). On the CPU a [`Tensor`] is candle's, contiguous f32 whose
//! buffers are used again; on CUDA, activations are bf16 or f32 as the device was opened, and sums are f32.
//! Frozen weights may also be bf16 or f16 in a file ([`crate::weight`]). Candle's own automatic differentiation is not
//! used: forward and backward are both written out, because in candle 0.11 several fused operations cut the gradient
//! silently and frozen weights still pay for theirs.

mod gradient;
mod narrowed;
mod tensor;

use karat::backend::BackendError;

pub use self::gradient::Gradient;
pub use self::narrowed::operand;
use self::narrowed::{Narrowed, Operand};
use self::tensor::activation;
pub use self::tensor::{
    Angles, Indices, Starts, Tensor, View, copy, edit, set, tensor, view, zero_activation, zeros, zeros_like,
};
use crate::cuda;
use crate::ops::adamw::Update;
use crate::ops::attention::{Before, Heads, Normed};
use crate::ops::cross_entropy::{Sum, Target};
use crate::ops::dropout::Key;
use crate::ops::low_rank::{self, LowRank};
use crate::ops::lowered::{Lowering, lower};
use crate::ops::mapped::Elements;
pub use crate::ops::matmul::Precision;
use crate::ops::matmul::dots::Columns;
use crate::ops::matmul::{Mat, MatMut, Product, Term, Threads, product, products};
use crate::ops::number::Number;
use crate::ops::{adamw, attention, buffers, cross_entropy, dropout, elementwise, embedding, norm, rope, swiglu};
use crate::profile::Timer;
use crate::weight::{Weight, WeightView};

/// `Result` with the error that crosses the plugin boundary.
pub type Result<T, E = BackendError> = std::result::Result<T, E>;

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

/// A linear layer: what an input is multiplied by, and what is added.
pub struct Affine<'a, W> {
    /// `[out, in]`.
    pub w: &'a W,
    /// `[out]`.
    pub bias: Option<&'a Tensor>,
    /// `alpha low b^T`, summed in the same pass: `alpha`, `low` `[tokens, r]`, `b` `[out, r]`.
    pub more: Option<(f32, &'a Tensor, &'a Tensor)>,
}

/// `x w^T + bias`: `x` `[tokens, in]`, `w` `[out, in]`.
pub fn linear(precision: Precision, x: &Tensor, w: &impl Stored, bias: Option<&Tensor>) -> Result<Tensor> {
    let mut y = linears(precision, x, &[Affine { w, bias, more: None }])?;
    y.pop().ok_or_else(|| BackendError::failed("a product is missing"))
}

/// `x w^T + bias`, and what more there is, for each of `layers`: all products at once, so that threads wait for each other
/// once.
pub fn linears<W: Stored>(precision: Precision, x: &Tensor, layers: &[Affine<'_, W>]) -> Result<Vec<Tensor>> {
    if let Some(x) = x.cuda() {
        let alone = |of: &Affine<'_, W>| {
            let more = of.more.map(|(alpha, low, b)| Ok((alpha, cuda::here(low)?, cuda::stored(b)?))).transpose()?;
            cuda::ops::linear(x, cuda::stored(of.w)?, of.bias, more)
        };
        return layers.iter().map(alone).collect();
    }
    let (tokens, n_in) = dims(x)?;
    let outputs: Vec<usize> = layers.iter().map(|of| Ok(of.w.matrix()?.0)).collect::<Result<_>>()?;
    let _timer = Timer::product("products: x W^T", [tokens, outputs.iter().sum(), n_in]);
    let mut ys: Vec<_> = outputs.iter().map(|n_out| buffers::take(tokens * n_out)).collect();
    for ((of, y), n_out) in layers.iter().zip(&mut ys).zip(&outputs) {
        if let Some(bias) = of.bias {
            let bias = view(bias)?;
            y.chunks_exact_mut(*n_out).for_each(|y| y.copy_from_slice(&bias));
        }
    }
    let xs = Operand::of(x)?;
    let weights: Vec<WeightView<'_>> = layers.iter().map(|of| of.w.view()).collect::<Result<_>>()?;
    let mut held = Vec::with_capacity(layers.len());
    for of in layers {
        let more = of.more.map(|(alpha, low, b)| Ok((alpha, Operand::of(low)?, view(b)?, dims(low)?.1)));
        held.push(more.transpose()?);
    }
    let mut jobs = Vec::with_capacity(layers.len());
    for ((((of, y), n_out), w), more) in layers.iter().zip(&mut ys).zip(&outputs).zip(&weights).zip(&held) {
        let b = Mat::of(w.elements(), *n_out, n_in).t();
        let mut terms = vec![Term { alpha: 1.0, a: xs.mat(tokens, n_in), b }];
        if let Some((alpha, low, b, r)) = more {
            terms.push(Term { alpha: *alpha, a: low.mat(tokens, *r), b: Mat::new(b, *n_out, *r).t() });
        }
        jobs.push(Product { c: MatMut::new(y, tokens, *n_out), add: of.bias.is_some(), terms });
    }
    products(precision, jobs, Threads::Pool);
    ys.into_iter().zip(outputs).map(|(y, n_out)| activation(y, &[tokens, n_out])).collect()
}

/// Whether products in `precision` round what they read of `x`: on the CPU in bf16.
fn rounds(precision: Precision, x: &Tensor) -> bool {
    precision == Precision::Bf16 && x.cuda().is_none()
}

/// The first product of an adapter.
#[derive(Clone, Copy)]
pub struct Lower<'a> {
    /// `[tokens, in]`, all but for `factor`.
    pub x: &'a Tensor,
    /// `[r, in]`.
    pub a: &'a Tensor,
    /// What `x` is still to be multiplied by.
    pub factor: f32,
    /// What the adapter's share is multiplied by.
    pub scale: f32,
}

/// What the second matrices of adapters read: `factor x a^T` `[tokens, r]` for products in `precision`, and what of `scale`
/// it is still to be multiplied by. Where products round their operands it has been multiplied by all of it, before it is
/// rounded: so the adapter's share of an output goes on with the sums of the layer's.
pub fn lowered(precision: Precision, of: &[Lower<'_>]) -> Result<Vec<(Tensor, f32)>> {
    if !of.iter().all(|of| rounds(precision, of.x)) {
        let alone = |of: &Lower<'_>| {
            let low = linear(precision, of.x, of.a, None)?;
            scale(&low, of.factor)?;
            Ok((low, of.scale))
        };
        return of.iter().map(alone).collect();
    }
    let _timer = Timer::new("products: x A^T", work_of(of.iter().map(|of| (of.x, of.a)))?);
    let xs: Vec<Operand<'_>> = of.iter().map(|of| Operand::of(of.x)).collect::<Result<_>>()?;
    let matrices: Vec<View<'_>> = of.iter().map(|of| view(of.a)).collect::<Result<_>>()?;
    let mut made = Vec::with_capacity(of.len());
    for of in of {
        made.push(Narrowed::of(&[dims(of.x)?.0, dims(of.a)?.0]));
    }
    let (mut jobs, mut rest, mut first) = (Vec::new(), &mut made[..], 0);
    for same in of.chunk_by(|a, b| a.x.is(b.x)) {
        let (rows, k) = dims(same[0].x)?;
        let (here, after) = rest.split_at_mut(same.len());
        rest = after;
        let matrices = matrices[first..first + same.len()].iter();
        let matrices: Vec<Mat<'_>> = matrices.map(|a| Mat::new(a, a.len() / k.max(1), k).t()).collect();
        let to =
            same.iter().zip(here).map(|(of, to)| (to.dims()[1], of.factor * of.scale, to.elements_mut())).collect();
        jobs.push(Lowering { x: xs[first].mat(rows, k), w: Columns::new(k, &matrices), to });
        first += same.len();
    }
    lower(jobs);
    Ok(made.into_iter().map(|low| (low.into(), 1.0)).collect())
}

/// The gradients of what [`lowered`] gives, `alpha dy b` for every `(alpha, dy, b)`, as products read them.
pub fn lowered_gradients(precision: Precision, of: &[(f32, &Tensor, &Tensor)]) -> Result<Vec<Tensor>> {
    if !of.iter().all(|(_, dy, _)| rounds(precision, dy)) {
        return of.iter().map(|(alpha, dy, b)| linear_dx(precision, None, *alpha, dy, *b)).collect();
    }
    let _timer = Timer::new("products: dy B", work_of(of.iter().map(|(_, dy, b)| (*dy, *b)))?);
    let dys: Vec<Operand<'_>> = of.iter().map(|(_, dy, _)| Operand::of(dy)).collect::<Result<_>>()?;
    let mut made = Vec::with_capacity(of.len());
    for (_, dy, b) in of {
        made.push(Narrowed::of(&[dims(dy)?.0, dims(b)?.1]));
    }
    let mut jobs = Vec::with_capacity(of.len());
    for (((alpha, _, b), dy), to) in of.iter().zip(&dys).zip(&mut made) {
        let (rows, (n_out, r)) = (to.dims()[0], dims(b)?);
        let w = Columns::new(n_out, &[Mat::new(&view(b)?, n_out, r)]);
        jobs.push(Lowering { x: dy.mat(rows, n_out), w, to: vec![(r, *alpha, to.elements_mut())] });
    }
    lower(jobs);
    Ok(made.into_iter().map(Tensor::from).collect())
}

/// Floating-point operations of products of matrices with adapters' matrices: each element of a row with each of the other's.
fn work_of<'a>(pairs: impl Iterator<Item = (&'a Tensor, &'a Tensor)>) -> Result<f64> {
    pairs.map(|(x, w)| Ok(2.0 * dims(x)?.0 as f64 * w.elem_count() as f64)).sum()
}

/// `y += alpha x w^T`.
pub fn linear_add(precision: Precision, y: &Tensor, alpha: f32, x: &Tensor, w: &impl Stored) -> Result<()> {
    if let Some(y) = y.cuda() {
        return cuda::ops::linear_add(y, alpha, cuda::here(x)?, cuda::stored(w)?);
    }
    let ((tokens, n_in), (n_out, _)) = (dims(x)?, w.matrix()?);
    let _timer = Timer::product("products: x W^T", [tokens, n_out, n_in]);
    let (xs, ws) = (Operand::of(x)?, w.view()?);
    let (a, b) = (xs.mat(tokens, n_in), Mat::of(ws.elements(), n_out, n_in).t());
    edit(y, |y| product(precision, MatMut::new(y, tokens, n_out), alpha, a, b, true, Threads::Pool))
}

/// The gradient of a linear layer's input, `alpha dy w`; added to `dx` if that is given, else new.
pub fn linear_dx(precision: Precision, dx: Option<Tensor>, alpha: f32, dy: &Tensor, w: &impl Stored) -> Result<Tensor> {
    linear_dx_with::<_, Tensor>(precision, dx, alpha, dy, w, None)
}

/// `alpha dy w + dlow a`, the last term in the same pass; added to `dx` if that is given, else new.
pub fn linear_dx_with<W: Stored, A: Stored>(
    precision: Precision,
    dx: Option<Tensor>,
    alpha: f32,
    dy: &Tensor,
    w: &W,
    more: Option<(&Tensor, &A)>,
) -> Result<Tensor> {
    if let Some(dy) = dy.cuda() {
        let more = more.map(|(dlow, a)| Ok((cuda::here(dlow)?, cuda::stored(a)?))).transpose()?;
        return cuda::ops::linear_dx(dx, alpha, dy, cuda::stored(w)?, more);
    }
    let ((tokens, n_out), (_, n_in)) = (dims(dy)?, w.matrix()?);
    let _timer = Timer::product("products: dy W", [tokens, n_in, n_out]);
    let (dys, ws) = (Operand::of(dy)?, w.view()?);
    let mut terms = vec![Term { alpha, a: dys.mat(tokens, n_out), b: Mat::of(ws.elements(), n_out, n_in) }];
    let held = match more {
        Some((dlow, a)) => Some((Operand::of(dlow)?, a.view()?, dims(dlow)?.1)),
        None => None,
    };
    if let Some((dlow, a, r)) = &held {
        terms.push(Term { alpha: 1.0, a: dlow.mat(tokens, *r), b: Mat::of(a.elements(), *r, n_in) });
    }
    if let Some(dx) = dx {
        edit(&dx, |dx| {
            let c = MatMut::new(dx, tokens, n_in);
            products(precision, vec![Product { c, add: true, terms }], Threads::Pool);
        })?;
        return Ok(dx);
    }
    let mut dx = buffers::take(tokens * n_in);
    let c = MatMut::new(&mut dx, tokens, n_in);
    products(precision, vec![Product { c, add: false, terms }], Threads::Pool);
    activation(dx, &[tokens, n_in])
}

/// Columns up to which a weight gradient in bf16 is made transposed: the rank of an adapter.
const TALL: usize = 32;

/// `dw += alpha dy^T x`.
pub fn linear_dw(precision: Precision, dw: &Gradient, alpha: f32, dy: &Tensor, x: &Tensor) -> Result<()> {
    if let Some(dw) = dw.cuda() {
        return cuda::ops::linear_dw(dw?, alpha, cuda::here(dy)?, cuda::here(x)?);
    }
    let ((tokens, n_out), (_, n_in)) = (dims(dy)?, dims(x)?);
    let _timer = Timer::product("products: dy^T x", [n_out, n_in, tokens]);
    let (dys, xs) = (Operand::of(dy)?, Operand::of(x)?);
    let (a, b) = (dys.mat(tokens, n_out), xs.mat(tokens, n_in));
    // What is much taller than wide is made lying down, where vectors run along its length.
    if precision == Precision::Bf16 && n_in <= TALL && n_in < n_out {
        let mut turned = buffers::take(n_in * n_out);
        product(precision, MatMut::new(&mut turned, n_in, n_out), 1.0, b.t(), a, false, Threads::Pool);
        return dw.add(|dw, add| elementwise::turn(dw, alpha, &turned, n_in, add));
    }
    dw.add(|dw, add| product(precision, MatMut::new(dw, n_out, n_in), alpha, a.t(), b, add, Threads::Pool))
}

/// `db += sum of the rows of dy`.
pub fn bias_gradient(db: &Gradient, dy: &Tensor) -> Result<()> {
    if let Some(dy) = dy.cuda() {
        return cuda::ops::bias_gradient(&db.whole()?, dy);
    }
    let _timer = Timer::new("bias, gradient", 0.0);
    let dy = view(dy)?;
    db.edit(|db| {
        for row in dy.chunks_exact(db.len()) {
            db.iter_mut().zip(row).for_each(|(b, d)| *b += d);
        }
    })
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

/// Rotates `q` `[tokens, queries * dim]` and `k` `[tokens, keys * dim]` in place; `inverse` is the gradient.
pub fn rotate([q, k]: [&Tensor; 2], positions: &Indices, heads: Heads, angles: &Angles, inverse: bool) -> Result<()> {
    if let Some(q) = q.cuda() {
        return cuda::ops::rotate([q, cuda::here(k)?], positions, heads, angles, inverse);
    }
    let _timer = Timer::new("rotary embedding", 0.0);
    edit(q, |q| rope::rotate(q, positions, heads.queries, &angles.table, inverse))?;
    edit(k, |k| rope::rotate(k, positions, heads.keys, &angles.table, inverse))
}

/// Norm of heads: its weight and its epsilon.
pub type HeadNorm<'a> = (&'a Tensor, f32);

/// Queries `[tokens, queries * dim]` and keys `[tokens, keys * dim]` as attention in `precision` reads them: normed if there
/// are norms, rotated, rounded; also the scale of each head's norm. What comes in is used up.
pub fn turned(
    precision: Precision,
    [q, k]: [Tensor; 2],
    norms: Option<[HeadNorm<'_>; 2]>,
    positions: &Indices,
    heads: Heads,
    angles: &Angles,
) -> Result<([Tensor; 2], Option<[Tensor; 2]>)> {
    if precision == Precision::Bf16 && q.cuda().is_none() {
        let [of_q, of_k] = norms.map_or([None, None], |norms| norms.map(Some));
        let (q, sq) = turned_narrow(&q, of_q, positions, heads.queries, angles)?;
        let (k, sk) = turned_narrow(&k, of_k, positions, heads.keys, angles)?;
        return Ok(([q, k], sq.zip(sk).map(|(sq, sk)| [sq, sk])));
    }
    let (turned, scales) = match norms {
        None => ([q, k], None),
        Some([(of_q, eps_q), (of_k, eps_k)]) => {
            let ((q, sq), (k, sk)) = (rms_norm(&q, of_q, eps_q)?, rms_norm(&k, of_k, eps_k)?);
            ([q, k], Some([sq, sk]))
        }
    };
    rotate(turned.each_ref(), positions, heads, angles, false)?;
    Ok((turned, scales))
}

/// One side of [`turned`] on the CPU in bf16.
fn turned_narrow(
    x: &Tensor,
    norm: Option<HeadNorm<'_>>,
    positions: &Indices,
    heads: usize,
    angles: &Angles,
) -> Result<(Tensor, Option<Tensor>)> {
    let _timer = Timer::new("heads normed and rotated", 0.0);
    let (xs, table) = (Operand::of(x)?, &angles.table);
    let weight = norm.map(|(w, eps)| Ok((view(w)?, eps))).transpose()?;
    let mut scale = norm.map(|_| buffers::take(positions.len() * heads));
    let y = Narrowed::new(x.dims(), |y| {
        let norm = weight.as_ref().zip(scale.as_deref_mut()).map(|((w, eps), scale)| (&**w, *eps, scale));
        match &xs {
            Operand::Wide(x) => rope::forward_narrow(x, norm, positions, heads, table, y),
            Operand::Narrow(x) => rope::forward_narrow(x, norm, positions, heads, table, y),
        }
    });
    let scale = scale.map(|scale| activation(scale, &[positions.len() * heads])).transpose()?;
    Ok((y.into(), scale))
}

/// Causal attention over packed rows, its products in `precision`: the output `[tokens, queries * dim]`, rounded for the
/// product that reads it, and the log-sum-exps in f32.
pub fn attend(
    precision: Precision,
    [q, k, v]: [&Tensor; 3],
    starts: &Starts,
    heads: Heads,
) -> Result<(Tensor, Tensor)> {
    if let Some(q) = q.cuda() {
        return cuda::ops::attend(q, cuda::here(k)?, cuda::here(v)?, starts, heads);
    }
    let _timer = Timer::new("attention", attention::work(starts, heads, 2));
    let (qs, ks, vs) = (Operand::of(q)?, Operand::of(k)?, Operand::of(v)?);
    let ((tokens, wide), (_, narrow)) = (dims(q)?, dims(k)?);
    let mut lse = buffers::take(tokens * heads.queries);
    let (qs, ks, vs) = (qs.mat(tokens, wide), ks.mat(tokens, narrow), vs.mat(tokens, narrow));
    let out = match precision {
        Precision::F32 => {
            let mut out = buffers::take(tokens * wide);
            attention::forward(precision, qs, ks, vs, starts, heads, &mut out, &mut lse);
            activation(out, q.dims())?
        }
        Precision::Bf16 => Narrowed::new(q.dims(), |out| {
            attention::forward(precision, qs, ks, vs, starts, heads, out, &mut lse);
        })
        .into(),
    };
    Ok((out, activation(lse, &[tokens * heads.queries])?))
}

/// The norm of heads, as its backward pass needs it: its weight, what was normed, the scale of each head, and where the
/// gradient of the weight is summed.
pub type NormedHeads<'a> = (&'a Tensor, &'a Tensor, &'a Tensor, Option<&'a Gradient>);

/// What attention made of its operands and needs again.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// Queries, keys and values as it read them.
    pub read: [&'a Tensor; 3],
    /// Where rows start.
    pub starts: &'a Starts,
    /// Its shape.
    pub heads: Heads,
    /// Its output.
    pub out: &'a Tensor,
    /// The log-sum-exps of its scores.
    pub lse: &'a Tensor,
}

/// Backward of [`attend`] and [`turned`]: gradients of queries, keys and values as they came in, `leaving` for products in
/// bf16 alone, or wide.
pub fn attend_backward(
    precision: Precision,
    leaving: Precision,
    of: Attention<'_>,
    dout: &Tensor,
    (positions, angles): (&Indices, &Angles),
    norms: Option<[NormedHeads<'_>; 2]>,
) -> Result<[Tensor; 3]> {
    if precision == Precision::Bf16 && dout.cuda().is_none() {
        return attend_backward_narrow(leaving, of, dout, (positions, angles), norms);
    }
    let Attention { read: [q, k, v], starts, heads, out, lse } = of;
    let [dq, dk, dv] = match q.cuda() {
        Some(q) => {
            let [k, v, out, lse, dout] =
                [cuda::here(k)?, cuda::here(v)?, cuda::here(out)?, cuda::here(lse)?, cuda::here(dout)?];
            cuda::ops::attend_backward([q, k, v], starts, heads, (out, lse), dout)?
        }
        None => {
            let _timer = Timer::new("attention, gradient", attention::work(starts, heads, 5));
            let ((tokens, wide), (_, narrow)) = (dims(q)?, dims(k)?);
            let [mut dq, mut dk, mut dv] = [wide, narrow, narrow].map(|width| buffers::take(tokens * width));
            let (qs, ks, vs, out, lse, dout) = (view(q)?, view(k)?, view(v)?, view(out)?, view(lse)?, view(dout)?);
            let read = [(&qs, wide), (&ks, narrow), (&vs, narrow)].map(|(x, width)| Mat::new(x, tokens, width));
            attention::backward(precision, read, starts, heads, (&out, &lse), &dout, [&mut dq, &mut dk, &mut dv]);
            [activation(dq, q.dims())?, activation(dk, k.dims())?, activation(dv, v.dims())?]
        }
    };
    rotate([&dq, &dk], positions, heads, angles, true)?;
    let Some([of_q, of_k]) = norms else { return Ok([dq, dk, dv]) };
    let back = |(w, x, scale, dw): NormedHeads<'_>, dy: &Tensor| rms_norm_backward(None, x, w, scale, dy, dw);
    Ok([back(of_q, &dq)?, back(of_k, &dk)?, dv])
}

/// What the forward pass kept rounded.
fn kept(x: &Tensor) -> Result<&Narrowed> {
    x.rounded().ok_or_else(|| BackendError::failed("an activation was not kept in bf16"))
}

fn held<'a>((w, x, scale, dw): NormedHeads<'a>) -> Result<(&'a Narrowed, View<'a>, View<'a>, bool)> {
    Ok((kept(x)?, view(w)?, view(scale)?, dw.is_some()))
}

/// [`attend_backward`] on the CPU in bf16.
fn attend_backward_narrow(
    leaving: Precision,
    of: Attention<'_>,
    dout: &Tensor,
    (positions, angles): (&Indices, &Angles),
    norms: Option<[NormedHeads<'_>; 2]>,
) -> Result<[Tensor; 3]> {
    let Attention { read: [q, k, v], starts, heads, out, lse } = of;
    let _timer = Timer::new("attention, gradient", attention::work(starts, heads, 5));
    let ((tokens, wide), (_, narrow)) = (dims(q)?, dims(k)?);
    let (qs, ks, vs) = (Operand::of(q)?, Operand::of(k)?, Operand::of(v)?);
    let read = [qs.mat(tokens, wide), ks.mat(tokens, narrow), vs.mat(tokens, narrow)];
    let (out, lse, dout) = (kept(out)?, view(lse)?, view(dout)?);
    let held = match norms {
        None => None,
        Some([of_q, of_k]) => Some([held(of_q)?, held(of_k)?]),
    };
    let norms_of = held.as_ref().map(|held| {
        held.each_ref().map(|(x, weight, scale, trained)| Normed { x: x.elements(), weight, scale, trained: *trained })
    });
    let before = Before { positions, table: &angles.table, norms: norms_of };
    let made = (out.elements(), &lse[..]);
    let (gradients, sums) = match leaving {
        Precision::Bf16 => {
            let [mut dq, mut dk, mut dv] = [q, k, v].map(|x| Narrowed::of(x.dims()));
            let into = [&mut dq, &mut dk, &mut dv].map(Narrowed::elements_mut);
            let sums = attention::backward_before(read, starts, heads, made, &dout, &before, into);
            ([dq.into(), dk.into(), dv.into()], sums)
        }
        Precision::F32 => {
            let [mut dq, mut dk, mut dv] = [wide, narrow, narrow].map(|width| buffers::take(tokens * width));
            let into: [&mut [f32]; 3] = [&mut dq, &mut dk, &mut dv];
            let sums = attention::backward_before(read, starts, heads, made, &dout, &before, into);
            ([activation(dq, q.dims())?, activation(dk, k.dims())?, activation(dv, v.dims())?], sums)
        }
    };
    for ((.., dw), sum) in norms.iter().flatten().zip(sums) {
        if let Some(dw) = dw {
            dw.edit(|dw| dw.iter_mut().zip(&sum).for_each(|(dw, sum)| *dw += sum))?;
        }
    }
    Ok(gradients)
}

/// One query per sequence against its cache.
pub fn attend_cached(q: &Tensor, caches: &[(&[f32], &[f32])], heads: Heads) -> Result<Tensor> {
    let qs = view(q)?;
    let mut out = buffers::take(qs.len());
    attention::decode(&qs, caches, heads, &mut out);
    activation(out, q.dims())
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
