//! The device trait: the one boundary between the layers and the kernels of a CPU or a GPU.
//!
//! A [`Device`] is opened with a session and stays the same for all of it, with the precision of
//! its GEMMs. The layers hold it and call its operations, grouped by subject as [`TensorOps`],
//! [`LinearOps`], [`AttentionOps`] and [`HeadOps`]; no layer asks which device it is.
//! [`crate::cpu`] and [`crate::cuda`] implement them.
//!
//! Forward and backward are both written out, without automatic differentiation: a fused operation
//! has its own backward pass, and frozen weights do not pay for theirs. Tensors must lie where the
//! device's operations find them: parameters where [`Device::place`] or [`Device::frozen`] puts
//! them, activations where operations leave them.
//!
//! # Errors
//! All operations fail if the device fails or has no room, and if a tensor lies elsewhere, which is
//! a mistake in the layers above.
#![allow(clippy::missing_errors_doc, reason = "said once above")]

use std::fmt;

use karat_model::sampling::Sampler;

use crate::error::Result;
use crate::ops::adamw::Update;
use crate::ops::attention::Heads;
use crate::ops::cross_entropy::Target;
use crate::ops::dropout::{self, Key};
use crate::tensor::{Angles, Gradient, Indices, Starts, StoredWeight, Tensor};
pub use karat_kernels::gemm::Precision;
use karat_kernels::memory::mmap::Elements;

/// The readers of a result. Where GEMMs are computed in bf16, a device may round a result that they
/// alone read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadBy {
    /// GEMMs alone.
    Gemms,
    /// Kernels that want f32.
    Any,
}

/// An activation after dropout.
pub struct Dropped {
    /// The activation but for `factor`.
    pub x: Tensor,
    /// Pending factor: 1 but for an operand of GEMMs in bf16, which would be rounded twice.
    pub factor: f32,
}

/// A dropout mask: drawn once for the forward and the backward pass, or a key by which kernels draw
/// it as they go.
#[derive(Debug)]
pub struct Mask {
    /// Probability of dropping an element.
    pub p: f64,
    /// Where in the stream of random numbers it is drawn.
    pub key: Key,
    /// The mask, where the device wants it drawn.
    pub drawn: Option<dropout::Mask>,
}

/// A low-rank change of a weight: `scale B A`.
#[derive(Clone, Copy)]
pub struct LoraPair<'a> {
    /// `[r, in]`.
    pub a: &'a Tensor,
    /// `[out, r]`.
    pub b: &'a Tensor,
    /// Its factor.
    pub scale: f32,
}

/// A linear layer: `x w^T + bias`, and an adapter's share.
#[derive(Clone, Copy)]
pub struct Affine<'a> {
    /// `[out, in]`.
    pub w: &'a dyn StoredWeight,
    /// `[out]`.
    pub bias: Option<&'a Tensor>,
    /// Summed in the same pass.
    pub lora: Option<UpProjection<'a>>,
}

/// A weight's gradient: `dw += alpha dy^T x`.
#[derive(Clone, Copy)]
pub struct WeightGradient<'a> {
    /// `[out, in]`.
    pub dw: &'a Gradient,
    /// Factor.
    pub alpha: f32,
    /// `[tokens, out]`.
    pub dy: &'a Tensor,
    /// `[tokens, in]`.
    pub x: &'a Tensor,
}

/// The second GEMM of an adapter: `scale low b^T`.
#[derive(Clone, Copy)]
pub struct UpProjection<'a> {
    /// `[tokens, r]`: [`DownProjected::low`], or in the backward pass the gradient of the output,
    /// `[tokens, out]`.
    pub low: &'a Tensor,
    /// `[out, r]`.
    pub b: &'a Tensor,
    /// Its factor.
    pub scale: f32,
}

/// The first GEMM of an adapter: `factor x a^T`.
#[derive(Clone, Copy)]
pub struct DownProjection<'a> {
    /// `[tokens, in]`, all but for `factor`.
    pub x: &'a Tensor,
    /// `[r, in]`.
    pub a: &'a Tensor,
    /// Pending factor of `x`: [`Dropped::factor`].
    pub factor: f32,
    /// The adapter's scale.
    pub scale: f32,
}

