//! `karat run`: the main job.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use karat::report::{self, Report};
use karat::run::{remove, run as carry_out};
use karat::suite::Suite;
use karat::{Error, ErrorKind, Result};
use serde_json::json;

use crate::args::{Global, RunArgs, SuiteArgs};
use crate::host::{Plugins, cancel_on_interrupt};
use crate::output::Output;
use crate::progress::Progress;

pub fn run(args: &RunArgs, global: &Global, output: &Output) -> Result<u8> {
    let suite = load_suite(&args.suite)?;
    let folder = run_folder(&suite, args.out.as_deref())?;
    // Not after hours of work.
    args.reports.iter().try_for_each(|reports| report::check_folder(reports))?;
    if args.fresh {
        remove(&folder, &suite)?;
    }
    let plugins = Plugins::new(global)?;
    let cancel = cancel_on_interrupt()?;
    let mut progress = Progress::new(output);
    let report = carry_out(&suite, &folder, &plugins, &mut progress, &cancel).map_err(|e| interrupted(e, &folder))?;
    drop(progress);
    if let Some(reports) = &args.reports {
        report::write(&report.without_environment(), reports)?;
    }
    print(&report, &folder, output)?;
    Ok(0)
}

/// The suite with the flags applied.
pub fn load_suite(args: &SuiteArgs) -> Result<Suite> {
    let mut overrides = args.set.clone();
    overrides.extend(args.device.iter().map(|d| format!("model.device={d}")));
    if let Some(language) = args.language.and_then(|l| l.to_possible_value()) {
        overrides.push(format!("language=\"{}\"", language.get_name()));
    }
    if args.strict {
        overrides.push("data.strict=true".into());
    }
    Suite::load(&args.suite, &overrides)
}

/// Where a run works.
pub fn run_folder(suite: &Suite, out: Option<&Path>) -> Result<PathBuf> {
    let folder = out.map_or_else(|| Path::new("runs").join(&suite.name), PathBuf::from);
    std::path::absolute(&folder).map_err(|e| Error::io("resolve", &folder, e))
}

/// Says what an interrupted run leaves.
pub fn interrupted(error: Error, folder: &Path) -> Error {
    match error.kind() {
        ErrorKind::Interrupted => error.help(format!(
            "run the same command again to go on, with --fresh to begin anew, or remove {}",
            folder.display()
        )),
        _ => error,
    }
}

/// The result: the Markdown's table for people, the whole report for programs.
pub fn print(report: &Report, folder: &Path, output: &Output) -> Result<()> {
    let page = folder.join("report").join("report.html");
    let text = format!("{}\nreport: {}\n", report::markdown::results_block(report).trim_end(), page.display());
    let object = json!({ "folder": folder, "report": report });
    output.result(&object, &text)
}
