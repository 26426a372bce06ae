//! LoRA adapters in the PEFT layout: read strictly, attached to a model, drawn anew, written back.

use std::collections::BTreeMap;
use std::path::Path;

use karat::backend::BackendError;
use karat::train::LoraConfig;
use serde_json::{Map, Value, json};

use crate::files::{TensorFile, at, write_tensors, write_text};
use crate::linear::{Linear, Lora};
use crate::model::Decoder;
use crate::nn::{self, Result};
use crate::rng::{Philox, name_key};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// Keys of `adapter_config.json` that say something for people and change no number.
const INFORMATION: [&str; 9] = [
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
];

/// Reads `adapter_config.json` in `folder`.
///
/// # Errors
/// Unsupported, by name, for every variant that is set and not implemented.
pub fn read_config(folder: &Path) -> Result<LoraConfig> {
    let path = folder.join(CONFIG);
    let text = std::fs::read_to_string(&path).map_err(|e| at(&path, "could not read it").because(&e))?;
    let raw: Map<String, Value> =
        serde_json::from_str(&text).map_err(|e| at(&path, "not a JSON object").because(&e))?;
    parse(&raw).map_err(|e| BackendError { message: format!("{}: {}", path.display(), e.message), ..e })
}

fn parse(raw: &Map<String, Value>) -> Result<LoraConfig> {
    let unsupported = |key: &str, value: &Value| {
        BackendError::unsupported(format!("adapter variant {key} = {value} is not implemented"))
    };
    let wrong = |key: &str, want: &str| BackendError::failed(format!("\"{key}\" must be {want}"));
    let mut config = LoraConfig { target_modules: Vec::new(), ..LoraConfig::default() };
    let mut has_rank = false;
    for (key, value) in raw {
        match key.as_str() {
            "peft_type" if value == "LORA" => {}
            "r" => {
                has_rank = true;
                config.r =
                    value.as_u64().filter(|r| *r > 0).ok_or_else(|| wrong(key, "a whole number above 0"))? as usize;
            }
            "lora_alpha" => config.lora_alpha = value.as_f64().ok_or_else(|| wrong(key, "a number"))?,
            "lora_dropout" => config.lora_dropout = value.as_f64().ok_or_else(|| wrong(key, "a number"))?,
            "use_rslora" => {
                config.use_rslora =
                    value.is_null().then_some(false).or(value.as_bool()).ok_or_else(|| wrong(key, "true or false"))?;
            }
            "target_modules" => config.target_modules = targets(value).ok_or_else(|| unsupported(key, value))?,
            "bias" if value == "none" => {}
            // Others (PiSSA, OLoRA, LoftQ, ...) also change the base weights, so their adapters mean another base.
            "init_lora_weights" if value.is_boolean() || value == "gaussian" || value == "orthogonal" => {}
            key if INFORMATION.contains(&key) => {}
            _ if unset(value) => {}
            _ => return Err(unsupported(key, value)),
        }
    }
    if raw.get("peft_type").is_none_or(|kind| kind != "LORA") {
        return Err(unsupported("peft_type", raw.get("peft_type").unwrap_or(&Value::Null)));
    }
    if !has_rank || config.target_modules.is_empty() {
        return Err(BackendError::failed("\"r\" and \"target_modules\" must be given"));
    }
    Ok(config)
}

fn unset(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        _ => false,
    }
}

/// A list of names, or PEFT's word for all linear layers but the head. A pattern (any other string) is not read.
fn targets(value: &Value) -> Option<Vec<String>> {
    if value == "all-linear" {
        return Some(LoraConfig::default().target_modules);
    }
    value.as_array()?.iter().map(|v| v.as_str().map(String::from)).collect()
}

