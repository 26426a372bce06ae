//! `adapter_config.json` as PEFT writes it, read strictly: a switch that changes what an adapter
//! means and is not implemented is refused by its name, also one of tomorrow. A wrong merge would
//! look like a result. A key of tomorrow that switches nothing on is passed over with a warning, as
//! PEFT itself does.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::{BackendError, LoraConfig};

/// The file beside an adapter's weights.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";

/// Switches of PEFT 0.21's `LoraConfig` that no backend implements; whatever turns one on is
/// refused.
const VARIANTS: [&str; 20] = [
    "alora_invocation_tokens",
    "arrow_config",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "layers_pattern",
    "loftq_config",
    "lora_bias",
    "lora_ga_config",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
];

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

/// Reads [`ADAPTER_CONFIG`] in `folder`.
///
/// # Errors
/// As [`read_adapter_config_saying`].
pub fn read_adapter_config(folder: &Path) -> Result<LoraConfig, BackendError> {
    read_adapter_config_saying(folder).map(|(config, _)| config)
}

/// Reads [`ADAPTER_CONFIG`] in `folder`, and what its user should know of how it was read.
///
/// # Errors
/// Unsupported, by name, for every variant that is set and not implemented; failed for a file that
/// is missing or broken.
pub fn read_adapter_config_saying(folder: &Path) -> Result<(LoraConfig, Option<String>), BackendError> {
    let path = folder.join(ADAPTER_CONFIG);
    let at = |what: &str| BackendError::failed(format!("{}: {what}", path.display()));
    // A pipe would let its reader wait for ever.
    if std::fs::metadata(&path).is_ok_and(|file| !file.is_file()) {
        return Err(at("a pipe, a device or a folder stands in the place of this file"));
    }
    let text = std::fs::read_to_string(&path)
        .map_err(|e| at("could not read it; an adapter is a folder in the PEFT layout").because(&e))?;
    let raw: Map<String, Value> = serde_json::from_str(&text).map_err(|e| at("not a JSON object").because(&e))?;
    let place = |message: String| format!("{}: {message}", path.display());
    let (config, unknown) = parse(&raw).map_err(|e| BackendError { message: place(e.message), ..e })?;
    let said = (!unknown.is_empty()).then(|| {
        let what = "no key of PEFT 0.21; a value that switches nothing on is passed over, as PEFT does";
        format!("{ADAPTER_CONFIG}: {}: {what}", unknown.join(", "))
    });
    Ok((config, said))
}

/// The configuration, and the keys that nobody knows and that switch nothing on.
fn parse(raw: &Map<String, Value>) -> Result<(LoraConfig, Vec<String>), BackendError> {
    let mut unknown = Vec::new();
    let unsupported = |key: &str, value: &Value| {
        BackendError::unsupported(format!("adapter variant {key} = {value} is not implemented"))
    };
    let mut known = Map::new();
    for (key, value) in raw {
        match key.as_str() {
            "peft_type" if value == "LORA" => {}
            // How `A` was drawn once does not matter for tensors that are read. Others (PiSSA,
            // OLoRA, LoftQ, ...) also change the base weights, so their adapters mean another base.
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
            key if VARIANTS.contains(&key) && unset(value) => {}
            key if VARIANTS.contains(&key) => return Err(unsupported(key, value)),
            key if neutral(value) => unknown.push(key.to_owned()),
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
    config.check()?;
    Ok((config, unknown))
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

/// Whether a key that is not known says nothing: variants are switched on by `true`, a name, a list
/// or a section of their own, and tuned by numbers or "auto" that mean nothing without.
fn neutral(value: &Value) -> bool {
    unset(value) || value.is_number() || value.as_str().is_some_and(|text| text.is_empty() || text == "auto")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BackendErrorKind;

    fn parse(raw: &Map<String, Value>) -> Result<LoraConfig, BackendError> {
        super::parse(raw).map(|(config, _)| config)
    }

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
            ("loftq_config", json!({"loftq_bits": 4})),
            ("velora_config", json!({"rank": 1})),
            ("lora_bias", json!(1)),
            ("layer_replication", json!(0)),
            ("a_variant_of_the_future", json!(true)),
            ("a_variant_of_the_future", json!("fast")),
            ("a_variant_of_the_future", json!({"beta": 1})),
            ("a_variant_of_the_future", json!([1])),
        ] {
            let mut extra = json!({});
            extra[key] = value;
            let error = parse(&raw(extra)).unwrap_err();
            assert_eq!(error.kind, BackendErrorKind::Unsupported, "{key}");
            assert!(error.message.contains(key), "{error}");
        }
    }

    #[test]
    fn a_key_of_the_future_that_switches_nothing_on_is_passed_over_and_named() {
        for value in
            [json!(null), json!(false), json!(0), json!(3), json!(0.5), json!(""), json!("auto"), json!([]), json!({})]
        {
            let folder = tempfile::tempdir().unwrap();
            let write = |raw: &Map<String, Value>| {
                std::fs::write(folder.path().join(ADAPTER_CONFIG), json!(raw).to_string()).unwrap();
                read_adapter_config_saying(folder.path()).unwrap()
            };
            let (plain, nothing) = write(&raw(json!({})));
            assert_eq!(nothing, None);
            let (config, said) = write(&raw(json!({"a_key_of_the_future": value})));
            assert_eq!(config, plain);
            let said = said.unwrap();
            assert!(said.contains("a_key_of_the_future") && said.contains(ADAPTER_CONFIG), "{said}");
        }
    }

    #[test]
    fn a_file_that_is_no_object_is_refused_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        for text in ["null", "[]", "3", "\"LORA\"", "{", ""] {
            std::fs::write(folder.path().join(ADAPTER_CONFIG), text).unwrap();
            let error = read_adapter_config(folder.path()).unwrap_err();
            assert!(error.message.contains("adapter_config.json: not a JSON object"), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_is_said_by_its_key() {
        for (key, value) in [
            ("rank_pattern", json!({"(": 3})),
            ("rank_pattern", json!({"q_proj": 0})),
            ("alpha_pattern", json!({"q_proj": "much"})),
            ("use_dora", json!("yes")),
            ("r", json!(0)),
            ("r", json!(-1)),
            ("target_modules", json!([])),
        ] {
            let mut extra = json!({});
            extra[key] = value;
            let error = parse(&raw(extra)).unwrap_err();
            assert!(error.to_string().contains(key), "{key}: {error}");
        }
    }

    #[test]
    fn what_peft_leaves_out_has_its_defaults() {
        let raw = json!({"peft_type": "LORA", "r": 4, "target_modules": "All-linear"});
        let config = parse(raw.as_object().unwrap()).unwrap();
        assert_eq!((config.lora_alpha, config.lora_dropout, config.use_rslora), (8.0, 0.0, false));
        assert!(config.target_modules.is_all_linear());
    }
}
