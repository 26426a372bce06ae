//! `karat run`: the main job.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use karat::eval::stats::cluster_count;
use karat::report::{self, Report};
use karat::run::{PlannedPower, Prepared, outline, planned_power, remove, run as carry_out};
use karat::suite::{ModelRole, Overrides, Suite};
use karat::{Error, ErrorKind, Result};
use serde_json::{Value, json};

use crate::args::{Global, OpenArgs, RunArgs, SuiteArgs};
use crate::host::{Plugins, WEIGHTS, cancel_on_interrupt, element};
use crate::hub::say_sources;
use crate::output::{Output, shown, shown_lines};
use crate::progress::Progress;

pub fn run(args: &RunArgs, global: &Global, output: &Output) -> Result<u8> {
    let pins = if args.fresh { BTreeMap::new() } else { recorded_pins(&args.suite.suite, args.out.as_deref()) };
    let typed = Overrides { backend: args.open.backend.clone(), pins: pins.clone(), ..computed(&args.open) };
    let suite = load_suite(&args.suite, typed)?;
    say_sources(&suite.sources, &pins, output);
    if args.plan {
        return plan(&suite, global, output);
    }
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

/// Says what a run would do.
fn plan(suite: &Suite, global: &Global, output: &Output) -> Result<u8> {
    let mut progress = Progress::new(output);
    let plan = outline(suite, &Plugins::new(global)?, &mut progress)?;
    drop(progress);
    plan.notes.iter().for_each(|note| output.say(format!("warning: {note}")));
    let mut text = format!("{} items", plan.items);
    if plan.sources < plan.items {
        let _ = write!(text, " from {} sources", plan.sources);
    }
    let _ = writeln!(text, ", up to {} new tokens each", plan.max_new_tokens);
    let width = plan.models.iter().map(|m| m.name.chars().count()).max().unwrap_or(0);
    for model in &plan.models {
        let _ = write!(text, "  {:<width$}  {}", shown(&model.name), shown(&model.what));
        if let Some(t) = model.training {
            let _ = write!(text, ": {} steps over {} rows, {} tokens, seed {}", t.steps, t.rows, t.tokens, t.seed);
        }
        if let Some(backend) = &model.backend {
            let _ = write!(text, " ({backend})");
        }
        let role = match model.role {
            Some(ModelRole::Base) => ", the base",
            Some(ModelRole::Baseline) => ", the baseline",
            None => "",
        };
        let _ = writeln!(text, "{role}");
    }
    let _ = writeln!(text, "{}", shown_lines(&plan.lengths.describe()));
    if let Some(power) = &plan.power {
        let _ = writeln!(text, "{}", in_words(power, plan.sources < plan.items));
    }
    let object = serde_json::to_value(&plan).map_err(|e| Error::failed("could not write the plan").because(e))?;
    output.result(&object, &text)?;
    Ok(0)
}

/// What the items of a suite can tell, before anything runs; none where nothing is compared.
pub fn told_power(suite: &Suite, prepared: &Prepared) -> Option<String> {
    let clusters: Vec<&str> = prepared.items.iter().map(|item| item.cluster.as_str()).collect();
    let sources = cluster_count(&clusters);
    planned_power(sources, suite).map(|power| in_words(&power, sources < prepared.items.len()))
}

fn in_words(power: &PlannedPower, of_sources: bool) -> String {
    let units = if of_sources { "sources" } else { "items" };
    let share = power.share.map_or("no difference of shares".into(), |d| match d > power.discordant {
        true => format!("a difference of shares of {d:.3}"),
        false => format!(
            "a difference of shares of {d:.3} (where two models differ on {:.0} % of them)",
            100.0 * power.discordant
        ),
    });
    let mean = power.deviations.map_or("no difference of means".into(), |d| {
        format!("one of means of {d:.2} standard deviations between {units}")
    });
    format!(
        "of {} tests adjusted together these items find, four times out of five, {share} and {mean}; after a run `karat power` \
         knows better",
        power.tests,
    )
}

/// The suite with its flags applied, beside those of `typed`.
pub fn load_suite(args: &SuiteArgs, typed: Overrides) -> Result<Suite> {
    let overrides =
        Overrides { set: args.set.clone(), language: args.language.map(Into::into), strict: args.strict, ..typed };
    Suite::load_with(&args.suite, &overrides)
}

/// What the flags of a model's computation say to a suite.
pub fn computed(args: &OpenArgs) -> Overrides {
    let mut eval_options: BTreeMap<String, Value> = args.compute.option.iter().cloned().collect();
    let mut dtype = None;
    match args.compute.dtype.map(element) {
        Some(Ok(floats)) => dtype = Some(floats),
        Some(Err(few)) => drop(eval_options.insert(WEIGHTS.into(), few.into())),
        None => {}
    }
    Overrides {
        device: args.compute.device.clone(),
        dtype,
        threads: args.threads,
        eval_options,
        ..Overrides::default()
    }
}

/// What branches and tags of the hubs meant when the run in its folder began: one that goes on stays
/// with that. None where there is no run, or nothing that can be read.
fn recorded_pins(spec: &str, out: Option<&Path>) -> BTreeMap<String, String> {
    let table = |path: &Path| std::fs::read_to_string(path).ok()?.parse::<toml::Table>().ok();
    let named = || {
        let suite = table(&Suite::find(spec).ok()?)?;
        Some(Path::new("runs").join(suite.get("name")?.as_str()?))
    };
    let stored = out.map(PathBuf::from).or_else(named).and_then(|folder| table(&folder.join("suite.toml")));
    let pins = stored.as_ref().and_then(|suite| suite.get("pins")).and_then(toml::Value::as_table);
    pins.into_iter().flatten().filter_map(|(id, state)| Some((id.clone(), state.as_str()?.to_string()))).collect()
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

/// Says what a report does not cover.
pub fn say_coverage(report: &Report, output: &Output) {
    if let Some(coverage) = report::coverage(report) {
        output.say(format!("warning: {coverage}"));
    }
}

/// The result: the Markdown's table for people, the whole report for programs.
pub fn print(report: &Report, folder: &Path, output: &Output) -> Result<()> {
    say_coverage(report, output);
    let page = folder.join("report").join("report.html");
    // A name that was typed may move a terminal too.
    let shown = report::legible(&page.display().to_string());
    let text = format!("{}\nreport: {shown}\n", report::markdown::results_block(report).trim_end());
    let object = json!({ "folder": folder, "report": report });
    output.result(&object, &text)
}
