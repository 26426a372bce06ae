//! `karat eval`: one model on a suite's held-out items.

use std::path::Path;

use karat::Result;
use karat::data::notes::stray_texts;
use karat::import::gguf_in;
use karat::model_dir::{ModelDir, given};
use karat::report::{self, Environment};
use karat::run::{
    AUTO, Backends, Brought, evaluate_beside, gather_stored, left_over, machine, prepare, read_stored, report_stored,
    take,
};
use karat::suite::{Overrides, Suite};

use super::data::say_notes;
use super::rows::say_bad;
use super::run::{computed, interrupted, load_suite, print, run_folder};
use crate::args::{EvalArgs, Global};
use crate::host::{Plugins, cancel_on_interrupt, resolved_for};
use crate::hub::say_sources;
use crate::output::Output;
use crate::progress::Progress;

pub fn run(args: &EvalArgs, global: &Global, output: &Output) -> Result<u8> {
    args.reports.iter().try_for_each(|reports| report::check_folder(reports))?;
    let typed = Overrides { eval_backend: args.open.backend.clone(), ..computed(&args.open) };
    let mut suite = load_suite(&args.suite, typed)?;
    say_sources(&suite.sources, &Default::default(), output);
    suite.sources.extend(global.sources.iter().cloned());
    if !args.predictions.is_empty() {
        return measure(args, &suite, output);
    }
    let named = args.model.as_ref().unwrap_or(&suite.model.base);
    let plugins = Plugins::new(global)?;
    let described = match gguf_in(named) {
        // The backend that is chosen for it runs it.
        Some(_) if suite.eval_backend() != AUTO => vec![plugins.backend(suite.eval_backend())?.backend.describe()],
        _ => Vec::new(),
    };
    let ModelDir { model, adapter } = resolved_for(named, args.adapter.as_deref(), &described, output)?;
    let default = std::path::Path::new("runs").join(format!("{}-{}", suite.name, args.name));
    let folder = run_folder(&suite, Some(args.out.as_deref().unwrap_or(&default)))?;
    let cancel = cancel_on_interrupt()?;
    let mut progress = Progress::new(output);
    let brought = Brought { name: args.name.clone(), model, adapter };
    let report = evaluate_beside(&suite, brought, &folder, &plugins, &mut progress, &cancel)
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
    say_bad(&prepared.bad, output);
    say_notes(&prepared, output);
    let mut models = Vec::new();
    for spec in &args.predictions {
        let (name, path) = match spec.split_once('=') {
            Some((name, path)) if !Path::new(spec).exists() => (Some(name), Path::new(path)),
            _ => (None, Path::new(spec)),
        };
        given(path)?;
        models.extend(read_stored(path, name, &prepared)?);
    }
    for model in &models {
        model.recorded.notes.iter().for_each(|note| output.say(format!("warning: {}", note.english)));
        let texts = model.recorded.predictions.iter().map(|p| (p.id.as_str(), p.text.as_str()));
        if let Some(note) = stray_texts(&model.recorded.name, texts, &suite.data.think_tags) {
            output.say(format!("warning: {}", note.english));
        }
        let (recorded, tokenizer) = (&model.recorded, prepared.formatter.tokenizer());
        if let Some(warning) = left_over(&recorded.name, &recorded.predictions, tokenizer) {
            output.say(format!("warning: {warning}"));
        }
    }
    let default = Path::new("runs").join(format!("{}-{}", suite.name, args.name));
    let folder = run_folder(suite, Some(args.out.as_deref().unwrap_or(&default)))?;
    let environment = Environment { karat: env!("CARGO_PKG_VERSION").into(), machine: machine(), ..Default::default() };
    let _lock = take(&folder)?;
    let (models, said) = gather_stored(&folder.join("results"), suite, &prepared, models)?;
    said.into_iter().for_each(|text| output.say(format!("warning: {text}")));
    let report = report_stored(suite, &prepared, models, environment)?;
    report::write(&report, &folder.join("report"))?;
    if let Some(reports) = &args.reports {
        report::write(&report.without_environment(), reports)?;
    }
    print(&report, &folder, output)?;
    Ok(0)
}
