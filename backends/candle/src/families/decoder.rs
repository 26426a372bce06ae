//! A decoder by description in candle's tensors, one row at a time.

use std::collections::BTreeMap;

use candle_core::quantized::QMatMul;
use candle_core::{Device, Error, Module, Result, Tensor};
use candle_nn::kv_cache::KvCache;
use candle_nn::ops::softmax_last_dim;
use candle_nn::rotary_emb::{rope, rope_i};
use karat_model::architecture::{Activation, Attention, Layer as Plan, QkNorm, Rotation};
use karat_model::{Architecture, EMBEDDING, HEAD, Heads};

use super::experts::Sparse;
use crate::causal::{Causal, PIECE};

/// Positions that a cache has room for at first, and that it grows by.
const CACHED: usize = 256;

/// A tensor as it lies in memory.
#[derive(Clone)]
pub enum Stored {
    /// Numbers.
    Plain(Tensor),
    /// A matrix in blocks of few bits, multiplied as it is.
    Quantized(QMatMul),
}

impl Stored {
    /// `W x` of a matrix `[out, in]` and `x` `[tokens, in]`.
    fn product(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Stored::Plain(weight) => x.matmul(&weight.t()?),
            Stored::Quantized(weight) => weight.forward(&x.contiguous()?),
        }
    }
    /// The rows `ids` of a matrix.
    fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        match self {
            Stored::Plain(weight) => weight.index_select(ids, 0),
            Stored::Quantized(weight) => weight.embedding(ids),
        }
    }
}

/// `y = W x + b`.
pub struct Linear {
    /// `[out, in]`.
    weight: Stored,
    /// `[out]`.
    bias: Option<Tensor>,
}

impl Linear {
    /// `x` is `[tokens, in]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.weight.product(x)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

/// RMSNorm (Zhang & Sennrich, arXiv 1910.07467).
struct Norm {
    weight: Tensor,
    eps: f64,
}

impl Norm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mean = x.sqr()?.mean_keepdim(candle_core::D::Minus1)?;
        x.broadcast_div(&(mean + self.eps)?.sqrt()?)?.broadcast_mul(&self.weight)
    }
}

/// `x` through a norm, if there is one.
fn normed(norm: Option<&Norm>, x: Tensor) -> Result<Tensor> {
    norm.map_or(Ok(x.clone()), |norm| norm.forward(&x))
}

/// `c tanh(x / c)`.
fn capped(x: Tensor, cap: Option<f64>) -> Result<Tensor> {
    match cap {
        Some(cap) => (x / cap)?.tanh()? * cap,
        None => Ok(x),
    }
}

/// A gated feed-forward; one tensor for gate and up where they are fused.
pub struct Mlp {
    gate: Linear,
    up: Option<Linear>,
    down: Linear,
    activation: Activation,
}

impl Mlp {
    /// `x` is `[tokens, hidden]`, as is the result.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let gate = self.gate.forward(x)?;
        let (gate, up) = match &self.up {
            Some(up) => (gate, up.forward(x)?),
            None => {
                let inner = gate.dim(1)? / 2;
                (gate.narrow(1, 0, inner)?.contiguous()?, gate.narrow(1, inner, inner)?)
            }
        };
        let gate = match self.activation {
            Activation::Silu => gate.silu()?,
            Activation::GeluTanh => gate.gelu()?,
            Activation::Gelu => gate.gelu_erf()?,
        };
        self.down.forward(&(gate * up)?)
    }
}

enum FeedForward {
    Dense(Mlp),
    Sparse(Sparse),
}

/// The projections of queries, keys and values: one tensor or three.
enum Qkv {
    Fused(Linear),
    Apart(Box<[Linear; 3]>),
}

struct Layer {
    plan: Plan,
    qkv: Qkv,
    o: Linear,
    qk_norm: Option<[Norm; 2]>,
    feed_forward: FeedForward,
    before_attention: Option<Norm>,
    after_attention: Option<Norm>,
    before_mlp: Option<Norm>,
    after_mlp: Option<Norm>,
}

/// Rotations and masks that the layers of a pass share.
struct Pass {
    /// Cosines and sines of each rotation, `[tokens, dim / 2]`.
    turns: Vec<(Tensor, Tensor)>,
    /// 0 where a token sees a position and minus infinity elsewhere, `[tokens, positions]`, for
    /// each window that layers have; none where all is seen.
    masks: Vec<(Option<usize>, Option<Tensor>)>,
}

