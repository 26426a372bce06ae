//! Baselines of a gate: a report that somebody accepted, with who, when, why and from which commit.
//!
//! ```text
//! reports/baselines/SUITE/NAME.json            the baseline: provenance, and the report without its texts and costs
//!                         NAME.history.jsonl   one line an acceptance, appended, never changed
//! ```
//!
//! Nothing here asks a clock or a user database: who and when are what the caller gives, so that
//! the same inputs give the same bytes. A plain `report.json` is a baseline too, without
//! provenance.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::fsio;
use crate::report::compare::prints;
use crate::report::{Environment, Fingerprints, Report};

/// The version of the file this build writes and reads.
pub const BASELINE_VERSION: u32 = 1;

/// An accepted report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    /// [`BASELINE_VERSION`].
    pub baseline_version: u32,
    /// How it came to be the baseline.
    pub acceptance: Acceptance,
    /// What is compared with: the report without examples, questions, curves, comparisons and
    /// environment.
    pub report: Report,
}

/// How a report came to be a baseline; a line of the history.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acceptance {
    /// The baseline's name.
    pub name: String,
    /// The suite's.
    pub suite: String,
    /// Why it was accepted.
    pub reason: String,
    /// The commit of the working tree, `-dirty` behind it where there were changes; none outside a
    /// repository.
    pub commit: Option<String>,
    /// Who and when (`by`, `at`), as given, and Karat's version (`karat`).
    pub environment: BTreeMap<String, String>,
    /// SHA-256 of the baseline file that this one took the place of; none for the first.
    pub previous_sha256: Option<String>,
    /// What its report answers.
    pub fingerprints: Fingerprints,
    /// Fingerprints that changed with it: `data`, `prompts`, `template`, `decoding`. The values
    /// before and after are then no comparison.
    pub changed: Vec<String>,
    /// Table values by model and metric, before and after.
    pub values: BTreeMap<String, BTreeMap<String, Change>>,
}

/// A value before and after; none where there was none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// In the baseline that was replaced.
    pub old: Option<f64>,
    /// In the one that took its place.
    pub new: Option<f64>,
}

/// What the caller states of an acceptance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statement {
    /// Why.
    pub reason: String,
    /// Who, if said.
    pub by: Option<String>,
    /// When, if said; any notation.
    pub at: Option<String>,
    /// The commit, if there is one.
    pub commit: Option<String>,
}

/// Where the baselines of a folder's suites lie: `reports/baselines` in the current folder or the
/// nearest above it that has a `reports` folder, else in the current folder.
///
/// # Errors
/// If there is no current folder.
pub fn folder() -> Result<PathBuf> {
    let here = std::env::current_dir().map_err(|e| Error::failed("no current folder").because(e))?;
    let root = here.ancestors().find(|f| f.join("reports").is_dir()).unwrap_or(&here);
    Ok(root.join("reports").join("baselines"))
}

/// The file of a baseline: `spec` if that is a file or a folder with a report, else
/// `FOLDER/SUITE/SPEC.json`.
///
/// # Errors
/// A name that cannot name a file.
pub fn file(folder: &Path, suite: &str, spec: &str) -> Result<PathBuf> {
    let given = Path::new(spec);
    if given.is_file() {
        return Ok(given.to_path_buf());
    }
    for inside in ["report.json", "report/report.json"] {
        if given.join(inside).is_file() {
            return Ok(given.join(inside));
        }
    }
    let name_ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if given.extension().is_some_and(|e| e == "json") || spec.contains(['/', '\\']) {
        return Ok(given.to_path_buf());
    }
    if spec.is_empty() || spec.starts_with('.') || !spec.chars().all(name_ok) {
        return Err(Error::usage(format!("{spec:?} cannot name a baseline"))
            .help("use letters, digits, '-', '_' and '.', or give the path of a report"));
    }
    Ok(folder.join(suite).join(format!("{spec}.json")))
}

