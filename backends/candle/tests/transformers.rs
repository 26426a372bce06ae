//! Against numbers that transformers and peft made: scores, texts and training curves, within the
//! tolerances of the native backend. Those of `shared/reference` are skipped, with a reason, where
//! they are absent.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "../../model/tests/scenarios/mod.rs"]
mod scenarios;
mod support;

use karat_backend::*;
use support::small_runs::Rows;
use support::{open, small_runs, train};

#[test]
fn log_probabilities_and_greedy_texts_match_transformers() {
    let folder = reference_or_skip!();
    scenarios::prompts_score(&folder, open);
    scenarios::prompts_are_continued(&folder, open);
}

fn trained(open: &OpenConfig, plan: &TrainPlan, rows: &Rows) -> scenarios::Trained {
    train(open, plan, rows, &Rows::default(), |_| false)
}

#[test]
fn full_training_follows_the_curve_of_transformers() {
    scenarios::full_curve_matches(&reference_or_skip!(), trained);
}

#[test]
fn lora_training_follows_the_curve_of_peft() {
    scenarios::lora_curve_matches(&reference_or_skip!(), trained);
}

#[test]
fn every_family_and_variant_trains_as_transformers_and_peft_do() {
    let references = scenarios::references();
    let rows = scenarios::draw_rows(&references);
    let (mut compared, mut refused) = (0, 0);
    for scenario in references["scenarios"].as_array().unwrap() {
        let (name, dir) = (&scenario["name"], tempfile::tempdir().unwrap());
        let plan = scenarios::prepare(scenario, &references, dir.path());
        let (done, events) = train(&OpenConfig::new(dir.path()), &plan, &rows, &rows, |_| false);
        if matches!(&plan.method, Method::Lora(lora) if lora.use_dora) {
            let error = done.unwrap_err();
            assert!(error.kind == BackendErrorKind::Unsupported && error.message.contains("native"), "{name}: {error}");
            refused += 1;
            continue;
        }
        scenarios::compare(scenario, &done.unwrap(), &events);
        compared += 1;
    }
    assert!(compared > 10 && refused > 0, "{compared} compared, {refused} refused");
}

#[test]
fn stretched_rotary_embeddings_and_a_head_of_its_own_score_as_in_transformers() {
    scenarios::drawn_models_score(open);
}
