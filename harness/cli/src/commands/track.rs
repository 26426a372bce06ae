//! `karat track`: a finished run for trackers.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use karat::track::{Title, Tracked, TrackerName, Tracking, export};
use karat::{Error, Result};
use serde_json::json;

use crate::args::TrackArgs;
use crate::output::{Output, shown};

pub fn run(args: &TrackArgs, output: &Output) -> Result<u8> {
    let run = folder(&args.run)?;
    let out = args.out.as_ref().map(|out| std::path::absolute(out).map_err(|e| Error::io("resolve", out, e)));
    let out = out.transpose()?;
    let Tracked { models, folders } = export(&run, |suite| {
        let Title { project, workspace, name } = suite.title.clone();
        let title = Title {
            project: args.project.clone().unwrap_or(project),
            workspace: args.workspace.clone().unwrap_or(workspace),
            name: args.name.clone().unwrap_or(name),
        };
        let to = if args.to.is_empty() { suite.to.clone() } else { trackers(args) };
        Tracking { to, title, samples: args.samples.unwrap_or(suite.samples), ..suite }.below(out.as_deref())
    })?;
    let mut text = String::new();
    for (tracker, folder) in &folders {
        let _ = writeln!(text, "{}", shown(&folder.display().to_string()));
        output.say(format!("{} of {}: {}", tracker.title(), models.join(", "), look(*tracker, folder, &models)));
    }
    let folders: serde_json::Map<String, serde_json::Value> =
        folders.iter().map(|(tracker, folder)| (tracker.name().into(), json!(folder))).collect();
    output.result(&json!({ "models": models, "folders": folders }), &text)?;
    Ok(0)
}

fn trackers(args: &TrackArgs) -> Vec<TrackerName> {
    args.to.iter().map(|&tracker| tracker.into()).collect()
}

/// What shows what was written: a command, or a page.
fn look(tracker: TrackerName, folder: &Path, models: &[String]) -> String {
    match tracker {
        TrackerName::TensorBoard => format!("tensorboard --logdir {}", folder.display()),
        TrackerName::SwanLab => format!("swanlab sync {}/*/run-*", folder.display()),
        TrackerName::MlFlow => {
            let page = |model: &String| karat::track::page(&folder.join(model));
            models.iter().filter_map(page).collect::<Vec<_>>().join(" ")
        }
    }
}

/// The run's folder: as it is named, or below `runs`.
fn folder(named: &Path) -> Result<PathBuf> {
    let below = Path::new("runs").join(named);
    match (named.is_dir(), below.is_dir()) {
        (true, _) => Ok(named.into()),
        (false, true) => Ok(below),
        (false, false) => Err(Error::usage("there is no such run")
            .at(named.display())
            .help("give the folder of a `karat run`, its name below runs/, or the --out of a `karat train`")),
    }
}
