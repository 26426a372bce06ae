//! Errors name the broken file, tensor or row.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod small_runs;

use std::path::Path;

use karat_backend::*;
use karat_native::NativeBackend;
use serde_json::json;
use small_runs::*;

fn open_error(config: &OpenConfig) -> BackendError {
    NativeBackend.open(config).err().expect("it should not open")
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
        ("use_dora", json!(true), "has no lora_magnitude_vector"),
        ("lora_bias", json!(true), "lora_bias"),
        ("r", json!(5), "has rank 4, adapter_config.json says 5"),
        ("target_modules", json!(["q_proj"]), "which adapter_config.json does not target"),
        ("r", json!("four"), "\"r\" must be"),
    ] {
        rewrite(&config, |c| c[key] = value);
        let error = open_error(&with);
        assert!(error.message.contains(word), "{error}");
        std::fs::write(&config, original.to_string()).unwrap();
    }
    assert!(NativeBackend.open(&with).is_ok());
    let mut plan = plan.clone();
    plan.method = Method::Lora(LoraConfig { r: 2, ..LoraConfig::default() });
    plan.init_adapter = Some(folder);
    let error = train(&base, &plan, &small_rows(&[9]), &Rows::default(), |_| false).0.unwrap_err();
    assert!(error.message.contains("the plan says {\"r\":2"), "{error}");
}

#[test]
fn an_adapter_under_the_names_of_a_training_script_scores_as_under_pefts_and_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let base = small_model(dir.path(), "qwen3");
    let plan = plan(lora(0.0), vec![vec![vec![0]]; 2], 1e-2, &dir.path().join("out"));
    let folder = train(&base, &plan, &small_rows(&[9]), &Rows::default(), |_| false).0.unwrap().last_checkpoint;
    let with = OpenConfig { adapter: Some(folder.clone()), ..base.clone() };
    let score = || {
        let mut session = open(&with);
        let scores = session.evaluator().unwrap().score(small_rows(&[9]).tokens.view(), &mut ignore).unwrap();
        (scores, session.info().warnings)
    };
    let (want, said) = score();
    assert!(said.is_empty(), "{said:?}");
    let file = folder.join("adapter_model.safetensors");
    let stored = tensors(&file);
    type Rename = fn(&str) -> String;
    let renamed: [(Rename, &str); 2] = [
        (|name| name.replace(".weight", ".default.weight"), "lora_A.default.weight"),
        (|name| format!("_orig_mod.module.{name}"), "_orig_mod.module."),
    ];
    for (change, word) in renamed {
        let views: Vec<_> =
            stored.iter().map(|(name, (_, shape, values))| (change(name), shape.clone(), values)).collect();
        let bytes: Vec<Vec<u8>> = views.iter().map(|v| v.2.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
        let views = views.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
            (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, &file).unwrap();
        rewrite(&folder.join("adapter_config.json"), |c| c["a_key_of_the_future"] = json!("auto"));
        let (scores, said) = score();
        assert_eq!(scores, want);
        assert!(said.iter().any(|w| w.contains(word)), "{said:?}");
        assert!(said.iter().any(|w| w.contains("a_key_of_the_future")), "{said:?}");
    }
}

#[test]
fn an_adapter_larger_than_the_memory_is_refused_before_it_is_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let base = small_model(dir.path(), "qwen3");
    let config = LoraConfig { r: 1 << 50, ..LoraConfig::default() };
    let plan = plan(Method::Lora(config), vec![vec![vec![0]]], 1e-3, &dir.path().join("out"));
    let error = train(&base, &plan, &small_rows(&[9]), &Rows::default(), |_| false).0.unwrap_err();
    assert!(error.message.contains("lower r"), "{error}");
}

#[test]
fn a_merge_that_bf16_would_undo_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let folder = checkpoint(dir.path());
    // The base as others ship it: in bf16.
    let file = folder.join("model.safetensors");
    let stored = tensors(&file);
    let narrow = |v: &[f32]| -> Vec<u8> { v.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect() };
    let bytes: Vec<Vec<u8>> = stored.values().map(|(_, _, values)| narrow(values)).collect();
    let views = stored.iter().zip(&bytes).map(|((name, (_, shape, _)), bytes)| {
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &file).unwrap();
    let base = OpenConfig { threads: 2, ..OpenConfig::new(&folder) };
    let said = |lr: f64, name: &str| {
        let plan = plan(lora(0.0), vec![vec![vec![0]]; 3], lr, &dir.path().join(name));
        let adapter = train(&base, &plan, &small_rows(&[9]), &Rows::default(), |_| false).0.unwrap().last_checkpoint;
        let into = Some(dir.path().join(format!("{name}-merged")));
        open(&OpenConfig { adapter: Some(adapter), merge_into: into, ..base.clone() }).info().warnings
    };
    let small = said(1e-5, "small");
    assert!(small.len() == 1 && small[0].contains("bf16") && small[0].contains("beside its base"), "{small:?}");
    let large = said(0.3, "large");
    assert!(large.is_empty(), "{large:?}");
}

