//! Decoders beyond Qwen3, Qwen2 and Llama, described by what is computed: norms and where they
//! stand, rotations, windows of attention, experts, multipliers, soft caps. A backend that computes
//! this description computes every family that has a file here.
//!
//! A `config.json` means here what transformers 5 makes of it: its defaults where a key is left
//! out, its names of tensors. A key that transformers reads and this description has no place for
//! is refused by its name; one that transformers does not read for the family either is named in a
//! warning.

mod gemma;
mod glm4;
mod granite;
mod mistral;
mod olmo2;
mod phi3;
mod qwen_moe;
mod reader;

use std::path::Path;

use karat_backend::BackendError;
use serde_json::{Map, Value};

use crate::checkpoint::CheckpointLayout;
use crate::config::{Heads, ModelConfig, read_object};
use crate::head::Said;
use crate::keys::Keys;
use crate::peft::Linears;
use crate::rope::{Rope, tables};
use crate::tensors::{around, check_tensors};
use reader::Reader;

type Read = fn(&Reader<'_>) -> Result<Architecture, BackendError>;

/// The families, by the `model_type` of their `config.json`.
const FAMILIES: [(&str, Read); 10] = [
    ("mistral", mistral::read),
    ("gemma2", gemma::read),
    ("gemma3_text", gemma::read),
    ("phi3", phi3::read),
    ("qwen2_moe", qwen_moe::read),
    ("qwen3_moe", qwen_moe::read),
    ("glm", glm4::read),
    ("glm4", glm4::read),
    ("granite", granite::read),
    ("olmo2", olmo2::read),
];

/// A rotary embedding over the first `dim` dimensions of each head.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotation {
    /// Dimensions that are rotated.
    pub dim: usize,
    /// Whether neighbours are a pair, not the two halves.
    pub interleaved: bool,
    /// The angle of each pair for one position, `[dim / 2]`.
    pub frequencies: Vec<f32>,
    /// Factor on cosines and sines.
    pub factor: f32,
    /// The longest row that these frequencies are for, and those of longer rows (LongRoPE, Ding et
    /// al., arXiv 2402.13753).
    pub long: Option<(usize, Vec<f32>)>,
}

impl Rotation {
    /// That of `rope` over `dim` dimensions.
    fn new(rope: &Rope, dim: usize) -> Self {
        let (frequencies, factor) = (rope.inverse_frequencies(dim), rope.attention_factor());
        Rotation { dim, interleaved: false, frequencies, factor, long: None }
    }

    /// Cosines and sines of `count` positions from `first` on, `[count, dim / 2]` each, for a row
    /// of `length` tokens.
    pub fn tables(&self, first: usize, count: usize, length: usize) -> (Vec<f32>, Vec<f32>) {
        let frequencies = match &self.long {
            Some((longest, long)) if length > *longest => long,
            _ => &self.frequencies,
        };
        tables(frequencies, self.factor, first..first + count)
    }
}

/// RMSNorms on queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// On each head.
    Heads,
    /// On all heads of a token at once.
    Whole,
}

/// Attention of every layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Heads.
    pub heads: Heads,
    /// Factor on the products of queries and keys.
    pub scale: f64,
    /// `c tanh(x / c)` of them.
    pub softcap: Option<f64>,
    /// Bias of the query, key and value projections.
    pub qkv_bias: bool,
    /// Bias of the output projection.
    pub o_bias: bool,
    /// One tensor `qkv_proj` for the three projections.
    pub fused: bool,
    /// Norms before the rotation.
    pub qk_norm: QkNorm,
}

/// Names of a layer's norms by where they stand; none is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Norms {
    /// Of what attention reads.
    pub before_attention: Option<&'static str>,
    /// Of what it gives.
    pub after_attention: Option<&'static str>,
    /// Of what the feed-forward reads.
    pub before_mlp: Option<&'static str>,
    /// Of what it gives.
    pub after_mlp: Option<&'static str>,
}

/// The function between the feed-forward's projections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x sigmoid(x)`.
    Silu,
    /// GELU by the hyperbolic tangent.
    GeluTanh,
    /// GELU by the error function.
    Gelu,
}

/// Experts of a sparse layer (Shazeer et al., arXiv 1701.06538): the feed-forwards of which each
/// token has a few.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    /// How many there are.
    pub count: usize,
    /// How many a token has.
    pub per_token: usize,
    /// Width inside one.
    pub inner: usize,
    /// Whether the weights of a token's experts are made to sum to 1.
    pub normalized: bool,
    /// Width inside the one that every token has beside them, behind a sigmoid.
    pub shared: Option<usize>,
}

