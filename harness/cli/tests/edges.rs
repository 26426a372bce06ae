//! The edges of the command line: rows as they come, one error as one object, a backend that
//! repeats itself, settings taken back, a model brought in.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use karat::suite::Suite;
use serde_json::{Value, json};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_path_buf()
}

fn karat() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_karat"));
    command.current_dir(repository()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn base() -> String {
    repository().join("suites/medical-r1/base").to_str().unwrap().to_string()
}

/// A file of so many prompts of different lengths.
fn prompts(folder: &Path, count: u32) -> String {
    let rows = (0..count).map(|i| json!({"id": i, "ids": (0..1 + i * 7 % 23).collect::<Vec<_>>()}).to_string() + "\n");
    let path = folder.join("rows.jsonl");
    std::fs::write(&path, rows.collect::<String>()).unwrap();
    path.to_str().unwrap().to_string()
}

#[test]
fn rows_appear_while_others_are_still_made_and_an_interruption_leaves_whole_lines() {
    let folder = tempfile::tempdir().unwrap();
    let input = prompts(folder.path(), 2000);
    let mut child = karat()
        .args(["generate", "--model", &base(), "--input", &input, "--ignore-eos"])
        .args(["--max-new-tokens", "40", "--batch-size", "4"])
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    out.read_line(&mut first).unwrap();
    assert!(child.try_wait().unwrap().is_none(), "the first row came with the last");
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let text = first + &rest;
    assert!(text.ends_with('\n'));
    let mut ids: Vec<u64> =
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].as_u64().unwrap()).collect();
    let count = ids.len();
    assert!(count < 2000, "{count} rows");
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count, "a row stands there twice");
}

#[test]
fn a_reader_that_has_seen_enough_ends_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let input = prompts(folder.path(), 1000);
    for command in ["score", "generate"] {
        let mut child = karat().args([command, "--model", &base(), "--input", &input]).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut String::new()).unwrap();
        drop(out);
        assert_eq!(child.wait().unwrap().code(), Some(0), "{command}");
    }
}

#[test]
fn rows_are_the_same_whether_they_stream_or_come_as_one_object() {
    let folder = tempfile::tempdir().unwrap();
    let input = prompts(folder.path(), 70);
    for command in ["score", "generate"] {
        let run = |json: bool| {
            let mut karat = karat();
            if json {
                karat.arg("--json");
            }
            let output = karat.args([command, "--model", &base(), "--input", &input]).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        let mut streamed: Vec<Value> = run(false).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        streamed.sort_by_key(|row| row["id"].as_u64());
        let object: Value = serde_json::from_str(&run(true)).unwrap();
        assert_eq!(Value::from(streamed.clone()), object["rows"], "{command}");
        assert!(streamed.iter().enumerate().all(|(i, row)| row["id"] == i), "{command}");
    }
}

#[test]
fn a_command_line_that_makes_no_sense_is_one_object_with_json() {
    for args in [&["--json", "frobnicate"][..], &["score", "--json", "--modle", "x"], &["check", "--json", "--margin"]]
    {
        let output = karat().args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let object: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(object["error"]["exit_code"], 2);
        assert!(!object["error"]["what"].as_str().unwrap().is_empty());
        assert!(!output.stderr.is_empty());
    }
    let plain = karat().args(["frobnicate"]).output().unwrap();
    assert_eq!((plain.status.code(), plain.stdout.len()), (Some(2), 0));
    let help = karat().args(["--json", "--help"]).output().unwrap();
    assert_eq!(help.status.code(), Some(0));
    assert!(String::from_utf8(help.stdout).unwrap().contains("Exit codes"));
}

#[test]
fn the_trained_backend_repeats_itself_and_the_certificate_says_so() {
    let output = karat().args(["--json", "doctor", "--determinism", "--model", &base()]).output().unwrap();
    let certificate: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{certificate}");
    assert_eq!(certificate["deterministic"], true);
    assert_eq!(certificate["flip_rate"], 0.0);
    let passes: Vec<&str> =
        certificate["comparisons"].as_array().unwrap().iter().map(|c| c["pass"].as_str().unwrap()).collect();
    assert_eq!(passes, ["again", "batch 1", "1 thread"]);
    assert!(certificate["tokens"].as_u64().unwrap() > 300, "{certificate}");
    for pass in [0, 2] {
        assert_eq!(certificate["comparisons"][pass]["differing_logprobs"], 0);
    }
}

#[test]
fn the_doctor_names_the_instructions_of_products_their_check_and_with_speed_what_they_reach() {
    let of_native = |arguments: &[&str], kernels: &str| {
        let output = karat().env("KARAT_MATMUL", kernels).args(["--json", "doctor"]).args(arguments).output().unwrap();
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        told["backends"].as_array().unwrap().iter().find(|b| b["name"] == "native").unwrap().clone()
    };
    let plain = of_native(&[], "");
    let kernels = plain["facts"]["cpu kernels"].as_str().unwrap();
    let sets = ["portable", "avx512", "avx512_bf16", "amx_bf16"];
    assert!(sets.iter().any(|set| kernels == format!("{set}, self-check passed")), "{kernels}");
    assert_eq!(plain["speed"], json!({}));
    let asked = of_native(&[], "portable");
    assert_eq!(asked["facts"]["cpu kernels"], "portable (by KARAT_MATMUL), self-check passed");
    let wrong = of_native(&[], "none");
    assert!(wrong["facts"]["cpu kernels"].as_str().unwrap().starts_with("KARAT_MATMUL=none names no instructions"));
    let fast = of_native(&["--speed"], "");
    let speed = fast["speed"].as_object().unwrap();
    for precision in ["bf16", "f32"] {
        assert!(speed[&format!("{precision}, registers")].as_str().unwrap().contains("GFLOP/s on "), "{speed:?}");
        let products = speed.iter().filter(|(name, said)| {
            let modes = ["plain ", "add ", "tail ", "bf16 out "];
            name.starts_with(precision) && modes.iter().all(|mode| said.as_str().unwrap().contains(mode))
        });
        assert_eq!(products.count(), 4, "{speed:?}");
    }
}

#[test]
fn a_gguf_file_becomes_a_model_that_scores() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("tiny");
    let gguf = repository().join("harness/tests/import/tiny.gguf");
    let import = || karat().arg("import").arg("--gguf").arg(&gguf).arg("--out").arg(&model).output().unwrap();
    let output = import();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("llama tiny") && said.contains("519 tokens") && said.contains("Q4_1"), "{said}");
    let mut child =
        karat().args(["score", "--input", "-", "--model"]).arg(&model).stdin(Stdio::piped()).spawn().unwrap();
    let row = json!({"messages": [{"role": "user", "content": "It's 12 mg"}]}).to_string();
    child.stdin.take().unwrap().write_all(row.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let row: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mean = row["sum"].as_f64().unwrap() / row["tokens"].as_f64().unwrap();
    assert!((-9.0..-3.0).contains(&mean), "a random model is about as good as chance: {mean}");
    // Twice is one time too many.
    let again = import();
    assert_eq!(again.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&again.stderr).contains("not empty"));
}

