//! `karat export` as its users have it.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_path_buf()
}

fn karat(args: &[String]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_karat")).args(args).current_dir(repository()).output().unwrap()
}

#[test]
fn export_writes_a_folder_whole_or_not_at_all_and_names_no_backend() {
    let folder = tempfile::tempdir().unwrap();
    let (base, out) = (repository().join("suites/medical-r1/base"), folder.path().join("onnx"));
    let place = |path: &Path| path.to_str().unwrap().to_string();
    let export = |more: &[&str]| {
        let fixed = ["export", "--json", "--model", &place(&base), "--out", &place(&out)].map(String::from);
        karat(&fixed.into_iter().chain(more.iter().map(|s| s.to_string())).collect::<Vec<_>>())
    };
    for (more, code, word) in [
        (&["--dtype", "int3"][..], 2, "possible values: f32, bf16, f16, int8, int4"),
        (&["--backend", "native"], 5, "exports no models"),
        (&["--adapter", "/no/such/folder"], 2, "/no/such/folder"),
        (&["--adapter", &place(&base)], 2, "adapter_config.json"),
    ] {
        let output = export(more);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{more:?}: {said}");
        assert!(said.contains(word), "{more:?}: {said}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "{more:?}");
    }
    let object = |output: Output| -> Value {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let first = object(export(&["--dtype", "int4"]));
    assert_eq!((first["dtype"].as_str(), first["reused"].as_bool()), (Some("int4"), Some(false)));
    assert_eq!(first["parameters"], 3_665_088);
    let data = std::fs::metadata(out.join("model.onnx.data")).unwrap().len();
    assert_eq!(first["files"]["model.onnx.data"], data);
    // Four bits a weight of the layers, eight of the table: far below the two bytes of the
    // checkpoint.
    assert!(data < 3_665_088 * 3 / 2, "{data}");
    assert_eq!(object(export(&["--dtype", "int4"]))["reused"], true);
    let other = export(&[]);
    assert!(String::from_utf8_lossy(&other.stderr).contains("already holds the export of another"));
    assert_eq!(other.status.code(), Some(2));
}

#[test]
fn an_export_merge_or_import_into_what_is_there_is_a_wrong_path_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let place = |path: &Path| path.to_str().unwrap().to_string();
    std::fs::create_dir(at("mine")).unwrap();
    std::fs::write(at("mine/notes.txt"), "mine").unwrap();
    std::fs::write(at("file"), "mine").unwrap();
    let base = repository().join("suites/medical-r1/base");
    let gguf = at("none.gguf");
    std::fs::write(&gguf, "").unwrap();
    for out in ["mine", "file", "file/below"] {
        for command in [
            vec!["export", "--model", base.to_str().unwrap()],
            vec!["merge", "--model", base.to_str().unwrap(), "--adapter", base.to_str().unwrap()],
            vec!["import", "--gguf", gguf.to_str().unwrap()],
        ] {
            let mut args: Vec<String> = command.iter().map(ToString::to_string).collect();
            args.extend(["--out".into(), place(&at(out))]);
            let output = karat(&args);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
            assert!(said.contains("nothing was written") && said.contains("new folder"), "{args:?}: {said}");
        }
    }
    let names = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    assert_eq!(names, ["file", "mine", "none.gguf"]);
    assert_eq!(std::fs::read_to_string(at("mine/notes.txt")).unwrap(), "mine");
    assert_eq!(std::fs::read_dir(at("mine")).unwrap().count(), 1);
}

/// Never the CPU without a word: CUDA that the library does not have, or that this machine does not
/// have, is an error that says what is missing and what to do.
#[test]
fn cuda_that_is_not_there_is_one_error() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("rows.jsonl");
    std::fs::write(&input, "{\"id\": 1, \"ids\": [1, 2, 3]}\n").unwrap();
    let (base, input) = (repository().join("suites/medical-r1/base"), input.to_str().unwrap().to_string());
    let ask = |command: &str, device: &str, library: &Path| {
        let places = ["--model", base.to_str().unwrap(), "--input", &input, "--device", device];
        Command::new(env!("CARGO_BIN_EXE_karat"))
            .args([command, "--json", "--backend", "onnxruntime"])
            .args(places)
            .env("KARAT_ONNXRUNTIME", library)
            .current_dir(repository())
            .output()
            .unwrap()
    };
    let refused = |command: &str, device: &str, library: &Path, words: &[&str]| {
        let output = ask(command, device, library);
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(5), "{command} {device}: {said}");
        for word in words {
            assert!(said.contains(word), "{command} {device} does not say {word:?}: {said}");
        }
    };
    let doctor = karat(&["doctor".to_string(), "--json".to_string()]);
    let told: Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let facts = &told["backends"].as_array().unwrap().iter().find(|b| b["name"] == "onnxruntime").unwrap()["facts"];
    let Some(library) = facts["library"].as_str().map(PathBuf::from) else {
        println!("skipped: there is no ONNX Runtime library");
        return;
    };
    let remedy = "doctor --fix --device cuda";
    if !facts["providers"].as_str().unwrap().contains("CUDA") {
        for (command, device, words) in [
            ("score", "cuda:0", &["cuda:0 was asked for", "has no CUDA", "CPUExecutionProvider", remedy][..]),
            ("generate", "cuda:1", &["cuda:1 was asked for", remedy]),
            ("score", "tpu", &["cpu, cuda:N or auto", "tpu"]),
        ] {
            refused(command, device, &library, words);
        }
    }
    // The library with CUDA, on a machine that has fetched it and has no GPU.
    let version = library.file_name().unwrap().to_string_lossy().replace("libonnxruntime.so.", "");
    let with_cuda =
        library.ancestors().nth(2).unwrap().join(format!("{version}-cuda")).join(library.file_name().unwrap());
    let driver = Path::new("/dev/nvidiactl").exists();
    if !with_cuda.is_file() || driver {
        println!("skipped: {}", if driver { "there is a GPU" } else { "the library for CUDA was never fetched" });
        return;
    }
    refused(
        "score",
        "cuda:0",
        &with_cuda,
        &["cuda:0 was asked for", "libcuda.so.1 (the NVIDIA driver", "nvidia-cublas"],
    );
    // It serves the CPU.
    let output = ask("score", "cpu", &with_cuda);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
