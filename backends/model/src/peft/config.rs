//! `adapter_config.json` written complete, as PEFT writes it; [`karat_backend::peft`] reads it.

use std::collections::BTreeMap;
use std::path::Path;

use karat_backend::BackendError;
use karat_backend::LoraConfig;
use karat_backend::peft::ADAPTER_CONFIG;
use karat_system::fsio;
use serde_json::{Value, json};

/// The seven projections, as [`karat_backend::lora::ALL_LINEAR`] means them: the linear layers of
/// every decoder here.
const LINEAR: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Writes `adapter_config.json`: all fields of PEFT's `LoraConfig` with sorted keys.
///
/// # Errors
/// If the file cannot be written.
pub fn write_adapter_config(config: &LoraConfig, base: &str, folder: &Path) -> Result<(), BackendError> {
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
    let path = folder.join(ADAPTER_CONFIG);
    let fail =
        |e: &dyn std::error::Error| BackendError::failed(format!("{}: could not write it", path.display())).because(e);
    if let Value::Object(ours) = serde_json::to_value(config).map_err(|e| fail(&e))? {
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
    let text = serde_json::to_string_pretty(&fields).map_err(|e| fail(&e))?;
    fsio::write_atomic(&path, text.as_bytes()).map_err(|e| fail(&e))
}

fn number(value: f64) -> Value {
    match value {
        whole if whole.fract() == 0.0 && whole.abs() < 1e15 => json!(whole as i64),
        other => json!(other),
    }
}

#[cfg(test)]
mod tests {
    use karat_backend::peft::read_adapter_config;

    use super::*;

    #[test]
    fn what_is_written_reads_back_the_same() {
        let folder = tempfile::tempdir().unwrap();
        for extra in [
            json!({"lora_alpha": 8}),
            json!({"use_dora": true, "use_rslora": true, "init_lora_weights": "gaussian"}),
            json!({"target_modules": ".*q_proj", "exclude_modules": ["k_proj"], "modules_to_save": ["norm"]}),
            json!({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 1.5}, "lora_alpha": 8, "layers_to_transform": [1]}),
        ] {
            let config: LoraConfig = serde_json::from_value(extra).unwrap();
            write_adapter_config(&config, "a-base", folder.path()).unwrap();
            assert_eq!(read_adapter_config(folder.path()).unwrap(), config);
        }
        let text = std::fs::read_to_string(folder.path().join(ADAPTER_CONFIG)).unwrap();
        assert!(text.contains("\"lora_alpha\": 8,") && text.contains("\"q_proj\": 1.5"), "{text}");
    }
}
