//! Doors of the command line in a user's first hour: names as they are typed, signals, folders of
//! their own, files of others, and what a kill leaves.

#![allow(clippy::unwrap_used)]
#![cfg(unix)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

mod place;

use place::{Place, SUITE, good, refused, said};

/// Waits until `done`, at most ten minutes: machines that run tests are loaded.
fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(600), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn send(child: &Child, signal: &str) {
    assert!(Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status().unwrap().success());
}

fn checkpoints(out: &Path) -> usize {
    let names = std::fs::read_dir(out).into_iter().flatten().map(|e| e.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().starts_with("checkpoint-")).count()
}

/// Steps in the log of a training.
fn steps(out: &Path) -> usize {
    std::fs::read_to_string(out.join("events.jsonl")).map_or(0, |text| text.lines().count())
}

#[test]
fn every_command_takes_bare_names_in_the_folder_where_they_lie() {
    let place = Place::named("我的 实验");
    for args in [
        &["data", "my-experiment.toml"][..],
        &["data", "./my-experiment.toml"],
        &[
            "train",
            "--model",
            "base",
            "--data",
            "ids.jsonl",
            "--ids",
            "--set",
            "max_steps=1",
            "--set",
            "r=2",
            "--out",
            "t",
        ],
        &["score", "--model", "base", "--input", "rows.jsonl"],
        &["score", "--model", "base", "--adapter", "t/checkpoint-1", "--input", "rows.jsonl"],
        &["generate", "--model", "base", "--input", "rows.jsonl", "--max-new-tokens", "2"],
        &["merge", "--model", "base", "--adapter", "t/checkpoint-1", "--out", "merged"],
        &["score", "--model", "merged", "--input", "rows.jsonl"],
        &["run", "my-experiment.toml", "--out", "run"],
        &["run", "my-experiment.toml"],
        &["eval", "my-experiment.toml", "--predictions", "pairs.jsonl", "--out", "texts"],
        &["eval", "my-experiment.toml", "--adapter", "t/checkpoint-1", "--out", "one", "--reports", "pages"],
        &["compare", "run:base", "run:lora"],
        &["compare", "pairs.jsonl", "pairs.jsonl"],
        &["report", "run"],
        &["report", "run", "--out", "again"],
        &["metrics", "--input", "pairs.jsonl", "--metrics", "ter"],
        &["check", "run", "--save-baseline", "first", "--baselines", "baselines", "--junit", "out.xml"],
    ] {
        good(place.karat(args));
    }
    // One item tells nothing, which is a verdict.
    let check = ["check", "run", "--baseline", "first", "--baselines", "baselines", "--junit", "out.xml"];
    refused(place.karat(&check), 4, "inconclusive");
    // As folders, from within, from above, through a link, with a slash behind.
    std::fs::rename(place.root.join("my-experiment.toml"), place.root.join("suite.toml")).unwrap();
    let above = place.root.parent().unwrap();
    std::os::unix::fs::symlink(&place.root, above.join("link")).unwrap();
    for (folder, spec) in [
        (place.root.clone(), "."),
        (place.root.clone(), "suite.toml"),
        (place.root.join("base"), ".."),
        (place.root.join("base"), "../suite.toml"),
        (above.into(), "我的 实验"),
        (above.into(), "我的 实验/"),
        (above.into(), "./link"),
        (above.into(), "link/suite.toml"),
        (above.join("link"), "."),
    ] {
        good(place.karat_in(&folder, &["data", spec]));
    }
    let inside = place.root.join("base");
    let train = ["train", "--model", ".", "--data", "../ids.jsonl", "--ids", "--set", "max_steps=1", "--out", "../u"];
    good(place.karat_in(&inside, &train));
    let adapter: Value =
        serde_json::from_slice(&std::fs::read(place.root.join("u/checkpoint-1/adapter_config.json")).unwrap()).unwrap();
    assert_eq!(adapter["base_model_name_or_path"], "base");
    good(
        place.karat_in(
            &inside,
            &["score", "--model", ".", "--adapter", "../u/checkpoint-1", "--input", "../rows.jsonl"],
        ),
    );
}