/// The file of a baseline as [`file()`] finds it, and the model of it that is meant where `spec` is
/// `NAME:MODEL`.
///
/// # Errors
/// A name that cannot name a file.
pub fn find(folder: &Path, suite: &str, spec: &str) -> Result<(PathBuf, Option<String>)> {
    match (file(folder, suite, spec), spec.rsplit_once(':')) {
        (Ok(path), _) if path.is_file() => Ok((path, None)),
        (_, Some((named, model))) => Ok((file(folder, suite, named)?, Some(model.into()))),
        (whole, None) => Ok((whole?, None)),
    }
}

/// The report to compare with: that of a baseline file, or a plain `report.json`.
///
/// # Errors
/// A file that is not there, with the command that makes one; one that is neither.
pub fn load(path: &Path) -> Result<Report> {
    let place = path.display().to_string();
    let text = read(path)?;
    let Some((_, report)) = parts(&text, &place)? else { return Report::from_json(&text, &place) };
    Report::from_json(&report.to_string(), &place).map_err(|e| e.help(BLESS_ANOTHER))
}

const BLESS_ANOTHER: &str = "evaluate again and accept that: karat check SUITE --bless --reason TEXT";

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| {
        let name =
            |part: Option<&std::ffi::OsStr>, or: &str| part.map_or(or.into(), |p| p.to_string_lossy().into_owned());
        let suite = name(path.parent().and_then(Path::file_name), "SUITE");
        let saved = name(path.file_stem(), "NAME");
        Error::io("read the baseline", path, e).help(format!(
            "save one first: karat check {suite} --save-baseline {saved}; or give the path of a report.json"
        ))
    })
}

/// The acceptance and the report of a baseline file; none of another file. The report is left as it
/// is: its own reader knows about versions.
fn parts(text: &str, place: &str) -> Result<Option<(Acceptance, Value)>> {
    let Ok(mut value) = serde_json::from_str::<Value>(text) else { return Ok(None) };
    let Some(version) = value.get("baseline_version") else { return Ok(None) };
    if *version != BASELINE_VERSION {
        return Err(Error::data(format!("the baseline has version {version}, this karat reads {BASELINE_VERSION}"))
            .at(place)
            .help(BLESS_ANOTHER));
    }
    let damaged = || Error::data("the baseline is damaged").at(place).help(BLESS_ANOTHER);
    let report = value.get_mut("report").map(Value::take).ok_or_else(damaged)?;
    let acceptance = value.get_mut("acceptance").map(Value::take).ok_or_else(damaged)?;
    let acceptance = serde_json::from_value(acceptance).map_err(|e| damaged().because(e))?;
    Ok(Some((acceptance, report)))
}

/// Accepts `report` as the baseline in `path`, in place of what is there: appends to the history
/// beside it, then writes the file. What is there may hold a report of an older schema: its
/// acceptance has what is asked of it.
///
/// # Errors
/// No reason given; a file there that is no baseline, which nobody wants overwritten, or is
/// damaged; I/O.
pub fn accept(report: &Report, path: &Path, statement: &Statement) -> Result<Acceptance> {
    let reason = statement.reason.trim();
    if reason.is_empty() {
        return Err(Error::usage("a baseline is accepted for a reason").help("give one: --reason TEXT"));
    }
    let (old, previous_sha256) = match path.is_file() {
        false => (None, None),
        true => match parts(&read(path)?, &path.display().to_string())? {
            Some((old, _)) => (Some(old), Some(fsio::sha256_file(path)?)),
            None => {
                return Err(Error::usage("this is a report or another file, not a baseline: it is not overwritten")
                    .at(path.display())
                    .help("accept under a name: --baseline NAME --bless --reason TEXT"));
            }
        },
    };
    let stated = [("by", &statement.by), ("at", &statement.at)];
    let mut environment: BTreeMap<String, String> =
        stated.into_iter().filter_map(|(k, v)| Some((k.to_string(), v.clone()?))).collect();
    environment.insert("karat".into(), env!("CARGO_PKG_VERSION").into());
    let acceptance = Acceptance {
        name: path.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(),
        suite: report.suite.name.clone(),
        reason: reason.to_string(),
        commit: statement.commit.clone(),
        environment,
        previous_sha256,
        fingerprints: report.fingerprints.clone(),
        changed: old.as_ref().map_or_else(Vec::new, |old| changed(&old.fingerprints, &report.fingerprints)),
        values: changes(old.as_ref(), report),
    };
    let baseline =
        Baseline { baseline_version: BASELINE_VERSION, acceptance: acceptance.clone(), report: slim(report) };
    // The history first: what was accepted and could not be written is known; what was written
    // unknown never is.
    append(&history(path), &acceptance)?;
    fsio::write_atomic(path, baseline.to_json()?.as_bytes())?;
    Ok(acceptance)
}

