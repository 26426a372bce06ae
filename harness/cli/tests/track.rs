//! Runs as trackers see them: live, afterwards, after a kill, and through the trackers' own packages.

#![allow(clippy::unwrap_used)]

mod place;
#[path = "../../src/track/reader.rs"]
mod reader;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use place::{Place, good, refused, repository, said};
use reader::{Shown, event_file, run_folder};
use serde_json::{Value, json};

const TRACKED: &str = "track.to=[\"tensorboard\", \"swanlab\"]";
const STEPS: [&str; 6] = ["--set", "train.max_steps=4", "--set", "train.eval_every=2", "--set", "eval.items=2"];

fn inside(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

fn only(folder: &Path) -> PathBuf {
    let mut found = inside(folder);
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

/// The event file of each model below `folder`.
fn events(folder: &Path) -> Vec<(String, PathBuf)> {
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    inside(&folder.join("tensorboard")).into_iter().map(|model| (name(&model), only(&model))).collect()
}

/// The event file and the run folder of each model below `folder`.
fn of_models(folder: &Path) -> Vec<(String, PathBuf, PathBuf)> {
    let run = |name: &str| only(&folder.join("swanlab").join(name));
    events(folder).into_iter().map(|(name, events)| (name.clone(), events, run(&name))).collect()
}

/// The records of all models, without times; a run folder is named after one.
fn records(folder: &Path) -> Vec<String> {
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    of_models(folder)
        .into_iter()
        .flat_map(|(model, events, run)| {
            let of_run = format!("{:#?}", run_folder(&run)).replace(&name(&run), "RUN");
            [format!("{model}: {:#?}", event_file(&events)), format!("{model}: {of_run}")]
        })
        .collect()
}

fn tracked(place: &Place) -> Value {
    let args = [&["--json", "run", "my-experiment.toml", "--set", TRACKED, "--set", "track.samples=1"][..], &STEPS];
    serde_json::from_str::<Value>(&good(place.karat(&args.concat()))).unwrap()["report"].take()
}

/// The values of a tag with their steps.
fn values(shown: &[Shown], wanted: &str) -> Vec<(i64, f64)> {
    let of_tag = shown.iter().filter_map(|shown| match shown {
        Shown::Scalar { tag, step, value } if tag == wanted => Some((*step, *value)),
        _ => None,
    });
    of_tag.collect()
}

#[test]
fn what_is_written_live_and_afterwards_is_what_the_run_logged() {
    let place = Place::new();
    let report = tracked(&place);
    let live = place.root.join("runs/mine/track");
    let models = of_models(&live);
    assert_eq!(models.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>(), ["base", "lora"]);
    let (_, events, run) = &models[1];
    // The run's own log.
    let log = std::fs::read_dir(place.root.join("runs/mine/train")).unwrap().next().unwrap().unwrap().path();
    let log = std::fs::read_to_string(log.join("events.jsonl")).unwrap();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let losses: Vec<(i64, f64)> = lines
        .iter()
        .filter(|line| line["type"] == "step")
        .map(|line| (line["step"].as_i64().unwrap(), line["loss"].as_f64().unwrap()))
        .collect();
    assert_eq!(losses.len(), 4);
    assert_eq!(values(&run_folder(run), "train/loss"), losses);
    let single: Vec<(i64, f64)> = losses.iter().map(|(step, loss)| (*step, f64::from(*loss as f32))).collect();
    assert_eq!(values(&event_file(events), "train/loss"), single);
    assert_eq!(values(&event_file(events), "eval/loss").len(), 2);
    for (model, step) in [("base", 0), ("lora", 4)] {
        let (_, _, run) = models.iter().find(|(name, ..)| name == model).unwrap();
        let shown = run_folder(run);
        for metric in report["metrics"].as_array().unwrap() {
            let value = metric["models"][model]["value"].as_f64().unwrap();
            let tag = format!("metrics/{}", metric["name"].as_str().unwrap());
            assert_eq!(values(&shown, &tag), [(step, value)], "{model} {tag}");
        }
        let texts = shown.iter().filter(|s| matches!(s, Shown::Text { text, .. } if text.starts_with("Question: q")));
        assert_eq!(texts.count(), 1, "{shown:?}");
        assert_eq!(shown.last(), Some(&Shown::Ended(1, None)));
    }
    // The same of the finished run, even where its data is gone.
    std::fs::remove_file(place.root.join("items.jsonl")).unwrap();
    let told = good(place.karat(&["--json", "track", "mine", "--to", "tensorboard,swanlab", "--out", "curves"]));
    assert_eq!(serde_json::from_str::<Value>(&told).unwrap()["models"], json!(["base", "lora"]));
    let after = place.root.join("curves");
    let moved = place.root.join("after");
    std::fs::create_dir(&moved).unwrap();
    for tracker in ["tensorboard", "swanlab"] {
        std::fs::rename(after.join(tracker).join("mine"), moved.join(tracker)).unwrap();
    }
    let (live, after) = (records(&live), records(&moved));
    assert!(!live[0].contains(place.root.to_str().unwrap()), "no place of this machine: {}", live[0]);
    assert_eq!(live, after);
    // Nothing of it is part of the experiment.
    let place = Place::new();
    let args = [&["--json", "run", "my-experiment.toml"][..], &STEPS].concat();
    let plain = serde_json::from_str::<Value>(&good(place.karat(&args))).unwrap();
    assert_eq!(plain["report"]["suite"], report["suite"]);
    assert_eq!(plain["report"]["models"], report["models"]);
    assert!(!place.root.join("runs/mine/track").exists());
}

#[test]
fn a_killed_training_leaves_files_that_show_its_steps() {
    let place = Place::new();
    let mut training = place.training("trained");
    training.args(["--track", "tensorboard,swanlab"]);
    let log = place.root.join("trained/events.jsonl");
    let mut child = training.stderr(std::process::Stdio::null()).stdout(std::process::Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    let steps = || std::fs::read_to_string(&log).map_or(0, |text| text.lines().count());
    while steps() < 20 {
        assert!(began.elapsed() < Duration::from_secs(120), "the training does not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    // What was logged a second ago is in the files.
    let known = steps() as i64;
    std::thread::sleep(Duration::from_secs(1));
    child.kill().unwrap();
    child.wait().unwrap();
    let models = of_models(&place.root.join("trained/track"));
    let [(model, events, run)] = models.as_slice() else { panic!("{models:?}") };
    assert_eq!(model, "lora");
    for shown in [event_file(events), run_folder(run)] {
        let last = values(&shown, "train/loss").last().unwrap().0;
        assert!(last >= known, "{last} of {known}");
        assert!(!shown.iter().any(|shown| matches!(shown, Shown::Ended(..))));
    }
}

#[test]
fn what_cannot_be_tracked_is_refused_by_its_place() {
    let place = Place::new();
    refused(place.karat(&["track", "nowhere", "--to", "tensorboard"]), 2, "there is no such run");
    std::fs::create_dir(place.root.join("empty")).unwrap();
    refused(place.karat(&["track", "empty", "--to", "tensorboard"]), 2, "there is no run here");
    refused(place.karat(&["track", "empty", "--to", "wandb"]), 2, "tensorboard, swanlab");
    refused(place.karat(&["run", "my-experiment.toml", "--set", "track.to=[\"wandb\"]"]), 2, "tensorboard, swanlab");
    refused(place.karat(&["run", "my-experiment.toml", "--set", "track.too=[]"]), 2, "did you mean `to`");
}

/// The interpreter with the trackers' own packages, or a printed reason why the test is skipped.
fn python() -> Option<PathBuf> {
    match Command::new(repository().join("backends/tools/python/track_venv")).output() {
        Ok(output) if output.status.success() => Some(String::from_utf8(output.stdout).unwrap().trim().into()),
        Ok(output) => {
            println!("skipped: {}", String::from_utf8_lossy(&output.stderr));
            None
        }
        Err(error) => {
            println!("skipped: track_venv does not start: {error}");
            None
        }
    }
}

#[test]
fn the_trackers_own_packages_read_every_record() {
    let Some(python) = python() else { return };
    let place = Place::new();
    tracked(&place);
    for (model, events, run) in of_models(&place.root.join("runs/mine/track")) {
        let script = repository().join("backends/tools/python/check_track.py");
        let output = Command::new(&python).arg(script).args([events.parent().unwrap(), &run]).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        let read: Value = serde_json::from_slice(&output.stdout).unwrap();
        println!("tensorboard {}, swanlab {}", read["tensorboard"]["version"], read["swanlab"]["version"]);
        let rows =
            |of: &Value| of.as_object().unwrap().values().map(|rows| rows.as_array().unwrap().len()).sum::<usize>();
        let counted = |shown: &[Shown]| shown.iter().filter(|s| matches!(s, Shown::Scalar { .. })).count();
        assert_eq!(rows(&read["tensorboard"]["scalars"]), counted(&event_file(&events)), "{model}");
        assert_eq!(rows(&read["swanlab"]["scalars"]), counted(&run_folder(&run)), "{model}");
        let text = read["tensorboard"]["texts"]["Prediction/1/text_summary"][0][1].as_str().unwrap();
        assert!(text.contains("```\nQuestion: q"), "{text}");
        assert_eq!(read["swanlab"]["start"]["name"], format!("mine-{model}"));
        assert_eq!(read["swanlab"]["config"]["suite"]["value"]["train"]["lora"]["adapter"]["r"], 2);
        assert_eq!((&read["swanlab"]["finish"], &read["swanlab"]["texts"][0].is_string()), (&json!([1]), &true));
    }
}

/// A server of MLflow in a folder; it ends with the value.
#[cfg(feature = "hub")]
struct MlflowServer {
    process: std::process::Child,
    uri: String,
}

#[cfg(feature = "hub")]
impl MlflowServer {
    fn start(python: &Path, folder: &Path) -> MlflowServer {
        use std::os::unix::process::CommandExt;
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let store = format!("sqlite:///{}", folder.join("mlflow.db").display());
        let process = Command::new(python)
            .args(["-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1", "--port", &port.to_string()])
            .args(["--backend-store-uri", &store, "--artifacts-destination"])
            .arg(folder.join("artifacts"))
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(120), "the server does not start");
            std::thread::sleep(Duration::from_millis(200));
        }
        MlflowServer { process, uri: format!("http://127.0.0.1:{port}") }
    }
}

#[cfg(feature = "hub")]
impl Drop for MlflowServer {
    fn drop(&mut self) {
        // Its workers too.
        let group = format!("-{}", self.process.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
        let _ = self.process.wait();
    }
}

#[cfg(feature = "hub")]
#[test]
#[ignore = "needs an environment with mlflow: KARAT_MLFLOW=PYTHON cargo test --test track -- --ignored"]
fn mlflows_own_client_reads_the_runs_of_its_server() {
    let python = PathBuf::from(std::env::var_os("KARAT_MLFLOW").expect("KARAT_MLFLOW names a Python that has mlflow"));
    let place = Place::new();
    let server = MlflowServer::start(&python, &place.root);
    let karat = |args: &[&str]| {
        let mut command = place.karat(args);
        command.env("MLFLOW_TRACKING_URI", &server.uri).env_remove("MLFLOW_EXPERIMENT_NAME");
        good(command)
    };
    let read = || -> Value {
        let script = repository().join("backends/tools/python/check_mlflow.py");
        let output = Command::new(&python).arg(script).args([&server.uri, "mine"]).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let run = ["run", "my-experiment.toml", "--set", "track.to=[\"tensorboard\", \"mlflow\"]"];
    karat(&[&run[..], &STEPS].concat());
    let live = read();
    println!("mlflow {}", live["version"]);
    let models: Vec<&String> = live["runs"].as_object().unwrap().keys().collect();
    assert_eq!(models, ["mine-base", "mine-full", "mine-lora"]);
    for (model, events) in events(&place.root.join("runs/mine/track")) {
        let (run, shown) = (&live["runs"][format!("mine-{model}")], event_file(&events));
        assert_eq!((&run["status"], &run["params"]["suite.train.max_steps"]), (&json!("FINISHED"), &json!("4")));
        let losses: Vec<(i64, f64)> = serde_json::from_value(run["metrics"]["loss"].clone()).unwrap_or_default();
        let rounded: Vec<(i64, f64)> = losses.iter().map(|(step, loss)| (*step, f64::from(*loss as f32))).collect();
        assert_eq!(rounded, values(&shown, "train/loss"), "{model}");
        assert!(run["metrics"]["metrics/rougeL"].is_array() && run["tables"][0]["data"].is_array(), "{run}");
    }
    karat(&["track", "runs/mine", "--to", "mlflow"]);
    assert_eq!(read(), live, "what is there is not there twice");
}
