//! The operations of [`crate::nn`] on a device: one launch or product each, in the order they are called.

use karat::backend::BackendError;

use super::device::{Arg, Buffer, Element, Gemm, Launch, Matrix};
use super::{Tensor, here};
use crate::nn::{self, Angles, Indices, Result, Starts};
use crate::ops::attention::Heads;
use crate::ops::cross_entropy::Target;
use crate::ops::dropout::Key;

/// Rows summed by one block in the first stage of a sum over rows.
const CHUNK: usize = 128;

/// Threads of an elementwise launch, and the blocks that `n` elements, so many to a thread, are worth.
fn spread(n: usize, each: usize) -> Launch {
    Launch::linear(n.div_ceil(256 * each).min(1 << 16), 256)
}

fn transposed(matrix: Matrix<'_>) -> Matrix<'_> {
    Matrix { transposed: true, ..matrix }
}

/// `c = alpha op(a) op(b) + beta c` for single matrices.
fn multiply(c: &Tensor, [m, n, k]: [usize; 3], alpha: f32, a: Matrix<'_>, b: Matrix<'_>, beta: f32) -> Result<()> {
    if m == 0 || n == 0 {
        return Ok(());
    }
    c.device().gpu.gemm(&Gemm { m, n, k, alpha, a, b, beta, c: c.result(), batch: 1 })
}

/// Zeros in f32 of the shape of `t`.
pub fn zeros_like(t: &Tensor) -> Result<nn::Tensor> {
    let zeros = Tensor::any(t.device(), Element::F32, t.dims())?;
    zeros.clear()?;
    Ok(zeros.into())
}

/// Zeros like the activation `t`.
pub fn zero_activation(t: &Tensor) -> Result<nn::Tensor> {
    let zeros = Tensor::any(t.device(), t.element(), t.dims())?;
    zeros.clear()?;
    Ok(zeros.into())
}

fn duplicate(t: &Tensor) -> Result<Tensor> {
    let y = Tensor::any(t.device(), t.element(), t.dims())?;
    let bytes = t.elem_count() * t.element().size();
    t.device().gpu.copy((t.buffer().raw(), 0), (y.buffer().raw(), 0), bytes)?;
    Ok(y)
}

/// A copy with memory of its own.
pub fn copy(t: &Tensor) -> Result<nn::Tensor> {
    duplicate(t).map(nn::Tensor::from)
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
    multiply(&y, [tokens, n_out, n_in], 1.0, x.operand(), transposed(w.operand()), 0.0)?;
    if let Some((alpha, low, b)) = more {
        linear_add(&y, alpha, low, b)?;
    }
    if let Some(bias) = bias {
        add_bias(&y, here(bias)?)?;
    }
    Ok(y.into())
}

fn add_bias(y: &Tensor, bias: &Tensor) -> Result<()> {
    let (rows, width) = y.matrix_dims();
    let arguments = [y.arg(), bias.arg(), Arg::I32(width as i32)];
    let launch = Launch::linear(rows, 256);
    y.device().launch(y.element(), ["karat_add_bias_f32", "karat_add_bias_bf16"], launch, &arguments)
}

/// `y += alpha x w^T`.
pub fn linear_add(y: &Tensor, alpha: f32, x: &Tensor, w: &Tensor) -> Result<()> {
    let ((tokens, n_in), (n_out, _)) = (x.matrix_dims(), w.matrix_dims());
    multiply(y, [tokens, n_out, n_in], alpha, x.operand(), transposed(w.operand()), 1.0)
}

/// `alpha dy w + dlow a`, added to `dx` if that is given.
pub fn linear_dx(
    dx: Option<nn::Tensor>,
    alpha: f32,
    dy: &Tensor,
    w: &Tensor,
    more: Option<(&Tensor, &Tensor)>,
) -> Result<nn::Tensor> {
    let ((tokens, n_out), (_, n_in)) = (dy.matrix_dims(), w.matrix_dims());
    let (dx, beta) = match dx {
        Some(dx) => (dx, 1.0),
        None => (Tensor::activation(dy.device(), &[tokens, n_in])?.into(), 0.0),
    };
    multiply(here(&dx)?, [tokens, n_in, n_out], alpha, dy.operand(), w.operand(), beta)?;
    if let Some((dlow, a)) = more {
        let r = dlow.matrix_dims().1;
        multiply(here(&dx)?, [tokens, n_in, r], 1.0, dlow.operand(), a.operand(), 1.0)?;
    }
    Ok(dx)
}

/// `dw += alpha dy^T x`, summed in f32.
pub fn linear_dw(dw: &Tensor, alpha: f32, dy: &Tensor, x: &Tensor) -> Result<()> {
    let ((tokens, n_out), (_, n_in)) = (dy.matrix_dims(), x.matrix_dims());
    multiply(dw, [n_out, n_in, tokens], alpha, transposed(dy.operand()), x.operand(), 1.0)
}

/// `sum[column] += sum over the rows of x, or of x y, divided by divisor[column]`, in two stages.
fn add_column_sums(sum: &Tensor, x: &Tensor, y: Option<&Tensor>, divisor: Option<&Tensor>) -> Result<()> {
    let (rows, width) = x.matrix_dims();
    let chunks = rows.div_ceil(CHUNK).max(1);
    let partial = Buffer::new(&x.device().gpu, chunks * width * 4)?;
    let arguments = [
        x.arg(),
        y.map_or(Arg::Null, Tensor::arg),
        Arg::Buffer(&partial, 0),
        Arg::I64(rows as i64),
        Arg::I32(width as i32),
        Arg::I32(CHUNK as i32),
    ];
    let launch = by_columns(width, chunks);
    x.device().launch(x.element(), ["karat_column_sums_f32", "karat_column_sums_bf16"], launch, &arguments)?;
    add_partials(sum, &partial, chunks, divisor)
}

/// Blocks of 64 columns and one chunk of rows each.
fn by_columns(width: usize, chunks: usize) -> Launch {
    Launch { grid: [width.div_ceil(64) as u32, chunks as u32, 1], block: [64, 1, 1], shared: 0 }
}

fn add_partials(sum: &Tensor, partial: &Buffer, chunks: usize, divisor: Option<&Tensor>) -> Result<()> {
    let width = sum.elem_count();
    let arguments = [
        Arg::Buffer(partial, 0),
        sum.arg(),
        divisor.map_or(Arg::Null, Tensor::arg),
        Arg::I32(chunks as i32),
        Arg::I32(width as i32),
    ];
    sum.device().gpu.launch("karat_add_partials", by_columns(width, 1), &arguments)
}

/// `db += sum of the rows of dy`.
pub fn bias_gradient(db: &Tensor, dy: &Tensor) -> Result<()> {
    add_column_sums(db, dy, None, None)
}

/// `dm += (sum over the rows of dy * x) / n`.
pub fn magnitude_gradient(dm: &Tensor, dy: &Tensor, x: &Tensor, n: &Tensor) -> Result<()> {
    add_column_sums(dm, dy, Some(x), Some(n))
}

/// RMSNorm of runs of `w.len()` elements, and the scale of each run.
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f32) -> Result<(nn::Tensor, nn::Tensor)> {
    let width = w.elem_count();
    let runs = x.elem_count() / width;
    let y = Tensor::any(x.device(), x.element(), x.dims())?;
    let scale = Tensor::any(x.device(), Element::F32, &[runs])?;
    let arguments =
        [x.arg(), w.arg(), y.arg(), scale.arg(), Arg::I64(runs as i64), Arg::I32(width as i32), Arg::F32(eps)];
    let launch = Launch::linear(runs.div_ceil(4), 128);
    x.device().launch(x.element(), ["karat_rms_norm_f32", "karat_rms_norm_bf16"], launch, &arguments)?;
    Ok((y.into(), scale.into()))
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
    let (width, runs, device) = (w.elem_count(), scale.elem_count(), x.device());
    if let Some(dw) = dw {
        let chunks = runs.div_ceil(CHUNK);
        let partial = Buffer::new(&device.gpu, chunks * width * 4)?;
        let arguments = [
            x.arg(),
            scale.arg(),
            dy.arg(),
            Arg::Buffer(&partial, 0),
            Arg::I64(runs as i64),
            Arg::I32(width as i32),
            Arg::I32(CHUNK as i32),
        ];
        let names = ["karat_rms_norm_dw_f32", "karat_rms_norm_dw_bf16"];
        device.launch(x.element(), names, by_columns(width, chunks), &arguments)?;
        add_partials(dw, &partial, chunks, None)?;
    }
    let add = dx.is_some();
    let dx = match dx {
        Some(dx) => dx,
        None => Tensor::any(device, x.element(), x.dims())?.into(),
    };
    let arguments = [
        x.arg(),
        w.arg(),
        scale.arg(),
        dy.arg(),
        here(&dx)?.arg(),
        Arg::I64(runs as i64),
        Arg::I32(width as i32),
        Arg::I32(add.into()),
    ];
    let launch = Launch::linear(runs.div_ceil(4), 128);
    device.launch(x.element(), ["karat_rms_norm_backward_f32", "karat_rms_norm_backward_bf16"], launch, &arguments)?;
    Ok(dx)
}