#[test]
fn false_leaves_a_run_of_a_suite_out_and_true_takes_it_in() {
    let suite = |overrides: &[&str]| {
        let overrides: Vec<String> = overrides.iter().map(|o| o.to_string()).collect();
        Suite::load(repository().join("suites/medical-r1").to_str().unwrap(), &overrides)
    };
    let both = suite(&[]).unwrap();
    assert_eq!(both.runs().len(), 2);
    let lora = suite(&["train.full=false", "train.epochs=3"]).unwrap();
    assert!(lora.train.full.is_none());
    assert_eq!(lora.runs().iter().map(|(_, h)| h.epochs).collect::<Vec<_>>(), [3.0]);
    let back = suite(&["train.full=false", "train.full=true"]).unwrap();
    assert!(back.train.full.is_some());
    assert!(suite(&["train.full=no"]).is_err());
}

#[test]
fn what_is_shown_of_data_on_standard_output_begins_no_command_and_moves_no_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let hostile = "\u{1b}[31m\n::error::x ##[error]y \u{202e}z";
    let put = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
    let row = |i: u32| {
        json!({"id": format!("i{i}{hostile}"), "question": format!("q{i}{hostile}"), "think": format!("t{hostile}"),
            "answer": format!("a{i}{hostile}")})
        .to_string()
            + "\n"
    };
    put("items.jsonl", (0..9).map(row).collect());
    let text = |i: u32| json!({"id": format!("i{i}{hostile}"), "candidate": hostile}).to_string() + "\n";
    put("texts.jsonl", (0..9).map(text).collect());
    put(
        "suite.toml",
        format!(
            "name = \"h\"\n[data]\ntrain = \"items.jsonl\"\nheldout = \"items.jsonl\"\n[model]\nbase = {:?}\n",
            base()
        ),
    );
    for args in [&["data", ".", "--show", "9"][..], &["eval", ".", "--predictions", "m=texts.jsonl", "--out", "h"]] {
        let output = karat().args(args).current_dir(folder.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for line in String::from_utf8(output.stdout).unwrap().split('\n') {
            assert!(!line.trim_start().starts_with("::") && !line.contains("##["), "{args:?}: {line}");
            let unseen = |c: char| (c.is_control() && c != '\t') || matches!(c, '\u{202a}'..='\u{202e}');
            assert!(!line.contains(unseen), "{args:?}: {line:?}");
        }
    }
}
