//! Queries and keys, normed and rotated, and attention over them, on the CPU.

use karat_backend::BackendError;

use super::bf16::{Bf16Storage, Operand};
use super::{Cpu, edit_gradient};
use crate::device::{Attended, AttentionOps, HeadNorm, Precision, Qkv, ReadBy, RmsNormed, Rotary, Rotated, TensorOps};
use crate::error::Result;
use crate::ops::attention::{Before, Heads, Normed};
use crate::ops::{attention, rope};
use crate::profile::Timer;
use crate::tensor::{Tensor, View, activation, dims, edit, view};
use karat_kernels::gemm::Mat;
use karat_kernels::memory::arena;

/// Rotates `q` `[tokens, queries * dim]` and `k` `[tokens, keys * dim]` in place; `inverse` is the
/// gradient.
fn rotate(q: &Tensor, k: &Tensor, Rotary { positions, angles, heads }: Rotary<'_>, inverse: bool) -> Result<()> {
    let _timer = Timer::new("rotary embedding", 0.0);
    edit(q, |q| rope::rotate(q, positions, heads.queries, angles.table(), inverse))?;
    edit(k, |k| rope::rotate(k, positions, heads.keys, angles.table(), inverse))
}

/// `heads` heads of queries or keys normed, rotated and rounded to bf16, and the scales of their
/// norm.
fn rotate_bf16(
    x: &Tensor,
    norm: Option<HeadNorm<'_>>,
    rotary: Rotary<'_>,
    heads: usize,
) -> Result<(Tensor, Option<Tensor>)> {
    let _timer = Timer::new("heads normed and rotated", 0.0);
    let (xs, table, positions) = (Operand::of(x)?, rotary.angles.table(), rotary.positions);
    let weight = norm.map(|norm| Ok((view(norm.weight)?, norm.eps))).transpose()?;
    let mut scale = norm.map(|_| arena::alloc(positions.len() * heads));
    let y = Bf16Storage::filled(x.dims(), |y| {
        let norm = weight.as_ref().zip(scale.as_deref_mut()).map(|((w, eps), scale)| (&**w, *eps, scale));
        match &xs {
            Operand::F32(x) => rope::forward_narrow(x, norm, positions, heads, table, y),
            Operand::Bf16(x) => rope::forward_narrow(x, norm, positions, heads, table, y),
        }
    });
    let scale = scale.map(|scale| activation(scale, &[positions.len() * heads])).transpose()?;
    Ok((y.into(), scale))
}

/// Activations that the forward pass saved in bf16.
fn kept(x: &Tensor) -> Result<&Bf16Storage> {
    x.storage_as().ok_or_else(|| BackendError::failed("an activation was not kept in bf16"))
}

/// A norm of heads, held for reading.
struct Held<'a> {
    x: &'a Bf16Storage,
    weight: View<'a>,
    scale: View<'a>,
    trained: bool,
}

impl<'a> Held<'a> {
    fn of(norm: RmsNormed<'a>) -> Result<Self> {
        let (x, weight, scale) = (kept(norm.x)?, view(norm.weight)?, view(norm.scale)?);
        Ok(Held { x, weight, scale, trained: norm.dw.is_some() })
    }
}

