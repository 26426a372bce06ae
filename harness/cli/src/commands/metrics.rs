//! `karat metrics`: metrics of pairs of texts, under the names that anyone can check against Python
//! and those of suites.

use karat::eval::metric::pair_row;
use karat::{Error, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use super::rows::read_lines;
use crate::args::MetricsArgs;
use crate::output::Output;

#[derive(Deserialize)]
struct Pair {
    id: Option<Value>,
    reference: String,
    candidate: String,
}

pub fn run(args: &MetricsArgs, output: &Output) -> Result<u8> {
    let mut rows = Vec::new();
    for (number, line) in read_lines(&args.input)? {
        let pair: Pair = serde_json::from_str(&line).map_err(|e| {
            Error::data("broken input line")
                .at(format!("{}:{number}", args.input.display()))
                .because(e)
                .help(r#"lines are {"id", "reference", "candidate"}"#)
        })?;
        let metrics = pair_row(&pair.reference, &pair.candidate, &args.metrics)?;
        rows.push(json!({"id": pair.id.unwrap_or_else(|| Value::from(number)), "metrics": metrics}));
    }
    if rows.is_empty() {
        return Err(Error::data("the input has no lines")
            .at(args.input.display())
            .help(r#"give lines {"id", "reference", "candidate"}"#));
    }
    super::score::print(&rows, output)?;
    Ok(0)
}
