//! Properties of a training backend that comparisons rest on, on small random models.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod small_runs;

use std::collections::BTreeMap;
use std::path::Path;

use karat_backend::state::{RunState, TrainerState};
use karat_backend::*;
use karat_native::config::ModelConfig;
use karat_native::model::{Batch, Decoder};
use karat_native::session::NativeSession;
use karat_native::{adapter, tensor};
use small_runs::*;

/// Six steps of two micro-batches of two rows.
fn six_steps(method: Method, out: &Path) -> TrainPlan {
    let steps = (0..6u32).map(|s| vec![vec![s % 5, (s + 1) % 5], vec![(s + 2) % 5, 5]]).collect();
    TrainPlan { eval_every: 2, save_every: 2, ..plan(method, steps, 1e-2, out) }
}

fn rows() -> Rows {
    small_rows(&[12, 7, 20, 9, 15, 5])
}

fn eval_rows() -> Rows {
    small_rows(&[6, 30, 11, 8, 9, 10, 11, 12, 13, 14])
}

/// Every file of a folder.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

fn same_folder(a: &Path, b: &Path) {
    let (a, b) = (files(a), files(b));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    a.iter().for_each(|(name, bytes)| assert!(*bytes == b[name], "{name} differs"));
}

/// Everything; an adapter with dropout; magnitudes and whole modules beside one.
fn methods() -> [Method; 3] {
    let Method::Lora(plain) = lora(0.2) else { unreachable!() };
    let dora = LoraConfig {
        use_dora: true,
        use_rslora: true,
        modules_to_save: vec!["model.norm".into(), "v_proj".into()],
        rank_pattern: [("down_proj".to_owned(), 2)].into(),
        ..plain
    };
    [Method::Full, lora(0.2), Method::Lora(dora)]
}

#[test]
fn recomputing_activations_and_threads_do_not_show_in_a_single_bit() {
    for family in ["qwen3", "qwen2", "llama"] {
        for method in methods() {
            let dir = tempfile::tempdir().unwrap();
            let base = small_model(dir.path(), family);
            let run = |name: &str, threads: usize, recompute: bool| {
                let open = OpenConfig { threads, ..base.clone() };
                let plan = TrainPlan { recompute, ..six_steps(method.clone(), &dir.path().join(name)) };
                let (summary, events) = train(&open, &plan, &rows(), &eval_rows(), |_| false);
                (summary.unwrap().last_checkpoint, step_events(&events))
            };
            let (folder, steps) = run("one", 1, false);
            for (name, threads, recompute) in [("two", 2, false), ("again", 2, true), ("five", 5, true)] {
                let (other, other_steps) = run(name, threads, recompute);
                assert_eq!(steps, other_steps, "{family} {name}");
                same_folder(&folder, &other);
            }
        }
    }
}

#[test]
fn accumulating_micro_batches_equals_one_batch() {
    for method in methods() {
        let dir = tempfile::tempdir().unwrap();
        let base = small_model(dir.path(), "qwen3");
        let run = |name: &str, steps: Vec<Vec<Vec<u32>>>| {
            let plan = plan(method.clone(), steps, 1e-3, &dir.path().join(name));
            let (summary, events) = train(&base, &plan, &rows(), &Rows::default(), |_| false);
            (summary.unwrap(), step_events(&events))
        };
        let (one, one_steps) = run("one", vec![vec![vec![0, 1, 2, 3]], vec![vec![4, 5, 0, 1]], vec![vec![2, 3, 4, 5]]]);
        let (four, four_steps) = run(
            "four",
            vec![vec![vec![0], vec![1], vec![2], vec![3]], vec![vec![4, 5], vec![0, 1]], vec![vec![2], vec![3, 4, 5]]],
        );
        for (a, b) in one_steps.iter().zip(&four_steps) {
            assert!((a.loss - b.loss).abs() < 1e-6 * a.loss, "{} {}", a.loss, b.loss);
            assert!((a.grad_norm - b.grad_norm).abs() < 2e-6 * a.grad_norm, "{} {}", a.grad_norm, b.grad_norm);
            assert_eq!(a.tokens, b.tokens);
            assert!((b.micro_losses.iter().sum::<f64>() - b.loss).abs() < 1e-12);
        }
        assert_eq!(one.tokens, four.tokens);
    }
}