/// The part of a layer that differs from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// A token sees this many, itself among them; none is all before it.
    pub window: Option<usize>,
    /// Which of [`Architecture::rotations`].
    pub rotation: usize,
    /// Whether the feed-forward is one of experts.
    pub sparse: bool,
}

/// A decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Architecture {
    /// Its `model_type`.
    pub model_type: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Longest sequence.
    pub max_positions: usize,
    /// Attention.
    pub attention: Attention,
    /// A layer's norms.
    pub norms: Norms,
    /// Epsilon of every norm.
    pub norm_eps: f64,
    /// Norms multiply by 1 more than their weight.
    pub norm_offset: bool,
    /// The feed-forward's function.
    pub activation: Activation,
    /// Width inside a dense feed-forward.
    pub intermediate_size: usize,
    /// One tensor `gate_up_proj` for its two projections.
    pub fused_mlp: bool,
    /// Bias of its projections.
    pub mlp_bias: bool,
    /// Experts of the layers that have them.
    pub experts: Option<Experts>,
    /// The rotary embeddings there are.
    pub rotations: Vec<Rotation>,
    /// The layers.
    pub layers: Vec<Layer>,
    /// Factor on the embedding.
    pub embedding_scale: f64,
    /// Factor on the output of attention and of feed-forward, before it is added to the residual
    /// stream.
    pub residual_scale: f64,
    /// Divisor of the logits.
    pub logits_divisor: f64,
    /// `c tanh(x / c)` of the logits.
    pub logits_softcap: Option<f64>,
    /// The output projection is the embedding.
    pub tied: bool,
    /// Sentences for the user on how the folder was read.
    pub warnings: Vec<String>,
    /// The file as it is, for writing it again.
    pub raw: Map<String, Value>,
}

