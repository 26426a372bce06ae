//! `karat eval`: one model on a suite's held-out items.

use std::path::Path;

use karat::Result;
use karat::report::{self, Environment};
use karat::run::{Brought, evaluate_brought, left_over, machine, prepare, read_stored, report_stored};
use karat::suite::Suite;

use super::run::{interrupted, load_suite, print, run_folder};
use crate::args::{EvalArgs, Global};
use crate::host::{Plugins, cancel_on_interrupt};
use crate::output::Output;
use crate::progress::Progress;

pub fn run(args: &EvalArgs, global: &Global, output: &Output) -> Result<u8> {
    let suite = load_suite(&args.suite)?;
    if !args.predictions.is_empty() {
        return measure(args, &suite, output);
    }
    let default = std::path::Path::new("runs").join(format!("{}-{}", suite.name, args.name));
    let folder = run_folder(&suite, Some(args.out.as_deref().unwrap_or(&default)))?;
    let plugins = Plugins::new(global)?;
    let cancel = cancel_on_interrupt()?;
    let mut progress = Progress::new(output);
    let model = args.model.clone().unwrap_or_else(|| suite.model.base.clone());
    let brought = Brought { name: args.name.clone(), model, adapter: args.adapter.clone() };
    let report = evaluate_brought(&suite, brought, &folder, &plugins, &mut progress, &cancel)
        .map_err(|e| interrupted(e, &folder))?;
    drop(progress);
    if let Some(reports) = &args.reports {
        report::write(&report.without_environment(), reports)?;
    }
    print(&report, &folder, output)?;
    Ok(0)
}

/// Measures texts that are there already.
fn measure(args: &EvalArgs, suite: &Suite, output: &Output) -> Result<u8> {
    let prepared = prepare(suite)?;
    let mut models = Vec::new();
    for spec in &args.predictions {
        let (name, path) = match spec.split_once('=') {
            Some((name, path)) if !Path::new(spec).exists() => (Some(name), Path::new(path)),
            _ => (None, Path::new(spec)),
        };
        models.extend(read_stored(path, name, &prepared)?);
    }
    for model in &models {
        let (recorded, tokenizer) = (&model.recorded, prepared.formatter.tokenizer());
        if let Some(warning) = left_over(&recorded.name, &recorded.predictions, tokenizer) {
            output.say(format!("warning: {warning}"));
        }
    }
    let default = Path::new("runs").join(format!("{}-{}", suite.name, args.name));
    let folder = run_folder(suite, Some(args.out.as_deref().unwrap_or(&default)))?;
    let environment = Environment { karat: env!("CARGO_PKG_VERSION").into(), machine: machine(), ..Default::default() };
    let report = report_stored(suite, &prepared, models, environment)?;
    report::write(&report, &folder.join("report"))?;
    if let Some(reports) = &args.reports {
        report::write(&report.without_environment(), reports)?;
    }
    print(&report, &folder, output)?;
    Ok(0)
}
