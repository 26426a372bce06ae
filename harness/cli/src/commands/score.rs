//! `karat score`: the log-probability of every token of given texts.

use karat::backend::{Event, Tokens};
use karat::run::{Backends, StageSink, backend_error, evaluator};
use karat::Result;
use serde_json::{Value, json};

use crate::args::{Global, ScoreArgs};
use crate::host::{Plugins, cancel_on_interrupt, open_config};
use crate::output::Output;
use crate::progress::Progress;

pub fn run(args: &ScoreArgs, global: &Global, output: &Output) -> Result<u8> {
    let rows = super::rows::read(&args.input, &args.model.model)?;
    let backend = Plugins::new(global)?.backend(&args.model.backend)?;
    let cancel = cancel_on_interrupt()?;
    let mut session = backend.open(&open_config(&args.model))?;
    let evaluator = evaluator(&mut session, &args.model.backend)?;
    let tokens: Tokens = rows.iter().map(|r| &r.ids).collect();
    let mut progress = Progress::new(output);
    let mut sink = StageSink {
        stage: "score",
        total: None,
        observer: &mut progress,
        cancel: &cancel,
        keep: |_: &Event| Ok(()),
        error: None,
    };
    let scores = evaluator.score(tokens.view(), &mut sink).map_err(|e| backend_error("scoring failed", e))?;
    drop(progress);
    let mut start = 0;
    let mut lines = Vec::with_capacity(rows.len());
    for row in rows {
        let end = start + row.ids.len().saturating_sub(1);
        let logprobs = &scores.logprobs[start..end];
        let greedy = scores.greedy[start..end].iter().filter(|&&g| g).count();
        let sum: f64 = logprobs.iter().map(|&l| f64::from(l)).sum();
        lines.push(json!({
            "id": row.id, "token_logprobs": logprobs, "sum": sum, "tokens": logprobs.len(), "greedy": greedy,
        }));
        start = end;
    }
    print(&lines, output)?;
    Ok(0)
}

/// One JSON line a row, or one object that holds them all.
pub fn print(lines: &[Value], output: &Output) -> Result<()> {
    if output.json() {
        return output.data(&json!({ "rows": lines }).to_string());
    }
    let text: String = lines.iter().map(|l| format!("{l}\n")).collect();
    output.data(&text)
}
