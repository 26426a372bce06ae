//! One decoder layer: attention and MLP, each behind an RMSNorm and added to the residual stream.

use std::sync::Arc;

use karat::backend::BackendError;

use crate::cuda::Device;
use crate::linear::InputGradient::{self, New, Skip};
use crate::linear::{Adapted, Dropout, Gradients, Linear};
use crate::nn::{self, Angles, Indices, Precision, Result, Starts, Tensor};
use crate::ops::attention::Heads;

/// RMSNorm with its weight.
#[derive(Clone, Debug)]
pub struct Norm {
    /// Name of the weight.
    pub name: String,
    /// `[width]`.
    pub weight: Tensor,
    /// Added to the mean square.
    pub eps: f32,
}

impl Norm {
    /// Brings its weight to `device`.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn place(&mut self, device: &Arc<Device>) -> Result<()> {
        self.weight = self.weight.place(device)?;
        Ok(())
    }
    /// The normed `x` and the scale of each row.
    ///
    /// # Errors
    /// If the device fails.
    pub fn forward(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        nn::rms_norm(x, &self.weight, self.eps)
    }
    /// [`Norm::forward`] for what only products in `precision` read.
    ///
    /// # Errors
    /// If the device fails.
    pub fn operand(&self, precision: Precision, x: &Tensor) -> Result<(Tensor, Tensor)> {
        nn::rms_norm_operand(precision, x, &self.weight, self.eps)
    }
    /// `x += y`, then [`Norm::operand`] of it.
    ///
    /// # Errors
    /// If the device fails.
    pub fn operand_of_sum(&self, precision: Precision, x: &Tensor, y: &Tensor) -> Result<(Tensor, Tensor)> {
        nn::add_rms_norm_operand(precision, x, y, &self.weight, self.eps)
    }
    /// The gradient of `x`, added to `dx` if that is given.
    ///
    /// # Errors
    /// If the device fails.
    pub fn backward(
        &self,
        dx: Option<Tensor>,
        x: &Tensor,
        scale: &Tensor,
        dy: &Tensor,
        gradients: &Gradients,
    ) -> Result<Tensor> {
        nn::rms_norm_backward(dx, x, &self.weight, scale, dy, gradients.of(&self.name))
    }
}

/// What one pass over a batch has in common for all layers.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// Where each row starts among the tokens; one more entry than rows.
    pub starts: &'a Starts,
    /// Position of each token in its row.
    pub positions: &'a Indices,
    /// Angles of the rotary embedding.
    pub table: &'a Angles,
    /// Set during training.
    pub dropout: Option<Dropout>,
}

/// A decoder layer.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Shape of the attention.
    pub heads: Heads,
    /// Before the attention.
    pub input_norm: Norm,
    /// Query projection.
    pub q: Linear,
    /// Key projection.
    pub k: Linear,
    /// Value projection.
    pub v: Linear,
    /// Output projection.
    pub o: Linear,
    /// On each query head and each key head (Qwen3).
    pub qk_norm: Option<(Norm, Norm)>,
    /// Before the MLP.
    pub post_norm: Norm,
    /// Gate projection.
    pub gate: Linear,
    /// Up projection.
    pub up: Linear,
    /// Down projection.
    pub down: Linear,
}

/// What comes out of the projections, ready for attention.
pub struct Projected {
    /// Rotated queries `[tokens, queries * dim]`.
    pub q: Tensor,
    /// Rotated keys `[tokens, keys * dim]`.
    pub k: Tensor,
    /// Values `[tokens, keys * dim]`.
    pub v: Tensor,
    normed: Option<Tensor>,
    scale: Tensor,
    /// Queries and keys before their norm, with the norm's scales.
    raw: Option<[(Tensor, Tensor); 2]>,
    low: [Option<Adapted>; 3],
}

/// What the second half of a layer leaves for its backward pass.
pub struct Finished {
    low_o: Option<Adapted>,
    middle: Tensor,
    scale: Tensor,
    normed: Option<Tensor>,
    gate: Tensor,
    up: Tensor,
    act: Option<Tensor>,
    low: [Option<Adapted>; 3],
}

/// Activations of one layer, kept for (or made again in) its backward pass.
pub struct Saved {
    normed: Option<Tensor>,
    scale: Tensor,
    /// Queries and keys before their norm, with the norm's scales.
    raw: Option<[(Tensor, Tensor); 2]>,
    /// Queries and keys as attention reads them.
    turned: Option<[Tensor; 2]>,
    v: Tensor,
    low: [Option<Adapted>; 3],
    attended: (Tensor, Tensor),
    finished: Finished,
}

