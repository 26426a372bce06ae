//! What intervals, tests, gates and `detectable` keep of their promises, simulated: the table of
//! `docs/statistics.md`.
//!
//! ```text
//! karat-tools statistics                                    # prints it: an hour of one core
//! karat-tools statistics into=docs/statistics.md            # writes it there, between its marks
//! karat-tools statistics replications=300 resamples=300 n=14,20
//! ```

use std::path::Path;

use karat::eval::stats::StatsOptions;
use karat::eval::stats::simulation::{Calibration, Kind, calibrate};
use karat::report::splice::{self, SpliceMode};

use crate::Done;
use crate::args::Args;

const HEADER: &str = "| items | values | interval of a value | percentile bootstrap | interval of a difference | \
null rejected | gate alarms | gate passes at margin | power at detectable |\n\
| --: | :-- | --: | --: | --: | --: | --: | --: | --: |\n";

/// Simulates, prints, and writes if asked to.
pub fn run(args: &Args) -> Done {
    let replications = args.number("replications", 2000)?;
    let options = StatsOptions {
        resamples: args.number("resamples", 1000)?,
        seed: args.number("seed", 7)?,
        ..StatsOptions::default()
    };
    let sizes = args.text("n", "10,14,20,60,200");
    let into = args.get("into").map(str::to_owned);
    let mut table = HEADER.to_string();
    print!("{table}");
    for n in sizes.split(',') {
        let n: usize = n.parse().map_err(|_| format!("n={n} is no number of items"))?;
        for kind in Kind::ALL {
            let line = row(n, kind, &calibrate(kind, n, replications, &options));
            print!("{line}");
            table.push_str(&line);
        }
    }
    if let Some(file) = into {
        let how = format!("{replications} replications of {} resamples.", options.resamples);
        splice::file(Path::new(&file), "statistics", &format!("{table}\n{how}"), SpliceMode::Write, "")?;
    }
    Ok(())
}

fn row(n: usize, kind: Kind, c: &Calibration) -> String {
    let share = |x: f64| format!("{x:.3}");
    let or_none = |x: Option<f64>| x.map_or("–".to_string(), share);
    format!(
        "| {n} | {} | {} | {} | {} | {} | {} | {} | {} |\n",
        kind.title(),
        share(c.single),
        share(c.percentile),
        share(c.paired),
        share(c.null),
        share(c.alarm),
        or_none(c.passed),
        or_none(c.power),
    )
}
