//! `karat compare`: two models, or three, item by item; with `--backends`, two backends on one model.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use karat::model_dir::given;
use karat::report::compare::{compare, mismatches};
use karat::report::{Comparison, Report};
use karat::run::{is_store, prepare, read_stored, report_pairs, report_stored};
use karat::suite::Suite;
use karat::{Error, Result};
use serde_json::json;

use crate::args::{CompareArgs, ComputeArgs, Global};
use crate::output::Output;

/// One side of a comparison.
struct Side {
    report: Report,
    model: String,
    /// It is a file of texts: how they were made is nowhere written.
    texts_alone: bool,
}

pub fn run(args: &CompareArgs, global: &Global, output: &Output) -> Result<u8> {
    if !args.backends.is_empty() {
        return super::parity::run(&args.backends, &args.parity, global, output);
    }
    if args.parity.compute != ComputeArgs::default() {
        return Err(Error::usage("--device, --dtype and --option are for a comparison of backends")
            .help("add --backends A,B --model DIR, or leave them out"));
    }
    let specs: Vec<&String> = [&args.a, &args.b, &args.c].into_iter().flatten().collect();
    let mut sides = specs.iter().map(|spec| side(spec)).collect::<Result<Vec<Side>>>()?;
    tell_apart(&mut sides, &specs);
    let (mut text, mut comparisons, mut unchecked) = (String::new(), Vec::new(), BTreeSet::new());
    for (i, first) in sides.iter().enumerate() {
        for second in &sides[i + 1..] {
            let mut allow = args.allow.clone();
            // Nobody can know what two files of texts do not say: it is said, not refused.
            if first.texts_alone && second.texts_alone {
                let unknown = mismatches(&first.report, &second.report).into_iter();
                let unknown: Vec<String> = unknown.filter(|m| m.first == m.second).map(|m| m.what).collect();
                unchecked.extend(unknown.iter().cloned());
                allow.extend(unknown);
            }
            let mut comparison = compare((&first.report, &own(first)), (&second.report, &own(second)), &allow)?;
            comparison.baseline.clone_from(&first.model);
            comparison.candidate.clone_from(&second.model);
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(&table(first, &comparison));
            comparisons.push(comparison);
        }
    }
    if !unchecked.is_empty() {
        let list = unchecked.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        output.say(format!("note: these files do not say how they were made; not checked: {list}"));
    }
    let object = json!({
        "comparisons": comparisons, "allowed_to_differ": args.allow, "not_checked": unchecked,
    });
    output.result(&object, &text)?;
    Ok(0)
}

/// The model's name within its report; what is shown may differ.
fn own(side: &Side) -> String {
    match side.report.models.as_slice() {
        [only] => only.name.clone(),
        _ => side.model.clone(),
    }
}

/// Gives sides of one name the names they were given by.
fn tell_apart(sides: &mut [Side], specs: &[&String]) {
    let names: Vec<String> = sides.iter().map(|s| s.model.clone()).collect();
    for (i, side) in sides.iter_mut().enumerate() {
        // A model picked by name out of several keeps it.
        if side.report.models.len() == 1 && names.iter().filter(|n| **n == names[i]).count() > 1 {
            side.model.clone_from(specs[i]);
        }
    }
}

fn table(first: &Side, comparison: &Comparison) -> String {
    let Comparison { baseline: a, candidate: b, .. } = comparison;
    let mut text = format!("{b} against {a}, on the same items\n");
    for m in &comparison.allowed {
        let _ = writeln!(text, "although they differ in {}: {} against {}", m.what, m.first, m.second);
    }
    text.push('\n');
    let interval = format!("{} % interval", (first.report.statistics.confidence * 1e6).round() / 1e4);
    let width = [a, b].iter().map(|n| n.chars().count()).max().unwrap_or(0).clamp(10, 24);
    let short = |name: &str| name.chars().rev().take(width).collect::<Vec<_>>().into_iter().rev().collect::<String>();
    let _ = writeln!(
        text,
        "{:<20} {:>width$} {:>width$} {:>10}   {:<24} {:>8}  verdict",
        "metric",
        short(a),
        short(b),
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
    Ok(Side { texts_alone: is_text && report.fingerprints.prompts.is_empty(), report, model })
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
