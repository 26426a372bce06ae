//! `karat check`: the gate.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use karat::eval::stats::MarginVerdict;
use karat::gate::locate::from_repository;
use karat::gate::{Checks, Noise, Rules, Subject, annotations, baseline, check, junit, text};
use karat::report::Report;
use karat::watch::{only, renamed};
use karat::{Error, Result, exit, fsio};
use serde_json::json;

use crate::args::{CheckArgs, CheckFormat};
use crate::output::Output;

pub fn run(args: &CheckArgs, output: &Output) -> Result<u8> {
    let result = carry_out(args, output);
    // A gate that could not judge is seen in the pull request and by the CI server as one that
    // failed is.
    if let Err(error) = &result {
        if on_github() {
            crate::output::to_stderr(&annotations::refusal(error));
        }
        if let Some(file) = &args.junit {
            let document = junit::refusal(error, args.what.as_deref().unwrap_or("the only run"), &args.baseline);
            if let Err(second) = fsio::write_atomic(file, document.as_bytes()) {
                crate::output::tell(&second);
            }
        }
    }
    result
}

/// Whether this is a step of a GitHub workflow.
fn on_github() -> bool {
    std::env::var_os("GITHUB_ACTIONS").is_some_and(|v| v == "true")
}

fn carry_out(args: &CheckArgs, output: &Output) -> Result<u8> {
    args.determinism.iter().try_for_each(|path| karat::model_dir::given_file(path))?;
    let subject = match &args.what {
        Some(what) => Subject::find(what)?,
        None => Subject::only()?,
    };
    let report = subject.load()?;
    super::run::say_coverage(&report, output);
    let folder = match &args.baselines {
        Some(folder) => folder.clone(),
        None => baseline::folder()?,
    };
    if let Some(name) = &args.save_baseline {
        let path = baseline::file(&folder, &subject.suite, name)?;
        if path.exists() {
            return Err(Error::usage("there is a baseline of that name")
                .at(path.display())
                .help(format!("replace it with --baseline {name} --bless --reason TEXT, or give another name")));
        }
        return accept(args, &report, &path, args.reason.as_deref().unwrap_or("first baseline"), output);
    }
    let (path, model) = baseline::find(&folder, &subject.suite, &args.baseline)?;
    if let (Some(model), true) = (&model, args.bless) {
        return Err(Error::usage(format!("--bless replaces a whole baseline, not its model {model}"))
            .help("leave :MODEL out, or save another baseline: --save-baseline NAME"));
    }
    if args.bless {
        return accept(args, &report, &path, args.reason.as_deref().unwrap_or_default(), output);
    }
    let mut margins = subject.margins.clone();
    margins.extend(given_margins(&args.margin)?);
    let noise = match &args.determinism {
        Some(certificate) => Some(Noise::read(certificate)?),
        None if args.flip_rate == 0.0 && args.logprob_drift == 0.0 => None,
        None => Some(Noise { flip_rate: args.flip_rate, logprob_drift: args.logprob_drift }),
    };
    let baseline = held_against(&report, baseline::load(&path)?, model.as_deref(), args)?;
    let checks = check(&report, &baseline, &Rules { margins, noise, allow: args.allow.clone() })?;
    let help = bless_command(args);
    tell(&Verdicts { checks: &checks, report: &report, subject: &subject, path: &path, help: &help }, args, output)?;
    Ok(match checks.verdict {
        MarginVerdict::Pass => exit::GOOD,
        MarginVerdict::Regress => exit::REGRESSION,
        MarginVerdict::Inconclusive => exit::INCONCLUSIVE,
    })
}

/// The baseline that `report` is held against: all of it, or its `model` under the name of the one
/// model that the report has.
fn held_against(report: &Report, baseline: Report, model: Option<&str>, args: &CheckArgs) -> Result<Report> {
    let names = |report: &Report| report.models.iter().map(|m| m.name.clone()).collect::<Vec<_>>();
    let (ours, theirs) = (names(report), names(&baseline));
    match (model, ours.as_slice()) {
        (Some(model), [own]) => Ok(renamed(&only(baseline, Some(model), &args.baseline)?, own)),
        (Some(model), _) => Err(Error::usage(format!(
            "the report has {} models, and one is held against the baseline's {model}: {}",
            ours.len(),
            ours.join(", ")
        ))
        .help("give a report of one model, or leave :MODEL out to compare models of one name")),
        (None, _) if ours.iter().any(|name| theirs.contains(name)) || theirs.is_empty() => Ok(baseline),
        (None, _) => Err(Error::usage(format!(
            "the report has none of the baseline's models ({}), but {}",
            theirs.join(", "),
            ours.join(", ")
        ))
        .help(format!("name the one that it is held against: --baseline {}:{}", args.baseline, theirs[0]))),
    }
}

