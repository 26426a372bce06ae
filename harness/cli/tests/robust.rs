//! Training as the world treats it: killed at any moment, a full disk, a folder that cannot be
//! written, a lost log. What is under a checkpoint's name is whole, and the run ends with the bytes
//! of one that nothing happened to.

#![allow(clippy::unwrap_used)]
#![cfg(unix)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

const FULL: &[&str] = &["--method", "full"];
const DORA: &[&str] = &[
    "--method",
    "lora",
    "--set",
    "r=4",
    "--set",
    "lora_dropout=0.2",
    "--set",
    "use_dora=true",
    "--set",
    "modules_to_save=[\"model.norm\"]",
];

/// A folder with a small model and rows to train it on.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new(family: &str) -> Self {
        let place = Place { folder: tempfile::tempdir().unwrap() };
        let shape = json!({
            "model_type": family, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 400,
            "max_position_embeddings": 64, "tie_word_embeddings": true, "initializer_range": 0.2
        });
        std::fs::create_dir(place.path("shape")).unwrap();
        std::fs::write(place.path("shape/config.json"), shape.to_string()).unwrap();
        let rows: String = (0..9u32)
            .map(|row| {
                let ids: Vec<u32> = (0..8 + row).map(|i| (row * 37 + i * i * 11) % 400).collect();
                json!({"input_ids": ids, "labels": ids}).to_string() + "\n"
            })
            .collect();
        std::fs::write(place.path("rows.jsonl"), rows).unwrap();
        let out = place.path("drawn");
        let drawn = place.command(&place.path("shape"), &out, FULL, 1, &["--from-scratch"]).output().unwrap();
        assert!(drawn.status.success(), "{}", said(&drawn));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, model: &Path, out: &Path, method: &[&str], steps: usize, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_karat"));
        let rows = self.path("rows.jsonl");
        command.args(["train", "--ids", "--threads", "2", "--model"]).arg(model).arg("--out").arg(out);
        command.arg("--data").arg(&rows).arg("--eval-data").arg(&rows).args(method);
        for setting in [
            "batch_size=2",
            "accumulation=1",
            "eval_every=2",
            "save_every=2",
            "save_total_limit=2",
            "learning_rate=0.01",
        ] {
            command.args(["--set", setting]);
        }
        command.args(["--set", &format!("max_steps={steps}")]).args(more);
        command
    }

    /// The run that the tests disturb: 12 steps, a checkpoint every other.
    fn training(&self, out: &str, method: &[&str]) -> Command {
        self.command(&self.path("drawn/checkpoint-1"), &self.path(out), method, 12, &[])
    }

    fn finish(&self, out: &str, method: &[&str]) -> Output {
        let done = self.training(out, method).output().unwrap();
        assert!(done.status.success(), "{}", said(&done));
        done
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Every file below `folder` by its path, but what holds times: the log and the summary.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            found.extend(files(&path).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else if !["events.jsonl", "done.json", ".lock"].contains(&name.as_str()) {
            found.insert(name, std::fs::read(&path).unwrap());
        }
    }
    found
}

fn same(a: &Path, b: &Path) {
    let (a, b) = (files(a), files(b));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    a.iter().for_each(|(name, bytes)| assert!(*bytes == b[name], "{name} differs"));
}

/// The log without what no two runs share.
fn events(folder: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join("events.jsonl")).unwrap();
    let strip = |line: &str| {
        let mut event: Value = serde_json::from_str(line).unwrap();
        for volatile in ["seconds", "memory"] {
            event.as_object_mut().unwrap().remove(volatile);
        }
        event
    };
    text.lines().map(strip).collect()
}

fn checkpoints(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> =
        paths.filter(|p| p.file_name().unwrap().to_string_lossy().starts_with("checkpoint-")).collect();
    found.sort();
    found
}

/// Every safetensors file is as long as its header says, every JSON file parses.
fn whole(checkpoint: &Path) {
    let mut kinds = (0, 0);
    for (name, bytes) in files(checkpoint) {
        if name.ends_with(".safetensors") {
            let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let tensors: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
            let ends = tensors.as_object().unwrap().values().filter_map(|t| t["data_offsets"][1].as_u64());
            assert_eq!(bytes.len(), 8 + header + ends.max().unwrap() as usize, "{name}");
            kinds.0 += 1;
        } else if name.ends_with(".json") {
            serde_json::from_slice::<Value>(&bytes).unwrap();
            kinds.1 += 1;
        }
    }
    assert!(kinds.0 == 2 && kinds.1 >= 3, "{}: {kinds:?}", checkpoint.display());
}