/// The history beside a baseline.
pub fn history(path: &Path) -> PathBuf {
    path.with_extension("history.jsonl")
}

fn append(path: &Path, acceptance: &Acceptance) -> Result<()> {
    let mut bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(Error::io("read the history", path, e)),
    };
    if bytes.last().is_some_and(|&b| b != b'\n') {
        bytes.push(b'\n');
    }
    let line = serde_json::to_string(acceptance).map_err(|e| Error::failed("no JSON").because(e))?;
    bytes.extend_from_slice(line.as_bytes());
    bytes.push(b'\n');
    fsio::write_atomic(path, &bytes)
}

fn changed(old: &Fingerprints, new: &Fingerprints) -> Vec<String> {
    prints(old, new).into_iter().filter(|(_, old, new)| old != new).map(|(what, ..)| what.to_string()).collect()
}

type Changes = BTreeMap<String, BTreeMap<String, Change>>;

fn changes(old: Option<&Acceptance>, new: &Report) -> Changes {
    let mut all = Changes::new();
    for (model, values) in old.into_iter().flat_map(|old| &old.values) {
        // What was gone before is not gone again.
        for (metric, change) in values.iter().filter(|(_, c)| c.new.is_some()) {
            all.entry(model.clone()).or_default().entry(metric.clone()).or_default().old = change.new;
        }
    }
    for metric in &new.metrics {
        for (model, value) in &metric.models {
            all.entry(model.clone()).or_default().entry(metric.name.clone()).or_default().new = value.value;
        }
    }
    all
}

/// What a comparison needs of a report, and no more: a baseline is kept in a repository and read in
/// its diffs.
fn slim(report: &Report) -> Report {
    let mut slim = report.clone();
    slim.environment = Environment::default();
    slim.examples.clear();
    slim.comparisons.clear();
    slim.warnings.clear();
    slim.data.bad_rows.clear();
    for model in &mut slim.models {
        model.training = None;
    }
    for item in &mut slim.items {
        item.question.clear();
    }
    slim
}

impl Baseline {
    /// The JSON text: sorted keys, one line an item, a final line break.
    ///
    /// # Errors
    /// If serde cannot represent it.
    pub fn to_json(&self) -> Result<String> {
        let broken = |e| Error::failed("could not write the baseline as JSON").because(e);
        let mut value = serde_json::to_value(self).map_err(broken)?;
        value.sort_all_objects();
        // Parts of a report that may be absent and that no comparison reads: texts, mostly.
        for (place, keys) in [("/report", &["flips", "flipped", "general"][..]), ("/report/data", &["leaks"])] {
            if let Some(Value::Object(object)) = value.pointer_mut(place) {
                object.retain(|key, _| !keys.contains(&key.as_str()));
            }
        }
        let items = value.pointer_mut("/report/items").map(Value::take);
        let lines: Vec<String> = match items {
            Some(Value::Array(items)) => items.iter().map(|item| format!("      {item}")).collect(),
            _ => Vec::new(),
        };
        if let Some(place) = value.pointer_mut("/report/items") {
            *place = Value::Array(Vec::new());
        }
        let text = format!("{value:#}\n");
        if lines.is_empty() {
            return Ok(text);
        }
        // No string of the JSON can hold this: quotes in it are escaped.
        Ok(text.replacen("\"items\": []", &format!("\"items\": [\n{}\n    ]", lines.join(",\n")), 1))
    }
}
