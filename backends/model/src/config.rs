//! `config.json` of a decoder, checked.

use std::ops::Range;
use std::path::Path;

use karat_backend::BackendError;
use karat_system::fsio::regular;
use serde_json::{Map, Value};

use crate::architecture::Architecture;
use crate::keys::{Keys, unimplemented, wrong};
use crate::rope::Rope;

/// A file larger than this is no configuration.
pub(crate) const LARGEST_FILE: u64 = 16 << 20;

/// The families of decoders there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Root-mean-square norms on queries and keys, no biases by default.
    Qwen3,
    /// Biases on the query, key and value projections.
    Qwen2,
    /// Neither.
    Llama,
}

impl Family {
    /// The `model_type`s in `config.json`.
    pub const NAMES: [&'static str; 3] = ["qwen3", "qwen2", "llama"];

    /// Its `model_type`.
    pub fn name(self) -> &'static str {
        match self {
            Family::Qwen3 => "qwen3",
            Family::Qwen2 => "qwen2",
            Family::Llama => "llama",
        }
    }

    fn of(name: &str) -> Option<Self> {
        [Family::Qwen3, Family::Qwen2, Family::Llama].into_iter().find(|family| family.name() == name)
    }
}

/// Numbers of heads and their width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub queries: usize,
    /// Key and value heads; divides `queries`.
    pub keys: usize,
    /// Width of a head.
    pub dim: usize,
}

impl Heads {
    /// Width of all queries of a token.
    pub fn q_width(&self) -> usize {
        self.queries * self.dim
    }
    /// Width of all keys of a token, and of all values.
    pub fn k_width(&self) -> usize {
        self.keys * self.dim
    }
    /// Query heads that share a key head.
    pub fn group(&self) -> usize {
        self.queries / self.keys
    }
    /// The columns of a head among those of all.
    pub fn columns(&self, head: usize) -> Range<usize> {
        head * self.dim..(head + 1) * self.dim
    }
    /// `1 / sqrt(dim)`, by which scores are multiplied.
    pub fn scale(&self) -> f32 {
        (1.0 / (self.dim as f64).sqrt()) as f32
    }
}

