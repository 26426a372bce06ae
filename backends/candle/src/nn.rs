//! Operations on tensors: the one place where a device is chosen.
//!
//! A [`Tensor`] is candle's, storage with a shape on a device; the buffers of activations are used again. The layers
//! above speak only in these functions; here the CPU's kernels ([`crate::ops`]) are found for it. All tensors are
//! contiguous f32; frozen weights may also be bf16 or f16 in a file ([`crate::weight`]). Candle's own automatic
//! differentiation is not used: forward and backward are both written out, because in candle 0.11 several fused
//! operations cut the gradient silently and frozen weights still pay for theirs.

use std::cell::Cell;
use std::ops::{Deref, Range};
use std::sync::Arc;

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Storage, StorageRef};
use karat::backend::BackendError;

use crate::ops::adamw::Update;
use crate::ops::attention::Heads;
use crate::ops::cross_entropy::Target;
use crate::ops::dropout::Key;
use crate::ops::low_rank::{self, LowRank};
use crate::ops::mapped::Elements;
pub use crate::ops::matmul::Precision;
use crate::ops::matmul::{Mat, MatMut, Product, Term, Threads, product, products};
use crate::ops::rope::Table;
use crate::ops::{adamw, attention, buffers, cross_entropy, dropout, elementwise, embedding, norm, rope, swiglu};
use crate::profile::Timer;
use crate::weight::{Weight, WeightView};

/// `Result` with the error that crosses the plugin boundary.
pub type Result<T, E = BackendError> = std::result::Result<T, E>;

fn engine(error: candle_core::Error) -> BackendError {
    BackendError::failed("candle failed").because(&error)
}

/// Contiguous f32 numbers with a shape; clones share them.
#[derive(Clone, Debug)]
pub struct Tensor(Arc<Held>);

#[derive(Debug)]
struct Held {
    tensor: candle_core::Tensor,
    /// The buffer came from [`buffers`] and goes back there.
    lent: bool,
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.lent {
            // Nobody else has the tensor of candle: `Tensor` never hands it out.
            let _ = self.tensor.inplace_op1(&Take);
        }
    }
}

struct Take;

impl InplaceOp1 for Take {
    fn name(&self) -> &'static str {
        "take"
    }
    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        if let CpuStorage::F32(data) = storage {
            buffers::give(std::mem::take(data));
        }
        Ok(())
    }
}

impl Tensor {
    /// Its shape.
    pub fn dims(&self) -> &[usize] {
        self.0.tensor.dims()
    }
    /// Its number of elements.
    pub fn elem_count(&self) -> usize {
        self.0.tensor.elem_count()
    }
}

fn hold(data: Vec<f32>, shape: &[usize], lent: bool) -> Result<Tensor> {
    let tensor = candle_core::Tensor::from_vec(data, shape, &Device::Cpu).map_err(engine)?;
    Ok(Tensor(Arc::new(Held { tensor, lent })))
}

/// A tensor of `shape` that owns `data`: for what lasts, parameters and their like.
pub fn tensor(data: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
    hold(data, shape, false)
}

/// Zeros of `shape`, for what lasts.
pub fn zeros(shape: &[usize]) -> Result<Tensor> {
    tensor(buffers::zeroed(shape.iter().product()), shape)
}

/// An activation of `shape`, `data` being from [`buffers::take`].
fn activation(data: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
    hold(data, shape, true)
}

/// Zeros of `shape`, for what is soon gone.
pub fn zero_activation(shape: &[usize]) -> Result<Tensor> {
    let mut data = buffers::take(shape.iter().product());
    elementwise::clear(&mut data);
    activation(data, shape)
}

/// A copy with storage of its own.
pub fn copy(t: &Tensor) -> Result<Tensor> {
    tensor(view(t)?.to_vec(), t.dims())
}

/// A tensor's elements, held for reading.
pub struct View<'a> {
    storage: StorageRef<'a>,
    range: Range<usize>,
}

impl Deref for View<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(data)) => &data[self.range.clone()],
            _ => unreachable!("`view` checked the storage"),
        }
    }
}

fn extent(layout: &Layout) -> Result<Range<usize>> {
    let (start, end) =
        layout.contiguous_offsets().ok_or_else(|| BackendError::failed("a tensor with gaps reached a CPU kernel"))?;
    Ok(start..end)
}

