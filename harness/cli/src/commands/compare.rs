//! `karat compare`: two models, or three, item by item; with `--backends`, two backends on one
//! model.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use karat::model_dir::given;
use karat::report::compare::{compare_all, unknown};
use karat::report::{Comparison, Report, legible};
use karat::run::{is_store, prepare, read_stored, report_pairs, report_stored};
use karat::suite::Suite;
use karat::{Error, Result};
use serde_json::json;

use crate::args::{CompareArgs, Global};
use crate::output::Output;

/// One side of a comparison.
struct Side {
    report: Report,
    /// The model's name in the report.
    own: String,
    /// What it is called here.
    shown: String,
}

pub fn run(args: &CompareArgs, global: &Global, output: &Output) -> Result<u8> {
    if !args.backends.is_empty() {
        return super::parity::run(&args.backends, &args.parity, global, output);
    }
    if let Some(flag) = args.parity.typed() {
        return Err(Error::usage(format!("{flag} is for a comparison of backends"))
            .help("add --backends A,B --model DIR instead of reports, or leave it out"));
    }
    let specs: Vec<&String> = [&args.a, &args.b, &args.c].into_iter().flatten().collect();
    let mut sides = specs.iter().map(|spec| side(spec)).collect::<Result<Vec<Side>>>()?;
    tell_apart(&mut sides, &specs);
    for side in &sides {
        super::run::say_coverage(&side.report, output);
    }
    let (mut text, mut comparisons, mut unchecked) = (String::new(), Vec::new(), BTreeSet::new());
    let mut same = Vec::new();
    let pairs: Vec<(&Side, &Side)> =
        sides.iter().enumerate().flat_map(|(i, a)| sides[i + 1..].iter().map(move |b| (a, b))).collect();
    let named: Vec<_> = pairs.iter().map(|(a, b)| ((&a.report, a.own.as_str()), (&b.report, b.own.as_str()))).collect();
    let compared = compare_all(&named, &args.allow)?;
    for ((first, second), mut comparison) in pairs.into_iter().zip(compared) {
        // What neither says of how it was made nobody can check: that is said, not refused.
        unchecked.extend(unknown(&first.report, &second.report));
        comparison.baseline.clone_from(&first.shown);
        comparison.candidate.clone_from(&second.shown);
        if let Some(what) = one_and_the_same(first, second) {
            output.say(legible(&format!("warning: {} and {} are {what}", first.shown, second.shown)));
            same.push(json!([first.shown, second.shown]));
        }
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&table(first, &comparison));
        comparisons.push(comparison);
    }
    if !unchecked.is_empty() {
        let list = unchecked.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        output.say(format!("note: neither side says how it was made; not checked: {list}"));
    }
    let object = json!({
        "comparisons": comparisons, "allowed_to_differ": args.allow, "not_checked": unchecked, "same": same,
    });
    output.result(&object, &text)?;
    Ok(0)
}

/// What two sides share that should be theirs alone: a checkpoint, or the file of their texts. None
/// where they are two, or nobody knows.
fn one_and_the_same(first: &Side, second: &Side) -> Option<String> {
    let checkpoint = |side: &Side| side.report.model(&side.own).map(|m| m.checkpoint_sha256.clone());
    let file = |side: &Side| match side.report.data.files.as_slice() {
        // Pairs: the candidates are in the data file itself.
        [file] if side.report.data.splits.contains_key("pairs") => Some(file.sha256.clone()),
        _ => None,
    };
    let shared =
        |of: &dyn Fn(&Side) -> Option<String>| of(first).filter(|h| !h.is_empty() && of(second).as_ref() == Some(h));
    let short = |hash: String| hash.chars().take(12).collect::<String>();
    shared(&checkpoint)
        .map(|hash| format!("the same checkpoint (sha256 {})", short(hash)))
        .or_else(|| shared(&file).map(|hash| format!("the same file (sha256 {})", short(hash))))
}

/// Gives sides of one name the names they were given by.
fn tell_apart(sides: &mut [Side], specs: &[&String]) {
    let names: Vec<String> = sides.iter().map(|s| s.shown.clone()).collect();
    for (i, side) in sides.iter_mut().enumerate() {
        // A model picked by name out of several keeps it.
        if side.report.models.len() == 1 && names.iter().filter(|n| **n == names[i]).count() > 1 {
            side.shown.clone_from(specs[i]);
        }
    }
}

