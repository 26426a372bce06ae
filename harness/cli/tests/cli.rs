//! The command line as its users have it: the built binary, the built plugins, real models.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_path_buf()
}

fn shipped_base() -> PathBuf {
    repository().join("suites/medical-r1/base")
}

/// The folder of reference material, where there is one.
fn shared(inner: &str) -> Option<PathBuf> {
    let given = std::env::var_os("KARAT_SHARED").map(PathBuf::from);
    let beside = repository().ancestors().skip(1).map(|a| a.join("shared")).find(|s| s.is_dir());
    let found = given.or(beside).map(|s| s.join(inner)).filter(|p| p.exists());
    if found.is_none() {
        eprintln!("skipped: no shared/{inner} beside the repository (KARAT_SHARED)");
    }
    found
}

fn karat<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_karat")).args(args).current_dir(repository()).output().unwrap()
}

fn ok<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> String {
    let output = karat(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn close(a: f64, b: f64, relative: f64) -> bool {
    (a - b).abs() <= relative * b.abs().max(1e-12)
}

#[test]
fn score_meets_the_log_probabilities_of_transformers() {
    for name in ["qwen3_tiny", "qwen3_tiny_rand"] {
        let Some(file) = shared(&format!("reference/{name}_forward.json")) else { return };
        let model = shared(&format!("reference/{}", name.replace('_', "-"))).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let prompts = read(&file)["prompts"].as_array().unwrap().clone();
        let rows: String = prompts
            .iter()
            .enumerate()
            .map(|(i, p)| serde_json::json!({"id": i, "ids": p["input_ids"]}).to_string() + "\n")
            .collect();
        let input = folder.path().join("rows.jsonl");
        std::fs::write(&input, rows).unwrap();
        let out = ok(&["score", "--model", model.to_str().unwrap(), "--input", input.to_str().unwrap()]);
        for (row, prompt) in lines(&out).iter().zip(&prompts) {
            let (ours, theirs) = (floats(&row["token_logprobs"]), floats(&prompt["token_logprobs"]));
            assert_eq!(ours.len(), theirs.len());
            for (a, b) in ours.iter().zip(&theirs) {
                assert!((a - b).abs() < 1e-4, "{name} row {}: {a} against {b}", row["id"]);
            }
        }
    }
}

#[test]
fn score_takes_text_as_well_as_ids() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("rows.jsonl");
    std::fs::write(&input, "{\"id\": \"a\", \"text\": \"二甲双胍用于2型糖尿病。\"}\n{\"id\": \"b\", \"ids\": [5]}\n")
        .unwrap();
    let out = ok(&["score", "--model", shipped_base().to_str().unwrap(), "--input", input.to_str().unwrap()]);
    let rows = lines(&out);
    let logprobs = floats(&rows[0]["token_logprobs"]);
    assert!(logprobs.len() > 3 && logprobs.iter().all(|&l| l <= 0.0));
    assert!(close(logprobs.iter().sum::<f64>(), rows[0]["sum"].as_f64().unwrap(), 1e-6));
    assert_eq!(rows[1]["token_logprobs"], serde_json::json!([]), "a single token has no prediction");
}

#[test]
fn train_by_ids_meets_the_curves_of_transformers_and_peft() {
    let Some(samples) = shared("reference/qwen3_tiny_sft_samples.json") else { return };
    let reference = samples.parent().unwrap().to_path_buf();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("ids.jsonl");
    let rows = read(&samples)["samples"].as_array().unwrap().clone();
    let text: String = rows
        .iter()
        .map(|r| serde_json::json!({"input_ids": r["input_ids"], "labels": r["labels"]}).to_string() + "\n")
        .collect();
    std::fs::write(&data, text).unwrap();
    for method in ["full", "lora"] {
        let out = folder.path().join(method);
        let model = reference.join("qwen3-tiny");
        let init = reference.join("qwen3_tiny_lora_init");
        let mut args = vec!["train", "--model", model.to_str().unwrap(), "--method", method, "--ids", "--no-shuffle"];
        args.extend(["--data", data.to_str().unwrap(), "--out", out.to_str().unwrap()]);
        args.extend(["--set", "max_steps=20", "--set", "learning_rate=1e-4", "--set", "accumulation=4"]);
        if method == "lora" {
            args.extend(["--init-adapter", init.to_str().unwrap()]);
            args.extend(["--set", "r=8", "--set", "lora_alpha=32", "--set", "lora_dropout=0.0"]);
        }
        ok(&args);
        let events = lines(&std::fs::read_to_string(out.join("events.jsonl")).unwrap());
        let steps: Vec<&Value> = events.iter().filter(|e| e["type"] == "step").collect();
        let theirs = read(&reference.join(format!("qwen3_tiny_sft_{method}.json")));
        let theirs = theirs["steps"].as_array().unwrap();
        assert_eq!(steps.len(), theirs.len());
        for (ours, theirs) in steps.iter().zip(theirs) {
            let pair = |key: &str| (ours[key].as_f64().unwrap(), theirs[key].as_f64().unwrap());
            let (norm, their_norm) = pair("grad_norm");
            let (loss, their_loss) = pair("loss");
            // Theirs is the sum of the four micro-batches' shares, which is what ours is too.
            assert!(close(loss, their_loss, 1e-3), "{method} step {}: loss {loss}, theirs {their_loss}", ours["step"]);
            assert!(close(norm, their_norm, 1e-3), "{method} step {}: norm {norm}, theirs {their_norm}", ours["step"]);
        }
    }
}

#[test]
fn generate_is_greedy_by_default_and_stops() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("rows.jsonl");
    std::fs::write(&input, "{\"id\": 1, \"text\": \"二甲双胍\"}\n{\"text\": \"Ibuprofen\"}\n").unwrap();
    let model = shipped_base();
    let args =
        ["generate", "--model", model.to_str().unwrap(), "--input", input.to_str().unwrap(), "--max-new-tokens", "12"];
    // Rows come as they are complete.
    let sorted = |text: &str| {
        let mut rows = lines(text);
        rows.sort_by_key(|row| row["id"].as_u64());
        rows
    };
    let rows = sorted(&ok(&args));
    assert_eq!(rows[0]["id"], 1);
    assert_eq!(rows[1]["id"], 2, "a row without an id has its line number");
    for row in &rows {
        let ids = row["ids"].as_array().unwrap();
        assert!(!ids.is_empty() && ids.len() <= 12);
        assert_eq!(row["stop"] == "length", ids.len() == 12);
        assert!(row["text"].is_string());
    }
    assert_eq!(rows, sorted(&ok(&[&args[..], &["--greedy", "--batch-size", "1"]].concat())));
}

