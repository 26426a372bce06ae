//! What `adapter_config.json` says, read strictly under PEFT's names.
//!
//! PEFT's configuration has many switches that change what an adapter means. Those that cannot matter here are listed;
//! any other key must be off, or the adapter is refused by that key's name. A wrong merge would look like a result.

use std::path::Path;

use karat::backend::BackendError;
use regex::Regex;
use serde_json::{Map, Value};

/// Keys that do not change what the stored tensors mean at inference.
const INERT: [&str; 16] = [
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
];
/// Keys that are read below.
const READ: [&str; 8] =
    ["alpha_pattern", "lora_alpha", "modules_to_save", "peft_type", "r", "rank_pattern", "use_dora", "use_rslora"];

/// The part of an adapter's configuration that decides its effect.
#[derive(Debug)]
pub struct AdapterConfig {
    rank: usize,
    alpha: f64,
    rank_pattern: Vec<(Regex, f64)>,
    alpha_pattern: Vec<(Regex, f64)>,
    rslora: bool,
    /// Weight-decomposed (arXiv 2402.09353): every module also has a magnitude.
    pub dora: bool,
    /// Names listed in `target_modules`; none if it is a pattern or `all-linear`.
    pub targets: Vec<String>,
    /// Modules whose weights the adapter brings whole.
    pub modules_to_save: Vec<String>,
}

impl AdapterConfig {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// Unsupported for a variant of LoRA that is not implemented, failed for a broken or missing file.
    pub fn read(path: &Path) -> Result<Self, BackendError> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            BackendError::failed(format!(
                "could not read {}: {e}; the adapter must be a folder in the PEFT layout",
                path.display()
            ))
        })?;
        let config: Map<String, Value> = serde_json::from_str(&text)
            .map_err(|e| BackendError::failed(format!("{} is not a JSON object: {e}", path.display())))?;
        Self::parse(&config, path)
    }

    fn parse(config: &Map<String, Value>, path: &Path) -> Result<Self, BackendError> {
        let place = path.display();
        let unsupported = |what: String| {
            BackendError::unsupported(format!("{place}: the onnxruntime backend does not implement {what}"))
        };
        let broken = |what: String| BackendError::failed(format!("{place}: {what}"));
        if config.get("peft_type").and_then(Value::as_str) != Some("LORA") {
            let found = config.get("peft_type").unwrap_or(&Value::Null);
            return Err(unsupported(format!("peft_type {found}; only LORA")));
        }
        match config.get("init_lora_weights") {
            None | Some(Value::Bool(_) | Value::Null) => {}
            Some(Value::String(how)) if how == "gaussian" || how == "orthogonal" => {}
            // PiSSA, OLoRA and the like change the base weights too.
            Some(other) => return Err(unsupported(format!("init_lora_weights {other}"))),
        }
        for (key, value) in config {
            let known = INERT.contains(&key.as_str()) || READ.contains(&key.as_str());
            if !known && !is_off(key, value) {
                return Err(unsupported(format!("{key} = {value}")));
            }
        }
        let positive = |key: &str, value: Option<&Value>| {
            let value = value.and_then(Value::as_f64).filter(|x| x.is_finite() && *x > 0.0);
            value.ok_or_else(|| broken(format!("{key} must be a positive number")))
        };
        let flag = |key: &str| match config.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| broken(format!("{key} must be true or false"))),
        };
        let names = |key: &str| match config.get(key) {
            None | Some(Value::Null | Value::String(_)) => Ok(Vec::new()),
            Some(Value::Array(names)) => {
                let name = |v: &Value| v.as_str().map(String::from);
                let names: Option<Vec<_>> = names.iter().map(name).collect();
                names.ok_or_else(|| broken(format!("{key} must be a list of names")))
            }
            Some(_) => Err(broken(format!("{key} must be a list of names"))),
        };
        // PEFT's rule: a key fits the end of a module's path from a dot on, and it is a pattern.
        let patterns = |key: &str| match config.get(key) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Object(map)) => map
                .iter()
                .map(|(pattern, value)| {
                    let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$"));
                    let regex = regex.map_err(|_| broken(format!("{key}: {pattern:?} is no pattern")))?;
                    Ok((regex, positive(key, Some(value))?))
                })
                .collect::<Result<_, BackendError>>(),
            Some(_) => Err(broken(format!("{key} must be an object"))),
        };
        let rank = positive("r", config.get("r"))?;
        Ok(AdapterConfig {
            rank: rank as usize,
            alpha: positive("lora_alpha", config.get("lora_alpha"))?,
            rank_pattern: patterns("rank_pattern")?,
            alpha_pattern: patterns("alpha_pattern")?,
            rslora: flag("use_rslora")?,
            dora: flag("use_dora")?,
            targets: names("target_modules")?,
            modules_to_save: names("modules_to_save")?,
        })
    }

    /// The rank that the tensors of `module` must have.
    pub fn rank(&self, module: &str) -> usize {
        look_up(&self.rank_pattern, module).map_or(self.rank, |rank| rank as usize)
    }

    /// The factor on `B A` of `module`: `alpha / r`, with rsLoRA `alpha / sqrt(r)` (arXiv 2312.03732).
    pub fn scale(&self, module: &str) -> f64 {
        let rank = self.rank(module) as f64;
        look_up(&self.alpha_pattern, module).unwrap_or(self.alpha) / if self.rslora { rank.sqrt() } else { rank }
    }
}

