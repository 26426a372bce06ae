//! The operations of [`crate::nn`] on a device: one launch or product each, in the order they are called.

use karat_backend::BackendError;

use super::device::{Arg, Buffer, Element, Gemm, Matrix};
use super::kernels::{self, Groups, attention as packed};
use super::{Device, Tensor, here, pool, tensor};
use crate::nn::{self, Angles, Indices, Result, Starts};
use crate::ops::attention::Heads;
use crate::ops::cross_entropy::Target;
use crate::ops::dropout::Key;

fn transposed(matrix: Matrix<'_>) -> Matrix<'_> {
    Matrix { transposed: true, ..matrix }
}

/// `c = alpha op(a) op(b) + beta c` for single matrices, `c` given with the device it lies on.
fn multiply(
    device: &Device,
    c: Matrix<'_>,
    [m, n, k]: [usize; 3],
    alpha: f32,
    [a, b]: [Matrix<'_>; 2],
    beta: f32,
) -> Result<()> {
    if m == 0 || n == 0 {
        return Ok(());
    }
    device.gpu.gemm(&Gemm { m, n, k, alpha, a, b, beta, c, batch: 1 })
}

fn like(t: &Tensor) -> Result<Tensor> {
    Tensor::any(t.device(), t.element(), t.dims())
}

/// f32 scratch for sums over rows.
fn scratch(device: &Device, rows: usize, width: usize) -> Result<Buffer> {
    Buffer::new(&device.gpu, kernels::column_scratch(rows, width) * 4)
}

/// Zeros in f32 of the shape of `t`.
///
/// # Errors
/// If the device has no room; so all functions here, or if it fails.
pub fn zeros_like(t: &Tensor) -> Result<nn::Tensor> {
    let zeros = Tensor::any(t.device(), Element::F32, t.dims())?;
    zeros.clear()?;
    Ok(zeros.into())
}

/// Zeros like the activation `t`.
pub fn zero_activation(t: &Tensor) -> Result<nn::Tensor> {
    let zeros = like(t)?;
    zeros.clear()?;
    Ok(zeros.into())
}

/// A copy with memory of its own.
pub fn copy(t: &Tensor) -> Result<nn::Tensor> {
    let y = like(t)?;
    let bytes = t.elem_count() * t.element().size();
    t.device().gpu.copy((t.buffer().raw(), 0), (y.buffer().raw(), 0), bytes)?;
    Ok(y.into())
}

/// `x[at]`, as activations are stored.
pub fn gather(x: &Tensor, at: &Indices) -> Result<nn::Tensor> {
    let ((_, width), device) = (x.matrix_dims(), x.device());
    let y = Tensor::activation(device, &[at.len(), width])?;
    let arguments = [x.arg(), at.on(device)?.arg(), y.arg()];
    kernels::gather(&*device.gpu, (x.element(), y.element()), arguments, (at.len(), width))?;
    Ok(y.into())
}

/// `dtable[ids] += dy`, but for the id `pad`; the tokens of an id are summed in their order.
pub fn scatter_add(dtable: &Tensor, ids: &Indices, dy: &nn::Tensor, pad: Option<u32>) -> Result<()> {
    let (device, dy, width) = (dtable.device(), here(dy)?, dtable.matrix_dims().1);
    let groups = Groups::new(ids, pad);
    let [starts, rows, order] =
        [&groups.starts, &groups.ids, &groups.order].map(|host| tensor::Indices::upload(device, host));
    let (starts, rows, order) = (starts?, rows?, order?);
    let arguments = [dtable.arg(), starts.arg(), rows.arg(), order.arg(), dy.arg()];
    kernels::scatter_add(&*device.gpu, (dtable.element(), dy.element()), arguments, (groups.ids.len(), width))
}

/// `x w^T + bias + alpha low b^T`.
pub fn linear(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&nn::Tensor>,
    more: Option<(f32, &Tensor, &Tensor)>,
) -> Result<nn::Tensor> {
    let ((tokens, n_in), (n_out, _)) = (x.matrix_dims(), w.matrix_dims());
    let y = Tensor::activation(x.device(), &[tokens, n_out])?;
    multiply(x.device(), y.matrix(), [tokens, n_out, n_in], 1.0, [x.matrix(), transposed(w.matrix())], 0.0)?;
    if let Some((alpha, low, b)) = more {
        linear_add(&y, alpha, low, b)?;
    }
    if let Some(bias) = bias {
        add_bias(&y, here(bias)?)?;
    }
    Ok(y.into())
}

fn add_bias(y: &Tensor, bias: &Tensor) -> Result<()> {
    kernels::add_bias(&*y.device().gpu, y.element(), [y.arg(), bias.arg()], y.matrix_dims())
}

/// `y += alpha x w^T`.
pub fn linear_add(y: &Tensor, alpha: f32, x: &Tensor, w: &Tensor) -> Result<()> {
    let ((tokens, n_in), (n_out, _)) = (x.matrix_dims(), w.matrix_dims());
    multiply(y.device(), y.matrix(), [tokens, n_out, n_in], alpha, [x.matrix(), transposed(w.matrix())], 1.0)
}

/// `alpha dy w + dlow a`, added to `dx` if that is given.
pub fn linear_dx(
    dx: Option<nn::Tensor>,
    alpha: f32,
    dy: &Tensor,
    w: &Tensor,
    more: Option<(&Tensor, &Tensor)>,
) -> Result<nn::Tensor> {
    let ((tokens, n_out), (_, n_in), device) = (dy.matrix_dims(), w.matrix_dims(), dy.device());
    let (dx, beta) = match dx {
        Some(dx) => (dx, 1.0),
        None => (Tensor::activation(device, &[tokens, n_in])?.into(), 0.0),
    };
    let to = here(&dx)?.matrix();
    multiply(device, to, [tokens, n_in, n_out], alpha, [dy.matrix(), w.matrix()], beta)?;
    if let Some((dlow, a)) = more {
        let r = dlow.matrix_dims().1;
        multiply(device, to, [tokens, n_in, r], 1.0, [dlow.matrix(), a.matrix()], 1.0)?;
    }
    Ok(dx)
}

/// `dw += alpha dy^T x`, summed in f32; stored where nothing is in `dw`.
pub fn linear_dw((dw, filled): (Tensor, bool), alpha: f32, dy: &Tensor, x: &Tensor) -> Result<()> {
    let ((tokens, n_out), (_, n_in)) = (dy.matrix_dims(), x.matrix_dims());
    let operands = [transposed(dy.matrix()), x.matrix()];
    let beta = if filled { 1.0 } else { 0.0 };
    multiply(dw.device(), dw.matrix(), [n_out, n_in, tokens], alpha, operands, beta)
}

/// `db += sum of the rows of dy`.
pub fn bias_gradient(db: &Tensor, dy: &Tensor) -> Result<()> {
    let (rows, width) = dy.matrix_dims();
    let scratch = scratch(dy.device(), rows, width)?;
    let arguments = [dy.arg(), db.arg(), tensor::start(&scratch)];
    kernels::bias_gradient(&*dy.device().gpu, dy.element(), arguments, (rows, width))
}

/// `dm += (sum over the rows of dy * x) / n`.
pub fn magnitude_gradient(dm: &Tensor, dy: &Tensor, x: &Tensor, n: &Tensor) -> Result<()> {
    let (rows, width) = dy.matrix_dims();
    let scratch = scratch(dy.device(), rows, width)?;
    let arguments = [dy.arg(), x.arg(), dm.arg(), n.arg(), tensor::start(&scratch)];
    kernels::gain_gradient(&*dy.device().gpu, dy.element(), arguments, (rows, width))
}

/// RMSNorm of runs of `w.len()` elements, and the scale of each run.
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f32) -> Result<(nn::Tensor, nn::Tensor)> {
    let width = w.elem_count();
    let runs = x.elem_count() / width;
    let (y, scale) = (like(x)?, Tensor::any(x.device(), Element::F32, &[runs])?);
    let arguments = [x.arg(), w.arg(), y.arg(), scale.arg()];
    kernels::rms_norm(&*x.device().gpu, x.element(), arguments, (runs, width), eps)?;
    Ok((y.into(), scale.into()))
}

/// `x += y`, then [`rms_norm`] of it.
pub fn add_rms_norm(x: &Tensor, y: &Tensor, w: &Tensor, eps: f32) -> Result<(nn::Tensor, nn::Tensor)> {
    let width = w.elem_count();
    let runs = x.elem_count() / width;
    let (normed, scale) = (like(x)?, Tensor::any(x.device(), Element::F32, &[runs])?);
    let arguments = [x.arg(), y.arg(), w.arg(), normed.arg(), scale.arg()];
    kernels::add_rms_norm(&*x.device().gpu, x.element(), arguments, (runs, width), eps)?;
    Ok((normed.into(), scale.into()))
}

/// Backward of [`rms_norm`].
pub fn rms_norm_backward(
    dx: Option<nn::Tensor>,
    x: &Tensor,
    w: &Tensor,
    scale: &Tensor,
    dy: &Tensor,
    dw: Option<&Tensor>,
) -> Result<nn::Tensor> {
    let (shape, device) = ((scale.elem_count(), w.elem_count()), x.device());
    if let Some(dw) = dw {
        let scratch = scratch(device, shape.0, shape.1)?;
        let arguments = [x.arg(), scale.arg(), dy.arg(), dw.arg(), tensor::start(&scratch)];
        kernels::rms_norm_dw(&*device.gpu, x.element(), arguments, shape)?;
    }
    let add = dx.is_some();
    let dx = match dx {
        Some(dx) => dx,
        None => like(x)?.into(),
    };
    let arguments = [x.arg(), w.arg(), scale.arg(), dy.arg(), here(&dx)?.arg()];
    kernels::rms_norm_backward(&*device.gpu, x.element(), arguments, shape, add)?;
    Ok(dx)
}

/// `x += y`.
pub fn add(x: &Tensor, y: &Tensor) -> Result<()> {
    kernels::add(&*x.device().gpu, x.element(), [x.arg(), y.arg()], x.elem_count())
}

/// `silu(gate) * up`.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<nn::Tensor> {
    let (y, (rows, width)) = (like(gate)?, gate.matrix_dims());
    let arguments = [gate.arg(), up.arg(), y.arg()];
    kernels::swiglu(&*gate.device().gpu, gate.element(), arguments, (rows, width), width)?;
    Ok(y.into())
}

