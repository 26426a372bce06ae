//! Configurations that no model can have, and files that do not fit them: refused by their key, and
//! before anything is allocated for what they claim.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod drawn;

use std::path::Path;

use karat_backend::BackendErrorKind;
use karat_model::checkpoint::CheckpointLayout;
use karat_model::{ModelConfig, Supports};
use serde_json::{Map, Value, json};

fn base(family: &str) -> Map<String, Value> {
    let config = json!({
        "model_type": family, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 11, "max_position_embeddings": 32, "rms_norm_eps": 1e-6,
        "hidden_act": "silu", "rope_theta": 10000.0, "tie_word_embeddings": false, "initializer_range": 0.02,
        "attention_bias": false, "attention_dropout": 0.0, "use_sliding_window": false, "bos_token_id": 1,
        "eos_token_id": [2, 3], "pad_token_id": 0, "layer_types": ["full_attention", "full_attention"],
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "beta_fast": 32.0,
            "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 0.5, "truncate": true, "attention_factor": null},
        "partial_rotary_factor": 1.0, "pretraining_tp": 1, "mlp_bias": false, "quantization_config": null,
        "architectures": ["ForCausalLM"], "dtype": "bfloat16", "torch_dtype": "bfloat16", "transformers_version": "5.24.0",
    });
    config.as_object().unwrap().clone()
}

/// A value of every wrong kind.
fn hostile() -> Vec<Value> {
    let mut all =
        vec![json!(null), json!(true), json!(false), json!(""), json!("16"), json!("NaN"), json!([]), json!({})];
    all.extend([json!([1]), json!(["2"]), json!({"a": {"b": 1}}), json!([null]), json!("\u{7}\u{202e}")]);
    all.extend([json!(0), json!(-1), json!(1), json!(2), json!(3), json!(7), json!(1e12 as u64), json!(u64::MAX)]);
    all.extend([json!(i64::MIN), json!(0.0), json!(-0.5), json!(0.5), json!(1e-300), json!(1e30), json!(-1e30)]);
    all.extend([json!(f64::MAX), json!(16.5), json!(1.0), json!(1e-45)]);
    all
}

/// What holds of every configuration that is accepted: all of it can be computed with.
fn sound(config: &ModelConfig, how: &str) {
    let eps = config.rms_norm_eps as f32;
    assert!(eps.is_normal() && eps > 0.0 && eps <= 0.1, "{how}");
    let h = config.heads;
    assert!(
        h.queries > 0 && h.keys > 0 && h.queries.is_multiple_of(h.keys) && h.dim > 0 && h.dim.is_multiple_of(2),
        "{how}"
    );
    for size in [config.hidden_size, config.intermediate_size, config.layers, config.vocab_size, config.max_positions] {
        assert!(size > 0 && size < 1 << 28, "{how}");
    }
    if h.dim < 1 << 20 {
        let frequencies = config.rope.inverse_frequencies(h.dim);
        assert!(frequencies.iter().all(|f| f.is_finite() && *f >= 0.0), "{how}: {frequencies:?}");
        let (cos, sin) = config.rope.tables(h.dim, 2);
        assert!(cos.iter().chain(&sin).all(|x| x.is_finite()), "{how}");
    }
    let factor = config.rope.attention_factor();
    assert!(factor.is_finite() && factor > 0.0, "{how}: {factor}");
    assert!(config.pad.is_none_or(|id| (id as usize) < config.vocab_size), "{how}");
    assert!((0.0..=1.0).contains(&config.initializer_range), "{how}");
}

#[test]
fn a_key_that_changes_no_number_is_of_its_type_or_refused_as_in_transformers() {
    for (key, wrong) in [
        ("architectures", json!({})),
        ("architectures", json!("Qwen3ForCausalLM")),
        ("architectures", json!([1e19])),
        ("dtype", json!(1e30)),
        ("torch_dtype", json!(["float32"])),
        ("transformers_version", json!(5.24)),
        ("use_cache", json!("yes")),
    ] {
        let mut config = base("qwen3");
        config.insert(key.into(), wrong.clone());
        let error = ModelConfig::parse(config.clone()).unwrap_err();
        assert!(error.message.contains(key), "{wrong}: {error}");
        config.remove(key);
        ModelConfig::parse(config).unwrap();
    }
}