#[test]
fn errors_have_their_exit_code_and_say_where() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let expect = |args: &[&str], code: i32, words: &[&str]| {
        let output = karat(args);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
        for word in words {
            assert!(text.contains(word), "{args:?} does not say {word:?}: {text}");
        }
    };
    let base = shipped_base();
    let base = base.to_str().unwrap();

    expect(&["run", "no-such-suite"], 2, &["no suite", "suites/no-such-suite/suite.toml"]);
    expect(&["run"], 2, &["SUITE"]);

    std::fs::write(
        path("suite.toml"),
        "name = \"x\"\n[data]\nfile = \"d.jsonl\"\nmaxlength = 5\n[model]\nbase = \".\"\n",
    )
    .unwrap();
    expect(&["run", &path("suite.toml")], 2, &["suite.toml:4:1", "maxlength", "max_length"]);

    std::fs::write(path("rows.jsonl"), "{\"id\": 1, \"ids\": [1, 2]}\n{\"ids\": \"no\"}\n").unwrap();
    expect(&["score", "--model", base, "--input", &path("rows.jsonl")], 6, &["rows.jsonl:2"]);

    std::fs::write(path("good.jsonl"), "{\"id\": 1, \"ids\": [1, 2]}\n").unwrap();
    let good = path("good.jsonl");
    expect(&["score", "--model", base, "--input", &good, "--backend", "nowhere"], 5, &["nowhere", "cargo build"]);
    expect(&["score", "--model", &path("missing"), "--input", &good], 2, &["missing", "no such folder"]);
    std::fs::create_dir(path("hollow")).unwrap();
    expect(&["score", "--model", &path("hollow"), "--input", &good], 2, &["config.json"]);
    expect(&["score", "--model", base, "--input", &good, "--device", "cuda:0"], 5, &["cuda"]);

    std::fs::write(path("ids.jsonl"), "{\"input_ids\": [1, 2], \"labels\": [-100, 2]}\nnot json\n").unwrap();
    let train = ["train", "--model", base, "--ids", "--data", &path("ids.jsonl"), "--out", &path("out"), "--strict"];
    expect(&train, 6, &["ids.jsonl:2"]);
    expect(&[&train[..8], &["--set", "learnin_rate=1"]].concat(), 2, &["learnin_rate", "learning_rate"]);

    // With --json the error is an object on standard output too.
    let output = karat(&["--json", "run", "no-such-suite"]);
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(object["error"]["exit_code"], 2);
}

