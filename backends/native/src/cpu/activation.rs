//! Embedding, norms, SwiGLU, dropout and DoRA's magnitudes on the CPU.

use karat_backend::BackendError;

use super::bf16::{Bf16Storage, Operand};
use super::{Cpu, edit_gradient};
use crate::device::{Dropped, LoraPair, Mask, Precision, ReadBy, RmsNormed, TensorOps};
use crate::error::Result;
use crate::ops::dora;
use crate::ops::dropout::{self, Key};
use crate::ops::number::Number;
use crate::ops::{elementwise, embedding, norm, swiglu};
use crate::profile::Timer;
use crate::tensor::{Gradient, Indices, StoredWeight, Tensor, activation, dims, edit, tensor, view};
use karat_kernels::gemm::pack::whole::{PackedRhs, multiply};
use karat_kernels::gemm::{Mat, MatMut};
use karat_kernels::lora::{self, LoraDelta};
use karat_kernels::memory::arena;
use karat_kernels::memory::mmap::Elements;

/// `w + delta`, each row times its `gain` if one is given: a new tensor `[out, in]` on the host,
/// wherever these lie.
///
/// # Errors
/// If a device fails.
pub fn merged(w: &dyn StoredWeight, delta: LoraPair<'_>, gain: Option<&Tensor>) -> Result<Tensor> {
    let (ws, n_in) = (w.view()?, w.matrix()?.1);
    let mut merged = arena::zeroed(ws.elements().len());
    ws.elements().widen(&mut merged);
    let (a, b) = (view(delta.a)?, view(delta.b)?);
    let gain = gain.map(view).transpose()?;
    lora::merge(&mut merged, LoraDelta { a: &a, b: &b, scale: delta.scale, n_in }, gain.as_deref());
    tensor(merged, w.dims())
}

/// [`TensorOps::merged_norms`] on the host, wherever these lie.
///
/// # Errors
/// If a device fails.
pub fn merged_norms(norms: &Tensor, w: &dyn StoredWeight, delta: LoraPair<'_>) -> Result<()> {
    let (ws, a, b, n_in) = (w.view()?, view(delta.a)?, view(delta.b)?, w.matrix()?.1);
    edit(norms, |norms| lora::norms(ws.elements(), LoraDelta { a: &a, b: &b, scale: delta.scale, n_in }, norms))
}

fn swiglu_gradients<O: Number>(
    operands: (&Operand<'_>, &Operand<'_>),
    dy: &[f32],
    dgate: &mut [O],
    dup: &mut [O],
) -> Result<()> {
    match operands {
        (Operand::F32(g), Operand::F32(u)) => swiglu::backward(g, u, dy, dgate, dup),
        (Operand::Bf16(g), Operand::Bf16(u)) => swiglu::backward(g, u, dy, dgate, dup),
        _ => return Err(BackendError::failed("a gate that is rounded meets an input that is not")),
    }
    Ok(())
}

fn drawn(mask: &Mask) -> Result<&dropout::Mask> {
    mask.drawn.as_ref().ok_or_else(|| BackendError::failed("a dropout mask of a CUDA device reached a CPU kernel"))
}

impl Cpu {
    /// Whether what `read_by` reads is rounded to bf16.
    pub(super) fn rounds(&self, read_by: ReadBy) -> bool {
        self.precision == Precision::Bf16 && read_by == ReadBy::Gemms
    }
}

impl TensorOps for Cpu {
    fn gather(&self, x: &Tensor, at: &Indices) -> Result<Tensor> {
        let (_, width) = dims(x)?;
        let mut y = arena::alloc(at.len() * width);
        embedding::gather(Elements::F32(&view(x)?), width, at, &mut y);
        activation(y, &[at.len(), width])
    }

    fn embed(&self, table: &dyn StoredWeight, ids: &Indices) -> Result<Tensor> {
        let _timer = Timer::new("embedding", 0.0);
        let (_, width) = table.matrix()?;
        let mut y = arena::alloc(ids.len() * width);
        embedding::gather(table.view()?.elements(), width, ids, &mut y);
        activation(y, &[ids.len(), width])
    }

    fn scatter_add(&self, dx: &Tensor, at: &Indices, dy: &Tensor) -> Result<()> {
        let _timer = Timer::new("rows scattered", 0.0);
        let (_, width) = dims(dx)?;
        let dy = view(dy)?;
        edit(dx, |dx| embedding::scatter_add(dx, width, at, &dy))
    }

    fn embedding_gradient(&self, dtable: &Gradient, ids: &Indices, dx: Tensor, pad: Option<u32>) -> Result<()> {
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
        edit_gradient(dtable, |dtable| embedding::scatter_add(dtable, width, ids, &dx))
    }

