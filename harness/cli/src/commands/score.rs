//! `karat score`: the log-probability of every token of given texts.

use karat::Result;
use karat::backend::{Event, Flow, Scores, Tokens};
use karat::run::{Backends, backend_error, evaluator};
use serde_json::{Value, json};

use super::rows::{Printer, Row};
use crate::args::{Global, ScoreArgs};
use crate::host::{Plugins, cancel_on_interrupt, open_config};
use crate::output::Output;
use crate::progress::Progress;

/// Rows and tokens of one call: rows appear when their call is done.
const CALL: (usize, usize) = (32, 8192);

pub fn run(args: &ScoreArgs, global: &Global, output: &Output) -> Result<u8> {
    let rows = super::rows::read(&args.input, &args.model.model, args.model.adapter.as_deref(), output)?;
    let backend = Plugins::new(global)?.backend(&args.model.backend)?;
    let cancel = cancel_on_interrupt()?;
    let mut session = backend.open(&open_config(&args.model))?;
    let evaluator = evaluator(&mut session, &args.model.backend)?;
    let quiet = output.among_rows();
    let mut progress = Progress::new(&quiet);
    let mut printer = Printer::new(output, rows.len());
    let tokens: u64 = rows.iter().map(|r| r.ids.len() as u64).sum();
    let (mut rows_before, mut tokens_before) = (0, 0);
    for call in calls(&rows) {
        let batch: Tokens = call.iter().map(|r| &r.ids).collect();
        let mut sink = |_: Event| if cancel.requested() { Flow::Stop } else { Flow::Continue };
        let scores = evaluator.score(batch.view(), &mut sink).map_err(|e| backend_error("scoring failed", e))?;
        tokens_before += batch.view().ids().len() as u64;
        progress.show("score", tokens_before, tokens, "tokens".into());
        let lines = lines(call, &scores);
        for (row, line) in (rows_before..).zip(lines) {
            if !printer.put(row, line)? {
                return Ok(0);
            }
        }
        rows_before += call.len();
    }
    drop(progress);
    printer.finish()?;
    Ok(0)
}

/// Rows in their order, cut into calls.
fn calls(rows: &[Row]) -> Vec<&[Row]> {
    let mut calls = Vec::new();
    let mut begin = 0;
    let mut tokens = 0;
    for (i, row) in rows.iter().enumerate() {
        if i > begin && (i - begin == CALL.0 || tokens + row.ids.len() > CALL.1) {
            calls.push(&rows[begin..i]);
            (begin, tokens) = (i, 0);
        }
        tokens += row.ids.len();
    }
    calls.push(&rows[begin..]);
    calls
}

/// What is printed of the rows of one call.
fn lines(rows: &[Row], scores: &Scores) -> Vec<Value> {
    let mut start = 0;
    let line = |row: &Row| {
        let end = start + row.ids.len().saturating_sub(1);
        let logprobs = &scores.logprobs[start..end];
        let greedy = scores.greedy[start..end].iter().filter(|&&g| g).count();
        let sum: f64 = logprobs.iter().map(|&l| f64::from(l)).sum();
        start = end;
        json!({"id": row.id, "token_logprobs": logprobs, "sum": sum, "tokens": logprobs.len(), "greedy": greedy})
    };
    rows.iter().map(line).collect()
}

/// One JSON line a row, or one object that holds them all.
pub fn print(lines: &[Value], output: &Output) -> Result<()> {
    if output.json() {
        return output.data(&json!({ "rows": lines }).to_string());
    }
    let text: String = lines.iter().map(|l| format!("{l}\n")).collect();
    output.data(&text)
}