#[test]
fn a_run_that_is_killed_again_and_again_ends_with_the_same_bytes() {
    const STEPS: usize = 30;
    for (family, method) in [("qwen3", DORA), ("llama", FULL)] {
        let place = Place::new(family);
        let model = place.path("drawn/checkpoint-1");
        // A checkpoint after every step, so that most kills hit the writing of one.
        let run = |out: &str| place.command(&model, &place.path(out), method, STEPS, &["--set", "save_every=1"]);
        assert!(run("whole").output().unwrap().status.success());
        let out = place.path("cut");
        let mut killed = 0u32;
        for attempt in 0..20u32 {
            let before = passing(&out);
            let mut child = run("cut").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            // Once it writes, a moment of another length each time.
            while passing(&out) == before && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_micros(200));
            }
            std::thread::sleep(Duration::from_micros(u64::from(attempt * 7 % 10) * 700));
            child.kill().unwrap();
            killed += u32::from(!child.wait().unwrap().success());
            checkpoints(&out).iter().for_each(|checkpoint| whole(checkpoint));
            if out.join(format!("checkpoint-{STEPS}")).exists() {
                break;
            }
        }
        assert!(run("cut").output().unwrap().status.success());
        same(&place.path("whole"), &out);
        assert_eq!(events(&place.path("whole")), events(&out));
        println!("{family}: killed {killed} times");
        assert!(killed >= 5, "{killed} kills hit a running process");
    }
}

/// The names of checkpoints and of those in the making.
fn passing(folder: &Path) -> Vec<std::ffi::OsString> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    names.retain(|name| name.to_string_lossy().contains("checkpoint-"));
    names.sort();
    names
}

/// Starts the run and kills it once it has left a checkpoint before its last.
fn interrupted(place: &Place, out: &str, method: &[&str]) -> BTreeMap<String, Vec<u8>> {
    let last = place.path(out).join("checkpoint-12");
    loop {
        let mut child = place.training(out, method).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while checkpoints(&place.path(out)).is_empty() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        if !last.exists() {
            break;
        }
        // It was quicker than this test: once more.
        std::fs::remove_dir_all(place.path(out)).unwrap();
    }
    let newest = checkpoints(&place.path(out)).pop().unwrap();
    files(&newest)
}