/// A decoder of one of the described families.
pub struct Decoder {
    architecture: Architecture,
    device: Device,
    /// `[vocab, hidden]`.
    embedding: Stored,
    layers: Vec<Layer>,
    norm: Norm,
    head: Linear,
}

/// Tensors by their names, taken out one by one.
struct Tensors<'a> {
    architecture: &'a Architecture,
    tensors: BTreeMap<String, Stored>,
}

impl Tensors<'_> {
    fn take(&mut self, name: &str) -> Result<Stored> {
        self.tensors.remove(name).ok_or_else(|| Error::Msg(format!("tensor {name} is missing")))
    }
    fn plain(&mut self, name: &str) -> Result<Tensor> {
        match self.take(name)? {
            Stored::Plain(tensor) => Ok(tensor),
            Stored::Quantized(_) => Err(Error::Msg(format!("tensor {name} is quantized"))),
        }
    }
    /// A linear layer, with a bias where there is one: what must be there was checked when it was
    /// loaded.
    fn linear(&mut self, path: &str) -> Result<Linear> {
        let bias = format!("{path}.bias");
        let bias = if self.tensors.contains_key(&bias) { Some(self.plain(&bias)?) } else { None };
        Ok(Linear { weight: self.take(&format!("{path}.weight"))?, bias })
    }
    fn norm(&mut self, path: &str) -> Result<Norm> {
        let weight = self.plain(&format!("{path}.weight"))?;
        let weight = if self.architecture.norm_offset { (weight + 1.0)? } else { weight };
        Ok(Norm { weight, eps: self.architecture.norm_eps })
    }
    fn mlp(&mut self, path: &str, fused: bool) -> Result<Mlp> {
        let (gate, up) = match fused {
            true => (self.linear(&format!("{path}.gate_up_proj"))?, None),
            false => (self.linear(&format!("{path}.gate_proj"))?, Some(self.linear(&format!("{path}.up_proj"))?)),
        };
        let down = self.linear(&format!("{path}.down_proj"))?;
        Ok(Mlp { gate, up, down, activation: self.architecture.activation })
    }
    fn layer(&mut self, i: usize, plan: Plan) -> Result<Layer> {
        let (path, architecture) = (format!("model.layers.{i}"), self.architecture);
        let mut norm = |name: Option<&str>| name.map(|name| self.norm(&format!("{path}.{name}"))).transpose();
        let norms = architecture.norms;
        let [before_attention, after_attention] = [norm(norms.before_attention)?, norm(norms.after_attention)?];
        let [before_mlp, after_mlp] = [norm(norms.before_mlp)?, norm(norms.after_mlp)?];
        let qk_norm = match architecture.attention.qk_norm {
            QkNorm::None => None,
            _ => Some([norm(Some("self_attn.q_norm"))?, norm(Some("self_attn.k_norm"))?]),
        };
        let qk_norm = match qk_norm {
            Some([Some(q), Some(k)]) => Some([q, k]),
            _ => None,
        };
        let mut linear = |name: &str| self.linear(&format!("{path}.self_attn.{name}"));
        let qkv = match architecture.attention.fused {
            true => Qkv::Fused(linear("qkv_proj")?),
            false => Qkv::Apart(Box::new([linear("q_proj")?, linear("k_proj")?, linear("v_proj")?])),
        };
        let o = linear("o_proj")?;
        let mlp = format!("{path}.mlp");
        let feed_forward = match architecture.experts.filter(|_| plan.sparse) {
            None => FeedForward::Dense(self.mlp(&mlp, architecture.fused_mlp)?),
            Some(experts) => {
                let router = self.linear(&format!("{mlp}.gate"))?;
                let of = (0..experts.count).map(|e| self.mlp(&format!("{mlp}.experts.{e}"), false));
                let of = of.collect::<Result<_>>()?;
                let shared = match experts.shared {
                    None => None,
                    Some(_) => Some((
                        self.mlp(&format!("{mlp}.shared_expert"), false)?,
                        self.linear(&format!("{mlp}.shared_expert_gate"))?,
                    )),
                };
                FeedForward::Sparse(Sparse::new(experts, router, of, shared))
            }
        };
        Ok(Layer { plan, qkv, o, qk_norm, feed_forward, before_attention, after_attention, before_mlp, after_mlp })
    }
}