/// The elements of a contiguous f32 tensor on the CPU.
pub fn view(t: &Tensor) -> Result<View<'_>> {
    let (storage, layout) = t.0.tensor.storage_and_layout();
    let range = extent(layout)?;
    match &*storage {
        Storage::Cpu(CpuStorage::F32(_)) => Ok(View { storage, range }),
        _ => Err(BackendError::unsupported(format!(
            "no kernels for {:?} on {:?}",
            t.0.tensor.dtype(),
            t.0.tensor.device()
        ))),
    }
}

struct Edit<F>(Cell<Option<F>>);

impl<F: FnOnce(&mut [f32])> InplaceOp1 for Edit<F> {
    fn name(&self) -> &'static str {
        "edit"
    }
    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let CpuStorage::F32(data) = storage else {
            return Err(candle_core::Error::UnexpectedDType {
                msg: "edit in place",
                expected: DType::F32,
                got: storage_dtype(storage),
            });
        };
        let (start, end) = layout.contiguous_offsets().ok_or_else(|| candle_core::Error::msg("a tensor with gaps"))?;
        if let Some(f) = self.0.take() {
            f(&mut data[start..end]);
        }
        Ok(())
    }
}

fn storage_dtype(storage: &CpuStorage) -> DType {
    use candle_core::backend::BackendStorage;
    storage.dtype()
}

/// Changes a tensor's elements in place; every clone of it sees the change.
pub fn edit(t: &Tensor, f: impl FnOnce(&mut [f32])) -> Result<()> {
    t.0.tensor.inplace_op1(&Edit(Cell::new(Some(f)))).map_err(engine)
}

/// Rows and columns of a matrix.
fn dims(t: &Tensor) -> Result<(usize, usize)> {
    t.0.tensor.dims2().map_err(engine)
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
}

impl Stored for Tensor {
    fn dims(&self) -> &[usize] {
        self.dims()
    }
    fn view(&self) -> Result<WeightView<'_>> {
        view(self).map(WeightView::Owned)
    }
}

/// `x[at]`, `[at, width]`.
pub fn gather(x: &Tensor, at: &[u32]) -> Result<Tensor> {
    let (_, width) = dims(x)?;
    let mut y = buffers::take(at.len() * width);
    embedding::gather(Elements::F32(&view(x)?), width, at, &mut y);
    activation(y, &[at.len(), width])
}

/// `table[ids]`, `[ids, width]`, widened to f32.
pub fn embed(table: &Weight, ids: &[u32]) -> Result<Tensor> {
    let _timer = Timer::new("embedding", 0.0);
    let (_, width) = table.matrix()?;
    let mut y = buffers::take(ids.len() * width);
    embedding::gather(table.view()?.elements(), width, ids, &mut y);
    activation(y, &[ids.len(), width])
}

/// `dtable[ids] += dy`.
pub fn scatter_add(dtable: &Tensor, ids: &[u32], dy: &Tensor) -> Result<()> {
    let _timer = Timer::new("embedding, dW", 0.0);
    let (_, width) = dims(dtable)?;
    let dy = view(dy)?;
    edit(dtable, |dtable| embedding::scatter_add(dtable, width, ids, &dy))
}

/// `x w^T + bias`: `x` `[tokens, in]`, `w` `[out, in]`.
pub fn linear(precision: Precision, x: &Tensor, w: &impl Stored, bias: Option<&Tensor>) -> Result<Tensor> {
    linear_with::<_, Tensor>(precision, x, w, bias, None)
}

