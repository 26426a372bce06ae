//! What a gate compares with: a report that somebody accepted, with who, when, why and from which commit.
//!
//! ```text
//! reports/baselines/SUITE/NAME.json            the baseline: provenance, and the report without its texts and costs
//!                         NAME.history.jsonl   one line an acceptance, appended, never changed
//! ```
//!
//! Nothing here asks a clock or a user database: who and when are what the caller gives, so that the same inputs give the same
//! bytes. A plain `report.json` is a baseline too, without provenance.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::fsio;
use crate::report::{Environment, Report};

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
    /// What is compared with: the report without examples, questions, curves, comparisons and environment.
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
    /// The commit of the working tree, `-dirty` behind it where there were changes; none outside a repository.
    pub commit: Option<String>,
    /// Who and when (`by`, `at`), as given, and Karat's version (`karat`).
    pub environment: BTreeMap<String, String>,
    /// SHA-256 of the baseline file that this one took the place of; none for the first.
    pub previous_sha256: Option<String>,
    /// Fingerprints that changed with it: `data`, `prompts`, `template`, `decoding`. The values before and after are then
    /// no comparison.
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

/// Where the baselines of a folder's suites lie: `reports/baselines` in the current folder or the nearest above it that has
/// a `reports` folder, else in the current folder.
///
/// # Errors
/// If there is no current folder.
pub fn folder() -> Result<PathBuf> {
    let here = std::env::current_dir().map_err(|e| Error::failed("no current folder").because(e))?;
    let root = here.ancestors().find(|f| f.join("reports").is_dir()).unwrap_or(&here);
    Ok(root.join("reports").join("baselines"))
}

/// The file of a baseline: `spec` if that is a file or a folder with a report, else `FOLDER/SUITE/SPEC.json`.
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

/// The report to compare with: that of a baseline file, or a plain `report.json`.
///
/// # Errors
/// A file that is not there, with the command that makes one; one that is neither.
pub fn load(path: &Path) -> Result<Report> {
    Ok(read(path)?.0)
}

/// The report of a baseline (`true`), or a plain one (`false`).
fn read(path: &Path) -> Result<(Report, bool)> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        Error::io("read the baseline", path, e)
            .help("save one first: karat check SUITE --save-baseline NAME; or give the path of a report.json")
    })?;
    let place = path.display().to_string();
    let version = serde_json::from_str::<Value>(&text).ok().and_then(|v| v.get("baseline_version").cloned());
    let Some(version) = version else { return Report::from_json(&text, &place).map(|report| (report, false)) };
    if version != BASELINE_VERSION {
        return Err(Error::data(format!("the baseline has version {version}, this karat reads {BASELINE_VERSION}"))
            .at(place)
            .help("use the karat that wrote it, or save a new one with --bless --reason TEXT"));
    }
    let baseline: Baseline = serde_json::from_str(&text).map_err(|e| {
        Error::data("the baseline is damaged").at(format!("{place}:{}:{}", e.line(), e.column())).because(e)
    })?;
    // The report inside has a version of its own; its own reader says what to do about another.
    let inner = serde_json::to_string(&baseline.report).map_err(|e| Error::failed("no JSON").because(e))?;
    Ok((Report::from_json(&inner, &place)?, true))
}

/// Accepts `report` as the baseline in `path`, in place of what is there: appends to the history beside it, then writes the file.
///
/// # Errors
/// No reason given; a file there that is a plain report, which nobody wants overwritten, or is broken; I/O.
pub fn accept(report: &Report, path: &Path, statement: &Statement) -> Result<Acceptance> {
    let reason = statement.reason.trim();
    if reason.is_empty() {
        return Err(Error::usage("a baseline is accepted for a reason").help("give one: --reason TEXT"));
    }
    let (old, previous_sha256) = match path.is_file() {
        false => (None, None),
        true => match read(path)? {
            (old, true) => (Some(old), Some(fsio::sha256_file(path)?)),
            (_, false) => {
                return Err(Error::usage("this is a report, not a baseline: it is not overwritten")
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
        changed: old.as_ref().map_or_else(Vec::new, |old| changed(old, report)),
        values: changes(old.as_ref(), report),
    };
    let baseline =
        Baseline { baseline_version: BASELINE_VERSION, acceptance: acceptance.clone(), report: slim(report) };
    // The history first: what was accepted and could not be written is known; what was written unknown never is.
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

fn changed(old: &Report, new: &Report) -> Vec<String> {
    let mismatches = crate::report::compare::mismatches(old, new);
    mismatches.iter().map(|m| m.what.to_string()).collect()
}

fn changes(old: Option<&Report>, new: &Report) -> BTreeMap<String, BTreeMap<String, Change>> {
    let mut all: BTreeMap<String, BTreeMap<String, Change>> = BTreeMap::new();
    let mut put = |report: &Report, set: fn(&mut Change, Option<f64>)| {
        for metric in &report.metrics {
            for (model, value) in &metric.models {
                set(all.entry(model.clone()).or_default().entry(metric.name.clone()).or_default(), value.value);
            }
        }
    };
    if let Some(old) = old {
        put(old, |c, v| c.old = v);
    }
    put(new, |c, v| c.new = v);
    all
}

/// What a comparison needs of a report, and no more: a baseline is kept in a repository and read in its diffs.
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