/// Checks a configuration against the model and lists, for each layer, which of its linears are targeted.
fn check(model: &Decoder, config: &LoraConfig) -> Result<()> {
    for target in &config.target_modules {
        let last = target.rsplit('.').next().unwrap_or_default();
        if last == "lm_head" && model.config.tied {
            return Err(BackendError::unsupported(
                "target module lm_head: the head is tied to the embedding, an adapter on it would change both; \
                 leave it out",
            ));
        }
        if ["lm_head", "embed_tokens"].contains(&last) {
            return Err(BackendError::unsupported(format!("an adapter on target module {target} is not implemented")));
        }
        let modules = model.layers.iter().flat_map(|layer| layer.linears());
        if !modules.into_iter().any(|linear| matches(&linear.name, target)) {
            return Err(BackendError::failed(format!("target module {target} is not a linear layer of this model")));
        }
    }
    if config.r == 0 || config.target_modules.is_empty() || !(0.0..1.0).contains(&config.lora_dropout) {
        return Err(BackendError::failed(format!(
            "an adapter needs r > 0 (is {}), target modules (are {}) and 0 <= lora_dropout < 1 (is {})",
            config.r,
            config.target_modules.len(),
            config.lora_dropout
        )));
    }
    Ok(())
}

fn matches(module: &str, target: &str) -> bool {
    module == target || module.strip_suffix(target).is_some_and(|rest| rest.ends_with('.'))
}

/// Puts an adapter on every targeted module, its tensors from `get(name, shape)`.
fn attach(
    model: &mut Decoder,
    config: &LoraConfig,
    mut get: impl FnMut(&str, &[usize]) -> Result<crate::nn::Tensor>,
) -> Result<()> {
    check(model, config)?;
    let mut build = |linear: &Linear, module: u32| -> Result<Lora> {
        let (n_in, n_out) = linear.widths();
        let name = |part: &str| format!("base_model.model.{}.{part}.weight", linear.name);
        let (a_name, b_name) = (name("lora_A"), name("lora_B"));
        let (a, b) = (get(&a_name, &[config.r, n_in])?, get(&b_name, &[n_out, config.r])?);
        let (scale, dropout) = (config.scale() as f32, config.lora_dropout);
        Ok(Lora { a, b, scale, dropout, module, a_name, b_name })
    };
    for (i, layer) in model.layers.iter_mut().enumerate() {
        for (j, linear) in layer.linears_mut().into_iter().enumerate() {
            linear.lora = match config.target_modules.iter().any(|t| matches(&linear.name, t)) {
                true => Some(build(linear, (i * 7 + j) as u32)?),
                false => None,
            };
        }
    }
    Ok(())
}

/// Puts the adapter of `folder` on the model, under `config` (which may differ from the folder's in its dropout).
///
/// # Errors
/// For missing, misshapen or stray tensors, by name.
pub fn load(model: &mut Decoder, config: &LoraConfig, folder: &Path) -> Result<()> {
    let file = TensorFile::open(&folder.join(WEIGHTS))?;
    attach(model, config, |name, shape| file.read(name, shape))?;
    let known = model.adapter_tensors();
    match file.names().into_iter().find(|name| !known.contains_key(name)) {
        Some(name) => Err(at(file.path(), format!("tensor {name} belongs to no target module of {CONFIG}"))),
        None => Ok(()),
    }
}

/// Draws a new adapter: `A` from `U(-1/sqrt(in), 1/sqrt(in))` (Kaiming with `a = sqrt(5)`, PEFT's default), `B` zero.
/// Each tensor is a function of the seed and its name.
///
/// # Errors
/// If the configuration does not fit the model.
pub fn draw(model: &mut Decoder, config: &LoraConfig, seed: u64) -> Result<()> {
    let generator = Philox::new(seed);
    attach(model, config, |name, shape| {
        if name.ends_with("lora_B.weight") {
            return nn::zeros(shape);
        }
        let (key, bound) = (name_key(name), 1.0 / (shape[1] as f64).sqrt());
        let draw = |i: usize| (generator.uniform(i as u64, key as u32, (key >> 32) as u32) * 2.0 - 1.0) * bound;
        nn::tensor((0..shape[0] * shape[1]).map(|i| draw(i) as f32).collect(), shape)
    })
}

