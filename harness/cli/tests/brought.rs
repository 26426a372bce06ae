//! Texts of any origin: what nobody knows of them is unknown on every page, and what was not
//! measured is said first.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_path_buf()
}

fn karat(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_karat"));
    command.args(args).current_dir(folder).env_remove("GITHUB_ACTIONS").env_remove("GITHUB_STEP_SUMMARY");
    command.output().unwrap()
}

/// Standard output, standard error and the exit code.
fn said(folder: &Path, args: &[&str]) -> (String, String, Option<i32>) {
    let output = karat(folder, args);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr), output.status.code())
}

fn ok(folder: &Path, args: &[&str]) -> (String, String) {
    let (out, err, code) = said(folder, args);
    assert_eq!(code, Some(0), "{args:?}: {err}");
    (out, err)
}

/// A suite of six held-out items with ids `a` to `f`, and a file of predictions of those that
/// `answer` gives a text for.
fn project(ids: &[&str], answer: impl Fn(usize) -> Option<Value>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let base = repository().join("suites/medical-r1");
    let lines = |rows: Vec<Value>| rows.into_iter().map(|row| format!("{row}\n")).collect::<String>();
    let put = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
    let item = |(i, id): (usize, &&str)| json!({"id": id, "question": format!("问题{i}？"), "answer": format!("每日{i}次，每次10毫克。")});
    put("items.jsonl", lines(ids.iter().enumerate().map(item).collect()));
    put("train.jsonl", lines((0..4).map(|i| json!({"question": format!("训练{i}"), "answer": "好。"})).collect()));
    let suite = format!(
        "name = \"brought\"\n[data]\ntrain = \"train.jsonl\"\nheldout = \"items.jsonl\"\nsplit = \"1:1\"\n[model]\nbase = {:?}\n\
         [stats]\nresamples = 200\n",
        base.join("base").to_str().unwrap()
    );
    put("suite.toml", suite);
    let rows = ids.iter().enumerate().filter_map(|(i, id)| {
        let mut row = answer(i)?;
        row["id"] = json!(id);
        Some(row)
    });
    put("m.jsonl", lines(rows.collect()));
    folder
}

const IDS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

fn right(i: usize) -> String {
    format!("每日{i}次，每次10毫克。")
}

const EVAL: [&str; 6] = ["eval", "./suite.toml", "--predictions", "m.jsonl", "--out", "out"];

#[test]
fn what_texts_do_not_say_is_null_and_on_no_page_a_zero() {
    let project = project(&IDS, |i| Some(json!({"candidate": right(i)})));
    let folder = project.path();
    let (out, _) = ok(folder, &[&["--json"][..], &EVAL].concat());
    let report = serde_json::from_str::<Value>(&out).unwrap()["report"].clone();
    let model = &report["models"][0];
    for key in ["truncated", "parameters", "adapter_parameters", "dtype", "checkpoint_sha256"] {
        assert!(model[key].is_null(), "{key}: {}", model[key]);
    }
    assert_eq!(model["stop_known"], 0);
    let truncated = report["metrics"].as_array().unwrap().iter().find(|m| m["name"] == "truncated").unwrap();
    let value = &truncated["models"]["m"];
    assert_eq!((&value["value"], &value["n"], &value["missing"]), (&Value::Null, &json!(0), &json!(6)));
    let item = &report["items"][0]["models"]["m"];
    assert!(item["stop"].is_null() && item["tokens"].is_null() && item["metrics"]["truncated"].is_null());
    for key in ["prompts", "template", "decoding"] {
        assert!(report["fingerprints"][key].is_null(), "{key}");
    }
    assert!(report["decoding"].is_null() && report["seeds"]["train"].is_null());
    assert_eq!(report["environment"]["costs"], json!({}), "no second and no token was counted");
    let page = std::fs::read_to_string(folder.join("out/report/report.md")).unwrap();
    assert!(page.contains("| Truncated ↓ | – |") || page.contains("| Truncated (share) ↓ | – |"), "{page}");
    assert!(page.contains("- Decoding: unknown") && page.contains("- Checkpoint: m: unknown"), "{page}");
    assert!(!page.contains("max\\_new\\_tokens") && !page.contains("f32"), "{page}");
    let csv = std::fs::read_to_string(folder.join("out/report/items.csv")).unwrap();
    assert!(csv.contains("\na,m,none,,,"), "no reason and no number of tokens: {csv}");
}