/// Gradients of `gate` and `up`.
pub fn swiglu_backward(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(nn::Tensor, nn::Tensor)> {
    let (dgate, dup, (rows, width)) = (like(gate)?, like(gate)?, gate.matrix_dims());
    let arguments = [gate.arg(), up.arg(), dy.arg(), dgate.arg(), dup.arg()];
    kernels::swiglu_backward(&*gate.device().gpu, gate.element(), arguments, (rows, width), width)?;
    Ok((dgate.into(), dup.into()))
}

/// Rotates `q` and `k` `[tokens, heads * head_dim]` in place.
pub fn rotate([q, k]: [&Tensor; 2], positions: &Indices, heads: Heads, angles: &Angles, inverse: bool) -> Result<()> {
    let (device, (tokens, q_width), k_width) = (q.device(), q.matrix_dims(), k.matrix_dims().1);
    let angles = angles.on(device)?;
    let arguments = [q.arg(), k.arg(), positions.on(device)?.arg(), angles.cos.arg(), angles.sin.arg()];
    kernels::rope(&*device.gpu, q.element(), arguments, (tokens, heads, [q_width, k_width]), inverse)
}

/// Causal attention over packed rows: the output and the log-sum-exps.
pub fn attend(q: &Tensor, k: &Tensor, v: &Tensor, starts: &Starts, heads: Heads) -> Result<(nn::Tensor, nn::Tensor)> {
    let (device, tokens) = (q.device(), q.matrix_dims().0);
    let rows = starts.on(device)?;
    let (out, lse) = (like(q)?, Tensor::any(device, Element::F32, &[tokens * heads.queries])?);
    let rows = packed::Rows::dense(rows.starts.arg(), rows.count, rows.longest, tokens, heads);
    let arguments = [q.arg(), k.arg(), v.arg(), out.arg(), lse.arg()];
    packed::attention(&*device.gpu, q.element(), arguments, &rows)?;
    Ok((out.into(), lse.into()))
}

/// Backward of [`attend`]: gradients of `q`, `k`, `v`.
pub fn attend_backward(
    [q, k, v]: [&Tensor; 3],
    starts: &Starts,
    heads: Heads,
    (out, lse): (&Tensor, &Tensor),
    dout: &Tensor,
) -> Result<[nn::Tensor; 3]> {
    let (device, tokens) = (q.device(), q.matrix_dims().0);
    let rows = starts.on(device)?;
    let (dq, dk, dv) = (like(q)?, like(k)?, like(v)?);
    let delta = Tensor::any(device, Element::F32, &[tokens * heads.queries])?;
    let rows = packed::Rows::dense(rows.starts.arg(), rows.count, rows.longest, tokens, heads);
    let forward = [q.arg(), k.arg(), v.arg(), out.arg(), lse.arg(), dout.arg(), delta.arg()];
    packed::attention_backward(&*device.gpu, q.element(), forward, [dq.arg(), dk.arg(), dv.arg()], &rows)?;
    Ok([dq.into(), dk.into(), dv.into()])
}

/// Dropout of `x` under `key`.
pub fn dropout(x: &Tensor, p: f64, key: Key) -> Result<nn::Tensor> {
    let y = like(x)?;
    kernels::dropout(&*x.device().gpu, x.element(), [x.arg(), y.arg()], x.elem_count(), p, key, false)?;
    Ok(y.into())
}

/// `dx += dropout(dy)` under the same mask.
pub fn dropout_add(dx: &Tensor, dy: &Tensor, p: f64, key: Key) -> Result<()> {
    kernels::dropout(&*dx.device().gpu, dx.element(), [dy.arg(), dx.arg()], dx.elem_count(), p, key, true)
}

/// The norms of the rows of `W + scale B A`.
pub fn merged_norms(norms: &Tensor, w: &Tensor, [a, b]: [&Tensor; 2], scale: f32) -> Result<()> {
    let ((n_out, n_in), rank) = (w.matrix_dims(), a.matrix_dims().0);
    let [[a, a_lower], [b, b_lower]] = [a.halves(), b.halves()];
    let arguments = [w.arg(), a, a_lower, b, b_lower, norms.arg()];
    kernels::merged_norms(&*w.device().gpu, w.element(), arguments, [n_out, n_in, rank], scale)
}

/// `m / n`.
pub fn ratio(m: &Tensor, n: &Tensor) -> Result<nn::Tensor> {
    let y = like(m)?;
    kernels::divide(&*m.device().gpu, [m.arg(), n.arg(), y.arg()], m.elem_count())?;
    Ok(y.into())
}

/// `y += gain * x`, column by column.
pub fn add_scaled(y: &Tensor, x: &Tensor, gain: &Tensor) -> Result<()> {
    kernels::add_scaled(&*y.device().gpu, y.element(), [y.arg(), x.arg(), gain.arg()], y.matrix_dims())
}

/// `y -= x`.
pub fn subtract(y: &Tensor, x: &Tensor) -> Result<()> {
    let width = y.matrix_dims().1;
    let minus = Tensor::any(y.device(), Element::F32, &[width])?;
    minus.set(&vec![-1.0; width])?;
    add_scaled(y, x, &minus)
}

/// The row `bias`, or zeros, for each row of `shape`.
pub fn rows(shape: &Tensor, bias: Option<&Tensor>) -> Result<nn::Tensor> {
    let y = zero_activation(shape)?;
    if let Some(bias) = bias {
        add_bias(here(&y)?, bias)?;
    }
    Ok(y)
}

/// Tokens whose logits exist at once: about 320 MiB of them in f32. Depends on the vocabulary alone.
pub fn chunk(vocab: usize) -> usize {
    ((80 << 20) / vocab.max(1)).clamp(128, 4096) / 128 * 128
}

/// Logits in f32 of the rows `first..first + n` of `hidden`, into `logits`.
fn project(logits: &Tensor, hidden: &Tensor, first: usize, n: usize, head: &Tensor) -> Result<()> {
    let (vocab, width) = head.matrix_dims();
    let rows = Matrix { first: first * width, ..hidden.matrix() };
    multiply(hidden.device(), logits.matrix(), [n, vocab, width], 1.0, [rows, transposed(head.matrix())], 0.0)
}

/// Log-probabilities of `targets`.
pub fn score(hidden: &Tensor, targets: &Indices, head: &Tensor) -> Result<Vec<Target>> {
    let (device, vocab) = (hidden.device(), head.matrix_dims().0);
    let (count, size) = (targets.len(), chunk(vocab).min(targets.len()));
    let logits = Tensor::any(device, Element::F32, &[size, vocab])?;
    let logprobs = Tensor::any(device, Element::F32, &[count])?;
    let greedy = Buffer::new(&device.gpu, count * 4)?;
    for first in (0..count).step_by(size.max(1)) {
        let n = size.min(count - first);
        project(&logits, hidden, first, n, head)?;
        let arguments =
            [logits.arg(), targets.on(device)?.from(first), logprobs.from(first), Arg::Buffer(&greedy, first * 4)];
        kernels::score(&*device.gpu, Element::F32, arguments, (n, vocab))?;
    }
    let logprobs = logprobs.download()?;
    let mut best = vec![0u32; count];
    device.gpu.download(greedy.raw(), 0, bytemuck::cast_slice_mut(&mut best))?;
    Ok(logprobs.into_iter().zip(best).map(|(logprob, best)| Target { logprob, greedy: best != 0 }).collect())
}

/// Logits in f32.
pub fn logits(hidden: &Tensor, head: &Tensor) -> Result<nn::Tensor> {
    let (tokens, vocab) = (hidden.matrix_dims().0, head.matrix_dims().0);
    let logits = Tensor::any(hidden.device(), Element::F32, &[tokens, vocab])?;
    project(&logits, hidden, 0, tokens, head)?;
    Ok(logits.into())
}

/// Log-probabilities of `targets` and the gradient of `hidden`; that of the projection is added to `dhead`. Its sum over several
/// chunks is f32 whatever `dhead` keeps, and rounded once.
pub fn head_loss(
    hidden: &Tensor,
    targets: &Indices,
    head: &Tensor,
    scale: f32,
    dhead: Option<&nn::Gradient>,
) -> Result<(nn::Tensor, nn::Tensor)> {
    let (device, (vocab, width)) = (hidden.device(), head.matrix_dims());
    let (count, size) = (targets.len(), chunk(vocab).min(targets.len()));
    let narrow = dhead.filter(|dhead| dhead.narrow() && count > size);
    let mut sum = match (dhead, narrow) {
        (None, _) => None,
        (Some(_), Some(_)) => Some((Tensor::any(device, Element::F32, head.dims())?, false)),
        (Some(dhead), None) => dhead.cuda().transpose()?,
    };
    let logprobs = Tensor::any(device, Element::F32, &[count])?;
    let dhidden = like(hidden)?;
    let logits = Tensor::any(device, Element::F32, &[size, vocab])?;
    // What products take of the logits' gradient.
    let rounded = match device.activations {
        Element::F32 => None,
        Element::Bf16 => Some(Tensor::any(device, Element::Bf16, &[size, vocab])?),
    };
    for first in (0..count).step_by(size.max(1)) {
        let n = size.min(count - first);
        project(&logits, hidden, first, n, head)?;
        let arguments = [logits.arg(), targets.on(device)?.from(first), logprobs.from(first)];
        kernels::cross_entropy(&*device.gpu, Element::F32, arguments, (n, vocab), scale)?;
        if let Some(rounded) = &rounded {
            kernels::narrow(&*device.gpu, [logits.arg(), rounded.arg()], n * vocab)?;
        }
        let d = rounded.as_ref().unwrap_or(&logits).matrix();
        let to = Matrix { first: first * width, ..dhidden.matrix() };
        multiply(device, to, [n, width, vocab], 1.0, [d, head.matrix()], 0.0)?;
        if let Some((sum, filled)) = &mut sum {
            let rows = Matrix { first: first * width, ..hidden.matrix() };
            let beta = if std::mem::replace(filled, true) { 1.0 } else { 0.0 };
            multiply(device, sum.matrix(), [vocab, width, n], 1.0, [transposed(d), rows], beta)?;
        }
    }
    // The logits' memory goes before the gradient's comes.
    drop((logits, rounded));
    if narrow.is_some() {
        pool::trim(&*device.gpu);
    }
    if let (Some(dhead), Some((sum, _))) = (narrow, sum) {
        match dhead.cuda().transpose()? {
            Some((to, false)) => kernels::narrow(&*device.gpu, [sum.arg(), to.arg()], vocab * width)?,
            _ => return Err(BackendError::failed("the projection's gradient has been written before")),
        }
    }
    if dhead.is_some_and(|dhead| dhead.shares().is_some()) {
        pool::trim(&*device.gpu);
    }
    Ok((logprobs.into(), dhidden.into()))
}