#[test]
fn a_folder_of_the_users_is_never_written_over() {
    let place = Place::new();
    place.put("suite.toml", SUITE);
    place.put("data.json", "my own data");
    place.put("report.md", "my own report");
    let before: Vec<String> =
        std::fs::read_dir(&place.root).unwrap().map(|e| format!("{:?}", e.unwrap().file_name())).collect();
    for args in [
        &["run", ".", "--out", "."][..],
        &["eval", ".", "--out", "."],
        &["eval", ".", "--predictions", "pairs.jsonl", "--out", "."],
        &["train", "--model", "base", "--data", "ids.jsonl", "--ids", "--out", "."],
        &["train", "--model", "base", "--data", "ids.jsonl", "--ids", "--out", "base"],
        &["eval", ".", "--predictions", "pairs.jsonl", "--out", "elsewhere", "--reports", "."],
    ] {
        refused(place.karat(args), 2, "nothing was written");
        let text = |name: &str| std::fs::read_to_string(place.root.join(name)).unwrap();
        assert_eq!((text("suite.toml").as_str(), text("data.json").as_str()), (SUITE, "my own data"), "{args:?}");
        assert_eq!(text("report.md"), "my own report");
    }
    let after = std::fs::read_dir(&place.root).unwrap().map(|e| format!("{:?}", e.unwrap().file_name()));
    assert_eq!(after.filter(|name| !before.contains(name)).collect::<Vec<_>>(), Vec::<String>::new());
}

#[test]
fn sigterm_and_sighup_leave_a_checkpoint_as_ctrl_c_does() {
    let place = Place::new();
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let out = place.root.join(signal);
        // Whoever runs the tests may ignore SIGHUP (nohup): the command would go on then, as it
        // should.
        let training = place.training(signal);
        let mut command = Command::new("env");
        command.arg("--default-signal=HUP").arg(training.get_program()).args(training.get_args());
        command.current_dir(&place.root).stdin(Stdio::null());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_for("training begins", || steps(&out) > 0);
        send(&child, signal);
        assert_eq!(child.wait().unwrap().code(), Some(code), "SIG{signal}");
        assert_eq!(checkpoints(&out), 1, "SIG{signal}");
    }
}

#[test]
fn an_ignored_sighup_stays_ignored_and_a_second_signal_ends_at_once() {
    let place = Place::new();
    // As nohup does.
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(env!("CARGO_BIN_EXE_karat")).current_dir(&place.root);
    shell.args([
        "train",
        "--model",
        "base",
        "--data",
        "ids.jsonl",
        "--ids",
        "--out",
        "t",
        "--set",
        "max_steps=1000000",
    ]);
    let mut child = shell.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let out = place.root.join("t");
    wait_for("training begins", || steps(&out) > 0);
    send(&child, "HUP");
    let seen = steps(&out);
    wait_for("training goes on", || steps(&out) > seen + 20);
    assert!(child.try_wait().unwrap().is_none());
    // The process does not get to see the first before the second.
    send(&child, "STOP");
    send(&child, "TERM");
    send(&child, "INT");
    send(&child, "CONT");
    let code = child.wait().unwrap().code();
    assert!(matches!(code, Some(130 | 143)), "{code:?}");
    assert_eq!(checkpoints(&out), 0, "it ended at once");
}

#[test]
fn a_model_that_shrinks_while_it_is_used_is_an_error_that_names_the_file() {
    let place = Place::new();
    let out = place.root.join("t");
    for json in [false, true] {
        let mut command = place.training("t");
        if json {
            command.arg("--json");
        }
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let before = steps(&out);
        wait_for("training begins", || steps(&out) > before);
        let weights = place.root.join("base/model.safetensors");
        let kept = std::fs::read(&weights).unwrap();
        std::fs::OpenOptions::new().write(true).open(&weights).unwrap().set_len(4096).unwrap();
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(5), "{:?}: {stderr}", output.status);
        assert!(stderr.contains("base/model.safetensors: this file was cut short"), "{stderr}");
        if json {
            let object: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(object["error"]["exit_code"], 5);
            assert_eq!(object["error"]["where"].as_str().unwrap(), weights.to_str().unwrap());
        }
        std::fs::write(&weights, kept).unwrap();
    }
}