/// `x w^T + bias + alpha low b^T`, the last term in the same pass: `low` `[tokens, r]`, `b` `[out, r]`.
pub fn linear_with<W: Stored, B: Stored>(
    precision: Precision,
    x: &Tensor,
    w: &W,
    bias: Option<&Tensor>,
    more: Option<(f32, &Tensor, &B)>,
) -> Result<Tensor> {
    let ((tokens, n_in), (n_out, _)) = (dims(x)?, w.matrix()?);
    let _timer = Timer::product("products: x W^T", [tokens, n_out, n_in]);
    let mut y = buffers::take(tokens * n_out);
    if let Some(bias) = bias {
        let bias = view(bias)?;
        y.chunks_exact_mut(n_out).for_each(|y| y.copy_from_slice(&bias));
    }
    let (xs, ws) = (view(x)?, w.view()?);
    let mut terms =
        vec![Term { alpha: 1.0, a: Mat::new(&xs, tokens, n_in), b: Mat::of(ws.elements(), n_out, n_in).t() }];
    let held = match more {
        Some((alpha, low, b)) => Some((alpha, view(low)?, b.view()?, dims(low)?.1)),
        None => None,
    };
    if let Some((alpha, low, b, r)) = &held {
        terms.push(Term { alpha: *alpha, a: Mat::new(low, tokens, *r), b: Mat::of(b.elements(), n_out, *r).t() });
    }
    let c = MatMut::new(&mut y, tokens, n_out);
    products(precision, vec![Product { c, add: bias.is_some(), terms }], Threads::Pool);
    activation(y, &[tokens, n_out])
}

