//! What `config.json` says of a decoder, checked: everything the graph depends on, and a refusal by name of everything
//! it would get wrong.
//!
//! Keys are those of transformers (`Qwen3Config`, `Qwen2Config`, `LlamaConfig`); version 5 writes `rope_parameters`,
//! version 4 wrote `rope_theta` and `rope_scaling`: both are read.

use std::path::Path;

use karat::backend::BackendError;
use serde_json::{Map, Value};

/// The families of decoders this backend exports.
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
}

/// How the rotation frequencies are stretched beyond the trained length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// `theta^(-2j/d)` as it is.
    None,
    /// All frequencies divided by a factor (arXiv 2306.15595).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Low frequencies divided, high ones kept, a ramp between (Llama 3.1).
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original / low` are low frequencies.
        low: f64,
        /// Wavelengths below `original / high` are high frequencies.
        high: f64,
        /// Length the model was trained with.
        original: f64,
    },
}

/// A decoder-only transformer with grouped-query attention, rotary positions and a gated SiLU feed-forward.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// Which family.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the feed-forward.
    pub intermediate: usize,
    /// Number of token ids.
    pub vocab: usize,
    /// Longest sequence.
    pub max_positions: usize,
    /// Added to the mean square in every norm.
    pub rms_eps: f64,
    /// Base of the rotation frequencies.
    pub rope_theta: f64,
    /// How they are stretched.
    pub rope_scaling: RopeScaling,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether o has a bias.
    pub o_bias: bool,
    /// Whether the feed-forward has biases.
    pub mlp_bias: bool,
    /// `bos_token_id`, for runners other than ours.
    pub bos: Option<u64>,
    /// `eos_token_id`, one or several.
    pub eos: Vec<u64>,
    /// `pad_token_id`.
    pub pad: Option<u64>,
}

impl DecoderConfig {
    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// Failed for a missing file, broken JSON, a missing or senseless key; unsupported for an architecture or a variant
    /// that the graph does not cover.
    pub fn read(folder: &Path) -> Result<Self, BackendError> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|e| {
            BackendError::failed(format!(
                "could not read {}: {e}; the model must be a folder in the Hugging Face layout",
                path.display()
            ))
        })?;
        let json: Map<String, Value> = serde_json::from_str(&text)
            .map_err(|e| BackendError::failed(format!("{} is not a JSON object: {e}", path.display())))?;
        Self::parse(&Keys { json: &json, place: path.display().to_string() })
    }

    fn parse(keys: &Keys<'_>) -> Result<Self, BackendError> {
        let family = match keys.text("model_type")?.as_deref() {
            Some("qwen3") => Family::Qwen3,
            Some("qwen2") => Family::Qwen2,
            Some("llama") => Family::Llama,
            Some(other) => {
                return Err(keys.unsupported(&format!("model_type {other:?} (known: {})", Family::NAMES.join(", "))));
            }
            None => return Err(keys.broken("model_type", "is missing")),
        };
        match keys.text("hidden_act")?.as_deref() {
            None | Some("silu" | "swish") => {}
            Some(other) => return Err(keys.unsupported(&format!("hidden_act {other:?} (only silu)"))),
        }
        let hidden = keys.size("hidden_size")?;
        let heads = keys.size("num_attention_heads")?;
        let kv_heads = keys.optional_size("num_key_value_heads")?.unwrap_or(heads);
        let head_dim = keys.optional_size("head_dim")?.unwrap_or(hidden / heads);
        if heads % kv_heads != 0 {
            return Err(keys.broken("num_key_value_heads", &format!("{kv_heads} does not divide {heads} heads")));
        }
        if head_dim % 16 != 0 {
            return Err(
                keys.unsupported(&format!("head_dim {head_dim} (the attention operator needs a multiple of 16)"))
            );
        }
        if keys.flag("use_sliding_window")?.unwrap_or(false) {
            return Err(keys.unsupported("use_sliding_window"));
        }
        if keys
            .json
            .get("layer_types")
            .and_then(Value::as_array)
            .is_some_and(|l| l.iter().any(|t| t != "full_attention"))
        {
            return Err(keys.unsupported("layer_types other than full_attention"));
        }
        if keys.json.get("quantization_config").is_some_and(|q| !q.is_null()) {
            return Err(keys.unsupported("quantization_config (export from unquantized weights)"));
        }
        let attention_bias = keys.flag("attention_bias")?.unwrap_or(false);
        let (rope_theta, rope_scaling) = rope(keys)?;
        Ok(DecoderConfig {
            family,
            hidden,
            layers: keys.size("num_hidden_layers")?,
            heads,
            kv_heads,
            head_dim,
            intermediate: keys.size("intermediate_size")?,
            vocab: keys.size("vocab_size")?,
            max_positions: keys.size("max_position_embeddings")?,
            rms_eps: keys.number("rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta,
            rope_scaling,
            tied: keys.flag("tie_word_embeddings")?.unwrap_or(false),
            // Qwen2 has these biases without a key for them; and never one on the output projection.
            qkv_bias: family == Family::Qwen2 || attention_bias,
            o_bias: family != Family::Qwen2 && attention_bias,
            mlp_bias: family == Family::Llama && keys.flag("mlp_bias")?.unwrap_or(false),
            bos: keys.json.get("bos_token_id").and_then(Value::as_u64),
            eos: match keys.json.get("eos_token_id") {
                Some(Value::Array(ids)) => ids.iter().filter_map(Value::as_u64).collect(),
                Some(id) => id.as_u64().into_iter().collect(),
                None => Vec::new(),
            },
            pad: keys.json.get("pad_token_id").and_then(Value::as_u64),
        })
    }

    /// Whether queries and keys are normed per head.
    pub fn qk_norm(&self) -> bool {
        self.family == Family::Qwen3
    }

    /// The rotation frequency of each pair of dimensions, `[head_dim / 2]`, in radians a position: computed in f64 and
    /// rounded to f32 as transformers keeps them.
    pub fn inverse_frequencies(&self) -> Vec<f32> {
        let pairs = self.head_dim / 2;
        (0..pairs)
            .map(|j| {
                let plain = self.rope_theta.powf(-((2 * j) as f64) / self.head_dim as f64);
                let stretched = match self.rope_scaling {
                    RopeScaling::None => plain,
                    RopeScaling::Linear { factor } => plain / factor,
                    RopeScaling::Llama3 { factor, low, high, original } => {
                        let wavelength = 2.0 * std::f64::consts::PI / plain;
                        if wavelength > original / low {
                            plain / factor
                        } else if wavelength < original / high {
                            plain
                        } else {
                            let smooth = (original / wavelength - low) / (high - low);
                            (1.0 - smooth) * plain / factor + smooth * plain
                        }
                    }
                };
                stretched as f32
            })
            .collect()
    }
}

/// Base and stretching, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4).
fn rope(keys: &Keys<'_>) -> Result<(f64, RopeScaling), BackendError> {
    let section = match keys.json.get("rope_parameters").or_else(|| keys.json.get("rope_scaling")) {
        None | Some(Value::Null) => None,
        Some(Value::Object(section)) => Some(section),
        Some(_) => return Err(keys.broken("rope_parameters", "is not an object")),
    };
    let inside = section.map(|json| Keys { json, place: keys.place.clone() });
    let theta = match inside.as_ref().map(|s| s.number("rope_theta")).transpose()?.flatten() {
        Some(theta) => theta,
        // transformers' own default for these three families.
        None => keys.number("rope_theta")?.unwrap_or(10_000.0),
    };
    let Some(section) = inside else { return Ok((theta, RopeScaling::None)) };
    if section.number("partial_rotary_factor")?.is_some_and(|f| f != 1.0) {
        return Err(keys.unsupported("partial_rotary_factor"));
    }
    let kind = match section.text("rope_type")? {
        Some(kind) => Some(kind),
        None => section.text("type")?,
    };
    let need = |key: &str| section.number(key)?.ok_or_else(|| keys.broken(key, "is missing for this rope_type"));
    let scaling = match kind.as_deref() {
        None | Some("default") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear { factor: need("factor")? },
        Some("llama3") => RopeScaling::Llama3 {
            factor: need("factor")?,
            low: need("low_freq_factor")?,
            high: need("high_freq_factor")?,
            original: need("original_max_position_embeddings")?,
        },
        Some(other) => return Err(keys.unsupported(&format!("rope_type {other:?} (known: default, linear, llama3)"))),
    };
    Ok((theta, scaling))
}

/// Typed access to a JSON object whose errors name the file and the key.
struct Keys<'a> {
    json: &'a Map<String, Value>,
    place: String,
}

impl Keys<'_> {
    fn broken(&self, key: &str, what: &str) -> BackendError {
        BackendError::failed(format!("{}: {key} {what}", self.place))
    }
    fn unsupported(&self, what: &str) -> BackendError {
        BackendError::unsupported(format!("{}: the onnxruntime backend does not implement {what}", self.place))
    }
    fn get(&self, key: &str) -> Option<&Value> {
        self.json.get(key).filter(|v| !v.is_null())
    }
    fn text(&self, key: &str) -> Result<Option<String>, BackendError> {
        let text = |v: &Value| v.as_str().map(String::from).ok_or_else(|| self.broken(key, "is not a text"));
        self.get(key).map(text).transpose()
    }
    fn flag(&self, key: &str) -> Result<Option<bool>, BackendError> {
        self.get(key).map(|v| v.as_bool().ok_or_else(|| self.broken(key, "is not true or false"))).transpose()
    }
    fn number(&self, key: &str) -> Result<Option<f64>, BackendError> {
        let number = |v: &Value| {
            let finite = v.as_f64().filter(|x| x.is_finite());
            finite.ok_or_else(|| self.broken(key, "is not a number"))
        };
        self.get(key).map(number).transpose()
    }
    fn optional_size(&self, key: &str) -> Result<Option<usize>, BackendError> {
        let size = |v: &Value| {
            // The bound keeps products of sizes far from overflow; no real model comes near.
            let size = v.as_u64().filter(|n| (1..1 << 28).contains(n));
            size.map(|n| n as usize).ok_or_else(|| self.broken(key, &format!("must be a positive number, not {v}")))
        };
        self.get(key).map(size).transpose()
    }
    fn size(&self, key: &str) -> Result<usize, BackendError> {
        self.optional_size(key)?.ok_or_else(|| self.broken(key, "is missing"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(change: impl FnOnce(&mut Map<String, Value>)) -> Result<DecoderConfig, BackendError> {
        let mut json = serde_json::json!({
            "model_type": "qwen3", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
            "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 100, "max_position_embeddings": 512,
            "rope_theta": 1e6,
        });
        let json = json.as_object_mut().unwrap();
        change(json);
        DecoderConfig::parse(&Keys { json, place: "config.json".into() })
    }

    #[test]
    fn both_spellings_of_the_rope_base_are_read() {
        let old = parse(|_| {}).unwrap();
        let new = parse(|json| {
            json.remove("rope_theta");
            json.insert("rope_parameters".into(), serde_json::json!({"rope_theta": 1e6, "rope_type": "default"}));
        });
        assert_eq!(old.rope_theta, 1e6);
        assert_eq!(old, new.unwrap());
    }

    #[test]
    fn variants_that_are_not_implemented_are_refused_by_name() {
        for (key, value) in [
            ("model_type", serde_json::json!("gemma3")),
            ("hidden_act", serde_json::json!("gelu")),
            ("use_sliding_window", serde_json::json!(true)),
            ("rope_scaling", serde_json::json!({"rope_type": "yarn", "factor": 4.0})),
            ("head_dim", serde_json::json!(20)),
        ] {
            let error = parse(|json| drop(json.insert(key.into(), value))).unwrap_err();
            assert_eq!(error.kind, karat::backend::BackendErrorKind::Unsupported, "{error}");
            assert!(error.message.contains(key) || error.message.contains("yarn"), "{error}");
        }
    }

    #[test]
    fn llama3_frequencies_keep_the_high_and_divide_the_low() {
        let config = parse(|json| {
            let scaling = serde_json::json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
            json.insert("rope_scaling".into(), scaling);
        });
        let (plain, scaled) = (parse(|_| {}).unwrap().inverse_frequencies(), config.unwrap().inverse_frequencies());
        assert_eq!(plain[0], scaled[0]);
        assert!((plain[15] / scaled[15] - 8.0).abs() < 1e-5);
    }
}