#[test]
fn why_some_texts_ended_is_counted_over_those_of_which_it_is_known() {
    let project = project(&IDS, |i| {
        Some(match i {
            0 => json!({"candidate": right(i), "stop": "length", "ids": [1, 2, 3]}),
            1 => json!({"candidate": right(i), "stop": "stop"}),
            _ => json!({"candidate": right(i)}),
        })
    });
    let (out, _) = ok(project.path(), &[&["--json"][..], &EVAL].concat());
    let report = serde_json::from_str::<Value>(&out).unwrap()["report"].clone();
    let model = &report["models"][0];
    assert_eq!((&model["truncated"], &model["stop_known"]), (&json!(1), &json!(2)));
    let truncated = report["metrics"].as_array().unwrap().iter().find(|m| m["name"] == "truncated").unwrap();
    assert_eq!((&truncated["models"]["m"]["value"], &truncated["models"]["m"]["n"]), (&json!(0.5), &json!(2)));
    assert_eq!(report["items"][0]["models"]["m"]["tokens"], 3);
    let page = std::fs::read_to_string(project.path().join("out/report/report.md")).unwrap();
    assert!(page.contains("1 of 2 texts of m (50.0 %) were cut off"), "{page}");
}

#[test]
fn a_report_of_predictions_passes_a_gate_against_itself_and_says_what_nobody_knows() {
    let project = project(&IDS, |i| Some(json!({"candidate": right(i)})));
    let folder = project.path();
    ok(folder, &EVAL);
    let (out, _) = ok(folder, &["check", "out", "--baseline", "out/report/report.json"]);
    assert!(out.contains("not checked, neither side knowing them: prompts, template, decoding"), "{out}");
    // A likelihood that neither side has is named and counts for nothing.
    assert!(out.contains("not checked, the baseline having no value: m nll"), "{out}");
    assert!(out.contains("\npass: all of "), "{out}");

    // One side alone that knows is another matter, unless it is allowed by name.
    let report = folder.join("out/report/report.json");
    let text = std::fs::read_to_string(&report).unwrap();
    let mut known: Value = serde_json::from_str(&text).unwrap();
    known["fingerprints"]["decoding"] = json!("d".repeat(64));
    std::fs::write(folder.join("known.json"), known.to_string()).unwrap();
    let (_, err, code) = said(folder, &["check", "known.json", "--baseline", "out/report/report.json"]);
    assert_eq!(code, Some(2));
    assert!(err.contains("decoding (unknown against dddddddddddd)") && err.contains("--allow decoding"), "{err}");
    let allowed = ["check", "known.json", "--baseline", "out/report/report.json", "--allow", "decoding"];
    let (out, _) = ok(folder, &allowed);
    assert!(out.contains("although they differ in decoding"), "{out}");
}

#[test]
fn what_was_not_measured_is_said_on_standard_error_and_at_the_head_of_every_page() {
    let project = project(&IDS, |i| (i == 2).then(|| json!({"candidate": right(i)})));
    let folder = project.path();
    // A row that is none.
    let items = std::fs::read_to_string(folder.join("items.jsonl")).unwrap();
    std::fs::write(folder.join("items.jsonl"), format!("{items}{{\"question\": \"x\"}}\n")).unwrap();
    let (out, err) = ok(folder, &EVAL);
    let sentence = "Not everything was measured: m answered 1 of 6 items; 1 row of the data could not be used.";
    assert!(err.contains(&format!("warning: {sentence}")), "{err}");
    assert!(out.starts_with(sentence), "{out}");
    let (_, err) = ok(folder, &["check", "out", "--save-baseline", "main"]);
    assert!(err.contains(sentence), "{err}");
    for (format, within) in [("md", 3), ("html", 24), ("latex", 8), ("junit", 12)] {
        let (page, _) = ok(folder, &["report", "out", "--format", format]);
        let head: String = page.lines().take(within).collect();
        let plain = head.replace("\\", "");
        assert!(format == "html" || plain.contains("answered 1 of 6 items"), "{format}: {head}");
        assert!(page.contains("answered 1 of 6 items"), "{format}");
    }
    let (page, _) = ok(folder, &["report", "out", "--format", "html"]);
    let verdict = page.split("class=\"verdict\">").nth(1).unwrap();
    assert!(verdict.starts_with(sentence), "{}", &verdict[..200]);
    let (zh, _) = ok(folder, &["report", "out", "--language", "zh"]);
    assert!(zh.contains("m 只回答了 6 条中的 1 条") && zh.contains("1 行无法使用"), "{zh}");
}