/// A decoder-only transformer with grouped-query attention, rotary positions and a gated SiLU
/// feed-forward.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Which family.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: Heads,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Longest sequence.
    pub max_positions: usize,
    /// Epsilon of every RMSNorm.
    pub rms_norm_eps: f64,
    /// The rotary embedding.
    pub rope: Rope,
    /// The output projection is the embedding.
    pub tied: bool,
    /// RMSNorm on each query and key head (Qwen3).
    pub qk_norm: bool,
    /// Bias of the query, key and value projections.
    pub qkv_bias: bool,
    /// Bias of the attention's output projection.
    pub o_bias: bool,
    /// Bias of the MLP's projections.
    pub mlp_bias: bool,
    /// Standard deviation of freshly drawn matrices.
    pub initializer_range: f64,
    /// The id that pads. Its embedding gets no gradient from where it is read, as PyTorch's
    /// `nn.Embedding` with a `padding_idx` has it, which transformers makes of `pad_token_id`; a
    /// negative one counts from the end there.
    pub pad: Option<u32>,
    /// `pad_token_id` as the id of a token.
    pub pad_token: Option<u32>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`, one or several.
    pub eos: Vec<u32>,
    /// What a user should know of how the folder was read, each a sentence.
    pub warnings: Vec<String>,
    /// The file as it is, for writing it again.
    pub raw: Map<String, Value>,
}

impl ModelConfig {
    /// Reads `config.json` in `folder`.
    ///
    /// # Errors
    /// Failed for a missing or broken file or key; Unsupported, by name, for what is not
    /// implemented.
    pub fn read(folder: &Path) -> Result<Self, BackendError> {
        let (path, raw) = (folder.join("config.json"), read_object(folder)?);
        let mut config = Self::parse(raw)
            .map_err(|e| BackendError { message: format!("{}: {}", path.display(), e.message), ..e })?;
        // Without the folder: an export keeps them, and its bytes do not depend on where the model
        // lay.
        config.warnings.iter_mut().for_each(|warning| warning.insert_str(0, "config.json: "));
        Ok(config)
    }

    /// Interprets the keys of a `config.json`, with the defaults of transformers where a key is
    /// left out.
    ///
    /// # Errors
    /// As [`ModelConfig::read`].
    pub fn parse(raw: Map<String, Value>) -> Result<Self, BackendError> {
        let keys = Keys(&raw);
        let family = match keys.text("model_type")? {
            Some(name) => Family::of(name).ok_or_else(|| {
                let known = Family::NAMES.join(", ");
                let elsewhere = match Architecture::names().any(|family| family == name) {
                    true => "; the backend candle scores and generates with it",
                    false => "",
                };
                BackendError::unsupported(format!(
                    "model_type {name:?} is not implemented (implemented: {known}){elsewhere}"
                ))
            })?,
            None => return Err(BackendError::failed("\"model_type\" is missing")),
        };
        let layers = keys.size("num_hidden_layers")?;
        refuse_unimplemented(keys, family, layers)?;
        let hidden_size = keys.size("hidden_size")?;
        let heads = heads(keys, family, hidden_size)?;
        let vocab_size = keys.size("vocab_size")?;
        let longest = if family == Family::Llama { 2048 } else { 32768 };
        let max_positions = keys.optional_size("max_position_embeddings")?.unwrap_or(longest);
        // Qwen2 has these biases without a key for them; and never one on the output projection.
        let attention_bias = family != Family::Qwen2 && keys.flag("attention_bias")?.unwrap_or(false);
        let eps =
            keys.number_that("rms_norm_eps", "a number above 1e-30 and at most 0.1", |eps| eps > 1e-30 && eps <= 0.1)?;
        // transformers takes no whole number there.
        if let Some(whole) = keys.get("initializer_range").filter(|value| value.is_i64() || value.is_u64()) {
            return Err(wrong("initializer_range", "a number with a decimal point, from 0.0 to 1.0", whole));
        }
        let deviation = keys.number_that("initializer_range", "a number from 0 to 1", |x| (0.0..=1.0).contains(&x))?;
        let mut warnings = Vec::new();
        Ok(ModelConfig {
            family,
            hidden_size,
            intermediate_size: keys.size("intermediate_size")?,
            layers,
            heads,
            vocab_size,
            max_positions,
            rms_norm_eps: eps.unwrap_or(1e-6),
            rope: Rope::read(keys, max_positions, &mut warnings)?,
            tied: keys.flag("tie_word_embeddings")?.unwrap_or(false),
            qk_norm: family == Family::Qwen3,
            qkv_bias: family == Family::Qwen2 || attention_bias,
            o_bias: attention_bias,
            mlp_bias: family == Family::Llama && keys.flag("mlp_bias")?.unwrap_or(false),
            initializer_range: deviation.unwrap_or(0.02),
            pad: pad(keys, vocab_size)?,
            pad_token: keys.id("pad_token_id")?,
            bos: default_id(keys, family, "bos_token_id", keys.id("bos_token_id")?, 1),
            eos: match keys.ids("eos_token_id")? {
                Some(ids) => ids,
                None => default_id(keys, family, "eos_token_id", None, 2).into_iter().collect(),
            },
            warnings,
            raw,
        })
    }

    /// The output projection's tensor: the embedding's where it is tied.
    pub fn head_name(&self) -> &'static str {
        if self.tied { crate::EMBEDDING } else { crate::HEAD }
    }
}

/// The keys of `config.json` in `folder`.
pub(crate) fn read_object(folder: &Path) -> Result<Map<String, Value>, BackendError> {
    let path = folder.join("config.json");
    let at = |what: &str| BackendError::failed(format!("{}: {what}", path.display()));
    let unread =
        |e: std::io::Error| at("could not read it; the model must be a folder in the Hugging Face layout").because(&e);
    let length = std::fs::metadata(&path).map_err(unread)?.len();
    if length > LARGEST_FILE {
        return Err(at(&format!("not a model's configuration: it has {length} bytes")));
    }
    let text = regular(&path).and_then(|()| std::fs::read(&path)).map_err(unread)?;
    let raw: Value = serde_json::from_slice(&text).map_err(|e| at("not JSON").because(&e))?;
    match raw {
        Value::Object(raw) => Ok(raw),
        _ => Err(at("not a JSON object")),
    }
}

/// Llama has start and end tokens where its configuration is silent about them.
fn default_id(keys: Keys<'_>, family: Family, key: &str, given: Option<u32>, default: u32) -> Option<u32> {
    match (family, keys.get(key)) {
        (Family::Llama, None) => Some(default),
        _ => given,
    }
}

fn heads(keys: Keys<'_>, family: Family, hidden_size: usize) -> Result<Heads, BackendError> {
    let queries = keys.size("num_attention_heads")?;
    let group_keys = match (keys.get("num_key_value_heads"), family) {
        (Some(Value::Null), _) | (None, Family::Llama) => queries,
        // The default of transformers for these families is a number, not "as many as there are".
        (None, _) => 32,
        (Some(_), _) => keys.size("num_key_value_heads")?,
    };
    let even = || match hidden_size / queries {
        0 => Err(BackendError::failed(format!(
            "\"num_attention_heads\" {queries} is more than \"hidden_size\" {hidden_size} has room for"
        ))),
        dim => Ok(dim),
    };
    let dim = match (keys.get("head_dim"), family) {
        (None, Family::Qwen3) => 128,
        (None, _) | (Some(Value::Null), Family::Llama) => even()?,
        (Some(_), _) => keys.size("head_dim")?,
    };
    if !dim.is_multiple_of(2) {
        return Err(BackendError::failed(format!("\"head_dim\" {dim} must be even: its halves are rotated")));
    }
    if !queries.is_multiple_of(group_keys) {
        let said = if keys.some("num_key_value_heads").is_some() { "" } else { " (transformers' default)" };
        return Err(BackendError::failed(format!(
            "\"num_key_value_heads\" {group_keys}{said} does not divide the {queries} of \"num_attention_heads\""
        )));
    }
    if family == Family::Llama && !hidden_size.is_multiple_of(queries) {
        return Err(BackendError::failed(format!(
            "\"hidden_size\" {hidden_size} must be a multiple of \"num_attention_heads\" {queries} in a llama"
        )));
    }
    Ok(Heads { queries, keys: group_keys, dim })
}

/// `pad_token_id` as a row of the embedding; a negative one counts from the end, as in PyTorch.
fn pad(keys: Keys<'_>, vocab: usize) -> Result<Option<u32>, BackendError> {
    let Some(value) = keys.some("pad_token_id") else { return Ok(None) };
    let size = vocab as i64;
    let id = value.as_i64().filter(|id| (-size..size).contains(id));
    let id = id.ok_or_else(|| wrong("pad_token_id", &format!("the id of one of {vocab} tokens"), value))?;
    Ok(u32::try_from(if id < 0 { id + size } else { id }).ok())
}

/// Keys that ask for another model than the one that is computed.
fn refuse_unimplemented(keys: Keys<'_>, family: Family, layers: usize) -> Result<(), BackendError> {
    match keys.text("hidden_act")? {
        None | Some("silu" | "swish") => {}
        Some(other) => return Err(unimplemented(format!("hidden_act {other:?} (implemented: silu)"))),
    }
    // No key of this family's: a null is not read.
    let slides = match (family, keys.some("use_sliding_window")) {
        (Family::Llama, None) => None,
        _ => keys.flag("use_sliding_window")?,
    };
    if slides == Some(true) {
        return Err(unimplemented("use_sliding_window"));
    }
    match keys.some("layer_types") {
        None => {}
        Some(Value::Array(kinds)) => {
            if let Some(kind) = kinds.iter().find(|kind| kind.as_str() != Some("full_attention")) {
                return Err(unimplemented(format!("layer_types with {kind}")));
            }
            if kinds.len() != layers {
                return Err(BackendError::failed(format!(
                    "\"layer_types\" names {} layers, \"num_hidden_layers\" says {layers}",
                    kinds.len()
                )));
            }
        }
        Some(other) => return Err(wrong("layer_types", "a list of the kinds of layers", other)),
    }
    for (key, neutral) in [("attention_dropout", 0.0), ("pretraining_tp", 1.0)] {
        // Where transformers takes a null, it is as good as nothing.
        let nothing = keys.some(key).is_none() && (family == Family::Llama || key == "pretraining_tp");
        if !nothing && keys.number(key)?.is_some_and(|x| x != neutral) {
            return Err(unimplemented(format!("{key} other than {neutral}")));
        }
    }
    // They change no number here, but what cannot be is a sign of a broken file.
    keys.flag("use_cache")?;
    for key in ["dtype", "torch_dtype", "transformers_version"] {
        if let Some(value) = keys.some(key).filter(|value| !value.is_string()) {
            return Err(wrong(key, "a string", value));
        }
    }
    if let Some(value) = keys.some("architectures") {
        let names = value.as_array().is_some_and(|names| names.iter().all(Value::is_string));
        if !names {
            return Err(wrong("architectures", "a list of names", value));
        }
    }
    if family != Family::Llama {
        let broken = |value: &&Value| value.as_i64().is_none();
        let windows = [keys.some("sliding_window"), keys.get("max_window_layers")];
        for (key, value) in ["sliding_window", "max_window_layers"].into_iter().zip(windows) {
            if let Some(value) = value.filter(broken) {
                return Err(wrong(key, "a whole number", value));
            }
        }
    }
    for key in ["quantization_config", "num_experts", "num_local_experts"] {
        if keys.some(key).is_some() {
            return Err(unimplemented(format!("\"{key}\"")));
        }
    }
    Ok(())
}