/// [`AttentionOps::attend_backward`] in bf16.
fn attend_backward_bf16(
    Qkv { q, k, v, starts }: Qkv<'_>,
    made: Attended<'_>,
    dout: &Tensor,
    Rotary { positions, angles, heads }: Rotary<'_>,
    norms: Option<[RmsNormed<'_>; 2]>,
    read_by: ReadBy,
) -> Result<[Tensor; 3]> {
    let _timer = Timer::new("attention, gradient", attention::work(starts, heads, 5));
    let ((tokens, wide), (_, narrow)) = (dims(q)?, dims(k)?);
    let (qs, ks, vs) = (Operand::of(q)?, Operand::of(k)?, Operand::of(v)?);
    let read = [qs.mat(tokens, wide), ks.mat(tokens, narrow), vs.mat(tokens, narrow)];
    let (out, lse, dout) = (kept(made.out)?, view(made.lse)?, view(dout)?);
    let held = match norms {
        None => None,
        Some([of_q, of_k]) => Some([Held::of(of_q)?, Held::of(of_k)?]),
    };
    let norms_of = held.as_ref().map(|held| {
        held.each_ref().map(|Held { x, weight, scale, trained }| Normed {
            x: x.elements(),
            weight,
            scale,
            trained: *trained,
        })
    });
    let before = Before { positions, table: angles.table(), norms: norms_of };
    let made = (out.elements(), &lse[..]);
    let (gradients, sums) = match read_by {
        ReadBy::Gemms => {
            let [mut dq, mut dk, mut dv] = [q, k, v].map(|x| Bf16Storage::of(x.dims()));
            let into = [&mut dq, &mut dk, &mut dv].map(Bf16Storage::elements_mut);
            let sums = attention::backward_before(read, starts, heads, made, &dout, &before, into);
            ([dq.into(), dk.into(), dv.into()], sums)
        }
        ReadBy::Any => {
            let [mut dq, mut dk, mut dv] = [wide, narrow, narrow].map(|width| arena::alloc(tokens * width));
            let into: [&mut [f32]; 3] = [&mut dq, &mut dk, &mut dv];
            let sums = attention::backward_before(read, starts, heads, made, &dout, &before, into);
            ([activation(dq, q.dims())?, activation(dk, k.dims())?, activation(dv, v.dims())?], sums)
        }
    };
    for (norm, sum) in norms.iter().flatten().zip(sums) {
        if let Some(dw) = norm.dw {
            edit_gradient(dw, |dw| dw.iter_mut().zip(&sum).for_each(|(dw, sum)| *dw += sum))?;
        }
    }
    Ok(gradients)
}

impl AttentionOps for Cpu {
    fn rope_qk(
        &self,
        [q, k]: [Tensor; 2],
        norms: Option<[HeadNorm<'_>; 2]>,
        rotary: Rotary<'_>,
        read_by: ReadBy,
    ) -> Result<Rotated> {
        if self.rounds(read_by) {
            let [of_q, of_k] = norms.map_or([None, None], |norms| norms.map(Some));
            let (q, sq) = rotate_bf16(&q, of_q, rotary, rotary.heads.queries)?;
            let (k, sk) = rotate_bf16(&k, of_k, rotary, rotary.heads.keys)?;
            return Ok(Rotated { q, k, scales: sq.zip(sk).map(|(sq, sk)| [sq, sk]) });
        }
        let (q, k, scales) = match norms {
            None => (q, k, None),
            Some([of_q, of_k]) => {
                let (q, sq) = self.rms_norm(&q, of_q.weight, of_q.eps, ReadBy::Any)?;
                let (k, sk) = self.rms_norm(&k, of_k.weight, of_k.eps, ReadBy::Any)?;
                (q, k, Some([sq, sk]))
            }
        };
        rotate(&q, &k, rotary, false)?;
        Ok(Rotated { q, k, scales })
    }

    fn attend(&self, Qkv { q, k, v, starts }: Qkv<'_>, heads: Heads) -> Result<(Tensor, Tensor)> {
        let _timer = Timer::new("attention", attention::work(starts, heads, 2));
        let (qs, ks, vs) = (Operand::of(q)?, Operand::of(k)?, Operand::of(v)?);
        let ((tokens, wide), (_, narrow)) = (dims(q)?, dims(k)?);
        let mut lse = arena::alloc(tokens * heads.queries);
        let (qs, ks, vs) = (qs.mat(tokens, wide), ks.mat(tokens, narrow), vs.mat(tokens, narrow));
        let out = match self.precision {
            Precision::F32 => {
                let mut out = arena::alloc(tokens * wide);
                attention::forward(self.precision, qs, ks, vs, starts, heads, &mut out, &mut lse);
                activation(out, q.dims())?
            }
            Precision::Bf16 => Bf16Storage::filled(q.dims(), |out| {
                attention::forward(self.precision, qs, ks, vs, starts, heads, out, &mut lse);
            })
            .into(),
        };
        Ok((out, activation(lse, &[tokens * heads.queries])?))
    }

    fn attend_backward(
        &self,
        of: Qkv<'_>,
        made: Attended<'_>,
        dout: &Tensor,
        rotary: Rotary<'_>,
        norms: Option<[RmsNormed<'_>; 2]>,
        read_by: ReadBy,
    ) -> Result<[Tensor; 3]> {
        if self.precision == Precision::Bf16 {
            return attend_backward_bf16(of, made, dout, rotary, norms, read_by);
        }
        let (Qkv { q, k, v, starts }, heads) = (of, rotary.heads);
        let [dq, dk, dv] = {
            let _timer = Timer::new("attention, gradient", attention::work(starts, heads, 5));
            let ((tokens, wide), (_, narrow)) = (dims(q)?, dims(k)?);
            let [mut dq, mut dk, mut dv] = [wide, narrow, narrow].map(|width| arena::alloc(tokens * width));
            let (qs, ks, vs) = (view(q)?, view(k)?, view(v)?);
            let (out, lse, dout) = (view(made.out)?, view(made.lse)?, view(dout)?);
            let read = [(&qs, wide), (&ks, narrow), (&vs, narrow)].map(|(x, width)| Mat::new(x, tokens, width));
            let into = [&mut dq[..], &mut dk, &mut dv];
            attention::backward(self.precision, read, starts, heads, (&out, &lse), &dout, into);
            [activation(dq, q.dims())?, activation(dk, k.dims())?, activation(dv, v.dims())?]
        };
        rotate(&dq, &dk, rotary, true)?;
        let Some([of_q, of_k]) = norms else { return Ok([dq, dk, dv]) };
        Ok([self.rms_norm_backward(None, of_q, &dq)?, self.rms_norm_backward(None, of_k, &dk)?, dv])
    }
}
