//! Trains a model folder for a few steps and prints one JSON object, which `python/side_by_side.py`
//! sets beside PyTorch.
//!
//! `karat-tools train model=DIR method=full|lora dtype=f32|bf16 recompute=0|1
//! length=512 steps=4 dropout=0.0 threads=2`
//!
//! With `KARAT_PROFILE=1` the time by operation goes to the error stream.
//!
//! Items are drawn by a generator that is easy to write again in another language, one row of
//! `length` ids a step, all of them trained on. The first step warms up and is not counted.

use karat_backend::*;
use karat_native::NativeBackend;

use crate::Done;
use crate::args::{Args, processor_seconds};
use crate::plan::plan;

/// Trains and prints.
pub fn run(args: &Args) -> Done {
    let (length, steps) = (args.number("length", 512)?, args.number("steps", 4)? + 1);
    let dtype = if args.text("dtype", "f32") == "bf16" { Dtype::Bf16 } else { Dtype::F32 };
    let open = OpenConfig { dtype, threads: args.number("threads", 2)?, ..OpenConfig::new(args.text("model", ".")) };
    let mut session = NativeBackend.open(&open)?;
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
    let method = match args.text("method", "full").as_str() {
        "lora" => Method::Lora(LoraConfig {
            r: 8,
            lora_alpha: 32.0,
            lora_dropout: args.number("dropout", 0.0)?,
            ..LoraConfig::default()
        }),
        _ => Method::Full,
    };
    let out = std::env::temp_dir().join(format!("karat-measure-{}", std::process::id()));
    let rows = (0..steps as u32).map(|step| vec![vec![step]]).collect();
    let plan = TrainPlan { recompute: args.number("recompute", 0)? == 1, ..plan(method, rows, out.clone()) };
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
    let data = LabelledView::new(tokens.view(), &labels)?;
    let eval = LabelledView::new(none.view(), &[])?;
    let trainer = session.trainer().ok_or("no trainer")?;
    trainer.train(data, eval, &plan, &mut sink)?;
    Ok(())
}