#[test]
fn a_truncated_checkpoint_is_named_with_its_file() {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(shipped_base()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let weights = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    let input = folder.path().join("rows.jsonl");
    std::fs::write(&input, "{\"ids\": [1, 2]}\n").unwrap();
    let output = karat(&["score", "--model", folder.path().to_str().unwrap(), "--input", input.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{text}");
    assert!(text.contains("model.safetensors"), "{text}");
}

#[cfg(unix)]
#[test]
fn an_interrupted_training_goes_on_and_ends_with_the_same_bytes() {
    use std::io::{BufRead, BufReader};
    let folder = tempfile::tempdir().unwrap();
    let data = repository().join("suites/medical-r1/train.jsonl");
    let base = shipped_base();
    let command = |out: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_karat"));
        command.args(["train", "--method", "lora", "--model"]).arg(&base).arg("--data").arg(&data);
        command.args(["--set", "max_steps=12", "--set", "batch_size=2", "--set", "accumulation=2"]);
        command.args(["--set", "save_every=0", "--out"]).arg(out);
        command
    };
    let whole = folder.path().join("whole");
    assert!(command(&whole).output().unwrap().status.success());

    let cut = folder.path().join("cut");
    let mut child = command(&cut).stderr(std::process::Stdio::piped()).spawn().unwrap();
    // Interrupt once a few steps are in the log.
    let log = cut.join("events.jsonl");
    let began = std::time::Instant::now();
    loop {
        let steps = std::fs::read_to_string(&log).unwrap_or_default().lines().count();
        if steps >= 3 || began.elapsed().as_secs() > 120 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let said: Vec<String> = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok).collect();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130), "{said:?}");
    assert!(said.iter().any(|line| line.contains("same command")), "{said:?}");
    assert!(!cut.join("done.json").exists());

    let output = command(&cut).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stderr).contains("going on from"));
    let weights = |folder: &Path| std::fs::read(folder.join("checkpoint-12/adapter_model.safetensors")).unwrap();
    assert!(weights(&whole) == weights(&cut), "resumed training gave other weights");

    // Run once more: nothing is left to do.
    let output = command(&cut).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("reused"));
}