/// Margins as they are typed: `METRIC=NUMBER`.
pub(super) fn given_margins(given: &[String]) -> Result<BTreeMap<String, f64>> {
    let one = |margin: &String| {
        margin
            .split_once('=')
            .and_then(|(name, value)| Some((name.trim().to_string(), value.trim().parse::<f64>().ok()?)))
            .ok_or_else(|| Error::usage(format!("--margin {margin:?} is not of the form METRIC=NUMBER")))
    };
    given.iter().map(one).collect()
}

/// Writes a baseline and says what it changed.
fn accept(args: &CheckArgs, report: &Report, path: &Path, reason: &str, output: &Output) -> Result<u8> {
    let statement =
        baseline::Statement { reason: reason.to_string(), by: args.by.clone(), at: args.at.clone(), commit: commit() };
    let acceptance = baseline::accept(report, path, &statement)?;
    let mut lines = String::new();
    for (model, values) in &acceptance.values {
        for (metric, change) in values.iter().filter(|(_, c)| c.old != c.new && acceptance.previous_sha256.is_some()) {
            let number = |x: Option<f64>| x.map_or("-".to_string(), |x| format!("{x:.4}"));
            lines.push_str(&format!("{model} {metric}: {} -> {}\n", number(change.old), number(change.new)));
        }
    }
    if !acceptance.changed.is_empty() {
        lines.push_str(&format!("changed with it: {}\n", acceptance.changed.join(", ")));
    }
    let history = baseline::history(path);
    lines.push_str(&format!("baseline: {}\nhistory: {}\n", path.display(), history.display()));
    output.result(&json!({ "baseline": path, "history": history, "acceptance": acceptance }), &lines)?;
    Ok(0)
}

/// The commit of the current folder's working tree; none where there is no git or no repository.
fn commit() -> Option<String> {
    let git = |args: &[&str]| {
        // A repository's own settings may name a program for this, which a look at its state should
        // not run.
        let output = Command::new("git")
            .args(["-c", "core.fsmonitor=false"])
            .args(args)
            .output()
            .ok()
            .filter(|o| o.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let commit = git(&["rev-parse", "HEAD"])?;
    let clean = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|s| s.is_empty());
    Some(if clean { commit } else { format!("{commit}-dirty") })
}

/// What to run if the change is meant.
fn bless_command(args: &CheckArgs) -> String {
    let what = args.what.as_ref().map_or(String::new(), |w| format!(" {w}"));
    format!("if this is meant: karat check{what} --baseline {} --bless --reason TEXT", args.baseline)
}

/// What a gate has to say, and of what.
struct Verdicts<'a> {
    checks: &'a Checks,
    report: &'a Report,
    subject: &'a Subject,
    path: &'a Path,
    help: &'a str,
}

/// Everywhere it is asked for: standard output, GitHub's log and step summary, a JUnit file.
fn tell(verdicts: &Verdicts<'_>, args: &CheckArgs, output: &Output) -> Result<()> {
    let Verdicts { checks, report, subject, path, help } = verdicts;
    let markdown = || text::markdown(checks, &subject.suite, &args.baseline);
    let pointed_at = from_repository(subject.suite_file.as_deref().unwrap_or(path));
    let commands = || annotations::annotations(checks, &subject.suite, &pointed_at);
    if let Some(file) = &args.junit {
        fsio::write_atomic(file, junit::junit(checks, report, &args.baseline, help).as_bytes())?;
    }
    if let Some(file) = std::env::var_os("GITHUB_STEP_SUMMARY").filter(|f| !f.is_empty()).map(PathBuf::from) {
        let append = std::fs::OpenOptions::new().create(true).append(true).open(&file);
        append
            .and_then(|mut f| f.write_all(format!("{}\n", markdown()).as_bytes()))
            .map_err(|e| Error::io("append to the step summary", &file, e))?;
    }
    // On GitHub the commands go to standard error, which is read as well: standard output stays
    // what was asked for.
    if on_github() && args.format != CheckFormat::Github {
        crate::output::to_stderr(commands().trim_end());
    }
    let page = match args.format {
        CheckFormat::Text => {
            format!("{} against {}\n\n{}", subject.suite, from_repository(path).display(), text::table(checks))
        }
        CheckFormat::Markdown => markdown(),
        CheckFormat::Github => commands(),
    };
    output.result(&json!(checks), &page)?;
    if checks.verdict != MarginVerdict::Pass {
        output.say(help);
    }
    Ok(())
}