/// A stream of numbers from a seed (Knuth's MMIX constants).
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n.max(1)
    }
}

/// A text with something of it changed: a number, a word, a piece cut out, put twice or
/// overwritten.
fn mutant(text: &[u8], draw: &mut Draw) -> Vec<u8> {
    const PIECES: [&str; 16] = [
        "null",
        "true",
        "-1",
        "0",
        "1e30",
        "1e400",
        "18446744073709551615",
        "[]",
        "{}",
        "\"\"",
        "\"F64\"",
        "[1,2]",
        "9",
        ",",
        "NaN",
        "\u{7}",
    ];
    let mut out = text.to_vec();
    let at = draw.below(out.len());
    match draw.below(4) {
        0 => {
            // The number or word at this place, or after it, becomes another value.
            let word = |b: &u8| b.is_ascii_alphanumeric() || b".-_\"".contains(b);
            let start = (at..out.len()).find(|i| word(&out[*i])).unwrap_or(at);
            let end = (start..out.len()).find(|i| !word(&out[*i])).unwrap_or(out.len());
            out.splice(start..end, PIECES[draw.below(PIECES.len())].bytes());
        }
        1 => drop(out.drain(at..(at + 1 + draw.below(9)).min(text.len()))),
        2 => {
            let piece = out[at..(at + 1 + draw.below(30)).min(text.len())].to_vec();
            out.splice(at..at, piece);
        }
        _ => out[at] = draw.below(256) as u8,
    }
    out
}

#[test]
fn mutants_of_a_models_and_an_adapters_files_are_refused_with_a_reason_or_score_finite_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let folder = checkpoint(dir.path());
    let base = OpenConfig { threads: 1, ..OpenConfig::new(&folder) };
    let plan = plan(lora(0.0), vec![vec![vec![0]]], 1e-3, &dir.path().join("adapter"));
    let adapter = train(&base, &plan, &small_rows(&[9]), &Rows::default(), |_| false).0.unwrap().last_checkpoint;
    let index: serde_json::Map<String, serde_json::Value> = tensors(&folder.join("model.safetensors"))
        .into_keys()
        .map(|name| (name, json!("model-1.safetensors")))
        .collect();
    let sharded = dir.path().join("sharded");
    std::fs::create_dir(&sharded).unwrap();
    std::fs::copy(folder.join("config.json"), sharded.join("config.json")).unwrap();
    std::fs::copy(folder.join("model.safetensors"), sharded.join("model-1.safetensors")).unwrap();
    let index = json!({"weight_map": index}).to_string();
    std::fs::write(sharded.join("model.safetensors.index.json"), index).unwrap();

    let with = OpenConfig { adapter: Some(adapter.clone()), ..base.clone() };
    let sharded = (OpenConfig::new(&sharded), sharded.join("model.safetensors.index.json"));
    let (mut draw, mut refused) = (Draw(15), 0);
    for (open, file, count) in [
        (&base, folder.join("config.json"), 150),
        (&base, folder.join("model.safetensors"), 150),
        (&with, adapter.join("adapter_config.json"), 150),
        (&with, adapter.join("adapter_model.safetensors"), 100),
        (&sharded.0, sharded.1.clone(), 100),
    ] {
        let whole = std::fs::read(&file).unwrap();
        let is_json = file.extension().is_some_and(|e| e == "json");
        for number in 0..count {
            // Of weights, only the header means anything.
            let changed = match is_json {
                true => mutant(&whole, &mut draw),
                false => {
                    let length = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
                    let header = mutant(&whole[8..length], &mut draw);
                    let said = if draw.below(8) == 0 { draw.below(usize::MAX) } else { header.len() };
                    [&(said as u64).to_le_bytes()[..], &header, &whole[length..]].concat()
                }
            };
            std::fs::write(&file, &changed).unwrap();
            let how = || {
                format!("{} {number}: {}", file.display(), String::from_utf8_lossy(&changed[..changed.len().min(900)]))
            };
            match std::panic::catch_unwind(|| NativeBackend.open(open)) {
                Err(_) => panic!("it panicked: {}", how()),
                Ok(Err(error)) => {
                    refused += 1;
                    assert!(error.message.len() > 10 && error.message.len() < 2000, "{error}: {}", how());
                }
                Ok(Ok(mut session)) => {
                    let rows: Tokens = [[1u32, 2, 3]].into_iter().collect();
                    // A vocabulary or a context too small for these ids is refused there.
                    if let Ok(scores) = session.evaluator().unwrap().score(rows.view(), &mut ignore) {
                        assert!(scores.logprobs.iter().all(|l| l.is_finite()), "{:?}: {}", scores.logprobs, how());
                    }
                }
            }
        }
        std::fs::write(&file, &whole).unwrap();
    }
    assert!(refused > 300, "{refused}");
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
