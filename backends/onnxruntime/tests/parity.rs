//! The numbers of transformers and peft, met.

#![allow(clippy::unwrap_used)]

#[path = "../../model/tests/drawn/mod.rs"]
mod drawn;
mod support;

use std::path::{Path, PathBuf};

use karat_backend::{GenerateConfig, OpenConfig, StopReason};
use safetensors::SafeTensors;
use serde_json::json;
use support::*;

fn forward_agrees(model: &str, numbers_file: &str) {
    let Some(reference) = reference() else { return };
    folder_agrees(&reference.join(model), &reference.join(numbers_file));
}

fn folder_agrees(model: &Path, numbers_file: &Path) {
    if !runtime_is_there() {
        return;
    }
    for operators in ["standard", "karat"] {
        graph_agrees(model, numbers_file, operators);
    }
}

fn graph_agrees(model: &Path, numbers_file: &Path, operators: &str) {
    let cache = tempfile::tempdir().unwrap();
    let open_with = |threads: usize| {
        let change = |config: &mut OpenConfig| {
            config.threads = threads;
            config.options.insert("operators".into(), json!(operators));
        };
        open(model, cache.path(), change).unwrap()
    };
    let mut session = open_with(4);
    let expected = read_json(numbers_file);
    let prompts = expected["prompts"].as_array().unwrap();
    let rows: Vec<Vec<u32>> = prompts.iter().map(|p| ids(&p["input_ids"])).collect();

    // All four at once: a ragged batch.
    let scores = score(&mut session, &rows);
    let wanted: Vec<f64> = prompts.iter().flat_map(|p| numbers(&p["token_logprobs"])).collect();
    assert_eq!(scores.logprobs.len(), wanted.len());
    let worst = scores.logprobs.iter().zip(&wanted).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
    let count = wanted.len();
    println!("{} ({operators}): largest difference of {count} log-probabilities: {worst:.2e}", model.display());
    assert!(worst < 1e-4, "{worst}");

    // The same bits from one thread as from all, at a size where products are divided among them.
    let mut alone = open_with(1);
    assert!(score(&mut alone, &rows) == scores, "scores depend on the number of threads");

    let stop = read_json(&model.join("config.json"))["eos_token_id"].as_u64().unwrap() as u32;
    let completions = generate(&mut session, &rows, &GenerateConfig::greedy(64, vec![stop]));
    for (completion, prompt) in completions.iter().zip(prompts) {
        assert_eq!(completion.ids, ids(&prompt["greedy64_eos_stop"]));
        let ended = completion.ids.last() == Some(&stop);
        assert_eq!(completion.stop, if ended { StopReason::Stop } else { StopReason::Length });
    }
}

#[test]
fn log_probabilities_and_greedy_texts_of_a_plain_model_are_transformers() {
    forward_agrees("qwen3-tiny", "qwen3_tiny_forward.json");
}

#[test]
fn log_probabilities_and_greedy_texts_of_a_discriminating_model_are_transformers() {
    forward_agrees("qwen3-tiny-rand", "qwen3_tiny_rand_forward.json");
}