impl Architecture {
    /// The `model_type`s that are known.
    pub fn names() -> impl Iterator<Item = &'static str> {
        FAMILIES.into_iter().map(|(name, _)| name)
    }

    /// Reads `config.json` in `folder`; none where it is of a family that [`ModelConfig`] reads, or
    /// of none that is known.
    ///
    /// # Errors
    /// Failed for a missing or broken file or key; Unsupported, by name, for what is not
    /// implemented.
    pub fn read(folder: &Path) -> Result<Option<Self>, BackendError> {
        let raw = read_object(folder)?;
        let path = folder.join("config.json");
        Self::parse(raw).map_err(|e| BackendError { message: format!("{}: {}", path.display(), e.message), ..e })
    }

    /// Interprets the keys of a `config.json`.
    ///
    /// # Errors
    /// As [`Architecture::read`].
    pub fn parse(raw: Map<String, Value>) -> Result<Option<Self>, BackendError> {
        let name = raw.get("model_type").and_then(Value::as_str).unwrap_or_default().to_owned();
        let Some((family, read)) = FAMILIES.into_iter().find(|(family, _)| *family == name) else { return Ok(None) };
        let reader = Reader::new(family, Keys(&raw));
        let mut read = read(&reader)?;
        reader.finish(&mut read)?;
        read.raw = raw;
        Ok(Some(read))
    }

    /// Names and shapes of a layer's tensors.
    fn layer_tensors(&self, i: usize) -> Vec<(String, Vec<usize>)> {
        let (hidden, attention, Heads { dim, .. }) = (self.hidden_size, &self.attention, self.attention.heads);
        let (q, k) = (attention.heads.q_width(), attention.heads.k_width());
        let mut all = Vec::new();
        let mut put = |name: &str, shape: &[usize]| all.push((format!("model.layers.{i}.{name}"), shape.to_vec()));
        let norms = self.norms;
        let norms = [norms.before_attention, norms.after_attention, norms.before_mlp, norms.after_mlp];
        for name in norms.into_iter().flatten() {
            put(&format!("{name}.weight"), &[hidden]);
        }
        let of_norms = match attention.qk_norm {
            QkNorm::None => None,
            QkNorm::Heads => Some([dim, dim]),
            QkNorm::Whole => Some([q, k]),
        };
        for (name, width) in ["q_norm", "k_norm"].into_iter().zip(of_norms.into_iter().flatten()) {
            put(&format!("self_attn.{name}.weight"), &[width]);
        }
        let mut linear = |name: &str, rows: usize, columns: usize, bias: bool| {
            put(&format!("{name}.weight"), &[rows, columns]);
            if bias {
                put(&format!("{name}.bias"), &[rows]);
            }
        };
        match attention.fused {
            true => linear("self_attn.qkv_proj", q + 2 * k, hidden, attention.qkv_bias),
            false => {
                for (name, rows) in [("q_proj", q), ("k_proj", k), ("v_proj", k)] {
                    linear(&format!("self_attn.{name}"), rows, hidden, attention.qkv_bias);
                }
            }
        }
        linear("self_attn.o_proj", hidden, q, attention.o_bias);
        let mut mlp = |path: &str, inner: usize, fused: bool, bias: bool| {
            match fused {
                true => linear(&format!("{path}.gate_up_proj"), 2 * inner, hidden, bias),
                false => {
                    linear(&format!("{path}.gate_proj"), inner, hidden, bias);
                    linear(&format!("{path}.up_proj"), inner, hidden, bias);
                }
            }
            linear(&format!("{path}.down_proj"), hidden, inner, bias);
        };
        match self.experts.filter(|_| self.layers[i].sparse) {
            None => mlp("mlp", self.intermediate_size, self.fused_mlp, self.mlp_bias),
            Some(experts) => {
                for expert in 0..experts.count {
                    mlp(&format!("mlp.experts.{expert}"), experts.inner, false, false);
                }
                if let Some(inner) = experts.shared {
                    mlp("mlp.shared_expert", inner, false, false);
                    linear("mlp.shared_expert_gate", 1, hidden, false);
                }
                linear("mlp.gate", experts.count, hidden, false);
            }
        }
        all
    }

    /// Names and shapes of all tensors; a tied head has none.
    pub fn tensors(&self) -> impl Iterator<Item = (String, Vec<usize>)> + '_ {
        let layers = (0..self.layers.len()).flat_map(|i| self.layer_tensors(i));
        around([self.vocab_size, self.hidden_size], self.tied, layers)
    }

    /// The linear layers of attention and feed-forward, which can carry a LoRA. Routers and experts
    /// are none: PEFT adapts the experts of transformers 5 as one parameter, which is another kind
    /// of adapter.
    pub fn linears(&self) -> Linears {
        let layers = (0..self.layers.len()).flat_map(|i| self.layer_tensors(i));
        let linears = layers.filter_map(|(name, shape)| match (name.strip_suffix(".weight"), shape.as_slice()) {
            (Some(path), &[output, input]) if !path.contains(".experts.") && !path.ends_with("mlp.gate") => {
                Some((path.to_owned(), [input, output]))
            }
            _ => None,
        });
        linears.collect()
    }

    /// Holds the sizes against the tensors of `files`, before anything is allocated for them.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape or of a type that is not computed with, by its
    /// name.
    pub fn check_tensors(&self, files: &CheckpointLayout) -> Result<(), BackendError> {
        check_tensors(files, self.tensors(), self.layers.len())
    }

    /// Settles whether the head is the embedding, as [`ModelConfig::settle_head`] does.
    ///
    /// # Errors
    /// A head or an embedding that is misshapen or unreadable.
    pub fn settle_head(&mut self, files: &CheckpointLayout) -> Result<(), BackendError> {
        let said = Said { tied: &mut self.tied, raw: &mut self.raw, warnings: &mut self.warnings };
        said.settle(files, [self.vocab_size, self.hidden_size])
    }
}

impl From<&ModelConfig> for Architecture {
    /// Qwen3, Qwen2 and Llama in the same words.
    fn from(config: &ModelConfig) -> Self {
        let layer = Layer { window: None, rotation: 0, sparse: false };
        Architecture {
            model_type: config.family.name().into(),
            hidden_size: config.hidden_size,
            vocab_size: config.vocab_size,
            max_positions: config.max_positions,
            attention: Attention {
                heads: config.heads,
                scale: 1.0 / (config.heads.dim as f64).sqrt(),
                softcap: None,
                qkv_bias: config.qkv_bias,
                o_bias: config.o_bias,
                fused: false,
                qk_norm: if config.qk_norm { QkNorm::Heads } else { QkNorm::None },
            },
            norms: Norms::LLAMA,
            norm_eps: config.rms_norm_eps,
            norm_offset: false,
            activation: Activation::Silu,
            intermediate_size: config.intermediate_size,
            fused_mlp: false,
            mlp_bias: config.mlp_bias,
            experts: None,
            rotations: vec![Rotation::new(&config.rope, config.heads.dim)],
            layers: vec![layer; config.layers],
            embedding_scale: 1.0,
            residual_scale: 1.0,
            logits_divisor: 1.0,
            logits_softcap: None,
            tied: config.tied,
            warnings: config.warnings.clone(),
            raw: config.raw.clone(),
        }
    }
}

impl Norms {
    /// One before each half of a layer.
    pub const LLAMA: Norms = Norms {
        before_attention: Some("input_layernorm"),
        after_attention: None,
        before_mlp: Some("post_attention_layernorm"),
        after_mlp: None,
    };
}