#[test]
fn real_data_goes_the_whole_way() {
    let Some(file) = shared("data/medical-r1/val.jsonl") else { return };
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(file).unwrap();
    let cut: Vec<&str> = text.lines().take(30).collect();
    std::fs::write(folder.path().join("val.jsonl"), cut.join("\n") + "\n{broken\n").unwrap();
    let base = shipped_base();
    let suite = format!(
        "name = \"real\"\n[data]\nfile = \"val.jsonl\"\nmax_length = 256\noutput = \"recipe\"\n\
         [model]\nbase = {:?}\n[train]\nmax_steps = 2\n[train.lora]\n[train.full]\n[eval]\nmax_new_tokens = 8\n",
        base.to_str().unwrap()
    );
    let path = folder.path().join("suite.toml");
    std::fs::write(&path, suite).unwrap();
    let out = folder.path().join("run");
    let args = ["--json", "run", path.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let object: Value = serde_json::from_str(&ok(&args)).unwrap();
    let report = &object["report"];
    assert_eq!(report["data"]["splits"], serde_json::json!({"heldout": 3, "train": 27}));
    assert_eq!(report["data"]["bad_row_count"], 1);
    assert_eq!(report["data"]["bad_rows"][0]["line"], 31);
    let names: Vec<&str> = report["models"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["base", "lora", "full"]);
    assert!(out.join("report/report.html").is_file());
    // The same command again trains and generates nothing.
    let again = karat(&args);
    let said = String::from_utf8_lossy(&again.stderr);
    assert_eq!(said.matches("reused").count(), 6, "two trainings, three models, one adapter: {said}");
    let strict = karat(&[&args[..], &["--strict"]].concat());
    assert_eq!(strict.status.code(), Some(6));
    assert!(String::from_utf8_lossy(&strict.stderr).contains("val.jsonl:31"));
}

#[test]
fn completions_and_the_manual_come_from_the_same_definitions() {
    assert!(ok(&["completions", "bash"]).contains("karat"));
    assert!(ok(&["man"]).contains(".TH karat"));
    let help = ok(&["--help"]);
    for code in ["130", "regression", "inconclusive"] {
        assert!(help.contains(code), "{help}");
    }
}

/// Runs the built binary in a shell, for what only a shell can set up.
#[cfg(unix)]
fn shell(script: &str) -> Output {
    Command::new("sh").args(["-c", script]).env("KARAT", env!("CARGO_BIN_EXE_karat")).output().unwrap()
}

#[cfg(unix)]
#[test]
fn a_closed_pipe_is_no_panic_and_keeps_the_exit_code() {
    // Both streams are closed before anything is written; the exit code goes to a file that is
    // still open.
    for (args, code) in [("man", "0"), ("run no-such-suite", "2"), ("--json run no-such-suite", "2")] {
        let output = shell(&format!("{{ {{ sleep 0.2; $KARAT {args}; echo $? >&3; }} 2>&1 | true; }} 3>&1"));
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), code, "{args}");
    }
}

#[test]
fn a_missing_input_or_model_is_a_wrong_path_on_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let missing = missing.to_str().unwrap();
    for args in [&["score", "--model", missing, "--input", missing][..], &["metrics", "--input", missing]] {
        let output = karat(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("missing"), "{said}");
    }
}

#[test]
fn a_byte_order_mark_and_json_leave_one_object() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("pairs.jsonl");
    std::fs::write(&input, "\u{feff}{\"id\": 1, \"reference\": \"甲\", \"candidate\": \"甲\"}\n").unwrap();
    let out = ok(&["--json", "metrics", "--metrics", "exact_match", "--input", input.to_str().unwrap()]);
    let object: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(object["rows"][0]["id"], 1);
}

#[test]
fn a_page_of_a_report_is_one_object_with_json() {
    let report = repository().join("reports/medical-r1");
    for format in ["md", "csv", "html"] {
        let out = ok(&["--json", "report", report.to_str().unwrap(), "--format", format]);
        let object: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(object["format"], format);
        let page = ok(&["report", report.to_str().unwrap(), "--format", format]);
        assert!(object["text"].as_str().unwrap().trim_end() == page.trim_end(), "{format}: another page");
    }
}

