//! The whole engine on the CUDA device, its kernels emulated: training, scoring and generation
//! against the CPU's.
//!
//! Only the driver, cuBLAS and the hardware are left out; `scripts/gpu-checks` compares the same
//! things on a GPU.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

/// The emulated device, or a printed reason and a return.
macro_rules! emulator_or_skip {
    () => {
        if let Err(error) = karat_native::cuda::emulator::Emulator::new() {
            eprintln!("skipped: {error}");
            return;
        }
    };
}

#[path = "cuda/memory.rs"]
mod memory;
mod small_runs;
#[path = "cuda/steps.rs"]
mod steps;

use std::path::Path;

use karat::plugin::{Search, find};
use karat_backend::*;
use karat_native::NativeBackend;
use serde_json::json;
use small_runs::*;

fn on_cuda(base: &OpenConfig) -> OpenConfig {
    OpenConfig { device: "cuda:emulated".into(), ..base.clone() }
}

/// A model whose heads are as wide as the kernels on tensor cores have them.
fn model(dir: &Path, family: &str) -> OpenConfig {
    // The angles of a device are the CPU's, times the factor of yarn.
    let (family, rope) = match family {
        "yarn" => ("qwen3", json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16})),
        family => (family, json!(null)),
    };
    let config = json!({
        "architectures": ["SmallForCausalLM"], "model_type": family, "hidden_size": 48, "intermediate_size": 72,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 50,
        "max_position_embeddings": 96, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu", "rope_scaling": rope,
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
    // Every kernel of every family and method, but not each pair of them.
    let [full, lora, dora] = methods();
    for (family, methods) in [
        ("qwen3", vec![full.clone(), lora, dora]),
        ("qwen2", vec![full.clone()]),
        ("llama", vec![full.clone()]),
        ("yarn", vec![full]),
    ] {
        for method in methods {
            let dir = tempfile::tempdir().unwrap();
            let base = model(dir.path(), family);
            let run = |name: &str, open: &OpenConfig| {
                let plan = TrainPlan { eval_every: 2, ..steps(method.clone(), 4, 1e-3, &dir.path().join(name)) };
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

/// Mean of what two curves differ by, relative.
fn mean_apart(a: &[StepEvent], b: &[StepEvent]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a.loss / b.loss - 1.0).abs()).sum::<f64>() / a.len() as f64
}

#[test]
fn in_bf16_twenty_steps_stay_near_the_cpus() {
    emulator_or_skip!();
    // With one micro-batch a step, gradients are rounded too.
    for (method, micros) in [(Method::Full, 2), (lora(0.1), 2), (Method::Full, 1)] {
        let dir = tempfile::tempdir().unwrap();
        let base = model(dir.path(), "qwen3");
        let run = |name: &str, open: OpenConfig, dtype: Dtype| {
            let mut plan = steps(method.clone(), 20, 3e-3, &dir.path().join(name));
            plan.steps.iter_mut().for_each(|step| step.truncate(micros));
            let (summary, events) = train(&OpenConfig { dtype, ..open }, &plan, &rows(), &Rows::default(), |_| false);
            summary.unwrap();
            step_events(&events)
        };
        let f32 = run("f32", base.clone(), Dtype::F32);
        let cpu = run("cpu", base.clone(), Dtype::Bf16);
        let cuda = run("cuda", on_cuda(&base), Dtype::Bf16);
        let (of_cpu, of_cuda, between) = (mean_apart(&cpu, &f32), mean_apart(&cuda, &f32), mean_apart(&cuda, &cpu));
        let (loss, norm) = curves_apart(&cuda, &f32);
        eprintln!(
            "from f32: cpu {of_cpu:.1e}, cuda {of_cuda:.1e} (most {loss:.1e}, norms {norm:.1e}); between {between:.1e}"
        );
        // Activations are rounded too, which the CPU does not do: seen 2.5e-3 (full) and 3.5e-4
        // (LoRA), where the CPU's bf16 is 2.1e-3 and 2.5e-4 from f32.
        assert!(of_cuda < 5e-3 && norm < 8e-2, "{of_cpu} {of_cuda} {loss} {norm}");
        assert!(cuda != f32 && cuda.last().unwrap().loss < 0.95 * cuda[0].loss);
    }
}

#[test]
fn recomputing_activations_does_not_show_in_a_single_bit_nor_do_threads() {
    emulator_or_skip!();
    for (method, dtype) in methods().into_iter().zip([Dtype::Bf16, Dtype::Bf16, Dtype::F32]) {
        let dir = tempfile::tempdir().unwrap();
        let base = on_cuda(&model(dir.path(), "qwen3"));
        let run = |name: &str, threads: usize, recompute: bool| {
            let open = OpenConfig { threads, dtype, ..base.clone() };
            let plan = TrainPlan { recompute, ..steps(method.clone(), 3, 1e-2, &dir.path().join(name)) };
            let (summary, events) = train(&open, &plan, &rows(), &Rows::default(), |_| false);
            (summary.unwrap().last_checkpoint, step_events(&events))
        };
        let (kept, kept_steps) = run("kept", 1, false);
        let (made, made_steps) = run("made", 2, true);
        assert_eq!(kept_steps, made_steps);
        assert_eq!(weights_apart(&kept, &made, method != Method::Full), 0.0);
    }
}

#[test]
fn resume_is_bitwise_equal_to_never_stopping() {
    emulator_or_skip!();
    for (method, dtype) in methods().into_iter().zip([Dtype::Bf16, Dtype::Bf16, Dtype::F32]) {
        let dir = tempfile::tempdir().unwrap();
        let base = OpenConfig { dtype, ..on_cuda(&model(dir.path(), "qwen3")) };
        let whole_plan = TrainPlan { save_every: 1, ..steps(method.clone(), 4, 1e-2, &dir.path().join("whole")) };
        let (whole, whole_events) = train(&base, &whole_plan, &rows(), &Rows::default(), |_| false);
        let plan = TrainPlan { output_dir: dir.path().join("parts"), ..whole_plan };
        let stop = |event: &Event| matches!(event, Event::Step(s) if s.step == 2);
        let (stopped, first) = train(&base, &plan, &rows(), &Rows::default(), stop);
        assert_eq!(stopped.unwrap_err().kind, BackendErrorKind::Cancelled);
        let plan = TrainPlan { resume_from: Some(plan.output_dir.join("checkpoint-2")), ..plan };
        let (resumed, second) = train(&base, &plan, &rows(), &Rows::default(), |_| false);
        assert_eq!([step_events(&first), step_events(&second)].concat(), step_events(&whole_events));
        let (whole, resumed) = (whole.unwrap().last_checkpoint, resumed.unwrap().last_checkpoint);
        for file in std::fs::read_dir(&whole).unwrap().map(|entry| entry.unwrap().file_name()) {
            assert!(
                std::fs::read(whole.join(&file)).unwrap() == std::fs::read(resumed.join(&file)).unwrap(),
                "{file:?}"
            );
        }
    }
}

#[test]
fn accumulating_micro_batches_equals_one_batch_and_a_checkpoint_trains_on_as_its_weights_do() {
    emulator_or_skip!();
    let dir = tempfile::tempdir().unwrap();
    let base = on_cuda(&model(dir.path(), "qwen3"));
    let run = |open: &OpenConfig, name: &str, steps: Vec<Vec<Vec<u32>>>| {
        let plan = plan(Method::Full, steps, 1e-3, &dir.path().join(name));
        let (summary, events) = train(open, &plan, &rows(), &Rows::default(), |_| false);
        (summary.unwrap().last_checkpoint, step_events(&events))
    };
    let (one, one_steps) = run(&base, "one", vec![vec![vec![0, 1, 3]], vec![vec![4, 5, 0, 1]]]);
    let (_, many_steps) = run(&base, "many", vec![vec![vec![0], vec![1], vec![3]], vec![vec![4, 5], vec![0, 1]]]);
    for (a, b) in one_steps.iter().zip(&many_steps) {
        assert!((a.loss / b.loss - 1.0).abs() < 1e-6 && (a.grad_norm / b.grad_norm - 1.0).abs() < 4e-6);
        assert_eq!(a.tokens, b.tokens);
    }
    // From files: frozen weights are brought to the device as they are stored, and are made
    // trainable there.
    let stored = OpenConfig { model: one, weights: Weights::Load, ..base.clone() };
    let on_cpu = OpenConfig { device: "cpu".into(), ..stored.clone() };
    let (_, cuda) = run(&stored, "on", vec![vec![vec![0, 1]], vec![vec![2]]]);
    let (_, cpu) = run(&on_cpu, "on-cpu", vec![vec![vec![0, 1]], vec![vec![2]]]);
    let (loss, norm) = curves_apart(&cpu, &cuda);
    assert!(loss < 1e-5 && norm < 1e-4, "{loss} {norm}");
}

#[test]
fn scores_are_those_of_the_cpu() {
    emulator_or_skip!();
    for (family, dtype, most) in
        [("qwen3", Dtype::F32, 1e-4), ("llama", Dtype::F32, 1e-4), ("qwen3", Dtype::Bf16, 0.08)]
    {
        let dir = tempfile::tempdir().unwrap();
        let base = model(dir.path(), family);
        let score = |open_config: OpenConfig| {
            let mut session = open(&open_config);
            session.evaluator().unwrap().score(rows().tokens.view(), &mut ignore).unwrap()
        };
        let (cpu, cuda) = (score(base.clone()), score(OpenConfig { dtype, ..on_cuda(&base) }));
        let apart = cpu.logprobs.iter().zip(&cuda.logprobs).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        eprintln!("{family} {dtype}: log-probabilities {apart:.1e} apart");
        assert!(apart < most && cuda.logprobs.len() == cpu.logprobs.len(), "{family}: {apart}");
        if dtype == Dtype::F32 {
            assert_eq!(cpu.greedy, cuda.greedy);
        }
    }
}

#[test]
fn a_gpu_that_is_not_there_is_named_on_both_sides_of_the_boundary() {
    let dir = tempfile::tempdir().unwrap();
    let base = model(dir.path(), "qwen3");
    let plugin = find("native", &Search::from_env()).unwrap();
    assert!(plugin.describe().devices.contains(&"cuda".to_owned()));
    let backends: [&dyn Backend; 2] = [&NativeBackend, &plugin];
    for backend in backends {
        // What the doctor shows is there with and without a driver.
        let facts = backend.provide(false, "auto").unwrap().facts;
        for name in ["cuda cublas", "cuda driver", "cuda kernels"] {
            assert!(facts.contains_key(name), "{facts:?}");
        }
        assert!(facts["cuda kernels"].contains("sm_80"), "{facts:?}");
        let Err(error) = backend.open(&OpenConfig { device: "cuda:0".into(), ..base.clone() }) else {
            eprintln!("skipped: there is a GPU here");
            return;
        };
        assert_eq!(error.kind, BackendErrorKind::Unsupported);
        assert!(error.message.starts_with("no CUDA device can be used: "), "{error}");
        let named = ["the NVIDIA driver (libcuda.so.1) was not found (looked in", "no device", "cuBLAS", "driver"];
        assert!(named.iter().any(|what| error.message.contains(what)), "{error}");
        eprintln!("{error}\n{facts:#?}");
        let info = backend.open(&OpenConfig { device: "auto".into(), ..base.clone() }).unwrap().info();
        assert_eq!(info.device, "cpu");
        assert!(info.kernels.iter().any(|kernel| kernel.contains(&error.message)), "{:?}", info.kernels);
    }
}

#[test]
fn a_report_cannot_take_the_emulator_for_a_gpu() {
    emulator_or_skip!();
    let dir = tempfile::tempdir().unwrap();
    let info = open(&on_cuda(&model(dir.path(), "qwen3"))).info();
    assert_eq!(info.device, "cuda:emulated");
    assert!(info.kernels[0].contains("emulator"), "{:?}", info.kernels);
}

#[test]
fn texts_are_those_of_the_cpu_greedy_and_drawn() {
    emulator_or_skip!();
    let prompts: Tokens = small_rows(&[3, 9, 1, 20, 5]).tokens;
    for family in ["qwen3", "llama"] {
        let dir = tempfile::tempdir().unwrap();
        let base = model(dir.path(), family);
        let generate = |open_config: &OpenConfig, config: &GenerateConfig| {
            let mut session = open(open_config);
            session.evaluator().unwrap().generate(prompts.view(), config, &mut ignore).unwrap()
        };
        let greedy = GenerateConfig::greedy(12, vec![7]);
        let drawn = GenerateConfig { temperature: 0.9, top_k: 20, top_p: 0.95, seed: 4, ..greedy.clone() };
        let plain = GenerateConfig { temperature: 1.3, seed: 5, batch_size: 2, ..greedy.clone() };
        for config in [greedy, drawn, plain] {
            let (cpu, cuda) = (generate(&base, &config), generate(&on_cuda(&base), &config));
            assert_eq!(cpu, cuda, "{family} {config:?}");
            assert!(cpu.iter().any(|c| c.ids.len() > 5));
        }
        // Rounded activations may take another turn; what comes out is a text all the same, the
        // same each time.
        let bf16 = OpenConfig { dtype: Dtype::Bf16, ..on_cuda(&base) };
        let config = GenerateConfig { batch_size: 3, ..GenerateConfig::greedy(8, vec![]) };
        let texts = generate(&bf16, &config);
        assert_eq!(texts, generate(&bf16, &config));
        assert!(texts.iter().all(|c| c.ids.len() == 8 && c.ids.iter().all(|id| *id < 50)));
    }
}
