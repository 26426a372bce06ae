//! `config.json` of a Hugging Face model folder, as transformers 4 and 5 write it.
//!
//! What a key asks for is either done or refused by name; nothing that changes numbers is passed over.

use std::path::Path;

use karat::backend::BackendError;
use serde_json::{Map, Value};

use crate::nn::Result;
use crate::ops::attention::Heads;

/// `model_type`s this backend implements.
pub const FAMILIES: [&str; 3] = ["qwen3", "qwen2", "llama"];

/// A decoder's shape and constants.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// `qwen3`, `qwen2` or `llama`.
    pub model_type: String,
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
    /// Base of the rotary embedding.
    pub rope_theta: f64,
    /// The output projection is the embedding.
    pub tied: bool,
    /// The id that pads, if `config.json` names one. Its embedding gets no gradient from where it is read, as PyTorch's
    /// `nn.Embedding` with a `padding_idx` has it, which transformers makes of `pad_token_id`.
    pub pad: Option<u32>,
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
    /// The file as it is, for writing it again.
    pub raw: Map<String, Value>,
}

impl ModelConfig {
    /// Reads `config.json` in `folder`.
    ///
    /// # Errors
    /// Failed for a missing or broken file or key; Unsupported, by name, for what is not implemented.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path)
            .map_err(|e| BackendError::failed(format!("{}: could not read it", path.display())).because(&e))?;
        let raw = serde_json::from_str(&text)
            .map_err(|e| BackendError::failed(format!("{}: not a JSON object", path.display())).because(&e))?;
        Self::parse(raw).map_err(|e| BackendError { message: format!("{}: {}", path.display(), e.message), ..e })
    }

    /// Interprets the keys of a `config.json`.
    ///
    /// # Errors
    /// As [`ModelConfig::read`].
    pub fn parse(raw: Map<String, Value>) -> Result<Self> {
        let keys = Keys(&raw);
        let model_type = keys.text("model_type")?.unwrap_or_default().to_owned();
        if !FAMILIES.contains(&model_type.as_str()) {
            return Err(BackendError::unsupported(format!(
                "model_type \"{model_type}\" is not implemented (implemented: {})",
                FAMILIES.join(", ")
            )));
        }
        keys.refuse_unimplemented()?;
        let qwen3 = model_type == "qwen3";
        let hidden_size = keys.positive("hidden_size")?;
        let queries = keys.positive("num_attention_heads")?;
        let group_keys = keys.count("num_key_value_heads")?.unwrap_or(queries);
        let dim = match keys.count("head_dim")? {
            Some(dim) => dim,
            None if qwen3 => 128,
            None => hidden_size / queries,
        };
        if dim == 0 || dim % 2 != 0 || group_keys == 0 || queries % group_keys != 0 {
            return Err(BackendError::failed(format!(
                "{queries} attention heads, {group_keys} key-value heads and head_dim {dim} do not fit together"
            )));
        }
        let attention_bias = keys.flag("attention_bias")?.unwrap_or(false);
        Ok(ModelConfig {
            hidden_size,
            intermediate_size: keys.positive("intermediate_size")?,
            layers: keys.positive("num_hidden_layers")?,
            heads: Heads { queries, keys: group_keys, dim },
            vocab_size: keys.positive("vocab_size")?,
            max_positions: keys.count("max_position_embeddings")?.unwrap_or(if model_type == "llama" {
                2048
            } else {
                32768
            }),
            rms_norm_eps: keys.number("rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta: keys.rope_theta()?,
            tied: keys.flag("tie_word_embeddings")?.unwrap_or(false),
            pad: keys.pad(keys.positive("vocab_size")?),
            qk_norm: qwen3,
            qkv_bias: model_type == "qwen2" || attention_bias,
            o_bias: model_type != "qwen2" && attention_bias,
            mlp_bias: model_type == "llama" && keys.flag("mlp_bias")?.unwrap_or(false),
            initializer_range: keys.number("initializer_range")?.unwrap_or(0.02),
            model_type,
            raw,
        })
    }
}

