//! Training of tiny models against numbers that transformers and peft made: every family, full, LoRA, DoRA, patterns, modules
//! trained whole, schedules, weight decay, dropout under the same masks. `native_references.py` of the tools made them, drawing weights,
//! adapters, rows and masks by our rules a second time, in Python.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "../../model/tests/drawn/mod.rs"]
mod drawn;
mod small_runs;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use karat::suite::Hyperparameters;
use karat_backend::LoraConfig;
use karat_backend::*;
use karat_model::peft::TargetModules;
use karat_native::adapter;
use karat_native::config::ModelConfig;
use karat_native::model::Decoder;
use karat_native::rng::{Philox, name_key};
use serde_json::{Value, json};
use small_runs::*;

fn references() -> Value {
    read_json(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/references.json"))
}

/// Writes the model folder that the script means: matrices `N(0, 0.15)`, norms around 1 and biases around 0.
fn draw_model(folder: &Path, config: &Value, seed: u64) {
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let shapes = Decoder::random(ModelConfig::read(folder).unwrap(), 0).unwrap().tensors();
    let generator = Philox::new(seed);
    let mut tensors = BTreeMap::new();
    for (name, weight) in &shapes {
        let key = name_key(name);
        let draw = |i: usize| generator.normal(i as u64, key as u32, (key >> 32) as u32);
        let value = |i: usize| match weight.dims().len() {
            2 => draw(i) * 0.15,
            _ if name.ends_with("bias") => draw(i) * 0.3,
            _ => draw(i) * 0.3 + 1.0,
        };
        let bytes: Vec<u8> = (0..weight.elem_count()).flat_map(|i| (value(i) as f32).to_le_bytes()).collect();
        tensors.insert(name.clone(), (weight.dims().to_vec(), bytes));
    }
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
}

fn draw_rows(references: &Value) -> Rows {
    let generator = Philox::new(1);
    let mut rows = Rows::default();
    for (number, length) in references["lengths"].as_array().unwrap().iter().enumerate() {
        let (length, key) = (length.as_u64().unwrap() as usize, name_key(&format!("row {number}")));
        let draw = |i: usize| (generator.uniform(i as u64, key as u32, (key >> 32) as u32) * 61.0) as u32;
        let ids: Vec<u32> = (0..length).map(draw).collect();
        let label = |(i, id): (usize, &u32)| if i < length / 3 { IGNORE } else { *id as i32 };
        let labels: Vec<i32> = ids.iter().enumerate().map(label).collect();
        rows.push(&ids, &labels);
    }
    rows
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

/// The plan of a scenario, its learning rates from the settings that a suite would have.
fn plan_of(scenario: &Value, references: &Value, method: Method, out: &Path) -> TrainPlan {
    let settings = json!({"schedule": scenario["schedule"], "learning_rate": scenario["learning_rate"],
        "warmup": scenario["warmup"], "min_lr_rate": scenario["min_lr_rate"]});
    let settings: Hyperparameters = serde_json::from_value(settings).unwrap();
    settings.check("scenario").unwrap();
    let steps: Vec<Vec<Vec<u32>>> = serde_json::from_value(references["steps"].clone()).unwrap();
    TrainPlan {
        learning_rates: settings.learning_rates(steps.len()).unwrap(),
        optimizer: AdamW { weight_decay: number(&scenario["weight_decay"]), ..AdamW::default() },
        max_grad_norm: number(&scenario["max_grad_norm"]),
        seed: references["seed"].as_u64().unwrap(),
        ..plan(method, steps, 0.0, out)
    }
}

#[test]
fn every_family_and_variant_trains_as_transformers_and_peft_do() {
    let references = references();
    let rows = draw_rows(&references);
    for scenario in references["scenarios"].as_array().unwrap() {
        let name = scenario["name"].as_str().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let config = &references["models"][scenario["model"].as_str().unwrap()];
        draw_model(dir.path(), config, references["model_seed"].as_u64().unwrap());
        let method = match &scenario["lora"] {
            Value::Null => Method::Full,
            lora => Method::Lora(serde_json::from_value(lora.clone()).unwrap()),
        };
        let is_lora = method != Method::Full;
        let base = OpenConfig { threads: 2, ..OpenConfig::new(dir.path()) };
        let plan = plan_of(scenario, &references, method, &dir.path().join("out"));
        let (done, events) = train(&base, &plan, &rows, &rows, |_| false);
        let done = done.unwrap();
        assert_eq!(done.trainable_parameters, scenario["trainable"].as_u64().unwrap(), "{name}");

        let relative = |ours: f64, theirs: &Value| (ours - number(theirs)).abs() / number(theirs).abs();
        let (mut loss, mut norm) = (0f64, 0f64);
        let steps = step_events(&events);
        assert_eq!(steps.len(), scenario["steps"].as_array().unwrap().len());
        for (ours, theirs) in steps.iter().zip(scenario["steps"].as_array().unwrap()) {
            loss = loss.max(relative(ours.loss, &theirs["loss"]));
            norm = norm.max(relative(ours.grad_norm, &theirs["grad_norm"]));
            assert!((ours.learning_rate - number(&theirs["learning_rate"])).abs() < 1e-10, "{name}: {ours:?}");
        }
        let evaluation = events.iter().find_map(|event| match event {
            Event::Evaluation { loss, .. } => Some(*loss),
            _ => None,
        });
        let heldout = relative(evaluation.unwrap(), &scenario["eval_loss"]);

        let file = if is_lora { "adapter_model.safetensors" } else { "model.safetensors" };
        let (ours, theirs) = (tensors(&done.last_checkpoint.join(file)), scenario["tensors"].as_object().unwrap());
        let names = |keys: &mut dyn Iterator<Item = &String>| keys.cloned().collect::<BTreeSet<_>>();
        assert_eq!(names(&mut ours.keys()), names(&mut theirs.keys()), "{name}: the tensors that are stored");
        let mut weights = 0f64;
        for (tensor, (_, shape, values)) in &ours {
            assert_eq!(json!(shape), theirs[tensor]["shape"], "{name}: {tensor}");
            let size = number(&theirs[tensor]["norm"]);
            let square: f64 = values.iter().map(|x| f64::from(*x).powi(2)).sum();
            let probe: f64 = values.iter().enumerate().map(|(i, x)| f64::from(*x) * (i as f64).cos()).sum();
            let off = (square.sqrt() - size).abs().max((probe - number(&theirs[tensor]["probe"])).abs());
            weights = weights.max(off / size);
        }
        println!(
            "{name}: losses within {loss:.1e}, gradient norms {norm:.1e}, final loss {heldout:.1e}, tensors {weights:.1e}"
        );
        assert!(loss < 1e-5 && heldout < 1e-5, "{name}: {loss:.1e} {heldout:.1e}");
        assert!(norm < 1e-4, "{name}: {norm:.1e}");
        assert!(weights < 1e-3, "{name}: {weights:.1e}");
    }
}

#[test]
fn stretched_rotary_embeddings_and_a_head_of_its_own_score_as_in_transformers() {
    for model in drawn::references()["models"].as_array().unwrap() {
        let (name, dir) = (&model["name"], tempfile::tempdir().unwrap());
        drawn::write_model(dir.path(), model);
        let (rows, wanted) = drawn::rows_and_logprobs(model);
        let mut session = open(&OpenConfig { threads: 2, ..OpenConfig::new(dir.path()) });
        let rows: Tokens = rows.iter().collect();
        let scores = session.evaluator().unwrap().score(rows.view(), &mut ignore).unwrap();
        assert_eq!(scores.logprobs.len(), wanted.len());
        let worst = scores.logprobs.iter().zip(&wanted).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        println!("{name}: log-probabilities within {worst:.1e}");
        assert!(worst < 2e-5, "{name}: {worst}");
        let warnings = session.info().warnings;
        let own_head = name == "a head of its own";
        assert_eq!(warnings.iter().any(|w| w.contains("lm_head.weight")), own_head, "{name}: {warnings:?}");
        assert!(own_head || warnings.is_empty(), "{name}: {warnings:?}");
    }
}

#[test]
fn a_checkpoint_of_a_head_of_its_own_says_that_it_is_not_tied() {
    let references = drawn::references();
    let model = references["models"].as_array().unwrap().iter().find(|m| m["name"] == "a head of its own").unwrap();
    let dir = tempfile::tempdir().unwrap();
    drawn::write_model(dir.path(), model);
    let rows = draw_rows(&self::references());
    let plan = plan(Method::Full, vec![vec![vec![0]]], 1e-3, &dir.path().join("out"));
    let done = train(&OpenConfig::new(dir.path()), &plan, &rows, &Rows::default(), |_| false).0.unwrap();
    let written = read_json(done.last_checkpoint.join("config.json"));
    assert_eq!(written["tie_word_embeddings"], false);
    let tensors = tensors(&done.last_checkpoint.join("model.safetensors"));
    assert!(tensors["lm_head.weight"] != tensors["model.embed_tokens.weight"]);
    let session = open(&OpenConfig::new(&done.last_checkpoint));
    assert!(session.info().warnings.is_empty(), "{:?}", session.info().warnings);
}

#[test]
fn configurations_of_peft_are_read_and_ours_have_its_keys() {
    let references = references();
    let mut seen = 0;
    for scenario in references["scenarios"].as_array().unwrap().iter().filter(|s| !s["lora"].is_null()) {
        let (name, theirs) = (scenario["name"].as_str().unwrap(), &scenario["adapter_config"]);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("adapter_config.json"), theirs.to_string()).unwrap();
        let read = karat_backend::peft::read_adapter_config(dir.path()).unwrap();
        let asked: LoraConfig = serde_json::from_value(scenario["lora"].clone()).unwrap();
        // What PEFT resolves or reorders means the same modules.
        let config = &references["models"][scenario["model"].as_str().unwrap()];
        draw_model(dir.path(), config, 1);
        let model = Decoder::load(ModelConfig::read(dir.path()).unwrap(), dir.path()).unwrap();
        assert_eq!(
            TargetModules::new(&model.config, &read).unwrap(),
            TargetModules::new(&model.config, &asked).unwrap(),
            "{name}"
        );
        let mut model = model;
        adapter::draw(&mut model, &asked, 1).unwrap();
        adapter::save(&model, &asked, "base", dir.path()).unwrap();
        let ours = read_json(dir.path().join("adapter_config.json"));
        let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
        assert_eq!(keys(&ours), keys(theirs), "{name}");
        for key in
            ["r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "bias"]
        {
            assert_eq!(ours[key], theirs[key], "{name}: {key}");
        }
        seen += 1;
    }
    assert!(seen > 10);
}