#[test]
fn whatever_a_key_holds_the_configuration_is_sound_or_refused_by_that_key() {
    let (mut accepted, mut refused) = (0, 0);
    for family in ["qwen3", "qwen2", "llama"] {
        let base = base(family);
        sound(&ModelConfig::parse(base.clone()).unwrap(), family);
        let mut try_one = |key: &str, config: Map<String, Value>, value: &Value| {
            let how = format!("{family}: {key} = {value}");
            match ModelConfig::parse(config) {
                Ok(config) => {
                    accepted += 1;
                    sound(&config, &how);
                }
                Err(error) => {
                    refused += 1;
                    let related = match key {
                        // What does not fit together is named by one of its parts.
                        "num_attention_heads" | "num_key_value_heads" | "hidden_size" => "num_",
                        "low_freq_factor" | "high_freq_factor" => "freq_factor",
                        "num_hidden_layers" => "layers",
                        "beta_fast" | "beta_slow" => "beta_",
                        "rope_type" => "rope",
                        "original_max_position_embeddings" | "max_position_embeddings" => "",
                        key => key,
                    };
                    let named = error.message.contains(key) || error.message.contains(related);
                    assert!(named, "{how}: {error}");
                    assert!(!error.message.chars().any(char::is_control), "{how}: {error:?}");
                    assert!(error.message.len() < 400, "{how}: {error}");
                }
            }
        };
        for key in base.keys() {
            for value in hostile() {
                let mut config = base.clone();
                config[key] = value.clone();
                try_one(key, config, &value);
            }
            let mut config = base.clone();
            config.remove(key);
            try_one(key, config, &json!("-"));
        }
        let sections = [
            base["rope_scaling"].clone(),
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16, "rope_theta": 1e6}),
            json!({"type": "linear", "factor": 2.0, "rope_theta": 1e4}),
        ];
        for section in sections {
            for place in ["rope_scaling", "rope_parameters"] {
                for key in section.as_object().unwrap().keys() {
                    for value in hostile() {
                        let mut config = base.clone();
                        config.remove("rope_scaling");
                        config.insert(place.into(), section.clone());
                        config[place][key] = value.clone();
                        try_one(key, config, &value);
                    }
                }
            }
        }
    }
    assert!(accepted > 500 && refused > 2000, "{accepted} accepted, {refused} refused");
}

#[test]
fn a_file_that_is_no_object_is_refused_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let deep = "[".repeat(100_000);
    for text in ["null", "[]", "3", "\"qwen3\"", "{", "", "{\"a\":1}x", "\u{feff}{}", deep.as_str()] {
        std::fs::write(folder.path().join("config.json"), text).unwrap();
        let error = ModelConfig::read(folder.path()).unwrap_err();
        assert!(error.message.contains("config.json: not "), "{error}");
    }
    std::fs::remove_file(folder.path().join("config.json")).unwrap();
    assert!(ModelConfig::read(folder.path()).unwrap_err().message.contains("config.json: could not read it"));
}

/// The model of `base` with its tensors.
fn model(folder: &Path, change: impl FnOnce(&mut Map<String, Value>)) -> (ModelConfig, CheckpointLayout) {
    let written = ModelConfig::parse(base("qwen3")).unwrap();
    drawn::write_tensors(&folder.join("model.safetensors"), &drawn::drawn(written.tensors()));
    let mut config = base("qwen3");
    change(&mut config);
    (ModelConfig::parse(config).unwrap(), CheckpointLayout::of_folder(folder).unwrap())
}

#[test]
fn sizes_are_held_against_the_tensors_before_anything_is_allocated() {
    let folder = tempfile::tempdir().unwrap();
    let (config, files) = model(folder.path(), |_| {});
    config.check_tensors(&files).unwrap();
    assert_eq!(config.tensors().map(|(_, s)| s.iter().product::<usize>() as u128).sum::<u128>(), config.parameters());
    let huge = (1u64 << 28) - 1;
    for (key, value, word) in [
        ("num_hidden_layers", huge, "num_hidden_layers"),
        ("num_hidden_layers", 3, "model.layers.2.input_layernorm.weight is missing"),
        ("vocab_size", huge, "model.embed_tokens.weight is [11, 16]"),
        ("hidden_size", huge, "model.embed_tokens.weight is [11, 16]"),
        ("intermediate_size", huge, "mlp.gate_proj.weight is [8, 16]"),
        ("head_dim", huge - 1, "self_attn.q_norm.weight is [8]"),
        ("num_attention_heads", huge, "self_attn.q_proj.weight is [16, 16]"),
    ] {
        let (config, files) = model(folder.path(), |c| {
            c[key] = json!(value);
            c["layer_types"] = json!(null);
        });
        let error = config.check_tensors(&files).unwrap_err();
        assert!(error.message.contains(word), "{key}: {error}");
    }
    let error = ModelConfig::parse({
        let mut config = base("qwen3");
        config["num_hidden_layers"] = json!(1_000_000_000_000u64);
        config
    });
    assert!(error.unwrap_err().message.contains("\"num_hidden_layers\" must be a whole number from 1 to"));
}

