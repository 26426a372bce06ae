//! Small models as transformers and peft compute them, and a backend's numbers held against theirs:
//! the scenarios of `native/tests/references.json`, drawn by the rules of
//! `native/scripts/references.py`, and the folder `shared/reference`. The tests of every backend
//! that trains run them, each with its own sessions.
#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses its part; a test that cannot go on should stop")]

#[path = "../drawn/mod.rs"]
pub mod drawn;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use karat::suite::Hyperparameters;
use karat_backend::*;
use karat_kernels::philox::{Philox, name_key};
use karat_model::ModelConfig;
use serde_json::{Value, json};

use crate::small_runs::{Rows, floats, ids, ignore, plan, read_json, step_events, tensors};

/// The result of a training and its events.
pub type Trained = (Result<TrainSummary, BackendError>, Vec<Event>);

/// The scenarios, their models and rows.
pub fn references() -> Value {
    read_json(Path::new(env!("CARGO_MANIFEST_DIR")).join("../native/tests/references.json"))
}

/// Writes the model folder that the script means: matrices `N(0, 0.15)`, norms around 1 and biases
/// around 0.
pub fn draw_model(folder: &Path, config: &Value, seed: u64) {
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let generator = Philox::new(seed);
    let draw = |(name, shape): (String, Vec<usize>)| {
        let key = name_key(&name);
        let value = |i: usize| {
            let draw = generator.normal(i as u64, key as u32, (key >> 32) as u32);
            (match shape.len() {
                2 => draw * 0.15,
                _ if name.ends_with("bias") => draw * 0.3,
                _ => draw * 0.3 + 1.0,
            }) as f32
        };
        let values = (0..shape.iter().product()).map(value).collect();
        (name, (shape, values))
    };
    let tensors: BTreeMap<_, _> = ModelConfig::read(folder).unwrap().tensors().map(draw).collect();
    drawn::write_tensors(&folder.join("model.safetensors"), &tensors);
}