#[test]
fn check_takes_the_margins_of_the_suite_and_those_given_over_them() {
    let run = tempfile::tempdir().unwrap();
    let report = repository().join("reports/medical-r1/report.json");
    std::fs::create_dir(run.path().join("report")).unwrap();
    std::fs::copy(&report, run.path().join("report/report.json")).unwrap();
    std::fs::write(run.path().join("suite.toml"), "name = \"x\"\n[gate.margins]\nperplexity = 3\nnll = 0.5\n").unwrap();
    let (run, report) = (run.path().to_str().unwrap(), report.to_str().unwrap());
    let out = ok(&["--json", "check", run, "--baseline", report, "--margin", "nll=0.25"]);
    let object: Value = serde_json::from_str(&out).unwrap();
    let margin = |metric: &str| {
        let checks = object["checks"].as_array().unwrap();
        checks.iter().find(|c| c["metric"] == metric).unwrap()["gate"]["margin"].as_f64().unwrap()
    };
    assert_eq!((margin("perplexity"), margin("nll")), (3.0, 0.25));
}

#[test]
fn a_plugin_given_as_a_file_is_listed() {
    let text = ok(&["--json", "backends"]);
    let listed: Value = serde_json::from_str(&text).unwrap();
    let native = listed["backends"].as_array().unwrap().iter().find(|b| b["name"] == "native").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("any-name.so");
    std::fs::copy(native["path"].as_str().unwrap(), &copy).unwrap();
    let text = ok(&["--json", "--backend-path", copy.to_str().unwrap(), "backends"]);
    let listed: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(listed["backends"][0]["name"], "native");
    assert_eq!(listed["backends"][0]["path"].as_str().unwrap(), copy.canonicalize().unwrap().to_str().unwrap());
}

/// What `found` lacks of `expected`, an exception compared by its name alone; numbers to 1e-9.
fn differs(expected: &Value, found: &Value) -> bool {
    match (expected, found) {
        (Value::Object(e), _) if e.contains_key("error") => e["error"] != found["error"],
        (Value::Object(e), Value::Object(_)) => e.iter().any(|(key, value)| differs(value, &found[key])),
        (Value::Array(e), Value::Array(f)) => e.len() != f.len() || e.iter().zip(f).any(|(e, f)| differs(e, f)),
        (Value::Number(e), Value::Number(f)) => {
            let (e, f) = (e.as_f64().unwrap(), f.as_f64().unwrap());
            (e - f).abs() > 1e-9 * e.abs().max(1.0)
        }
        _ => expected != found,
    }
}

