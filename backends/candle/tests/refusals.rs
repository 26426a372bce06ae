//! Refusals: a capability that is missing, or a broken file, is one sentence that names it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "../../model/tests/drawn/mod.rs"]
mod drawn;
mod support;

use karat_backend::*;
use karat_candle::CandleBackend;
use karat_native::NativeBackend;
use serde_json::json;
use support::small_runs::{Rows, ignore, lora, plan, read_json, small_model, small_rows, tensors};
use support::{open, open_error, train};

#[test]
fn what_this_build_cannot_do_is_unsupported_by_name_and_says_who_can() {
    let dir = tempfile::tempdir().unwrap();
    let base = small_model(dir.path(), "qwen3");
    for (config, words) in [
        (OpenConfig { device: "gpu".into(), ..base.clone() }, ["\"gpu\"", "cpu"]),
        (OpenConfig { device: "cuda:x".into(), ..base.clone() }, ["\"cuda:x\"", "cpu"]),
        (OpenConfig { dtype: Dtype::Bf16, ..base.clone() }, ["bf16", "the backend native does"]),
        (OpenConfig { dtype: Dtype::F16, ..base.clone() }, ["f16", "the backend onnxruntime does"]),
        (OpenConfig { options: [("turbo".to_owned(), json!(1))].into(), ..base.clone() }, ["turbo", "no option"]),
    ] {
        let error = open_error(&config);
        assert_eq!(error.kind, BackendErrorKind::Unsupported);
        assert!(words.iter().all(|word| error.message.contains(word)), "{error}");
    }
    let built = CandleBackend.describe().devices;
    for kind in ["cuda", "metal"].into_iter().filter(|kind| !built.iter().any(|built| built == kind)) {
        let error = open_error(&OpenConfig { device: format!("{kind}:0"), ..base.clone() });
        assert_eq!(error.kind, BackendErrorKind::Unsupported);
        assert!(error.message.contains(&format!("-p karat-candle --features {kind}")), "{error}");
    }
    let dora = LoraConfig { use_dora: true, ..LoraConfig::default() };
    let plan = plan(Method::Lora(dora), vec![vec![vec![0]]], 1e-3, &dir.path().join("out"));
    let error = train(&base, &plan, &small_rows(&[9]), &Rows::default(), |_| false).0.unwrap_err();
    assert!(error.kind == BackendErrorKind::Unsupported && error.message.contains("native"), "{error}");
}

#[test]
fn sizes_that_no_machine_has_are_refused_before_memory_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let base = small_model(dir.path(), "qwen3");
    let rank = LoraConfig { r: 1 << 40, ..LoraConfig::default() };
    let plan = plan(Method::Lora(rank), vec![vec![vec![0]]], 1e-3, &dir.path().join("out"));
    let error = train(&base, &plan, &small_rows(&[9]), &Rows::default(), |_| false).0.unwrap_err();
    assert!(error.message.contains("lower r"), "{error}");
    let config = dir.path().join("config.json");
    for (key, value) in [("vocab_size", 1u64 << 40), ("num_hidden_layers", 1 << 40)] {
        let mut hostile = read_json(&config);
        hostile[key] = json!(value);
        let folder = dir.path().join(key);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("config.json"), hostile.to_string()).unwrap();
        let error = open_error(&OpenConfig { model: folder, ..base.clone() });
        assert!(error.message.contains(key), "{error}");
    }
}