#[test]
fn what_a_killed_merge_left_is_removed_by_the_next_and_what_another_fills_is_not() {
    let place = Place::new();
    good(place.karat(&[
        "train",
        "--model",
        "base",
        "--data",
        "ids.jsonl",
        "--ids",
        "--set",
        "max_steps=1",
        "--out",
        "t",
    ]));
    let ended = {
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id()
    };
    let living = std::process::id();
    let [rest, busy, other] =
        [format!(".karat-merged-{ended}-x"), format!(".karat-merged-{living}-x"), format!(".karat-import-{ended}-x")]
            .map(|name| place.root.join(name));
    for folder in [&rest, &busy, &other] {
        std::fs::create_dir(folder).unwrap();
    }
    good(place.karat(&["merge", "--model", "base", "--adapter", "t/checkpoint-1", "--out", "merged"]));
    assert!(!rest.exists());
    assert!(busy.exists() && other.exists(), "what a living process fills, or another command left, is not merge's");
    refused(
        place.karat(&["merge", "--model", "base", "--adapter", "t/checkpoint-1", "--out", "merged"]),
        2,
        "nothing was written",
    );
}

#[test]
fn a_run_that_was_killed_over_a_merged_model_leaves_none_behind() {
    let place = Place::new();
    let out = place.root.join("out");
    let litter = || -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&out).into_iter().flatten().map(|e| e.unwrap().path());
        entries.filter(|p| p.file_name().unwrap().to_string_lossy().starts_with(".karat-")).collect()
    };
    let args = ["run", "my-experiment.toml", "--out", "out"];
    let mut found = false;
    for _ in 0..20 {
        let mut child = place.karat(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_for("a merged model or the end", || !litter().is_empty() || child.try_wait().unwrap().is_some());
        child.kill().unwrap();
        child.wait().unwrap();
        found = !litter().is_empty();
        if found {
            break;
        }
        std::fs::remove_dir_all(&out).unwrap();
    }
    assert!(found, "no kill met a merged model");
    good(place.karat(&args));
    assert_eq!(litter(), Vec::<PathBuf>::new());
}

#[test]
fn everything_written_is_as_readable_as_the_umask_says() {
    let place = Place::new();
    let shell = |umask: &str, command: &str| {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("umask {umask}; {command}")]).env("KARAT", env!("CARGO_BIN_EXE_karat"));
        shell.current_dir(&place.root);
        good(shell)
    };
    for (umask, file, folder) in [("022", 0o644, 0o755), ("007", 0o660, 0o770)] {
        let train = "\"$KARAT\" -q train --model base --data ids.jsonl --ids --set max_steps=1";
        shell(umask, &format!("{train} --out t{umask}; {train} --method full --out f{umask}"));
        shell(umask, &format!("\"$KARAT\" -q merge --model base --adapter t{umask}/checkpoint-1 --out m{umask}"));
        for top in ["t", "f", "m"].map(|name| place.root.join(format!("{name}{umask}"))) {
            let mut folders = vec![top];
            while let Some(path) = folders.pop() {
                let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
                assert_eq!(format!("{mode:o}"), format!("{folder:o}"), "{}", path.display());
                for entry in std::fs::read_dir(&path).unwrap().map(|e| e.unwrap()) {
                    if entry.file_type().unwrap().is_dir() {
                        folders.push(entry.path());
                        continue;
                    }
                    let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
                    let name = entry.file_name().to_string_lossy().into_owned();
                    // What is copied from the base keeps what it had there.
                    if !place.root.join("base").join(&name).exists() || name.ends_with(".safetensors") {
                        assert_eq!(format!("{mode:o}"), format!("{file:o}"), "{}", entry.path().display());
                    }
                }
            }
        }
    }
}

