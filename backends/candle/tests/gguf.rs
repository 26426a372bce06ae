//! Quantized models as they lie in GGUF files, beside the same numbers in a folder of safetensors.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "../../model/tests/drawn/mod.rs"]
mod drawn;
mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use candle_core::{Device, Tensor};
use karat_backend::*;
use karat_model::ModelConfig;
use serde_json::{Value, json};
use support::small_runs::{Rows, ignore, lora, plan, small_rows};
use support::{apart, open, open_error, score, train};

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A configuration whose matrices can be cut into blocks of 256.
fn config(family: &str) -> Value {
    json!({"model_type": family, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 61, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 5000, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": family == "qwen3",
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}})
}

fn write_config(folder: &Path, family: &str) -> ModelConfig {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("config.json"), config(family).to_string()).unwrap();
    ModelConfig::read(folder).unwrap()
}

/// The name in a GGUF file, as llama.cpp's converter gives it.
fn there(name: &str) -> String {
    let mut name = name.replace("model.layers.", "blk.");
    for (ours, theirs) in [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.", "attn_"),
        ("mlp.", "ffn_"),
        ("_proj", ""),
    ] {
        name = name.replace(ours, theirs);
    }
    name
}

/// The rows of a Llama's query or key projection as ggml wants them: the halves of each head
/// interleaved.
fn permuted(values: &[f32], [rows, columns]: [usize; 2], heads: usize) -> Vec<f32> {
    let (dim, half) = (rows / heads, rows / heads / 2);
    let from = |row: usize| row / dim * dim + row % dim % 2 * half + row % dim / 2;
    (0..rows).flat_map(|row| values[from(row) * columns..][..columns].to_vec()).collect()
}

/// Writes `tensors` as a GGUF file of `kind`, and gives them as that keeps them.
fn write_gguf(path: &Path, config: &ModelConfig, tensors: &Tensors, kind: GgmlDType) -> Tensors {
    let llama = config.family == karat_model::Family::Llama;
    let (mut stored, mut kept) = (Vec::new(), Tensors::new());
    for (name, (shape, values)) in tensors {
        let heads = match name {
            name if llama && name.contains("q_proj") => Some(config.heads.queries),
            name if llama && name.contains("k_proj") => Some(config.heads.keys),
            _ => None,
        };
        let kind = if shape.len() == 1 { GgmlDType::F32 } else { kind };
        let quantized = |values: &[f32]| {
            let tensor = Tensor::from_vec(values.to_vec(), shape.as_slice(), &Device::Cpu).unwrap();
            QTensor::quantize(&tensor, kind).unwrap()
        };
        // Rows are quantized each by itself, so that their order changes no number.
        let numbers = quantized(values).dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        kept.insert(name.clone(), (shape.clone(), numbers));
        let values = heads.map_or(values.clone(), |heads| permuted(values, [shape[0], shape[1]], heads));
        stored.push((there(name), quantized(&values)));
    }
    let stored: Vec<(&str, &QTensor)> = stored.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut File::create(path).unwrap(), &[], &stored).unwrap();
    kept
}

/// Weights so small that no score of attention decides alone, as in real models.
fn drawn(config: &ModelConfig) -> Tensors {
    let mut tensors = drawn::drawn(config.tensors());
    tensors.values_mut().filter(|(shape, _)| shape.len() == 2).for_each(|(_, v)| v.iter_mut().for_each(|x| *x *= 0.25));
    tensors
}

fn rows() -> Tokens {
    [90u32, 1, 7].iter().map(|&n| (0..n).map(|i| (i * i * 7 + 13 * n + i) % 61).collect::<Vec<_>>()).collect()
}

fn texts(session: &mut dyn Session) -> Vec<Completion> {
    session.evaluator().unwrap().generate(rows().view(), &GenerateConfig::greedy(16, vec![]), &mut ignore).unwrap()
}