#[test]
fn resume_is_bitwise_equal_to_never_stopping() {
    for (family, method) in ["qwen3", "llama"].into_iter().flat_map(|family| methods().map(|method| (family, method))) {
        let dir = tempfile::tempdir().unwrap();
        let base = small_model(dir.path(), family);
        let whole_plan = six_steps(method.clone(), &dir.path().join("whole"));
        let (whole, whole_events) = train(&base, &whole_plan, &rows(), &eval_rows(), |_| false);
        let whole = whole.unwrap();
        // Stopped after any step, in the middle of an evaluation, and after a checkpoint.
        type Stops = fn(&Event, usize) -> bool;
        let at_step: Stops = |event, at| matches!(event, Event::Step(s) if s.step == at);
        let evaluating: Stops = |event, at| matches!(event, Event::Progress { done, .. } if *done == 8 && at == 2);
        let evaluated: Stops = |event, at| matches!(event, Event::Evaluation { step, .. } if *step == at);
        let saved: Stops = |event, at| matches!(event, Event::Checkpoint { step, .. } if *step == at);
        let cases =
            [(at_step, 1), (at_step, 2), (at_step, 3), (at_step, 6), (evaluating, 2), (evaluated, 4), (saved, 2)];
        for (i, (stops, at)) in cases.into_iter().enumerate() {
            let plan = TrainPlan { output_dir: dir.path().join(format!("cut-{i}")), ..whole_plan.clone() };
            let (result, events) = train(&base, &plan, &rows(), &eval_rows(), |event| stops(event, at));
            assert_eq!(result.unwrap_err().kind, BackendErrorKind::Cancelled, "case {i}");
            let done = step_events(&events).len();
            let from = plan.output_dir.join(format!("checkpoint-{done}"));
            let plan = TrainPlan { resume_from: Some(from), ..plan };
            let (resumed, more) = train(&base, &plan, &rows(), &eval_rows(), |_| false);
            let resumed = resumed.unwrap();
            let all: Vec<StepEvent> = step_events(&events).into_iter().chain(step_events(&more)).collect();
            assert_eq!(all, step_events(&whole_events), "case {i}");
            same_folder(&whole.last_checkpoint, &resumed.last_checkpoint);
            assert_eq!((resumed.steps, resumed.tokens), (whole.steps, whole.tokens));
            let name = |s: &TrainSummary| s.best_checkpoint.as_ref().unwrap().file_name().unwrap().to_owned();
            assert_eq!(name(&whole), name(&resumed));
        }
    }
}

#[test]
fn a_checkpoint_of_another_plan_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let base = small_model(dir.path(), "qwen3");
    let plan = six_steps(Method::Full, &dir.path().join("out"));
    let done = train(&base, &plan, &rows(), &Rows::default(), |_| false).0.unwrap();
    let other = TrainPlan { fingerprint: "other".into(), resume_from: Some(done.last_checkpoint), ..plan };
    let error = train(&base, &other, &rows(), &Rows::default(), |_| false).0.unwrap_err();
    assert!(error.message.contains("another run"), "{error}");
}