#[test]
fn a_full_disk_is_a_clear_error_and_leaves_the_last_checkpoint_as_it_was() {
    let place = Place::new("qwen3");
    for (name, method) in [("full", FULL), ("dora", DORA)] {
        let (whole_out, out) = (format!("{name}-whole"), format!("{name}-cut"));
        place.finish(&whole_out, method);
        let before = interrupted(&place, &out, method);
        let kept = checkpoints(&place.path(&out)).pop().unwrap();
        // The system refuses files beyond 8 KiB, as a full disk would; the signal it sends with
        // that is ignored.
        let plain = place.training(&out, method);
        let limited = Command::new("sh")
            .args(["-c", "ulimit -f 16; trap '' XFSZ; exec \"$@\"", "sh"])
            .arg(plain.get_program())
            .args(plain.get_args())
            .output()
            .unwrap();
        let said = said(&limited);
        assert!(!limited.status.success(), "{said}");
        assert!(said.contains("safetensors") && said.contains("could not write it"), "{said}");
        assert!(said.to_lowercase().contains("file too large"), "the system's reason is given: {said}");
        assert_eq!(files(&kept), before);
        let rests = std::fs::read_dir(place.path(&out)).unwrap().map(|e| e.unwrap().file_name());
        let rests: Vec<_> = rests.filter(|name| name.to_string_lossy().starts_with(".checkpoint")).collect();
        assert!(rests.is_empty(), "{rests:?}");
        place.finish(&out, method);
        same(&place.path(&whole_out), &place.path(&out));
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_a_clear_error() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new("qwen3");
    let file = place.path("a-file");
    std::fs::write(&file, "x").unwrap();
    let model = place.path("drawn/checkpoint-1");
    let output = place.command(&model, &file.join("out"), FULL, 2, &[]).output().unwrap();
    assert!(!output.status.success() && said(&output).contains("could not create the folder"), "{}", said(&output));

    let before = interrupted(&place, "out", FULL);
    let (out, kept) = (place.path("out"), checkpoints(&place.path("out")).pop().unwrap());
    let mode = |mode: u32| std::fs::set_permissions(&out, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o555);
    let root = std::fs::write(out.join("probe"), "x").is_ok();
    let output = (!root).then(|| place.training("out", FULL).output().unwrap());
    mode(0o755);
    let Some(output) = output else {
        eprintln!("skipped: this user may write into read-only folders");
        return;
    };
    assert!(!output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("out") && said(&output).contains("ermission denied"), "{}", said(&output));
    assert_eq!(files(&kept), before);
}

#[test]
fn a_lost_log_is_restored_from_the_checkpoint_and_said() {
    let place = Place::new("qwen3");
    place.finish("out", FULL);
    let log = place.path("out").join("events.jsonl");
    let losses = |events: &[Value]| {
        let steps = events.iter().filter(|e| e["type"] == "step" || e["type"] == "evaluation");
        steps.map(|e| (e["step"].clone(), e["loss"].clone(), e["grad_norm"].clone())).collect::<Vec<_>>()
    };
    let before = events(&place.path("out"));
    std::fs::remove_file(&log).unwrap();
    let again = place.finish("out", FULL);
    assert!(said(&again).contains("12 of 12 steps"), "{}", said(&again));
    assert_eq!(losses(&events(&place.path("out"))), losses(&before));
    assert!(!said(&place.finish("out", FULL)).contains("lost"), "it is said once");

    interrupted(&place, "cut", FULL);
    std::fs::remove_file(place.path("cut").join("events.jsonl")).unwrap();
    place.finish("cut", FULL);
    assert_eq!(losses(&events(&place.path("cut"))), losses(&before));
}

#[test]
fn training_stops_early_and_says_so() {
    let place = Place::new("qwen3");
    let out = place.path("out");
    // So high a rate that the loss rises at once.
    let more =
        ["--set", "learning_rate=3.0", "--set", "early_stopping_patience=2", "--set", "early_stopping_threshold=0.01"];
    let model = place.path("drawn/checkpoint-1");
    let run = |steps| {
        let mut command = place.command(&model, &out, FULL, steps, &[]);
        command.args(more).arg("--json");
        command.output().unwrap()
    };
    let output = run(40);
    assert!(output.status.success(), "{}", said(&output));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    let steps = result["steps"].as_u64().unwrap();
    assert!((6..40).contains(&steps) && steps.is_multiple_of(2), "{result}");
    assert!(said(&output).contains(&format!("stopped early after {steps} of 40 steps")), "{}", said(&output));
    assert!(out.join(format!("checkpoint-{steps}")).is_dir());
    // A second call finds it done.
    let again: Value = serde_json::from_slice(&run(40).stdout).unwrap();
    assert_eq!(again["steps"], steps);
}

#[test]
fn sizes_that_a_configuration_claims_end_with_exit_5_and_not_in_an_abort() {
    let place = Place::new("qwen3");
    let drawn = checkpoints(&place.path("drawn")).pop().unwrap();
    std::fs::write(place.path("texts.jsonl"), "{\"id\": \"a\", \"ids\": [1, 2, 3]}\n").unwrap();
    // As a shell's `ulimit -v 8000000` has it; never a core file.
    let limited = |arguments: &[&std::ffi::OsStr]| {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -c 0; ulimit -v 8000000; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_karat")]);
        command.args(arguments).output().unwrap()
    };
    let written = |folder: &Path, key: &str, value: u64| {
        let mut config: Value = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
        let before = std::mem::replace(&mut config[key], json!(value));
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        before.as_u64().unwrap()
    };
    let texts = place.path("texts.jsonl");
    let (shape, rows, out) = (place.path("shape"), place.path("rows.jsonl"), place.path("never"));
    let scored = ["score".as_ref(), "--model".as_ref(), drawn.as_os_str(), "--input".as_ref(), texts.as_os_str()];
    let trained = ["train", "--ids", "--from-scratch", "--method", "full", "--set", "max_steps=1", "--model"];
    let mut trained: Vec<&std::ffi::OsStr> = trained.iter().map(|a| a.as_ref()).collect();
    trained.extend([shape.as_os_str(), "--data".as_ref(), rows.as_os_str(), "--out".as_ref(), out.as_os_str()]);
    assert!(limited(&scored).status.success(), "{}", said(&limited(&scored)));
    for (key, value) in [
        ("num_hidden_layers", 1_000_000_000_000),
        ("num_hidden_layers", 100_000_000),
        ("vocab_size", 200_000_000),
        ("intermediate_size", 200_000_000),
        ("hidden_size", 200_000_000),
    ] {
        for (folder, arguments) in [(&drawn, &scored[..]), (&shape, &trained[..])] {
            let before = written(folder, key, value);
            let output = limited(arguments);
            assert_eq!(output.status.code(), Some(5), "{key} = {value}: {}", said(&output));
            assert!(said(&output).contains("config"), "{key}: {}", said(&output));
            written(folder, key, before);
        }
    }
}
