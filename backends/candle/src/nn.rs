//! Operations on tensors: the one place where a device is chosen.
//!
//! A [`Tensor`] of candle is storage with a shape on a device. The layers above speak only in these functions; here
//! the CPU's kernels ([`crate::ops`]) are found for it. All tensors are contiguous f32. Candle's own automatic
//! differentiation is not used: forward and backward are both written out, because in candle 0.11 several fused
//! operations cut the gradient silently and frozen weights still pay for theirs.

use std::cell::Cell;
use std::ops::{Deref, Range};

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Storage, StorageRef, Tensor};
use karat::backend::BackendError;

use crate::ops::adamw::Update;
use crate::ops::attention::Heads;
use crate::ops::cross_entropy::Target;
use crate::ops::dropout::Key;
use crate::ops::low_rank::{self, LowRank};
use crate::ops::matmul::{Mat, MatMut, Threads, product};
use crate::ops::rope::Table;
use crate::ops::{adamw, attention, cross_entropy, dropout, embedding, norm, rope, swiglu};

/// `Result` with the error that crosses the plugin boundary.
pub type Result<T, E = BackendError> = std::result::Result<T, E>;

fn engine(error: candle_core::Error) -> BackendError {
    BackendError::failed("candle failed").because(&error)
}

/// A tensor of `shape` that owns `data`.
pub fn tensor(data: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
    Tensor::from_vec(data, shape, &Device::Cpu).map_err(engine)
}

/// Zeros of `shape`.
pub fn zeros(shape: &[usize]) -> Result<Tensor> {
    tensor(vec![0.0; shape.iter().product()], shape)
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
    let (storage, layout) = t.storage_and_layout();
    let range = extent(layout)?;
    match &*storage {
        Storage::Cpu(CpuStorage::F32(_)) => Ok(View { storage, range }),
        _ => Err(BackendError::unsupported(format!("no kernels for {:?} on {:?}", t.dtype(), t.device()))),
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
    t.inplace_op1(&Edit(Cell::new(Some(f)))).map_err(engine)
}

/// Rows and columns of a matrix.
fn dims(t: &Tensor) -> Result<(usize, usize)> {
    t.dims2().map_err(engine)
}

/// `table[ids]`, `[ids, width]`.
pub fn gather(table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    let (_, width) = dims(table)?;
    let mut y = vec![0.0; ids.len() * width];
    embedding::gather(&view(table)?, width, ids, &mut y);
    tensor(y, &[ids.len(), width])
}

/// `dtable[ids] += dy`.
pub fn scatter_add(dtable: &Tensor, ids: &[u32], dy: &Tensor) -> Result<()> {
    let (_, width) = dims(dtable)?;
    let dy = view(dy)?;
    edit(dtable, |dtable| embedding::scatter_add(dtable, width, ids, &dy))
}

/// `x w^T + bias`: `x` `[tokens, in]`, `w` `[out, in]`.
pub fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let ((tokens, n_in), (n_out, _)) = (dims(x)?, dims(w)?);
    let mut y = vec![0.0; tokens * n_out];
    if let Some(bias) = bias {
        let bias = view(bias)?;
        y.chunks_exact_mut(n_out).for_each(|y| y.copy_from_slice(&bias));
    }
    let (xs, ws) = (view(x)?, view(w)?);
    let (a, b) = (Mat::new(&xs, tokens, n_in), Mat::new(&ws, n_out, n_in).t());
    product(MatMut::new(&mut y, tokens, n_out), 1.0, a, b, bias.is_some(), Threads::Pool);
    tensor(y, &[tokens, n_out])
}

/// `y += alpha x w^T`.
pub fn linear_add(y: &Tensor, alpha: f32, x: &Tensor, w: &Tensor) -> Result<()> {
    let ((tokens, n_in), (n_out, _)) = (dims(x)?, dims(w)?);
    let (xs, ws) = (view(x)?, view(w)?);
    let (a, b) = (Mat::new(&xs, tokens, n_in), Mat::new(&ws, n_out, n_in).t());
    edit(y, |y| product(MatMut::new(y, tokens, n_out), alpha, a, b, true, Threads::Pool))
}