struct Keys<'a>(&'a Map<String, Value>);

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }
    fn wrong(key: &str, want: &str, got: &Value) -> BackendError {
        BackendError::failed(format!("\"{key}\" must be {want}, not {got}"))
    }
    fn text(&self, key: &str) -> Result<Option<&str>> {
        self.get(key).map(|v| v.as_str().ok_or_else(|| Self::wrong(key, "a string", v))).transpose()
    }
    fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.get(key).map(|v| v.as_bool().ok_or_else(|| Self::wrong(key, "true or false", v))).transpose()
    }
    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key).map(|v| v.as_f64().ok_or_else(|| Self::wrong(key, "a number", v))).transpose()
    }
    fn count(&self, key: &str) -> Result<Option<usize>> {
        let whole = |v: &Value| v.as_u64().map(|n| n as usize).ok_or_else(|| Self::wrong(key, "a whole number", v));
        self.get(key).map(whole).transpose()
    }
    fn positive(&self, key: &str) -> Result<usize> {
        match self.count(key)? {
            Some(n) if n > 0 => Ok(n),
            Some(_) => Err(BackendError::failed(format!("\"{key}\" must not be 0"))),
            None => Err(BackendError::failed(format!("\"{key}\" is missing"))),
        }
    }

    /// `pad_token_id`; a negative one counts from the end, as in PyTorch.
    fn pad(&self, vocab: usize) -> Option<u32> {
        let id = self.get("pad_token_id")?.as_i64()?;
        let id = if id < 0 { id + i64::try_from(vocab).ok()? } else { id };
        u32::try_from(id).ok().filter(|id| (*id as usize) < vocab)
    }

    /// `rope_parameters.rope_theta` (transformers 5) or `rope_theta` (4).
    fn rope_theta(&self) -> Result<f64> {
        if let Some(parameters) = self.get("rope_parameters") {
            let Some(map) = parameters.as_object() else {
                return Err(Self::wrong("rope_parameters", "an object", parameters));
            };
            if let Some(nested) = map.iter().find(|(_, v)| v.is_object()) {
                return Err(BackendError::unsupported(format!(
                    "rope_parameters for each kind of layer (\"{}\") are not implemented",
                    nested.0
                )));
            }
            if let Some(theta) = Keys(map).number("rope_theta")? {
                return Ok(theta);
            }
        }
        Ok(self.number("rope_theta")?.unwrap_or(10_000.0))
    }

    fn refuse_unimplemented(&self) -> Result<()> {
        let refuse = |what: String| Err(BackendError::unsupported(format!("{what} is not implemented")));
        for key in ["rope_scaling", "rope_parameters"] {
            let Some(rope) = self.get(key).and_then(Value::as_object) else { continue };
            let kind = ["rope_type", "type"].iter().find_map(|k| rope.get(*k)).and_then(Value::as_str);
            if let Some(kind) = kind.filter(|k| *k != "default") {
                return refuse(format!("rope type \"{kind}\" ({key})"));
            }
            if rope.get("partial_rotary_factor").and_then(Value::as_f64).is_some_and(|f| f != 1.0) {
                return refuse(format!("partial_rotary_factor ({key})"));
            }
        }
        if self.number("partial_rotary_factor")?.is_some_and(|f| f != 1.0) {
            return refuse("partial_rotary_factor".into());
        }
        match self.text("hidden_act")? {
            None | Some("silu" | "swish") => {}
            Some(other) => return refuse(format!("hidden_act \"{other}\"")),
        }
        if self.flag("use_sliding_window")? == Some(true) {
            return refuse("use_sliding_window".into());
        }
        let kinds = self.get("layer_types").and_then(Value::as_array);
        if let Some(kind) = kinds.into_iter().flatten().find(|k| k.as_str() != Some("full_attention")) {
            return refuse(format!("layer_types with {kind}"));
        }
        if self.number("attention_dropout")?.is_some_and(|p| p != 0.0) {
            return refuse("attention_dropout other than 0".into());
        }
        if self.number("pretraining_tp")?.is_some_and(|n| n != 1.0) {
            return refuse("pretraining_tp other than 1".into());
        }
        for key in ["quantization_config", "num_experts", "num_local_experts"] {
            if self.get(key).is_some() {
                return refuse(format!("\"{key}\""));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use karat::backend::BackendErrorKind;
    use serde_json::json;

    fn parse(extra: Value) -> Result<ModelConfig> {
        let mut raw = json!({
            "model_type": "qwen3", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100
        });
        for (k, v) in extra.as_object().unwrap() {
            raw[k] = v.clone();
        }
        ModelConfig::parse(raw.as_object().unwrap().clone())
    }

    #[test]
    fn both_ways_of_writing_rope_theta_are_read() {
        assert_eq!(parse(json!({"rope_theta": 5e5, "rope_scaling": null})).unwrap().rope_theta, 5e5);
        let v5 = json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}});
        assert_eq!(parse(v5).unwrap().rope_theta, 1e6);
    }

    #[test]
    fn families_differ_as_transformers_has_them() {
        let qwen3 = parse(json!({})).unwrap();
        assert!(qwen3.qk_norm && !qwen3.qkv_bias && qwen3.heads.dim == 128);
        let qwen2 = parse(json!({"model_type": "qwen2", "sliding_window": 4096})).unwrap();
        assert!(!qwen2.qk_norm && qwen2.qkv_bias && !qwen2.o_bias && qwen2.heads.dim == 16);
        let llama = parse(json!({"model_type": "llama", "attention_bias": true, "mlp_bias": true})).unwrap();
        assert!(llama.qkv_bias && llama.o_bias && llama.mlp_bias);
    }

    #[test]
    fn what_is_not_implemented_is_refused_by_name() {
        for (extra, name) in [
            (json!({"model_type": "qwen3_moe"}), "qwen3_moe"),
            (json!({"rope_scaling": {"type": "yarn", "factor": 4.0}}), "yarn"),
            (json!({"rope_parameters": {"rope_type": "llama3"}}), "llama3"),
            (json!({"hidden_act": "gelu"}), "gelu"),
            (json!({"use_sliding_window": true}), "use_sliding_window"),
            (json!({"layer_types": ["full_attention", "sliding_attention"]}), "sliding_attention"),
            (json!({"quantization_config": {}}), "quantization_config"),
            (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        ] {
            let error = parse(extra).unwrap_err();
            assert_eq!(error.kind, BackendErrorKind::Unsupported);
            assert!(error.message.contains(name), "{error}");
        }
        let error = parse(json!({"hidden_size": "64"})).unwrap_err();
        assert!(error.message.contains("hidden_size") && error.message.contains("\"64\""), "{error}");
    }
}
