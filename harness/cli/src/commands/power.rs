//! `karat power`: what a report's items can tell, and how many would tell more.

use karat::Result;
use karat::gate::Subject;
use karat::report::power::{Question, power, text};
use serde_json::json;

use crate::args::PowerArgs;
use crate::output::Output;

pub fn run(args: &PowerArgs, output: &Output) -> Result<u8> {
    let subject = match &args.what {
        Some(what) => Subject::find(what)?,
        None => Subject::only()?,
    };
    let report = subject.load()?;
    super::run::say_coverage(&report, output);
    let mut margins = subject.margins.clone();
    // Those of the suite may be of metrics that this report has not; those typed must not.
    margins.retain(|metric, margin| report.metric(metric).is_some() && *margin > 0.0);
    margins.extend(super::check::given_margins(&args.margin)?);
    let answer = power(&report, &Question { margins, power: args.power, baseline: args.baseline.clone() })?;
    output.result(&json!(answer), &text(&answer))?;
    Ok(0)
}
