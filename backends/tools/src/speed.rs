//! Measures training, scoring and generation on a model of random weights:
//! `karat-tools speed [threads=0] [hidden=192] [layers=6] [inner=512] [vocab=4096]`.

use std::time::Instant;

use karat_backend::*;
use karat_native::NativeBackend;

use crate::Done;
use crate::args::{Args, processor_seconds};
use crate::plan::plan;

/// Measures and prints.
pub fn run(args: &Args) -> Done {
    let (threads, vocab) = (args.number("threads", 0)?, args.number("vocab", 4096usize)?);
    let (hidden, layers, inner): (usize, usize, usize) =
        (args.number("hidden", 192)?, args.number("layers", 6)?, args.number("inner", 512)?);
    let folder = tempfile::tempdir()?;
    let dir = folder.path();
    let config = format!(
        r#"{{"model_type": "qwen3", "hidden_size": {hidden}, "intermediate_size": {inner}, "num_hidden_layers": {layers},
        "num_attention_heads": {}, "num_key_value_heads": {}, "head_dim": 64, "vocab_size": {vocab},
        "max_position_embeddings": 4096, "rope_theta": 10000.0, "tie_word_embeddings": true}}"#,
        (hidden / 64).max(2) / 2 * 2,
        ((hidden / 64).max(2) / 2).max(1)
    );
    std::fs::write(dir.join("config.json"), config)?;
    let open = OpenConfig { weights: Weights::Random, threads, ..OpenConfig::new(dir) };

    let (rows, length) = (96usize, 180usize);
    let tokens: Tokens =
        (0..rows).map(|r| (0..length).map(|i| ((r * 7919 + i * 104_729) % vocab) as u32).collect::<Vec<_>>()).collect();
    let labels: Vec<i32> = tokens
        .view()
        .ids()
        .iter()
        .enumerate()
        .map(|(i, id)| if i % length < 60 { IGNORE } else { *id as i32 })
        .collect();
    let methods = [
        ("full", Method::Full),
        ("lora", Method::Lora(LoraConfig { lora_dropout: 0.0, ..LoraConfig::default() })),
        ("lora, dropout", Method::Lora(LoraConfig::default())),
    ];
    for micro in [1usize, 4] {
        for (name, method) in &methods {
            let mut session = NativeBackend.open(&open)?;
            let steps: Vec<Vec<Vec<u32>>> = (0..rows / 4)
                .map(|s| (0..4 / micro).map(|m| (0..micro).map(|r| (s * 4 + m * micro + r) as u32).collect()).collect())
                .collect();
            let plan = plan(method.clone(), steps, dir.join("out"));
            let data = LabelledView::new(tokens.view(), &labels)?;
            let none = Tokens::new();
            let eval = LabelledView::new(none.view(), &[])?;
            let mut seconds = 0.0;
            let before = processor_seconds();
            let mut sink = |event: Event| {
                if let Event::Step(step) = event {
                    seconds += step.seconds;
                }
                Flow::Continue
            };
            let summary = session.trainer().ok_or("no trainer")?.train(data, eval, &plan, &mut sink)?;
            let tokens = summary.tokens as f64;
            println!(
                "train {name}, {micro} rows a micro-batch: {:.0} tokens/s, {:.0} a processor second",
                tokens / seconds,
                tokens / (processor_seconds() - before)
            );
        }
    }
    let mut session = NativeBackend.open(&open)?;
    println!("{:?}", session.info());
    let evaluator = session.evaluator().ok_or("no evaluator")?;
    let report = |what: &str, tokens: usize, started: Instant, before: f64| {
        let (wall, processor) = (started.elapsed().as_secs_f64(), processor_seconds() - before);
        println!("{what}: {:.0} tokens/s, {:.0} a processor second", tokens as f64 / wall, tokens as f64 / processor);
    };
    let (started, before) = (Instant::now(), processor_seconds());
    evaluator.score(tokens.view(), &mut |_| Flow::Continue)?;
    report("score", rows * length, started, before);
    let prompts: Tokens = tokens.view().iter().map(|row| row[..60].to_vec()).collect();
    for batch_size in [1, 16, 48] {
        let view = prompts.view();
        let part = TokensView::new(&view.ids()[..60 * batch_size.max(4)], &view.offsets()[..=batch_size.max(4)])?;
        let config = GenerateConfig { batch_size, ..GenerateConfig::greedy(100, vec![]) };
        let (started, before) = (Instant::now(), processor_seconds());
        let texts = evaluator.generate(part, &config, &mut |_| Flow::Continue)?;
        let new: usize = texts.iter().map(|t| t.ids.len()).sum();
        report(&format!("generate, {batch_size} rows"), new, started, before);
    }
    Ok(())
}
