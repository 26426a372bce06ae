//! The decoder in candle's tensors: Qwen3, Qwen2 and Llama by configuration, one row at a time.
//!
//! Every operation here has a gradient in candle. Its fused RMSNorm, RoPE and softmax have none: a
//! backward pass through them ends without an error and leaves what lies below untrained (candle
//! 0.11, `apply_op2_no_bwd` and the like).

use std::collections::HashMap;

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_nn::kv_cache::KvCache;
use candle_nn::ops::rms_norm_slow;
use candle_nn::rotary_emb::rope_slow;
use karat_backend::lora::AdapterShape;
use karat_model::peft::stored_name;
use karat_model::{EMBEDDING, HEAD, Heads, ModelConfig, Rope};

use crate::causal::Causal;
use crate::dropout::Masks;
use crate::lora::Adapted;

/// Positions that a cache has room for at first, and that it grows by.
const CACHED: usize = 256;

/// Cosines and sines of the rotary embedding for the positions that were asked for so far.
pub struct Rotary {
    rope: Rope,
    head_dim: usize,
    device: Device,
    /// `[positions, head_dim / 2]` each.
    tables: Option<(Tensor, Tensor)>,
}

impl Rotary {
    /// None are computed yet.
    pub fn new(config: &ModelConfig, device: &Device) -> Self {
        Rotary { rope: config.rope, head_dim: config.heads.dim, device: device.clone(), tables: None }
    }

    /// Those of `count` positions from `first` on, `[count, head_dim / 2]` each.
    fn at(&mut self, first: usize, count: usize) -> Result<(Tensor, Tensor)> {
        let (end, width) = (first + count, self.head_dim / 2);
        let (cos, sin) = match &self.tables {
            Some(tables) if tables.0.dim(0)? >= end => tables,
            _ => {
                let positions = end.next_power_of_two();
                let (cos, sin) = self.rope.tables(self.head_dim, positions);
                let tensor = |values| Tensor::from_vec(values, (positions, width), &self.device);
                self.tables.insert((tensor(cos)?, tensor(sin)?))
            }
        };
        Ok((cos.narrow(0, first, count)?, sin.narrow(0, first, count)?))
    }
}

/// What all layers of a pass share.
struct Pass {
    /// `[tokens, head_dim / 2]`.
    cos: Tensor,
    sin: Tensor,
    /// 0 where a token sees a position and minus infinity elsewhere, `[tokens, positions]`; none
    /// for a single token.
    mask: Option<Tensor>,
    dropout: Option<Masks>,
}

/// The low-rank side of a linear layer: `scale * B(A(dropout(x)))` (Hu et al., arXiv 2106.09685).
struct Lora {
    /// `[r, in]`.
    a: Tensor,
    /// `[out, r]`.
    b: Tensor,
    scale: f64,
    /// Number of the module in the model; names its dropout masks.
    module: u32,
}

/// `y = W x + b`, plus what an adapter adds.
struct Linear {
    /// `[out, in]`.
    weight: Tensor,
    /// `[out]`.
    bias: Option<Tensor>,
    lora: Option<Lora>,
}

impl Linear {
    /// `x` is `[tokens, in]`.
    fn forward(&self, x: &Tensor, dropout: Option<&Masks>) -> Result<Tensor> {
        let y = x.matmul(&self.weight.t()?)?;
        let y = match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        };
        let Some(Lora { a, b, scale, module }) = &self.lora else { return Ok(y) };
        let dropped = match dropout {
            Some(dropout) => dropout.apply(x, *module)?,
            None => x.clone(),
        };
        let low = dropped.matmul(&a.t()?)?;
        y + (low.matmul(&b.t()?)? * *scale)?
    }
}

/// RMSNorm (Zhang & Sennrich, arXiv 1910.07467).
struct Norm {
    weight: Tensor,
    eps: f32,
}

impl Norm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        rms_norm_slow(x, &self.weight, self.eps)
    }
}

