//! `karat check`: the gate.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use karat::eval::stats::Verdict;
use karat::report::gate::check;
use karat::suite::GateConfig;
use karat::{Error, Result};
use serde_json::json;

use super::compare::load;
use crate::args::CheckArgs;
use crate::output::Output;

pub fn run(args: &CheckArgs, output: &Output) -> Result<u8> {
    let mut margins = suite_margins(&args.report)?;
    for margin in &args.margin {
        let (name, value) =
            margin
                .split_once('=')
                .and_then(|(name, value)| Some((name, value.parse::<f64>().ok()?)))
                .ok_or_else(|| Error::usage(format!("--margin {margin:?} is not of the form METRIC=NUMBER")))?;
        margins.insert(name.to_string(), value);
    }
    let report = load(&args.report)?;
    let baseline = load(&args.baseline)?;
    let checks = check(&report, &baseline, &margins)?;
    let mut text = String::new();
    for c in &checks.checks {
        let word = word(c.verdict);
        let _ = match (&c.gate, &c.missing) {
            (Some(g), _) => writeln!(
                text,
                "{word:<12} {:<6} {:<20} gain {:+.4} [{:+.4}, {:+.4}], margin {}, detectable {:.4}, n = {}",
                c.model, c.metric, g.gain, g.interval.low, g.interval.high, g.margin, g.minimum_detectable, g.n
            ),
            (None, missing) => {
                writeln!(text, "{word:<12} {:<6} {:<20} {}", c.model, c.metric, missing.as_deref().unwrap_or("missing"))
            }
        };
    }
    let _ = writeln!(text, "{}", word(checks.verdict));
    output.result(&json!(checks), &text)?;
    Ok(match checks.verdict {
        Verdict::Pass => 0,
        Verdict::Regress => 3,
        Verdict::Inconclusive => 4,
    })
}

/// The margins of the suite that a run folder was made by (`[gate.margins]`); `--margin` goes over them.
fn suite_margins(report: &Path) -> Result<BTreeMap<String, f64>> {
    let path = report.join("suite.toml");
    if !path.is_file() {
        return Ok(BTreeMap::new());
    }
    #[derive(serde::Deserialize)]
    struct Stored {
        #[serde(default)]
        gate: GateConfig,
    }
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    let stored: Stored =
        toml::from_str(&text).map_err(|e| Error::data("broken suite file").at(path.display()).because(e))?;
    Ok(stored.gate.margins)
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Regress => "regress",
        Verdict::Inconclusive => "inconclusive",
    }
}