/// `y += alpha x w^T`.
pub fn linear_add(precision: Precision, y: &Tensor, alpha: f32, x: &Tensor, w: &impl Stored) -> Result<()> {
    let ((tokens, n_in), (n_out, _)) = (dims(x)?, w.matrix()?);
    let _timer = Timer::product("products: x W^T", [tokens, n_out, n_in]);
    let (xs, ws) = (view(x)?, w.view()?);
    let (a, b) = (Mat::new(&xs, tokens, n_in), Mat::of(ws.elements(), n_out, n_in).t());
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
    let ((tokens, n_out), (_, n_in)) = (dims(dy)?, w.matrix()?);
    let _timer = Timer::product("products: dy W", [tokens, n_in, n_out]);
    let (dys, ws) = (view(dy)?, w.view()?);
    let mut terms = vec![Term { alpha, a: Mat::new(&dys, tokens, n_out), b: Mat::of(ws.elements(), n_out, n_in) }];
    let held = match more {
        Some((dlow, a)) => Some((view(dlow)?, a.view()?, dims(dlow)?.1)),
        None => None,
    };
    if let Some((dlow, a, r)) = &held {
        terms.push(Term { alpha: 1.0, a: Mat::new(dlow, tokens, *r), b: Mat::of(a.elements(), *r, n_in) });
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

/// `dw += alpha dy^T x`.
pub fn linear_dw(precision: Precision, dw: &Tensor, alpha: f32, dy: &Tensor, x: &Tensor) -> Result<()> {
    let ((tokens, n_out), (_, n_in)) = (dims(dy)?, dims(x)?);
    let _timer = Timer::product("products: dy^T x", [n_out, n_in, tokens]);
    let (dys, xs) = (view(dy)?, view(x)?);
    let (a, b) = (Mat::new(&dys, tokens, n_out).t(), Mat::new(&xs, tokens, n_in));
    edit(dw, |dw| product(precision, MatMut::new(dw, n_out, n_in), alpha, a, b, true, Threads::Pool))
}

/// `db += sum of the rows of dy`.
pub fn bias_gradient(db: &Tensor, dy: &Tensor) -> Result<()> {
    let _timer = Timer::new("bias, gradient", 0.0);
    let dy = view(dy)?;
    edit(db, |db| {
        for row in dy.chunks_exact(db.len()) {
            db.iter_mut().zip(row).for_each(|(b, d)| *b += d);
        }
    })
}

/// RMSNorm of every run of `w.len()` elements; also the scale of each run, which the backward pass needs.
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f32) -> Result<(Tensor, Vec<f32>)> {
    let _timer = Timer::new("RMSNorm", 0.0);
    let (xs, ws) = (view(x)?, view(w)?);
    let (mut y, mut scale) = (buffers::take(xs.len()), vec![0.0; xs.len() / ws.len()]);
    norm::forward(&xs, &ws, eps, &mut y, &mut scale);
    Ok((activation(y, x.dims())?, scale))
}

/// Backward of [`rms_norm`]: added to `dx` if that is given, else new; `dw` where the weight is trained.
pub fn rms_norm_backward(
    dx: Option<Tensor>,
    x: &Tensor,
    w: &Tensor,
    scale: &[f32],
    dy: &Tensor,
    dw: Option<&Tensor>,
) -> Result<Tensor> {
    let _timer = Timer::new("RMSNorm, gradient", 0.0);
    let (xs, ws, dys) = (view(x)?, view(w)?, view(dy)?);
    let add = dx.is_some();
    let dx = match dx {
        Some(dx) => dx,
        None => zero_activation(x.dims())?,
    };
    match dw {
        Some(dw) => {
            let mut sum = vec![0.0; ws.len()];
            edit(&dx, |dx| norm::backward(&xs, &ws, scale, &dys, dx, add, Some(&mut sum)))?;
            edit(dw, |dw| dw.iter_mut().zip(&sum).for_each(|(dw, s)| *dw += s))?;
        }
        None => edit(&dx, |dx| norm::backward(&xs, &ws, scale, &dys, dx, add, None))?,
    }
    Ok(dx)
}

/// Rotates `x` `[tokens, heads * head_dim]` in place; `inverse` is the gradient.
pub fn rotate(x: &Tensor, positions: &[u32], heads: usize, table: &Table, inverse: bool) -> Result<()> {
    let _timer = Timer::new("rotary embedding", 0.0);
    edit(x, |x| rope::rotate(x, positions, heads, table, inverse))
}

/// Causal attention over packed rows: the output `[tokens, queries * dim]` and the log-sum-exps.
pub fn attend(
    precision: Precision,
    [q, k, v]: [&Tensor; 3],
    starts: &[usize],
    heads: Heads,
) -> Result<(Tensor, Vec<f32>)> {
    let _timer = Timer::new("attention", attention::work(starts, heads, 2));
    let (qs, ks, vs) = (view(q)?, view(k)?, view(v)?);
    let tokens = dims(q)?.0;
    let (mut out, mut lse) = (buffers::take(qs.len()), vec![0.0; tokens * heads.queries]);
    attention::forward(precision, &qs, &ks, &vs, starts, heads, &mut out, &mut lse);
    Ok((activation(out, q.dims())?, lse))
}

/// Backward of [`attend`]: gradients of `q`, `k`, `v`.
pub fn attend_backward(
    precision: Precision,
    [q, k, v]: [&Tensor; 3],
    starts: &[usize],
    heads: Heads,
    (out, lse): (&Tensor, &[f32]),
    dout: &Tensor,
) -> Result<[Tensor; 3]> {
    let _timer = Timer::new("attention, gradient", attention::work(starts, heads, 5));
    let (qs, ks, vs) = (view(q)?, view(k)?, view(v)?);
    let (mut dq, mut dk, mut dv) = (buffers::take(qs.len()), buffers::take(ks.len()), buffers::take(vs.len()));
    let (out, dout) = (view(out)?, view(dout)?);
    attention::backward(precision, &qs, &ks, &vs, starts, heads, &out, lse, &dout, &mut dq, &mut dk, &mut dv);
    Ok([activation(dq, q.dims())?, activation(dk, k.dims())?, activation(dv, v.dims())?])
}

/// One query per sequence against its cache.
pub fn attend_cached(q: &Tensor, caches: &[(&[f32], &[f32])], heads: Heads) -> Result<Tensor> {
    let qs = view(q)?;
    let mut out = buffers::take(qs.len());
    attention::decode(&qs, caches, heads, &mut out);
    activation(out, q.dims())
}

/// `silu(gate) * up`.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let _timer = Timer::new("SwiGLU", 0.0);
    let (g, u) = (view(gate)?, view(up)?);
    let mut y = buffers::take(g.len());
    swiglu::forward(&g, &u, &mut y);
    activation(y, gate.dims())
}

/// Gradients of `gate` and `up`.
pub fn swiglu_backward(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    let _timer = Timer::new("SwiGLU, gradient", 0.0);
    let (g, u, d) = (view(gate)?, view(up)?, view(dy)?);
    let (mut dg, mut du) = (buffers::take(g.len()), buffers::take(u.len()));
    swiglu::backward(&g, &u, &d, &mut dg, &mut du);
    Ok((activation(dg, gate.dims())?, activation(du, up.dims())?))
}

/// `x += y`.
pub fn add(x: &Tensor, y: &Tensor) -> Result<()> {
    let _timer = Timer::new("residual sums", 0.0);
    let y = view(y)?;
    edit(x, |x| elementwise::add(x, &y))
}