/// A layer: attention and feed-forward, each behind a norm and added to the residual stream.
struct Layer {
    heads: Heads,
    input_norm: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    qk_norm: Option<[Norm; 2]>,
    post_norm: Norm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Layer {
    /// `x` is `[tokens, hidden]`, as is the result.
    fn forward(&self, x: &Tensor, pass: &Pass, cache: Option<&mut KvCache>) -> Result<Tensor> {
        let dropout = pass.dropout.as_ref();
        let x = (x + self.attention(&self.input_norm.forward(x)?, pass, cache)?)?;
        let normed = self.post_norm.forward(&x)?;
        let gated = (self.gate.forward(&normed, dropout)?.silu()? * self.up.forward(&normed, dropout)?)?;
        x + self.down.forward(&gated, dropout)?
    }

    fn attention(&self, x: &Tensor, pass: &Pass, cache: Option<&mut KvCache>) -> Result<Tensor> {
        let (tokens, Heads { queries, keys, dim }) = (x.dim(0)?, self.heads);
        let dropout = pass.dropout.as_ref();
        let split = |y: Tensor, heads: usize| y.reshape((tokens, heads, dim));
        let (mut q, mut k) = (split(self.q.forward(x, dropout)?, queries)?, split(self.k.forward(x, dropout)?, keys)?);
        let v = split(self.v.forward(x, dropout)?, keys)?.transpose(0, 1)?.contiguous()?;
        if let Some([q_norm, k_norm]) = &self.qk_norm {
            (q, k) = (q_norm.forward(&q)?, k_norm.forward(&k)?);
        }
        let turned = |y: Tensor| {
            let by_head = y.transpose(0, 1)?.contiguous()?.unsqueeze(0)?;
            rope_slow(&by_head, &pass.cos, &pass.sin)?.squeeze(0)
        };
        let (q, k) = (turned(q)?, turned(k)?);
        let (k, v) = match cache {
            Some(cache) => cache.append(&k, &v)?,
            None => (k, v),
        };
        // Query heads that share a key head lie one after the other and are multiplied with it as
        // one matrix.
        let grouped = (keys, self.heads.group() * tokens, dim);
        let q = (q.reshape(grouped)? * f64::from(self.heads.scale()))?;
        let scores = q.matmul(&k.transpose(1, 2)?)?;
        let scores = match &pass.mask {
            Some(mask) => {
                let (shape, positions) = (scores.shape().clone(), k.dim(1)?);
                scores.reshape((queries, tokens, positions))?.broadcast_add(mask)?.reshape(shape)?
            }
            None => scores,
        };
        let heads = softmax(&scores)?.matmul(&v)?.reshape((queries, tokens, dim))?;
        self.o.forward(&heads.transpose(0, 1)?.contiguous()?.reshape((tokens, queries * dim))?, dropout)
    }
}

/// Of the last dimension. Nothing is learned through the maximum, which cancels.
fn softmax(x: &Tensor) -> Result<Tensor> {
    let exp = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)
}

/// Log-probabilities of `targets` (`[tokens]`) under `logits` (`[tokens, vocab]`), `[tokens]`.
pub fn log_probabilities(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let targets = Tensor::new(targets, logits.device())?.unsqueeze(1)?;
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    let total = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    (shifted.gather(&targets, 1)? - total)?.squeeze(1)
}

/// A decoder: handles on its tensors, of which those that are variables are learned.
pub struct Decoder {
    config: ModelConfig,
    device: Device,
    /// `[vocab, hidden]`.
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Norm,
    /// `[vocab, hidden]`; the embedding itself where it is tied.
    head: Tensor,
}

impl Decoder {
    /// A decoder of `tensors` by their names in files, with an adapter on the modules that
    /// `adapted` has.
    ///
    /// # Errors
    /// For a tensor that is missing or of another shape.
    pub fn new(
        config: &ModelConfig,
        tensors: HashMap<String, Tensor>,
        adapted: &Adapted,
        device: &Device,
    ) -> Result<Self> {
        let tensors = VarBuilder::from_tensors(tensors, DType::F32, device);
        let (c, eps) = (config, config.rms_norm_eps as f32);
        let norm =
            |name: String, width: usize| Ok::<_, candle_core::Error>(Norm { weight: tensors.get(width, &name)?, eps });
        let layer = |i: usize| {
            let norm = |name: &str, width: usize| norm(format!("model.layers.{i}.{name}.weight"), width);
            let linear = |j: usize, name: &str, shape: (usize, usize), bias: bool| {
                let path = format!("model.layers.{i}.{name}");
                let lora = match adapted.get(&path) {
                    Some(&AdapterShape { r, scale }) => {
                        let side = |side: &str| stored_name(&format!("{path}.lora_{side}.weight"));
                        let (a, b) = (tensors.get((r, shape.1), &side("A"))?, tensors.get((shape.0, r), &side("B"))?);
                        Some(Lora { a, b, scale, module: (7 * i + j) as u32 })
                    }
                    None => None,
                };
                let bias = if bias { Some(tensors.get(shape.0, &format!("{path}.bias"))?) } else { None };
                Ok::<_, candle_core::Error>(Linear {
                    weight: tensors.get(shape, &format!("{path}.weight"))?,
                    bias,
                    lora,
                })
            };
            let (hidden, inner, q, k) = (c.hidden_size, c.intermediate_size, c.heads.q_width(), c.heads.k_width());
            let qk_norm = match c.qk_norm {
                true => Some([norm("self_attn.q_norm", c.heads.dim)?, norm("self_attn.k_norm", c.heads.dim)?]),
                false => None,
            };
            Ok(Layer {
                heads: c.heads,
                input_norm: norm("input_layernorm", hidden)?,
                q: linear(0, "self_attn.q_proj", (q, hidden), c.qkv_bias)?,
                k: linear(1, "self_attn.k_proj", (k, hidden), c.qkv_bias)?,
                v: linear(2, "self_attn.v_proj", (k, hidden), c.qkv_bias)?,
                o: linear(3, "self_attn.o_proj", (hidden, q), c.o_bias)?,
                qk_norm,
                post_norm: norm("post_attention_layernorm", hidden)?,
                gate: linear(4, "mlp.gate_proj", (inner, hidden), c.mlp_bias)?,
                up: linear(5, "mlp.up_proj", (inner, hidden), c.mlp_bias)?,
                down: linear(6, "mlp.down_proj", (hidden, inner), c.mlp_bias)?,
            })
        };
        let layers = (0..c.layers).map(layer).collect::<Result<_>>()?;
        let table = |name: &str| tensors.get((c.vocab_size, c.hidden_size), name);
        let embedding = table(EMBEDDING)?;
        let head = if c.tied { embedding.clone() } else { table(HEAD)? };
        let norm = norm("model.norm.weight".into(), c.hidden_size)?;
        Ok(Decoder { config: config.clone(), device: device.clone(), embedding, layers, norm, head })
    }

