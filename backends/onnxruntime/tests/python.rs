//! Exports before other judges: onnx's checker, the ONNX Runtime of PyPI and onnxruntime-genai, in
//! an environment without torch that `onnx_venv` of the tools makes.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use karat::data::tokens::Tokenizer;
use karat_backend::{AdapterMode, Backend, ExportConfig, GenerateConfig, NamedAdapter, OpenConfig};
use karat_onnxruntime::OnnxRuntimeBackend;
use karat_onnxruntime::export::unheard;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use support::*;

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/python").join(name)
}

/// The environment's interpreter, or a printed reason why the test is skipped.
fn python() -> Option<PathBuf> {
    let made = Command::new(script("onnx_venv")).output();
    match made {
        Ok(output) if output.status.success() => Some(String::from_utf8(output.stdout).unwrap().trim().into()),
        Ok(output) => {
            println!("skipped: {}", String::from_utf8_lossy(&output.stderr));
            None
        }
        Err(error) => {
            println!("skipped: onnx_venv does not start: {error}");
            None
        }
    }
}

/// The judges' verdicts on `folder` and the ids.
fn judged(python: &Path, folder: &Path, ids: &[u32], adapters: &[&str]) -> Value {
    let file = folder.with_extension("ids.json");
    std::fs::write(&file, json!(ids).to_string()).unwrap();
    let place =
        |name: &&str| format!("{name}={}", folder.join(format!("adapters/{name}/{name}.onnx_adapter")).display());
    let output = Command::new(python)
        .arg(script("check_export.py"))
        .args([folder, &file])
        .args(adapters.iter().map(place))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn checker_runtime_and_genai_of_pypi_take_every_family_and_element_type() {
    let Some(python) = python() else { return };
    if !runtime_is_there() {
        return;
    }
    let out = tempfile::tempdir().unwrap();
    let row = tiny_rows(&[24]).remove(0);
    for (family, tied, weights, near) in [
        ("qwen3", true, "f32", 1e-5),
        ("qwen2", false, "int4", 1e-5),
        ("qwen3", false, "int8", 1e-5),
        ("llama", true, "f16", 1e-5),
        ("llama", false, "bf16", 0.0),
    ] {
        let (model, folder) = (tiny_model(family, tied), out.path().join(format!("{family}-{weights}")));
        let config = ExportConfig { weights: weights.into(), ..ExportConfig::new(model.path(), &folder) };
        let summary = OnnxRuntimeBackend.export(&config, &mut unheard).unwrap();
        let said = judged(&python, &folder, &row, &[]);
        let checked = &said["checked"];
        assert_eq!(checked["opsets"], json!({"ai.onnx": 21, "com.microsoft": 1}));
        let caches = [0, 1].map(|l| ["key", "value"].map(|part| format!("past_key_values.{l}.{part}")));
        let inputs: Vec<String> =
            ["attention_mask", "input_ids"].map(String::from).into_iter().chain(caches.into_iter().flatten()).collect();
        assert_eq!(checked["required_inputs"], json!(inputs));
        assert_eq!(checked["overlapping"], false);
        // Nothing lies in the file twice or for nothing: what is not used is padding between
        // aligned tensors.
        let data = summary.files["model.onnx.data"];
        assert!(checked["external_bytes"].as_u64().unwrap() <= data);
        if weights == "bf16" {
            continue;
        }
        let mut session = open(&folder, out.path(), |_| {}).unwrap();
        let ours = score(&mut session, std::slice::from_ref(&row)).logprobs;
        for (a, b) in ours.iter().zip(numbers(&said["logprobs"])) {
            assert!((f64::from(*a) - b).abs() < near, "{family} {weights}: {a} {b}");
        }
        let text = generate(&mut session, std::slice::from_ref(&row), &GenerateConfig::greedy(16, Vec::new()));
        assert_eq!(ids(&said["continuations"][""]), text[0].ids, "{family} {weights}");
    }
}

#[test]
fn genai_exchanges_the_adapters_that_were_exported_with_a_base() {
    let Some(python) = python() else { return };
    if !runtime_is_there() {
        return;
    }
    let (model, out) = (tiny_model("qwen3", true), tempfile::tempdir().unwrap());
    let adapters: Vec<NamedAdapter> = [("calm", 1), ("wild", 2)]
        .map(|(name, seed)| {
            let path = out.path().join(name);
            write_q_adapter(&path, seed);
            NamedAdapter { name: name.into(), path }
        })
        .to_vec();
    let folder = out.path().join("both");
    let config = ExportConfig {
        adapters: adapters.clone(),
        adapter_mode: AdapterMode::Runtime,
        ..ExportConfig::new(model.path(), &folder)
    };
    OnnxRuntimeBackend.export(&config, &mut unheard).unwrap();
    let row = tiny_rows(&[24]).remove(0);
    let said = judged(&python, &folder, &row, &["calm", "wild"]);
    let mut session = open(&folder, out.path(), |_| {}).unwrap();
    let mut texts = Vec::new();
    for (name, path) in [("", None)].into_iter().chain(adapters.iter().map(|a| (a.name.as_str(), Some(&a.path)))) {
        session.set_adapter(path.map(PathBuf::as_path)).unwrap();
        let text = generate(&mut session, std::slice::from_ref(&row), &GenerateConfig::greedy(16, Vec::new()));
        assert_eq!(ids(&said["continuations"][name]), text[0].ids, "{name:?}");
        texts.push(text[0].ids.clone());
    }
    assert!(texts[0] != texts[1] && texts[1] != texts[2]);
}

/// A strong adapter on one projection of the tiny model.
fn write_q_adapter(folder: &Path, seed: u64) {
    std::fs::create_dir_all(folder).unwrap();
    let config =
        json!({"peft_type": "LORA", "r": 2, "lora_alpha": 16, "bias": "none", "target_modules": ["1.mlp.up_proj"]});
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    let mut noise = Noise(seed);
    let mut matrix = |shape: [usize; 2]| (shape.to_vec(), (0..shape[0] * shape[1]).map(|_| noise.next()).collect());
    let name = |side: &str| format!("base_model.model.model.layers.1.mlp.up_proj.lora_{side}.weight");
    let tensors = [(name("A"), matrix([2, 32])), (name("B"), matrix([48, 2]))].into();
    write_tensors(&folder.join("adapter_model.safetensors"), &tensors, Dtype::F32);
}

/// The shipped model, with a split pattern that genai's tokenizer knows (it does not know
/// intersections of classes).
#[test]
fn the_tokenizer_files_beside_an_export_serve_genai() {
    let Some(python) = python() else { return };
    if !runtime_is_there() {
        return;
    }
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../suites/medical-r1/base");
    let (model, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for entry in std::fs::read_dir(&shipped).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), model.path().join(entry.file_name())).unwrap();
    }
    let mut tokenizer = read_json(&model.path().join("tokenizer.json"));
    tokenizer["pre_tokenizer"] =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    std::fs::write(model.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let ours = Tokenizer::from_model_dir(model.path()).unwrap();
    let text = "What is aspirin for? 阿司匹林的不良反应是什么？ 12.5 mg";
    let ids_of_text = ours.encode(text).unwrap();
    let folder = out.path().join("onnx");
    OnnxRuntimeBackend.export(&ExportConfig::new(model.path(), &folder), &mut unheard).unwrap();
    let said = judged(&python, &folder, &ids_of_text, &[]);
    assert_eq!(said["tokenizer"]["text"], text);
    assert_eq!(ids(&said["tokenizer"]["ids"]), ids_of_text);
    let mut session = OnnxRuntimeBackend.open(&OpenConfig::new(&folder)).unwrap();
    let found = score(&mut session, &[ids_of_text]).logprobs;
    assert!(found.iter().zip(numbers(&said["logprobs"])).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-4));
}
