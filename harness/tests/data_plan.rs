//! The order and the learning rates of a run follow the Hugging Face trainer's arithmetic.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use karat::backend::{AdamW, Method, TrainPlan};
use karat::data::examples::LabelledRows;
use karat::data::split::{PyRandom, SplitParts, split};
use karat::train::plan::{PlanOptions, fingerprint, order};
use karat::train::schedule::Schedule;
use proptest::prelude::*;
use serde_json::Value;

#[test]
fn learning_rates_are_those_of_transformers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/schedules.json");
    let vectors: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let cases = vectors["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 24);
    for case in cases {
        let schedule: Schedule = serde_json::from_value(case["schedule"].clone()).unwrap();
        let steps = case["steps"].as_u64().unwrap() as usize;
        let rates = schedule
            .learning_rates(case["peak"].as_f64().unwrap(), steps, case["warmup"].as_f64().unwrap(), 0.0)
            .unwrap();
        assert_eq!(rates.len(), steps);
        let every = if steps <= 20 { 1 } else { vectors["every"].as_u64().unwrap() as usize };
        let expected: Vec<f64> = serde_json::from_value(case["rates"].clone()).unwrap();
        let ours: Vec<f64> = rates.into_iter().step_by(every).collect();
        assert_eq!(ours.len(), expected.len());
        for (ours, expected) in ours.iter().zip(&expected) {
            assert!((ours - expected).abs() <= 1e-18, "{case}: {ours:e} against {expected:e}");
        }
    }
}

#[test]
fn a_negative_rate_is_refused() {
    assert!(Schedule::Linear.learning_rates(-1e-4, 10, 0.0, 0.0).is_err());
    assert!(Schedule::Linear.learning_rates(1e-4, 10, f64::NAN, 0.0).is_err());
}

#[test]
fn more_steps_than_anyone_can_wait_for_are_refused_before_they_are_laid_out() {
    let options = PlanOptions::default();
    for steps in [usize::MAX, 1 << 40, 1 << 26] {
        let error = order(9, &PlanOptions { max_steps: Some(steps), ..options.clone() }).unwrap_err();
        assert!(error.kind() == karat::ErrorKind::Usage && error.to_string().contains("micro-batches"), "{error}");
    }
    // What counts is how often a batch is computed, however it is asked for.
    for epochs in [1e9, 1e300] {
        assert!(order(1000, &PlanOptions { epochs, ..options.clone() }).is_err(), "{epochs}");
    }
    assert_eq!(order(9, &PlanOptions { max_steps: Some(1000), ..options }).unwrap().steps.len(), 1000);
}

#[test]
fn the_published_run_has_its_1082_steps() {
    // 241 validation rows of a 9:1 split and 541 updates an epoch fit 2,402 to 2,405 rows: 2,161 to
    // 2,164 to train on.
    for rows in 2402..=2405 {
        let parts = split(rows, 42, SplitParts::NINE_ONE);
        assert_eq!(parts.validation.len(), 241);
        assert_eq!(order(parts.train.len(), &PlanOptions::default()).unwrap().steps.len(), 1082);
    }
    assert_eq!(order(2165, &PlanOptions::default()).unwrap().steps.len(), 1084);
}

#[test]
fn the_last_update_of_an_epoch_takes_what_is_left() {
    let options = PlanOptions { batch_size: 2, accumulation: 2, epochs: 2.0, shuffle: false, ..PlanOptions::default() };
    let plan = order(7, &options).unwrap();
    let epoch: Vec<Vec<Vec<u32>>> = vec![vec![vec![0, 1], vec![2, 3]], vec![vec![4, 5], vec![6]]];
    assert_eq!(plan.steps, [epoch.clone(), epoch].concat());
    assert_eq!(plan.epochs, [0.5, 1.0, 1.5, 2.0]);

    let plan = order(5, &PlanOptions { batch_size: 1, accumulation: 4, ..options }).unwrap();
    assert_eq!(plan.steps[1], [[4]], "one micro-batch is left for the second step");
    assert_eq!(plan.epochs, [0.8, 1.0, 1.8, 2.0]);
}

