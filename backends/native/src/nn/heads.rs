//! Queries and keys, normed and rotated, and attention over them.

use karat_backend::BackendError;

use super::gradient::Gradient;
use super::narrowed::{Narrowed, Operand};
use super::tensor::{Angles, Indices, Starts, Tensor, View, activation, edit, view};
use super::{Precision, Result, dims, rms_norm, rms_norm_backward};
use crate::cuda;
use crate::ops::attention::{Before, Heads, Normed};
use crate::ops::matmul::Mat;
use crate::ops::{attention, buffers, rope};
use crate::profile::Timer;

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