/// Output of a [`DownProjection`].
#[derive(Debug)]
pub struct DownProjected {
    /// `[tokens, r]`, as GEMMs read it.
    pub low: Tensor,
    /// Pending part of the adapter's scale.
    pub scale: f32,
}

/// A gradient's way back through the first GEMM of an adapter: `dlow a`.
#[derive(Clone, Copy)]
pub struct DownGradient<'a> {
    /// `[tokens, r]`.
    pub dlow: &'a Tensor,
    /// `[r, in]`.
    pub a: &'a Tensor,
}

/// Positions of tokens and the angles of the rotary embedding (RoPE) for them.
#[derive(Clone, Copy)]
pub struct Rotary<'a> {
    /// Position of each token in its row.
    pub positions: &'a Indices,
    /// Cosines and sines.
    pub angles: &'a Angles,
    /// Heads of queries and keys.
    pub heads: Heads,
}

/// The RMSNorm of heads (QK-norm).
#[derive(Clone, Copy)]
pub struct HeadNorm<'a> {
    /// `[head_dim]`.
    pub weight: &'a Tensor,
    /// Added to the mean square.
    pub eps: f32,
}

/// Queries and keys as attention reads them.
pub struct Rotated {
    /// `[tokens, queries * dim]`.
    pub q: Tensor,
    /// `[tokens, keys * dim]`.
    pub k: Tensor,
    /// The scales of the norms of the heads of `q` and of `k`, if there are norms.
    pub scales: Option<[Tensor; 2]>,
}

/// Operands of attention over packed rows.
#[derive(Clone, Copy)]
pub struct Qkv<'a> {
    /// `[tokens, queries * dim]`.
    pub q: &'a Tensor,
    /// `[tokens, keys * dim]`.
    pub k: &'a Tensor,
    /// `[tokens, keys * dim]`.
    pub v: &'a Tensor,
    /// Where rows start.
    pub starts: &'a Starts,
}

/// Output of attention.
#[derive(Clone, Copy)]
pub struct Attended<'a> {
    /// `[tokens, queries * dim]`.
    pub out: &'a Tensor,
    /// The log-sum-exps of its scores, f32 `[tokens, queries]`.
    pub lse: &'a Tensor,
}

/// An RMSNorm as its backward pass needs it.
#[derive(Clone, Copy)]
pub struct RmsNormed<'a> {
    /// Its weight.
    pub weight: &'a Tensor,
    /// Input of the norm.
    pub x: &'a Tensor,
    /// The scale of each run.
    pub scale: &'a Tensor,
    /// Where the gradient of the weight is summed.
    pub dw: Option<&'a Gradient>,
}

/// Embedding, norms, activations, dropout and DoRA's magnitudes.
pub trait TensorOps {
    /// `x[at]`, `[at, width]`.
    fn gather(&self, x: &Tensor, at: &Indices) -> Result<Tensor>;
    /// `table[ids]`, `[ids, width]`, as activations are stored.
    fn embed(&self, table: &dyn StoredWeight, ids: &Indices) -> Result<Tensor>;
    /// `dx[at] += dy`.
    fn scatter_add(&self, dx: &Tensor, at: &Indices, dy: &Tensor) -> Result<()>;
    /// Gradient of an embedding from where it is read: `dtable[ids] += dx` but for the id `pad`,
    /// which has none. `dx` is used up.
    fn embedding_gradient(&self, dtable: &Gradient, ids: &Indices, dx: Tensor, pad: Option<u32>) -> Result<()>;
    /// Zeros where `like` lies and of its shape, for what is soon gone.
    fn zero_activation(&self, like: &Tensor) -> Result<Tensor>;
    /// `x` as GEMMs read it.
    fn operand(&self, x: &Tensor) -> Result<Tensor>;
    /// `x += y`.
    fn add(&self, x: &Tensor, y: &Tensor) -> Result<()>;