fn table(first: &Side, comparison: &Comparison) -> String {
    let [a, b] = [&comparison.baseline, &comparison.candidate].map(|name| legible(name));
    let mut text = format!("{b} against {a}, on the same items\n");
    for m in &comparison.allowed {
        let _ = writeln!(text, "although they differ in {}: {} against {}", m.what, m.first, m.second);
    }
    text.push('\n');
    let interval = format!("{} % interval", (first.report.statistics.confidence * 1e6).round() / 1e4);
    let width = [&a, &b].iter().map(|n| n.chars().count()).max().unwrap_or(0).clamp(10, 24);
    let short = |name: &str| name.chars().rev().take(width).collect::<Vec<_>>().into_iter().rev().collect::<String>();
    let _ = writeln!(
        text,
        "{:<20} {:>width$} {:>width$} {:>10}   {:<24} {:>8}  verdict",
        "metric",
        short(&a),
        short(&b),
        "difference",
        interval,
        "p (Holm)"
    );
    for metric in &first.report.metrics {
        let Some(c) = comparison.metrics.get(&metric.name) else { continue };
        let number = |x: Option<f64>| x.map_or("-".to_string(), |x| format!("{x:.4}"));
        let interval = match (c.ci_low, c.ci_high) {
            (Some(low), Some(high)) => format!("[{low:.4}, {high:.4}]"),
            _ => "-".to_string(),
        };
        let verdict = serde_json::to_value(c.verdict).unwrap_or_default();
        let sources = c.clusters.map_or(String::new(), |n| format!(" from {n} sources"));
        let _ = writeln!(
            text,
            "{:<20} {:>width$} {:>width$} {:>10}   {:<24} {:>8}  {} (n = {}{sources})",
            legible(&metric.name),
            number(c.mean_baseline),
            number(c.mean_candidate),
            number(c.difference),
            interval,
            number(c.p_adjusted),
            verdict.as_str().unwrap_or_default(),
            c.n,
        );
    }
    text
}

/// `PATH` or `PATH:MODEL`; a report with one model needs no name.
fn side(spec: &str) -> Result<Side> {
    let (path, model) = match spec.rsplit_once(':') {
        Some((path, model)) if !Path::new(spec).exists() => (path, Some(model)),
        _ => (spec, None),
    };
    let place = Path::new(path);
    given(place)?;
    let is_text = place.is_file() && place.extension().is_none_or(|e| e != "json");
    let report = match is_text {
        true if is_store(place) => of_store(place)?,
        true => report_pairs(place, &stem(place))?,
        false => load(place)?,
    };
    let names = || report.models.iter().map(|m| m.name.as_str()).collect::<Vec<_>>().join(", ");
    let own = match (model, report.models.as_slice()) {
        (Some(model), _) if report.model(model).is_some() => model.to_string(),
        (Some(model), _) => {
            return Err(Error::usage(format!("the report has no model `{model}`"))
                .at(path)
                .help(format!("its models are: {}", names())));
        }
        (None, [only]) => only.name.clone(),
        (None, models) => {
            let names: Vec<&str> = models.iter().map(|m| m.name.as_str()).collect();
            return Err(Error::usage(format!("the report has {} models", models.len()))
                .at(path)
                .help(format!("name one of them, as {path}:{}", names.join(" or :"))));
        }
    };
    let shown = own.clone();
    Ok(Side { report, own, shown })
}

fn stem(path: &Path) -> String {
    path.file_stem().map_or_else(|| "model".into(), |s| s.to_string_lossy().into_owned())
}

/// The report of a store's texts, by the suite that its run folder keeps.
fn of_store(path: &Path) -> Result<Report> {
    let whole = std::path::absolute(path).map_err(|e| Error::io("resolve", path, e))?;
    let Some(suite) = whole.ancestors().map(|folder| folder.join("suite.toml")).find(|file| file.is_file()) else {
        return Err(Error::usage("this store lies in no run folder, so its references are not known")
            .at(path.display())
            .help("measure it first: karat eval SUITE --predictions FILE --out DIR"));
    };
    let suite = Suite::load(&suite.to_string_lossy(), &[])?;
    let prepared = prepare(&suite)?;
    // eval/NAME-KEY/decode-KEY/predictions.jsonl
    let folder = whole.ancestors().nth(2).and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned());
    let name = folder.as_deref().and_then(|n| n.rsplit_once('-')).map_or_else(|| stem(path), |(name, _)| name.into());
    report_stored(&suite, &prepared, read_stored(path, Some(&name), &prepared)?, Default::default())
}

/// The report of a run folder, a folder with a report.json, or the file.
pub fn load(path: &Path) -> Result<Report> {
    let inside = path.join("report");
    Report::load(if inside.is_dir() { &inside } else { path })
}
