//! Scoring and generation on tiny random models, against a second implementation and against
//! themselves.

#![allow(clippy::unwrap_used)]

#[path = "support/forward.rs"]
mod forward;
mod support;

use karat_backend::{BackendErrorKind, Event, Flow, GenerateConfig, Session, StopReason, Tokens};
use safetensors::tensor::Dtype;
use serde_json::json;
use support::*;

const LENGTHS: [usize; 7] = [9, 1, 40, 0, 2, 23, 40];

#[test]
fn every_family_head_and_element_type_agrees_with_a_second_implementation() {
    if !runtime_is_there() {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let rows = tiny_rows(&LENGTHS);
    for (family, tied, dtype) in [
        ("qwen3", true, Dtype::F32),
        ("qwen3", false, Dtype::BF16),
        ("qwen2", true, Dtype::F16),
        ("llama", false, Dtype::F32),
    ] {
        let model = tiny_model(family, tied);
        let config = tiny_config(family, tied);
        let mut weights = tiny_weights(&tiny_shapes(family, tied), 5);
        write_tensors(&model.path().join("model.safetensors"), &weights, dtype);
        let round = |v: f32| match dtype {
            Dtype::BF16 => half::bf16::from_f32(v).to_f32(),
            Dtype::F16 => half::f16::from_f32(v).to_f32(),
            _ => v,
        };
        weights.values_mut().for_each(|(_, values)| values.iter_mut().for_each(|v| *v = round(*v)));
        let mut session = open(model.path(), cache.path(), |_| {}).unwrap();
        let scores = score(&mut session, &rows);
        let expected: Vec<f64> = rows
            .iter()
            .filter(|r| r.len() > 1)
            .flat_map(|row| forward::log_probabilities(&config, &weights, row))
            .collect();
        assert_eq!(scores.logprobs.len(), expected.len());
        let worst = scores.logprobs.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        println!("{family}, tied {tied}, {dtype:?}: {worst:.2e}");
        assert!(worst < 2e-5, "{family}: {worst}");
    }
}

fn tiny_session(cache: &tempfile::TempDir, options: &[(&str, serde_json::Value)], threads: usize) -> Box<dyn Session> {
    let model = tiny_model("qwen3", true);
    open(model.path(), cache.path(), |config| {
        config.threads = threads;
        config.options.extend(options.iter().map(|(key, value)| (key.to_string(), value.clone())));
    })
    .unwrap()
}

#[test]
fn rows_longer_than_a_batch_score_the_same_in_stretches() {
    if !runtime_is_there() {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let rows = tiny_rows(&LENGTHS);
    let whole = score(&mut tiny_session(&cache, &[], 0), &rows);
    for positions in [7, 16, 39] {
        let parts = score(&mut tiny_session(&cache, &[("score_positions", json!(positions))], 0), &rows);
        assert_eq!(parts.greedy, whole.greedy);
        for (a, b) in parts.logprobs.iter().zip(&whole.logprobs) {
            assert!((a - b).abs() < 1e-5, "{positions}: {a} {b}");
        }
    }
}

#[test]
fn numbers_do_not_depend_on_the_number_of_threads() {
    if !runtime_is_there() {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let rows = tiny_rows(&[30, 64, 5, 100, 64]);
    let [one, two, five] = [1, 2, 5].map(|threads| score(&mut tiny_session(&cache, &[], threads), &rows));
    assert_eq!(one, two);
    assert_eq!(one, five);
}

#[test]
fn texts_do_not_depend_on_the_batch_greedy_or_sampled() {
    if !runtime_is_there() {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let mut session = tiny_session(&cache, &[], 0);
    let rows = tiny_rows(&[9, 1, 40, 3, 2, 23, 17, 5, 11]);
    // Stop ids make rows end at different times, so places are refilled and the cache is packed.
    let stops: Vec<u32> = (0..8).collect();
    for temperature in [0.0, 1.0] {
        let config = |batch_size| GenerateConfig {
            temperature,
            seed: 42,
            batch_size,
            top_k: 50,
            top_p: 0.95,
            ..GenerateConfig::greedy(40, stops.clone())
        };
        let alone = generate(&mut session, &rows, &config(1));
        for batch_size in [0, 2, 4, 100] {
            assert_eq!(generate(&mut session, &rows, &config(batch_size)), alone, "batch of {batch_size}");
        }
        let lengths: std::collections::BTreeSet<usize> = alone.iter().map(|c| c.ids.len()).collect();
        assert!(lengths.len() > 2, "rows should end at different times: {lengths:?}");
    }
}

#[test]
fn prompts_that_begin_alike_have_the_texts_they_have_alone() {
    if !runtime_is_there() {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let mut session = tiny_session(&cache, &[], 0);
    // One beginning for all, a prompt that is a part of the next one, one that is there twice, and
    // one that is other.
    let drawn = tiny_rows(&[60, 9, 1, 23]);
    let with = |tail: &[u32]| [&drawn[0], tail].concat();
    let rows =
        [with(&drawn[1]), drawn[0].clone(), with(&drawn[3][..1]), with(&drawn[3]), with(&drawn[3]), drawn[1].clone()];
    for temperature in [0.0, 1.0] {
        let config =
            |batch_size| GenerateConfig { temperature, seed: 5, batch_size, ..GenerateConfig::greedy(24, vec![3]) };
        // Alone, a prompt is run whole.
        let alone = generate(&mut session, &rows, &config(1));
        for batch_size in [2, 6] {
            assert_eq!(generate(&mut session, &rows, &config(batch_size)), alone, "batch of {batch_size}");
        }
    }
}

#[test]
fn a_seed_repeats_its_texts_and_another_gives_others() {
    if !runtime_is_there() {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let mut session = tiny_session(&cache, &[], 0);
    let rows = tiny_rows(&[4, 4, 6]);
    let mut texts = |seed| {
        generate(&mut session, &rows, &GenerateConfig { temperature: 1.0, seed, ..GenerateConfig::greedy(20, vec![]) })
    };
    assert_eq!(texts(1), texts(1));
    assert_ne!(texts(1), texts(2));
}

#[test]
fn what_the_cache_generates_is_what_scoring_finds_most_probable() {
    if !runtime_is_there() {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let mut session = tiny_session(&cache, &[], 0);
    let prompts = tiny_rows(&[9, 1, 40, 3]);
    let completions = generate(&mut session, &prompts, &GenerateConfig::greedy(50, vec![]));
    for (prompt, completion) in prompts.iter().zip(completions) {
        assert_eq!(completion.ids.len(), 50);
        let row: Vec<u32> = prompt.iter().chain(&completion.ids).copied().collect();
        let greedy = score(&mut session, &[row]).greedy;
        assert!(greedy[prompt.len() - 1..].iter().all(|&g| g));
    }
}

#[test]
fn rows_end_for_the_reason_they_give() {
    if !runtime_is_there() {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let mut session = tiny_session(&cache, &[("context", json!(32))], 0);
    assert_eq!(session.info().max_positions, 32);
    let rows = tiny_rows(&[30, 4, 32, CONTEXT + 9, 31]);
    let endings: Vec<(usize, StopReason)> = generate(&mut session, &rows, &GenerateConfig::greedy(6, vec![]))
        .into_iter()
        .map(|c| (c.ids.len(), c.stop))
        .collect();
    use StopReason::{Context, Length};
    assert_eq!(endings, [(2, Context), (6, Length), (0, Context), (0, Context), (1, Context)]);

    let free = generate(&mut session, &rows[1..2], &GenerateConfig::greedy(6, vec![]));
    let stop = free[0].ids[2];
    let ends = free[0].ids.iter().position(|&id| id == stop).unwrap();
    let stopped = generate(&mut session, &rows[1..2], &GenerateConfig::greedy(6, vec![stop]));
    assert_eq!((stopped[0].ids.as_slice(), stopped[0].stop), (&free[0].ids[..=ends], StopReason::Stop));
    let nothing = generate(&mut session, &rows[1..2], &GenerateConfig::greedy(0, vec![]));
    assert_eq!((nothing[0].ids.len(), nothing[0].stop), (0, Length));
}

#[test]
fn events_tell_every_completion_once_and_stop_ends_a_call() {
    if !runtime_is_there() {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let mut session = tiny_session(&cache, &[], 0);
    let tokens: Tokens = tiny_rows(&[9, 1, 40, 3, 7]).iter().collect();
    let config = GenerateConfig { batch_size: 2, ..GenerateConfig::greedy(5, vec![]) };
    let (mut told, mut steps) = (Vec::new(), 0);
    let mut sink = |event: Event| {
        match event {
            Event::Completion { row, completion } => told.push((row, completion)),
            Event::Progress { .. } => steps += 1,
            other => panic!("{other:?}"),
        }
        Flow::Continue
    };
    let completions = session.evaluator().unwrap().generate(tokens.view(), &config, &mut sink).unwrap();
    told.sort_by_key(|t| t.0);
    assert_eq!(told.into_iter().map(|t| t.1).collect::<Vec<_>>(), completions);
    assert!(steps >= 5 + 8, "a prompt or a step without progress: {steps}");

    let mut calls = 0;
    let mut stop_at_third = |_: Event| {
        calls += 1;
        if calls == 3 { Flow::Stop } else { Flow::Continue }
    };
    let error = session.evaluator().unwrap().generate(tokens.view(), &config, &mut stop_at_third).unwrap_err();
    assert_eq!((error.kind, calls), (BackendErrorKind::Cancelled, 3));
    let error = session.evaluator().unwrap().score(tokens.view(), &mut |_: Event| Flow::Stop).unwrap_err();
    assert_eq!(error.kind, BackendErrorKind::Cancelled);
    // The session goes on working.
    assert_eq!(generate(&mut session, &tiny_rows(&[9, 1, 40, 3, 7]), &config), completions);
}

#[test]
fn senseless_rows_and_settings_are_named() {
    if !runtime_is_there() {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let mut session = tiny_session(&cache, &[], 0);
    let greedy = GenerateConfig::greedy(5, vec![]);
    let hot = GenerateConfig { temperature: f64::NAN, ..greedy.clone() };
    let wide = GenerateConfig { top_p: 0.0, ..greedy.clone() };
    for (rows, config, expected) in [
        (vec![vec![3], vec![]], &greedy, "row 1 is an empty prompt"),
        (vec![vec![3, VOCAB as u32]], &greedy, "row 0 holds the id 97"),
        (vec![vec![3]], &hot, "temperature"),
        (vec![vec![3]], &wide, "top_p"),
    ] {
        let tokens: Tokens = rows.iter().collect();
        let mut go = |_: Event| Flow::Continue;
        let error = session.evaluator().unwrap().generate(tokens.view(), config, &mut go).unwrap_err();
        assert!(error.message.contains(expected), "{error}");
    }
    let long: Tokens = [vec![3], vec![3; CONTEXT + 1]].iter().collect();
    let error = session.evaluator().unwrap().score(long.view(), &mut |_: Event| Flow::Continue).unwrap_err();
    assert!(error.message.contains("row 1 has 129 tokens"), "{error}");
    let none = score(&mut session, &[vec![], vec![5]]);
    assert!(none.logprobs.is_empty() && none.greedy.is_empty());
}

/// The conditions of a captured CUDA graph, over the CPU's memory: static buffers, a mask as wide
/// as the cache, slots copied by the runtime.
#[test]
fn steps_of_fixed_shapes_and_addresses_find_what_moving_ones_do() {
    if !runtime_is_there() {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    // More rows than slots, so that slots are filled again; unequal ends, so that there are empty
    // slots.
    let prompts = tiny_rows(&[9, 3, 21, 1, 14, 2, 7]);
    for weights in ["f32", "f16", "int4"] {
        for slots in [1, 3, 7] {
            let found: Vec<_> = [false, true]
                .into_iter()
                .map(|fixed| {
                    let options = [("fixed_buffers", json!(fixed)), ("weights", json!(weights))];
                    let mut session = tiny_session(&cache, &options, 2);
                    let greedy = GenerateConfig { batch_size: slots, ..GenerateConfig::greedy(12, vec![5, 11]) };
                    let drawn = GenerateConfig { temperature: 1.0, ..greedy.clone() };
                    // Twice: buffers of an earlier call are gone.
                    let texts = [greedy.clone(), drawn, greedy].map(|c| generate(&mut session, &prompts, &c));
                    (texts, score(&mut session, &prompts))
                })
                .collect();
            assert_eq!(found[0], found[1], "{weights}, {slots} slots");
        }
    }
}