/// `x += y`.
pub fn add(x: &Tensor, y: &Tensor) -> Result<()> {
    let n = x.elem_count();
    let arguments = [x.arg(), y.arg(), Arg::I64(n as i64)];
    x.device().launch(x.element(), ["karat_add_f32", "karat_add_bf16"], spread(n, 8), &arguments)
}

/// `silu(gate) * up`.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<nn::Tensor> {
    let (rows, width) = gate.matrix_dims();
    let y = Tensor::any(gate.device(), gate.element(), gate.dims())?;
    let arguments = [gate.arg(), up.arg(), y.arg(), Arg::I32(width as i32), Arg::I64(width as i64)];
    let launch = Launch::linear(rows, 256);
    gate.device().launch(gate.element(), ["karat_swiglu_f32", "karat_swiglu_bf16"], launch, &arguments)?;
    Ok(y.into())
}

/// Gradients of `gate` and `up`.
pub fn swiglu_backward(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(nn::Tensor, nn::Tensor)> {
    let (rows, width) = gate.matrix_dims();
    let fresh = || Tensor::any(gate.device(), gate.element(), gate.dims());
    let (dgate, dup) = (fresh()?, fresh()?);
    let arguments =
        [gate.arg(), up.arg(), dy.arg(), dgate.arg(), dup.arg(), Arg::I32(width as i32), Arg::I64(width as i64)];
    let names = ["karat_swiglu_backward_f32", "karat_swiglu_backward_bf16"];
    gate.device().launch(gate.element(), names, Launch::linear(rows, 256), &arguments)?;
    Ok((dgate.into(), dup.into()))
}

/// `m / n`.
pub fn ratio(m: &Tensor, n: &Tensor) -> Result<nn::Tensor> {
    let y = Tensor::any(m.device(), Element::F32, m.dims())?;
    let arguments = [m.arg(), n.arg(), y.arg(), Arg::I64(m.elem_count() as i64)];
    m.device().gpu.launch("karat_divide", spread(m.elem_count(), 1), &arguments)?;
    Ok(y.into())
}

/// `y += gain * x`, column by column.
pub fn add_scaled(y: &Tensor, x: &Tensor, gain: &Tensor) -> Result<()> {
    let (rows, width) = y.matrix_dims();
    let arguments = [y.arg(), x.arg(), gain.arg(), Arg::I32(width as i32)];
    let launch = Launch::linear(rows, 256);
    y.device().launch(y.element(), ["karat_add_scaled_f32", "karat_add_scaled_bf16"], launch, &arguments)
}

/// `y -= x`.
pub fn subtract(y: &Tensor, x: &Tensor) -> Result<()> {
    let width = y.matrix_dims().1;
    let minus = Tensor::any(y.device(), Element::F32, &[width])?;
    minus.set(&vec![-1.0; width])?;
    add_scaled(y, x, &minus)
}

/// The row `bias`, or zeros, for each row of `like`.
pub fn rows(like: &Tensor, bias: Option<&Tensor>) -> Result<nn::Tensor> {
    let y = zero_activation(like)?;
    if let Some(bias) = bias {
        add_bias(here(&y)?, bias)?;
    }
    Ok(y)
}