    fn zero_activation(&self, like: &Tensor) -> Result<Tensor> {
        let mut data = arena::alloc(like.elem_count());
        elementwise::clear(&mut data);
        activation(data, like.dims())
    }

    fn operand(&self, x: &Tensor) -> Result<Tensor> {
        match self.precision {
            Precision::F32 => Ok(x.clone()),
            Precision::Bf16 => Bf16Storage::round(x),
        }
    }

    fn add(&self, x: &Tensor, y: &Tensor) -> Result<()> {
        let _timer = Timer::new("residual sums", 0.0);
        let y = view(y)?;
        edit(x, |x| elementwise::add(x, &y))
    }

    fn rms_norm(&self, x: &Tensor, w: &Tensor, eps: f32, read_by: ReadBy) -> Result<(Tensor, Tensor)> {
        let _timer = Timer::new("RMSNorm", 0.0);
        let ws = view(w)?;
        let runs = x.elem_count() / ws.len();
        if self.rounds(read_by) {
            let (xs, mut scale) = (Operand::of(x)?, arena::alloc(runs));
            let y = Bf16Storage::filled(x.dims(), |y| match &xs {
                Operand::F32(x) => norm::forward_narrow(x, &ws, eps, y, &mut scale),
                Operand::Bf16(x) => norm::forward_narrow(x, &ws, eps, y, &mut scale),
            });
            return Ok((y.into(), activation(scale, &[runs])?));
        }
        let xs = view(x)?;
        let (mut y, mut scale) = (arena::alloc(xs.len()), arena::alloc(runs));
        norm::forward(&xs, &ws, eps, &mut y, &mut scale);
        Ok((activation(y, x.dims())?, activation(scale, &[runs])?))
    }

    fn add_rms_norm(&self, x: &Tensor, y: &Tensor, w: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
        self.add(x, y)?;
        self.rms_norm(x, w, eps, ReadBy::Gemms)
    }

    fn rms_norm_backward(&self, dx: Option<Tensor>, of: RmsNormed<'_>, dy: &Tensor) -> Result<Tensor> {
        let _timer = Timer::new("RMSNorm, gradient", 0.0);
        let (xs, ws, dys, scale) = (Operand::of(of.x)?, view(of.weight)?, view(dy)?, view(of.scale)?);
        let mut sum = of.dw.map(|_| vec![0.0; ws.len()]);
        let mut backward = |dx: &mut [f32], add: bool| match &xs {
            Operand::F32(x) => norm::backward(x, &ws, &scale, &dys, dx, add, sum.as_deref_mut()),
            Operand::Bf16(x) => norm::backward(x, &ws, &scale, &dys, dx, add, sum.as_deref_mut()),
        };
        let dx = match dx {
            Some(dx) => {
                edit(&dx, |dx| backward(dx, true))?;
                dx
            }
            None => {
                let mut dx = arena::alloc(of.x.elem_count());
                backward(&mut dx, false);
                activation(dx, of.x.dims())?
            }
        };
        if let (Some(dw), Some(sum)) = (of.dw, sum) {
            edit_gradient(dw, |dw| dw.iter_mut().zip(&sum).for_each(|(dw, s)| *dw += s))?;
        }
        Ok(dx)
    }

    fn swiglu(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        let _timer = Timer::new("SwiGLU", 0.0);
        if self.precision == Precision::F32 {
            let mut y = arena::alloc(gate.elem_count());
            swiglu::forward(&view(gate)?, &view(up)?, &mut y);
            return activation(y, gate.dims());
        }
        let y = match (Operand::of(gate)?, Operand::of(up)?) {
            (Operand::F32(g), Operand::F32(u)) => Bf16Storage::filled(gate.dims(), |y| swiglu::forward(&g, &u, y)),
            (Operand::Bf16(g), Operand::Bf16(u)) => Bf16Storage::filled(gate.dims(), |y| swiglu::forward(g, u, y)),
            _ => return Err(BackendError::failed("a gate that is rounded meets an input that is not")),
        };
        Ok(y.into())
    }

    fn swiglu_keeping(&self, gate: Tensor, up: Tensor) -> Result<(Tensor, [Tensor; 2])> {
        if self.precision == Precision::F32 {
            return Ok((self.swiglu(&gate, &up)?, [gate, up]));
        }
        let _timer = Timer::new("SwiGLU", 0.0);
        let [mut y, mut kept_gate, mut kept_up] = [0; 3].map(|_| Bf16Storage::of(gate.dims()));
        let kept = [kept_gate.elements_mut(), kept_up.elements_mut()];
        swiglu::forward_keeping(&view(&gate)?, &view(&up)?, y.elements_mut(), kept);
        Ok((y.into(), [kept_gate.into(), kept_up.into()]))
    }

