//! Tokens a second of a model: `cargo run --release -p karat-onnxruntime --example speed -- MODEL [THREADS]`.

use std::process::ExitCode;
use std::time::Instant;

use karat::backend::{Backend, BackendError, Event, Flow, GenerateConfig, OpenConfig, Tokens};
use karat_onnxruntime::OnnxRuntimeBackend;

fn measure(model: &str, threads: usize) -> Result<(), BackendError> {
    let mut config = OpenConfig::new(model);
    config.threads = threads;
    let start = Instant::now();
    let mut session = OnnxRuntimeBackend.open(&config)?;
    println!("open: {:.2} s; {:?}", start.elapsed().as_secs_f64(), session.info());
    let vocab = session.info().vocab_size as u32;
    let Some(evaluator) = session.evaluator() else { return Ok(()) };
    let row = |r: u32, n: u32| -> Vec<u32> { (0..n).map(|i| (r * 7919 + i * 104_729) % vocab).collect() };
    let mut go = |_: Event| Flow::Continue;

    let rows: Tokens = (0..16).map(|r| row(r, 64 + 16 * (r % 8))).collect();
    evaluator.score(rows.view(), &mut go)?;
    let start = Instant::now();
    evaluator.score(rows.view(), &mut go)?;
    println!("scoring: {:.0} tokens/s", rows.view().ids().len() as f64 / start.elapsed().as_secs_f64());
    for batch_size in [1, 8] {
        let prompts: Tokens = (0..batch_size as u32).map(|r| row(r, 32)).collect();
        let generate = GenerateConfig { batch_size, ..GenerateConfig::greedy(64, vec![]) };
        let start = Instant::now();
        let made = evaluator.generate(prompts.view(), &generate, &mut go)?;
        let tokens: usize = made.iter().map(|c| c.ids.len()).sum();
        println!(
            "generation, {batch_size} rows of 32 + 64, prompts included: {:.1} new tokens/s",
            tokens as f64 / start.elapsed().as_secs_f64()
        );
    }
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(model) = arguments.first() else {
        eprintln!("usage: speed MODEL [THREADS]");
        return ExitCode::from(2);
    };
    match measure(model, arguments.get(1).and_then(|n| n.parse().ok()).unwrap_or(0)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
