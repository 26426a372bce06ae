//! Karat's side of `python/onnx_bench.py`: reads one JSON task a line, answers with one JSON object
//! a line.
//!
//! `{"open": DIR, "threads": N, "dtype": "f32", "options": {..}}` opens a model;
//! `{"score": [[ids]..]}` and `{"generate": [[ids]..], "new": N, "batch": B, "stop": [ids]}` are
//! timed. Started by the script.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::time::Instant;

use karat_backend::{Backend, BackendError, Dtype, Event, Flow, GenerateConfig, OpenConfig, Session, Tokens};
use karat_onnxruntime::OnnxRuntimeBackend;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Done;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Task {
    open: Option<String>,
    #[serde(default)]
    threads: usize,
    dtype: Option<Dtype>,
    #[serde(default)]
    options: BTreeMap<String, Value>,
    score: Option<Vec<Vec<u32>>>,
    generate: Option<Vec<Vec<u32>>>,
    #[serde(default)]
    new: usize,
    #[serde(default)]
    batch: usize,
    #[serde(default)]
    stop: Vec<u32>,
}

fn answer(task: Task, session: &mut Option<Box<dyn Session>>) -> Result<Value, BackendError> {
    if let Some(model) = task.open {
        let dtype = task.dtype.unwrap_or_default();
        let config = OpenConfig { threads: task.threads, dtype, options: task.options, ..OpenConfig::new(model) };
        let began = Instant::now();
        let opened = OnnxRuntimeBackend.open(&config)?;
        let info = opened.info();
        *session = Some(opened);
        return Ok(json!({"seconds": began.elapsed().as_secs_f64(), "info": info}));
    }
    let session = session.as_mut().ok_or_else(|| BackendError::failed("no model was opened"))?;
    let evaluator = session.evaluator().ok_or_else(|| BackendError::failed("no evaluator"))?;
    let mut go = |_: Event| Flow::Continue;
    if let Some(rows) = task.score {
        let tokens: Tokens = rows.iter().collect();
        let began = Instant::now();
        let scores = evaluator.score(tokens.view(), &mut go)?;
        let sum: f64 = scores.logprobs.iter().map(|&l| f64::from(l)).sum();
        return Ok(json!({"seconds": began.elapsed().as_secs_f64(), "tokens": tokens.view().ids().len(), "sum": sum}));
    }
    let prompts: Tokens = task.generate.unwrap_or_default().iter().collect();
    let config = GenerateConfig { batch_size: task.batch, ..GenerateConfig::greedy(task.new, task.stop) };
    let began = Instant::now();
    let made = evaluator.generate(prompts.view(), &config, &mut go)?;
    let lengths: Vec<usize> = made.iter().map(|c| c.ids.len()).collect();
    Ok(json!({"seconds": began.elapsed().as_secs_f64(), "tokens": lengths.iter().sum::<usize>(), "lengths": lengths}))
}

/// Answers until its input ends.
pub fn run() -> Done {
    let mut session = None;
    for line in std::io::stdin().lock().lines() {
        let told = match serde_json::from_str::<Task>(&line?) {
            Ok(task) => answer(task, &mut session).unwrap_or_else(|e| json!({"error": e.to_string()})),
            Err(error) => json!({"error": error.to_string()}),
        };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{told}")?;
        out.flush()?;
    }
    Ok(())
}
