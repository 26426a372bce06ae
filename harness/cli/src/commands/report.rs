//! `karat report`: pages of a stored report.

use clap::ValueEnum;
use karat::model_dir::{given, given_file};
use karat::report::splice::{self, SpliceMode};
use karat::report::{self, Direction, benchmark, csv, html, junit, latex, markdown};
use karat::{Error, Result};
use serde_json::json;

use crate::args::{Better, Format, Global, OpenArgs, ReportArgs};
use crate::output::Output;

pub fn run(args: &ReportArgs, global: &Global, output: &Output) -> Result<u8> {
    given(&args.report)?;
    args.determinism.iter().try_for_each(|path| given_file(path))?;
    args.splice.iter().filter(|_| args.check).try_for_each(|path| given_file(path))?;
    if args.format == Format::SeedCompat {
        return super::seed_compat::run(args, global, output);
    }
    if args.open != OpenArgs::default() {
        return Err(Error::usage("--backend, --device, --dtype, --threads and --option are for --format seed-compat")
            .help("other formats open no model; leave them out"));
    }
    let mut report = super::compare::load(&args.report)?;
    if let Some(language) = args.language {
        report.language = language.into();
    }
    if let Some(certificate) = &args.determinism {
        report.attach_certificate(certificate)?;
    }
    if let Some(document) = &args.splice {
        let id = args.id.clone().unwrap_or_else(|| report.suite.name.clone());
        let mode = if args.check { SpliceMode::Check } else { SpliceMode::Write };
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
        Format::CsvMetrics => csv::metrics(&report),
        Format::Latex => latex::table(&report),
        Format::Junit => junit::comparisons::junit(&report),
        Format::GithubBenchmark => {
            let direction = match args.better {
                Better::Lower => Direction::Lower,
                Better::Higher => Direction::Higher,
            };
            benchmark::github(&report, direction)?
        }
        Format::SeedCompat => String::new(),
    };
    match args.format {
        // These are JSON already.
        Format::Json | Format::GithubBenchmark => output.data(&text)?,
        // With --json the page is a string of the one object.
        format => {
            let name = format.to_possible_value().map(|v| v.get_name().to_string());
            output.result(&json!({"format": name, "text": text}), &text)?;
        }
    }
    Ok(0)
}