#[test]
fn max_steps_repeats_the_data_and_cuts_an_epoch() {
    let options = PlanOptions { accumulation: 2, max_steps: Some(5), shuffle: false, ..PlanOptions::default() };
    let plan = order(4, &options).unwrap();
    assert_eq!(plan.epochs, [0.5, 1.0, 1.5, 2.0, 2.5]);
    let half = order(4, &PlanOptions { max_steps: None, epochs: 1.5, ..options }).unwrap();
    assert_eq!(half.epochs, [0.5, 1.0, 1.5]);
}

#[test]
fn each_epoch_is_pythons_shuffle_of_seed_plus_epoch() {
    let plan = order(10, &PlanOptions { accumulation: 10, seed: 7, ..PlanOptions::default() }).unwrap();
    for (epoch, step) in plan.steps.iter().enumerate() {
        let mut rows: Vec<u32> = (0..10).collect();
        PyRandom::new(7 + epoch as i128).shuffle(&mut rows);
        assert_eq!(step.concat(), rows);
    }
    assert_ne!(plan.steps[0], plan.steps[1]);
}

#[test]
fn senseless_options_are_refused() {
    let base = PlanOptions::default();
    for options in [
        PlanOptions { batch_size: 0, ..base.clone() },
        PlanOptions { accumulation: 0, ..base.clone() },
        PlanOptions { epochs: 0.0, ..base.clone() },
        PlanOptions { epochs: f64::NAN, ..base.clone() },
        PlanOptions { max_steps: Some(0), ..base.clone() },
    ] {
        assert_eq!(order(4, &options).unwrap_err().kind(), karat::ErrorKind::Usage, "{options:?}");
    }
    assert_eq!(order(0, &base).unwrap_err().kind(), karat::ErrorKind::Data);
}

proptest! {
    #[test]
    fn every_row_is_seen_once_in_each_epoch(rows in 1usize..200, batch in 1usize..9, accumulation in 1usize..9, seed: u64) {
        let options = PlanOptions { batch_size: batch, accumulation, epochs: 3.0, max_steps: None, seed, shuffle: true };
        let plan = order(rows, &options).unwrap();
        let batches = rows.div_ceil(batch);
        prop_assert_eq!(plan.steps.len(), 3 * batches.div_ceil(accumulation));
        prop_assert_eq!(*plan.epochs.last().unwrap(), 3.0);
        for epoch in plan.steps.chunks(batches.div_ceil(accumulation)) {
            let mut seen: Vec<u32> = epoch.concat().concat();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..rows as u32).collect::<Vec<_>>());
        }
    }
}

#[test]
fn the_fingerprint_covers_data_and_plan_but_no_paths() {
    let rows = |ids: &[u32], labels: &[i32]| {
        let mut rows = LabelledRows::default();
        rows.push(ids, labels).unwrap();
        rows
    };
    let order = order(1, &PlanOptions::default()).unwrap();
    let plan = TrainPlan {
        method: Method::Full,
        learning_rates: vec![1e-4; order.steps.len()],
        steps: order.steps,
        epochs: order.epochs,
        optimizer: AdamW::default(),
        max_grad_norm: 1.0,
        eval_every: 0,
        eval_batch_size: 1,
        save_every: 0,
        save_total_limit: 0,
        early_stopping: None,
        recompute: false,
        output_dir: PathBuf::from("a"),
        resume_from: None,
        init_adapter: None,
        seed: 1,
        fingerprint: String::new(),
    };
    let (train, eval) = (rows(&[1, 2, 3], &[-100, 2, 3]), rows(&[4, 5], &[-100, 5]));
    let print = fingerprint(train.view(), eval.view(), &plan);
    assert_eq!(print.len(), 64);
    let moved =
        TrainPlan { output_dir: "b".into(), resume_from: Some("c".into()), fingerprint: print.clone(), ..plan.clone() };
    assert_eq!(fingerprint(train.view(), eval.view(), &moved), print);
    assert_ne!(fingerprint(eval.view(), train.view(), &plan), print);
    assert_ne!(fingerprint(rows(&[1, 2, 3], &[-100, -100, 3]).view(), eval.view(), &plan), print);
    assert_ne!(fingerprint(train.view(), eval.view(), &TrainPlan { seed: 2, ..plan.clone() }), print);
    let slower = TrainPlan { learning_rates: vec![1e-5; plan.steps.len()], ..plan };
    assert_ne!(fingerprint(train.view(), eval.view(), &slower), print);
}