/// The gradient of a linear layer's input, `alpha dy w`; added to `dx` if that is given, else new.
pub fn linear_dx(dx: Option<Tensor>, alpha: f32, dy: &Tensor, w: &Tensor) -> Result<Tensor> {
    let ((tokens, n_out), (_, n_in)) = (dims(dy)?, dims(w)?);
    let (dys, ws) = (view(dy)?, view(w)?);
    let (a, b) = (Mat::new(&dys, tokens, n_out), Mat::new(&ws, n_out, n_in));
    if let Some(dx) = dx {
        edit(&dx, |dx| product(MatMut::new(dx, tokens, n_in), alpha, a, b, true, Threads::Pool))?;
        return Ok(dx);
    }
    let mut dx = vec![0.0; tokens * n_in];
    product(MatMut::new(&mut dx, tokens, n_in), alpha, a, b, false, Threads::Pool);
    tensor(dx, &[tokens, n_in])
}

/// `dw += alpha dy^T x`.
pub fn linear_dw(dw: &Tensor, alpha: f32, dy: &Tensor, x: &Tensor) -> Result<()> {
    let ((tokens, n_out), (_, n_in)) = (dims(dy)?, dims(x)?);
    let (dys, xs) = (view(dy)?, view(x)?);
    let (a, b) = (Mat::new(&dys, tokens, n_out).t(), Mat::new(&xs, tokens, n_in));
    edit(dw, |dw| product(MatMut::new(dw, n_out, n_in), alpha, a, b, true, Threads::Pool))
}

/// `db += sum of the rows of dy`.
pub fn bias_gradient(db: &Tensor, dy: &Tensor) -> Result<()> {
    let dy = view(dy)?;
    edit(db, |db| {
        for row in dy.chunks_exact(db.len()) {
            db.iter_mut().zip(row).for_each(|(b, d)| *b += d);
        }
    })
}

/// RMSNorm of every run of `w.len()` elements; also the scale of each run, which the backward pass needs.
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f32) -> Result<(Tensor, Vec<f32>)> {
    let (xs, ws) = (view(x)?, view(w)?);
    let (mut y, mut scale) = (vec![0.0; xs.len()], vec![0.0; xs.len() / ws.len()]);
    norm::forward(&xs, &ws, eps, &mut y, &mut scale);
    Ok((tensor(y, x.dims())?, scale))
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
    let (xs, ws, dys) = (view(x)?, view(w)?, view(dy)?);
    let add = dx.is_some();
    let dx = match dx {
        Some(dx) => dx,
        None => zeros(x.dims())?,
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
    edit(x, |x| rope::rotate(x, positions, heads, table, inverse))
}

/// Causal attention over packed rows: the output `[tokens, queries * dim]` and the log-sum-exps.
pub fn attend(q: &Tensor, k: &Tensor, v: &Tensor, starts: &[usize], heads: Heads) -> Result<(Tensor, Vec<f32>)> {
    let (qs, ks, vs) = (view(q)?, view(k)?, view(v)?);
    let tokens = dims(q)?.0;
    let (mut out, mut lse) = (vec![0.0; qs.len()], vec![0.0; tokens * heads.queries]);
    attention::forward(&qs, &ks, &vs, starts, heads, &mut out, &mut lse);
    Ok((tensor(out, q.dims())?, lse))
}

/// Backward of [`attend`]: gradients of `q`, `k`, `v`.
pub fn attend_backward(
    [q, k, v]: [&Tensor; 3],
    starts: &[usize],
    heads: Heads,
    (out, lse): (&Tensor, &[f32]),
    dout: &Tensor,
) -> Result<[Tensor; 3]> {
    let (qs, ks, vs) = (view(q)?, view(k)?, view(v)?);
    let (mut dq, mut dk, mut dv) = (vec![0.0; qs.len()], vec![0.0; ks.len()], vec![0.0; vs.len()]);
    let (out, dout) = (view(out)?, view(dout)?);
    attention::backward(&qs, &ks, &vs, starts, heads, &out, lse, &dout, &mut dq, &mut dk, &mut dv);
    Ok([tensor(dq, q.dims())?, tensor(dk, k.dims())?, tensor(dv, v.dims())?])
}

/// One query per sequence against its cache.
pub fn attend_cached(q: &Tensor, caches: &[(&[f32], &[f32])], heads: Heads) -> Result<Tensor> {
    let qs = view(q)?;
    let mut out = vec![0.0; qs.len()];
    attention::decode(&qs, caches, heads, &mut out);
    tensor(out, q.dims())
}

/// `silu(gate) * up`.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let (g, u) = (view(gate)?, view(up)?);
    let mut y = vec![0.0; g.len()];
    swiglu::forward(&g, &u, &mut y);
    tensor(y, gate.dims())
}

