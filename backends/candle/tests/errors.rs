//! What is broken is named: which file, which tensor, which row.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod small_runs;

use std::path::Path;

use karat::backend::*;
use karat::train::LoraConfig;
use karat_candle::CandleBackend;
use serde_json::json;
use small_runs::*;

fn open_error(config: &OpenConfig) -> BackendError {
    CandleBackend.open(config).err().expect("it should not open")
}

/// A trained checkpoint of the small model to break.
fn checkpoint(dir: &Path) -> std::path::PathBuf {
    let base = small_model(dir, "qwen3");
    let plan = plan(Method::Full, vec![vec![vec![0]]], 1e-3, &dir.join("out"));
    train(&base, &plan, &small_rows(&[9]), &Rows::default(), |_| false).0.unwrap().last_checkpoint
}

fn rewrite(path: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let mut value = read_json(path);
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

#[test]
fn broken_weights_are_named_with_file_and_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let folder = checkpoint(dir.path());
    let (weights, config) = (folder.join("model.safetensors"), folder.join("config.json"));
    let whole = std::fs::read(&weights).unwrap();

    for length in [3, 100, whole.len() - 1] {
        std::fs::write(&weights, &whole[..length]).unwrap();
        let error = open_error(&OpenConfig::new(&folder));
        assert!(error.message.contains("model.safetensors: truncated"), "{error}");
    }
    std::fs::write(&weights, [&whole[..], b"more"].concat()).unwrap();
    assert!(open_error(&OpenConfig::new(&folder)).message.contains("4 bytes after"));
    std::fs::write(&weights, [&[2, 0, 0, 0, 0, 0, 0, 0][..], b"no"].concat()).unwrap();
    assert!(open_error(&OpenConfig::new(&folder)).message.contains("not a safetensors file"));
    std::fs::remove_file(&weights).unwrap();
    assert!(open_error(&OpenConfig::new(&folder)).message.contains("holds neither model.safetensors nor"));
    std::fs::write(&weights, &whole).unwrap();

    rewrite(&config, |c| c["num_hidden_layers"] = json!(3));
    let error = open_error(&OpenConfig::new(&folder));
    assert!(error.message.contains("model.layers.2.input_layernorm.weight is missing"), "{error}");
    rewrite(&config, |c| c["num_hidden_layers"] = json!(1));
    let error = open_error(&OpenConfig::new(&folder));
    assert!(error.message.contains("model.layers.1") && error.message.contains("no place"), "{error}");
    rewrite(&config, |c| {
        c["num_hidden_layers"] = json!(2);
        c["intermediate_size"] = json!(40);
    });
    let error = open_error(&OpenConfig::new(&folder));
    assert!(error.message.contains("mlp.gate_proj.weight is [48, 32], the configuration says [40, 32]"), "{error}");
}

#[test]
fn shards_are_read_through_their_index_and_a_missing_one_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let folder = checkpoint(dir.path());
    let score = |folder: &Path| {
        open(&OpenConfig::new(folder)).evaluator().unwrap().score(small_rows(&[9]).tokens.view(), &mut ignore).unwrap()
    };
    let want = score(&folder);
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut map = serde_json::Map::new();
    for (number, name) in [(1, "model-00001-of-00002.safetensors"), (2, "model-00002-of-00002.safetensors")] {
        let part = file.tensors().into_iter().enumerate().filter(|(i, _)| i % 2 + 1 == number).map(|(_, t)| t);
        let part: Vec<_> = part.collect();
        part.iter().for_each(|(tensor, _)| drop(map.insert(tensor.clone(), json!(name))));
        safetensors::serialize_to_file(part, None, &folder.join(name)).unwrap();
    }
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    assert_eq!(score(&folder), want);
    std::fs::remove_file(folder.join("model-00002-of-00002.safetensors")).unwrap();
    let error = open_error(&OpenConfig::new(&folder));
    assert!(error.message.contains("model-00002-of-00002.safetensors"), "{error}");
}

#[test]
fn what_this_build_cannot_do_is_unsupported_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let base = small_model(dir.path(), "qwen3");
    for (config, name) in [
        (OpenConfig { device: "metal".into(), ..base.clone() }, "metal"),
        (OpenConfig { dtype: Dtype::F16, ..base.clone() }, "f16"),
        (OpenConfig { options: [("turbo".to_owned(), json!(1))].into(), ..base.clone() }, "turbo"),
    ] {
        let error = open_error(&config);
        assert_eq!(error.kind, BackendErrorKind::Unsupported);
        assert!(error.message.contains(name), "{error}");
    }
}

#[test]
fn an_adapter_on_a_tied_head_or_on_nothing_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let base = small_model(dir.path(), "qwen3");
    for (target, kind, word) in [
        ("lm_head", BackendErrorKind::Unsupported, "tied"),
        ("embed_tokens", BackendErrorKind::Unsupported, "embed_tokens"),
        ("query", BackendErrorKind::Failed, "query"),
    ] {
        let config = LoraConfig { target_modules: ["q_proj", target].into(), ..LoraConfig::default() };
        let plan = plan(Method::Lora(config), vec![vec![vec![0]]], 1e-3, &dir.path().join("out"));
        let error = train(&base, &plan, &small_rows(&[9]), &Rows::default(), |_| false).0.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message.contains(word), "{error}");
    }
}

