//! Shared by the tests: the reference folder, the runtime library, a tiny model of random weights.

#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use karat_backend::{
    Backend, BackendError, Completion, Event, Flow, GenerateConfig, OpenConfig, Scores, Session, Tokens,
};
use karat_onnxruntime::{OnnxRuntimeBackend, runtime};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Value, json};

/// The folder of reference numbers, or a printed reason why the test is skipped.
pub fn reference() -> Option<PathBuf> {
    let named = std::env::var_os("KARAT_SHARED").map(PathBuf::from);
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shared = named.or_else(|| here.ancestors().map(|a| a.join("shared")).find(|s| s.join("reference").is_dir()));
    let found = shared.map(|s| s.join("reference")).filter(|r| r.is_dir());
    if found.is_none() {
        println!("skipped: no folder of reference numbers (set KARAT_SHARED)");
    }
    found
}

/// Whether there is a runtime library (it is fetched if need be), or a printed reason why the test
/// is skipped.
pub fn runtime_is_there() -> bool {
    match runtime::load(None, true, false) {
        Ok(_) => true,
        Err(error) => {
            println!("skipped: {error}");
            false
        }
    }
}

/// Opens with exports cached in `cache`.
pub fn open(
    model: &Path,
    cache: &Path,
    change: impl FnOnce(&mut OpenConfig),
) -> Result<Box<dyn Session>, BackendError> {
    let mut config = OpenConfig::new(model);
    config.options.insert("cache_dir".into(), json!(cache));
    change(&mut config);
    OnnxRuntimeBackend.open(&config)
}

/// The error of an [`open`] that must fail.
pub fn refusal(result: Result<Box<dyn Session>, BackendError>) -> BackendError {
    match result {
        Ok(_) => panic!("it opened"),
        Err(error) => error,
    }
}

pub fn score(session: &mut Box<dyn Session>, rows: &[Vec<u32>]) -> Scores {
    let tokens: Tokens = rows.iter().collect();
    session.evaluator().unwrap().score(tokens.view(), &mut |_: Event| Flow::Continue).unwrap()
}

pub fn generate(session: &mut Box<dyn Session>, rows: &[Vec<u32>], config: &GenerateConfig) -> Vec<Completion> {
    let tokens: Tokens = rows.iter().collect();
    session.evaluator().unwrap().generate(tokens.view(), config, &mut |_: Event| Flow::Continue).unwrap()
}

pub fn read_json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

pub fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

/// A reproducible stream of numbers in (-1, 1).
pub struct Noise(pub u64);

impl Noise {
    pub fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 40) as f32 / (1u64 << 23) as f32) - 1.0
    }
}

/// Sizes of the tiny model.
pub const VOCAB: usize = 97;
const HIDDEN: usize = 32;
const LAYERS: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 16;
const INNER: usize = 48;
/// Longest sequence of the tiny model.
pub const CONTEXT: usize = 128;

/// `config.json` of a tiny model of this family.
pub fn tiny_config(family: &str, tied: bool) -> Value {
    json!({
        "model_type": family, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "intermediate_size": INNER, "vocab_size": VOCAB,
        "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": tied, "eos_token_id": 1,
    })
}

/// Names and shapes of the tiny model's tensors.
pub fn tiny_shapes(family: &str, tied: bool) -> BTreeMap<String, Vec<usize>> {
    let (q, kv) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    let mut shapes = BTreeMap::new();
    let mut add = |name: String, shape: &[usize]| drop(shapes.insert(name, shape.to_vec()));
    add("model.embed_tokens.weight".into(), &[VOCAB, HIDDEN]);
    add("model.norm.weight".into(), &[HIDDEN]);
    if !tied {
        add("lm_head.weight".into(), &[VOCAB, HIDDEN]);
    }
    for layer in 0..LAYERS {
        let layer = format!("model.layers.{layer}");
        add(format!("{layer}.input_layernorm.weight"), &[HIDDEN]);
        add(format!("{layer}.post_attention_layernorm.weight"), &[HIDDEN]);
        for (name, shape) in [("q_proj", [q, HIDDEN]), ("k_proj", [kv, HIDDEN]), ("v_proj", [kv, HIDDEN])] {
            add(format!("{layer}.self_attn.{name}.weight"), &shape);
            if family == "qwen2" {
                add(format!("{layer}.self_attn.{name}.bias"), &shape[..1]);
            }
        }
        add(format!("{layer}.self_attn.o_proj.weight"), &[HIDDEN, q]);
        if family == "qwen3" {
            add(format!("{layer}.self_attn.q_norm.weight"), &[HEAD_DIM]);
            add(format!("{layer}.self_attn.k_norm.weight"), &[HEAD_DIM]);
        }
        add(format!("{layer}.mlp.gate_proj.weight"), &[INNER, HIDDEN]);
        add(format!("{layer}.mlp.up_proj.weight"), &[INNER, HIDDEN]);
        add(format!("{layer}.mlp.down_proj.weight"), &[HIDDEN, INNER]);
    }
    shapes
}

/// Random weights for those shapes: norms around one, matrices large enough that every part
/// matters.
pub fn tiny_weights(shapes: &BTreeMap<String, Vec<usize>>, seed: u64) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let mut noise = Noise(seed);
    let weights = shapes.iter().map(|(name, shape)| {
        let count = shape.iter().product();
        let base = if name.contains("norm") { 1.0 } else { 0.0 };
        (name.clone(), (shape.clone(), (0..count).map(|_| base + 0.4 * noise.next()).collect()))
    });
    weights.collect()
}

/// Writes named f32 tensors in an element type.
pub fn write_tensors(path: &Path, tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>, dtype: Dtype) {
    let encode = |values: &[f32]| -> Vec<u8> {
        match dtype {
            Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Dtype::BF16 => values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect(),
            Dtype::F16 => values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect(),
            other => panic!("{other:?}"),
        }
    };
    let bytes: BTreeMap<&String, Vec<u8>> = tensors.iter().map(|(name, (_, v))| (name, encode(v))).collect();
    let views = tensors
        .iter()
        .map(|(name, (shape, _))| (name.clone(), TensorView::new(dtype, shape.clone(), &bytes[name]).unwrap()));
    serialize_to_file(views, None, path).unwrap();
}

/// A folder with a tiny random model.
pub fn tiny_model(family: &str, tied: bool) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), tiny_config(family, tied).to_string()).unwrap();
    let weights = tiny_weights(&tiny_shapes(family, tied), 11);
    write_tensors(&folder.path().join("model.safetensors"), &weights, Dtype::F32);
    folder
}

/// Rows of different lengths over the tiny vocabulary.
pub fn tiny_rows(lengths: &[usize]) -> Vec<Vec<u32>> {
    let mut noise = Noise(3);
    let mut id = || (noise.next().abs() * (VOCAB - 1) as f32) as u32;
    lengths.iter().map(|&n| (0..n).map(|_| id()).collect()).collect()
}
