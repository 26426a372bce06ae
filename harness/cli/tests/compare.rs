//! `karat compare` and `karat eval --predictions` on texts of any origin.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_path_buf()
}

fn karat<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_karat")).args(args).current_dir(repository()).output().unwrap()
}

fn object(args: &[&str]) -> Value {
    let output = karat(&[&["--json"][..], args].concat());
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn refused(args: &[&str], code: i32, words: &[&str]) {
    let output = karat(args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{args:?} does not say {word:?}: {said}");
    }
}

/// Pairs of one reference and a candidate each.
fn pairs(path: &Path, candidate: impl Fn(usize) -> String) -> String {
    let line =
        |i| json!({"id": i, "reference": format!("每日服用{i}次，每次10mg。"), "candidate": candidate(i)}).to_string();
    std::fs::write(path, (0..20).map(|i| line(i) + "\n").collect::<String>()).unwrap();
    path.to_str().unwrap().to_string()
}

#[test]
fn files_of_any_origin_are_compared_two_or_three_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let right = pairs(&folder.path().join("right.jsonl"), |i| format!("每日服用{i}次，每次10mg。"));
    let wrong = pairs(&folder.path().join("wrong.jsonl"), |_| "多喝水。".into());
    let half = pairs(&folder.path().join("half.jsonl"), |i| {
        if i % 2 == 0 { format!("每日服用{i}次，每次10mg。") } else { "不知道".into() }
    });
    let found = object(&["compare", &wrong, &right, &half]);
    let comparisons = found["comparisons"].as_array().unwrap();
    let names: Vec<(&str, &str)> =
        comparisons.iter().map(|c| (c["baseline"].as_str().unwrap(), c["candidate"].as_str().unwrap())).collect();
    assert_eq!(names, [("wrong", "right"), ("wrong", "half"), ("right", "half")]);
    let exact = &comparisons[0]["metrics"]["exact_match"];
    assert_eq!((exact["mean_baseline"].as_f64(), exact["mean_candidate"].as_f64()), (Some(0.0), Some(1.0)));
    // McNemar's exact test of 20 against 0: 2 * 2^-20.
    assert_eq!((exact["test"].as_str(), exact["p_value"].as_f64()), (Some("mcnemar"), Some(2.0 / f64::from(1 << 20))));
    assert_eq!(comparisons[2]["metrics"]["exact_match"]["losses"], 10);
    // What nobody knows of such files is said.
    assert_eq!(found["not_checked"], json!(["decoding", "prompts", "template"]));
    // The same bytes again, and on one thread.
    let once = karat(&["--json", "compare", &wrong, &right]).stdout;
    let alone = Command::new(env!("CARGO_BIN_EXE_karat"))
        .args(["--json", "compare", &wrong, &right])
        .env("RAYON_NUM_THREADS", "1")
        .output()
        .unwrap();
    assert!(once == alone.stdout);
}

#[test]
fn other_data_is_refused_by_name_unless_allowed_and_then_it_is_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let a = pairs(&folder.path().join("a.jsonl"), |_| "甲".into());
    let b = folder.path().join("b.jsonl");
    let text = std::fs::read_to_string(&a).unwrap();
    std::fs::write(&b, text.replacen("每日服用0次", "每日服用9次", 1)).unwrap();
    let b = b.to_str().unwrap();
    refused(&["compare", &a, b], 2, &["differ in data (", "--allow data"]);
    refused(&["compare", &a, b, "--allow", "date"], 2, &["data", "decoding"]);
    let found = object(&["compare", &a, b, "--allow", "data"]);
    let allowed = &found["comparisons"][0]["allowed"];
    assert_eq!(allowed[0]["what"], "data");
    assert_ne!(allowed[0]["first"], allowed[0]["second"]);
    let said = String::from_utf8(karat(&["compare", &a, b, "--allow", "data"]).stdout).unwrap();
    assert!(said.contains("although they differ in data"), "{said}");
    // A report knows its prompts and decoding, a file of texts does not.
    let report = repository().join("reports/medical-r1/report.json");
    let report = format!("{}:base", report.to_str().unwrap());
    refused(&["compare", &report, &a], 2, &["data", "prompts", "decoding", "items"]);
}

#[test]
fn a_flag_of_a_comparison_of_backends_is_refused_beside_reports() {
    let folder = tempfile::tempdir().unwrap();
    let a = pairs(&folder.path().join("a.jsonl"), |_| "甲".into());
    for [flag, value] in [
        ["--model", "x"],
        ["--tolerance", "5"],
        ["--threads", "3"],
        ["--max-new-tokens", "4"],
        ["--temperature", "1"],
        ["--dtype", "bf16"],
        ["--device", "cpu"],
        ["--option", "a=b"],
        ["--input", "x"],
    ] {
        refused(&["compare", &a, &a, flag, value], 2, &[flag, "--backends"]);
    }
    refused(&["compare", &a, &a, "--top-k", "4"], 2, &["--temperature"]);
}

