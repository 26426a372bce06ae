//! Bitwise equality of resumed runs, any number of threads, any batch; and equality within
//! tolerances with the native backend: weights, adapters and masks that are drawn, scores, texts,
//! training runs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod support;

use std::path::{Path, PathBuf};

use karat_backend::*;
use karat_candle::CandleBackend;
use support::small_runs::{self, Rows, ignore, lora, plan, small_model, small_rows, step_events};
use support::{apart, base, open, score, train};

/// All files of a checkpoint, which hold neither times nor paths.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        names.map(|path| (path.file_name().unwrap().into(), std::fs::read(path).unwrap())).collect();
    files.sort();
    files
}

fn methods() -> [(&'static str, Method); 2] {
    [("full", Method::Full), ("lora", lora(0.2))]
}

#[test]
fn a_resumed_run_is_bit_by_bit_the_one_that_never_stopped() {
    for family in ["qwen3", "llama"] {
        for (name, method) in methods() {
            let dir = tempfile::tempdir().unwrap();
            let base = small_model(dir.path(), family);
            let rows = small_rows(&[9, 14, 7, 12, 20, 5]);
            let steps: Vec<Vec<Vec<u32>>> =
                (0..6u32).map(|s| vec![vec![s % 6, (s + 2) % 6], vec![(s + 4) % 6]]).collect();
            let mut plan = plan(method, steps, 1e-2, &dir.path().join("whole"));
            (plan.eval_every, plan.save_every, plan.optimizer.weight_decay) = (2, 2, 0.1);
            let (whole, events) = train(&base, &plan, &rows, &rows, |_| false);
            let mut plan = TrainPlan { output_dir: dir.path().join("parts"), ..plan };
            let (stopped, _) = train(&base, &plan, &rows, &rows, |e| matches!(e, Event::Step(s) if s.step == 3));
            assert_eq!(stopped.unwrap_err().kind, BackendErrorKind::Cancelled);
            plan.resume_from = Some(plan.output_dir.join("checkpoint-3"));
            let (resumed, rest) = train(&base, &plan, &rows, &rows, |_| false);
            assert_eq!(step_events(&events)[3..], step_events(&rest), "{family} {name}");
            let [a, b] = [whole, resumed].map(|done| files(&done.unwrap().last_checkpoint));
            assert!(a == b, "{family} {name}: the last checkpoints differ");
        }
    }
}

#[test]
fn numbers_do_not_depend_on_the_threads() {
    for (name, method) in methods() {
        let dir = tempfile::tempdir().unwrap();
        let run = |threads: usize| {
            let base = OpenConfig { threads, ..small_model(dir.path(), "qwen3") };
            let rows = small_rows(&[30, 40, 8, 25]);
            let steps = vec![vec![vec![0, 1]], vec![vec![2], vec![3]], vec![vec![1, 3]]];
            let plan = plan(method.clone(), steps, 1e-2, &dir.path().join(format!("{name}-{threads}")));
            let (done, events) = train(&base, &plan, &rows, &rows, |_| false);
            let mut session = open(&base);
            assert_eq!(session.info().threads, threads);
            let scores = score(&mut *session, &rows.tokens);
            (files(&done.unwrap().last_checkpoint), step_events(&events), scores)
        };
        assert!(run(1) == run(3), "{name}");
    }
}

/// candle splits a product into as many parts as `RAYON_NUM_THREADS` says, whatever pool computes
/// them. The base of medical-r1 has products that are large enough to be split.
#[test]
fn numbers_do_not_depend_on_the_parts_that_candle_cuts_products_into() {
    const OUT: &str = "KARAT_CANDLE_SCORES";
    let rows: Tokens =
        [300u32, 40].iter().map(|&n| (0..n).map(|i| (i * i * 7 + i) % 300).collect::<Vec<_>>()).collect();
    if let Some(path) = std::env::var_os(OUT) {
        let scores = score(&mut *open(&OpenConfig { threads: 3, ..OpenConfig::new(base()) }), &rows);
        let bits: Vec<u8> = scores.logprobs.iter().flat_map(|x| x.to_le_bytes()).collect();
        return std::fs::write(path, bits).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let of = |parts: &str| {
        let path = dir.path().join(parts);
        let test = "numbers_do_not_depend_on_the_parts_that_candle_cuts_products_into";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let output = child.args(["--exact", test]).env(OUT, &path).env("RAYON_NUM_THREADS", parts).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        std::fs::read(path).unwrap()
    };
    let one = of("1");
    assert!(!one.is_empty());
    assert!(one == of("3") && one == of("8"));
}

#[test]
fn a_row_longer_than_a_piece_scores_as_in_the_native_backend() {
    let dir = tempfile::tempdir().unwrap();
    let small = small_model(dir.path(), "qwen3");
    let mut config = small_runs::read_json(dir.path().join("config.json"));
    config["max_position_embeddings"] = 2000.into();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let rows = small_rows(&[1200, 512, 513, 514, 1, 0]).tokens;
    let ours = score(&mut *open(&small), &rows);
    let theirs = score(&mut *small_runs::open(&small), &rows);
    let worst = apart(&ours.logprobs, &theirs.logprobs);
    println!("largest difference of {} log-probabilities {worst:.1e}", ours.logprobs.len());
    assert!(worst < 1e-4, "{worst}");
}

#[test]
fn the_base_of_medical_r1_scores_and_writes_as_in_the_native_backend() {
    let config = OpenConfig::new(base());
    let (mut ours, mut theirs) = (open(&config), small_runs::open(&config));
    let vocab = ours.info().vocab_size as u32;
    assert_eq!(ours.info().parameters, theirs.info().parameters);
    let rows: Tokens =
        [90u32, 7, 33].iter().map(|&n| (0..n).map(|i| (i * i * 7 + 13 * n + i) % vocab).collect::<Vec<_>>()).collect();
    let worst = apart(&score(&mut *ours, &rows).logprobs, &score(&mut *theirs, &rows).logprobs);
    println!("largest difference {worst:.1e}");
    assert!(worst < 1e-4, "{worst}");
    for temperature in [0.0, 0.8] {
        let config = GenerateConfig { temperature, top_p: 0.9, seed: 3, ..GenerateConfig::greedy(24, vec![]) };
        let text = |session: &mut dyn Session| {
            session.evaluator().unwrap().generate(rows.view(), &config, &mut ignore).unwrap()
        };
        assert_eq!(text(&mut *ours), text(&mut *theirs), "at temperature {temperature}");
    }
}

#[test]
fn a_training_run_is_that_of_the_native_backend_drawn_weights_adapters_and_masks_among_it() {
    for family in ["qwen3", "qwen2", "llama"] {
        for (name, method) in methods() {
            let dir = tempfile::tempdir().unwrap();
            let base = small_model(dir.path(), family);
            let rows = small_rows(&[9, 14, 7, 12]);
            let steps = vec![vec![vec![0, 1], vec![2]], vec![vec![3, 0]], vec![vec![2, 1, 3]]];
            let plan = plan(method, steps, 1e-2, &dir.path().join("ours"));
            let (ours, our_events) = train(&base, &plan, &rows, &rows, |_| false);
            let plan = TrainPlan { output_dir: dir.path().join("theirs"), ..plan };
            let (theirs, their_events) = small_runs::train(&base, &plan, &rows, &rows, |_| false);
            let mut worst = 0f64;
            for (ours, theirs) in step_events(&our_events).iter().zip(&step_events(&their_events)) {
                assert_eq!(
                    (ours.step, ours.tokens, ours.label_tokens),
                    (theirs.step, theirs.tokens, theirs.label_tokens)
                );
                worst = worst.max((ours.loss - theirs.loss).abs() / theirs.loss);
                worst = worst.max((ours.grad_norm - theirs.grad_norm).abs() / theirs.grad_norm);
            }
            println!("{family} {name}: losses and gradient norms within {worst:.1e}");
            assert!(worst < 1e-4, "{family} {name}: {worst}");
            let names = |done: Result<TrainSummary, _>| -> Vec<PathBuf> {
                files(&done.unwrap().last_checkpoint).into_iter().map(|(name, _)| name).collect()
            };
            assert_eq!(names(ours), names(theirs), "{family} {name}: the files of a checkpoint");
        }
    }
}

#[test]
fn an_adapter_that_is_merged_and_written_scores_as_the_one_beside_its_base() {
    let dir = tempfile::tempdir().unwrap();
    let small = small_model(dir.path(), "qwen3");
    let rows = small_rows(&[9, 14]);
    let plan = plan(lora(0.0), vec![vec![vec![0]], vec![vec![1]]], 1e-2, &dir.path().join("out"));
    let adapter = train(&small, &plan, &rows, &Rows::default(), |_| false).0.unwrap().last_checkpoint;
    let merged = dir.path().join("merged");
    let beside = OpenConfig { adapter: Some(adapter), ..small.clone() };
    let mut session = open(&beside);
    assert!(session.info().adapter_parameters > 0);
    let with = score(&mut *session, &rows.tokens);
    assert!(with != score(&mut *open(&small), &rows.tokens));
    let mut session = open(&OpenConfig { merge_into: Some(merged.clone()), ..beside.clone() });
    assert_eq!((session.info().adapter_parameters, with.clone()), (0, score(&mut *session, &rows.tokens)));
    assert_eq!(score(&mut *open(&OpenConfig::new(&merged)), &rows.tokens), with);
    let theirs = score(&mut *small_runs::open(&beside), &rows.tokens);
    assert!(apart(&with.logprobs, &theirs.logprobs) < 1e-4);
}

#[test]
fn after_training_the_session_is_that_of_the_trained_model() {
    for (name, method) in methods() {
        let dir = tempfile::tempdir().unwrap();
        let small = small_model(dir.path(), "qwen3");
        let rows = small_rows(&[9, 14]);
        let plan = plan(method.clone(), vec![vec![vec![0]], vec![vec![1]]], 1e-2, &dir.path().join("out"));
        let mut session = open(&small);
        let done = session.trainer().unwrap().train(rows.view(), Rows::default().view(), &plan, &mut ignore).unwrap();
        let after = score(&mut *session, &rows.tokens);
        let saved = match method {
            Method::Full => OpenConfig::new(&done.last_checkpoint),
            Method::Lora(_) => OpenConfig { adapter: Some(done.last_checkpoint), ..small },
        };
        let saved = score(&mut *open(&saved), &rows.tokens);
        assert!(apart(&after.logprobs, &saved.logprobs) < 1e-4, "{name}");
        let again = session.trainer().unwrap().train(rows.view(), Rows::default().view(), &plan, &mut ignore);
        assert!(again.unwrap_err().message.contains("open a new one"));
    }
}

#[test]
fn the_version_of_candle_that_is_told_is_the_one_that_is_built() {
    let lock = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.lock")).unwrap();
    let version = &CandleBackend.describe().build["candle-core"];
    assert!(lock.contains(&format!("name = \"candle-core\"\nversion = \"{version}\"\n")), "{version}");
}
