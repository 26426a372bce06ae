//! Against numbers that transformers and peft made (`shared/reference`); skipped, with a reason, where they are absent.

mod common;

use std::path::Path;

use common::*;
use karat::backend::*;
use karat::train::LoraConfig;

fn scores_match(folder: &Path, model: &str, file: &str) {
    let mut session = open(&OpenConfig::new(folder.join(model)));
    let reference = read_json(folder.join(file));
    let prompts = reference["prompts"].as_array().unwrap();
    let tokens: Tokens = prompts.iter().map(|p| ids(&p["input_ids"])).collect();
    let scores = session.evaluator().unwrap().score(tokens.view(), &mut ignore).unwrap();
    let want: Vec<f64> = prompts.iter().flat_map(|p| floats(&p["token_logprobs"])).collect();
    assert_eq!(scores.logprobs.len(), want.len());
    let worst = scores.logprobs.iter().zip(&want).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
    println!("{model}: largest difference of {} log-probabilities {worst:.2e}", want.len());
    assert!(worst < 1e-4, "{model}: {worst}");
}

#[test]
fn log_probabilities_match_transformers() {
    let folder = reference_or_skip!();
    scores_match(&folder, "qwen3-tiny", "qwen3_tiny_forward.json");
    scores_match(&folder, "qwen3-tiny-rand", "qwen3_tiny_rand_forward.json");
}

fn curve_matches(folder: &Path, file: &str, method: Method, init: Option<&str>, final_weights: &str, ours: &str) {
    let samples = read_json(folder.join("qwen3_tiny_sft_samples.json"));
    let mut rows = Rows::default();
    for sample in samples["samples"].as_array().unwrap() {
        let labels: Vec<i32> =
            sample["labels"].as_array().unwrap().iter().map(|v| v.as_i64().unwrap() as i32).collect();
        rows.push(&ids(&sample["input_ids"]), &labels);
    }
    let steps = (0..20u32).map(|s| (0..4).map(|m| vec![s * 4 + m]).collect()).collect();
    let out = tempfile::tempdir().unwrap();
    let mut plan = plan(method, steps, 1e-4, out.path());
    plan.init_adapter = init.map(|name| folder.join(name));
    let (summary, events) =
        train(&OpenConfig::new(folder.join("qwen3-tiny")), &plan, &rows, &Rows::default(), |_| false);
    let summary = summary.unwrap();
    let reference = read_json(folder.join(file));
    let (mut worst_loss, mut worst_norm) = (0f64, 0f64);
    for (got, want) in step_events(&events).iter().zip(reference["steps"].as_array().unwrap()) {
        assert!((got.learning_rate - want["lr_logged"].as_f64().unwrap()).abs() < 1e-12);
        let relative = |a: f64, b: &serde_json::Value| ((a - b.as_f64().unwrap()) / b.as_f64().unwrap()).abs();
        worst_loss = worst_loss.max(relative(got.loss, &want["loss"]));
        for (got, want) in got.micro_losses.iter().zip(want["micro"].as_array().unwrap()) {
            worst_loss = worst_loss.max(relative(*got, want));
        }
        worst_norm = worst_norm.max(relative(got.grad_norm, &want["grad_norm"]));
    }
    println!("{file}: losses within {worst_loss:.2e}, gradient norms within {worst_norm:.2e}");
    assert!(worst_loss < 1e-5, "loss {worst_loss}");
    assert!(worst_norm < 1e-4, "gradient norm {worst_norm}");

    let (got, want) = (tensors(&summary.last_checkpoint.join(ours)), tensors(&folder.join(final_weights).join(ours)));
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
    let mut worst = 0f64;
    for (name, (dtype, shape, values)) in &want {
        let (our_dtype, our_shape, our_values) = &got[name];
        assert_eq!((our_dtype, our_shape), (dtype, shape), "{name}");
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
        let size = norm(&mut values.iter().map(|x| f64::from(*x)));
        let difference = norm(&mut values.iter().zip(our_values).map(|(a, b)| f64::from(*a) - f64::from(*b)));
        worst = worst.max(difference / size);
    }
    println!("{file}: final weights within {worst:.2e} of each tensor's norm");
    assert!(worst < 1e-3, "weights {worst}");
}

#[test]
fn full_training_follows_the_curve_of_transformers() {
    let folder = reference_or_skip!();
    curve_matches(
        &folder,
        "qwen3_tiny_sft_full.json",
        Method::Full,
        None,
        "qwen3_tiny_full_final",
        "model.safetensors",
    );
}

#[test]
fn lora_training_follows_the_curve_of_peft() {
    let folder = reference_or_skip!();
    let method = Method::Lora(LoraConfig { r: 8, lora_alpha: 32.0, lora_dropout: 0.0, ..LoraConfig::default() });
    let init = Some("qwen3_tiny_lora_init");
    curve_matches(
        &folder,
        "qwen3_tiny_sft_lora.json",
        method,
        init,
        "qwen3_tiny_lora_final",
        "adapter_model.safetensors",
    );
}
