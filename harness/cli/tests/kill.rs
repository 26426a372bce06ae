//! Killed without warning at any point of a run, the same command ends with the report of a run
//! that never stopped.

#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const ITEMS: usize = 40;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_path_buf()
}

/// A suite that trains nothing and evaluates the shipped base model on a few held-out items.
fn suite(folder: &Path) -> PathBuf {
    let shipped = repository().join("suites/medical-r1");
    let heldout = std::fs::read_to_string(shipped.join("heldout.jsonl")).unwrap();
    let cut: Vec<&str> = heldout.lines().take(ITEMS).collect();
    std::fs::write(folder.join("heldout.jsonl"), cut.join("\n") + "\n").unwrap();
    let text = format!(
        "name = \"killed\"\n[data]\ntrain = {:?}\nheldout = \"heldout.jsonl\"\nmax_length = 256\n[model]\nbase = {:?}\n\
         [stats]\nresamples = 200\n[eval]\nmax_new_tokens = 24\nbatch_size = 4\nmetrics = [\"nll\", \"bleu\", \"rougeL\"]\n",
        shipped.join("train.jsonl").to_str().unwrap(),
        shipped.join("base").to_str().unwrap(),
    );
    let path = folder.join("suite.toml");
    std::fs::write(&path, text).unwrap();
    path
}

fn command(suite: &Path, out: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_karat"));
    command.arg("run").arg(suite).arg("--out").arg(out).current_dir(repository());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Files of that name below `folder`.
fn find(folder: &Path, name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else { return found };
    for path in entries.map(|e| e.unwrap().path()) {
        if path.is_dir() {
            found.extend(find(&path, name));
        } else if path.file_name().is_some_and(|n| n == name) {
            found.push(path);
        }
    }
    found
}

/// Bytes stored so far.
fn stored(out: &Path) -> u64 {
    let size = |p: PathBuf| std::fs::metadata(p).map_or(0, |m| m.len());
    ["scores.jsonl", "predictions.jsonl"].iter().flat_map(|name| find(&out.join("eval"), name)).map(size).sum()
}

/// Whole rows of a store by id; panics where an item is there twice.
fn rows(out: &Path, name: &str) -> BTreeMap<String, Value> {
    let files = find(&out.join("eval"), name);
    assert_eq!(files.len(), 1, "{files:?}");
    let text = std::fs::read_to_string(&files[0]).unwrap();
    let mut rows = BTreeMap::new();
    for line in text.split_inclusive('\n').skip(1).filter(|l| l.ends_with('\n')) {
        let row: Value = serde_json::from_str(line).unwrap();
        let id = row["id"].as_str().unwrap().to_string();
        assert!(rows.insert(id.clone(), row).is_none(), "{id} is stored twice");
    }
    rows
}

/// The report without what is volatile.
fn report(out: &Path) -> String {
    let text = std::fs::read_to_string(out.join("report/report.json")).unwrap();
    let mut report: Value = serde_json::from_str(&text).unwrap();
    report.as_object_mut().unwrap().remove("environment").unwrap();
    report.to_string()
}

#[test]
fn a_run_killed_at_random_points_loses_no_item_does_none_twice_and_ends_with_the_same_report() {
    let folder = tempfile::tempdir().unwrap();
    let suite = suite(folder.path());
    let whole = folder.path().join("whole");
    let began = Instant::now();
    assert!(command(&suite, &whole).status().unwrap().success());
    let took = began.elapsed();
    let expected = report(&whole);
    let all = stored(&whole);

    let mut random = 20_261_121u64;
    let mut draw = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let mut in_the_middle = 0;
    for seed in 0..4 {
        let out = folder.path().join(format!("killed-{seed}"));
        let mut finished = false;
        for kill in 0..4 {
            let mut child = command(&suite, &out).spawn().unwrap();
            // Half of the kills come after some bytes of the stores, wherever in a line that is;
            // the others at any time.
            let bytes = if kill % 2 == 0 { stored(&out) + draw(all - stored(&out).min(all - 1)) } else { u64::MAX };
            let time = if kill % 2 == 0 { took * 20 } else { took * u32::try_from(draw(120)).unwrap() / 100 };
            let began = Instant::now();
            while stored(&out) <= bytes && began.elapsed() < time && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
            // SIGKILL.
            child.kill().unwrap();
            finished |= child.wait().unwrap().success();
            in_the_middle += usize::from((1..all).contains(&stored(&out)));
        }
        assert!(command(&suite, &out).status().unwrap().success(), "seed {seed}");
        for name in ["scores.jsonl", "predictions.jsonl"] {
            let (ours, theirs) = (rows(&out, name), rows(&whole, name));
            assert_eq!(ours.len(), ITEMS, "seed {seed}: {name}");
            assert!(ours == theirs, "seed {seed}: other rows in {name}");
        }
        assert!(report(&out) == expected, "seed {seed}: another report (finished before: {finished})");
    }
    assert!(in_the_middle > 4, "only {in_the_middle} kills met a run at work");
}