#[test]
fn a_gguf_file_runs_as_the_model_of_its_numbers_does() {
    // Products of quantized blocks round activations to 8 bits too, as ggml does.
    for (kind, tolerance) in
        [(GgmlDType::F32, 2e-5), (GgmlDType::F16, 2e-5), (GgmlDType::Q8_0, 0.2), (GgmlDType::Q4K, 0.2)]
    {
        for family in ["qwen3", "qwen2", "llama"] {
            let dir = tempfile::tempdir().unwrap();
            let (file, folder) = (dir.path().join("gguf"), dir.path().join("folder"));
            let config = write_config(&file, family);
            write_config(&folder, family);
            let tensors = drawn(&config);
            let kept = write_gguf(&file.join("model.gguf"), &config, &tensors, kind);
            drawn::write_tensors(&folder.join("model.safetensors"), &kept);
            let (mut ours, mut plain) = (open(&OpenConfig::new(file)), open(&OpenConfig::new(folder)));
            assert_eq!(ours.info().parameters, plain.info().parameters);
            let said = ours.info().kernels.iter().any(|kernel| kernel.contains(&format!("{kind:?}")));
            assert!(said, "{:?}", ours.info().kernels);
            let [ours_scored, plain_scored] = [&mut ours, &mut plain].map(|s| score(&mut **s, &rows()).logprobs);
            let worst = apart(&ours_scored, &plain_scored);
            let sum: f32 = ours_scored.iter().zip(&plain_scored).map(|(a, b)| (a - b).abs()).sum();
            let mean = sum / ours_scored.len() as f32;
            println!("{family} {kind:?}: log-probabilities within {worst:.1e}, {mean:.1e} in the mean");
            assert!(worst < tolerance && mean < tolerance / 5.0, "{family} {kind:?}: {worst} {mean}");
            if tolerance < 1e-3 {
                assert_eq!(texts(&mut *ours), texts(&mut *plain), "{family} {kind:?}");
            }
        }
    }
}

#[test]
fn what_a_gguf_file_cannot_be_asked_for_and_what_is_wrong_in_one_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "qwen3");
    let mut tensors = drawn(&config);
    let file = dir.path().join("model.gguf");
    write_gguf(&file, &config, &tensors, GgmlDType::Q8_0);
    let base = OpenConfig::new(dir.path());
    let refused = |config: &OpenConfig, words: [&str; 2]| {
        let error = open_error(config);
        assert!(words.iter().all(|word| error.message.contains(word)), "{error}");
    };
    refused(&OpenConfig { adapter: Some(dir.path().into()), ..base.clone() }, ["adapter", "karat import"]);
    refused(&OpenConfig { weights: Weights::Random, ..base.clone() }, ["drawing", "GGUF"]);
    let plan = plan(lora(0.0), vec![vec![vec![0]]], 1e-3, &dir.path().join("out"));
    let error = train(&base, &plan, &small_rows(&[9]), &Rows::default(), |_| false).0.unwrap_err();
    assert!(error.message.contains("GGUF") && error.message.contains("karat import"), "{error}");

    std::fs::copy(&file, dir.path().join("second.gguf")).unwrap();
    refused(&base, ["model.gguf", "second.gguf"]);
    std::fs::remove_file(dir.path().join("second.gguf")).unwrap();
    let norm = tensors.remove("model.layers.1.self_attn.k_norm.weight").unwrap();
    write_gguf(&file, &config, &tensors, GgmlDType::Q8_0);
    refused(&base, ["model.layers.1.self_attn.k_norm.weight", "missing"]);
    tensors.insert("model.layers.1.self_attn.k_norm.weight".into(), norm.clone());
    tensors.insert("model.layers.2.self_attn.k_norm.weight".into(), norm);
    write_gguf(&file, &config, &tensors, GgmlDType::Q8_0);
    refused(&base, ["blk.2.attn_k_norm.weight", "no place"]);
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..100]).unwrap();
    refused(&base, ["model.gguf", "GGUF"]);
}
