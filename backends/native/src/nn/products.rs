//! Linear layers and low-rank adapters: products of activations with weights, and their gradients.

use karat_backend::BackendError;

use super::gradient::Gradient;
use super::narrowed::{Narrowed, Operand};
use super::tensor::{Tensor, View, activation, edit, view};
use super::{Precision, Result, Stored, dims, scale};
use crate::cuda;
use crate::ops::lowered::{Lowering, lower};
use crate::ops::matmul::dots::Columns;
use crate::ops::matmul::{Mat, MatMut, Product, Term, Threads, product, products};
use crate::ops::{buffers, elementwise};
use crate::profile::Timer;
use crate::weight::WeightView;

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
