//! Gates as `cargo test` shows them: one named test a suite, model and metric.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

use super::locate::from_repository;
use super::{Checks, Noise, Rules, Subject, baseline, check, plan, text};
use crate::error::Result;
use crate::eval::stats::MarginVerdict;
use crate::report::Report;

/// A suite's report to be held against a baseline.
#[derive(Clone, Debug, PartialEq)]
pub struct Gated {
    what: String,
    baseline: String,
    folder: Option<PathBuf>,
    rules: Rules,
}

impl Gated {
    /// `what` as [`Subject::find`] takes it: a suite's name, a run's folder, a report. `cargo test`
    /// runs in the folder of the package, so relative paths are relative to that. The baseline is
    /// `main` unless another is named.
    pub fn new(what: impl Into<String>) -> Gated {
        Gated { what: what.into(), baseline: "main".into(), folder: None, rules: Rules::default() }
    }

    /// The baseline: a name, or the path of a baseline file or report.
    #[must_use]
    pub fn baseline(mut self, spec: impl Into<String>) -> Gated {
        self.baseline = spec.into();
        self
    }

    /// Where named baselines lie, instead of the nearest `reports/baselines`.
    #[must_use]
    pub fn baselines(mut self, folder: impl Into<PathBuf>) -> Gated {
        self.folder = Some(folder.into());
        self
    }

    /// The margin of a metric, over that of the suite.
    #[must_use]
    pub fn margin(mut self, metric: impl Into<String>, margin: f64) -> Gated {
        self.rules.margins.insert(metric.into(), margin);
        self
    }

    /// What a second run of the same models would change by itself ([`Noise::read`]), over the
    /// report's certificate.
    #[must_use]
    pub fn noise(mut self, noise: Noise) -> Gated {
        self.rules.noise = Some(noise);
        self
    }

    /// The tests: `SUITE::MODEL::METRIC`, or one that says why there are none. Without a report
    /// they are ignored, with the command that makes one; without a baseline they fail, for a gate
    /// that nobody set up guards nothing.
    pub fn trials(&self) -> Vec<Trial> {
        let (subject, path) = match self.places() {
            Ok(places) => places,
            Err(error) => return vec![failing(format!("{}::baseline", self.what), text::told(&error))],
        };
        let suite = subject.suite.clone();
        let mut rules = self.rules.clone();
        for (metric, margin) in &subject.margins {
            rules.margins.entry(metric.clone()).or_insert(*margin);
        }
        let bless = self.bless(&path);
        let loaded = baseline::load(&path).and_then(|baseline| names(&baseline, &rules).map(|names| (baseline, names)));
        let (baseline, names) = match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                return vec![failing(format!("{suite}::baseline"), format!("{}\n{bless}", text::told(&error)))];
            }
        };
        if subject.report.is_none() {
            let reason = format!("no run yet, see `karat run {suite}`");
            let why = subject.load().err().map(|e| text::told(&e)).unwrap_or_default();
            let ignored = |(model, metric): &(String, String)| {
                failing(format!("{suite}::{model}::{metric}"), why.clone()).with_ignored_flag(true).with_kind(&reason)
            };
            return names.iter().map(ignored).collect();
        }
        let checks = subject.load().and_then(|report| check(&report, &baseline, &rules));
        names.iter().map(|(model, metric)| decided(&suite, model, metric, &checks, &bless)).collect()
    }

    fn places(&self) -> Result<(Subject, PathBuf)> {
        let subject = Subject::find(&self.what)?;
        let folder = match &self.folder {
            Some(folder) => folder.clone(),
            None => baseline::folder()?,
        };
        let path = baseline::file(&folder, &subject.suite, &self.baseline)?;
        Ok((subject, path))
    }

    /// What to run if the change is meant.
    fn bless(&self, path: &Path) -> String {
        let action = match path.is_file() {
            true => format!("--baseline {} --bless --reason TEXT", self.baseline),
            false => format!("--save-baseline {}", self.baseline),
        };
        // From the root of the repository, where people stand, a relative path of this package
        // would lead elsewhere.
        let what = match Path::new(&self.what) {
            given if given.exists() => from_repository(given).display().to_string(),
            _ => self.what.clone(),
        };
        format!("if this is meant: karat check {what} {action}")
    }
}

fn names(baseline: &Report, rules: &Rules) -> Result<Vec<(String, String)>> {
    Ok(plan(baseline, rules)?.into_iter().map(|(model, metric, _)| (model.to_string(), metric.name.clone())).collect())
}

/// The test of one check; a report that cannot be compared at all fails every one of them.
fn decided(suite: &str, model: &str, metric: &str, checks: &Result<Checks>, bless: &str) -> Trial {
    let name = format!("{suite}::{model}::{metric}");
    let checks = match checks {
        Ok(checks) => checks,
        Err(error) => return failing(name, format!("{}\n{bless}", text::told(error))),
    };
    match checks.checks.iter().find(|c| c.model == model && c.metric == metric) {
        Some(c) if c.verdict == MarginVerdict::Pass => Trial::test(name, || Ok(())),
        Some(c) => {
            failing(name, format!("{}: {}\n{bless}", text::word(c.verdict), text::sentence(c, checks.confidence)))
        }
        None if checks.undefined.contains(&format!("{model} {metric}")) => {
            failing(name, String::new()).with_ignored_flag(true).with_kind("the baseline has no value of it")
        }
        None => failing(name, format!("it was not checked\n{bless}")),
    }
}

fn failing(name: String, why: String) -> Trial {
    Trial::test(name, move || Err(Failed::from(why)))
}

/// Runs the gates as a test program does: filters, `--list`, `--ignored` and the like are taken
/// from the command line, and `cargo nextest` understands it. For the `main` of a test with
/// `harness = false`.
pub fn test(gates: &[Gated]) -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = gates.iter().flat_map(Gated::trials).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