#[test]
fn one_item_has_a_difference_and_no_interval() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, candidate: &str| {
        let line = json!({"id": 1, "reference": "每日一次", "candidate": candidate});
        std::fs::write(folder.path().join(name), format!("{line}\n")).unwrap();
    };
    put("a.jsonl", "每日一次");
    put("b.jsonl", "不知道");
    let (out, err) = ok(folder.path(), &["--json", "compare", "a.jsonl", "b.jsonl"]);
    let found: Value = serde_json::from_str(&out).unwrap();
    let bleu = &found["comparisons"][0]["metrics"]["bleu"];
    assert_eq!((&bleu["n"], &bleu["ci_low"], &bleu["ci_high"]), (&json!(1), &Value::Null, &Value::Null));
    assert!(bleu["difference"].as_f64().unwrap() < -99.0);
    assert!(found["comparisons"][0]["allowed"].is_null(), "two unknowns do not differ: {found}");
    assert_eq!(found["not_checked"], json!(["decoding", "prompts", "template"]));
    assert!(err.contains("neither side says how it was made; not checked: decoding, prompts, template"), "{err}");
    let (out, _) = ok(folder.path(), &["compare", "a.jsonl", "b.jsonl"]);
    assert!(!out.contains("although they differ") && !out.contains("[-"), "{out}");
}

#[test]
fn the_same_pairs_in_another_order_are_the_same_data() {
    let folder = tempfile::tempdir().unwrap();
    let line =
        |i: usize| json!({"id": i, "reference": right(i), "candidate": if i < 6 { right(i) } else { "不知道".into() }});
    let put = |name: &str, order: &mut dyn Iterator<Item = usize>| {
        std::fs::write(folder.path().join(name), order.map(|i| format!("{}\n", line(i))).collect::<String>()).unwrap();
    };
    put("a.jsonl", &mut (0..12));
    put("b.jsonl", &mut (0..12).rev());
    let (out, _) = ok(folder.path(), &["--json", "compare", "a.jsonl", "b.jsonl"]);
    let found: Value = serde_json::from_str(&out).unwrap();
    let bleu = &found["comparisons"][0]["metrics"]["bleu"];
    assert_eq!((&bleu["n"], &bleu["difference"]), (&json!(12), &json!(0.0)));
}

#[test]
fn a_model_that_is_not_in_the_report_is_refused_with_the_names_that_are() {
    let project = project(&IDS, |i| Some(json!({"candidate": right(i)})));
    let folder = project.path();
    ok(folder, &EVAL);
    let (_, err, code) = said(folder, &["compare", "out:base", "out:lora"]);
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("no model `base`") && err.contains("its models are: m"), "{err}");
    let shipped = repository().join("reports/medical-r1");
    let shipped = shipped.to_str().unwrap();
    let of = |model: &str| format!("{shipped}:{model}");
    let (_, err, code) = said(folder, &["compare", &of("base"), &of("loar")]);
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("its models are: base, lora, full"), "{err}");
}

#[test]
fn two_sides_that_are_one_checkpoint_or_one_file_are_said_to_be() {
    let project = project(&IDS, |i| Some(json!({"candidate": right(i), "reference": right(i)})));
    let folder = project.path();
    let mut report: Value =
        serde_json::from_str(&std::fs::read_to_string(repository().join("reports/medical-r1/report.json")).unwrap())
            .unwrap();
    report["statistics"]["resamples"] = json!(100);
    std::fs::write(folder.join("r.json"), report.to_string()).unwrap();
    let (out, err) = ok(folder, &["--json", "compare", "r.json:full", "r.json:full"]);
    assert!(err.contains("are the same checkpoint (sha256 "), "{err}");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["same"], json!([["full", "full"]]));
    let (_, err) = ok(folder, &["compare", "r.json:base", "r.json:full"]);
    assert!(!err.contains("the same"), "{err}");
    std::fs::copy(folder.join("m.jsonl"), folder.join("copy.jsonl")).unwrap();
    let (_, err) = ok(folder, &["compare", "m.jsonl", "copy.jsonl"]);
    assert!(err.contains("are the same file (sha256 "), "{err}");
}