impl Saved {
    /// Without what costs little to make again from the rest: normed inputs, normed heads and the MLP's activation, a third
    /// of it all.
    pub fn slim(mut self) -> Self {
        self.normed = None;
        if self.raw.is_some() {
            self.turned = None;
        }
        (self.finished.normed, self.finished.act) = (None, None);
        self
    }
}

impl Layer {
    /// Its linear layers with the module names PEFT targets.
    pub fn linears_mut(&mut self) -> [&mut Linear; 7] {
        [&mut self.q, &mut self.k, &mut self.v, &mut self.o, &mut self.gate, &mut self.up, &mut self.down]
    }
    /// Its linear layers.
    pub fn linears(&self) -> [&Linear; 7] {
        [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down]
    }
    /// Its norms.
    pub fn norms_mut(&mut self) -> impl Iterator<Item = &mut Norm> {
        let qk = self.qk_norm.iter_mut().flat_map(|(q, k)| [q, k]);
        [&mut self.input_norm, &mut self.post_norm].into_iter().chain(qk)
    }
    /// Its norms.
    pub fn norms(&self) -> impl Iterator<Item = &Norm> {
        let qk = self.qk_norm.iter().flat_map(|(q, k)| [q, k]);
        [&self.input_norm, &self.post_norm].into_iter().chain(qk)
    }