/// The rows of all scenarios.
pub fn draw_rows(references: &Value) -> Rows {
    let generator = Philox::new(1);
    let mut rows = Rows::default();
    for (number, length) in references["lengths"].as_array().unwrap().iter().enumerate() {
        let (length, key) = (length.as_u64().unwrap() as usize, name_key(&format!("row {number}")));
        let draw = |i: usize| (generator.uniform(i as u64, key as u32, (key >> 32) as u32) * 61.0) as u32;
        let ids: Vec<u32> = (0..length).map(draw).collect();
        let label = |(i, id): (usize, &u32)| if i < length / 3 { IGNORE } else { *id as i32 };
        rows.push(&ids, &ids.iter().enumerate().map(label).collect::<Vec<i32>>());
    }
    rows
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

fn relative(ours: f64, theirs: &Value) -> f64 {
    ((ours - number(theirs)) / number(theirs)).abs()
}

/// Draws the model of `scenario` into `folder`; the plan has its learning rates from the settings
/// that a suite would have.
pub fn prepare(scenario: &Value, references: &Value, folder: &Path) -> TrainPlan {
    let config = &references["models"][scenario["model"].as_str().unwrap()];
    draw_model(folder, config, references["model_seed"].as_u64().unwrap());
    let lora: Option<LoraConfig> = serde_json::from_value(scenario["lora"].clone()).unwrap();
    let settings: Hyperparameters = serde_json::from_value(json!({
        "schedule": scenario["schedule"], "learning_rate": scenario["learning_rate"],
        "warmup": scenario["warmup"], "min_lr_rate": scenario["min_lr_rate"]
    }))
    .unwrap();
    settings.check("scenario").unwrap();
    let steps: Vec<Vec<Vec<u32>>> = serde_json::from_value(references["steps"].clone()).unwrap();
    TrainPlan {
        learning_rates: settings.learning_rates(steps.len()).unwrap(),
        optimizer: AdamW { weight_decay: number(&scenario["weight_decay"]), ..AdamW::default() },
        max_grad_norm: number(&scenario["max_grad_norm"]),
        seed: references["seed"].as_u64().unwrap(),
        ..plan(lora.map_or(Method::Full, Method::Lora), steps, 0.0, &folder.join("out"))
    }
}

/// Holds a training of `scenario` against transformers and peft.
pub fn compare(scenario: &Value, done: &TrainSummary, events: &[Event]) {
    let name = scenario["name"].as_str().unwrap();
    assert_eq!(done.trainable_parameters, scenario["trainable"].as_u64().unwrap(), "{name}");
    let (mut loss, mut norm) = (0f64, 0f64);
    let (ours, theirs) = (step_events(events), scenario["steps"].as_array().unwrap());
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(theirs) {
        loss = loss.max(relative(ours.loss, &theirs["loss"]));
        norm = norm.max(relative(ours.grad_norm, &theirs["grad_norm"]));
        assert!((ours.learning_rate - number(&theirs["learning_rate"])).abs() < 1e-10, "{name}: {ours:?}");
    }
    let evaluation = events.iter().find_map(|event| match event {
        Event::Evaluation { loss, .. } => Some(*loss),
        _ => None,
    });
    let heldout = relative(evaluation.unwrap(), &scenario["eval_loss"]);
    let file = if scenario["lora"].is_null() { "model.safetensors" } else { "adapter_model.safetensors" };
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
    println!("{name}: losses {loss:.1e}, gradient norms {norm:.1e}, final {heldout:.1e}, tensors {weights:.1e}");
    assert!(loss < 1e-5 && heldout < 1e-5, "{name}: {loss:.1e} {heldout:.1e}");
    assert!(norm < 1e-4, "{name}: {norm:.1e}");
    assert!(weights < 1e-3, "{name}: {weights:.1e}");
}

/// Scores every model of `model/tests/references.json`.
pub fn drawn_models_score(open: impl Fn(&OpenConfig) -> Box<dyn Session>) {
    for model in drawn::references()["models"].as_array().unwrap() {
        let (name, dir) = (&model["name"], tempfile::tempdir().unwrap());
        drawn::write_model(dir.path(), model);
        let (rows, wanted) = drawn::rows_and_logprobs(model);
        let mut session = open(&OpenConfig { threads: 2, ..OpenConfig::new(dir.path()) });
        let worst = furthest(&mut *session, &rows.iter().collect(), &wanted);
        println!("{name}: log-probabilities within {worst:.1e}");
        assert!(worst < 2e-5, "{name}: {worst}");
        let warnings = session.info().warnings;
        let own_head = name == "a head of its own";
        assert_eq!(warnings.iter().any(|w| w.contains("lm_head.weight")), own_head, "{name}: {warnings:?}");
        assert!(own_head || warnings.is_empty(), "{name}: {warnings:?}");
    }
}

/// The largest difference of log-probabilities.
fn furthest(session: &mut dyn Session, rows: &Tokens, wanted: &[f64]) -> f64 {
    let scores = session.evaluator().unwrap().score(rows.view(), &mut ignore).unwrap();
    assert_eq!(scores.logprobs.len(), wanted.len());
    scores.logprobs.iter().zip(wanted).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max)
}

/// The models of `shared/reference`, each with the file of its prompts.
const FORWARD: [(&str, &str); 2] =
    [("qwen3-tiny", "qwen3_tiny_forward.json"), ("qwen3-tiny-rand", "qwen3_tiny_rand_forward.json")];

/// Scores the prompts of `shared/reference`, which is `folder`.
pub fn prompts_score(folder: &Path, open: impl Fn(&OpenConfig) -> Box<dyn Session>) {
    for (model, file) in FORWARD {
        let reference = read_json(folder.join(file));
        let prompts = reference["prompts"].as_array().unwrap();
        let wanted: Vec<f64> = prompts.iter().flat_map(|p| floats(&p["token_logprobs"])).collect();
        let tokens = prompts.iter().map(|p| ids(&p["input_ids"])).collect();
        let worst = furthest(&mut *open(&OpenConfig::new(folder.join(model))), &tokens, &wanted);
        println!("{model}: largest difference of {} log-probabilities {worst:.2e}", wanted.len());
        assert!(worst < 1e-4, "{model}: {worst}");
    }
}