    fn swiglu_backward(&self, gate: &Tensor, up: &Tensor, dy: &Tensor, read_by: ReadBy) -> Result<(Tensor, Tensor)> {
        let _timer = Timer::new("SwiGLU, gradient", 0.0);
        let (g, u, d) = (Operand::of(gate)?, Operand::of(up)?, view(dy)?);
        if self.rounds(read_by) {
            let [mut dg, mut du] = [gate, up].map(|x| Bf16Storage::of(x.dims()));
            swiglu_gradients((&g, &u), &d, dg.elements_mut(), du.elements_mut())?;
            return Ok((dg.into(), du.into()));
        }
        let [mut dg, mut du] = [gate, up].map(|x| arena::alloc(x.elem_count()));
        swiglu_gradients((&g, &u), &d, &mut dg, &mut du)?;
        Ok((activation(dg, gate.dims())?, activation(du, up.dims())?))
    }

    fn mask(&self, elements: usize, p: f64, key: Key) -> Mask {
        let _timer = Timer::new("dropout, mask", 0.0);
        Mask { p, key, drawn: Some(dropout::Mask::draw(elements, p, key)) }
    }

    fn dropout(&self, x: &Tensor, mask: &Mask) -> Result<Dropped> {
        let (_timer, mask) = (Timer::new("dropout", 0.0), drawn(mask)?);
        if let Some(rounded) = x.storage_as::<Bf16Storage>() {
            let y = Bf16Storage::filled(x.dims(), |y| mask.keep(rounded.elements(), y));
            return Ok(Dropped { x: y.into(), factor: mask.scale() });
        }
        let xs = view(x)?;
        let mut y = arena::alloc(xs.len());
        mask.apply(&xs, &mut y, false);
        Ok(Dropped { x: activation(y, x.dims())?, factor: 1.0 })
    }

    fn dropout_add(&self, dx: &Tensor, dy: &Tensor, mask: &Mask) -> Result<()> {
        let (_timer, mask) = (Timer::new("dropout, gradient", 0.0), drawn(mask)?);
        let dy = view(dy)?;
        edit(dx, |dx| mask.apply(&dy, dx, true))
    }

    fn dropout_add_dx(&self, dx: &Tensor, dlow: &Tensor, a: &Tensor, mask: &Mask) -> Result<()> {
        let ((tokens, r), (_, width)) = (dims(dlow)?, dims(a)?);
        let _timer = Timer::product("dropout, gradient", [tokens, width, r]);
        let (mask, dlow, a) = (drawn(mask)?, Operand::of(dlow)?, view(a)?);
        let (dlow, a) = (dlow.mat(tokens, r), PackedRhs::new(self.precision, Mat::new(&a, r, width)));
        edit(dx, |dx| {
            mask.add_made(dx, width, |rows, made| {
                let to = MatMut::new(made, rows.len(), width);
                multiply(to, 1.0, dlow.part(rows, 0..r), &a, false);
            });
        })
    }

    fn merged_norms(&self, norms: &Tensor, w: &dyn StoredWeight, delta: LoraPair<'_>) -> Result<()> {
        merged_norms(norms, w, delta)
    }

    fn ratio(&self, m: &Tensor, n: &Tensor) -> Result<Tensor> {
        tensor(view(m)?.iter().zip(view(n)?.iter()).map(|(m, n)| m / n).collect(), m.dims())
    }

    fn add_scaled(&self, y: &Tensor, x: &Tensor, gain: &Tensor) -> Result<()> {
        let (x, gain) = (view(x)?, view(gain)?);
        edit(y, |y| dora::add_scaled(y, &x, &gain))
    }

    fn subtract(&self, y: &Tensor, x: &Tensor) -> Result<()> {
        let minus = vec![-1.0; dims(x)?.1];
        let x = view(x)?;
        edit(y, |y| dora::add_scaled(y, &x, &minus))
    }

    fn rows(&self, like: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let Some(bias) = bias else { return self.zero_activation(like) };
        let bias = view(bias)?;
        let mut y = arena::alloc(like.elem_count());
        y.chunks_exact_mut(bias.len()).for_each(|y| y.copy_from_slice(&bias));
        activation(y, like.dims())
    }

    fn magnitude_gradient(&self, dm: &Gradient, dy: &Tensor, x: &Tensor, n: &Tensor) -> Result<()> {
        let (dy, x, n) = (view(dy)?, view(x)?, view(n)?);
        let mut dgain = vec![0.0; n.len()];
        dora::gain_gradient(&mut dgain, &dy, &x);
        edit_gradient(dm, |dm| dm.iter_mut().zip(dgain).zip(n.iter()).for_each(|((m, g), n)| *m += g / n))
    }
}