    /// Norm, projections, head norms and rotation of `x` `[tokens, hidden]`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn project(&self, x: &Tensor, pass: Pass<'_>) -> Result<Projected> {
        let (normed, scale) = self.input_norm.operand(self.q.precision, x)?;
        let (mut q, low_q) = self.q.forward(&normed, pass.dropout)?;
        let (mut k, low_k) = self.k.forward(&normed, pass.dropout)?;
        let (v, low_v) = self.v.forward(&normed, pass.dropout)?;
        let mut raw = None;
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            let ((nq, sq), (nk, sk)) = (q_norm.forward(&q)?, k_norm.forward(&k)?);
            raw = Some([(std::mem::replace(&mut q, nq), sq), (std::mem::replace(&mut k, nk), sk)]);
        }
        nn::rotate([&q, &k], pass.positions, self.heads, pass.table, false)?;
        Ok(Projected { q, k, v, normed: Some(normed), scale, raw, low: [low_q, low_k, low_v] })
    }

    /// Output projection, residual and MLP; `attended` is what attention gave for `x`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn finish(&self, x: &Tensor, attended: &Tensor, dropout: Option<Dropout>) -> Result<(Tensor, Finished)> {
        let (middle, low_o) = self.o.forward(attended, dropout)?;
        let (normed, scale) = self.post_norm.operand_of_sum(self.gate.precision, &middle, x)?;
        let (gate, low_gate) = self.gate.forward(&normed, dropout)?;
        let (up, low_up) = self.up.forward(&normed, dropout)?;
        let act = nn::swiglu(self.down.precision, &gate, &up)?;
        let (y, low_down) = self.down.forward(&act, dropout)?;
        nn::add(&y, &middle)?;
        let low = [low_gate, low_up, low_down];
        let (normed, act) = (Some(normed), Some(act));
        Ok((y, Finished { low_o, middle, scale, normed, gate, up, act, low }))
    }

    /// The layer's output for `x` `[tokens, hidden]` and what its backward pass needs.
    ///
    /// # Errors
    /// If the device fails.
    pub fn forward(&self, x: &Tensor, pass: Pass<'_>) -> Result<(Tensor, Saved)> {
        let Projected { q, k, v, normed, scale, raw, low } = self.project(x, pass)?;
        // Attention reads them in products alone.
        let precision = self.o.precision;
        let [q, k, v] = [nn::operand(precision, &q)?, nn::operand(precision, &k)?, nn::operand(precision, &v)?];
        let attended = nn::attend(precision, [&q, &k, &v], pass.starts, self.heads)?;
        let (y, finished) = self.finish(x, &attended.0, pass.dropout)?;
        Ok((y, Saved { normed, scale, raw, turned: Some([q, k]), v, low, attended, finished }))
    }

    /// Queries and keys as attention reads them, from what they were before their norm: as [`Layer::forward`] makes them.
    fn turned(&self, (q_norm, k_norm): &(Norm, Norm), [q, k]: [&Tensor; 2], pass: Pass<'_>) -> Result<[Tensor; 2]> {
        let (q, k) = (q_norm.forward(q)?.0, k_norm.forward(k)?.0);
        nn::rotate([&q, &k], pass.positions, self.heads, pass.table, false)?;
        Ok([nn::operand(self.o.precision, &q)?, nn::operand(self.o.precision, &k)?])
    }

    /// Adds this layer's gradients to `gradients` and returns that of `x`, if `want_dx`. What the forward pass left and `dy`
    /// are used up: each goes as soon as nothing needs it any more, and gradients take its memory.
    ///
    /// # Errors
    /// If the device fails.
    pub fn backward(
        &self,
        x: &Tensor,
        saved: Saved,
        dy: Tensor,
        want_dx: bool,
        pass: Pass<'_>,
        gradients: &Gradients,
    ) -> Result<Option<Tensor>> {
        let Saved { normed: input_normed, scale: input_scale, raw, turned, v, low, attended: (out, lse), finished } =
            saved;
        let back = |linear: &Linear, x: &Tensor, low: Option<Adapted>, dy: &Tensor, dx: InputGradient| {
            linear.backward((x, low.as_ref()), dy, dx, gradients)
        };
        let gave = |dx: InputGradient| dx.taken().ok_or_else(|| BackendError::failed("a gradient is missing"));
        let precision = self.o.precision;

        let Finished { low_o, middle, scale, normed, gate, up, act, low: [low_gate, low_up, low_down] } = finished;
        let act = act.map_or_else(|| nn::swiglu(precision, &gate, &up), Ok)?;
        let dact = gave(back(&self.down, &act, low_down, &dy, New)?)?;
        drop(act);
        let wide = [&self.gate, &self.up].iter().any(|linear| linear.sums_its_gradient());
        let for_products = if wide { Precision::F32 } else { precision };
        let (dgate, dup) = nn::swiglu_backward(for_products, &gate, &up, &dact)?;
        drop((gate, up, dact));
        let normed = normed.map_or_else(|| self.post_norm.operand(precision, &middle).map(|n| n.0), Ok)?;
        let dnormed = back(&self.gate, &normed, low_gate, &dgate, New)?;
        drop(dgate);
        let dnormed = gave(back(&self.up, &normed, low_up, &dup, dnormed)?)?;
        drop((normed, dup));
        let dmiddle = self.post_norm.backward(Some(dy), &middle, &scale, &dnormed, gradients)?;
        drop((middle, dnormed));

        let dout = gave(back(&self.o, &out, low_o, &dmiddle, New)?)?;
        let [q, k] = match (turned, &self.qk_norm, &raw) {
            (Some(turned), ..) => turned,
            (None, Some(norms), Some([(q, _), (k, _)])) => self.turned(norms, [q, k], pass)?,
            _ => return Err(BackendError::failed("queries and keys are missing")),
        };
        let [mut dq, mut dk, dv] =
            nn::attend_backward(precision, [&q, &k, &v], pass.starts, self.heads, (&out, &lse), &dout)?;
        drop((q, k, v, out, lse, dout));
        nn::rotate([&dq, &dk], pass.positions, self.heads, pass.table, true)?;
        if let (Some((q_norm, k_norm)), Some([(q, sq), (k, sk)])) = (&self.qk_norm, raw) {
            dq = q_norm.backward(None, &q, &sq, &dq, gradients)?;
            dk = k_norm.backward(None, &k, &sk, &dk, gradients)?;
        }
        // Without a trained norm and a wanted gradient of the input, nothing below the projections is asked for.
        let below = want_dx || gradients.of(&self.input_norm.name).is_some();
        let normed = input_normed.map_or_else(|| self.input_norm.operand(precision, x).map(|n| n.0), Ok)?;
        let [low_q, low_k, low_v] = low;
        let dnormed = back(&self.q, &normed, low_q, &dq, if below { New } else { Skip })?;
        drop(dq);
        let dnormed = back(&self.k, &normed, low_k, &dk, dnormed)?;
        drop(dk);
        let dnormed = back(&self.v, &normed, low_v, &dv, dnormed)?;
        drop((normed, dv));
        match dnormed.taken() {
            Some(dnormed) => self.input_norm.backward(Some(dmiddle), x, &input_scale, &dnormed, gradients).map(Some),
            None => Ok(None),
        }
    }
}
