//! Families beyond those that are trained against numbers that transformers and peft made
//! (`candle_families.py` of the tools): tiny models drawn by a rule, so that no weights lie here.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "../../model/tests/drawn/mod.rs"]
mod drawn;
mod support;

use std::path::Path;

use karat_backend::*;
use karat_candle::CandleBackend;
use serde_json::{Value, json};
use support::small_runs::{Rows, ignore, lora, plan, read_json, small_rows};
use support::{apart, open, open_error, score, train};

/// The models of `families.json`.
fn models() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/families.json");
    read_json(path)["models"].as_array().unwrap().clone()
}

fn model(name: &str) -> Value {
    models().into_iter().find(|model| model["name"] == name).unwrap()
}

fn follows(session: &mut dyn Session, prompt: &[u32], new: usize) -> Vec<u32> {
    let prompts: Tokens = [prompt].iter().collect();
    let config = GenerateConfig::greedy(new, vec![]);
    session.evaluator().unwrap().generate(prompts.view(), &config, &mut ignore).unwrap().remove(0).ids
}

/// The largest difference from `wanted`.
fn off(ours: &[f32], wanted: &[f64]) -> f64 {
    assert_eq!(ours.len(), wanted.len());
    ours.iter().zip(wanted).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max)
}

/// Writes the adapter of a model of `families.json`.
fn write_adapter(folder: &Path, model: &Value) {
    std::fs::create_dir_all(folder).unwrap();
    let adapter = &model["adapter"];
    std::fs::write(folder.join("adapter_config.json"), adapter["config"].to_string()).unwrap();
    let shapes = adapter["tensors"].as_object().unwrap().iter();
    let shapes = shapes.map(|(name, shape)| (name.clone(), serde_json::from_value(shape.clone()).unwrap()));
    drawn::write_tensors(&folder.join("adapter_model.safetensors"), &drawn::drawn(shapes));
}

#[test]
fn every_family_scores_and_writes_as_transformers_does() {
    let families = CandleBackend.describe().model_families;
    let mut seen = Vec::new();
    for model in models() {
        let (name, dir) = (&model["name"], tempfile::tempdir().unwrap());
        drawn::write_model(dir.path(), &model);
        let (rows, wanted) = drawn::rows_and_logprobs(&model);
        let mut session = open(&OpenConfig::new(dir.path()));
        assert!(session.info().warnings.is_empty(), "{name}: {:?}", session.info().warnings);
        let scores = score(&mut *session, &rows.iter().collect());
        let worst = off(&scores.logprobs, &wanted);
        println!("{name}: log-probabilities within {worst:.1e}");
        // transformers rounds its frequencies to f32 before it raises them, which a row of 560
        // tokens shows.
        assert!(worst < 5e-5, "{name}: {worst}");
        let theirs: Vec<u32> = serde_json::from_value(model["follows"].clone()).unwrap();
        assert_eq!(follows(&mut *session, &rows[0], theirs.len()), theirs, "{name}");
        seen.push(model["config"]["model_type"].as_str().unwrap().to_owned());
    }
    let trained = ["qwen3", "qwen2", "llama"].map(String::from);
    let missing = families.iter().find(|family| !seen.contains(family) && !trained.contains(family));
    assert_eq!(missing, None, "a family without numbers of transformers");
}

#[test]
fn adapters_of_every_family_are_merged_on_load_and_into_a_folder_as_in_peft() {
    for model in models() {
        let (name, dir) = (&model["name"], tempfile::tempdir().unwrap());
        let (base, adapter, merged) = (dir.path().join("base"), dir.path().join("adapter"), dir.path().join("merged"));
        std::fs::create_dir(&base).unwrap();
        drawn::write_model(&base, &model);
        write_adapter(&adapter, &model);
        let rows: Vec<Vec<u32>> = serde_json::from_value(model["rows"].clone()).unwrap();
        let rows: Tokens = rows[..1].iter().collect();
        let wanted: Vec<Vec<f64>> = serde_json::from_value(model["adapter"]["logprobs"].clone()).unwrap();
        let with = OpenConfig { adapter: Some(adapter), ..OpenConfig::new(&base) };
        let mut session = open(&with);
        assert!(session.info().adapter_parameters > 0);
        let scores = score(&mut *session, &rows);
        let worst = off(&scores.logprobs, &wanted[0]);
        println!("{name} with an adapter: log-probabilities within {worst:.1e}");
        assert!(worst < 5e-5, "{name}: {worst}");
        let into = open(&OpenConfig { merge_into: Some(merged.clone()), ..with });
        assert_eq!(into.info().adapter_parameters, 0);
        let again = score(&mut *open(&OpenConfig::new(merged)), &rows);
        assert_eq!(apart(&scores.logprobs, &again.logprobs), 0.0, "{name}");
    }
}

