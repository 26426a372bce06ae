//! `karat compare`: two models, item by item; with `--backends`, two backends on one model.

use std::fmt::Write;
use std::path::Path;

use karat::report::{Report, compare::compare};
use karat::{Error, Result};
use serde_json::json;

use crate::args::{CompareArgs, Global};
use crate::output::Output;

pub fn run(args: &CompareArgs, global: &Global, output: &Output) -> Result<u8> {
    if !args.backends.is_empty() {
        return super::parity::run(&args.backends, &args.parity, global, output);
    }
    let (Some(a), Some(b)) = (&args.a, &args.b) else {
        return Err(Error::usage("compare needs two reports").help("give two, or --backends A,B and --model DIR"));
    };
    let (first, a) = pick(a)?;
    let (second, b) = pick(b)?;
    let comparison = compare((&first, &a), (&second, &b), args.allow)?;
    let mut text = format!("{b} against {a}, on the same items\n\n");
    let interval = format!("{} % interval", (first.statistics.confidence * 1e6).round() / 1e4);
    let _ = writeln!(
        text,
        "{:<20} {:>10} {:>10} {:>10}   {:<24} {:>8}  verdict",
        "metric", a, b, "difference", interval, "p (Holm)"
    );
    for metric in &first.metrics {
        let Some(c) = comparison.metrics.get(&metric.name) else { continue };
        let number = |x: Option<f64>| x.map_or("-".to_string(), |x| format!("{x:.4}"));
        let interval = match (c.ci_low, c.ci_high) {
            (Some(low), Some(high)) => format!("[{low:.4}, {high:.4}]"),
            _ => "-".to_string(),
        };
        let verdict = serde_json::to_value(c.verdict).unwrap_or_default();
        let _ = writeln!(
            text,
            "{:<20} {:>10} {:>10} {:>10}   {:<24} {:>8}  {} (n = {})",
            metric.name,
            number(c.mean_baseline),
            number(c.mean_candidate),
            number(c.difference),
            interval,
            number(c.p_adjusted),
            verdict.as_str().unwrap_or_default(),
            c.n,
        );
    }
    let object = json!({ "comparison": comparison, "allowed_to_differ": args.allow });
    output.result(&object, &text)?;
    Ok(0)
}

/// `PATH` or `PATH:MODEL`; a report with one model needs no name.
fn pick(spec: &str) -> Result<(Report, String)> {
    let (path, model) = match spec.rsplit_once(':') {
        Some((path, model)) if !Path::new(spec).exists() => (path, Some(model)),
        _ => (spec, None),
    };
    let report = load(Path::new(path))?;
    let model = match (model, report.models.as_slice()) {
        (Some(model), _) => model.to_string(),
        (None, [only]) => only.name.clone(),
        (None, models) => {
            let names: Vec<&str> = models.iter().map(|m| m.name.as_str()).collect();
            return Err(Error::usage(format!("the report has {} models", models.len()))
                .at(path)
                .help(format!("name one of them, as {path}:{}", names.join(" or :"))));
        }
    };
    Ok((report, model))
}

/// The report of a run folder, a folder with a report.json, or the file.
pub fn load(path: &Path) -> Result<Report> {
    let inside = path.join("report");
    Report::load(if inside.is_dir() { &inside } else { path })
}
