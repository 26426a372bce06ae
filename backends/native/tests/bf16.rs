//! Computing in bf16: the same to the bit where f32 is, and near f32 where it cannot be the same.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod small_runs;

use karat_backend::*;
use small_runs::*;

fn rows() -> Rows {
    small_rows(&[12, 7, 20, 9, 15, 5])
}

fn steps(method: Method, out: &std::path::Path) -> TrainPlan {
    let steps = (0..6u32).map(|s| vec![vec![s % 5, (s + 1) % 5], vec![(s + 2) % 5, 5]]).collect();
    plan(method, steps, 1e-2, out)
}

#[test]
fn threads_and_recomputing_do_not_show_in_a_single_bit() {
    for family in ["qwen3", "qwen2", "llama"] {
        for method in [Method::Full, lora(0.2), lora(0.0)] {
            let dir = tempfile::tempdir().unwrap();
            let base = OpenConfig { dtype: Dtype::Bf16, ..small_model(dir.path(), family) };
            let run = |name: &str, threads: usize, recompute: bool| {
                let open = OpenConfig { threads, ..base.clone() };
                let plan = TrainPlan { recompute, ..steps(method.clone(), &dir.path().join(name)) };
                let (summary, events) = train(&open, &plan, &rows(), &rows(), |_| false);
                let folder = summary.unwrap().last_checkpoint;
                let file = if method == Method::Full { "model.safetensors" } else { "adapter_model.safetensors" };
                (std::fs::read(folder.join(file)).unwrap(), step_events(&events))
            };
            let one = run("one", 1, false);
            for (name, threads, recompute) in [("two", 2, false), ("again", 2, true), ("five", 5, true)] {
                assert!(one == run(name, threads, recompute), "{family} {name}");
            }
        }
    }
}

#[test]
fn a_score_does_not_depend_on_the_batch_nor_on_threads() {
    let dir = tempfile::tempdir().unwrap();
    let base = OpenConfig { dtype: Dtype::Bf16, ..small_model(dir.path(), "qwen3") };
    let rows = rows();
    let all = open(&base).evaluator().unwrap().score(rows.tokens.view(), &mut ignore).unwrap();
    let mut alone = Scores::default();
    let mut session = open(&OpenConfig { threads: 1, ..base });
    for row in rows.tokens.view().iter() {
        let one: Tokens = [row].into_iter().collect();
        let scores = session.evaluator().unwrap().score(one.view(), &mut ignore).unwrap();
        alone.logprobs.extend(scores.logprobs);
        alone.greedy.extend(scores.greedy);
    }
    assert_eq!(all, alone);
}

#[test]
fn a_training_curve_stays_near_that_of_f32_and_is_not_the_same() {
    for family in ["qwen3", "qwen2", "llama"] {
        for method in [Method::Full, lora(0.0)] {
            let dir = tempfile::tempdir().unwrap();
            let base = small_model(dir.path(), family);
            let run = |dtype: Dtype| {
                let plan = TrainPlan {
                    learning_rates: vec![1e-3; 6],
                    ..steps(method.clone(), &dir.path().join(dtype.to_string()))
                };
                let open = OpenConfig { dtype, ..base.clone() };
                let (summary, events) = train(&open, &plan, &rows(), &Rows::default(), |_| false);
                summary.unwrap();
                step_events(&events)
            };
            let (wide, narrow) = (run(Dtype::F32), run(Dtype::Bf16));
            assert_ne!(wide, narrow);
            for (a, b) in wide.iter().zip(&narrow) {
                // An operand errs by at most 2^-9 of itself; the errors of a product's terms have
                // random signs, and two layers with a head after them add up to a few such errors.
                assert!((a.loss / b.loss - 1.0).abs() < 4.0 / 512.0, "{family}: {} {}", a.loss, b.loss);
                assert!((a.grad_norm / b.grad_norm - 1.0).abs() < 0.05, "{family}: {} {}", a.grad_norm, b.grad_norm);
            }
        }
    }
}

#[test]
fn a_session_says_what_it_computes_in() {
    let dir = tempfile::tempdir().unwrap();
    let base = small_model(dir.path(), "qwen3");
    let info = |dtype: Dtype| open(&OpenConfig { dtype, ..base.clone() }).info();
    let (wide, narrow) = (info(Dtype::F32), info(Dtype::Bf16));
    assert_eq!((wide.dtype, narrow.dtype), (Dtype::F32, Dtype::Bf16));
    assert!(wide.kernels[0].starts_with("matmul: f32"), "{:?}", wide.kernels);
    assert!(narrow.kernels[0].starts_with("matmul: bf16"), "{:?}", narrow.kernels);
}