impl Decoder {
    /// A decoder of `tensors`, which are those that `architecture` asks for.
    ///
    /// # Errors
    /// If the device fails.
    pub fn new(architecture: Architecture, tensors: BTreeMap<String, Stored>, device: &Device) -> Result<Self> {
        let mut from = Tensors { architecture: &architecture, tensors };
        let embedding = from.take(EMBEDDING)?;
        let layers = architecture.layers.iter().enumerate().map(|(i, plan)| from.layer(i, *plan));
        let layers = layers.collect::<Result<_>>()?;
        let norm = from.norm("model.norm")?;
        let weight = if architecture.tied { embedding.clone() } else { from.take(HEAD)? };
        let head = Linear { weight, bias: None };
        Ok(Decoder { device: device.clone(), embedding, layers, norm, head, architecture })
    }

    /// The description that it computes.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// The beginning of a row of `length` tokens; more may follow.
    pub fn row(&self, length: usize) -> Row<'_> {
        Row { decoder: self, caches: self.caches(), ids: Vec::new(), length }
    }

    fn caches(&self) -> Vec<KvCache> {
        self.layers.iter().map(|_| KvCache::new(1, CACHED)).collect()
    }

    fn forward(&self, ids: &[u32], caches: &mut [KvCache], length: usize) -> Result<Tensor> {
        let past = caches.first().map_or(0, KvCache::current_seq_len);
        let pass = self.pass(past, ids.len(), length)?;
        let x = self.embedding.rows(&Tensor::new(ids, &self.device)?)?;
        let mut x = (x * self.architecture.embedding_scale)?;
        for (layer, cache) in self.layers.iter().zip(caches) {
            x = self.layer(layer, x, &pass, cache)?;
        }
        self.norm.forward(&x)
    }

    fn pass(&self, past: usize, tokens: usize, length: usize) -> Result<Pass> {
        let turn = |rotation: &'_ Rotation| {
            let (cos, sin) = rotation.tables(past, tokens, length);
            let tensor = |values| Tensor::from_vec(values, (tokens, rotation.dim / 2), &self.device);
            Ok((tensor(cos)?, tensor(sin)?))
        };
        let turns = self.architecture.rotations.iter().map(turn).collect::<Result<_>>()?;
        let mut masks: Vec<(Option<usize>, Option<Tensor>)> = Vec::new();
        for window in self.layers.iter().map(|layer| layer.plan.window) {
            if !masks.iter().any(|(known, _)| *known == window) {
                masks.push((window, self.mask(past, tokens, window)?));
            }
        }
        Ok(Pass { turns, masks })
    }

    fn mask(&self, past: usize, tokens: usize, window: Option<usize>) -> Result<Option<Tensor>> {
        let positions = past + tokens;
        if tokens == 1 && window.is_none_or(|window| positions <= window) {
            return Ok(None);
        }
        let seen = |i: usize, j: usize| match past + i {
            at if j <= at && window.is_none_or(|window| at - j < window) => 0f32,
            _ => f32::NEG_INFINITY,
        };
        let mask: Vec<f32> = (0..tokens).flat_map(|i| (0..positions).map(move |j| seen(i, j))).collect();
        Tensor::from_vec(mask, (tokens, positions), &self.device).map(Some)
    }

    /// `x` is `[tokens, hidden]`, as is the result.
    fn layer(&self, layer: &Layer, x: Tensor, pass: &Pass, cache: &mut KvCache) -> Result<Tensor> {
        let scale = self.architecture.residual_scale;
        let read = normed(layer.before_attention.as_ref(), x.clone())?;
        let gives = normed(layer.after_attention.as_ref(), self.attention(layer, &read, pass, cache)?)?;
        let x = (x + (gives * scale)?)?;
        let read = normed(layer.before_mlp.as_ref(), x.clone())?;
        let gives = match &layer.feed_forward {
            FeedForward::Dense(mlp) => mlp.forward(&read)?,
            FeedForward::Sparse(experts) => experts.forward(&read)?,
        };
        x + (normed(layer.after_mlp.as_ref(), gives)? * scale)?
    }

    fn attention(&self, layer: &Layer, x: &Tensor, pass: &Pass, cache: &mut KvCache) -> Result<Tensor> {
        let Attention { heads, scale, softcap, qk_norm, .. } = &self.architecture.attention;
        let (tokens, Heads { queries, keys, dim }) = (x.dim(0)?, *heads);
        let [q, k, v] = match &layer.qkv {
            Qkv::Apart(apart) => [apart[0].forward(x)?, apart[1].forward(x)?, apart[2].forward(x)?],
            Qkv::Fused(fused) => {
                let (all, q, k) = (fused.forward(x)?, heads.q_width(), heads.k_width());
                [all.narrow(1, 0, q)?, all.narrow(1, q, k)?, all.narrow(1, q + k, k)?]
            }
        };
        let split = |y: Tensor, heads: usize| y.reshape((tokens, heads, dim));
        let (q, k) = match (&layer.qk_norm, qk_norm) {
            (Some([q_norm, k_norm]), QkNorm::Whole) => {
                (split(q_norm.forward(&q)?, queries)?, split(k_norm.forward(&k)?, keys)?)
            }
            (Some([q_norm, k_norm]), _) => (q_norm.forward(&split(q, queries)?)?, k_norm.forward(&split(k, keys)?)?),
            (None, _) => (split(q, queries)?, split(k, keys)?),
        };
        let rotation = (&self.architecture.rotations[layer.plan.rotation], &pass.turns[layer.plan.rotation]);
        let (q, k) = (turned(q, rotation)?, turned(k, rotation)?);
        let (k, v) = cache.append(&k, &split(v, keys)?.transpose(0, 1)?.contiguous()?)?;
        // Query heads that share a key head lie one after the other and are multiplied with it as
        // one matrix.
        let grouped = (keys, heads.group() * tokens, dim);
        let scores = (q.reshape(grouped)? * *scale)?.matmul(&k.transpose(1, 2)?)?;
        let scores = capped(scores, *softcap)?;
        let mask = pass.masks.iter().find(|(window, _)| *window == layer.plan.window);
        let scores = match mask.and_then(|(_, mask)| mask.as_ref()) {
            Some(mask) => {
                let (shape, positions) = (scores.shape().clone(), k.dim(1)?);
                scores.reshape((queries, tokens, positions))?.broadcast_add(mask)?.reshape(shape)?
            }
            None => scores,
        };
        let given = softmax_last_dim(&scores)?.matmul(&v)?.reshape((queries, tokens, dim))?;
        layer.o.forward(&given.transpose(0, 1)?.contiguous()?.reshape((tokens, queries * dim))?)
    }
}

