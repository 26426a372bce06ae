//! A user's folder: a suite, a model and rows, and `karat` typed there.

#![allow(dead_code, reason = "each test uses some of it")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::json;

pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_path_buf()
}

/// A folder with a suite, a model and rows in it.
pub struct Place {
    _folder: tempfile::TempDir,
    pub root: PathBuf,
}

pub const SUITE: &str = "# notes of mine\nname = \"mine\"\n[data]\nfile = \"items.jsonl\"\n[model]\nbase = \"base\"\n\
    [train]\nmax_steps = 1\n[train.lora]\nr = 2\n[stats]\nresamples = 100\n[eval]\nitems = 1\nmax_new_tokens = 2\n\
    metrics = [\"nll\", \"bleu\", \"rougeL\"]\n";

impl Place {
    pub fn new() -> Place {
        Place::named("here")
    }

    /// The folder is called `name`.
    pub fn named(name: &str) -> Place {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap().join(name);
        std::fs::create_dir_all(root.join("base")).unwrap();
        for file in std::fs::read_dir(repository().join("suites/medical-r1/base")).unwrap().map(|e| e.unwrap().path()) {
            std::fs::copy(&file, root.join("base").join(file.file_name().unwrap())).unwrap();
        }
        let place = Place { _folder: folder, root };
        place.put("my-experiment.toml", SUITE);
        let item = |i: u32| json!({"id": format!("i{i}"), "question": format!("q{i}"), "answer": format!("a{i}")});
        place.put("items.jsonl", &(0..12).map(|i| item(i).to_string() + "\n").collect::<String>());
        let ids = |i: u32| json!({"input_ids": [1, 2, 3, 4 + i], "labels": [1, 2, 3, 4 + i]}).to_string() + "\n";
        place.put("ids.jsonl", &(0..40).map(ids).collect::<String>());
        place.put("rows.jsonl", "{\"id\": \"a\", \"text\": \"hello world\"}\n");
        place.put("pairs.jsonl", "{\"id\": \"i1\", \"reference\": \"a1\", \"candidate\": \"a1\"}\n");
        place
    }

    pub fn put(&self, name: &str, text: &str) {
        std::fs::write(self.root.join(name), text).unwrap();
    }

    /// `karat` with `args`, typed in the folder.
    pub fn karat(&self, args: &[&str]) -> Command {
        self.karat_in(&self.root, args)
    }

    pub fn karat_in(&self, folder: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_karat"));
        command.args(args).current_dir(folder).stdin(Stdio::null());
        for variable in ["GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "KARAT_BACKEND_PATH"] {
            command.env_remove(variable);
        }
        command
    }

    pub fn training(&self, out: &str) -> Command {
        let steps = ["--set", "max_steps=1000000", "--set", "save_every=500000", "--set", "eval_every=0"];
        self.karat(&[&["train", "--model", "base", "--data", "ids.jsonl", "--ids", "--out", out][..], &steps].concat())
    }
}

pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

pub fn good(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {:?}\n{}", output.status, said(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn refused(mut command: Command, code: i32, word: &str) -> String {
    let output = command.output().unwrap();
    let text = said(&output);
    assert_eq!(output.status.code(), Some(code), "{command:?}: {text}");
    assert!(text.contains(word), "{command:?}: {text}");
    text
}