    /// RMSNorm of every run of `w.len()` elements; also the scale of each run in f32, which the
    /// backward pass needs.
    fn rms_norm(&self, x: &Tensor, w: &Tensor, eps: f32, read_by: ReadBy) -> Result<(Tensor, Tensor)>;
    /// `x += y`, then [`TensorOps::rms_norm`] of it for GEMMs alone.
    fn add_rms_norm(&self, x: &Tensor, y: &Tensor, w: &Tensor, eps: f32) -> Result<(Tensor, Tensor)>;
    /// Backward of [`TensorOps::rms_norm`]: added to `dx` if that is given, else new; `dw` where
    /// the weight is trained.
    fn rms_norm_backward(&self, dx: Option<Tensor>, of: RmsNormed<'_>, dy: &Tensor) -> Result<Tensor>;

    /// `silu(gate) * up`, for GEMMs.
    fn swiglu(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor>;
    /// [`TensorOps::swiglu`], and what the backward pass reads of `gate` and `up`.
    fn swiglu_keeping(&self, gate: Tensor, up: Tensor) -> Result<(Tensor, [Tensor; 2])>;
    /// Gradients of `gate` and `up`.
    fn swiglu_backward(&self, gate: &Tensor, up: &Tensor, dy: &Tensor, read_by: ReadBy) -> Result<(Tensor, Tensor)>;

    /// The mask of `elements` elements under `key`.
    fn mask(&self, elements: usize, p: f64, key: Key) -> Mask;
    /// `x` after dropout.
    fn dropout(&self, x: &Tensor, mask: &Mask) -> Result<Dropped>;
    /// `dx += dropout(dy)` under the same mask.
    fn dropout_add(&self, dx: &Tensor, dy: &Tensor, mask: &Mask) -> Result<()>;
    /// `dx += dropout(dlow a)` under the same mask: the gradient of what entered an adapter, where
    /// `dlow` is that of what its first matrix `a` made of it.
    fn dropout_add_dx(&self, dx: &Tensor, dlow: &Tensor, a: &Tensor, mask: &Mask) -> Result<()>;

    /// The L2 norm of every row of `w + delta`, into `norms` `[out]`.
    fn merged_norms(&self, norms: &Tensor, w: &dyn StoredWeight, delta: LoraPair<'_>) -> Result<()>;
    /// `m / n`, element by element, in f32.
    fn ratio(&self, m: &Tensor, n: &Tensor) -> Result<Tensor>;
    /// `y += gain * x`, column by column.
    fn add_scaled(&self, y: &Tensor, x: &Tensor, gain: &Tensor) -> Result<()>;
    /// `y -= x`.
    fn subtract(&self, y: &Tensor, x: &Tensor) -> Result<()>;
    /// The row `bias`, or zeros, for each row of `like`.
    fn rows(&self, like: &Tensor, bias: Option<&Tensor>) -> Result<Tensor>;
    /// `dm += (sum over the rows of dy * x) / n`, column by column.
    fn magnitude_gradient(&self, dm: &Gradient, dy: &Tensor, x: &Tensor, n: &Tensor) -> Result<()>;
}

/// Linear layers and their low-rank adapters.
pub trait LinearOps {
    /// Each of `layers` of `x` `[tokens, in]`: all GEMMs at once, so that threads wait for each
    /// other once.
    fn linears(&self, x: &Tensor, layers: &[Affine<'_>]) -> Result<Vec<Tensor>>;
    /// `x w^T + bias`.
    fn linear(&self, x: &Tensor, w: &dyn StoredWeight, bias: Option<&Tensor>) -> Result<Tensor>;
    /// `y += alpha x w^T`.
    fn linear_add(&self, y: &Tensor, alpha: f32, x: &Tensor, w: &dyn StoredWeight) -> Result<()>;
    /// The gradient of a linear layer's input, `dy w`, and an adapter's in the same pass; added to
    /// `dx` if that is given, else new.
    fn linear_dx(
        &self,
        dx: Option<Tensor>,
        dy: &Tensor,
        w: &dyn StoredWeight,
        lora: Option<DownGradient<'_>>,
    ) -> Result<Tensor>;
    /// `dw += alpha dy^T x`.
    fn linear_dw(&self, dw: &Gradient, alpha: f32, dy: &Tensor, x: &Tensor) -> Result<()>;
    /// [`LinearOps::linear_dw`] of several small ones at once.
    fn linear_dws(&self, of: &[WeightGradient<'_>]) -> Result<()> {
        of.iter().try_for_each(|of| self.linear_dw(of.dw, of.alpha, of.dy, of.x))
    }
    /// `db += sum of the rows of dy`.
    fn bias_gradient(&self, db: &Gradient, dy: &Tensor) -> Result<()>;
    /// Input of the up-projections. Where GEMMs round their operands it has been multiplied by all
    /// of the scale before it is rounded: so the adapter's share of an output goes on with the sums
    /// of the layer's.
    fn lora_down(&self, of: &[DownProjection<'_>]) -> Result<Vec<DownProjected>>;
    /// The gradients of what [`LinearOps::lora_down`] gives, `scale dy b` each, as GEMMs read them;
    /// `low` is `dy`.
    fn lora_down_gradients(&self, of: &[UpProjection<'_>]) -> Result<Vec<Tensor>>;
}

/// Rotary embedding, head norms and causal attention.
pub trait AttentionOps {
    /// Queries and keys `[q, k]` normed, if there are norms, and rotated. What comes in is used up.
    fn rope_qk(
        &self,
        qk: [Tensor; 2],
        norms: Option<[HeadNorm<'_>; 2]>,
        rotary: Rotary<'_>,
        read_by: ReadBy,
    ) -> Result<Rotated>;
    /// Causal attention over packed rows: the output `[tokens, queries * dim]`, for the GEMM that
    /// reads it, and the log-sum-exps in f32.
    fn attend(&self, of: Qkv<'_>, heads: Heads) -> Result<(Tensor, Tensor)>;
    /// Backward of [`AttentionOps::attend`] and [`AttentionOps::rope_qk`]: gradients of queries,
    /// keys and values as they came in.
    fn attend_backward(
        &self,
        of: Qkv<'_>,
        made: Attended<'_>,
        dout: &Tensor,
        rotary: Rotary<'_>,
        norms: Option<[RmsNormed<'_>; 2]>,
        read_by: ReadBy,
    ) -> Result<[Tensor; 3]>;
}

/// The output projection and the loss.
pub trait HeadOps {
    /// Logits `[tokens, vocab]` in f32.
    fn logits(&self, hidden: &Tensor, head: &dyn StoredWeight) -> Result<Tensor>;
    /// Log-probabilities of `targets` given `hidden` `[targets, width]`.
    fn score(&self, hidden: &Tensor, targets: &Indices, head: &dyn StoredWeight) -> Result<Vec<Target>>;
    /// Loss `scale * sum of -log p` of `targets`: their log-probabilities in f32 and the gradient
    /// of `hidden`; that of the projection is added to `dhead`.
    fn head_loss(
        &self,
        hidden: &Tensor,
        targets: &Indices,
        head: &dyn StoredWeight,
        scale: f32,
        dhead: Option<&Gradient>,
    ) -> Result<(Tensor, Tensor)>;
}

/// A trained tensor with what belongs to it.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// The parameter.
    pub tensor: Tensor,
    /// Its moments.
    pub moments: [Tensor; 2],
    /// Whether weight decay applies.
    pub decays: bool,
}

/// AdamW over all trained tensors of a run, which keep their places.
pub trait Optimizer: Send + Sync {
    /// Clips `gradients`, in the order of the parameters, to `max_norm` (0: never) and updates;
    /// `update.gradient_scale` is not read. Returns the sum of squares of each gradient. Where one
    /// is not finite, nothing has changed.
    fn step(&self, gradients: &[&Gradient], max_norm: f64, update: &Update) -> Result<Vec<f64>>;
}

/// How many sequences a device decodes together.
#[derive(Clone, Copy, Debug)]
pub struct CacheBudget {
    /// Sequences, where the caller leaves the choice.
    pub sequences: usize,
    /// Bytes that the caches of all of them should not exceed.
    pub bytes: usize,
    /// Bytes of a cached element.
    pub element: usize,
}

/// The shape of the cache of keys and values.
#[derive(Clone, Copy, Debug)]
pub struct CacheShape {
    /// Layers of the model.
    pub layers: usize,
    /// Heads of a layer.
    pub heads: Heads,
    /// Most sequences at a time.
    pub sequences: usize,
    /// Most positions of a sequence.
    pub positions: usize,
}

/// One token of each sequence, as the model's pass reads them.
#[derive(Clone, Copy)]
pub struct Feed<'a> {
    /// The tokens.
    pub ids: &'a Indices,
    /// Where they stand.
    pub positions: &'a Indices,
    /// Where rows of one token start.
    pub starts: &'a Starts,
}

/// The model's pass over a [`Feed`], which uses the cache: logits `[sequences, vocab]`.
pub type Forward<'a> = dyn FnMut(&mut dyn KvCache, Feed<'_>) -> Result<Tensor> + 'a;

/// Keys and values of the sequences being decoded, in their order.
pub trait KvCache: Send {
    /// Adds a sequence that will have up to `positions`.
    fn admit(&mut self, positions: usize) -> Result<()>;
    /// Takes sequence `i` off; the last takes its place.
    fn swap_remove(&mut self, i: usize);
    /// Positions of each sequence, those of the pass under way included.
    fn lengths(&self) -> &[u32];
    /// Begins a pass: `starts[i]..starts[i + 1]` of its tokens go to sequence `first + i`.
    fn extend(&mut self, first: usize, starts: &[usize]) -> Result<()>;
    /// Puts the keys and values of `layer`, `[tokens, keys * dim]` each, into their places.
    fn append(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> Result<()>;
    /// One query of each sequence, `[sequences, queries * dim]`, against what `layer` remembers,
    /// its own position included.
    fn attend(&self, layer: usize, q: &Tensor) -> Result<Tensor>;
    /// Feeds `ids`, the last token of each sequence, by `forward` and picks the next with
    /// `sampler`; `places` are each row's number and how many tokens it has generated. A logit that
    /// is not a number is an error.
    fn step(
        &mut self,
        ids: &[u32],
        places: &[(usize, usize)],
        sampler: &Sampler,
        forward: &mut Forward<'_>,
    ) -> Result<Vec<u32>>;
    /// A fault that costs time alone, said once.
    fn complaint(&mut self) -> Option<String> {
        None
    }
}

/// A device with the precision of its GEMMs.
pub trait Device: TensorOps + LinearOps + AttentionOps + HeadOps + fmt::Debug + Send + Sync {
    /// Element type of GEMM operands; their sums are f32.
    fn precision(&self) -> Precision;
    /// Whether its memory is the host's.
    fn is_host(&self) -> bool;
    /// Most bytes of memory that were ever taken, if that is known.
    fn peak_memory(&self) -> Option<u64>;
    /// Bytes of memory as an optimizer step reports them, if they are known.
    fn memory(&self) -> Option<u64>;
    /// Leaves memory that nobody uses to others, where what comes next wants it in other sizes.
    fn trim(&self);

    /// The same numbers on the device, kept in f32: for what is trained, and for what is summed. A
    /// tensor that lies there already stays as it is.
    fn place(&self, t: &Tensor) -> Result<Tensor>;
    /// Numbers of a file on the device, frozen, in the element type of its GEMMs; nothing if it
    /// reads them where they are.
    fn frozen(&self, numbers: Elements<'_>, shape: &[usize]) -> Result<Option<Tensor>>;
    /// The gradient of `t`, with nothing in it; `one_batch` if it gets one micro-batch a step.
    fn gradient(&self, t: &Tensor, one_batch: bool) -> Result<Gradient>;
    /// An optimizer of `parameters`.
    fn optimizer(&self, parameters: Vec<Parameter>) -> Result<Box<dyn Optimizer>>;

    /// How many sequences it decodes together.
    fn cache_budget(&self) -> CacheBudget;
    /// A cache without sequences.
    fn kv_cache(&self, shape: CacheShape) -> Result<Box<dyn KvCache>>;
    /// The next token of each row of `logits` `[rows, vocab]`; `places` as in [`KvCache::step`].
    fn pick(&self, logits: &Tensor, places: &[(usize, usize)], sampler: &Sampler) -> Result<Vec<u32>>;
}