#[test]
fn a_trained_model_loads_again_with_the_same_numbers() {
    for (family, method) in
        ["qwen3", "qwen2", "llama"].into_iter().flat_map(|family| methods().map(|method| (family, method)))
    {
        let dir = tempfile::tempdir().unwrap();
        let base = small_model(dir.path(), family);
        let is_lora = method != Method::Full;
        let plan = plan(method, vec![vec![vec![0, 1, 2]], vec![vec![3, 4]]], 1e-2, &dir.path().join("out"));
        let mut session = open(&base);
        let (data, none) = (rows(), Rows::default());
        let before = session.evaluator().unwrap().score(data.tokens.view(), &mut ignore).unwrap();
        let done = session.trainer().unwrap().train(data.view(), none.view(), &plan, &mut ignore).unwrap();
        let trained = session.evaluator().unwrap().score(data.tokens.view(), &mut ignore).unwrap();
        assert_ne!(before, trained);
        let again = if is_lora {
            OpenConfig { adapter: Some(done.last_checkpoint.clone()), ..base.clone() }
        } else {
            OpenConfig { threads: 2, ..OpenConfig::new(&done.last_checkpoint) }
        };
        let loaded = open(&again).evaluator().unwrap().score(data.tokens.view(), &mut ignore).unwrap();
        assert_eq!(trained, loaded, "{family}");
        if !is_lora {
            let config = read_json(done.last_checkpoint.join("config.json"));
            assert_eq!(config["torch_dtype"], "float32");
            assert_eq!(config["a_key_of_the_future"], serde_json::json!([1, 2]));
        }
        let state = RunState::read(&done.last_checkpoint).unwrap();
        assert_eq!((state.step, state.tokens, &*state.backend), (2, done.tokens, "native"));
        let error = session.trainer().unwrap().train(data.view(), none.view(), &plan, &mut ignore).unwrap_err();
        assert!(error.message.contains("trained already"), "{error}");
    }
}

#[test]
fn evaluation_is_the_mean_over_all_labels_and_the_best_checkpoint_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let base = small_model(dir.path(), "qwen3");
    let mut plan = six_steps(Method::Full, &dir.path().join("out"));
    plan.learning_rates = vec![0.0, 1e-6, 0.5, 0.5, 0.5, 0.5];
    plan.save_total_limit = 1;
    let (done, events) = train(&base, &plan, &rows(), &eval_rows(), |_| false);
    let done = done.unwrap();
    let evaluations: Vec<(usize, f64, u64)> = events
        .iter()
        .filter_map(|e| match e {
            Event::Evaluation { step, loss, tokens, .. } => Some((*step, *loss, *tokens)),
            _ => None,
        })
        .collect();
    assert_eq!(evaluations.iter().map(|e| e.0).collect::<Vec<_>>(), [2, 4, 6]);
    assert_eq!(done.best_checkpoint, Some(plan.output_dir.join("checkpoint-2")));
    let mut left: Vec<String> =
        std::fs::read_dir(&plan.output_dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    assert_eq!(left, ["checkpoint-2", "checkpoint-6"]);
    let state = TrainerState::read(&done.last_checkpoint).unwrap();
    assert_eq!((state.best_global_step, state.best_metric), (Some(2), Some(evaluations[0].1)));
    assert_eq!(state.log_history.len(), 9);

    let data = eval_rows();
    let scores = open(&OpenConfig::new(plan.output_dir.join("checkpoint-2")))
        .evaluator()
        .unwrap()
        .score(data.tokens.view(), &mut ignore)
        .unwrap();
    let (mut sum, mut count, mut place) = (0f64, 0u64, 0);
    for row in 0..data.tokens.view().rows() {
        for label in &data.view().row_labels(row)[1..] {
            if *label != IGNORE {
                sum -= f64::from(scores.logprobs[place]);
                count += 1;
            }
            place += 1;
        }
    }
    assert_eq!(count, evaluations[0].2);
    assert!((sum / count as f64 - evaluations[0].1).abs() < 1e-12);
}

#[test]
fn a_score_does_not_depend_on_the_batch_nor_on_threads() {
    let dir = tempfile::tempdir().unwrap();
    for family in ["qwen3", "qwen2", "llama"] {
        let base = small_model(dir.path(), family);
        let all = eval_rows().tokens;
        let together = open(&base).evaluator().unwrap().score(all.view(), &mut ignore).unwrap();
        let mut alone = Scores::default();
        let mut session = open(&OpenConfig { threads: 1, ..base });
        for row in all.view().iter() {
            let one: Tokens = [row].into_iter().collect();
            let scores = session.evaluator().unwrap().score(one.view(), &mut ignore).unwrap();
            alone.logprobs.extend(scores.logprobs);
            alone.greedy.extend(scores.greedy);
        }
        assert_eq!(together, alone);
    }
}

