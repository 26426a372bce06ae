//! Against numbers that transformers and peft made (`shared/reference`); skipped, with a reason,
//! where they are absent.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "../../model/tests/scenarios/mod.rs"]
mod scenarios;
mod small_runs;

use std::path::Path;

use karat_backend::*;
use karat_native::config::ModelConfig;
use karat_native::model::{Batch, Decoder};
use karat_native::{adapter, tensor};
use small_runs::*;

#[test]
fn log_probabilities_match_transformers() {
    scenarios::prompts_score(&reference_or_skip!(), open);
}

fn trained(open: &OpenConfig, plan: &TrainPlan, rows: &Rows) -> scenarios::Trained {
    train(open, plan, rows, &Rows::default(), |_| false)
}

#[test]
fn full_training_follows_the_curve_of_transformers() {
    scenarios::full_curve_matches(&reference_or_skip!(), trained);
}

#[test]
fn lora_training_follows_the_curve_of_peft() {
    scenarios::lora_curve_matches(&reference_or_skip!(), trained);
}

#[test]
fn greedy_continuations_match_transformers() {
    scenarios::prompts_are_continued(&reference_or_skip!(), open);
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
