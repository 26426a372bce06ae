//! Trains and scores with the candle backend and the native one in turns and prints tokens per
//! second of both as one JSON object: the numbers of README's table of backends.
//!
//! `karat-tools backends [model=DIR]` (the base of the suite medical-r1)

use std::path::{Path, PathBuf};
use std::time::Instant;

use karat_backend::*;
use karat_candle::CandleBackend;
use karat_native::NativeBackend;

use crate::Done;
use crate::args::Args;
use crate::plan::plan;

/// Rows and their tokens.
const ROWS: usize = 8;
const LENGTH: usize = 128;
/// Rounds of both backends; the best of each counts, since other programs only ever take time away.
const ROUNDS: usize = 5;

fn rows(vocabulary: usize) -> Tokens {
    let id = |row: usize, i: usize| ((i * i * 7 + 13 * row + i) % vocabulary) as u32;
    (0..ROWS).map(|row| (0..LENGTH).map(|i| id(row, i)).collect::<Vec<_>>()).collect()
}

/// Seconds of one pass over the rows.
fn seconds(backend: &dyn Backend, open: &OpenConfig, work: &str, out: &Path) -> Result<f64, BackendError> {
    let mut session = backend.open(open)?;
    let rows = rows(session.info().vocab_size);
    let mut quiet = |_: Event| Flow::Continue;
    if work == "score" {
        let evaluator = session.evaluator().ok_or_else(|| BackendError::failed("no evaluator"))?;
        evaluator.score(rows.view(), &mut quiet)?;
        let start = Instant::now();
        evaluator.score(rows.view(), &mut quiet)?;
        return Ok(start.elapsed().as_secs_f64());
    }
    let method = match work {
        "full" => Method::Full,
        _ => Method::Lora(LoraConfig { lora_dropout: 0.0, ..LoraConfig::default() }),
    };
    let labels: Vec<i32> = rows.view().ids().iter().map(|id| *id as i32).collect();
    let (data, none) = (LabelledView::new(rows.view(), &labels)?, Tokens::new());
    let mut best = f64::MAX;
    let mut sink = |event: Event| {
        if let Event::Step(step) = event {
            best = best.min(step.seconds);
        }
        Flow::Continue
    };
    let trainer = session.trainer().ok_or_else(|| BackendError::failed("no trainer"))?;
    trainer.train(
        data,
        LabelledView::new(none.view(), &[])?,
        &plan(method, vec![vec![(0..ROWS as u32).collect()]; 3], out.to_owned()),
        &mut sink,
    )?;
    Ok(best)
}

/// Measures and prints.
pub fn run(args: &Args) -> Done {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../suites/medical-r1/base");
    let open = OpenConfig::new(args.get("model").map_or(base, PathBuf::from));
    let mut told = serde_json::Map::new();
    for work in ["full", "lora", "score"] {
        let mut best = [f64::MAX; 2];
        for _ in 0..ROUNDS {
            let backends: [&dyn Backend; 2] = [&NativeBackend, &CandleBackend];
            for (best, backend) in best.iter_mut().zip(backends) {
                let out = tempfile::tempdir()?;
                *best = best.min(seconds(backend, &open, work, out.path())?);
            }
        }
        let [native, candle] = best.map(|seconds| (ROWS * LENGTH) as f64 / seconds);
        told.insert(
            work.into(),
            serde_json::json!({"native": native.round(), "candle": candle.round(), "times slower": native / candle}),
        );
    }
    println!("{}", serde_json::Value::Object(told));
    Ok(())
}
