//! Against candle's own Qwen3, which shares no line of the decoder with ours; unlike the reference
//! numbers it is always there.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod small_runs;

use std::collections::HashMap;
use std::path::Path;

use candle_core::{D, DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::qwen3::{Config, ModelForCausalLM};
use karat_backend::*;
use karat_native::config::ModelConfig;
use karat_native::model::Decoder;
use serde_json::json;
use small_runs::*;

/// A Qwen3 in which nothing cancels: heads that are not `hidden / heads` wide, grouped queries,
/// norms that are not ones.
fn write_model(folder: &Path, tied: bool) {
    let config = json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 48, "intermediate_size": 80,
        "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 101,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 1000.0, "hidden_act": "silu",
        "tie_word_embeddings": tied, "attention_bias": false, "initializer_range": 0.02, "sliding_window": null,
        "max_window_layers": 3, "use_sliding_window": false
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    // Our names and shapes; values of our own, since a fresh model's norms are all ones.
    let mut state = 2026u32;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(state >> 8) / f64::from(1u32 << 24) - 0.5
    };
    let shapes = Decoder::random(ModelConfig::read(folder).unwrap(), 1).unwrap().tensors();
    let tensors: HashMap<String, Tensor> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let (centre, width) = if name.contains("norm") { (1.0, 1.0) } else { (0.0, 0.6) };
            let values: Vec<f32> = (0..shape.elem_count()).map(|_| (centre + width * uniform()) as f32).collect();
            (name, Tensor::from_vec(values, shape.dims(), &Device::Cpu).unwrap())
        })
        .collect();
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
}

/// Log-probabilities of every token of `ids` after the first, each from a pass over its whole
/// prefix.
fn theirs(folder: &Path, ids: &[u32]) -> Vec<f32> {
    let config: Config = serde_json::from_value(read_json(folder.join("config.json"))).unwrap();
    let weights = std::fs::read(folder.join("model.safetensors")).unwrap();
    let weights = VarBuilder::from_buffered_safetensors(weights, DType::F32, &Device::Cpu).unwrap();
    let mut model = ModelForCausalLM::new(&config, weights).unwrap();
    let mut logprobs = Vec::new();
    for end in 1..ids.len() {
        model.clear_kv_cache();
        let prefix = Tensor::new(&ids[..end], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let logits = model.forward(&prefix, 0).unwrap().flatten_all().unwrap();
        let all = candle_nn::ops::log_softmax(&logits, D::Minus1).unwrap().to_vec1::<f32>().unwrap();
        logprobs.push(all[ids[end] as usize]);
    }
    logprobs
}

#[test]
fn a_second_opinion_from_candle_transformers() {
    for tied in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        write_model(folder.path(), tied);
        let rows: Vec<Vec<u32>> =
            [40, 7, 23].iter().map(|&n: &u32| (0..n).map(|i| (i * i * 7 + 13 * n + i) % 101).collect()).collect();
        let tokens: Tokens = rows.iter().collect();
        let mut session = open(&OpenConfig::new(folder.path()));
        let ours = session.evaluator().unwrap().score(tokens.view(), &mut ignore).unwrap().logprobs;
        let theirs: Vec<f32> = rows.iter().flat_map(|ids| theirs(folder.path(), ids)).collect();
        assert_eq!(ours.len(), theirs.len());
        // Numbers that are all alike would agree whatever the decoder does.
        let spread = |x: &[f32]| x.iter().fold(f32::MIN, |a, b| a.max(*b)) - x.iter().fold(f32::MAX, |a, b| a.min(*b));
        assert!(spread(&theirs) > 3.0, "{}", spread(&theirs));
        let worst = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("tied {tied}: largest difference of {} log-probabilities {worst:.2e}", ours.len());
        assert!(worst < 1e-4, "tied {tied}: {worst}");
    }
}
