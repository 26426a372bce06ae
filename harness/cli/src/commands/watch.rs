//! `karat watch`: the checkpoints of a training, as they come.

use std::path::{Path, PathBuf};

use karat::gate::{Rules, baseline};
use karat::report::timeline::{Entry, Timeline, line, results_table};
use karat::report::{Report, legible};
use karat::run::rendering;
use karat::suite::{Overrides, Suite};
use karat::watch::{Outcome, Watch, only, watch};
use karat::{Error, ErrorKind, Result};
use serde_json::json;

use super::check::given_margins;
use super::run::{computed, load_suite, run_folder};
use crate::args::{Global, SuiteArgs, WatchArgs};
use crate::host::{Plugins, cancel_on_interrupt, resolved};
use crate::output::Output;
use crate::progress::Progress;

pub fn run(args: &WatchArgs, global: &Global, output: &Output) -> Result<u8> {
    let typed = Overrides { eval_backend: args.open.backend.clone(), ..computed(&args.open) };
    let named =
        SuiteArgs { suite: args.suite.clone(), set: args.set.clone(), language: args.language, strict: args.strict };
    let mut suite = load_suite(&named, typed)?;
    // Of a suite of named models the base is the one that the others are compared with.
    suite.model.base = rendering(&suite)?;
    let mut margins = suite.gate.margins.clone();
    margins.extend(given_margins(&args.margin)?);
    let baseline = args.baseline.as_deref().map(|spec| reference(spec, args, &suite, output)).transpose()?;
    let adapter_base = args.adapter_base.as_deref().map(|base| resolved(base, None, output)).transpose()?;
    let out = run_folder(&suite, Some(args.out.as_deref().unwrap_or(&default_out(&suite, &args.folder)?)))?;
    let watched = Watch {
        folder: args.folder.clone(),
        out,
        suite: &suite,
        baseline,
        rules: Rules { margins, noise: None, allow: args.allow.clone() },
        adapter_base: adapter_base.map(|found| found.model),
        interval: args.interval,
        quiet: args.quiet_time,
        once: args.once,
        fail_fast: args.fail_fast,
    };
    let plugins = Plugins::new(global)?;
    let cancel = cancel_on_interrupt()?;
    let mut progress = Progress::new(output);
    let mut each = |timeline: &Timeline, entry: &Entry| {
        let line = line(timeline, entry);
        // With --json the one object comes at the end.
        if output.json() {
            output.say(line);
            return Ok(());
        }
        output.data(&line)
    };
    let outcome = watch(&watched, &plugins, &mut progress, &mut each, &cancel).map_err(|error| match error.kind() {
        ErrorKind::Interrupted => error.help("run the same command again to go on"),
        _ => error,
    })?;
    drop(progress);
    print(&outcome, &watched.out, output)?;
    Ok(outcome.exit_code())
}

/// The pages of a watch lie beside the runs: two trainings have two folders.
fn default_out(suite: &Suite, folder: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(folder).map_err(|e| Error::io("resolve", folder, e))?;
    let name = absolute.file_name().map_or_else(|| "watch".into(), |name| name.to_string_lossy().into_owned());
    Ok(Path::new("runs").join(format!("{}-{name}", suite.name)))
}

/// The report of one model that is compared with.
fn reference(spec: &str, args: &WatchArgs, suite: &Suite, output: &Output) -> Result<Report> {
    let folder = match &args.baselines {
        Some(folder) => folder.clone(),
        None => baseline::folder()?,
    };
    let (path, model) = baseline::find(&folder, &suite.name, spec)?;
    let named = model.as_ref().map_or(spec, |model| &spec[..spec.len() - model.len() - 1]);
    let mut report = only(baseline::load(&path)?, model.as_deref(), named)?;
    // Checkpoints are measured by the suite: what it does not measure cannot be lost.
    let measured = |metric: &str| suite.eval.metrics.iter().any(|known| known == metric);
    let dropped: Vec<&str> = report.metrics.iter().map(|m| m.name.as_str()).filter(|m| !measured(m)).collect();
    if !dropped.is_empty() {
        let list = dropped.join(", ");
        output.say(format!("note: the baseline also has {list}, which this suite does not measure and nobody checks"));
    }
    report.metrics.retain(|metric| measured(&metric.name));
    report.suite.name.clone_from(&suite.name);
    report.suite.title.clone_from(&suite.title);
    Ok(report)
}

fn print(outcome: &Outcome, out: &Path, output: &Output) -> Result<()> {
    let timeline = &outcome.timeline;
    let page = legible(&out.join("watch.html").display().to_string());
    let text = format!("\n{}\nreport: {page}\n", results_table(timeline));
    if let Some(name) = &outcome.regressed {
        output.say(format!("{name} regresses: the watch ends"));
    }
    let object = json!({
        "folder": out, "regressed": outcome.regressed, "failure": outcome.failure, "timeline": timeline,
    });
    output.result(&object, &text)
}