    /// Empty caches of keys and values, one a layer.
    fn caches(&self) -> Vec<KvCache> {
        self.layers.iter().map(|_| KvCache::new(1, CACHED)).collect()
    }

    /// Output of the final norm, `[tokens, hidden]`, for `ids` after those that `caches` hold;
    /// empty caches, or none at all, begin a row.
    ///
    /// # Errors
    /// If the device fails.
    pub fn hidden(
        &self,
        ids: &[u32],
        rotary: &mut Rotary,
        mut caches: Option<&mut [KvCache]>,
        dropout: Option<Masks>,
    ) -> Result<Tensor> {
        let past = caches.as_deref().and_then(|caches| caches.first()).map_or(0, KvCache::current_seq_len);
        let (cos, sin) = rotary.at(past, ids.len())?;
        let pass = Pass { cos, sin, mask: self.mask(past, ids.len())?, dropout };
        let mut x = self.embed(ids)?;
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, &pass, caches.as_deref_mut().map(|caches| &mut caches[i]))?;
        }
        self.norm.forward(&x)
    }

    /// A row that begins.
    pub fn row<'a>(&'a self, rotary: &'a mut Rotary) -> Row<'a> {
        Row { decoder: self, rotary, caches: self.caches() }
    }

    /// `[tokens, vocab]` of `hidden` `[tokens, hidden]`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        hidden.matmul(&self.head.t()?)
    }

    fn mask(&self, past: usize, tokens: usize) -> Result<Option<Tensor>> {
        if tokens == 1 {
            return Ok(None);
        }
        let seen = |i: usize, j: usize| if j <= past + i { 0f32 } else { f32::NEG_INFINITY };
        let mask: Vec<f32> = (0..tokens).flat_map(|i| (0..past + tokens).map(move |j| seen(i, j))).collect();
        Tensor::from_vec(mask, (tokens, past + tokens), &self.device).map(Some)
    }

    /// Rows of the embedding. That of the padding token learns nothing here, as in PyTorch.
    fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        let x = self.embedding.index_select(&Tensor::new(ids, &self.device)?, 0)?;
        let Some(pad) = self.config.pad.filter(|pad| self.embedding.is_variable() && ids.contains(pad)) else {
            return Ok(x);
        };
        let is_pad: Vec<u8> = ids.iter().map(|id| u8::from(*id == pad)).collect();
        let is_pad = Tensor::from_vec(is_pad, (ids.len(), 1), &self.device)?.broadcast_as(x.shape())?;
        is_pad.where_cond(&x.detach(), &x)
    }
}

/// A row that goes through the decoder.
pub struct Row<'a> {
    decoder: &'a Decoder,
    rotary: &'a mut Rotary,
    caches: Vec<KvCache>,
}

impl Causal for Row<'_> {
    fn hidden(&mut self, ids: &[u32]) -> Result<Tensor> {
        self.decoder.hidden(ids, self.rotary, Some(&mut self.caches), None)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.decoder.logits(hidden)
    }
}