#[test]
fn a_spreadsheet_calculates_nothing_and_a_terminal_is_not_moved() {
    let ids = ["=1+1", "+cmd", "-2+3", "@x", "\tt", "bad\u{1b}[2J\u{8}\u{202e}id"];
    let project = project(&ids, |i| Some(json!({"candidate": right(i)})));
    let folder = project.path();
    let named = ["eval", "./suite.toml", "--predictions", "evil\u{1b}[31m=m.jsonl", "--out", "out"];
    let (out, err) = ok(folder, &named);
    let foreign = ['\u{1b}', '\u{8}', '\u{202e}'];
    assert!(!out.contains(foreign) && !err.contains(foreign), "{out}{err}");
    for format in ["csv", "csv-metrics", "md", "html", "latex", "junit"] {
        let (page, _) = ok(folder, &["report", "out", "--format", format]);
        assert!(!page.contains(foreign), "{format}");
    }
    let (csv, _) = ok(folder, &["report", "out", "--format", "csv"]);
    for cell in ["'=1+1,", "'+cmd,", "'-2+3,", "'@x,", "'\tt,", "bad\\u{1b}[2J\\u{8}\\u{202e}id,"] {
        assert!(csv.contains(&format!("\n{cell}")), "{cell}: {csv}");
    }
    let (table, err) = ok(folder, &["check", "out", "--baseline", "out/report/report.json"]);
    assert!(!table.contains(foreign) && !err.contains(foreign), "{table}{err}");
    ok(folder, &["eval", "./suite.toml", "--predictions", "n=m.jsonl", "--out", "other"]);
    let (table, err) = ok(folder, &["compare", "out", "other"]);
    assert!(!table.contains(foreign) && !err.contains(foreign), "{table}{err}");
    assert!(table.contains("\\u{1b}"), "{table}");
}

#[test]
fn counts_beyond_reason_are_refused_where_they_are_read() {
    let project = project(&IDS, |i| Some(json!({"candidate": right(i)})));
    let folder = project.path();
    for (key, words) in [
        ("stats.resamples=4294967296", "between 100 and 1000000"),
        ("stats.resamples=9223372036854775807", "between 100 and 1000000"),
        ("eval.max_new_tokens=9223372036854775807", "eval.max_new_tokens = 9223372036854775807: it must be"),
        ("eval.batch_size=4294967296", "eval.batch_size = 4294967296: it must be"),
        ("data.max_length=4294967296", "data.max_length = 4294967296: it must be"),
        ("train.lora={ batch_size = 4294967296 }", "batch_size = 4294967296 must be between 1 and"),
        ("train.lora={ epochs = 1e18 }", "must be at most"),
    ] {
        let (_, err, code) = said(folder, &["run", "./suite.toml", "--set", key]);
        assert_eq!(code, Some(2), "{key}: {err}");
        assert!(err.contains(words), "{key}: {err}");
    }
    assert!(!folder.join("runs").exists(), "nothing was begun");
    ok(folder, &EVAL);
    let report = folder.join("out/report/report.json");
    let text = std::fs::read_to_string(&report).unwrap();
    for number in ["4294967296", "9223372036854775807"] {
        std::fs::write(&report, text.replace("\"resamples\": 200", &format!("\"resamples\": {number}"))).unwrap();
        for args in [&["compare", "out", "out"][..], &["report", "out"], &["check", "out", "--baseline", "out"]] {
            let (_, err, code) = said(folder, args);
            assert_eq!(code, Some(6), "{args:?}: {err}");
            assert!(err.contains("`statistics.resamples`"), "{args:?}: {err}");
        }
    }
}

#[test]
fn metrics_of_suites_and_of_packages_are_one_list_and_an_empty_file_is_said_to_be() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    put("p.jsonl", "{\"id\": 1, \"reference\": \"不可以。\", \"candidate\": \"<think>想</think>合适。\"}\n");
    let (out, _) = ok(folder.path(), &["metrics", "--metrics", "rougeL,chrf,contradictions", "--input", "p.jsonl"]);
    let row: Value = serde_json::from_str(&out).unwrap();
    let metrics = &row["metrics"];
    assert!(metrics["rougeL"].is_number() && metrics["chrf"].is_number(), "{row}");
    assert_eq!(metrics["contradictions"], 1.0, "the reasoning is split off: {row}");
    let (_, err, code) = said(folder.path(), &["metrics", "--metrics", "nll", "--input", "p.jsonl"]);
    assert_eq!(code, Some(2));
    assert!(err.contains("`nll` needs a model"), "{err}");
    let (_, err, code) = said(folder.path(), &["metrics", "--metrics", "rougel", "--input", "p.jsonl"]);
    assert_eq!(code, Some(2));
    assert!(err.contains("rougeL"), "{err}");
    put("empty.jsonl", "\n");
    let (out, err, code) = said(folder.path(), &["metrics", "--input", "empty.jsonl"]);
    assert_eq!((code, out.as_str()), (Some(6), ""));
    assert!(err.contains("empty.jsonl: the input has no lines"), "{err}");
}
