//! `karat report` in every format, as its users have it.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_path_buf()
}

fn karat(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_karat")).args(args).current_dir(repository()).output().unwrap()
}

fn ok(args: &[&str]) -> String {
    let output = karat(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_format_of_the_shipped_report_begins_as_it_should() {
    let formats = [
        ("md", "# "),
        ("html", "<!doctype html>"),
        ("json", "{"),
        ("csv", "id,model,"),
        ("csv-metrics", "metric,unit,better,model,"),
        ("latex", "% \\usepackage{booktabs}"),
        ("junit", "<?xml version=\"1.0\""),
        ("github-benchmark", "["),
    ];
    for (format, start) in formats {
        let text = ok(&["report", "reports/medical-r1", "--format", format]);
        assert!(text.to_lowercase().starts_with(start), "{format}: {}", &text[..60.min(text.len())]);
    }
    let entries = |better: &str| -> Vec<Value> {
        let args = ["report", "reports/medical-r1", "--format", "github-benchmark", "--better", better];
        serde_json::from_str(&ok(&args)).unwrap()
    };
    assert!(entries("lower").iter().any(|e| e["name"] == "nll / full"));
    assert!(entries("higher").iter().any(|e| e["name"] == "bleu / lora"));
}

#[test]
fn a_report_is_written_in_the_language_that_is_asked_for() {
    let page = ok(&["report", "reports/medical-r1", "--language", "zh"]);
    assert!(page.contains("## 评测结果") && page.contains("nat/词元") && !page.contains("## Results"));
    let page = ok(&["report", "reports/medical-r1", "--language", "en"]);
    assert!(page.contains("## Results"));
}

#[test]
fn the_published_perplexity_is_that_of_the_texts_alone() {
    let folder = tempfile::tempdir().unwrap();
    let texts = ["二甲双胍用于2型糖尿病。", "阿司匹林抑制环氧合酶。"];
    let numbers = json!({
        "perplexity": 1.0, "bleu": 0.5, "rouge_1_f": 0.0, "rouge_1_p": 0.0, "rouge_1_r": 0.0, "rouge_2_f": 0.0,
        "rouge_2_p": 0.0, "rouge_2_r": 0.0, "rouge_l_f": 0.0, "rouge_l_p": 0.0, "rouge_l_r": 0.0, "f1": 0.0,
        "precision": 0.0, "recall": 0.0
    });
    let sample = |text: &str| json!({"question": "?", "reference": "甲", "base_model": text, "finetuned_model": text});
    let file = folder.path().join("results.json");
    let results = json!({
        "quantitative": {"base_model": numbers, "finetuned_model": numbers},
        "qualitative": texts.map(sample),
    });
    std::fs::write(&file, results.to_string()).unwrap();
    let rows = folder.path().join("rows.jsonl");
    let lines: Vec<String> = texts.iter().map(|t| json!({"text": t}).to_string()).collect();
    std::fs::write(&rows, lines.join("\n")).unwrap();
    let (file, rows) = (file.to_str().unwrap(), rows.to_str().unwrap());

    let base = "suites/medical-r1/base";
    let scored = ok(&["score", "--model", base, "--input", rows]);
    let each: Vec<f64> = scored
        .lines()
        .map(|line| {
            let row: Value = serde_json::from_str(line).unwrap();
            (-row["sum"].as_f64().unwrap() / row["tokens"].as_f64().unwrap()).exp()
        })
        .collect();
    let expected = each.iter().sum::<f64>() / each.len() as f64;
    let args = ["--json", "report", file, "--format", "seed-compat", "--base-model", base, "--finetuned-model", base];
    let object: Value = serde_json::from_str(&ok(&args)).unwrap();
    for side in ["base_model", "finetuned_model"] {
        let found = object["recomputed"]["quantitative"][side]["perplexity"].as_f64().unwrap();
        assert!((found - expected).abs() < 1e-5 * expected, "{side}: {found} against {expected}");
        assert_eq!(object["published"]["quantitative"][side]["perplexity"], 1.0);
    }
    // Without the models it is unknown, and it is said how to know it.
    let output = karat(&["--json", "report", file, "--format", "seed-compat"]);
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(object["recomputed"]["quantitative"]["base_model"]["perplexity"], Value::Null);
    assert!(String::from_utf8_lossy(&output.stderr).contains("--base-model"));
}

#[test]
fn what_is_no_run_and_no_results_file_is_said() {
    let output = karat(&["report", "reports/medical-r1", "--format", "seed-compat"]);
    assert_eq!(output.status.code(), Some(6));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no run folder"));
    let output = karat(&["report", "reports/medical-r1/report.json", "--format", "seed-compat"]);
    assert_eq!(output.status.code(), Some(6));
    assert!(String::from_utf8_lossy(&output.stderr).contains("published comparison"));
}