#[test]
fn an_adapter_on_another_base_than_its_own_is_said() {
    let place = Place::new();
    let once = ["--set", "max_steps=1", "--out", "t"];
    good(place.karat(&[&["train", "--model", "base", "--data", "ids.jsonl", "--ids"][..], &once].concat()));
    let evaluated = |out: &str| {
        let arguments = ["eval", "my-experiment.toml", "--model", "base", "--adapter", "t/checkpoint-1", "--out", out];
        let output = place.karat(&arguments).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        said(&output)
    };
    let warning = "was trained on another base than";
    assert!(!evaluated("same").contains(warning));
    let file = place.root.join("base/model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    // The lowest bit of one weight.
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    assert!(evaluated("other").contains(warning));
}

#[test]
fn texts_of_rows_that_are_left_out_are_left_out_too() {
    let place = Place::new();
    // The second row has no answer to measure against.
    let rows = [("i0", "a0"), ("i1", ""), ("i2", "a2"), ("i3", "a3")];
    let row = |(id, answer): (&str, &str)| json!({"id": id, "question": "q", "answer": answer}).to_string() + "\n";
    place.put("items.jsonl", &rows.map(row).concat());
    let suite = SUITE.replace("file = \"items.jsonl\"", "train = \"items.jsonl\"\nheldout = \"items.jsonl\"");
    place.put("my-experiment.toml", &suite.replace("items = 1\n", ""));
    let text = |(id, answer): (&str, &str)| json!({"id": id, "candidate": answer}).to_string() + "\n";
    place.put("texts.jsonl", &rows.map(text).concat());
    let arguments = ["eval", "my-experiment.toml", "--predictions", "texts.jsonl", "--set", "eval.metrics=[\"bleu\"]"];
    let told = good(place.karat(&[&arguments[..], &["--json", "--out", "o"]].concat()));
    let report: Value =
        serde_json::from_slice(&std::fs::read(place.root.join("o/report/report.json")).unwrap()).unwrap();
    let ids: Vec<&str> = report["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["i0", "i2", "i3"], "{told}");
    assert_eq!(report["data"]["bad_row_count"], 1, "{}", report["data"]);
    place.put("texts.jsonl", &(rows.map(text).concat() + &text(("i9", "a9"))));
    let told = place.karat(&[&arguments[..], &["--out", "p"]].concat()).output().unwrap();
    let told = place::said(&told);
    assert!(told.contains("1 texts of texts are of no item of the suite and were left out: line 5"), "{told}");
    // None of them is another thing.
    place.put("texts.jsonl", &text(("i9", "a9")));
    refused(place.karat(&[&arguments[..], &["--out", "q"]].concat()), 6, "by its id, else by its question");
}

#[test]
fn what_an_error_quotes_of_data_begins_no_line_and_moves_no_terminal() {
    let place = Place::new();
    place.put("annotation.jsonl", "{\"id\":\"x\\n::error title=pwn::said by the data\",\"candidate\":\"x\"}\n");
    place.put(
        "terminal.jsonl",
        "{\"id\":\"\\u001b]0;t\\u0007\\u001b[31m\\u0000\\u202e##[error]red\",\"candidate\":\"x\"}\n",
    );
    // A broken line of a suite is shown as it is written.
    place.put("broken.toml", "name = \"x\"\n::error title=pwn::said by the suite \u{1b}[31m\n");
    place.put(
        "train.jsonl",
        "{\"question\": 1, \"\\n::error::x\": 2}\nnot json \u{1b}[31m\n{\"question\":\"q\",\"answer\":\"a\"}\n",
    );
    for args in [
        &["eval", "my-experiment.toml", "--predictions", "annotation.jsonl"][..],
        &["eval", "my-experiment.toml", "--predictions", "terminal.jsonl"],
        &["data", "broken.toml"],
        &["data", "no\n::error::suite"],
        &["report", "--format", "x\n::error::\u{1b}[31m", "run"],
        &["train", "--model", "base", "--data", "train.jsonl", "--set", "max_steps=1", "--out", "t"],
    ] {
        for github in [false, true] {
            let mut command = place.karat(args);
            if github {
                command.env("GITHUB_ACTIONS", "true");
            }
            let output = command.output().unwrap();
            let text = String::from_utf8(output.stderr).unwrap();
            assert!(!text.is_empty());
            for line in text.lines() {
                assert!(!line.trim_start().starts_with("::") && !line.contains("##["), "{args:?}: {text}");
                let unseen = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}');
                assert!(!line.contains(unseen), "{args:?}: {text:?}");
            }
        }
    }
    let text =
        said(&place.karat(&["eval", "my-experiment.toml", "--predictions", "annotation.jsonl"]).output().unwrap());
    assert!(text.contains("x\\n::error title=pwn::said by the data"), "{text}");
}

#[test]
fn a_wrong_path_that_was_typed_is_a_usage_error_and_a_hole_in_a_folder_is_bad_data() {
    let place = Place::new();
    for args in [
        &["train", "--model", "nowhere", "--data", "ids.jsonl", "--ids", "--out", "t"][..],
        &["train", "--model", "base", "--data", "nowhere", "--ids", "--out", "t"],
        &["train", "--model", "base", "--data", "base", "--ids", "--out", "t"],
        &["train", "--model", "ids.jsonl", "--data", "ids.jsonl", "--ids", "--out", "t"],
        &["train", "--model", "base", "--data", "ids.jsonl", "--ids", "--eval-data", "nowhere", "--out", "t"],
        &["train", "--model", "base", "--data", "ids.jsonl", "--ids", "--init-adapter", "nowhere", "--out", "t"],
        &["score", "--model", "nowhere", "--input", "rows.jsonl"],
        &["score", "--model", "base", "--input", "nowhere"],
        &["score", "--model", "base", "--adapter", "nowhere", "--input", "rows.jsonl"],
        &["generate", "--model", "base", "--input", "base"],
        &["merge", "--model", "base", "--adapter", "nowhere", "--out", "m"],
        &["merge", "--model", "nowhere", "--adapter", "base", "--out", "m"],
        &["import", "--gguf", "nowhere", "--out", "m"],
        &["export", "--model", "nowhere", "--out", "m"],
        &["export", "--model", "base", "--adapter", "nowhere", "--out", "m"],
        &["eval", "my-experiment.toml", "--model", "nowhere"],
        &["eval", "my-experiment.toml", "--predictions", "nowhere"],
        &["data", "nowhere"],
        &["compare", "nowhere", "nowhere"],
        &["compare", "--backends", "native,replay", "--model", "nowhere"],
        &["report", "nowhere"],
        &["report", "base", "--determinism", "nowhere"],
        &["metrics", "--input", "nowhere"],
        &["doctor", "--determinism", "--model", "nowhere"],
    ] {
        refused(place.karat(args), 2, "");
        assert!(!place.root.join("t").exists() && !place.root.join("m").exists(), "{args:?}");
    }
    std::fs::create_dir(place.root.join("hollow")).unwrap();
    refused(place.karat(&["report", "hollow"]), 6, "report.json");
    refused(place.karat(&["train", "--model", "hollow", "--data", "items.jsonl", "--out", "t"]), 6, "hollow");
}

#[test]
fn files_that_are_no_utf8_are_bad_data_or_usage_but_never_unexpected() {
    let place = Place::new();
    let broken =
        |name: &str, text: &[u8]| std::fs::write(place.root.join(name), [text, b"\xff\xfe\n"].concat()).unwrap();
    std::fs::create_dir(place.root.join("report")).unwrap();
    for name in ["a.jsonl", "a.csv", "a.json", "report/report.json", "a.txt"] {
        broken(name, b"{\"id\": 1}\n");
    }
    broken("a.toml", SUITE.as_bytes());
    place.put("general.toml", &format!("{SUITE}[eval.general]\nfile = \"a.txt\"\n"));
    for args in [
        &["train", "--model", "base", "--data", "a.jsonl", "--ids", "--strict", "--out", "t"][..],
        &["train", "--model", "base", "--data", "a.jsonl", "--text", "--out", "t"],
        &["train", "--model", "base", "--data", "a.jsonl", "--strict", "--out", "t"],
        &["train", "--model", "base", "--data", "a.csv", "--strict", "--out", "t"],
        &["score", "--model", "base", "--input", "a.jsonl"],
        &["metrics", "--input", "a.jsonl"],
        &["eval", "my-experiment.toml", "--predictions", "a.jsonl"],
        &["eval", "my-experiment.toml", "--predictions", "a.json"],
        &["data", "a.toml"],
        &["data", "general.toml"],
        &["compare", "a.jsonl", "a.jsonl"],
        &["compare", "a.json", "a.json"],
        &["report", "."],
        &["report", "a.json"],
        &["check", "a.json", "--baseline", "a.json"],
        &["import", "--gguf", "a.json", "--out", "m"],
    ] {
        let output = place.karat(args).output().unwrap();
        assert!(matches!(output.status.code(), Some(2 | 6)), "{args:?}: {:?} {}", output.status, said(&output));
    }
    for name in
        ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"]
    {
        let path = place.root.join("base").join(name);
        let kept = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&kept[..], b"\xff"].concat()).unwrap();
        for args in [&["data", "my-experiment.toml"][..], &["score", "--model", "base", "--input", "rows.jsonl"]] {
            let output = place.karat(args).output().unwrap();
            assert_ne!(output.status.code(), Some(1), "{name} {args:?}: {}", said(&output));
        }
        std::fs::write(&path, kept).unwrap();
    }
}

