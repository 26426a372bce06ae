//! Trains a model folder for a few steps and prints one JSON object: what `bench/side_by_side.py` sets beside PyTorch.
//!
//! `cargo run --release -p karat-native --example measure -- model=DIR method=full|lora dtype=f32|bf16 recompute=0|1
//! length=512 steps=4 dropout=0.0 threads=2`
//!
//! With `KARAT_PROFILE=1` the time by operation goes to the error stream.
//!
//! Items are drawn by a generator that is easy to write again in another language, one row of `length` ids a step, all
//! of them trained on. The first step warms up and is not counted.

use std::collections::BTreeMap;

use karat_backend::*;
use karat_native::NativeBackend;

/// Seconds of processor time of this process: on a machine that others use too, the steadier measure.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<f64> = stat.split_whitespace().skip(13).take(2).filter_map(|f| f.parse().ok()).collect();
    fields.iter().sum::<f64>() / 100.0
}

fn main() {
    let args: BTreeMap<String, String> =
        std::env::args().skip(1).filter_map(|a| a.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()))).collect();
    let arg = |key: &str, default: &str| args.get(key).cloned().unwrap_or_else(|| default.into());
    let number = |key: &str, default: usize| args.get(key).and_then(|v| v.parse().ok()).unwrap_or(default);
    let (length, steps) = (number("length", 512), number("steps", 4) + 1);
    let dtype = if arg("dtype", "f32") == "bf16" { Dtype::Bf16 } else { Dtype::F32 };
    let open = OpenConfig { dtype, threads: number("threads", 2), ..OpenConfig::new(arg("model", ".")) };
    let mut session = NativeBackend.open(&open).expect("a session");
    let info = session.info();
    let mut state = 12345u32;
    let tokens: Tokens = (0..steps)
        .map(|_| {
            let draw = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) % info.vocab_size as u32
            };
            std::iter::repeat_with(draw).take(length).collect::<Vec<_>>()
        })
        .collect();
    let labels: Vec<i32> = tokens.view().ids().iter().map(|id| *id as i32).collect();
    let method = match arg("method", "full").as_str() {
        "lora" => Method::Lora(LoraConfig {
            r: 8,
            lora_alpha: 32.0,
            lora_dropout: arg("dropout", "0").parse().expect("dropout"),
            ..LoraConfig::default()
        }),
        _ => Method::Full,
    };
    let out = std::env::temp_dir().join(format!("karat-measure-{}", std::process::id()));
    let plan = TrainPlan {
        method,
        steps: (0..steps as u32).map(|s| vec![vec![s]]).collect(),
        learning_rates: vec![1e-4; steps],
        epochs: (1..=steps).map(|s| s as f64).collect(),
        optimizer: AdamW::default(),
        max_grad_norm: 1.0,
        eval_every: 0,
        eval_batch_size: 1,
        save_every: 0,
        save_total_limit: 1,
        recompute: number("recompute", 0) == 1,
        output_dir: out.clone(),
        resume_from: None,
        init_adapter: None,
        early_stopping: None,
        seed: 1,
        fingerprint: "measure".into(),
    };
    let none = Tokens::new();
    let (mut seconds, mut losses, mut warm) = (Vec::new(), Vec::new(), 0.0);
    let mut sink = |event: Event| {
        if let Event::Step(step) = event {
            seconds.push(step.seconds);
            losses.push(step.loss);
            // Stopped before the checkpoint is written: what is measured is training.
            let peak = karat_system::memory::peak().unwrap_or(0);
            if step.step == 1 {
                warm = processor_seconds();
                karat_native::profile::reset();
            }
            if step.step == steps {
                let processor = processor_seconds() - warm;
                if let Some(table) = karat_native::profile::table(seconds[1..].iter().sum()) {
                    eprint!("{table}");
                }
                let best = seconds[1..].iter().copied().fold(f64::MAX, f64::min);
                let mut sorted = seconds[1..].to_vec();
                sorted.sort_by(f64::total_cmp);
                let median = sorted[sorted.len() / 2];
                println!(
                    "{}",
                    serde_json::json!({
                        "tokens_per_second": length as f64 / median, "best": length as f64 / best, "peak": peak,
                        "tokens_per_processor_second": (length * (steps - 1)) as f64 / processor,
                        "losses": losses, "kernels": info.kernels, "parameters": info.parameters,
                    })
                );
                std::process::exit(0);
            }
        }
        Flow::Continue
    };
    let data = LabelledView::new(tokens.view(), &labels).expect("labels");
    let eval = LabelledView::new(none.view(), &[]).expect("no rows");
    session.trainer().expect("a trainer").train(data, eval, &plan, &mut sink).expect("a run");
}
