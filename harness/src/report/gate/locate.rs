//! The subject of a gate, found on disk with its suite's margins: a suite by name, a run's folder,
//! a report.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::super::write::REPORT_JSON;
use crate::error::{Error, Result};
use crate::report::Report;
use crate::suite::GateConfig;

/// A report to be gated, or where it would lie.
#[derive(Clone, Debug, PartialEq)]
pub struct Subject {
    /// The suite's name.
    pub suite: String,
    /// Its `report.json`; none if it has not been run.
    pub report: Option<PathBuf>,
    /// Where a report was looked for.
    pub tried: Vec<PathBuf>,
    /// The suite file whose margins these are, if one was found.
    pub suite_file: Option<PathBuf>,
    /// The margins of its `[gate]` table.
    pub margins: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct Written {
    name: String,
    #[serde(default)]
    gate: GateConfig,
}

impl Subject {
    /// `what` is a `report.json`, a folder that holds one (a run's folder too), a suite's file or
    /// folder, or a suite's name. A suite's report is that of `runs/NAME`, else `reports/NAME`, in
    /// the current folder or the nearest above it that has one.
    ///
    /// # Errors
    /// A report or suite file that cannot be read; a name that nothing is known by.
    pub fn find(what: &str) -> Result<Subject> {
        let path = Path::new(what);
        let inside = [path.to_path_buf(), path.join(REPORT_JSON), path.join("report").join(REPORT_JSON)];
        if let Some(report) = inside.iter().find(|p| p.is_file() && p.extension().is_some_and(|e| e == "json")) {
            return Subject::of_report(report.clone(), path);
        }
        let here = std::env::current_dir().map_err(|e| Error::failed("no current folder").because(e))?;
        let suite_file = crate::suite::Suite::find(what).ok();
        let (name, margins) = match &suite_file {
            Some(file) => {
                let written = read(file)?;
                (written.name, written.gate.margins)
            }
            None => (what.to_string(), BTreeMap::new()),
        };
        let mut tried = Vec::new();
        if name.contains(['/', '\\']) {
            tried.extend(inside);
        } else {
            for folder in here.ancestors() {
                tried.push(folder.join("runs").join(&name).join("report").join(REPORT_JSON));
                tried.push(folder.join("reports").join(&name).join(REPORT_JSON));
            }
        }
        let report = tried.iter().find(|p| p.is_file()).cloned();
        Ok(Subject { suite: name, report, tried, suite_file, margins })
    }

    /// The margins are those of the run's own suite file, else of the suite of that name.
    fn of_report(report: PathBuf, given: &Path) -> Result<Subject> {
        let suite = Report::load(&report)?.suite.name;
        let folders = [Some(given), report.parent(), report.parent().and_then(Path::parent)];
        let own = folders.into_iter().flatten().map(|f| f.join("suite.toml")).find(|f| f.is_file());
        let suite_file = own.or_else(|| crate::suite::Suite::find(&suite).ok());
        let margins = match &suite_file {
            Some(file) => read(file)?.gate.margins,
            None => BTreeMap::new(),
        };
        Ok(Subject { suite, report: Some(report), tried: Vec::new(), suite_file, margins })
    }

    /// The only suite that was run here: what is gated where nothing is named.
    ///
    /// # Errors
    /// None, or several, by name.
    pub fn only() -> Result<Subject> {
        let mut names: Vec<String> = Vec::new();
        for entry in std::fs::read_dir("runs").into_iter().flatten().flatten() {
            if entry.path().join("report").join(REPORT_JSON).is_file() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        names.sort();
        match names.as_slice() {
            [one] => Subject::find(&format!("runs/{one}")),
            [] => Err(Error::usage("there is no run in this folder to check")
                .help("run a suite first (karat run SUITE), or name a suite or a report")),
            _ => {
                Err(Error::usage("there are several runs here").help(format!("name one of them: {}", names.join(", "))))
            }
        }
    }

    /// The report.
    ///
    /// # Errors
    /// Data, if it has not been made, with the places that were tried; a broken one.
    pub fn load(&self) -> Result<Report> {
        match &self.report {
            Some(path) => Report::load(path),
            None => Err(Error::data(format!("there is no report of {:?}; tried", self.suite))
                .with_lines(self.tried.iter().map(|p| format!("  {}", p.display())))
                .help(format!("run it first: karat run {}", self.suite))),
        }
    }
}

/// A path as seen from the repository that the current folder belongs to, or else from the current
/// folder: what people and GitHub's annotations want to read. As given where it lies outside.
pub fn from_repository(path: &Path) -> PathBuf {
    let here = std::env::current_dir().ok();
    let root = here.as_deref().and_then(|h| h.ancestors().find(|f| f.join(".git").exists()).or(Some(h)));
    // Canonical on both sides: `..` and links would hide that one holds the other.
    let inside =
        |root: &Path| Some(path.canonicalize().ok()?.strip_prefix(root.canonicalize().ok()?).ok()?.to_path_buf());
    root.and_then(inside).unwrap_or_else(|| path.to_path_buf())
}

fn read(file: &Path) -> Result<Written> {
    let text = std::fs::read_to_string(file).map_err(|e| Error::io("read the suite file", file, e))?;
    toml::from_str(&text).map_err(|e| Error::usage("broken suite file").at(file.display()).because(e))
}
