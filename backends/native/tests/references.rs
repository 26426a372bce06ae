//! Training of tiny models against numbers that transformers and peft made: every family, full,
//! LoRA, DoRA, patterns, modules trained whole, schedules, weight decay, dropout under the same
//! masks. `native_references.py` of the tools made them, drawing weights, adapters, rows and masks
//! by our rules a second time, in Python.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "../../model/tests/scenarios/mod.rs"]
mod scenarios;
mod small_runs;

use std::collections::BTreeSet;

use karat_backend::LoraConfig;
use karat_backend::*;
use karat_model::ModelConfig;
use karat_model::peft::{TargetModules, write_adapter_config};
use scenarios::{draw_model, draw_rows, drawn, references};
use serde_json::Value;
use small_runs::*;

#[test]
fn every_family_and_variant_trains_as_transformers_and_peft_do() {
    let references = references();
    let rows = draw_rows(&references);
    for scenario in references["scenarios"].as_array().unwrap() {
        let dir = tempfile::tempdir().unwrap();
        let plan = scenarios::prepare(scenario, &references, dir.path());
        let base = OpenConfig { threads: 2, ..OpenConfig::new(dir.path()) };
        let (done, events) = train(&base, &plan, &rows, &rows, |_| false);
        scenarios::compare(scenario, &done.unwrap(), &events);
    }
}

#[test]
fn stretched_rotary_embeddings_and_a_head_of_its_own_score_as_in_transformers() {
    scenarios::drawn_models_score(open);
}

#[test]
fn a_checkpoint_of_a_head_of_its_own_says_that_it_is_not_tied() {
    let references = drawn::references();
    let model = references["models"].as_array().unwrap().iter().find(|m| m["name"] == "a head of its own").unwrap();
    let dir = tempfile::tempdir().unwrap();
    drawn::write_model(dir.path(), model);
    let rows = draw_rows(&self::references());
    let plan = plan(Method::Full, vec![vec![vec![0]]], 1e-3, &dir.path().join("out"));
    let done = train(&OpenConfig::new(dir.path()), &plan, &rows, &Rows::default(), |_| false).0.unwrap();
    let written = read_json(done.last_checkpoint.join("config.json"));
    assert_eq!(written["tie_word_embeddings"], false);
    let tensors = tensors(&done.last_checkpoint.join("model.safetensors"));
    assert!(tensors["lm_head.weight"] != tensors["model.embed_tokens.weight"]);
    let session = open(&OpenConfig::new(&done.last_checkpoint));
    assert!(session.info().warnings.is_empty(), "{:?}", session.info().warnings);
}

#[test]
fn configurations_of_peft_are_read_and_ours_have_its_keys() {
    let references = references();
    let mut seen = 0;
    for scenario in references["scenarios"].as_array().unwrap().iter().filter(|s| !s["lora"].is_null()) {
        let (name, theirs) = (scenario["name"].as_str().unwrap(), &scenario["adapter_config"]);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("adapter_config.json"), theirs.to_string()).unwrap();
        let read = karat_backend::peft::read_adapter_config(dir.path()).unwrap();
        let asked: LoraConfig = serde_json::from_value(scenario["lora"].clone()).unwrap();
        // What PEFT resolves or reorders means the same modules.
        let config = &references["models"][scenario["model"].as_str().unwrap()];
        draw_model(dir.path(), config, 1);
        let model = ModelConfig::read(dir.path()).unwrap();
        assert_eq!(TargetModules::new(&model, &read).unwrap(), TargetModules::new(&model, &asked).unwrap(), "{name}");
        write_adapter_config(&asked, "base", dir.path()).unwrap();
        let ours = read_json(dir.path().join("adapter_config.json"));
        let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
        assert_eq!(keys(&ours), keys(theirs), "{name}");
        for key in
            ["r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "bias"]
        {
            assert_eq!(ours[key], theirs[key], "{name}: {key}");
        }
        seen += 1;
    }
    assert!(seen > 10);
}