/// Writes the adapter in the PEFT layout: all fields of its configuration with sorted keys, and the tensors.
///
/// # Errors
/// If a file cannot be written.
pub fn save(model: &Decoder, config: &LoraConfig, base: &str, folder: &Path) -> Result<()> {
    write_tensors(&folder.join(WEIGHTS), &model.adapter_tensors())?;
    // Whole numbers are written as PEFT writes them: its `lora_alpha` is an integer.
    let alpha = match config.lora_alpha {
        whole if whole.fract() == 0.0 && whole.abs() < 1e15 => json!(whole as i64),
        other => json!(other),
    };
    let unset = [
        "alora_invocation_tokens",
        "arrow_config",
        "auto_mapping",
        "corda_config",
        "eva_config",
        "exclude_modules",
        "kasa_config",
        "layer_replication",
        "layers_pattern",
        "layers_to_transform",
        "lora_ga_config",
        "megatron_config",
        "modules_to_save",
        "monteclora_config",
        "revision",
        "target_parameters",
        "trainable_token_indices",
        "use_bdlora",
        "velora_config",
    ];
    let off = ["ensure_weight_tying", "fan_in_fan_out", "lora_bias", "use_dora", "use_qalora"];
    let mut fields: BTreeMap<&str, Value> = unset.map(|key| (key, Value::Null)).into();
    fields.extend(off.map(|key| (key, json!(false))));
    fields.extend([
        ("alpha_pattern", json!({})),
        ("base_model_name_or_path", json!(base)),
        ("bias", json!("none")),
        ("inference_mode", json!(true)),
        ("init_lora_weights", json!(true)),
        ("loftq_config", json!({})),
        ("lora_alpha", alpha),
        ("lora_dropout", json!(config.lora_dropout)),
        ("megatron_core", json!("megatron.core")),
        ("peft_type", json!("LORA")),
        ("peft_version", json!("0.21.2")),
        ("qalora_group_size", json!(16)),
        ("r", json!(config.r)),
        ("rank_pattern", json!({})),
        ("target_modules", json!(config.target_modules)),
        ("task_type", json!("CAUSAL_LM")),
        ("use_rslora", json!(config.use_rslora)),
    ]);
    let text = serde_json::to_string_pretty(&fields)
        .map_err(|e| at(folder, "could not write the adapter's configuration").because(&e))?;
    write_text(&folder.join(CONFIG), &text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use karat::backend::BackendErrorKind;

    fn raw(extra: Value) -> Map<String, Value> {
        let mut raw = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"],
            "use_dora": false, "rank_pattern": {}, "modules_to_save": null, "lora_dropout": 0.0});
        for (k, v) in extra.as_object().unwrap() {
            raw[k] = v.clone();
        }
        raw.as_object().unwrap().clone()
    }

    #[test]
    fn variants_that_are_not_implemented_are_refused_by_name() {
        assert_eq!(parse(&raw(json!({}))).unwrap().r, 4);
        for (key, value) in [
            ("use_dora", json!(true)),
            ("rank_pattern", json!({"q_proj": 2})),
            ("alpha_pattern", json!({"q_proj": 2})),
            ("modules_to_save", json!(["lm_head"])),
            ("lora_bias", json!(true)),
            ("bias", json!("all")),
            ("layers_to_transform", json!([1])),
            ("fan_in_fan_out", json!(true)),
            ("init_lora_weights", json!("pissa")),
            ("peft_type", json!("LOHA")),
            ("target_modules", json!(".*_proj")),
            ("a_variant_of_the_future", json!(3)),
        ] {
            let mut extra = json!({});
            extra[key] = value;
            let error = parse(&raw(extra)).unwrap_err();
            assert_eq!(error.kind, BackendErrorKind::Unsupported, "{key}");
            assert!(error.message.contains(key), "{error}");
        }
    }

    #[test]
    fn targets_match_whole_names_or_the_end_of_a_path() {
        assert!(matches("model.layers.0.self_attn.q_proj", "q_proj"));
        assert!(matches("model.layers.0.self_attn.q_proj", "self_attn.q_proj"));
        assert!(matches("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj"));
        assert!(!matches("model.layers.0.self_attn.q_proj", "proj"));
    }
}
