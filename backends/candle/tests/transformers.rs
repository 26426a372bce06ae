//! Against numbers that transformers and peft made: scores, texts and training curves, within the tolerances of the native
//! backend. Those of `shared/reference` are skipped, with a reason, where they are absent.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "../../model/tests/drawn/mod.rs"]
mod drawn;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use karat::suite::Hyperparameters;
use karat_backend::*;
use karat_kernels::philox::{Philox, name_key};
use karat_model::ModelConfig;
use serde_json::{Value, json};
use support::small_runs::{Rows, floats, ids, ignore, plan, read_json, step_events, tensors};
use support::{open, small_runs, train};

fn relative(ours: f64, theirs: &Value) -> f64 {
    let theirs = theirs.as_f64().unwrap();
    ((ours - theirs) / theirs).abs()
}

#[test]
fn log_probabilities_and_greedy_texts_match_transformers() {
    let folder = reference_or_skip!();
    for (model, file) in
        [("qwen3-tiny", "qwen3_tiny_forward.json"), ("qwen3-tiny-rand", "qwen3_tiny_rand_forward.json")]
    {
        let mut session = open(&OpenConfig::new(folder.join(model)));
        let reference = read_json(folder.join(file));
        let prompts = reference["prompts"].as_array().unwrap();
        let tokens: Tokens = prompts.iter().map(|p| ids(&p["input_ids"])).collect();
        let scores = support::score(&mut *session, &tokens);
        let want: Vec<f64> = prompts.iter().flat_map(|p| floats(&p["token_logprobs"])).collect();
        assert_eq!(scores.logprobs.len(), want.len());
        let worst = scores.logprobs.iter().zip(&want).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        println!("{model}: largest difference of {} log-probabilities {worst:.2e}", want.len());
        assert!(worst < 1e-4, "{model}: {worst}");
        let config = GenerateConfig::greedy(64, vec![4093, 4091]);
        let got = session.evaluator().unwrap().generate(tokens.view(), &config, &mut ignore).unwrap();
        for (prompt, got) in prompts.iter().zip(got) {
            assert_eq!(got.ids, ids(&prompt["greedy64_eos_stop"]), "{model}");
        }
    }
}

fn curve_matches(folder: &Path, file: &str, method: Method, init: Option<&str>, weights: &str, ours: &str) {
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
    let (summary, events) =
        train(&OpenConfig::new(folder.join("qwen3-tiny")), &plan, &rows, &Rows::default(), |_| false);
    let summary = summary.unwrap();
    let (mut loss, mut norm) = (0f64, 0f64);
    for (got, want) in step_events(&events).iter().zip(read_json(folder.join(file))["steps"].as_array().unwrap()) {
        loss = loss.max(relative(got.loss, &want["loss"]));
        for (got, want) in got.micro_losses.iter().zip(want["micro"].as_array().unwrap()) {
            loss = loss.max(relative(*got, want));
        }
        norm = norm.max(relative(got.grad_norm, &want["grad_norm"]));
    }
    println!("{file}: losses within {loss:.2e}, gradient norms within {norm:.2e}");
    assert!(loss < 1e-5, "loss {loss}");
    assert!(norm < 1e-4, "gradient norm {norm}");
    let (got, want) = (tensors(&summary.last_checkpoint.join(ours)), tensors(&folder.join(weights).join(ours)));
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
    let size = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    for (name, (dtype, shape, values)) in &want {
        let (our_dtype, our_shape, our_values) = &got[name];
        assert_eq!((our_dtype, our_shape), (dtype, shape), "{name}");
        let difference = size(&mut values.iter().zip(our_values).map(|(a, b)| f64::from(*a) - f64::from(*b)));
        let off = difference / size(&mut values.iter().map(|x| f64::from(*x)));
        assert!(off < 1e-3, "{name} {off}");
    }
}

#[test]
fn full_training_follows_the_curve_of_transformers() {
    let folder = reference_or_skip!();
    let (file, weights) = ("qwen3_tiny_sft_full.json", "qwen3_tiny_full_final");
    curve_matches(&folder, file, Method::Full, None, weights, "model.safetensors");
}

#[test]
fn lora_training_follows_the_curve_of_peft() {
    let folder = reference_or_skip!();
    let method = Method::Lora(LoraConfig { r: 8, lora_alpha: 32.0, lora_dropout: 0.0, ..LoraConfig::default() });
    let (file, init, weights) = ("qwen3_tiny_sft_lora.json", Some("qwen3_tiny_lora_init"), "qwen3_tiny_lora_final");
    curve_matches(&folder, file, method, init, weights, "adapter_model.safetensors");
}

