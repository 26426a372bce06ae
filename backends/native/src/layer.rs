//! One decoder layer: attention and MLP, each behind an RMSNorm and added to the residual stream.

use std::sync::Arc;

use karat_backend::BackendError;

use crate::cpu::Cpu;
use crate::device::{Attended as Made, Device, HeadNorm, Precision, Qkv, ReadBy, RmsNormed, Rotary, Rotated};
use crate::error::Result;
use crate::linear::InputGradient::{self, New, Skip};
use crate::linear::{self, Adapted, Branch, Dropout, Gradients, Linear};
use crate::ops::attention::Heads;
use crate::tensor::{Angles, Indices, Starts, Tensor};

/// RMSNorm with its weight.
#[derive(Clone, Debug)]
pub struct Norm {
    /// Name of the weight.
    pub name: String,
    /// `[width]`.
    pub weight: Tensor,
    /// Added to the mean square.
    pub eps: f32,
    /// Where it is computed.
    device: Arc<dyn Device>,
}

impl Norm {
    /// The norm whose weight has this name, on the CPU.
    pub fn new(name: String, weight: Tensor, eps: f32) -> Self {
        Norm { name, weight, eps, device: Cpu::device(Precision::F32) }
    }
    /// Brings its weight to `device`.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn place(&mut self, device: &Arc<dyn Device>) -> Result<()> {
        (self.weight, self.device) = (device.place(&self.weight)?, device.clone());
        Ok(())
    }
    /// The normed `x` and the scale of each row.
    ///
    /// # Errors
    /// If the device fails.
    pub fn forward(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        self.device.rms_norm(x, &self.weight, self.eps, ReadBy::Any)
    }
    /// [`Norm::forward`] for what only GEMMs read.
    ///
    /// # Errors
    /// If the device fails.
    pub fn operand(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        self.device.rms_norm(x, &self.weight, self.eps, ReadBy::Gemms)
    }
    /// `x += y`, then [`Norm::operand`] of it.
    ///
    /// # Errors
    /// If the device fails.
    pub fn operand_of_sum(&self, x: &Tensor, y: &Tensor) -> Result<(Tensor, Tensor)> {
        self.device.add_rms_norm(x, y, &self.weight, self.eps)
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
        self.device.rms_norm_backward(dx, self.normed(x, scale, gradients), dy)
    }
    /// It as the norm of heads.
    fn of_heads(&self) -> HeadNorm<'_> {
        HeadNorm { weight: &self.weight, eps: self.eps }
    }
    /// Operands of its backward pass, where it made the scales `scale` of `x`.
    fn normed<'a>(&'a self, x: &'a Tensor, scale: &'a Tensor, gradients: &'a Gradients) -> RmsNormed<'a> {
        RmsNormed { weight: &self.weight, x, scale, dw: gradients.of(&self.name) }
    }
}

/// Inputs of one pass over a batch that all layers share.
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

impl<'a> Pass<'a> {
    fn rotary(&self, heads: Heads) -> Rotary<'a> {
        Rotary { positions: self.positions, angles: self.table, heads }
    }
}

/// A decoder layer.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Where it is computed.
    pub device: Arc<dyn Device>,
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

/// Queries, keys and values, normed and rotated, ready for attention.
pub struct Projected {
    /// Rotated queries `[tokens, queries * dim]`.
    pub q: Tensor,
    /// Rotated keys `[tokens, keys * dim]`.
    pub k: Tensor,
    /// Values `[tokens, keys * dim]`.
    pub v: Tensor,
}

/// Queries, keys and values as projected, and the activations that the projections save.
struct QkvProjection {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: Tensor,
    low: [Option<Adapted>; 3],
}

/// Activations that the attention block saves for the backward pass.
struct AttentionSaved {
    scale: Tensor,
    /// Queries and keys before their norm, with the norm's scales.
    raw: Option<([Tensor; 2], [Tensor; 2])>,
    /// Queries and keys as attention reads them.
    rotated: Option<[Tensor; 2]>,
    v: Tensor,
    low: [Option<Adapted>; 3],
    out: Tensor,
    lse: Tensor,
}

