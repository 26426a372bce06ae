//! The keys of a family's `config.json`: each is asked for by the file that computes it, and what
//! nobody asked for is refused or said.

use std::cell::RefCell;
use std::collections::BTreeSet;

use karat_backend::BackendError;
use serde_json::Value;

use super::{Activation, Architecture, Attention, Layer, Norms, QkNorm, Rotation};
use crate::config::Heads;
use crate::keys::{Keys, unimplemented, wrong};
use crate::rope::{DEFAULT_THETA, Rope};

type Result<T, E = BackendError> = std::result::Result<T, E>;

/// Keys of every family that change no number of a forward pass.
const HARMLESS: [&str; 24] = [
    "_attn_implementation",
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "auto_map",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "dtype",
    "eos_token_id",
    "id2label",
    "initializer_range",
    "label2id",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "return_dict",
    "router_aux_loss_coef",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "vocab_size",
];
/// Keys that ask for another model whatever the family.
const ELSEWHERE: [&str; 7] = [
    "quantization_config",
    "is_encoder_decoder",
    "add_cross_attention",
    "use_bidirectional_attention",
    "num_experts",
    "num_local_experts",
    "layer_types",
];

/// A family's values where its configuration is silent.
pub struct Defaults {
    /// Key heads; none is as many as query heads.
    pub key_heads: Option<usize>,
    /// Width of a head; none is an even share of the hidden size.
    pub head_dim: Option<usize>,
    /// Longest sequence.
    pub max_positions: usize,
    /// Epsilon of norms.
    pub norm_eps: f64,
    /// Part of a head that is rotated; none where the family rotates all of it whatever the keys
    /// say.
    pub partial_rotary: Option<f64>,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Whether all layers rotate as the plain keys say; if not, the family says how.
    pub rotations: bool,
}

impl Default for Defaults {
    fn default() -> Self {
        Defaults {
            key_heads: None,
            head_dim: None,
            max_positions: 2048,
            norm_eps: 1e-6,
            partial_rotary: None,
            tied: false,
            rotations: true,
        }
    }
}

/// A `config.json` that remembers which of its keys were asked for.
pub struct Reader<'a> {
    /// The family's `model_type`.
    pub family: &'static str,
    keys: Keys<'a>,
    asked: RefCell<BTreeSet<&'static str>>,
    warnings: RefCell<Vec<String>>,
}

impl<'a> Reader<'a> {
    /// A reader of `keys` of the family.
    pub fn new(family: &'static str, keys: Keys<'a>) -> Self {
        Reader { family, keys, asked: RefCell::default(), warnings: RefCell::default() }
    }

    /// The keys, of which `key` is asked for.
    pub fn ask(&self, key: &'static str) -> Keys<'a> {
        self.asked.borrow_mut().insert(key);
        self.keys
    }

    /// A size that must be given.
    pub fn size(&self, key: &'static str) -> Result<usize> {
        self.ask(key).size(key)
    }

    /// A size, `default` where it is left out.
    pub fn size_or(&self, key: &'static str, default: usize) -> Result<usize> {
        Ok(self.ask(key).optional_size(key)?.unwrap_or(default))
    }

    /// A size, none where it is null, `default` where it is left out.
    pub fn size_or_null(&self, key: &'static str, default: Option<usize>) -> Result<Option<usize>> {
        match self.ask(key).get(key) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(_) => self.keys.optional_size(key),
        }
    }

    /// A count that may be 0, `default` where it is left out.
    pub fn count_or(&self, key: &'static str, default: usize) -> Result<usize> {
        match self.ask(key).get(key) {
            Some(zero) if zero.as_u64() == Some(0) => Ok(0),
            _ => self.size_or(key, default),
        }
    }

    /// A switch, `default` where it is left out.
    pub fn flag_or(&self, key: &'static str, default: bool) -> Result<bool> {
        Ok(self.ask(key).flag(key)?.unwrap_or(default))
    }

