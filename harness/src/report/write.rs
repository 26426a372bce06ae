//! A report on disk: `report.json` and what is made from it.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::fsio::write_atomic;

use super::model::Report;
use super::{csv, html, markdown, plot};

/// The file a report is loaded from.
pub const REPORT_JSON: &str = "report.json";

/// Writes `report.json`, `report.md`, `report.html`, `items.csv`, and, where there is something to
/// draw, `metrics.svg` and `curves.svg` into `folder`; returns their paths. Each file is replaced
/// whole; `report.json` comes last, so that where it is new everything is.
///
/// # Errors
/// Usage, if a file of one of these names is there and no report beside it; any I/O error, with its
/// path.
pub fn write(report: &Report, folder: &Path) -> Result<Vec<PathBuf>> {
    check_folder(folder)?;
    let plots = [("metrics.svg", plot::metric_bars(report)), ("curves.svg", plot::training_curves(report))];
    for (name, _) in plots.iter().filter(|(_, svg)| svg.is_none()) {
        // A plot of an earlier report must not stand beside this one.
        match std::fs::remove_file(folder.join(name)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", folder.join(name), e));
            }
            _ => {}
        }
    }
    let mut files: Vec<(&str, String)> = plots.into_iter().filter_map(|(name, svg)| Some((name, svg?))).collect();
    files.push(("items.csv", csv::items(report)));
    files.push(("report.md", markdown::render(report)));
    files.push(("report.html", html::render(report)?));
    files.push((REPORT_JSON, report.to_json()?));
    let mut written = Vec::new();
    for (name, text) in files {
        let path = folder.join(name);
        write_atomic(&path, text.as_bytes())?;
        written.push(path);
    }
    Ok(written)
}

/// Refuses a folder where somebody else's files have the names of a report's. A report that a kill
/// left without its last files bears its mark in the first.
///
/// # Errors
/// Usage, if a file of one of these names is there and no report beside it.
pub fn check_folder(folder: &Path) -> Result<()> {
    let marks = [
        (REPORT_JSON, "\"schema_version\""),
        ("report.html", "<meta name=\"generator\" content=\"karat\">"),
        ("metrics.svg", "class=\"karat-plot\""),
        ("curves.svg", "class=\"karat-plot\""),
        ("items.csv", "id,model,thinking,"),
    ];
    let bears = |(name, mark): &(&str, &str)| {
        std::fs::read(folder.join(name)).is_ok_and(|text| String::from_utf8_lossy(&text).contains(mark))
    };
    if marks.iter().any(bears) {
        return Ok(());
    }
    match marks.iter().map(|(name, _)| *name).chain(["report.md"]).find(|name| folder.join(name).exists()) {
        Some(name) => Err(Error::usage(format!("there is a {name} here that is of no report; nothing was written"))
            .at(folder.display())
            .help("name another folder, or move the file")),
        None => Ok(()),
    }
}

impl Report {
    /// Reads a report: a `report.json` or the folder that holds one.
    ///
    /// # Errors
    /// A file that is missing, is no report, or has another schema version.
    pub fn load(path: &Path) -> Result<Report> {
        let file = if path.is_dir() { path.join(REPORT_JSON) } else { path.to_path_buf() };
        let text = std::fs::read_to_string(&file).map_err(|e| {
            Error::io("read the report", &file, e)
                .help("point at a run's folder or its report.json; `karat run` makes one")
        })?;
        Report::from_json(&text, &file.display().to_string())
    }
}