#[test]
fn rows_of_no_or_one_token_have_no_scores() {
    let dir = tempfile::tempdir().unwrap();
    let base = small_model(dir.path(), "qwen3");
    let rows: Tokens = [&[][..], &[3], &[1, 2, 3], &[]].into_iter().collect();
    let scores = open(&base).evaluator().unwrap().score(rows.view(), &mut ignore).unwrap();
    assert_eq!(scores.logprobs.len(), 2);
}

#[test]
fn a_text_does_not_depend_on_how_rows_are_batched() {
    let dir = tempfile::tempdir().unwrap();
    let base = small_model(dir.path(), "qwen3");
    let prompts = eval_rows().tokens;
    for temperature in [0.0, 1.0] {
        let config =
            GenerateConfig { temperature, top_p: 0.9, top_k: 30, seed: 4, ..GenerateConfig::greedy(20, vec![7, 8]) };
        let run = |batch_size: usize, threads: usize| {
            let mut session = open(&OpenConfig { threads, ..base.clone() });
            let config = GenerateConfig { batch_size, ..config.clone() };
            let mut seen = BTreeMap::new();
            let mut sink = |event: Event| {
                if let Event::Completion { row, completion } = event {
                    assert!(seen.insert(row, completion).is_none());
                }
                Flow::Continue
            };
            let all = session.evaluator().unwrap().generate(prompts.view(), &config, &mut sink).unwrap();
            assert_eq!(seen.into_values().collect::<Vec<_>>(), all);
            all
        };
        let together = run(0, 2);
        assert_eq!(together, run(1, 1));
        assert_eq!(together, run(3, 3));
        assert!(together.iter().any(|c| c.stop == StopReason::Stop) || temperature == 0.0);
    }
}

#[test]
fn greedy_decoding_with_a_cache_is_what_scoring_without_one_calls_greedy() {
    for family in ["qwen3", "qwen2", "llama"] {
        let dir = tempfile::tempdir().unwrap();
        let mut session = open(&small_model(dir.path(), family));
        let evaluator = session.evaluator().unwrap();
        let prompts = eval_rows().tokens;
        let texts = evaluator.generate(prompts.view(), &GenerateConfig::greedy(24, vec![]), &mut ignore).unwrap();
        let whole: Tokens = prompts.view().iter().zip(&texts).map(|(p, t)| [p, &t.ids].concat()).collect();
        let scores = evaluator.score(whole.view(), &mut ignore).unwrap();
        let mut place = 0;
        for (prompt, text) in prompts.view().iter().zip(&texts) {
            place += prompt.len() - 1;
            assert!(scores.greedy[place..place + text.ids.len()].iter().all(|g| *g), "{family}");
            place += text.ids.len();
        }
    }
}

#[test]
fn a_row_ends_where_the_model_cannot_hold_more() {
    let dir = tempfile::tempdir().unwrap();
    let mut session = open(&small_model(dir.path(), "qwen3"));
    let prompts: Tokens = [vec![1; 64], vec![2; 60], vec![3; 5]].into_iter().collect();
    let texts = session
        .evaluator()
        .unwrap()
        .generate(prompts.view(), &GenerateConfig::greedy(10, vec![]), &mut ignore)
        .unwrap();
    let ends: Vec<(usize, StopReason)> = texts.iter().map(|t| (t.ids.len(), t.stop)).collect();
    assert_eq!(ends, [(0, StopReason::Context), (4, StopReason::Context), (10, StopReason::Length)]);
}

#[test]
fn stopping_cancels_scoring_and_generation() {
    let dir = tempfile::tempdir().unwrap();
    let mut session = open(&small_model(dir.path(), "qwen3"));
    let prompts = eval_rows().tokens;
    let evaluator = session.evaluator().unwrap();
    let error = evaluator.score(prompts.view(), &mut |_| Flow::Stop).unwrap_err();
    assert_eq!(error.kind, BackendErrorKind::Cancelled);
    let error =
        evaluator.generate(prompts.view(), &GenerateConfig::greedy(5, vec![]), &mut |_| Flow::Stop).unwrap_err();
    assert_eq!(error.kind, BackendErrorKind::Cancelled);
    assert!(evaluator.score(prompts.view(), &mut ignore).is_ok());
}