#[test]
fn a_model_that_is_drawn_must_fit_into_the_memory_that_is_left() {
    let mut config = base("llama");
    config["num_hidden_layers"] = json!((1u64 << 28) - 1);
    config["hidden_size"] = json!((1u64 << 28) - 2);
    config["layer_types"] = json!(null);
    let config = ModelConfig::parse(config).unwrap();
    for available in [None, Some(1 << 30)] {
        let error = config.check_memory(available).unwrap_err();
        assert!(error.message.contains("num_hidden_layers\" (268435455)"), "{error}");
    }
    ModelConfig::parse(base("llama")).unwrap().check_memory(Some(1 << 20)).unwrap();
}

#[test]
fn a_head_that_differs_from_the_embedding_it_is_tied_to_is_kept_apart_and_said_an_equal_one_stays_tied() {
    let folder = tempfile::tempdir().unwrap();
    let tied = |c: &mut Map<String, Value>| c["tie_word_embeddings"] = json!(true);
    let (mut config, files) = model(folder.path(), tied);
    config.settle_head(&files).unwrap();
    assert!(!config.tied && config.raw["tie_word_embeddings"] == false, "what is written says what is so");
    assert!(config.warnings.len() == 1 && config.warnings[0].contains("lm_head.weight"), "{:?}", config.warnings);

    let mut tensors = drawn::drawn(ModelConfig::parse(base("qwen3")).unwrap().tensors());
    let mut embedding = tensors["model.embed_tokens.weight"].clone();
    embedding.1[5] = 0.0;
    tensors.insert("model.embed_tokens.weight".into(), embedding.clone());
    embedding.1[5] = -0.0;
    tensors.insert("lm_head.weight".into(), embedding);
    drawn::write_tensors(&folder.path().join("model.safetensors"), &tensors);
    let mut config = base("qwen3");
    tied(&mut config);
    let mut config = ModelConfig::parse(config).unwrap();
    config.settle_head(&CheckpointLayout::of_folder(folder.path()).unwrap()).unwrap();
    assert!(config.tied && config.warnings.is_empty());
}

#[test]
fn what_one_backend_lacks_is_refused_by_name_with_the_backend_that_has_it() {
    let config = ModelConfig::parse(base("qwen3")).unwrap();
    Supports::NATIVE.check(&config).unwrap();
    let error = Supports::ONNXRUNTIME.check(&config).unwrap_err();
    assert_eq!(error.kind, BackendErrorKind::Unsupported);
    assert!(error.message.contains("head_dim 8") && error.message.contains("native"), "{error}");
    let mut long = base("qwen3");
    long["max_position_embeddings"] = json!(1u64 << 27);
    long["head_dim"] = json!(16);
    let error = Supports::ONNXRUNTIME.check(&ModelConfig::parse(long).unwrap()).unwrap_err();
    assert!(error.message.contains("max_position_embeddings") && error.message.contains("native"), "{error}");
}

#[test]
fn tensors_of_an_adapter_under_other_names_are_mapped_and_said_and_of_two_adapters_refused() {
    let folder = tempfile::tempdir().unwrap();
    let put = |names: &[&str]| {
        let tensors = names.iter().map(|name| (name.to_string(), vec![1, 2]));
        drawn::write_tensors(&folder.path().join("adapter_model.safetensors"), &drawn::drawn(tensors));
        karat_model::adapter_tensors(folder.path())
    };
    let of = "base_model.model.model.layers.0.self_attn.q_proj";
    let plain = [format!("{of}.lora_A.weight"), format!("{of}.lora_B.weight")];
    let (files, said) = put(&[&plain[0], &plain[1]]).unwrap();
    assert!(said.is_none() && files.names().eq(plain.iter().map(String::as_str)));
    for (a, b) in [
        (format!("{of}.lora_A.default.weight"), format!("{of}.lora_B.default.weight")),
        (format!("_orig_mod.{of}.lora_A.weight"), format!("module.{of}.lora_B.weight")),
    ] {
        let (files, said) = put(&[&a, &b]).unwrap();
        assert!(files.names().eq(plain.iter().map(String::as_str)), "{a}");
        assert!(said.is_some_and(|said| said.contains(&a) && said.contains("2 tensor names")));
    }
    let error = put(&[&format!("{of}.lora_A.one.weight"), &format!("{of}.lora_A.two.weight")]).unwrap_err();
    assert!(error.message.contains("several adapters (one, two)"), "{error}");
    let error = put(&[&plain[0], &format!("{of}.lora_A.default.weight")]).unwrap_err();
    assert!(error.message.contains("are both"), "{error}");
}
