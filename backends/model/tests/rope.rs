//! Every configuration of `references.json` gives what transformers gives, or is refused by its
//! name.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod drawn;

use karat_model::ModelConfig;
use serde_json::{Value, json};

/// What transformers takes and no backend computes: a part of the embedding would be another model,
/// or transformers reads none of what is written there.
const REFUSED: [&str; 5] = [
    "dynamic",
    "longrope",
    "part of the dimensions",
    "one for each kind of layer",
    "one for each kind of layer, in rope_scaling",
];

fn parse(config: &Value) -> Result<ModelConfig, karat_backend::BackendError> {
    ModelConfig::parse(config.as_object().unwrap().clone())
}

#[test]
fn every_rotary_embedding_is_that_of_transformers_or_refused_by_name() {
    let references = drawn::references();
    let (mut computed, mut refused) = (0, 0);
    for case in references["rope"].as_array().unwrap() {
        let (config, name) = (&case["config"], case["name"].as_str().unwrap());
        let name = format!("{name}, {}", config["model_type"]);
        let read = parse(config);
        let kept: Option<Vec<f64>> = serde_json::from_value(case["inv_freq"].clone()).unwrap();
        let known = kept.filter(|_| !REFUSED.contains(&case["name"].as_str().unwrap()));
        let Some(theirs) = known else {
            let error = read.expect_err(&name);
            let words = ["rope", "partial_rotary_factor", "head_dim", "factor", "null"];
            assert!(words.iter().any(|word| error.message.contains(word)), "{name}: {error}");
            refused += 1;
            continue;
        };
        let heads: [usize; 3] = serde_json::from_value(case["heads"].clone()).unwrap();
        if !heads[0].is_multiple_of(heads[1]) {
            assert!(read.expect_err(&name).message.contains("num_key_value_heads"), "{name}");
            continue;
        }
        let config = read.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!([config.heads.queries, config.heads.keys, config.heads.dim], heads, "{name}");
        let ours = config.rope.inverse_frequencies(config.heads.dim);
        assert_eq!(ours.len(), theirs.len(), "{name}");
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert!((f64::from(*ours) / theirs - 1.0).abs() < 2e-6, "{name}: {ours} {theirs}");
        }
        let factor = case["attention_factor"].as_f64().unwrap();
        assert!((f64::from(config.rope.attention_factor()) / factor - 1.0).abs() < 1e-6, "{name}");
        computed += 1;
    }
    assert!(computed > 100 && refused > 20, "{computed} {refused}");
}

#[test]
fn a_fact_that_is_stated_twice_or_read_by_nobody_is_said() {
    let base = json!({"model_type": "llama", "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 4, "vocab_size": 10});
    let said = |extra: Value| {
        let mut config = base.as_object().unwrap().clone();
        config.extend(extra.as_object().unwrap().clone());
        ModelConfig::parse(config).unwrap().warnings
    };
    let v5 = json!({"rope_type": "default", "rope_theta": 1e6});
    assert!(said(json!({"rope_theta": 1e6, "rope_scaling": null})).is_empty());
    assert!(said(json!({"rope_parameters": v5, "rope_theta": 1e6})).is_empty());
    for (extra, words) in [
        (
            json!({"rope_parameters": v5, "rope_scaling": {"type": "linear", "factor": 2.0}}),
            "rope_scaling counts alone",
        ),
        (json!({"rope_parameters": v5, "rope_theta": 1e4}), "beside and in rope_parameters"),
        (
            json!({"rope_theta": 1e6, "rope_scaling": {"factor": 4.0}}),
            "factor changes nothing for rope_type \"default\"",
        ),
    ] {
        let said = said(extra);
        assert!(said.len() == 1 && said[0].contains(words), "{said:?}");
    }
}