#[test]
fn texts_of_a_run_and_of_elsewhere_are_measured_without_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let suite = repository().join("suites/medical-r1/suite.toml");
    let suite = suite.to_str().unwrap();
    let golden = repository().join("suites/medical-r1/golden");
    let out = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let quick = ["--set", "stats.resamples=200"];
    let args = |paths: &[&str], name: &str| -> Vec<String> {
        let mut args: Vec<String> = ["eval", suite, "--out", &out(name)].map(String::from).to_vec();
        args.extend(quick.map(String::from));
        args.extend(paths.iter().flat_map(|p| ["--predictions".to_string(), (*p).to_string()]));
        args
    };
    let run = |args: &[String]| object(&args.iter().map(String::as_str).collect::<Vec<_>>())["report"].clone();
    let whole = run(&args(&[golden.to_str().unwrap()], "whole"));
    let names: Vec<&str> = whole["models"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["base", "lora", "full"]);

    // The same texts as plain lines, as any program could have written them.
    let recorded: Value = serde_json::from_str(&std::fs::read_to_string(golden.join("full.json")).unwrap()).unwrap();
    let lines: String = recorded["predictions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| json!({"id": p["id"], "candidate": p["text"]}).to_string() + "\n")
        .collect();
    let plain = folder.path().join("plain.jsonl");
    std::fs::write(&plain, &lines).unwrap();
    let named = format!("full={}", plain.to_str().unwrap());
    let brought = run(&args(&[&named], "plain"));
    let row = |report: &Value, i: usize, metric: &str| report["items"][i]["models"]["full"]["metrics"][metric].clone();
    for i in 0..whole["items"].as_array().unwrap().len() {
        for metric in ["bleu", "rougeL", "key_points", "exact_match", "contradictions"] {
            assert_eq!(row(&brought, i, metric), row(&whole, i, metric), "{metric} of item {i}");
        }
        assert!(row(&brought, i, "nll").is_null(), "a likelihood that nobody computed");
    }
    let prints = &brought["fingerprints"];
    assert_eq!((&prints["prompts"], &prints["decoding"]), (&Value::Null, &Value::Null));
    assert!(brought["warnings"].to_string().contains("brought along"));

    let fails = |text: String, words: &[&str]| {
        std::fs::write(&plain, text).unwrap();
        let args = args(&[plain.to_str().unwrap()], "fails");
        refused(&args.iter().map(String::as_str).collect::<Vec<_>>(), 6, words);
    };
    fails(lines.replacen("\"candidate\"", "\"candidat\"", 1), &["plain.jsonl:1", "candidate"]);
    fails(lines.replace("\"id\":\"", "\"id\":\"no-"), &["plain.jsonl:1", "no-", "by its question"]);
    fails(format!("{lines}{}", lines.lines().next().unwrap()), &["a second text"]);
    fails(lines.replacen("\"candidate\"", "\"reference\":\"x\",\"candidate\"", 1), &["plain.jsonl:1", "reference"]);
}

#[test]
fn a_store_of_a_run_is_measured_and_compared_by_the_suite_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let shipped = repository().join("suites/medical-r1");
    let heldout = std::fs::read_to_string(shipped.join("heldout.jsonl")).unwrap();
    std::fs::write(
        folder.path().join("h.jsonl"),
        heldout.lines().take(6).map(|l| format!("{l}\n")).collect::<String>(),
    )
    .unwrap();
    let suite = format!(
        "name = \"store\"\n[data]\ntrain = {:?}\nheldout = \"h.jsonl\"\nmax_length = 256\n[model]\nbase = {:?}\n\
         [stats]\nresamples = 200\n[eval]\nmax_new_tokens = 12\nmetrics = [\"nll\", \"rougeL\", \"exact_match\"]\n",
        shipped.join("train.jsonl").to_str().unwrap(),
        shipped.join("base").to_str().unwrap(),
    );
    let path = folder.path().join("suite.toml");
    std::fs::write(&path, suite).unwrap();
    let path = path.to_str().unwrap();
    let mut stores = Vec::new();
    for (name, tokens) in [("a", "eval.max_new_tokens=12"), ("b", "eval.max_new_tokens=16")] {
        let out = folder.path().join(name);
        let run = object(&["run", path, "--out", out.to_str().unwrap(), "--set", tokens]);
        let eval = std::fs::read_dir(out.join("eval")).unwrap().next().unwrap().unwrap().path();
        let decode = std::fs::read_dir(&eval).unwrap().map(|e| e.unwrap().path()).find(|p| p.is_dir()).unwrap();
        let store = decode.join("predictions.jsonl");
        assert!(store.is_file() && eval.join("scores.jsonl").is_file());
        // Measured from the store alone: the same values, likelihoods included, and the same
        // fingerprints.
        let again = folder.path().join(format!("{name}-again"));
        let store = store.to_str().unwrap().to_string();
        let named = format!("base={store}");
        let measured = ["eval", path, "--set", tokens, "--predictions", &named, "--out", again.to_str().unwrap()];
        let measured = object(&measured);
        assert_eq!(measured["report"]["items"], run["report"]["items"]);
        assert_eq!(measured["report"]["fingerprints"], run["report"]["fingerprints"]);
        stores.push(store);
    }
    let same = object(&["compare", &stores[0], &stores[0]]);
    assert_eq!(same["comparisons"][0]["metrics"]["nll"]["difference"], 0.0);
    refused(&["compare", &stores[0], &stores[1]], 2, &["differ in decoding", "--allow decoding"]);
    let found = object(&["compare", &stores[0], &stores[1], "--allow", "decoding"]);
    assert_eq!(found["comparisons"][0]["allowed"][0]["what"], "decoding");
}