#[test]
fn an_adapter_on_experts_or_of_another_model_is_refused_by_the_module() {
    let (model, dir) = (model("Qwen3-MoE"), tempfile::tempdir().unwrap());
    drawn::write_model(dir.path(), &model);
    for module in ["mlp.experts.0.gate_proj", "mlp.gate", "mlp.shared_expert.up_proj"] {
        let (path, adapter) = (format!("base_model.model.model.layers.1.{module}"), dir.path().join("adapter"));
        std::fs::create_dir_all(&adapter).unwrap();
        let config = json!({"peft_type": "LORA", "r": 2, "target_modules": [module.rsplit_once('.').unwrap().1]});
        std::fs::write(adapter.join("adapter_config.json"), config.to_string()).unwrap();
        let shapes = [("A", [2, 64]), ("B", [24, 2])];
        let tensors = shapes.map(|(side, shape)| (format!("{path}.lora_{side}.weight"), shape.to_vec()));
        drawn::write_tensors(&adapter.join("adapter_model.safetensors"), &drawn::drawn(tensors));
        let error = open_error(&OpenConfig { adapter: Some(adapter), ..OpenConfig::new(dir.path()) });
        assert!(error.message.contains(module), "{error}");
    }
}

#[test]
fn training_a_family_that_is_only_scored_is_refused_and_says_what_is_trained_where() {
    let (model, dir) = (model("Mistral"), tempfile::tempdir().unwrap());
    drawn::write_model(dir.path(), &model);
    let base = OpenConfig::new(dir.path());
    for method in [Method::Full, lora(0.0)] {
        let plan = plan(method, vec![vec![vec![0]]], 1e-3, &dir.path().join("out"));
        let error = train(&base, &plan, &small_rows(&[9]), &Rows::default(), |_| false).0.unwrap_err();
        assert_eq!(error.kind, BackendErrorKind::Unsupported);
        for word in ["training a mistral", "qwen3, qwen2, llama", "native"] {
            assert!(error.message.contains(word), "{error}");
        }
    }
    let error = open_error(&OpenConfig { weights: Weights::Random, ..base.clone() });
    assert!(error.message.contains("drawing the weights of a mistral"), "{error}");
    let error = karat_native::NativeBackend.open(&base).err().unwrap();
    assert!(error.message.contains("\"mistral\"") && error.message.contains("candle"), "{error}");
}

#[test]
fn a_key_that_asks_for_what_is_not_computed_is_refused_by_its_name() {
    for (name, key, value) in [
        ("Mistral", "layer_types", json!(["sliding_attention", "full_attention"])),
        ("Mistral", "partial_rotary_factor", json!(0.5)),
        ("Mistral", "quantization_config", json!({"bits": 4})),
        ("Mistral", "hidden_act", json!("relu")),
        ("Mistral", "num_local_experts", json!(8)),
        ("Mistral", "attention_dropout", json!(0.1)),
        ("Mistral", "sliding_window", json!("wide")),
        ("Mistral", "num_key_value_heads", json!(3)),
        ("Gemma 2", "use_bidirectional_attention", json!(true)),
        ("Gemma 2", "layer_types", json!(["full_attention"])),
        ("Gemma 2", "rope_scaling", json!({"rope_type": "dynamic", "factor": 2.0})),
        ("Gemma 3", "rope_parameters", json!({"rope_theta": 1e6})),
        ("Phi-3", "rope_scaling", json!({"type": "linear", "factor": 2.0})),
        (
            "Phi-3 with LongRoPE",
            "rope_scaling",
            json!({"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}),
        ),
        ("Phi-3 with LongRoPE", "rope_scaling", json!({"type": "su", "factor": 2.0})),
        ("Phi-3", "partial_rotary_factor", json!(0.03)),
        ("Qwen2-MoE", "num_experts_per_tok", json!(7)),
        ("Qwen3-MoE", "mlp_only_layers", json!("all")),
        ("Granite", "logits_scaling", json!(0.0)),
        ("OLMo 2", "clip_qkv", json!(8.0)),
    ] {
        let (mut model, dir) = (model(name), tempfile::tempdir().unwrap());
        model["config"][key] = value.clone();
        drawn::write_model(dir.path(), &model);
        let error = open_error(&OpenConfig::new(dir.path())).message;
        let said = key.trim_start_matches("rope_");
        assert!(
            error.contains(key) || error.contains("rope type") || error.contains("_factor"),
            "{name} {key}: {error}"
        );
        assert!(error.contains("config.json") && !said.is_empty(), "{name} {key}: {error}");
    }
}

#[test]
fn a_key_that_transformers_does_not_read_for_the_family_is_said() {
    let (mut model, dir) = (model("Mistral"), tempfile::tempdir().unwrap());
    model["config"]["attn_logit_softcapping"] = json!(30.0);
    model["config"]["a_note_of_the_trainer"] = json!("fast");
    drawn::write_model(dir.path(), &model);
    let warnings = open(&OpenConfig::new(dir.path())).info().warnings;
    assert!(
        warnings.len() == 1 && warnings[0].contains("attn_logit_softcapping, a_note_of_the_trainer"),
        "{warnings:?}"
    );
}

#[test]
fn missing_tensors_experts_among_them_and_those_without_a_place_are_named() {
    let (mut model, dir) = (model("Qwen3-MoE"), tempfile::tempdir().unwrap());
    let missing = "model.layers.1.mlp.experts.5.down_proj.weight";
    model["tensors"].as_object_mut().unwrap().remove(missing).unwrap();
    drawn::write_model(dir.path(), &model);
    assert!(open_error(&OpenConfig::new(dir.path())).message.contains(missing));
    model["tensors"][missing] = json!([64, 24]);
    model["tensors"]["model.layers.1.mlp.shared_expert_gate.weight"] = json!([1, 64]);
    drawn::write_model(dir.path(), &model);
    let error = open_error(&OpenConfig::new(dir.path())).message;
    assert!(error.contains("shared_expert_gate") && error.contains("no place"), "{error}");
}