/// Activations that the MLP block saves for the backward pass.
struct MlpSaved {
    low_o: Option<Adapted>,
    middle: Tensor,
    scale: Tensor,
    gate: Tensor,
    up: Tensor,
    low: [Option<Adapted>; 3],
}

/// Activations of one layer, kept for (or made again in) its backward pass. Of training in bf16
/// they are kept in bf16, as PyTorch's autocast keeps the output of every product: the forward pass
/// reads gate, up and the residual stream in f32 and they are rounded when they are kept; heads are
/// rounded before their norm, so that both passes make the same queries and keys of them. Gradients
/// stay nearer to those of f32 than autocast's (`exactness.py` of the tools).
pub struct Saved(AttentionSaved, MlpSaved);

impl Saved {
    /// Drops what is cheap to recompute from the rest: queries and keys after norm and RoPE.
    pub fn drop_recomputable(mut self) -> Self {
        if self.0.raw.is_some() {
            self.0.rotated = None;
        }
        self
    }
}

/// The readers of the gradients of the outputs of `layers`.
fn readers_of_gradients(layers: &[&Linear]) -> ReadBy {
    match layers.iter().any(|linear| linear.sums_its_gradient()) {
        true => ReadBy::Any,
        false => ReadBy::Gemms,
    }
}

