//! Models of a run by name, a suite that trains nothing, and prompts for other systems.

#![allow(clippy::unwrap_used)]

mod place;

use place::{Place, good, refused};
use serde_json::Value;

/// The log-probabilities of the place's rows.
fn scores(place: &Place, model: &[&str]) -> Vec<Value> {
    let text = good(place.karat(&[&["score", "--input", "rows.jsonl"], model].concat()));
    text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["logprobs"].clone()).collect()
}

#[test]
fn a_run_and_a_name_lead_to_the_model_that_was_measured() {
    let place = Place::new();
    let text = place.karat(&["run", "my-experiment.toml"]).output().unwrap();
    assert!(text.status.success() && place::said(&text).contains("runs/mine:lora"), "{}", place::said(&text));
    let link = place.root.join("runs/mine/models/lora").canonicalize().unwrap();
    assert!(link.join("adapter_config.json").is_file(), "{}", link.display());
    let path = link.to_str().unwrap();
    let by_path = scores(&place, &["--model", "base", "--adapter", path]);
    for named in ["mine:lora", "runs/mine:lora", "./runs/mine:lora", "runs/mine/models/lora"] {
        assert_eq!(scores(&place, &["--model", named]), by_path, "{named}");
    }
    assert_eq!(scores(&place, &["--model", "mine:base", "--adapter", "mine:lora"]), by_path);
    assert_eq!(scores(&place, &["--model", "mine:base"]), scores(&place, &["--model", "base"]));
    good(place.karat(&["merge", "--model", "mine:lora", "--out", "merged"]));
    assert_eq!(scores(&place, &["--model", "merged"]).len(), 1);
    refused(place.karat(&["score", "--model", "mine:lroa", "--input", "rows.jsonl"]), 2, "did you mean lora?");
    refused(place.karat(&["score", "--model", "other:lora", "--input", "rows.jsonl"]), 2, "no such folder");
    // A run that no longer trains it has it no more, and the run's folder may still be made anew.
    let without = ["run", "my-experiment.toml", "--set", "train.lora=false"];
    good(place.karat(&without));
    refused(place.karat(&["score", "--model", "mine:lora", "--input", "rows.jsonl"]), 2, "it has base");
    good(place.karat(&[&without[..], &["--fresh"]].concat()));
    assert!(place.root.join("base/config.json").is_file());
}

#[test]
fn held_out_items_alone_are_enough_where_nothing_is_trained() {
    let place = Place::new();
    let suite = "name = \"alone\"\n[data]\nheldout = \"items.jsonl\"\n[model]\nbase = \"base\"\n[stats]\nresamples = 100\n\
        [eval]\nmax_new_tokens = 2\nmetrics = [\"nll\", \"rougeL\"]\n";
    place.put("alone.toml", suite);
    let data: Value = serde_json::from_str(&good(place.karat(&["--json", "data", "alone.toml"]))).unwrap();
    assert_eq!((&data["evaluated_items"], &data["split_rule"]["kind"]), (&12.into(), &"heldout-alone".into()));
    let report: Value = serde_json::from_str(&good(place.karat(&["--json", "run", "alone.toml"]))).unwrap();
    assert_eq!(report["report"]["models"].as_array().map(Vec::len), Some(1), "{report}");
    place.put("trains.toml", &format!("{suite}[train.lora]\nr = 2\n"));
    refused(place.karat(&["data", "trains.toml"]), 2, "give `train` too");
}

#[test]
fn prompts_are_written_for_any_other_system_to_answer_and_its_texts_are_measured() {
    let place = Place::new();
    good(place.karat(&["data", "my-experiment.toml", "--set", "eval.items=0", "--prompts", "prompts.jsonl"]));
    let text = std::fs::read_to_string(place.root.join("prompts.jsonl")).unwrap();
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 2, "two of twelve items are held out at 9:1: {text}");
    let row = &rows[0];
    let asked = row["messages"][0]["content"].as_str().unwrap();
    assert!(asked.starts_with('q') && row["prompt"].as_str().unwrap().contains(asked), "{row}");
    // The ids are those that a model of the run is asked.
    let text = serde_json::json!({"id": "a", "text": row["prompt"]});
    place.put("rows.jsonl", &format!("{text}\n"));
    let scored = good(place.karat(&["score", "--model", "base", "--input", "rows.jsonl"]));
    let scored: Value = serde_json::from_str(scored.lines().next().unwrap()).unwrap();
    // The first token has no prefix and no score.
    let ids = row["ids"].as_array().map(Vec::len);
    assert_eq!(scored["tokens"].as_u64().map(|n| n as usize + 1), ids, "{scored}");
    let answer = serde_json::json!({"id": row["id"], "candidate": "a text of another system"});
    place.put("answers.jsonl", &format!("{answer}\n"));
    let eval =
        ["eval", "my-experiment.toml", "--set", "eval.items=0", "--predictions", "other=answers.jsonl", "--out", "o"];
    good(place.karat(&eval));
}

#[test]
fn the_place_of_a_report_moves_no_terminal_whatever_its_name() {
    let place = Place::new();
    let text = good(place.karat(&["run", "my-experiment.toml", "--out", "\u{1b}[31m\n::error::x"]));
    assert!(text.contains("report: ") && !text.contains('\u{1b}') && !text.contains("\n::error"), "{text}");
}
