//! `karat report`: pages of a stored report.

use karat::Result;
use karat::report::splice::{self, Mode};
use karat::report::{self, csv, html, markdown};
use serde_json::json;

use crate::args::{Format, ReportArgs};
use crate::output::Output;

pub fn run(args: &ReportArgs, output: &Output) -> Result<u8> {
    let report = super::compare::load(&args.report)?;
    if let Some(document) = &args.splice {
        let id = args.id.clone().unwrap_or_else(|| report.suite.name.clone());
        let mode = if args.check { Mode::Check } else { Mode::Write };
        let command = format!("cargo karat report {} --splice {} --id {id}", args.report.display(), document.display());
        let changed = splice::file(document, &id, &markdown::results_block(&report), mode, &command)?;
        let word = if changed { "updated" } else { "current" };
        output.result(
            &json!({"document": document, "id": id, "state": word}),
            &format!("{}: {word}", document.display()),
        )?;
        return Ok(0);
    }
    if let Some(folder) = &args.out {
        let written = report::write(&report, folder)?;
        let text: String = written.iter().map(|p| format!("{}\n", p.display())).collect();
        output.result(&json!({ "written": written }), &text)?;
        return Ok(0);
    }
    let text = match args.format {
        Format::Md => markdown::render(&report),
        Format::Html => html::render(&report)?,
        Format::Json => report.to_json()?,
        Format::Csv => csv::items(&report),
    };
    // With --json the page is a string of the one object; the report itself is one already.
    match args.format {
        Format::Json => output.data(&text)?,
        Format::Md => output.result(&json!({"format": "md", "text": text}), &text)?,
        Format::Html => output.result(&json!({"format": "html", "text": text}), &text)?,
        Format::Csv => output.result(&json!({"format": "csv", "text": text}), &text)?,
    }
    Ok(0)
}