    /// A positive number, `default` where it is left out.
    pub fn number_or(&self, key: &'static str, default: f64) -> Result<f64> {
        let number = self.ask(key).number_that(key, "a number above 0 and at most 1e9", |x| x > 0.0 && x <= 1e9)?;
        Ok(number.unwrap_or(default))
    }

    /// A positive number, none where it is null, `default` where it is left out.
    pub fn number_or_null(&self, key: &'static str, default: Option<f64>) -> Result<Option<f64>> {
        match self.ask(key).get(key) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(_) => self.number_or(key, 1.0).map(Some),
        }
    }

    /// Refuses a number other than 0, and a key that has no place here otherwise.
    pub fn nothing(&self, key: &'static str) -> Result<()> {
        match self.ask(key).some(key) {
            None => Ok(()),
            Some(value) if value.as_f64() == Some(0.0) || *value == Value::Bool(false) => Ok(()),
            Some(value) => Err(unimplemented(format!("{key} {value} of a {}", self.family))),
        }
    }

    /// The feed-forward's function.
    pub fn activation(&self, key: &'static str, default: Activation) -> Result<Activation> {
        match self.ask(key).some(key).map(Value::as_str) {
            None => Ok(default),
            Some(Some("silu" | "swish")) => Ok(Activation::Silu),
            Some(Some("gelu_pytorch_tanh" | "gelu_new" | "gelu_fast")) => Ok(Activation::GeluTanh),
            Some(Some("gelu")) => Ok(Activation::Gelu),
            Some(other) => Err(unimplemented(format!(
                "{key} {:?} (implemented: silu, gelu_pytorch_tanh, gelu)",
                other.unwrap_or_default()
            ))),
        }
    }

    /// The layers' `layer_types` as windows: `default` says of a layer whether it slides where the
    /// key is left out.
    pub fn windows(&self, layers: usize, window: Option<usize>, default: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
        let key = "layer_types";
        let slides = match self.ask(key).some(key) {
            None => (0..layers).map(default).collect::<Vec<bool>>(),
            Some(Value::Array(kinds)) if kinds.len() == layers => {
                let kind = |kind: &Value| match kind.as_str() {
                    Some("full_attention") => Ok(false),
                    Some("sliding_attention") => Ok(true),
                    _ => Err(unimplemented(format!("layer_types with {kind}"))),
                };
                kinds.iter().map(kind).collect::<Result<_>>()?
            }
            Some(other) => return Err(wrong(key, &format!("a list of the kinds of {layers} layers"), other)),
        };
        match slides.contains(&true) && window.is_none() {
            true => Err(BackendError::failed("a layer of sliding_attention needs a \"sliding_window\"")),
            false => Ok(slides),
        }
    }

    /// The rotary embedding that the keys ask for.
    fn rotation(&self, dim: usize, max_positions: usize, defaults: &Defaults) -> Result<Rotation> {
        for key in ["rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"] {
            self.ask(key);
        }
        self.rotation_of(self.keys, dim, max_positions, (DEFAULT_THETA, defaults.partial_rotary))
    }

    /// The rotary embedding that `keys` ask for over a head of `dim`, with a default base and a
    /// default part of it.
    pub fn rotation_of(
        &self,
        keys: Keys<'_>,
        dim: usize,
        max_positions: usize,
        (theta, partial): (f64, Option<f64>),
    ) -> Result<Rotation> {
        let (rope, part) = Rope::read_part(keys, max_positions, theta, &mut self.warnings.borrow_mut())?;
        let rotated = match (partial, part.factor) {
            (None, None | Some(1.0)) => dim,
            (None, Some(part)) => {
                return Err(unimplemented(format!("partial_rotary_factor {part} of a {}", self.family)));
            }
            (Some(default), part) => self.rotated(dim, part.unwrap_or(default))?,
        };
        Ok(Rotation::new(&rope, rotated))
    }

    /// How many of `dim` dimensions are rotated.
    pub fn rotated(&self, dim: usize, part: f64) -> Result<usize> {
        match (dim as f64 * part) as usize {
            dim if dim > 0 && dim.is_multiple_of(2) => Ok(dim),
            odd => Err(BackendError::failed(format!(
                "\"partial_rotary_factor\" {part}: {odd} of {dim} dimensions of a head cannot be rotated in pairs"
            ))),
        }
    }

    /// The numbers of heads and their width.
    fn heads(&self, hidden: usize, defaults: &Defaults) -> Result<Heads> {
        let queries = self.size("num_attention_heads")?;
        let keys = self.size_or_null("num_key_value_heads", defaults.key_heads)?.unwrap_or(queries);
        let dim = self.size_or_null("head_dim", defaults.head_dim)?.unwrap_or(hidden / queries);
        match dim > 0 && dim.is_multiple_of(2) && queries.is_multiple_of(keys) {
            true => Ok(Heads { queries, keys, dim }),
            false => Err(BackendError::failed(format!(
                "\"num_attention_heads\" {queries}, \"num_key_value_heads\" {keys} and \"head_dim\" {dim} do not fit together"
            ))),
        }
    }

    /// A decoder of Llama's shape with the sizes of the configuration; its family changes the rest.
    ///
    /// # Errors
    /// A key that is missing or cannot be.
    pub fn decoder(&self, defaults: &Defaults) -> Result<Architecture> {
        let hidden_size = self.size("hidden_size")?;
        let heads = self.heads(hidden_size, defaults)?;
        let max_positions = self.size_or("max_position_embeddings", defaults.max_positions)?;
        let layer = Layer { window: None, rotation: 0, sparse: false };
        self.nothing("attention_dropout")?;
        Ok(Architecture {
            model_type: self.family.into(),
            hidden_size,
            vocab_size: self.size("vocab_size")?,
            max_positions,
            attention: Attention {
                heads,
                scale: 1.0 / (heads.dim as f64).sqrt(),
                softcap: None,
                qkv_bias: false,
                o_bias: false,
                fused: false,
                qk_norm: QkNorm::None,
            },
            norms: Norms::LLAMA,
            norm_eps: self.number_or("rms_norm_eps", defaults.norm_eps)?,
            norm_offset: false,
            activation: Activation::Silu,
            intermediate_size: self.size("intermediate_size")?,
            fused_mlp: false,
            mlp_bias: false,
            experts: None,
            rotations: match defaults.rotations {
                true => vec![self.rotation(heads.dim, max_positions, defaults)?],
                false => Vec::new(),
            },
            layers: vec![layer; self.size("num_hidden_layers")?],
            embedding_scale: 1.0,
            residual_scale: 1.0,
            logits_divisor: 1.0,
            logits_softcap: None,
            tied: self.flag_or("tie_word_embeddings", defaults.tied)?,
            warnings: Vec::new(),
            raw: Default::default(),
        })
    }

    /// Refuses the keys that ask for another model, and says which nobody asked for.
    ///
    /// # Errors
    /// Unsupported, by name.
    pub fn finish(self, architecture: &mut Architecture) -> Result<()> {
        let asked = self.asked.take();
        ELSEWHERE.into_iter().filter(|key| !asked.contains(key)).try_for_each(|key| self.nothing(key))?;
        let says = |value: &Value| match value {
            Value::Null => false,
            Value::Bool(on) => *on,
            Value::Array(list) => !list.is_empty(),
            Value::Object(map) => !map.is_empty(),
            Value::Number(number) => number.as_f64() != Some(0.0),
            Value::String(text) => !text.is_empty(),
        };
        let unread =
            self.keys.0.iter().filter(|(key, value)| {
                says(value) && !asked.contains(key.as_str()) && !HARMLESS.contains(&key.as_str())
            });
        let unread: Vec<&str> = unread.map(|(key, _)| key.as_str()).collect();
        if !unread.is_empty() {
            let what =
                format!("{} is read by no {} of transformers 5 and changes nothing", unread.join(", "), self.family);
            architecture.warnings.push(what);
        }
        architecture.warnings.extend(self.warnings.into_inner());
        architecture.warnings.iter_mut().for_each(|warning| warning.insert_str(0, "config.json: "));
        Ok(())
    }
}