#[test]
fn a_seed_decides_fresh_weights_and_adapters() {
    let dir = tempfile::tempdir().unwrap();
    let base = small_model(dir.path(), "qwen3");
    let score = |open_config: &OpenConfig| {
        open(open_config).evaluator().unwrap().score(rows().tokens.view(), &mut ignore).unwrap()
    };
    assert_eq!(score(&base), score(&base));
    assert_ne!(score(&base), score(&OpenConfig { seed: 4, ..base.clone() }));

    let adapter = |seed: u64, name: &str| {
        let mut plan = plan(lora(0.0), vec![vec![vec![0]]], 0.0, &dir.path().join(name));
        plan.seed = seed;
        let done = train(&base, &plan, &rows(), &Rows::default(), |_| false).0.unwrap();
        tensors(&done.last_checkpoint.join("adapter_model.safetensors"))
    };
    let (first, again, other) = (adapter(1, "a"), adapter(1, "b"), adapter(2, "c"));
    assert_eq!(first, again);
    for (name, (_, shape, values)) in &first {
        if name.contains("lora_B") {
            assert!(values.iter().all(|x| *x == 0.0));
        } else {
            let bound = 1.0 / (shape[1] as f32).sqrt();
            assert!(values.iter().all(|x| x.abs() <= bound) && values.iter().any(|x| x.abs() > 0.9 * bound));
            assert_ne!(values, &other[name].2);
        }
    }
}

#[test]
fn an_adapter_merged_into_the_weights_gives_the_same_logits() {
    for family in ["qwen3", "qwen2", "llama"] {
        for method in &methods()[1..] {
            let dir = tempfile::tempdir().unwrap();
            let base = small_model(dir.path(), family);
            let plan = plan(method.clone(), vec![vec![vec![0, 1, 2]], vec![vec![3, 4]]], 5e-2, &dir.path().join("out"));
            let folder = train(&base, &plan, &rows(), &Rows::default(), |_| false).0.unwrap().last_checkpoint;
            let mut model = Decoder::random(ModelConfig::read(dir.path()).unwrap(), base.seed).unwrap();
            let logits = |model: &Decoder| -> Vec<f32> {
                let data = eval_rows().tokens;
                let hidden = model.hidden(&Batch::new(data.view().iter())).unwrap();
                let logits = model.logits(&hidden).unwrap();
                tensor::view(&logits).unwrap().to_vec()
            };
            let plain = logits(&model);
            let opened = adapter::open(&model, &folder).unwrap();
            let config = opened.config().clone();
            adapter::load(&mut model, &config, opened).unwrap();
            let adapted = logits(&model);
            let head = tensor::view(&model.head.widened().unwrap()).unwrap().to_vec();
            model.merge().unwrap();
            assert!(model.adapter_tensors().is_empty());
            let merged = logits(&model);
            let most = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let (change, difference) = (most(&plain, &adapted), most(&adapted, &merged));
            println!("{family}: the adapter changes logits by {change:.2}, merging by {difference:.1e}");
            assert!(change > 0.1 && difference < 1e-4 && difference > 0.0, "{family}: {change} {difference}");
            assert!(
                !model.config.tied || head == *tensor::view(&model.embedding.widened().unwrap()).unwrap(),
                "a tied head was merged"
            );
        }
    }
}

#[test]
fn a_model_opened_to_be_merged_is_written_and_scores_as_its_adapter_does() {
    let dir = tempfile::tempdir().unwrap();
    let random = small_model(dir.path(), "qwen3");
    // Weights in files: what is merged is read.
    let whole = plan(Method::Full, vec![vec![vec![0, 1]]], 1e-3, &dir.path().join("full"));
    let base = train(&random, &whole, &rows(), &Rows::default(), |_| false).0.unwrap().last_checkpoint;
    let base = OpenConfig { threads: 2, ..OpenConfig::new(base) };
    let low = plan(lora(0.0), vec![vec![vec![0, 1, 2]], vec![vec![3, 4]]], 5e-2, &dir.path().join("lora"));
    let adapter = train(&base, &low, &rows(), &Rows::default(), |_| false).0.unwrap().last_checkpoint;
    let with = OpenConfig { adapter: Some(adapter), ..base.clone() };
    let score = |config: &OpenConfig| {
        let tokens = eval_rows().tokens;
        open(config).evaluator().unwrap().score(tokens.view(), &mut ignore).unwrap().logprobs
    };
    let into = dir.path().join("merged");
    let opened = score(&OpenConfig { merge_into: Some(into.clone()), ..with.clone() });
    assert!(!into.join("optimizer.safetensors").exists());
    let written = score(&OpenConfig { model: into, ..base.clone() });
    assert_eq!(opened, written);
    let most = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let (plain, adapted) = (score(&base), score(&with));
    assert!(most(&plain, &adapted) > 0.1 && most(&adapted, &written) < 1e-4);
    let nothing = OpenConfig { merge_into: Some(dir.path().join("nothing")), ..base };
    assert!(NativeSession::open(&nothing).err().unwrap().message.contains("no adapter"));
    assert!(!dir.path().join("nothing").exists());
}