#[test]
fn broken_adapters_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let base = small_model(dir.path(), "qwen3");
    let plan = plan(lora(0.0), vec![vec![vec![0]]], 1e-3, &dir.path().join("out"));
    let folder = train(&base, &plan, &small_rows(&[9]), &Rows::default(), |_| false).0.unwrap().last_checkpoint;
    let with = OpenConfig { adapter: Some(folder.clone()), ..base.clone() };
    let config = folder.join("adapter_config.json");
    let original = read_json(&config);
    for (key, value, word) in [
        ("use_dora", json!(true), "lora_magnitude_vector is missing"),
        ("lora_bias", json!(true), "lora_bias"),
        ("r", json!(5), "lora_A.weight is [4, 32], the configuration says [5, 32]"),
        ("target_modules", json!(["q_proj"]), "belongs to no target module"),
        ("r", json!("four"), "\"r\" must be"),
    ] {
        rewrite(&config, |c| c[key] = value);
        let error = open_error(&with);
        assert!(error.message.contains(word), "{error}");
        std::fs::write(&config, original.to_string()).unwrap();
    }
    assert!(CandleBackend.open(&with).is_ok());
    let mut plan = plan.clone();
    plan.method = Method::Lora(LoraConfig { r: 2, ..LoraConfig::default() });
    plan.init_adapter = Some(folder);
    let error = train(&base, &plan, &small_rows(&[9]), &Rows::default(), |_| false).0.unwrap_err();
    assert!(error.message.contains("the plan says {\"r\":2"), "{error}");
}

#[test]
fn rows_without_labels_are_an_error_that_names_the_step() {
    let dir = tempfile::tempdir().unwrap();
    let base = small_model(dir.path(), "qwen3");
    let mut rows = small_rows(&[9]);
    rows.push(&[1, 2, 3], &[IGNORE; 3]);
    let plan = plan(Method::Full, vec![vec![vec![0]], vec![vec![1]]], 1e-3, &dir.path().join("out"));
    let (result, events) = train(&base, &plan, &rows, &Rows::default(), |_| false);
    let error = result.unwrap_err();
    assert!(error.message.contains("step 2: every label is -100"), "{error}");
    assert!(step_events(&events).is_empty() && !plan.output_dir.exists());
    // A micro-batch without labels beside one with labels is fine.
    let plan = TrainPlan { steps: vec![vec![vec![0], vec![1]]; 2], ..plan };
    assert!(train(&base, &plan, &rows, &Rows::default(), |_| false).0.is_ok());
}

#[test]
fn a_loss_that_is_not_a_number_stops_the_run_and_publishes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let base = small_model(dir.path(), "qwen3");
    let mut plan = plan(Method::Full, vec![vec![vec![0]]; 12], 1.0, &dir.path().join("out"));
    plan.learning_rates = vec![1e30; 12];
    let (result, _) = train(&base, &plan, &small_rows(&[9]), &Rows::default(), |_| false);
    let error = result.unwrap_err();
    assert!(error.message.contains("step ") && error.message.contains("no checkpoint"), "{error}");
    assert!(!plan.output_dir.exists());
}

#[test]
fn a_trained_tensor_that_no_gradient_reaches_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let base = small_model(dir.path(), "qwen3");
    // An adapter of scale 0 changes nothing, so nothing comes back to it.
    let rows = small_rows(&[9]);
    let method = Method::Lora(LoraConfig { lora_alpha: 0.0, lora_dropout: 0.0, ..LoraConfig::default() });
    let plan = plan(method, vec![vec![vec![0]]; 4], 1e-3, &dir.path().join("out"));
    let (result, events) = train(&base, &plan, &rows, &Rows::default(), |_| false);
    let error = result.unwrap_err();
    assert!(error.message.contains("step 2: base_model.model.model.layers.0.mlp.down_proj.lora_A"), "{error}");
    assert_eq!(step_events(&events).len(), 1);
}

#[test]
fn rows_the_model_cannot_take_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut session = open(&small_model(dir.path(), "qwen3"));
    let evaluator = session.evaluator().unwrap();
    let tokens = |rows: Vec<Vec<u32>>| rows.into_iter().collect::<Tokens>();
    let error = evaluator.score(tokens(vec![vec![1], vec![2, 50]]).view(), &mut ignore).unwrap_err();
    assert!(error.message.contains("row 1: id 50"), "{error}");
    let error = evaluator.score(tokens(vec![vec![1; 65]]).view(), &mut ignore).unwrap_err();
    assert!(error.message.contains("row 0: 65 tokens"), "{error}");
    let config = GenerateConfig::greedy(2, vec![]);
    let error = evaluator.generate(tokens(vec![vec![1], vec![]]).view(), &config, &mut ignore).unwrap_err();
    assert!(error.message.contains("row 1: the prompt is empty"), "{error}");

    let mut rows = Rows::default();
    rows.push(&[4, 5, 6], &[IGNORE, 5, 7]);
    let plan = plan(Method::Full, vec![vec![vec![0]]], 1e-3, &dir.path().join("out"));
    let error = session.trainer().unwrap().train(rows.view(), Rows::default().view(), &plan, &mut ignore).unwrap_err();
    assert!(error.message.contains("training row 0: label 7 at place 2"), "{error}");
}
