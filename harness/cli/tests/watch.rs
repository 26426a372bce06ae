//! A training is followed: checkpoints as trainers write them, slowly, under temporary names, over
//! each other and away again; and a watch that is killed at any time.

#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod place;
mod trainer;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use place::{Place, good, refused, said};
use serde_json::Value;
use trainer::{Layout, Trainer, Weights};

/// A folder with a suite of held-out items alone.
fn place() -> Place {
    let place = Place::new();
    let heldout = std::fs::read_to_string(place::repository().join("suites/medical-r1/heldout.jsonl")).unwrap();
    place.put("items.jsonl", &heldout.lines().take(6).map(|line| format!("{line}\n")).collect::<String>());
    place.put(
        "suite.toml",
        "name = \"mine\"\n[data]\nheldout = \"items.jsonl\"\nmax_length = 128\n[model]\nbase = \"base\"\n\
         [stats]\nresamples = 100\n[eval]\nmax_new_tokens = 2\nmetrics = [\"nll\", \"rougeL\"]\n",
    );
    place
}

/// `karat watch out --suite suite.toml` with `more`, in a hurry.
fn watching(place: &Place, more: &[&str]) -> Command {
    let quiet = if more.contains(&"--quiet-time") { &[][..] } else { &["--quiet-time", "0.05"] };
    let args = ["watch", "out", "--suite", "./suite.toml", "--interval", "0.02"];
    place.karat(&[&args[..], quiet, more].concat())
}

/// The lines of the history, each of which must be whole.
fn history(place: &Place) -> Vec<Value> {
    let text = std::fs::read_to_string(place.root.join("runs/mine-out/history.jsonl")).unwrap_or_default();
    assert!(text.is_empty() || text.ends_with('\n'), "a torn line: {text}");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Name, status and verdict of each line.
fn lines(place: &Place) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_string();
    let line = |entry: Value| ["name", "status", "verdict"].map(|key| text(&entry[key])).join(" ");
    history(place).into_iter().map(line).collect()
}

fn report(place: &Place) -> Value {
    serde_json::from_str(&std::fs::read_to_string(place.root.join("runs/mine-out/watch.json")).unwrap()).unwrap()
}

/// Waits until `done`, or fails.
fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(240), "{what} took too long");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn modified(file: &Path) -> std::time::SystemTime {
    std::fs::metadata(file).unwrap().modified().unwrap()
}