#[test]
fn broken_weights_and_adapters_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let base = small_model(dir.path(), "qwen3");
    let rows = small_rows(&[9]);
    let full = plan(Method::Full, vec![vec![vec![0]]], 1e-3, &dir.path().join("full"));
    let folder = train(&base, &full, &rows, &Rows::default(), |_| false).0.unwrap().last_checkpoint;
    let weights = folder.join("model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &whole[..100]).unwrap();
    assert!(open_error(&OpenConfig::new(&folder)).message.contains("model.safetensors: truncated"));
    std::fs::write(&weights, &whole).unwrap();
    let change = |key: &str, value: serde_json::Value| {
        let mut config = read_json(folder.join("config.json"));
        config[key] = value;
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    };
    change("num_hidden_layers", json!(3));
    assert!(open_error(&OpenConfig::new(&folder)).message.contains("model.layers.2.input_layernorm.weight is missing"));
    change("num_hidden_layers", json!(1));
    let error = open_error(&OpenConfig::new(&folder));
    assert!(error.message.contains("model.layers.1") && error.message.contains("no place"), "{error}");

    let low = plan(lora(0.0), vec![vec![vec![0]]], 1e-3, &dir.path().join("lora"));
    let adapter = train(&base, &low, &rows, &Rows::default(), |_| false).0.unwrap().last_checkpoint;
    let with = OpenConfig { adapter: Some(adapter.clone()), ..base.clone() };
    let error = open(&with).trainer().unwrap().train(rows.view(), rows.view(), &low, &mut ignore).unwrap_err();
    assert!(error.message.contains("open it without"), "{error}");
    let mut config = read_json(adapter.join("adapter_config.json"));
    config["r"] = json!(5);
    std::fs::write(adapter.join("adapter_config.json"), config.to_string()).unwrap();
    assert!(open_error(&with).message.contains("rank"));
    let error = open_error(&OpenConfig { merge_into: Some(dir.path().join("merged")), ..base.clone() });
    assert!(error.message.contains("no adapter to merge"), "{error}");
}

#[test]
fn an_adapter_that_overflows_the_weights_is_refused_by_every_backend_that_merges_it() {
    let dir = tempfile::tempdir().unwrap();
    let base = small_model(dir.path(), "qwen3");
    let plan = plan(lora(0.0), vec![vec![vec![0]]], 1e-3, &dir.path().join("out"));
    let adapter = train(&base, &plan, &small_rows(&[9]), &Rows::default(), |_| false).0.unwrap().last_checkpoint;
    let file = adapter.join("adapter_model.safetensors");
    let huge = tensors(&file).into_iter().map(|(name, (_, shape, values))| (name, (shape, vec![1e30; values.len()])));
    drawn::write_tensors(&file, &huge.collect());
    let with = OpenConfig { adapter: Some(adapter), merge_into: Some(dir.path().join("merged")), ..base };
    for backend in [&CandleBackend as &dyn Backend, &NativeBackend] {
        let error = backend.open(&with).err().expect("it should not open");
        for said in ["checkpoint-1: merged into model.layers.0.", ", the adapter gives values that are not finite"] {
            assert!(error.message.contains(said), "{error}");
        }
        assert!(!dir.path().join("merged").exists());
    }
}

#[test]
fn rows_and_plans_that_cannot_be_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let base = small_model(dir.path(), "qwen3");
    let mut session = open(&base);
    for (rows, words) in [(vec![1u32, 50], "id 50 is outside the vocabulary of 50"), (vec![1; 65], "65 tokens")] {
        let rows: Tokens = [[1, 2].to_vec(), rows].iter().collect();
        let error = session.evaluator().unwrap().score(rows.view(), &mut ignore).unwrap_err();
        assert!(error.message.contains("row 1") && error.message.contains(words), "{error}");
    }
    let empty: Tokens = [[0u32; 0]].iter().collect();
    let config = GenerateConfig::greedy(3, vec![]);
    let error = session.evaluator().unwrap().generate(empty.view(), &config, &mut ignore).unwrap_err();
    assert!(error.message.contains("the prompt is empty"), "{error}");

    let mut rows = small_rows(&[9]);
    rows.push(&[1, 2, 3], &[IGNORE; 3]);
    let good = plan(Method::Full, vec![vec![vec![0]]], 1e-3, &dir.path().join("out"));
    for (steps, words) in [(vec![vec![vec![1]]], "every label is -100"), (vec![vec![vec![7]]], "row 7 of 2")] {
        let error =
            train(&base, &TrainPlan { steps, ..good.clone() }, &rows, &Rows::default(), |_| false).0.unwrap_err();
        assert!(error.message.contains(words), "{error}");
    }
    let wild =
        TrainPlan { steps: vec![vec![vec![0]]; 2], learning_rates: vec![1e30; 2], epochs: vec![0.5, 1.0], ..good };
    let error = train(&base, &wild, &small_rows(&[9]), &Rows::default(), |_| false).0.unwrap_err();
    assert!(error.message.contains("Lower the learning rate"), "{error}");
}
