//! The memory that training takes, against the formula of `karat_native::memory`: each run in a
//! process of its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod small_runs;

use std::path::Path;
use std::process::Command;

use karat_backend::*;
use karat_native::config::ModelConfig;
use karat_native::device::Precision;
use karat_native::memory::{TrainingShape, peak};
use serde_json::json;
use small_runs::*;

const TOKENS: usize = 512;

/// A model whose parts are large enough to be seen.
fn write_model(dir: &Path) {
    let config = json!({
        "model_type": "qwen3", "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 16384,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": true, "initializer_range": 0.02
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

/// Not a test of its own: what [`peaks_are_as_the_formula_says`] runs in a child, told by the
/// environment.
#[test]
fn child() {
    let Ok(model) = std::env::var("KARAT_MEMORY_MODEL") else { return };
    let set = |key: &str| std::env::var(key).is_ok_and(|v| v == "1");
    let dtype = if set("KARAT_MEMORY_BF16") { Dtype::Bf16 } else { Dtype::F32 };
    let method = if set("KARAT_MEMORY_LORA") { lora(0.0) } else { Method::Full };
    let mut rows = Rows::default();
    let ids: Vec<u32> = (0..TOKENS as u32).map(|i| i * 37 % 16384).collect();
    let labels: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
    rows.push(&ids, &labels);
    let out = Path::new(&model).join("out");
    let step = vec![vec![0]; if set("KARAT_MEMORY_TWO") { 2 } else { 1 }];
    let plan = TrainPlan { recompute: set("KARAT_MEMORY_RECOMPUTE"), ..plan(method, vec![step; 2], 1e-4, &out) };
    let before = karat_system::memory::resident().unwrap();
    let open = OpenConfig { dtype, threads: 2, ..OpenConfig::new(&model) };
    let (result, events) = train(&open, &plan, &rows, &Rows::default(), |_| false);
    result.unwrap();
    let said = |e: &Event| matches!(e, Event::Log { level: Level::Info, message } if message.starts_with("about "));
    assert!(events.iter().any(said), "nothing is said of the memory that this will take");
    assert_eq!(step_events(&events).len(), 2);
    println!("peak={}", karat_system::memory::peak().unwrap() - before);
}

#[test]
fn peaks_are_as_the_formula_says() {
    if karat_system::memory::peak().is_none() {
        eprintln!("skipped: this system does not say how much memory a process takes");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path());
    // The weights as a file: trained for no step's worth, written by training itself.
    let random = OpenConfig { weights: Weights::Random, threads: 2, ..OpenConfig::new(dir.path()) };
    let first = plan(Method::Full, vec![vec![vec![0]]], 0.0, &dir.path().join("first"));
    let (made, _) = train(&random, &first, &small_rows(&[8]), &Rows::default(), |_| false);
    let model = made.unwrap().last_checkpoint;
    let file = std::fs::metadata(model.join("model.safetensors")).unwrap().len();
    let config = ModelConfig::read(&model).unwrap();
    let mut peaks = Vec::new();
    for (bf16, adapter, recompute, two) in [
        (true, false, false, false),
        (true, false, false, true),
        (true, false, true, false),
        (false, false, true, false),
        (true, true, true, false),
        (true, true, false, false),
        (false, true, false, false),
    ] {
        let flag = |on: bool| if on { "1" } else { "0" };
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env("KARAT_MEMORY_MODEL", &model)
            .env("KARAT_MEMORY_BF16", flag(bf16))
            .env("KARAT_MEMORY_LORA", flag(adapter))
            .env("KARAT_MEMORY_RECOMPUTE", flag(recompute))
            .env("KARAT_MEMORY_TWO", flag(two))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        let measured: u64 = text.split("peak=").nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap();
        let parameters = file / 4;
        let trained = if adapter { parameters / 50 } else { parameters };
        let run = TrainingShape {
            weights: if adapter { file + 4 * trained } else { 4 * parameters },
            trained,
            full: !adapter,
            head: !adapter,
            tokens: TOKENS,
            evaluated: 0,
            micro_batches: if two { 2 } else { 1 },
            precision: if bf16 { Precision::Bf16 } else { Precision::F32 },
            recompute,
        };
        let want = peak(&config, &run).total();
        println!(
            "bf16 {bf16}, lora {adapter}, recompute {recompute}, two {two}: {measured} measured, {want} by the formula"
        );
        peaks.push(measured);
        // Thread stacks, panels, buffers rounded up and the pages of the program itself stand in no
        // formula.
        let (low, high) = (want * 3 / 4, want * 5 / 4 + (16 << 20));
        assert!((low..high).contains(&measured), "{measured} is not within {low} to {high}");
    }
    // With one micro-batch gradients take the room of activations: the sum of both is never there.
    let (one, two) = (peaks[0], peaks[1]);
    assert!(one + (16 << 20) < two, "{one} with one micro-batch, {two} with two");
}