#[test]
fn a_suite_runs_no_code_that_lies_beside_it() {
    let place = Place::new();
    let source = "#include <stdio.h>\n__attribute__((constructor)) static void f(void) { fclose(fopen(\"RAN\", \"w\")); }\n\
                  int karat_backend_evil = 1;\n";
    place.put("evil.c", source);
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o", "evil.so", "evil.c"]).current_dir(&place.root);
    if !compiler.status().is_ok_and(|status| status.success()) {
        println!("skipped: there is no C compiler");
        return;
    }
    let ran = || place.root.join("RAN").exists();
    place.put("evil.toml", &SUITE.replace("[train]", "backend = \"./evil.so\"\n[train]"));
    refused(place.karat(&["run", "evil.toml", "--out", "o"]), 2, "--backend-path");
    place.put("evil.toml", &format!("{SUITE}backend = \"./evil.so\"\n"));
    refused(place.karat(&["run", "evil.toml", "--out", "o"]), 2, "eval.backend");
    place.put("evil.toml", &format!("{SUITE}backend = \"onnxruntime\"\n[eval.options]\nlibrary = \"./evil.so\"\n"));
    refused(place.karat(&["run", "evil.toml", "--out", "o"]), 2, "eval.options.library");
    // A stored suite that is read again is a suite.
    std::fs::create_dir(place.root.join("stored")).unwrap();
    place.put("stored/suite.toml", &format!("{SUITE}backend = \"./evil.so\"\n"));
    refused(place.karat(&["data", "stored"]), 2, "eval.backend");
    // A package of Python's in the folder where a command is typed is not the system's.
    std::fs::create_dir_all(place.root.join("onnxruntime/capi")).unwrap();
    place.put("onnxruntime/__init__.py", "");
    std::fs::copy(place.root.join("evil.so"), place.root.join("onnxruntime/capi/libonnxruntime.so.9")).unwrap();
    let mut doctor = place.karat(&["doctor"]);
    doctor.env("KARAT_CACHE", place.root.join("cache")).env_remove("KARAT_ONNXRUNTIME").env_remove("ORT_DYLIB_PATH");
    doctor.output().unwrap();
    assert!(!ran(), "code of the suite ran");
}