impl Layer {
    /// Brings every tensor to `device` that is not there yet.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn place(&mut self, device: &Arc<dyn Device>) -> Result<()> {
        self.device = device.clone();
        self.norms_mut().try_for_each(|norm| norm.place(device))?;
        self.linears_mut().into_iter().try_for_each(|linear| linear.place(device))
    }

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

    /// Norm and projections of `x` `[tokens, hidden]`.
    fn project_qkv(&self, x: &Tensor, pass: Pass<'_>) -> Result<QkvProjection> {
        let (normed, scale) = self.input_norm.operand(x)?;
        let layers = [&self.q, &self.k, &self.v];
        let [(q, low_q), (k, low_k), (v, low_v)] = linear::forward(layers, &normed, pass.dropout)?;
        Ok(QkvProjection { q, k, v, scale, low: [low_q, low_k, low_v] })
    }

    /// Queries and keys normed and rotated, with the scales of their norms.
    fn rope_qk(&self, raw: [Tensor; 2], pass: Pass<'_>, read_by: ReadBy) -> Result<Rotated> {
        let norms = self.qk_norm.as_ref().map(|(q, k)| [q.of_heads(), k.of_heads()]);
        self.device.rope_qk(raw, norms, pass.rotary(self.heads), read_by)
    }

    /// Norm, projections, head norms and rotation of `x` `[tokens, hidden]`, none of them rounded:
    /// for generation, which remembers keys and values in f32.
    ///
    /// # Errors
    /// If the device fails.
    pub fn project_for_cache(&self, x: &Tensor, pass: Pass<'_>) -> Result<Projected> {
        let QkvProjection { q, k, v, .. } = self.project_qkv(x, pass)?;
        let Rotated { q, k, .. } = self.rope_qk([q, k], pass, ReadBy::Any)?;
        Ok(Projected { q, k, v })
    }

    /// The attention block of `x` `[tokens, hidden]`, up to the output of attention.
    fn attention_block(&self, x: &Tensor, pass: Pass<'_>) -> Result<AttentionSaved> {
        let device = &*self.device;
        let QkvProjection { q, k, v, scale, low } = self.project_qkv(x, pass)?;
        // Attention reads them in GEMMs alone.
        let v = device.operand(&v)?;
        let raw = match self.qk_norm {
            Some(_) => [device.operand(&q)?, device.operand(&k)?],
            None => [q, k],
        };
        let Rotated { q, k, scales } = self.rope_qk(raw.clone(), pass, ReadBy::Gemms)?;
        let raw = scales.map(|scales| (raw, scales));
        let (out, lse) = device.attend(Qkv { q: &q, k: &k, v: &v, starts: pass.starts }, self.heads)?;
        Ok(AttentionSaved { scale, raw, rotated: Some([q, k]), v, low, out, lse })
    }

    /// Output projection, residual and MLP up to the input of the down projection, with the
    /// activations that are saved. Without `act` that input is not made.
    fn mlp_block(
        &self,
        x: &Tensor,
        out: &Tensor,
        dropout: Option<Dropout>,
        act: bool,
    ) -> Result<(Option<Tensor>, MlpSaved)> {
        let [(middle, low_o)] = linear::forward([&self.o], out, dropout)?;
        let (normed, scale) = self.post_norm.operand_of_sum(&middle, x)?;
        let [(mut gate, low_gate), (mut up, low_up)] = match act {
            true => linear::forward([&self.gate, &self.up], &normed, dropout)?,
            // Rounded one after the other, so that one of them at a time is there in f32.
            false => {
                let kept = |layer: &Linear| -> Result<(Tensor, Option<Adapted>)> {
                    let [(y, low)] = linear::forward([layer], &normed, dropout)?;
                    Ok((self.device.operand(&y)?, low))
                };
                [kept(&self.gate)?, kept(&self.up)?]
            }
        };
        drop(normed);
        let act = match act {
            true => {
                let act;
                (act, [gate, up]) = self.device.swiglu_keeping(gate, up)?;
                Some(act)
            }
            false => None,
        };
        Ok((act, MlpSaved { low_o, middle, scale, gate, up, low: [low_gate, low_up, None] }))
    }

    /// Output projection, residual and MLP; `out` is the output of attention for `x`. No backward
    /// pass follows.
    ///
    /// # Errors
    /// If the device fails.
    pub fn infer_mlp(&self, x: &Tensor, out: &Tensor) -> Result<Tensor> {
        let [(middle, _)] = linear::forward([&self.o], out, None)?;
        let (normed, _) = self.post_norm.operand_of_sum(&middle, x)?;
        let [(gate, _), (up, _)] = linear::forward([&self.gate, &self.up], &normed, None)?;
        drop(normed);
        let act = self.device.swiglu(&gate, &up)?;
        drop((gate, up));
        let [(y, _)] = linear::forward([&self.down], &act, None)?;
        self.device.add(&y, &middle)?;
        Ok(y)
    }

    /// The layer's output for `x` `[tokens, hidden]`, where no backward pass follows.
    ///
    /// # Errors
    /// If the device fails.
    pub fn infer(&self, x: &Tensor, pass: Pass<'_>) -> Result<Tensor> {
        let out = self.attention_block(x, pass)?.out;
        self.infer_mlp(x, &out)
    }

    /// The layer's output for `x` `[tokens, hidden]` and what its backward pass needs.
    ///
    /// # Errors
    /// If the device fails.
    pub fn forward(&self, x: &Tensor, pass: Pass<'_>) -> Result<(Tensor, Saved)> {
        let attended = self.attention_block(x, pass)?;
        let (act, mut finished) = self.mlp_block(x, &attended.out, pass.dropout, true)?;
        let act = act.ok_or_else(|| BackendError::failed("an activation is missing"))?;
        let [(y, low_down)] = linear::forward([&self.down], &act, pass.dropout)?;
        self.device.add(&y, &finished.middle)?;
        finished.low[2] = low_down;
        finished.middle = self.device.operand(&finished.middle)?;
        Ok((y, Saved(attended, finished)))
    }

    /// Recomputes what [`Layer::forward`] saves, to the bit, without the output, which takes one
    /// more GEMM.
    ///
    /// # Errors
    /// If the device fails.
    pub fn recompute(&self, x: &Tensor, pass: Pass<'_>) -> Result<Saved> {
        let attended = self.attention_block(x, pass)?;
        // Only an adapter on the last projection leaves something of what it reads.
        let (act, mut finished) = self.mlp_block(x, &attended.out, pass.dropout, self.down.lora.is_some())?;
        if let Some(act) = act {
            finished.low[2] = self.down.adapted(&act, pass.dropout)?;
        }
        finished.middle = self.device.operand(&finished.middle)?;
        Ok(Saved(attended, finished))
    }

    /// Adds this layer's gradients to `gradients` and returns that of `x`, if `want_dx`. What the
    /// forward pass left and `dy` are used up: each goes as soon as nothing needs it any more, and
    /// gradients take its memory.
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
        let Saved(AttentionSaved { scale: input_scale, raw, rotated, v, low, out, lse }, finished) = saved;
        let gave = |dx: InputGradient| dx.taken().ok_or_else(|| BackendError::failed("a gradient is missing"));
        let device = &*self.device;

        let MlpSaved { low_o, middle, scale, gate, up, low: [low_gate, low_up, low_down] } = finished;
        let act = device.swiglu(&gate, &up)?;
        let down = Branch { layer: &self.down, adapted: low_down, dy: dy.clone() };
        let dact = gave(linear::backward([down], &act, New, gradients)?)?;
        drop(act);
        let read_by = readers_of_gradients(&[&self.gate, &self.up]);
        let (dgate, dup) = device.swiglu_backward(&gate, &up, &dact, read_by)?;
        drop((gate, up, dact));
        let (normed, _) = self.post_norm.operand(&middle)?;
        let branches = [(&self.gate, low_gate, dgate), (&self.up, low_up, dup)];
        let branches = branches.map(|(layer, adapted, dy)| Branch { layer, adapted, dy });
        let dnormed = gave(linear::backward(branches, &normed, New, gradients)?)?;
        drop(normed);
        let dmiddle = self.post_norm.backward(Some(dy), &middle, &scale, &dnormed, gradients)?;
        drop((middle, dnormed));

        let o = Branch { layer: &self.o, adapted: low_o, dy: dmiddle.clone() };
        let dout = gave(linear::backward([o], &out, New, gradients)?)?;
        let [q, k] = match (rotated, &raw) {
            (Some(rotated), _) => rotated,
            (None, Some((raw, _))) => {
                let Rotated { q, k, .. } = self.rope_qk(raw.clone(), pass, ReadBy::Gemms)?;
                [q, k]
            }
            _ => return Err(BackendError::failed("queries and keys are missing")),
        };
        let read_by = readers_of_gradients(&[&self.q, &self.k, &self.v]);
        let norms = self.qk_norm.as_ref().zip(raw.as_ref()).map(|((q_norm, k_norm), ([q, k], [sq, sk]))| {
            [q_norm.normed(q, sq, gradients), k_norm.normed(k, sk, gradients)]
        });
        let (of, made) = (Qkv { q: &q, k: &k, v: &v, starts: pass.starts }, Made { out: &out, lse: &lse });
        let [dq, dk, dv] = device.attend_backward(of, made, &dout, pass.rotary(self.heads), norms, read_by)?;
        drop((q, k, v, out, lse, dout, raw));
        // Without a trained norm and a wanted gradient of the input, nothing below the projections
        // is asked for.
        let below = want_dx || gradients.of(&self.input_norm.name).is_some();
        let (normed, _) = self.input_norm.operand(x)?;
        let [low_q, low_k, low_v] = low;
        let branches = [(&self.q, low_q, dq), (&self.k, low_k, dk), (&self.v, low_v, dv)];
        let branches = branches.map(|(layer, adapted, dy)| Branch { layer, adapted, dy });
        let dnormed = linear::backward(branches, &normed, if below { New } else { Skip }, gradients)?;
        drop(normed);
        match dnormed.taken() {
            Some(dnormed) => self.input_norm.backward(Some(dmiddle), x, &input_scale, &dnormed, gradients).map(Some),
            None => Ok(None),
        }
    }
}