/// Writes the model folder that `scripts/references.py` of the native backend means.
fn draw_model(folder: &Path, config: &Value, seed: u64) {
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
        (name.clone(), (shape.clone(), values))
    };
    let tensors: BTreeMap<_, _> = ModelConfig::read(folder).unwrap().tensors().map(draw).collect();
    drawn::write_tensors(&folder.join("model.safetensors"), &tensors);
}

fn draw_rows(references: &Value) -> Rows {
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

#[test]
fn every_family_and_variant_trains_as_transformers_and_peft_do() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../native/tests/references.json");
    let references = read_json(path);
    let rows = draw_rows(&references);
    let (mut trained, mut refused) = (0, 0);
    for scenario in references["scenarios"].as_array().unwrap() {
        let (name, dir) = (scenario["name"].as_str().unwrap(), tempfile::tempdir().unwrap());
        let config = &references["models"][scenario["model"].as_str().unwrap()];
        draw_model(dir.path(), config, references["model_seed"].as_u64().unwrap());
        let lora: Option<LoraConfig> = serde_json::from_value(scenario["lora"].clone()).unwrap();
        let (is_lora, dora) = (lora.is_some(), lora.as_ref().is_some_and(|lora| lora.use_dora));
        let settings: Hyperparameters = serde_json::from_value(json!({
            "schedule": scenario["schedule"], "learning_rate": scenario["learning_rate"],
            "warmup": scenario["warmup"], "min_lr_rate": scenario["min_lr_rate"]
        }))
        .unwrap();
        let steps: Vec<Vec<Vec<u32>>> = serde_json::from_value(references["steps"].clone()).unwrap();
        let plan = TrainPlan {
            learning_rates: settings.learning_rates(steps.len()).unwrap(),
            optimizer: AdamW { weight_decay: scenario["weight_decay"].as_f64().unwrap(), ..AdamW::default() },
            max_grad_norm: scenario["max_grad_norm"].as_f64().unwrap(),
            seed: references["seed"].as_u64().unwrap(),
            ..plan(lora.map_or(Method::Full, Method::Lora), steps, 0.0, &dir.path().join("out"))
        };
        let (done, events) = train(&OpenConfig::new(dir.path()), &plan, &rows, &rows, |_| false);
        if dora {
            let error = done.unwrap_err();
            assert!(error.kind == BackendErrorKind::Unsupported && error.message.contains("native"), "{name}: {error}");
            refused += 1;
            continue;
        }
        let done = done.unwrap();
        assert_eq!(done.trainable_parameters, scenario["trainable"].as_u64().unwrap(), "{name}");
        let (mut loss, mut norm) = (0f64, 0f64);
        let (ours, theirs) = (step_events(&events), scenario["steps"].as_array().unwrap());
        assert_eq!(ours.len(), theirs.len());
        for (ours, theirs) in ours.iter().zip(theirs) {
            loss = loss.max(relative(ours.loss, &theirs["loss"]));
            norm = norm.max(relative(ours.grad_norm, &theirs["grad_norm"]));
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
            let number = |key: &str| theirs[tensor][key].as_f64().unwrap();
            let square: f64 = values.iter().map(|x| f64::from(*x).powi(2)).sum();
            let probe: f64 = values.iter().enumerate().map(|(i, x)| f64::from(*x) * (i as f64).cos()).sum();
            let off = (square.sqrt() - number("norm")).abs().max((probe - number("probe")).abs());
            weights = weights.max(off / number("norm"));
        }
        println!("{name}: losses {loss:.1e}, gradient norms {norm:.1e}, final {heldout:.1e}, tensors {weights:.1e}");
        assert!(loss < 1e-5 && heldout < 1e-5, "{name}: {loss:.1e} {heldout:.1e}");
        assert!(norm < 1e-4, "{name}: {norm:.1e}");
        assert!(weights < 1e-3, "{name}: {weights:.1e}");
        trained += 1;
    }
    assert!(trained > 10 && refused > 0, "{trained} trained, {refused} refused");
}

#[test]
fn stretched_rotary_embeddings_and_a_head_of_its_own_score_as_in_transformers() {
    for model in drawn::references()["models"].as_array().unwrap() {
        let (name, dir) = (&model["name"], tempfile::tempdir().unwrap());
        drawn::write_model(dir.path(), model);
        let (rows, wanted) = drawn::rows_and_logprobs(model);
        let mut session = open(&OpenConfig::new(dir.path()));
        let scores = support::score(&mut *session, &rows.iter().collect());
        assert_eq!(scores.logprobs.len(), wanted.len());
        let worst = scores.logprobs.iter().zip(&wanted).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        println!("{name}: log-probabilities within {worst:.1e}");
        assert!(worst < 2e-5, "{name}: {worst}");
        let said = session.info().warnings.iter().any(|w| w.contains("lm_head.weight"));
        assert_eq!(said, name == "a head of its own", "{name}");
    }
}
