//! `karat check` as a CI job has it: exit codes, files, GitHub's log, baselines.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_path_buf()
}

/// Runs in `folder`, as if outside of GitHub unless `env` says otherwise.
fn karat(folder: &Path, args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_karat"));
    command.args(args).current_dir(folder).env_remove("GITHUB_ACTIONS").env_remove("GITHUB_STEP_SUMMARY");
    command.envs(env.iter().copied()).output().unwrap()
}

fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// A project with a run of the shipped suite in `runs/medical-r1`, and a worse report beside it.
fn project() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("runs/medical-r1/report");
    std::fs::create_dir_all(&run).unwrap();
    let text = std::fs::read_to_string(repository().join("reports/medical-r1/report.json")).unwrap();
    let mut report: Value = serde_json::from_str(&text).unwrap();
    // Fewer resamples than the shipped suite draws: the verdicts here are clear, the time is the
    // test's.
    report["statistics"]["resamples"] = 1000.into();
    // The shipped report names no backend; a run's does.
    let backend = serde_json::json!({"name": "native", "version": env!("CARGO_PKG_VERSION"), "sha256": "", "path": ""});
    report["environment"]["plugins"] = vec![backend].into();
    std::fs::write(run.join("report.json"), report.to_string()).unwrap();
    for item in report["items"].as_array_mut().unwrap() {
        let nll = &mut item["models"]["full"]["metrics"]["nll"];
        *nll = (nll.as_f64().unwrap() + 0.5).into();
    }
    std::fs::write(folder.path().join("worse.json"), report.to_string()).unwrap();
    folder
}

#[test]
fn save_check_regress_bless_and_check_again() {
    let project = project();
    let folder = project.path();
    let output = karat(folder, &["check", "medical-r1"], &[]);
    assert_eq!(output.status.code(), Some(6), "no baseline yet");
    assert!(said(&output).1.contains("--save-baseline"));

    // Nothing is named: the only run here.
    let output = karat(folder, &["check", "--save-baseline", "main"], &[]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output).1);
    assert!(folder.join("reports/baselines/medical-r1/main.json").is_file());
    let output = karat(folder, &["check", "--save-baseline", "main"], &[]);
    assert_eq!(output.status.code(), Some(2), "a baseline is not overwritten by the way");
    assert!(said(&output).1.contains("--bless"));

    let output = karat(folder, &["check"], &[]);
    assert_eq!(output.status.code(), Some(0));
    assert!(said(&output).0.ends_with("pass: all of 42 checks\n"), "{}", said(&output).0);
    let output = karat(folder, &["check", "worse.json"], &[]);
    assert_eq!(output.status.code(), Some(3));
    let (out, err) = said(&output);
    assert!(out.contains("-0.5000 [-0.5000, -0.5000]"), "{out}");
    assert!(err.contains("karat check worse.json --baseline main --bless --reason TEXT"), "{err}");
    // Half a nat is what was lost: a margin just around it cannot be told apart from it.
    for (margin, code) in [("nll=0.6", 0), ("nll=0.4", 3)] {
        assert_eq!(karat(folder, &["check", "worse.json", "--margin", margin], &[]).status.code(), Some(code));
    }
    let output = karat(folder, &["check", "worse.json", "--margin", "nll=0.49", "--logprob-drift", "0.05"], &[]);
    assert_eq!(output.status.code(), Some(4), "{}", said(&output).0);

    // A report of one model is held against one of the baseline's, whatever it is called.
    let mut alone: Value = serde_json::from_str(&std::fs::read_to_string(folder.join("worse.json")).unwrap()).unwrap();
    alone["models"].as_array_mut().unwrap().retain(|model| model["name"] == "full");
    alone["models"][0]["name"] = "new".into();
    for item in alone["items"].as_array_mut().unwrap() {
        let full = item["models"]["full"].take();
        item["models"] = serde_json::json!({ "new": full });
    }
    for metric in alone["metrics"].as_array_mut().unwrap() {
        let full = metric["models"]["full"].take();
        metric["models"] = serde_json::json!({ "new": full });
        metric["best"] = serde_json::json!([]);
    }
    for list in ["comparisons", "flips", "flipped", "examples"] {
        alone[list] = serde_json::json!([]);
    }
    alone["general"] = Value::Null;
    std::fs::write(folder.join("new.json"), alone.to_string()).unwrap();
    let output = karat(folder, &["check", "new.json"], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).1.contains("--baseline main:base"), "{}", said(&output).1);
    let output = karat(folder, &["check", "new.json", "--baseline", "main:full"], &[]);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output).1);
    assert_eq!(karat(folder, &["check", "worse.json", "--baseline", "main:full"], &[]).status.code(), Some(2));

    let output = karat(folder, &["check", "worse.json", "--bless"], &[]);
    assert_eq!(output.status.code(), Some(2), "a reason is needed");
    let bless = ["check", "worse.json", "--bless", "--reason", "a smaller model", "--by", "me", "--at", "today"];
    let output = karat(folder, &bless, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output).1);
    let history = std::fs::read_to_string(folder.join("reports/baselines/medical-r1/main.history.jsonl")).unwrap();
    assert_eq!(history.lines().count(), 2);
    let line: Value = serde_json::from_str(history.lines().nth(1).unwrap()).unwrap();
    assert_eq!(line["environment"]["by"], "me");
    assert_eq!(line["commit"], Value::Null, "there is no repository here");
    assert_eq!(karat(folder, &["check", "worse.json"], &[]).status.code(), Some(0));
}

