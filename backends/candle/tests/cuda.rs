//! The whole engine on the CUDA device, its kernels emulated: training, scoring and generation against the CPU's.
//!
//! Only the driver, cuBLAS and the hardware are left out; `scripts/gpu-checks` compares the same things on a GPU.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod common;

use std::path::Path;

use common::*;
use karat::backend::*;
use karat::train::LoraConfig;
use serde_json::json;

/// The emulated device, or a printed reason and a return.
macro_rules! emulator_or_skip {
    () => {
        if let Err(error) = karat_candle::cuda::emulator::Emulator::new() {
            eprintln!("skipped: {error}");
            return;
        }
    };
}

fn on_cuda(base: &OpenConfig) -> OpenConfig {
    OpenConfig { device: "cuda:emulated".into(), ..base.clone() }
}

/// A model whose heads are as wide as the kernels on tensor cores have them.
fn model(dir: &Path, family: &str) -> OpenConfig {
    let config = json!({
        "architectures": ["SmallForCausalLM"], "model_type": family, "hidden_size": 48, "intermediate_size": 72,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 50,
        "max_position_embeddings": 96, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": family != "llama", "attention_bias": family == "llama", "mlp_bias": family == "llama",
        "initializer_range": 0.15, "torch_dtype": "bfloat16"
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    OpenConfig { weights: Weights::Random, threads: 2, seed: 3, ..OpenConfig::new(dir) }
}

/// Steps of two micro-batches of two rows.
fn steps(method: Method, count: u32, lr: f64, out: &Path) -> TrainPlan {
    let steps = (0..count).map(|s| vec![vec![s % 5, (s + 1) % 5], vec![(s + 2) % 5, 5]]).collect();
    plan(method, steps, lr, out)
}

fn rows() -> Rows {
    small_rows(&[12, 7, 70, 9, 15, 5])
}

fn eval_rows() -> Rows {
    small_rows(&[6, 30, 11])
}

/// Everything; an adapter with dropout; magnitudes and whole modules beside one.
fn methods() -> [Method; 3] {
    let Method::Lora(plain) = lora(0.2) else { unreachable!() };
    let dora = LoraConfig {
        use_dora: true,
        modules_to_save: vec!["model.norm".into(), "v_proj".into()],
        rank_pattern: [("down_proj".to_owned(), 2)].into(),
        ..plain
    };
    [Method::Full, lora(0.2), Method::Lora(dora)]
}

/// Largest difference of two folders' weights, relative to the largest number of each tensor.
fn weights_apart(a: &Path, b: &Path, lora: bool) -> f64 {
    let file = if lora { "adapter_model.safetensors" } else { "model.safetensors" };
    let (a, b) = (tensors(&a.join(file)), tensors(&b.join(file)));
    assert!(a.keys().eq(b.keys()));
    let apart = a.iter().map(|(name, (_, shape, x))| {
        let (_, other, y) = &b[name];
        assert_eq!(shape, other);
        let largest = x.iter().fold(1e-30f32, |m, x| m.max(x.abs()));
        f64::from(x.iter().zip(y).fold(0f32, |m, (x, y)| m.max((x - y).abs())) / largest)
    });
    apart.fold(0.0, f64::max)
}

/// Largest relative differences of losses and of gradient norms.
fn curves_apart(a: &[StepEvent], b: &[StepEvent]) -> (f64, f64) {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold((0.0, 0.0), |(loss, norm), (a, b)| {
        assert_eq!((a.step, a.tokens, a.label_tokens), (b.step, b.tokens, b.label_tokens));
        (loss.max((a.loss / b.loss - 1.0).abs()), norm.max((a.grad_norm / b.grad_norm - 1.0).abs()))
    })
}

#[test]
fn in_f32_training_is_that_of_the_cpu() {
    emulator_or_skip!();
    for family in ["qwen3", "qwen2", "llama"] {
        for method in methods() {
            let dir = tempfile::tempdir().unwrap();
            let base = model(dir.path(), family);
            let run = |name: &str, open: &OpenConfig| {
                let plan = TrainPlan { eval_every: 3, ..steps(method.clone(), 6, 1e-3, &dir.path().join(name)) };
                let (summary, events) = train(open, &plan, &rows(), &eval_rows(), |_| false);
                let evaluations: Vec<f64> = events
                    .iter()
                    .filter_map(|e| if let Event::Evaluation { loss, .. } = e { Some(*loss) } else { None })
                    .collect();
                (summary.unwrap().last_checkpoint, step_events(&events), evaluations)
            };
            let (cpu, cpu_steps, cpu_evaluations) = run("cpu", &base);
            let (cuda, cuda_steps, cuda_evaluations) = run("cuda", &on_cuda(&base));
            let (loss, norm) = curves_apart(&cpu_steps, &cuda_steps);
            let weights = weights_apart(&cpu, &cuda, method != Method::Full);
            eprintln!("{family}: losses {loss:.1e}, norms {norm:.1e}, weights {weights:.1e}");
            assert!(loss < 1e-5 && norm < 1e-4 && weights < 2e-3, "{family} {method:?}: {loss} {norm} {weights}");
            for (a, b) in cpu_evaluations.iter().zip(&cuda_evaluations) {
                assert!((a / b - 1.0).abs() < 1e-5, "{family}: {a} {b}");
            }
            assert_eq!(cpu_evaluations.len(), 2);
        }
    }
}
