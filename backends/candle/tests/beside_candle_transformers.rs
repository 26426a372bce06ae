//! Why the families have a decoder of their own: the models of candle-transformers beside the
//! numbers of transformers, on the same tiny checkpoints. Those that are right here agree with
//! transformers; a newer version that mends one of the others fails this test, and the table of
//! `families.rs` is to be looked at again.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "../../model/tests/drawn/mod.rs"]
mod drawn;

use std::path::Path;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_nn::ops::log_softmax;
use candle_transformers::models::*;
use serde_json::{Value, json};

/// Logits after each token of `ids` but the last, fed one by one, `[tokens - 1, vocab]`.
fn stepped(ids: &[u32], mut step: impl FnMut(&Tensor, usize) -> Result<Tensor>) -> Result<Tensor> {
    let of = |(at, id): (usize, &u32)| step(&Tensor::new(&[[*id]], &Device::Cpu)?, at)?.flatten_all();
    let rows: Vec<Tensor> = ids[..ids.len() - 1].iter().enumerate().map(of).collect::<Result<_>>()?;
    Tensor::stack(&rows, 0)
}

/// The logits of the model of candle-transformers for this family.
fn logits(family: &str, config: &Value, vb: VarBuilder<'_>, ids: &[u32]) -> Result<Tensor> {
    let text = config.to_string();
    macro_rules! stepped {
        ($config:ty, |$c:ident| $model:expr) => {{
            let $c: $config = serde_json::from_str(&text).unwrap();
            let mut model = $model?;
            stepped(ids, |id, at| model.forward(id, at))
        }};
    }
    match family {
        "mistral" => stepped!(mistral::Config, |c| mistral::Model::new(&c, vb)),
        "gemma2" => stepped!(gemma2::Config, |c| gemma2::Model::new(false, &c, vb)),
        "gemma3_text" => stepped!(gemma3::Config, |c| gemma3::Model::new(false, &c, vb)),
        "phi3" => stepped!(phi3::Config, |c| phi3::Model::new(&c, vb)),
        "qwen2_moe" => stepped!(qwen2_moe::Config, |c| qwen2_moe::Model::new(&c, vb)),
        "qwen3_moe" => stepped!(qwen3_moe::Config, |c| qwen3_moe::ModelForCausalLM::new(&c, vb)),
        "glm4" => stepped!(glm4_new::Config, |c| glm4_new::ModelForCausalLM::new(&c, vb)),
        "olmo2" => stepped!(olmo2::Config, |c| olmo2::Model::new(&c, vb)),
        "granite" => {
            let config: granite::GraniteConfig = serde_json::from_str(&text).unwrap();
            let config = config.into_config(false);
            let mut cache = granite::Cache::new(true, DType::F32, &config, &Device::Cpu)?;
            let model = granite::Granite::load(vb, &config)?;
            stepped(ids, |id, at| model.forward(id, at, &mut cache))
        }
        other => panic!("{other}"),
    }
}

#[test]
fn most_models_of_candle_transformers_are_other_models_than_those_of_transformers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/families.json");
    let models: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut right = Vec::new();
    for name in ["Mistral", "Gemma 2", "Gemma 3", "Phi-3", "Qwen2-MoE", "Qwen3-MoE", "GLM-4", "Granite", "OLMo 2"] {
        let model = models["models"].as_array().unwrap().iter().find(|model| model["name"] == name).unwrap();
        let dir = tempfile::tempdir().unwrap();
        drawn::write_model(dir.path(), model);
        let weights = std::fs::read(dir.path().join("model.safetensors")).unwrap();
        let vb = VarBuilder::from_buffered_safetensors(weights, DType::F32, &Device::Cpu).unwrap();
        let mut config = model["config"].clone();
        // Keys that the crate wants to be there, with transformers' defaults.
        for (key, value) in [("attention_bias", json!(false)), ("intermediate_size", json!(48))] {
            config.as_object_mut().unwrap().entry(key).or_insert(value);
        }
        let ids: Vec<u32> = serde_json::from_value(model["rows"][0].clone()).unwrap();
        let wanted: Vec<f64> = serde_json::from_value(model["logprobs"][0].clone()).unwrap();
        let family = config["model_type"].as_str().unwrap().to_owned();
        let worst = match logits(&family, &config, vb, &ids) {
            Err(error) => {
                println!("{name}: {}", error.to_string().lines().next().unwrap());
                continue;
            }
            Ok(logits) => {
                let table: Vec<Vec<f32>> = log_softmax(&logits, 1).unwrap().to_vec2().unwrap();
                let ours = table.iter().zip(&ids[1..]).map(|(row, id)| f64::from(row[*id as usize]));
                ours.zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
            }
        };
        println!("{name}: log-probabilities within {worst:.1e}");
        if worst < 5e-5 {
            right.push(name);
        }
    }
    assert_eq!(right, ["Qwen3-MoE", "GLM-4", "OLMo 2"]);
}