#[test]
fn a_ci_job_gets_junit_annotations_and_a_summary_and_standard_output_stays_one_thing() {
    let project = project();
    let folder = project.path();
    let baseline = folder.join("runs/medical-r1").to_str().unwrap().to_string();
    let summary = folder.join("summary.md");
    std::fs::write(&summary, "before\n").unwrap();
    let env = [("GITHUB_ACTIONS", "true"), ("GITHUB_STEP_SUMMARY", summary.to_str().unwrap())];
    let args = ["--json", "check", "worse.json", "--baseline", &baseline, "--junit", "out/junit.xml"];
    let output = karat(folder, &args, &env);
    assert_eq!(output.status.code(), Some(3));
    let (out, err) = said(&output);
    let object: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(object["verdict"], "regress");
    assert_eq!(err.lines().filter(|l| l.starts_with("::error file=")).count(), 1, "{err}");
    let page = std::fs::read_to_string(&summary).unwrap();
    assert!(page.starts_with("before\n### ❌ medical-r1") && page.contains("| **regress** | full | nll |"), "{page}");
    let xml = std::fs::read_to_string(folder.join("out/junit.xml")).unwrap();
    assert!(xml.contains("tests=\"42\" failures=\"1\" errors=\"0\""), "{xml}");

    let output = karat(folder, &["check", "worse.json", "--baseline", &baseline, "--format", "github"], &env[..1]);
    let (out, err) = said(&output);
    assert!(out.starts_with("::error file=") && !err.contains("::error"), "{out}{err}");
    let output = karat(folder, &["check", "worse.json", "--baseline", "nowhere"], &env[..1]);
    assert!(said(&output).1.contains("::error title=karat check%3A not judged::"), "{}", said(&output).1);

    // Refused: the last verdict's file does not stay as if it were this one's.
    let output = karat(folder, &["check", "worse.json", "--baseline", "nowhere", "--junit", "out/junit.xml"], &[]);
    assert_eq!(output.status.code(), Some(6));
    let xml = std::fs::read_to_string(folder.join("out/junit.xml")).unwrap();
    let document = roxmltree::Document::parse(&xml).unwrap();
    let suite = document.descendants().find(|n| n.has_tag_name("testsuite")).unwrap();
    assert_eq!((suite.attribute("tests"), suite.attribute("errors")), (Some("1"), Some("1")), "{xml}");
    let error = suite.descendants().find(|n| n.has_tag_name("error")).unwrap();
    assert_eq!(error.attribute("type"), Some("not-judged"));
    assert!(
        error.text().unwrap().contains("help: save one first: karat check medical-r1 --save-baseline nowhere"),
        "{xml}"
    );
}

