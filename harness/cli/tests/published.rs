//! The published experiments, carried out to the end as they stand: a hub on this machine has a small
//! model under the name of the large one, and the published validation rows as the data set.
//!
//! The rows lie outside the repository (`shared/data`, found through `KARAT_SHARED` or beside a folder
//! above this crate); where they are absent the tests say so and pass.
#![cfg(feature = "hub")]
#![allow(clippy::unwrap_used)]

#[path = "../../hub/tests/mock/mod.rs"]
mod mock;
mod place;

use std::path::PathBuf;
use std::process::Command;

use mock::MockHub;
use place::{Place, good, repository};
use serde_json::{Value, json};

fn rows() -> Option<Vec<u8>> {
    let given = std::env::var_os("KARAT_SHARED").map(PathBuf::from);
    let above = repository().ancestors().map(|above| above.join("shared")).find(|shared| shared.is_dir());
    let file = given.or(above).map(|shared| shared.join("data/medical-r1/val.jsonl")).filter(|file| file.is_file());
    if file.is_none() {
        println!("skipped: no shared/data/medical-r1/val.jsonl beside a folder above this crate; set KARAT_SHARED");
    }
    file.map(|file| std::fs::read(file).unwrap())
}

struct Published {
    place: Place,
    hub: MockHub,
}

impl Published {
    /// The hub has the model under `id`, with as many positions as the recipe's longest row.
    fn new(id: &str, rows: &[u8]) -> Published {
        let published = Published { place: Place::new(), hub: MockHub::start() };
        let folder = repository().join("suites/medical-r1/base");
        let mut files: Vec<(String, Vec<u8>)> = Vec::new();
        for name in
            ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
        {
            let bytes = std::fs::read(folder.join(name)).unwrap();
            let bytes = match name {
                "config.json" => {
                    let mut config: Value = serde_json::from_slice(&bytes).unwrap();
                    config["max_position_embeddings"] = 40960.into();
                    config.to_string().into_bytes()
                }
                // As Qwen3's: it samples, which the suites override.
                "generation_config.json" => {
                    let mut config: Value = serde_json::from_slice(&bytes).unwrap();
                    config["do_sample"] = true.into();
                    config["temperature"] = json!(0.6);
                    config.to_string().into_bytes()
                }
                _ => bytes,
            };
            files.push((name.into(), bytes));
        }
        let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
        published.hub.push(&format!("models/{id}"), "master", &files);
        published.hub.push(
            "datasets/krisfu/delicate_medical_r1_data",
            "master",
            &[("README.md", b"# rows\n"), ("r1_data_example.jsonl", rows)],
        );
        published
    }

    fn karat(&self, args: &[&str]) -> Command {
        let mut command = self.place.karat(args);
        command.env("MODELSCOPE_ENDPOINT", &self.hub.url).env("MODELSCOPE_CACHE", self.place.root.join("ms"));
        command.env_remove("MODELSCOPE_API_TOKEN").env_remove("HTTP_PROXY").env_remove("http_proxy");
        command
    }
}

/// All rows at their full length in bf16 are minutes of a build without optimisation: the test with few
/// rows has those.
const SHORT: [&str; 2] = ["data.max_length=400", "model.dtype=f32"];
/// As many of the rows as there are.
const ALL: usize = usize::MAX;

/// Runs a suite over the first so many rows with a few steps and items, and gives its report.
fn carried_out(suite: &str, id: &str, first: usize, more: &[&str]) -> Option<(Published, Value)> {
    let rows: Vec<u8> = rows()?.split_inclusive(|byte| *byte == b'\n').take(first).flatten().copied().collect();
    let published = Published::new(id, &rows);
    let suite = repository().join("suites").join(suite).join("suite.toml");
    let few = ["train.max_steps=2", "eval.items=2", "eval.max_new_tokens=16", "stats.resamples=200"];
    let mut args = vec!["--json", "run", suite.to_str().unwrap(), "--out", "out"];
    args.extend(few.iter().chain(more).flat_map(|set| ["--set", set]));
    let told = good(published.karat(&args));
    let report = serde_json::from_str::<Value>(&told).unwrap()["report"].take();
    let names: Vec<&str> = report["models"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["base", "lora", "full"]);
    assert_eq!(report["decoding"]["generate"]["temperature"], 0.0, "the scripts decode greedily");
    let requests = published.hub.take_requests();
    assert!(!requests.is_empty());
    // What was downloaded is there: nothing is asked of the hub again.
    let mut offline = vec!["--offline"];
    offline.extend(&args);
    good(published.karat(&offline));
    assert_eq!(published.hub.take_requests(), Vec::<String>::new());
    published.hub.was_respected();
    // Beside Karat's own, the table that the scripts print.
    let table = good(published.karat(&["report", "out", "--format", "seed-compat"]));
    assert!(table.contains("模型对比结果"), "{table}");
    Some((published, report))
}

#[test]
#[ignore = "takes minutes in a build without optimisation: cargo test --release --test published -- --ignored"]
fn the_published_experiment_on_the_0_6b_model_runs_as_it_stands() {
    let Some((_, report)) = carried_out("qwen3-medical-0.6b", "Qwen/Qwen3-0.6B", ALL, &SHORT) else { return };
    // int(241 * 0.9) rows train, the others are held out and give the loss.
    assert_eq!(
        (report["data"]["splits"]["train"].as_u64(), report["data"]["splits"]["heldout"].as_u64()),
        (Some(216), Some(25))
    );
    assert_eq!(report["data"]["split_rule"]["shares"], "9:1");
}

#[test]
#[ignore = "takes minutes in a build without optimisation: cargo test --release --test published -- --ignored"]
fn the_published_experiment_on_the_1_7b_model_runs_as_it_stands() {
    let Some((_, report)) = carried_out("qwen3-medical-1.7b", "Qwen/Qwen3-1.7B", 12, &[]) else { return };
    assert_eq!(report["data"]["split_rule"]["seed"], 42);
    assert_eq!(report["decoding"]["max_length"], 2048);
}

#[test]
#[ignore = "takes minutes in a build without optimisation: cargo test --release --test published -- --ignored"]
fn the_published_experiment_split_in_three_measures_the_reasoning_apart() {
    let Some((_, report)) = carried_out("qwen3-medical-0.6b-split-811", "Qwen/Qwen3-0.6B", ALL, &SHORT) else { return };
    let splits = &report["data"]["splits"];
    assert_eq!(
        ["train", "validation", "heldout"].map(|part| splits[part].as_u64().unwrap()),
        [192, 24, 25],
        "int(n * 0.8) and int(n * 0.9)"
    );
    let metrics: Vec<&str> =
        report["metrics"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert!(
        ["think_key_points", "think_key_points_precision", "think_rougeL"].iter().all(|name| metrics.contains(name))
    );
}
