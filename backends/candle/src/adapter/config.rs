//! `adapter_config.json` as PEFT writes it: read strictly, written complete.

use std::collections::BTreeMap;
use std::path::Path;

use karat::backend::BackendError;
use karat::train::LoraConfig;
use serde_json::{Map, Value, json};

use crate::files::{at, write_text};
use crate::nn::Result;

pub(super) const CONFIG: &str = "adapter_config.json";

/// The seven projections, as [`karat::train::config::ALL_LINEAR`] means them: the linear layers of every decoder here.
const LINEAR: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

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

pub(super) fn parse(raw: &Map<String, Value>) -> Result<LoraConfig> {
    let unsupported = |key: &str, value: &Value| {
        BackendError::unsupported(format!("adapter variant {key} = {value} is not implemented"))
    };
    let mut known = Map::new();
    for (key, value) in raw {
        match key.as_str() {
            "peft_type" if value == "LORA" => {}
            // How `A` was drawn once does not matter for tensors that are read. Others (PiSSA, OLoRA, LoftQ, ...) also change
            // the base weights, so their adapters mean another base.
            "init_lora_weights" if value.is_null() || value.is_boolean() || value == "orthogonal" => {}
            "bias" if value == "none" => {}
            "layers_pattern" if value == "layers" || *value == json!(["layers"]) => {}
            key if INFORMATION.contains(&key) => {}
            key if LoraConfig::KEYS.contains(&key) => {
                if !value.is_null() {
                    // Alone, so that an error can say which key it is about.
                    let alone = Value::Object(Map::from_iter([(key.to_owned(), value.clone())]));
                    serde_json::from_value::<LoraConfig>(alone).map_err(|e| match key {
                        "init_lora_weights" => unsupported(key, value),
                        _ => BackendError::failed(format!("\"{key}\" must be what PEFT writes there")).because(&e),
                    })?;
                    known.insert(key.to_owned(), value.clone());
                }
            }
            _ if unset(value) => {}
            _ => return Err(unsupported(key, value)),
        }
    }
    if raw.get("peft_type").is_none_or(|kind| kind != "LORA") {
        return Err(unsupported("peft_type", raw.get("peft_type").unwrap_or(&Value::Null)));
    }
    if !known.contains_key("r") || !known.contains_key("target_modules") {
        return Err(BackendError::failed("\"r\" and \"target_modules\" must be given"));
    }
    // Where PEFT's defaults are not ours.
    known.entry("lora_alpha").or_insert(json!(8));
    known.entry("lora_dropout").or_insert(json!(0.0));
    let config: LoraConfig = serde_json::from_value(Value::Object(known))
        .map_err(|e| BackendError::failed("not an adapter's configuration").because(&e))?;
    config.check().map_err(|e| super::refused(&e))?;
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

/// Writes `adapter_config.json`: all fields of PEFT's `LoraConfig` with sorted keys.
///
/// # Errors
/// If the file cannot be written.
pub(super) fn write(config: &LoraConfig, base: &str, folder: &Path) -> Result<()> {
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
    let mut fields: BTreeMap<String, Value> = unset.map(|key| (key.to_owned(), Value::Null)).into();
    fields.extend(off.map(|key| (key.to_owned(), json!(false))));
    let plain = [
        ("alpha_pattern", json!({})),
        ("base_model_name_or_path", json!(base)),
        ("bias", json!("none")),
        ("inference_mode", json!(true)),
        ("init_lora_weights", json!(true)),
        ("loftq_config", json!({})),
        ("megatron_core", json!("megatron.core")),
        ("peft_type", json!("LORA")),
        ("peft_version", json!("0.21.2")),
        ("qalora_group_size", json!(16)),
        ("rank_pattern", json!({})),
        ("task_type", json!("CAUSAL_LM")),
    ];
    fields.extend(plain.map(|(key, value)| (key.to_owned(), value)));
    let fail = |e: serde_json::Error| at(folder, "could not write the adapter's configuration").because(&e);
    if let Value::Object(ours) = serde_json::to_value(config).map_err(fail)? {
        fields.extend(ours);
    }
    // Whole numbers are written as PEFT writes them: its `lora_alpha` is an integer.
    fields.insert("lora_alpha".into(), number(config.lora_alpha));
    let alphas = config.alpha_pattern.iter().map(|(key, alpha)| (key.clone(), number(*alpha)));
    fields.insert("alpha_pattern".into(), Value::Object(alphas.collect()));
    // PEFT replaces the word by the names it stands for when it makes the adapter.
    if config.target_modules.is_all_linear() {
        fields.insert("target_modules".into(), json!(LINEAR));
    }
    let text = serde_json::to_string_pretty(&fields).map_err(fail)?;
    write_text(&folder.join(CONFIG), &text)
}

fn number(value: f64) -> Value {
    match value {
        whole if whole.fract() == 0.0 && whole.abs() < 1e15 => json!(whole as i64),
        other => json!(other),
    }
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
            ("lora_bias", json!(true)),
            ("bias", json!("all")),
            ("bias", json!("lora_only")),
            ("layers_pattern", json!("blocks")),
            ("fan_in_fan_out", json!(true)),
            ("init_lora_weights", json!("pissa")),
            ("init_lora_weights", json!("loftq")),
            ("peft_type", json!("LOHA")),
            ("target_parameters", json!(["mlp.experts"])),
            ("trainable_token_indices", json!([1])),
            ("layer_replication", json!([[0, 1]])),
            ("use_qalora", json!(true)),
            ("kasa_config", json!({"beta": 1})),
            ("ensure_weight_tying", json!(true)),
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
    fn what_is_written_reads_back_the_same() {
        let folder = tempfile::tempdir().unwrap();
        for extra in [
            json!({}),
            json!({"use_dora": true, "use_rslora": true, "init_lora_weights": "gaussian"}),
            json!({"target_modules": ".*q_proj", "exclude_modules": ["k_proj"], "modules_to_save": ["norm"]}),
            json!({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 1.5}, "layers_to_transform": [1]}),
        ] {
            let config = parse(&raw(extra)).unwrap();
            write(&config, "a-base", folder.path()).unwrap();
            assert_eq!(read_config(folder.path()).unwrap(), config);
        }
        let text = std::fs::read_to_string(folder.path().join(CONFIG)).unwrap();
        assert!(text.contains("\"lora_alpha\": 8,") && text.contains("\"q_proj\": 1.5"), "{text}");
    }

    #[test]
    fn what_peft_leaves_out_has_its_defaults() {
        let raw = json!({"peft_type": "LORA", "r": 4, "target_modules": "All-linear"});
        let config = parse(raw.as_object().unwrap()).unwrap();
        assert_eq!((config.lora_alpha, config.lora_dropout, config.use_rslora), (8.0, 0.0, false));
        assert!(config.target_modules.is_all_linear());
    }
}