#[test]
fn the_certificate_that_the_doctor_writes_is_what_the_gate_reads() {
    let project = project();
    let folder = project.path();
    let model = repository().join("suites/medical-r1/base");
    let doctor = karat(folder, &["--json", "doctor", "--determinism", "--model", model.to_str().unwrap()], &[]);
    assert_eq!(doctor.status.code(), Some(0), "{}", said(&doctor).1);
    std::fs::write(folder.join("certificate.json"), &doctor.stdout).unwrap();
    let certificate: Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let drift = certificate["logprob_drift"].as_f64().unwrap();
    let baseline = folder.join("runs/medical-r1").to_str().unwrap().to_string();
    let args = ["--json", "check", "worse.json", "--baseline", &baseline, "--determinism", "certificate.json"];
    let output = karat(folder, &args, &[]);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output).1);
    let checks: Value = serde_json::from_slice(&output.stdout).unwrap();
    let allowance = |metric: &str| {
        let find = |c: &&Value| c["model"] == "full" && c["metric"] == metric;
        checks["checks"].as_array().unwrap().iter().find(find).unwrap()["allowance"].as_f64().unwrap()
    };
    assert_eq!((allowance("nll"), allowance("rougeL")), (drift, 0.0));

    // Kept in the report, it is on its pages, and the gate finds it there.
    let attach = ["report", "worse.json", "--determinism", "certificate.json", "--out", "certified"];
    let output = karat(folder, &attach, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output).1);
    let page = |name: &str| std::fs::read_to_string(folder.join("certified").join(name)).unwrap();
    assert!(page("report.json").contains("\"pass\": \"batch 1\""));
    let texts = certificate["texts"].as_u64().unwrap();
    assert!(page("report.html").contains(&format!("repeats itself ({texts} texts")));
    let output = karat(folder, &["--json", "check", "certified/report.json", "--baseline", &baseline], &[]);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found, checks);
    // Another backend's certificate says nothing of this report.
    let other = doctor.stdout.iter().map(|&b| b as char).collect::<String>().replace("\"native ", "\"carbon ");
    std::fs::write(folder.join("certificate.json"), other).unwrap();
    let output = karat(folder, &attach, &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).1.contains("the certificate is of carbon"), "{}", said(&output).1);
}

#[test]
fn power_says_what_these_items_can_tell_and_how_many_would_tell_more() {
    let project = project();
    let folder = project.path();
    // As many resamples as the suite draws: with few no p is as small as 69 tests together ask.
    let file = folder.join("runs/medical-r1/report/report.json");
    let mut report: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    report["statistics"]["resamples"] = 100_000.into();
    std::fs::write(&file, report.to_string()).unwrap();
    let output = karat(folder, &["power", "medical-r1", "--margin", "rougeL=0.05"], &[]);
    let (out, err) = said(&output);
    assert_eq!(output.status.code(), Some(0), "{err}");
    for what in
        ["lora against base", "full against lora", "needed for margin", "(63 sources)", "nothing is detectable of"]
    {
        assert!(out.contains(what), "{what}: {out}");
    }
    let output =
        karat(folder, &["--json", "power", "medical-r1", "--margin", "rougeL=0.05", "--baseline", "full"], &[]);
    let answer: Value = serde_json::from_str(&said(&output).0).unwrap();
    let row = |metric: &str| {
        let rows = answer["rows"].as_array().unwrap();
        rows.iter().find(|r| r["candidate"] == "lora" && r["metric"] == metric).unwrap().clone()
    };
    assert!(answer["rows"].as_array().unwrap().iter().all(|r| r["baseline"] == "full"));
    let (rouge, decision) = (row("rougeL"), row("decision"));
    assert_eq!((rouge["margin"].as_f64(), rouge["sources"].as_u64()), (Some(0.05), Some(63)));
    assert!(rouge["needed_for_margin"].as_u64().unwrap() > 63 && rouge["detectable"].as_f64().unwrap() > 0.05);
    assert!(decision["n"] == 26 && decision["needed_for_margin"].as_u64().unwrap() > 189);
    for (arguments, code) in [
        (&["--margin", "rougeL=0"][..], 2),
        (&["--margin", "typo=0.1"], 2),
        (&["--power", "0.3"], 2),
        (&["--baseline", "nobody"], 2),
    ] {
        let output = karat(folder, &[&["power", "medical-r1"][..], arguments].concat(), &[]);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", said(&output).1);
        assert!(said(&output).1.contains("help:"), "{arguments:?}");
    }
}
