//! Against numbers that transformers and peft made (`shared/reference`); skipped, with a reason, where they are absent.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod small_runs;

use std::path::Path;

use karat_backend::*;
use karat_native::config::ModelConfig;
use karat_native::model::{Batch, Decoder};
use karat_native::{adapter, tensor};
use small_runs::*;

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

fn greedy_matches(folder: &Path, model: &str, file: &str) {
    let mut session = open(&OpenConfig::new(folder.join(model)));
    let reference = read_json(folder.join(file));
    let prompts = reference["prompts"].as_array().unwrap();
    let tokens: Tokens = prompts.iter().map(|p| ids(&p["input_ids"])).collect();
    let config = GenerateConfig::greedy(64, vec![4093, 4091]);
    let got = session.evaluator().unwrap().generate(tokens.view(), &config, &mut ignore).unwrap();
    for (prompt, got) in prompts.iter().zip(got) {
        assert_eq!(got.ids, ids(&prompt["greedy64_eos_stop"]), "{model}");
    }
}

#[test]
fn greedy_continuations_match_transformers() {
    let folder = reference_or_skip!();
    greedy_matches(&folder, "qwen3-tiny", "qwen3_tiny_forward.json");
    greedy_matches(&folder, "qwen3-tiny-rand", "qwen3_tiny_rand_forward.json");
}

#[test]
fn last_logits_match_transformers() {
    let folder = reference_or_skip!();
    for (model, adapter, prompts, logits) in [
        ("qwen3-tiny", None, "qwen3_tiny_forward.json", "qwen3_tiny_last_logits.safetensors"),
        ("qwen3-tiny-rand", None, "qwen3_tiny_rand_forward.json", "qwen3_tiny_rand_last_logits.safetensors"),
        ("qwen3_tiny_lora_merged", None, "qwen3_tiny_forward.json", "qwen3_tiny_lora_merged_logits.safetensors"),
        // The adapter beside the weights must give what peft's merged weights give.
        (
            "qwen3-tiny",
            Some("qwen3_tiny_lora_final"),
            "qwen3_tiny_forward.json",
            "qwen3_tiny_lora_merged_logits.safetensors",
        ),
    ] {
        let path = folder.join(model);
        let mut decoder = Decoder::load(ModelConfig::read(&path).unwrap(), &path).unwrap();
        if let Some(name) = adapter {
            let adapter = adapter::open(&decoder, &folder.join(name)).unwrap();
            let config = adapter.config().clone();
            adapter::load(&mut decoder, &config, adapter).unwrap();
        }
        let want = tensors(&folder.join(logits));
        let mut worst = 0f64;
        for (i, prompt) in read_json(folder.join(prompts))["prompts"].as_array().unwrap().iter().enumerate() {
            let mut prompt = ids(&prompt["input_ids"]);
            // The merged model's logits are those after the first 64 ids of the first prompt.
            let name = if want.contains_key("logits") { "logits".to_owned() } else { format!("last_logits.{i}") };
            if name == "logits" {
                prompt.truncate(64);
                if i > 0 {
                    break;
                }
            }
            let want = &want[&name].2;
            let hidden = decoder.hidden(&Batch::new([&prompt[..]])).unwrap();
            let last = decoder.device().gather(&hidden, &vec![prompt.len() as u32 - 1].into()).unwrap();
            let got = decoder.logits(&last).unwrap();
            let got = tensor::view(&got).unwrap();
            assert_eq!(got.len(), want.len());
            worst = got.iter().zip(want).map(|(a, b)| f64::from((a - b).abs())).fold(worst, f64::max);
        }
        println!("{model} {adapter:?}: logits within {worst:.2e}");
        assert!(worst < 1e-4, "{model} {adapter:?}: {worst}");
    }
}

#[test]
fn what_is_written_has_the_keys_that_transformers_and_peft_write() {
    let folder = reference_or_skip!();
    let base = OpenConfig::new(folder.join("qwen3-tiny"));
    let rows = small_rows(&[20, 20]);
    let out = tempfile::tempdir().unwrap();
    let keys =
        |path: &Path| read_json(path).as_object().unwrap().keys().cloned().collect::<std::collections::BTreeSet<_>>();

    let plan_full = plan(Method::Full, vec![vec![vec![0]], vec![vec![1]]], 1e-3, &out.path().join("full"));
    let full = train(&base, &plan_full, &rows, &Rows::default(), |_| false).0.unwrap().last_checkpoint;
    let theirs = folder.join("qwen3_tiny_full_final");
    assert_eq!(keys(&full.join("config.json")), keys(&theirs.join("config.json")));
    assert_eq!(read_json(full.join("config.json"))["dtype"], "float32");
    assert_eq!(read_json(full.join("generation_config.json")), read_json(theirs.join("generation_config.json")));
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        assert_eq!(std::fs::read(full.join(name)).unwrap(), std::fs::read(base.model.join(name)).unwrap());
    }

    let method = Method::Lora(LoraConfig { r: 8, lora_alpha: 32.0, lora_dropout: 0.0, ..LoraConfig::default() });
    let plan_lora = plan(method, plan_full.steps.clone(), 1e-3, &out.path().join("lora"));
    let lora = train(&base, &plan_lora, &rows, &Rows::default(), |_| false).0.unwrap().last_checkpoint;
    let (mut ours, mut theirs) = (
        read_json(lora.join("adapter_config.json")),
        read_json(folder.join("qwen3_tiny_lora_final/adapter_config.json")),
    );
    for config in [&mut ours, &mut theirs] {
        config["target_modules"].as_array_mut().unwrap().sort_by_key(|v| v.to_string());
    }
    assert_eq!(ours, theirs);
    let header = std::fs::read(lora.join("adapter_model.safetensors")).unwrap();
    assert!(String::from_utf8_lossy(&header[..200]).contains(r#""__metadata__":{"format":"pt"}"#));
}