#[test]
fn metrics_prints_the_values_of_the_python_packages_under_their_names() {
    // The committed vectors, which the packages made (harness/tests/metrics_vectors.py), errors and
    // undefined values included.
    let vectors = std::fs::read_to_string(repository().join("harness/tests/metrics_vectors.jsonl")).unwrap();
    let pairs: Vec<Value> =
        vectors.split('\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_str(l).unwrap()).collect();
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("pairs.jsonl");
    let line = |p: &Value| {
        serde_json::json!({"id": p["id"], "reference": p["reference"], "candidate": p["candidate"]}).to_string() + "\n"
    };
    std::fs::write(&input, pairs.iter().map(line).collect::<String>()).unwrap();
    let rows = lines(&ok(&["metrics", "--input", input.to_str().unwrap()]));
    assert_eq!(rows.len(), pairs.len());
    let (mut compared, mut errors) = (0, 0);
    for (row, pair) in rows.iter().zip(&pairs) {
        assert_eq!(row["id"], pair["id"]);
        for (group, expected) in pair["metrics"].as_object().unwrap() {
            // Long texts are given by hash there; how the vectors were made is no metric.
            if group == "rouge_lcs_impl" || group == "extract" {
                continue;
            }
            let found = &row["metrics"][group];
            assert!(!differs(expected, found), "{} {group}: expected {expected}, found {found}", pair["id"]);
            compared += 1;
            errors += usize::from(expected.get("error").is_some());
        }
    }
    assert!(compared > 300 && errors > 0, "{compared} groups, {errors} errors");

    // A list of names gives just these, nested alike.
    let picked = ["--metrics", "nltk_bleu_jieba.m4,rouge_jieba.rouge-l.f,sacrebleu.zh.score,chrf,ter"];
    let rows = lines(&ok(&[&["metrics", "--input", input.to_str().unwrap()][..], &picked].concat()));
    for (row, pair) in rows.iter().zip(&pairs) {
        let (found, expected) = (&row["metrics"], &pair["metrics"]);
        assert_eq!(found.as_object().unwrap().len(), 5, "{found}");
        assert!(!differs(&expected["nltk_bleu_jieba"]["m4"], &found["nltk_bleu_jieba"]["m4"]));
        assert!(!differs(&expected["chrf"], &found["chrf"]) && !differs(&expected["ter"], &found["ter"]));
        match expected["rouge_jieba"].get("error") {
            Some(error) => assert_eq!(error, &found["rouge_jieba"]["error"]),
            None => assert!(!differs(&expected["rouge_jieba"]["rouge-l"]["f"], &found["rouge_jieba"]["rouge-l"]["f"])),
        }
    }
    let output = karat(&["metrics", "--input", input.to_str().unwrap(), "--metrics", "rouge_jeiba"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("rouge_jieba"));
}

#[test]
fn compare_of_backends_says_how_far_they_drift_and_fails_beyond_the_tolerance() {
    let doctor: Value = serde_json::from_str(&ok(&["--json", "doctor"])).unwrap();
    let of = |name: &str| doctor["backends"].as_array().unwrap().iter().find(|b| b["name"] == name).unwrap().clone();
    if of("onnxruntime")["usable"] != true && !karat(&["doctor", "--fix"]).status.success() {
        eprintln!("skipped: no ONNX Runtime library, and none could be fetched");
        return;
    }
    let doctor: Value = serde_json::from_str(&ok(&["--json", "doctor"])).unwrap();
    let facts =
        doctor["backends"].as_array().unwrap().iter().find(|b| b["name"] == "onnxruntime").unwrap()["facts"].clone();
    assert!(facts["version"].as_str().unwrap().starts_with("1."), "{facts}");
    assert!(facts["library"].as_str().unwrap().contains("onnxruntime"), "{facts}");
    assert!(facts["providers"].as_str().unwrap().contains("CPUExecutionProvider"), "{facts}");

    let (base, folder) = (shipped_base(), tempfile::tempdir().unwrap());
    let cache = format!("onnxruntime.cache_dir={}", folder.path().display());
    let compare = |more: &[&str]| {
        let both = ["compare", "--backends", "native,onnxruntime", "--model", base.to_str().unwrap()];
        let few = ["--max-new-tokens", "8", "--option", &cache];
        karat(&[&both[..], &few, more].concat())
    };
    let output = compare(&["--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let parity = &found["parity"];
    assert_eq!((&parity["within"], &parity["scores"]["tokens"]), (&Value::from(true), &Value::from(221)));
    assert_eq!((&parity["texts"]["equal"], &parity["texts"]["tokens"]), (&Value::from(10), &Value::from(80)));
    assert!(parity["scores"]["max"].as_f64().unwrap() < 1e-3 && parity["scores"]["mean"].as_f64().unwrap() > 0.0);
    assert_eq!(parity["backends"][1]["session"]["device"], "cpu");

    // Two implementations never round alike: nothing is within a tolerance of nothing.
    let strict = compare(&["--tolerance", "0"]);
    let said = String::from_utf8_lossy(&strict.stdout);
    assert_eq!(strict.status.code(), Some(3), "{said}");
    assert!(said.contains("BEYOND the tolerance") && said.contains("the first at row"), "{said}");

    // A device that is not there is an error, not another device.
    let cuda = compare(&["--device", "cuda:0"]);
    assert_eq!(cuda.status.code(), Some(5), "{}", String::from_utf8_lossy(&cuda.stdout));
    let output = karat(&["compare", "--backends", "native", "--model", base.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
}