/// Gradients of `gate` and `up`.
pub fn swiglu_backward(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    let (g, u, d) = (view(gate)?, view(up)?, view(dy)?);
    let (mut dg, mut du) = (vec![0.0; g.len()], vec![0.0; u.len()]);
    swiglu::backward(&g, &u, &d, &mut dg, &mut du);
    Ok((tensor(dg, gate.dims())?, tensor(du, up.dims())?))
}

/// `x += y`.
pub fn add(x: &Tensor, y: &Tensor) -> Result<()> {
    let y = view(y)?;
    edit(x, |x| x.iter_mut().zip(y.iter()).for_each(|(x, y)| *x += y))
}

/// Dropout of `x` under `key`.
pub fn dropout(x: &Tensor, p: f64, key: Key) -> Result<Tensor> {
    let xs = view(x)?;
    let mut y = vec![0.0; xs.len()];
    dropout::apply(&xs, &mut y, p, key, false);
    tensor(y, x.dims())
}

/// `dx += dropout(dy)` under the same mask.
pub fn dropout_add(dx: &Tensor, dy: &Tensor, p: f64, key: Key) -> Result<()> {
    let dy = view(dy)?;
    edit(dx, |dx| dropout::apply(&dy, dx, p, key, true))
}

/// `W + scale B A`, each row times its `gain` if one is given: a new tensor `[out, in]`.
pub fn merged(w: &Tensor, [a, b]: [&Tensor; 2], scale: f32, gain: Option<&[f32]>) -> Result<Tensor> {
    let mut data = view(w)?.to_vec();
    let (a, b, n_in) = (view(a)?, view(b)?, dims(w)?.1);
    low_rank::merge(&mut data, LowRank { a: &a, b: &b, scale, n_in }, gain);
    tensor(data, w.dims())
}

/// The L2 norm of every row of `W + scale B A`, into `norms` `[out]`.
pub fn merged_norms(norms: &Tensor, w: &Tensor, [a, b]: [&Tensor; 2], scale: f32) -> Result<()> {
    let (ws, a, b, n_in) = (view(w)?, view(a)?, view(b)?, dims(w)?.1);
    edit(norms, |norms| low_rank::norms(&ws, LowRank { a: &a, b: &b, scale, n_in }, norms))
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
pub fn score(hidden: &Tensor, targets: &[u32], head: &Tensor) -> Result<Vec<Target>> {
    Ok(cross_entropy::score(&view(hidden)?, targets, &view(head)?, dims(head)?.1))
}

/// Logits `[tokens, vocab]`.
pub fn logits(hidden: &Tensor, head: &Tensor) -> Result<Tensor> {
    linear(hidden, head, None)
}

/// Loss `scale * sum of -log p` of `targets`: their log-probabilities and the gradient of `hidden`; that of the
/// projection is added to `dhead`.
pub fn head_loss(
    hidden: &Tensor,
    targets: &[u32],
    head: &Tensor,
    scale: f32,
    dhead: Option<&Tensor>,
) -> Result<(Vec<f32>, Tensor)> {
    let (hs, ws, width) = (view(hidden)?, view(head)?, dims(head)?.1);
    let mut dhidden = vec![0.0; hs.len()];
    let logprobs = match dhead {
        Some(dhead) => {
            let mut logprobs = Vec::new();
            edit(dhead, |d| {
                logprobs = cross_entropy::train(&hs, targets, &ws, width, scale, &mut dhidden, Some(d));
            })?;
            logprobs
        }
        None => cross_entropy::train(&hs, targets, &ws, width, scale, &mut dhidden, None),
    };
    Ok((logprobs, tensor(dhidden, hidden.dims())?))
}

/// One AdamW update of `p` and its moments.
pub fn adamw(p: &Tensor, m: &Tensor, v: &Tensor, g: &Tensor, update: &Update) -> Result<()> {
    let g = view(g)?;
    let (mut of_m, mut of_v) = (Ok(()), Ok(()));
    edit(p, |p| of_m = edit(m, |m| of_v = edit(v, |v| adamw::update(p, m, v, &g, update))))?;
    of_m.and(of_v)
}

/// Sum of squares in f64.
pub fn sum_of_squares(t: &Tensor) -> Result<f64> {
    Ok(adamw::sum_of_squares(&view(t)?))
}