fn look_up(patterns: &[(Regex, f64)], module: &str) -> Option<f64> {
    patterns.iter().find(|(pattern, _)| pattern.is_match(module)).map(|(_, value)| *value)
}

fn is_off(key: &str, value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        Value::String(text) => text.is_empty() || (key == "bias" && text == "none"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(change: impl FnOnce(&mut Map<String, Value>)) -> Result<AdapterConfig, BackendError> {
        let mut config = json!({"peft_type": "LORA", "r": 8, "lora_alpha": 32, "bias": "none",
            "use_dora": false, "loftq_config": {}, "init_lora_weights": true, "target_modules": ["q_proj"]});
        let config = config.as_object_mut().unwrap();
        change(config);
        AdapterConfig::parse(config, Path::new("adapter_config.json"))
    }

    const Q: &str = "model.layers.3.self_attn.q_proj";

    #[test]
    fn the_scale_is_pefts() {
        assert_eq!(parse(|_| {}).unwrap().scale(Q), 4.0);
        let rank_stabilized = parse(|c| drop(c.insert("use_rslora".into(), true.into()))).unwrap();
        assert!((rank_stabilized.scale(Q) - 32.0 / 8f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn patterns_fit_the_end_of_a_path_from_a_dot_on() {
        let config = parse(|c| {
            c.insert("rank_pattern".into(), json!({r"layers\.3\.self_attn\.q_proj": 2, "k_proj": 16}));
            c.insert("alpha_pattern".into(), json!({"v_proj": 8}));
        })
        .unwrap();
        assert_eq!((config.rank(Q), config.scale(Q)), (2, 16.0));
        assert_eq!(config.rank("model.layers.13.self_attn.q_proj"), 8);
        assert_eq!(config.rank("model.layers.0.self_attn.k_proj"), 16);
        assert_eq!(config.rank("model.layers.0.self_attn.other_k_proj"), 8);
        assert_eq!(config.scale("model.layers.0.self_attn.v_proj"), 1.0);
    }

    #[test]
    fn variants_are_refused_by_the_name_of_their_key() {
        for (key, value) in [
            ("bias", json!("all")),
            ("lora_bias", json!(true)),
            ("fan_in_fan_out", json!(true)),
            ("init_lora_weights", json!("pissa")),
            ("peft_type", json!("ADALORA")),
            ("a_key_of_tomorrow", json!(3)),
            ("rank_pattern", json!({"(": 3})),
            ("alpha_pattern", json!({"q_proj": 0})),
            ("use_dora", json!("yes")),
            ("r", json!(0)),
        ] {
            let error = parse(|c| drop(c.insert(key.into(), value))).unwrap_err();
            assert!(error.message.contains(key), "{error}");
        }
    }
}