/// SmolLM2-135M-Instruct, imported from the GGUF file that `KARAT_SMOLLM2` names
/// (`.ci/fetch-smollm2` fetches it).
#[test]
fn log_probabilities_and_greedy_texts_of_a_real_llama_are_transformers() {
    let Some(reference) = reference() else { return };
    let Some(gguf) = std::env::var_os("KARAT_SMOLLM2").map(PathBuf::from) else {
        println!("skipped: KARAT_SMOLLM2 names no GGUF file; KARAT_SMOLLM2=\"$(.ci/fetch-smollm2)\" fetches it");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("smollm2");
    karat::import::import_gguf(&gguf, &model, karat::import::ImportOptions::default(), &mut |_, _| Ok(())).unwrap();
    folder_agrees(&model, &reference.join("smollm2_forward.json"));
}

#[test]
fn a_merged_adapter_gives_the_logits_of_pefts_merge() {
    let Some(reference) = reference() else { return };
    if !runtime_is_there() {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let mut merged = open(&reference.join("qwen3-tiny"), cache.path(), |c| {
        c.adapter = Some(reference.join("qwen3_tiny_lora_final"))
    })
    .unwrap();
    assert_eq!(merged.info().adapter_parameters, 4 * 8 * (192 + 128 + 128 + 192 + 3 * 192));
    let bytes = std::fs::read(reference.join("qwen3_tiny_lora_merged_logits.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let logits: Vec<f64> = stored
        .tensor("logits")
        .unwrap()
        .data()
        .chunks_exact(4)
        .map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())))
        .collect();
    let log_total = logits.iter().map(|x| x.exp()).sum::<f64>().ln();

    // The log-probability of a token after the prompt is its logit less the log of the sum.
    let prompts = read_json(&reference.join("qwen3_tiny_forward.json"));
    // The file does not name its prompt: these are the first 64 ids of the first one (and of the
    // first training item).
    let prompt = ids(&prompts["prompts"][0]["input_ids"])[..64].to_vec();
    let probes: Vec<u32> = (0..4096).step_by(41).collect();
    let rows: Vec<Vec<u32>> = probes.iter().map(|&t| prompt.iter().copied().chain([t]).collect()).collect();
    let of = |scores: karat_backend::Scores| -> Vec<f64> {
        scores.logprobs.chunks(prompt.len()).map(|row| f64::from(row[prompt.len() - 1])).collect()
    };
    let found = of(score(&mut merged, &rows));
    let worst = |found: &[f64]| {
        let differences = found.iter().zip(&probes).map(|(x, &t)| (x - (logits[t as usize] - log_total)).abs());
        differences.fold(0.0, f64::max)
    };
    println!("merged adapter: largest difference of {} log-probabilities: {:.2e}", found.len(), worst(&found));
    assert!(worst(&found) < 1e-4);

    // The base differs by far more, so the comparison can fail.
    let mut base = open(&reference.join("qwen3-tiny"), cache.path(), |_| {}).unwrap();
    assert!(worst(&of(score(&mut base, &rows))) > 1e-2);
}

#[test]
fn a_merged_adapter_equals_the_checkpoint_peft_merged() {
    let Some(reference) = reference() else { return };
    if !runtime_is_there() {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let expected = read_json(&reference.join("qwen3_tiny_forward.json"));
    let rows: Vec<Vec<u32>> = expected["prompts"].as_array().unwrap().iter().map(|p| ids(&p["input_ids"])).collect();
    let mut ours = open(&reference.join("qwen3-tiny"), cache.path(), |c| {
        c.adapter = Some(reference.join("qwen3_tiny_lora_final"))
    })
    .unwrap();
    let mut pefts = open(&reference.join("qwen3_tiny_lora_merged"), cache.path(), |_| {}).unwrap();
    let (ours, pefts) = (score(&mut ours, &rows), score(&mut pefts, &rows));
    for (a, b) in ours.logprobs.iter().zip(&pefts.logprobs) {
        assert!((a - b).abs() < 2e-5, "{a} {b}");
    }
}

#[test]
fn stretched_rotary_embeddings_and_a_head_of_its_own_score_as_in_transformers() {
    if !runtime_is_there() {
        return;
    }
    for model in drawn::references()["models"].as_array().unwrap() {
        let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        drawn::write_model(folder.path(), model);
        let (rows, wanted) = drawn::rows_and_logprobs(model);
        for operators in ["standard", "karat"] {
            let name = format!("{} ({operators})", model["name"]);
            let change = |config: &mut OpenConfig| drop(config.options.insert("operators".into(), json!(operators)));
            let mut session = open(folder.path(), cache.path(), change).unwrap();
            let scores = score(&mut session, &rows);
            assert_eq!(scores.logprobs.len(), wanted.len());
            let worst = scores.logprobs.iter().zip(&wanted).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
            println!("{name}: log-probabilities within {worst:.1e}");
            assert!(worst < 2e-5, "{name}: {worst}");
            let warnings = session.info().warnings;
            assert_eq!(warnings.len(), usize::from(model["name"] == "a head of its own"), "{name}: {warnings:?}");
        }
    }
}