/// `x = 0`.
pub fn clear(x: &Tensor) -> Result<()> {
    let _timer = Timer::new("gradients set to zero", 0.0);
    edit(x, elementwise::clear)
}

/// Dropout of `x` under `key`.
pub fn dropout(x: &Tensor, p: f64, key: Key) -> Result<Tensor> {
    let _timer = Timer::new("dropout", 0.0);
    let xs = view(x)?;
    let mut y = buffers::take(xs.len());
    dropout::apply(&xs, &mut y, p, key, false);
    activation(y, x.dims())
}

/// `dx += dropout(dy)` under the same mask.
pub fn dropout_add(dx: &Tensor, dy: &Tensor, p: f64, key: Key) -> Result<()> {
    let _timer = Timer::new("dropout, gradient", 0.0);
    let dy = view(dy)?;
    edit(dx, |dx| dropout::apply(&dy, dx, p, key, true))
}

/// `W + scale B A`, each row times its `gain` if one is given: a new tensor `[out, in]`.
pub fn merged(w: &Weight, [a, b]: [&Tensor; 2], scale: f32, gain: Option<&[f32]>) -> Result<Tensor> {
    let (merged, n_in) = (w.widened()?, w.matrix()?.1);
    let (a, b) = (view(a)?, view(b)?);
    edit(&merged, |w| low_rank::merge(w, LowRank { a: &a, b: &b, scale, n_in }, gain))?;
    Ok(merged)
}

/// The L2 norm of every row of `W + scale B A`, into `norms` `[out]`.
pub fn merged_norms(norms: &Tensor, w: &Weight, [a, b]: [&Tensor; 2], scale: f32) -> Result<()> {
    let (ws, a, b, n_in) = (w.view()?, view(a)?, view(b)?, w.matrix()?.1);
    edit(norms, |norms| low_rank::norms(ws.elements(), LowRank { a: &a, b: &b, scale, n_in }, norms))
}

/// `y += gain * x`, column by column.
pub fn add_scaled(y: &Tensor, x: &Tensor, gain: &[f32]) -> Result<()> {
    let x = view(x)?;
    edit(y, |y| low_rank::add_scaled(y, &x, gain))
}

/// `dgain += sum over the rows of dy * x`, column by column.
pub fn gain_gradient(dgain: &mut [f32], dy: &Tensor, x: &Tensor) -> Result<()> {
    low_rank::gain_gradient(dgain, &view(dy)?, &view(x)?);
    Ok(())
}

/// Log-probabilities of `targets` given `hidden` and the output projection.
pub fn score(precision: Precision, hidden: &Tensor, targets: &[u32], head: &Weight) -> Result<Vec<Target>> {
    Ok(cross_entropy::score(precision, &view(hidden)?, targets, head.view()?.elements(), head.matrix()?.1))
}

/// Logits `[tokens, vocab]`.
pub fn logits(precision: Precision, hidden: &Tensor, head: &Weight) -> Result<Tensor> {
    linear(precision, hidden, head, None)
}

/// Loss `scale * sum of -log p` of `targets`: their log-probabilities and the gradient of `hidden`; that of the
/// projection is added to `dhead`.
pub fn head_loss(
    precision: Precision,
    hidden: &Tensor,
    targets: &[u32],
    head: &Weight,
    scale: f32,
    dhead: Option<&Tensor>,
) -> Result<(Vec<f32>, Tensor)> {
    let (hs, ws, width) = (view(hidden)?, head.view()?, head.matrix()?.1);
    let products = if dhead.is_some() { 3 } else { 2 };
    let _timer = Timer::product("head and loss", [products * targets.len(), ws.elements().len() / width, width]);
    let mut dhidden = buffers::take(hs.len());
    let logprobs = match dhead {
        Some(dhead) => {
            let mut logprobs = Vec::new();
            edit(dhead, |d| {
                logprobs =
                    cross_entropy::train(precision, &hs, targets, ws.elements(), width, scale, &mut dhidden, Some(d));
            })?;
            logprobs
        }
        None => cross_entropy::train(precision, &hs, targets, ws.elements(), width, scale, &mut dhidden, None),
    };
    Ok((logprobs, activation(dhidden, hidden.dims())?))
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