/// Rotates `y`, `[tokens, heads, dim]`; the result is `[heads, tokens, dim]`.
fn turned(y: Tensor, (rotation, (cos, sin)): (&Rotation, &(Tensor, Tensor))) -> Result<Tensor> {
    let by_head = y.transpose(0, 1)?.contiguous()?.unsqueeze(0)?;
    let (all, dim) = (by_head.dim(3)?, rotation.dim);
    let rotate = |x: &Tensor| if rotation.interleaved { rope_i(x, cos, sin) } else { rope(x, cos, sin) };
    let turned = match dim < all {
        true => {
            let turned = rotate(&by_head.narrow(3, 0, dim)?.contiguous()?)?;
            Tensor::cat(&[&turned, &by_head.narrow(3, dim, all - dim)?], 3)?.contiguous()?
        }
        false => rotate(&by_head)?,
    };
    turned.squeeze(0)
}

/// A row that goes through the decoder.
pub struct Row<'a> {
    decoder: &'a Decoder,
    caches: Vec<KvCache>,
    ids: Vec<u32>,
    length: usize,
}

impl Causal for Row<'_> {
    fn hidden(&mut self, ids: &[u32]) -> Result<Tensor> {
        let past = self.ids.len();
        self.ids.extend_from_slice(ids);
        let length = self.length.max(self.ids.len());
        let turns = |rotation: &Rotation| {
            rotation.long.as_ref().is_some_and(|(longest, _)| (self.length..length).contains(longest))
        };
        // The row has outgrown the frequencies that its keys were rotated by.
        if past > 0 && self.decoder.architecture.rotations.iter().any(turns) {
            self.caches = self.decoder.caches();
            for piece in self.ids[..past].chunks(PIECE) {
                self.decoder.forward(piece, &mut self.caches, length)?;
            }
        }
        self.length = length;
        self.decoder.forward(ids, &mut self.caches, length)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let logits = self.decoder.head.forward(hidden)?;
        capped((logits / self.decoder.architecture.logits_divisor)?, self.decoder.architecture.logits_softcap)
    }
}