#[test]
fn threads_beyond_the_machine_are_refused_where_they_are_typed_and_capped_where_a_suite_has_them() {
    let place = Place::new();
    for args in [
        &["score", "--model", "base", "--input", "rows.jsonl", "--threads", "10000"][..],
        &["train", "--model", "base", "--data", "ids.jsonl", "--ids", "--out", "t", "--threads", "10000"],
        &["doctor", "--determinism", "--model", "base", "--threads", "10000"],
        &["compare", "--backends", "native,replay", "--model", "base", "--threads", "10000"],
    ] {
        refused(place.karat(args), 2, "at most");
    }
    let capped =
        place.karat(&["run", "my-experiment.toml", "--out", "o", "--set", "model.threads=10000"]).output().unwrap();
    assert!(capped.status.success(), "{}", said(&capped));
    assert!(said(&capped).contains("warning: model.threads = 10000"), "{}", said(&capped));
}

#[test]
fn score_says_that_broken_weights_give_no_numbers() {
    let place = Place::new();
    let path = place.root.join("base/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let tensor = &header["model.layers.0.mlp.down_proj.weight"];
    let at = 8 + length + tensor["data_offsets"][0].as_u64().unwrap() as usize;
    // Quiet NaN in both types that the weights may have.
    let nan: &[u8] = if tensor["dtype"] == "F32" { &[0, 0, 0xc0, 0x7f] } else { &[0xc0, 0x7f] };
    bytes[at..at + nan.len()].copy_from_slice(nan);
    std::fs::write(&path, bytes).unwrap();
    refused(place.karat(&["score", "--model", "base", "--input", "rows.jsonl"]), 6, "row \"a\": a log-probability");
    let json = place.karat(&["--json", "score", "--model", "base", "--input", "rows.jsonl"]).output().unwrap();
    assert_eq!(json.status.code(), Some(6));
}