/// Continues the prompts of `shared/reference`, which is `folder`.
pub fn prompts_are_continued(folder: &Path, open: impl Fn(&OpenConfig) -> Box<dyn Session>) {
    for (model, file) in FORWARD {
        let reference = read_json(folder.join(file));
        let prompts = reference["prompts"].as_array().unwrap();
        let tokens: Tokens = prompts.iter().map(|p| ids(&p["input_ids"])).collect();
        let config = GenerateConfig::greedy(64, vec![4093, 4091]);
        let mut session = open(&OpenConfig::new(folder.join(model)));
        let got = session.evaluator().unwrap().generate(tokens.view(), &config, &mut ignore).unwrap();
        for (prompt, got) in prompts.iter().zip(got) {
            assert_eq!(got.ids, ids(&prompt["greedy64_eos_stop"]), "{model}");
        }
    }
}

/// The curve of a full training in `shared/reference`, which is `folder`.
pub fn full_curve_matches(folder: &Path, train: impl Fn(&OpenConfig, &TrainPlan, &Rows) -> Trained) {
    let files = ["qwen3_tiny_sft_full.json", "qwen3_tiny_full_final", "model.safetensors"];
    curve_matches(folder, files, Method::Full, None, train);
}

/// The curve of an adapter's training in `shared/reference`, which is `folder`.
pub fn lora_curve_matches(folder: &Path, train: impl Fn(&OpenConfig, &TrainPlan, &Rows) -> Trained) {
    let method = Method::Lora(LoraConfig { r: 8, lora_alpha: 32.0, lora_dropout: 0.0, ..LoraConfig::default() });
    let files = ["qwen3_tiny_sft_lora.json", "qwen3_tiny_lora_final", "adapter_model.safetensors"];
    curve_matches(folder, files, method, Some("qwen3_tiny_lora_init"), train);
}

/// `curve` has the steps, `weights` is the folder of their checkpoint, `file` that of its tensors.
fn curve_matches(
    folder: &Path,
    [curve, weights, file]: [&str; 3],
    method: Method,
    init: Option<&str>,
    train: impl Fn(&OpenConfig, &TrainPlan, &Rows) -> Trained,
) {
    let samples = read_json(folder.join("qwen3_tiny_sft_samples.json"));
    let mut rows = Rows::default();
    for sample in samples["samples"].as_array().unwrap() {
        let labels: Vec<i32> = serde_json::from_value(sample["labels"].clone()).unwrap();
        rows.push(&ids(&sample["input_ids"]), &labels);
    }
    let steps = (0..20u32).map(|s| (0..4).map(|m| vec![s * 4 + m]).collect()).collect();
    let out = tempfile::tempdir().unwrap();
    let mut plan = plan(method, steps, 1e-4, out.path());
    plan.init_adapter = init.map(|name| folder.join(name));
    let (summary, events) = train(&OpenConfig::new(folder.join("qwen3-tiny")), &plan, &rows);
    let summary = summary.unwrap();
    let (mut loss, mut norm) = (0f64, 0f64);
    for (got, want) in step_events(&events).iter().zip(read_json(folder.join(curve))["steps"].as_array().unwrap()) {
        assert!((got.learning_rate - number(&want["lr_logged"])).abs() < 1e-12);
        loss = loss.max(relative(got.loss, &want["loss"]));
        for (got, want) in got.micro_losses.iter().zip(want["micro"].as_array().unwrap()) {
            loss = loss.max(relative(*got, want));
        }
        norm = norm.max(relative(got.grad_norm, &want["grad_norm"]));
    }
    println!("{curve}: losses within {loss:.2e}, gradient norms within {norm:.2e}");
    assert!(loss < 1e-5, "loss {loss}");
    assert!(norm < 1e-4, "gradient norm {norm}");
    let (got, want) = (tensors(&summary.last_checkpoint.join(file)), tensors(&folder.join(weights).join(file)));
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
    let size = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let mut worst = 0f64;
    for (name, (dtype, shape, values)) in &want {
        let (our_dtype, our_shape, our_values) = &got[name];
        assert_eq!((our_dtype, our_shape), (dtype, shape), "{name}");
        let difference = size(&mut values.iter().zip(our_values).map(|(a, b)| f64::from(*a) - f64::from(*b)));
        worst = worst.max(difference / size(&mut values.iter().map(|x| f64::from(*x))));
    }
    println!("{curve}: final weights within {worst:.2e} of each tensor's norm");
    assert!(worst < 1e-3, "weights {worst}");
}
