//! A GGUF file given as the model: run as it is by a backend that can, refused with a remedy by the
//! others.

#![allow(clippy::unwrap_used)]
#![cfg(unix)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    /// A folder with the file of the import's tests, and rows to score.
    fn new() -> Self {
        let place = Place { folder: tempfile::tempdir().unwrap() };
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/import/tiny.gguf");
        std::fs::copy(source, place.path("tiny.gguf")).unwrap();
        let rows = "{\"id\": \"a\", \"messages\": [{\"role\": \"user\", \"content\": \"It's 12 mg a day\"}]}\n\
            {\"id\": \"b\", \"ids\": [3, 1, 4, 1, 5, 9, 2, 6]}\n";
        std::fs::write(place.path("rows.jsonl"), rows).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn karat(&self, args: &[&str]) -> Output {
        let mut karat = Command::new(env!("CARGO_BIN_EXE_karat"));
        karat.args(args).current_dir(self.folder.path()).env("KARAT_CACHE", self.path("cache")).output().unwrap()
    }

    fn scores(&self, model: &str) -> Vec<Vec<f64>> {
        self.scores_by("candle", model).0
    }

    /// Scores, and what was said.
    fn scores_by(&self, backend: &str, model: &str) -> (Vec<Vec<f64>>, String) {
        let output = self.karat(&["score", "--model", model, "--input", "rows.jsonl", "--backend", backend]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        let text = String::from_utf8(output.stdout).unwrap();
        let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        (rows.map(|row| serde_json::from_value(row["token_logprobs"].clone()).unwrap()).collect(), said)
    }
}

#[test]
fn a_gguf_file_scores_as_the_folder_that_is_made_of_it_and_is_not_dequantized_to_disk() {
    let place = Place::new();
    let imported = place.karat(&["import", "--gguf", "tiny.gguf", "--out", "tiny"]);
    assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
    let (folder, file) = (place.scores("tiny"), place.scores("tiny.gguf"));
    assert_eq!(folder.iter().map(Vec::len).collect::<Vec<_>>(), file.iter().map(Vec::len).collect::<Vec<_>>());
    // Products of quantized blocks round activations to 8 bits, too.
    let worst = folder.concat().iter().zip(file.concat()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    println!("log-probabilities within {worst:.1e}");
    assert!(worst > 0.0 && worst < 0.1, "{worst}");

    let views: Vec<_> = std::fs::read_dir(place.path("cache/gguf")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(views.len(), 1);
    assert!(views[0].join("model.gguf").is_symlink() && !views[0].join("model.safetensors").exists());
    // The folder that holds the file means it too, and the view is the same one.
    std::fs::create_dir(place.path("models")).unwrap();
    std::fs::rename(place.path("tiny.gguf"), place.path("models/tiny.gguf")).unwrap();
    assert_eq!(place.scores("models"), file);
    let generate = ["generate", "--model", "models/tiny.gguf", "--input", "rows.jsonl", "--backend", "candle"];
    let output = place.karat(&[&generate[..], &["--max-new-tokens", "4"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 2);
}

#[test]
fn auto_is_the_backend_that_runs_what_is_given_and_says_so() {
    let place = Place::new();
    let imported = place.karat(&["import", "--gguf", "tiny.gguf", "--out", "tiny"]);
    assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
    let (file, said) = place.scores_by("auto", "tiny.gguf");
    assert_eq!(file, place.scores("tiny.gguf"));
    assert!(said.contains("backend auto is candle: native does not run a GGUF file as it is"), "{said}");
    let (folder, said) = place.scores_by("auto", "tiny");
    assert_eq!(folder, place.scores_by("native", "tiny").0);
    assert!(said.contains("backend auto is native, the fastest"), "{said}");
}

#[test]
fn a_backend_that_does_not_run_gguf_files_says_who_does_and_how_to_make_a_folder() {
    let place = Place::new();
    let output = place.karat(&["score", "--model", "tiny.gguf", "--input", "rows.jsonl", "--backend", "native"]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    for words in ["native does not run a GGUF file", "--backend candle", "karat import --gguf tiny.gguf"] {
        assert!(said.contains(words), "{said}");
    }
    std::fs::write(place.path("broken.gguf"), "GGUF").unwrap();
    let output = place.karat(&["score", "--model", "broken.gguf", "--input", "rows.jsonl", "--backend", "candle"]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("broken.gguf"), "{said}");
}