#[test]
fn whole_checkpoints_are_evaluated_once_in_the_order_of_their_steps() {
    let place = place();
    let trainer = Trainer::new(&place.root);
    trainer.save("checkpoint-200", Layout::Sharded, Weights::Like(1));
    trainer.save("checkpoint-1000", Layout::OneFile, Weights::Like(2));
    trainer.save("tmp-checkpoint-1100", Layout::OneFile, Weights::Like(3));
    trainer.save("runs", Layout::OneFile, Weights::Like(4));
    std::fs::create_dir_all(place.root.join("out/checkpoint-1200")).unwrap();
    // The final model is the last checkpoint once more.
    trainer.save("", Layout::OneFile, Weights::Like(2));
    let text = good(watching(&place, &["--once"]));
    let all = ["checkpoint-200 measured pass", "checkpoint-1000 measured pass", "final same pass"];
    assert_eq!(lines(&place), all, "{text}");
    assert!(
        text.starts_with("checkpoint-200  pass  nll ") && text.contains("| 1,000 | checkpoint-1000 | pass |"),
        "{text}"
    );
    let entry = &history(&place)[0];
    assert_eq!((&entry["step"], entry["gate"]["checks"].as_array().map(Vec::len)), (&200.into(), Some(2)));
    assert!(entry["metrics"]["nll"]["ci_low"].as_f64() < entry["metrics"]["nll"]["value"].as_f64());
    assert!(entry["seconds"].as_f64().unwrap() > 0.0 && entry["digest"].as_str().map(str::len) == Some(64));
    let own = place.root.join("runs/mine-out").join(entry["report"].as_str().unwrap()).join("report.html");
    assert!(own.is_file(), "{}", own.display());

    // A second call finds nothing to do, and opens no model.
    let stored = place.root.join("runs/mine-out/baseline/report/report.json");
    let before = modified(&stored);
    let json: Value = serde_json::from_str(&good(place.karat(&[
        "--json",
        "watch",
        "out",
        "--suite",
        "./suite.toml",
        "--once",
        "--quiet-time",
        "0",
    ])))
    .unwrap();
    assert_eq!((lines(&place).len(), modified(&stored)), (3, before));
    assert_eq!(json["timeline"]["checkpoints"].as_array().map(Vec::len), Some(3), "{json}");
    assert_eq!((&json["regressed"], &json["timeline"]["baseline"]), (&Value::Null, &"base".into()));

    // Overwritten under its name, with the same size.
    trainer.save("checkpoint-1000", Layout::OneFile, Weights::Like(5));
    let output = watching(&place, &["--once"]).output().unwrap();
    assert!(output.status.success() && said(&output).contains("overwritten, and evaluated again"), "{}", said(&output));
    assert_eq!(lines(&place)[3..], ["checkpoint-1000 measured pass"]);
    assert_eq!(history(&place)[3]["replaces"], history(&place)[1]["digest"]);
    // The same bytes written anew are the same checkpoint.
    trainer.save("checkpoint-200", Layout::Sharded, Weights::Like(1));
    good(watching(&place, &["--once"]));
    assert_eq!(lines(&place)[4..], ["checkpoint-200 same pass"]);
    let page = std::fs::read_to_string(place.root.join("runs/mine-out/watch.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("3 checkpoints against base: 3 pass"), "{page}");
}

#[test]
fn a_slow_trainer_is_followed_and_no_checkpoint_is_read_before_it_is_whole() {
    let place = place();
    // Longer than the trainer ever rests, also on a machine that is at its limit.
    let mut command = watching(&place, &["--quiet-time", "1.2"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The folder is not there yet when the watch begins.
    wait("the baseline", || place.root.join("runs/mine-out/watch.json").is_file());
    let trainer = Trainer::slow(&place.root, Duration::from_millis(30));
    for (i, layout) in [Layout::Sharded, Layout::IndexFirst, Layout::OneFile].into_iter().enumerate() {
        trainer.save(&format!("checkpoint-{}", 100 * (i + 1)), layout, Weights::Like(i as u8 + 1));
        wait("a checkpoint", || history(&place).len() == i + 1);
        // save_total_limit = 1
        if i > 0 {
            std::fs::remove_dir_all(place.root.join(format!("out/checkpoint-{}", 100 * i))).unwrap();
        }
    }
    // SIGINT, as Ctrl-C sends it.
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    let all = ["checkpoint-100 measured pass", "checkpoint-200 measured pass", "checkpoint-300 measured pass"];
    assert_eq!(lines(&place), all, "{}", said(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 3, "a line a checkpoint: {}", said(&output));
    assert!(said(&output).contains("there is no such folder yet"), "{}", said(&output));
}

#[test]
fn a_regression_ends_the_watch_if_asked_and_is_still_one_when_it_is_called_again() {
    let place = place();
    let trainer = Trainer::new(&place.root);
    trainer.save("checkpoint-1", Layout::OneFile, Weights::Like(1));
    trainer.save("checkpoint-2", Layout::OneFile, Weights::Broken);
    trainer.save("checkpoint-3", Layout::OneFile, Weights::Like(3));
    let text = refused(watching(&place, &["--fail-fast"]), 3, "checkpoint-2 regresses: the watch ends");
    assert!(text.contains("(worse in: Reference NLL"), "{text}");
    let two = ["checkpoint-1 measured pass", "checkpoint-2 measured regress"];
    assert_eq!(lines(&place), two, "{text}");
    refused(watching(&place, &["--once", "--fail-fast"]), 3, "checkpoint-2 regresses");
    assert_eq!(lines(&place), two);
    good(watching(&place, &["--once"]));
    assert_eq!(lines(&place)[2..], ["checkpoint-3 measured pass"]);
    // One that was removed is history.
    std::fs::remove_dir_all(place.root.join("out/checkpoint-2")).unwrap();
    good(watching(&place, &["--once", "--fail-fast"]));
    let page = std::fs::read_to_string(place.root.join("runs/mine-out/watch.md")).unwrap();
    assert!(page.contains("1 regress.") && page.contains("### checkpoint-2 vs base"), "{page}");
}

#[test]
fn a_broken_checkpoint_is_a_line_of_its_own_and_is_tried_again_when_its_bytes_change() {
    let place = place();
    let trainer = Trainer::new(&place.root);
    trainer.save("checkpoint-1", Layout::OneFile, Weights::Garbage);
    trainer.save("checkpoint-2", Layout::OneFile, Weights::Like(2));
    trainer.save("checkpoint-3", Layout::CutShort, Weights::Like(3));
    let text = refused(watching(&place, &["--once"]), 6, "checkpoint-1  not measured  (");
    assert!(text.contains("(out/checkpoint-1/model.safetensors: "), "{text}");
    assert!(
        text.contains("left out: checkpoint-3 is not whole: model-00002-of-00002.safetensors is truncated"),
        "{text}"
    );
    let lines_of_both = ["checkpoint-1 failed -", "checkpoint-2 measured pass"];
    assert_eq!(lines(&place), lines_of_both);
    // Not tried forever, and still what is wrong here.
    refused(watching(&place, &["--once"]), 6, "not measured");
    assert_eq!(lines(&place), lines_of_both);
    trainer.save("checkpoint-1", Layout::OneFile, Weights::Like(1));
    // One that was not measured is no success.
    refused(watching(&place, &["--once"]), 6, "left out: checkpoint-3 is not whole");
    trainer.save("checkpoint-3", Layout::Sharded, Weights::Like(3));
    good(watching(&place, &["--once"]));
    assert_eq!(lines(&place)[2..], ["checkpoint-1 measured pass", "checkpoint-3 measured pass"]);
    // A configuration that is none is the data's fault, and ends a watch that is to fail fast.
    trainer.save("checkpoint-4", Layout::OneFile, Weights::Like(4));
    place.put("out/checkpoint-4/config.json", "{\"model_type\": ");
    refused(watching(&place, &["--once"]), 6, "config.json");
    refused(watching(&place, &["--fail-fast"]), 6, "config.json");
}

#[test]
fn adapters_are_measured_on_the_base_they_name_and_those_of_another_are_refused() {
    let place = place();
    let train = ["train", "--model", "base", "--data", "ids.jsonl", "--ids", "--out", "out"];
    let few = ["--set", "max_steps=2", "--set", "save_every=1", "--set", "eval_every=0", "--set", "r=2"];
    good(place.karat(&[&train[..], &few].concat()));
    let config = place.root.join("out/checkpoint-2/adapter_config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let mut other: Value = serde_json::from_str(&text).unwrap();
    other["base_model_name_or_path"] = "Qwen/Qwen3-0.6B".into();
    std::fs::write(&config, other.to_string()).unwrap();
    let said = refused(watching(&place, &["--once"]), 2, "checkpoint-2  not measured  (");
    assert!(
        said.contains("this adapter is of another base: of \"Qwen/Qwen3-0.6B\"") && said.contains("/base"),
        "{said}"
    );
    assert!(said.contains("--adapter-base DIR"), "{said}");
    assert_eq!(lines(&place).len(), 2, "{said}");
    good(watching(&place, &["--once", "--adapter-base", "base"]));
    let all = lines(&place);
    assert!(all[0].starts_with("checkpoint-1 measured") && all[1] == "checkpoint-2 failed -", "{all:?}");
    assert!(all[2].starts_with("checkpoint-2 measured"), "{all:?}");
}

#[test]
fn a_baseline_may_be_a_saved_one_or_a_model_of_a_run() {
    let place = place();
    good(place.karat(&["eval", "./suite.toml", "--name", "before", "--out", "runs/before"]));
    good(place.karat(&["check", "runs/before", "--save-baseline", "main"]));
    let trainer = Trainer::new(&place.root);
    trainer.save("checkpoint-5", Layout::OneFile, Weights::Like(1));
    for (out, spec) in [("a", "main"), ("b", "runs/before"), ("c", "main:before")] {
        let text = good(watching(&place, &["--once", "--baseline", spec, "--out", out]));
        assert!(text.contains("| before | baseline |"), "{spec}: {text}");
        assert!(!place.root.join(out).join("baseline").exists(), "the base was not evaluated again");
    }
    refused(watching(&place, &["--once", "--baseline", "main:other"]), 2, "has no model \"other\"");
    refused(watching(&place, &["--once", "--baseline", "nothing"]), 6, "--save-baseline nothing");
    // Items of other data are no comparison, which is said before anything is asked.
    let items = std::fs::read_to_string(place.root.join("items.jsonl")).unwrap();
    place.put("items.jsonl", &items.lines().take(5).map(|line| format!("{line}\n")).collect::<String>());
    let text = refused(watching(&place, &["--once", "--baseline", "main", "--out", "d"]), 2, "they differ in data");
    assert!(!text.contains("checkpoint-5"), "{text}");
    // Another baseline is another history.
    refused(watching(&place, &["--once", "--out", "a"]), 2, "another baseline");
}

#[test]
fn what_is_no_training_is_one_clear_error() {
    let place = place();
    refused(watching(&place, &["--once"]), 2, "no such file or folder");
    let trainer = Trainer::new(&place.root);
    refused(watching(&place, &["--once"]), 6, "there is no whole checkpoint in this folder");
    trainer.save("checkpoint-1", Layout::CutShort, Weights::Like(1));
    refused(watching(&place, &["--once"]), 6, "checkpoint-1 is not whole");
    refused(place.karat(&["watch", "items.jsonl", "--suite", "./suite.toml"]), 2, "this is a file");
    refused(watching(&place, &["--once", "--out", "out"]), 2, "does not write into the folder that it watches");
    refused(watching(&place, &["--once", "--out", "base"]), 2, "no folder of a watch");
    refused(watching(&place, &["--quiet-time", "-1"]), 2, "at least 0");
    // Nothing was measured: the settings may still change.
    trainer.save("checkpoint-2", Layout::OneFile, Weights::Like(1));
    refused(watching(&place, &["--once", "--margin", "other=1"]), 2, "has no metric `other`");
    refused(watching(&place, &["--once"]), 6, "left out: checkpoint-1 is not whole");
    let twice = watching(&place, &["--once", "--set", "eval.max_new_tokens=1"]);
    refused(twice, 2, "is of another suite");
    let text = std::fs::read_to_string(place.root.join("runs/mine-out/history.jsonl")).unwrap();
    place.put("runs/mine-out/history.jsonl", &text.replace("\"step\":2", "\"step\":3"));
    refused(watching(&place, &["--once"]), 6, "history.jsonl:1: broken line of the history: it was changed");
}

#[test]
fn the_pages_speak_chinese() {
    let place = place();
    let trainer = Trainer::new(&place.root);
    trainer.save("checkpoint-1", Layout::OneFile, Weights::Like(1));
    let text = good(watching(&place, &["--once", "--language", "zh"]));
    assert!(text.contains("checkpoint-1  通过") && text.contains("| 步 | 检查点 |"), "{text}");
    let page = std::fs::read_to_string(place.root.join("runs/mine-out/watch.html")).unwrap();
    assert!(page.contains("相对 base 评测了 1 个检查点") && page.contains("lang=\"zh-CN\""), "{page}");
}

#[test]
fn a_watch_killed_at_any_time_leaves_no_torn_history_and_evaluates_nothing_twice() {
    let place = place();
    let trainer = Trainer::new(&place.root);
    let began = Instant::now();
    for step in 1..=4 {
        trainer.save(&format!("checkpoint-{step}"), Layout::OneFile, Weights::Like(step));
    }
    good(watching(&place, &["--once", "--out", "whole"]));
    let took = began.elapsed();
    let mut random = 20_261_130u64;
    let (mut in_the_middle, mut finished) = (0, false);
    for kill in 0..7 {
        let mut command = watching(&place, &["--once"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Half of the kills come at once after a line, the others at any time.
        let (before, time) = (history_bytes(&place), took * ((random >> 33) % 60) as u32 / 100);
        let began = Instant::now();
        while child.try_wait().unwrap().is_none() {
            let due = if kill % 2 == 0 { history_bytes(&place) > before } else { began.elapsed() > time };
            if due {
                break;
            }
            std::thread::sleep(Duration::from_micros(300));
        }
        // SIGKILL.
        child.kill().unwrap();
        finished |= child.wait().unwrap().success();
        in_the_middle += usize::from((1..4).contains(&whole_lines(&place)));
    }
    good(watching(&place, &["--once"]));
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    for line in lines(&place) {
        *names.entry(line).or_default() += 1;
    }
    assert!(names.len() == 4 && names.values().all(|n| *n == 1), "{names:?} (finished before: {finished})");
    assert!(in_the_middle > 1, "only {in_the_middle} kills met a watch at work");
    // The same numbers as of a watch that never stopped.
    let values = |folder: &str| {
        let text = std::fs::read_to_string(place.root.join(folder).join("history.jsonl")).unwrap();
        let of = |line: &str| serde_json::from_str::<Value>(line).unwrap()["gate"].clone();
        text.lines().map(of).collect::<Vec<_>>()
    };
    assert_eq!(values("runs/mine-out"), values("whole"));
    assert_eq!(report(&place)["checkpoints"].as_array().map(Vec::len), Some(4));
}

fn history_bytes(place: &Place) -> u64 {
    std::fs::metadata(place.root.join("runs/mine-out/history.jsonl")).map_or(0, |file| file.len())
}

fn whole_lines(place: &Place) -> usize {
    let text = std::fs::read_to_string(place.root.join("runs/mine-out/history.jsonl")).unwrap_or_default();
    text.matches('\n').count()
}
