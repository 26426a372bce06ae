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
        (&["--dtype", "int3"][..], 5, "int3"),
        (&["--backend", "candle"], 5, "exports no models"),
        (&["--adapter", "/no/such/folder"], 6, "/no/such/folder"),
        (&["--adapter", &place(&base)], 5, "adapter_config.json"),
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
    // Four bits a weight of the layers, eight of the table: far below the two bytes of the checkpoint.
    assert!(data < 3_665_088 * 3 / 2, "{data}");
    assert_eq!(object(export(&["--dtype", "int4"]))["reused"], true);
    let other = export(&[]);
    assert!(String::from_utf8_lossy(&other.stderr).contains("already holds the export of another"));
}