#[test]
fn training_stops_early_after_evaluations_without_improvement_and_so_does_a_resumed_one() {
    let dir = tempfile::tempdir().unwrap();
    let base = small_model(dir.path(), "qwen3");
    let mut plan = six_steps(Method::Full, &dir.path().join("out"));
    // The third step ruins the model: of the evaluations after 2, 3, 4 and 5 only the first is an
    // improvement.
    plan.learning_rates = vec![1e-3, 1e-3, 0.5, 0.1, 0.1, 0.1];
    (plan.eval_every, plan.save_every, plan.save_total_limit) = (1, 2, 2);
    plan.early_stopping = Some(EarlyStopping { patience: 2, threshold: 0.0 });
    let (done, events) = train(&base, &plan, &rows(), &eval_rows(), |_| false);
    let done = done.unwrap();
    assert_eq!(done.steps, 4);
    assert_eq!(done.last_checkpoint, plan.output_dir.join("checkpoint-4"));
    assert_eq!(done.best_checkpoint, Some(plan.output_dir.join("checkpoint-2")));
    let told = events.iter().any(|e| matches!(e, Event::Log { message, .. } if message.contains("after step 4 of 6")));
    assert!(told);
    for at in 1..=4 {
        let cut = TrainPlan { output_dir: dir.path().join(format!("cut-{at}")), ..plan.clone() };
        let stops = |event: &Event| matches!(event, Event::Evaluation { step, .. } if *step == at);
        let (result, _) = train(&base, &cut, &rows(), &eval_rows(), stops);
        assert_eq!(result.unwrap_err().kind, BackendErrorKind::Cancelled);
        let from = Some(cut.output_dir.join(format!("checkpoint-{at}")));
        let resumed =
            train(&base, &TrainPlan { resume_from: from, ..cut }, &rows(), &eval_rows(), |_| false).0.unwrap();
        assert_eq!(resumed.steps, 4, "cut at {at}");
        same_folder(&done.last_checkpoint, &resumed.last_checkpoint);
    }
    // One more evaluation to wait for, and the end of the plan comes first.
    plan.early_stopping = Some(EarlyStopping { patience: 5, threshold: 0.0 });
    plan.output_dir = dir.path().join("patient");
    assert_eq!(train(&base, &plan, &rows(), &eval_rows(), |_| false).0.unwrap().steps, 6);
}

#[test]
fn early_stopping_counts_as_transformers_does() {
    let stops = |patience: usize, threshold: f64, losses: &[f64]| {
        EarlyStopping { patience, threshold }.stops(losses.iter().copied())
    };
    assert!(!stops(1, 0.0, &[]) && !stops(1, 0.0, &[2.0]) && stops(1, 0.0, &[2.0, 2.0]));
    assert!(!stops(2, 0.0, &[3.0, 3.1]) && stops(2, 0.0, &[3.0, 3.1, 3.2]));
    assert!(!stops(2, 0.0, &[3.0, 3.1, 2.9, 3.0]), "an improvement starts the count anew");
    // Too small a gain is none, but lowers what the next loss is held against.
    assert!(stops(2, 0.1, &[3.0, 2.95, 2.88]) && !stops(2, 0.1, &[3.0, 2.95, 2.84]));
}
