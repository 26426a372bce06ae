//! The training loop around a learner of a few lines: logits of the next token by the one before,
//! `softmax(W[x])`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::path::{Path, PathBuf};

use karat_backend::*;
use karat_model::ModelConfig;
use karat_model::publish::{Put, Shapes};
use karat_model::train::{
    Dropout, Learner, MicroBatch, OptimizerStep, TensorState, TrainedModel, TrainingRun, admit, clip_factor,
};
use rayon::ThreadPoolBuilder;
use serde_json::json;

const VOCAB: usize = 7;
const NAME: &str = "bigram.weight";

/// `W` `[VOCAB, VOCAB]`, its gradient and moments.
#[derive(Clone)]
struct Bigram {
    parts: [Vec<f32>; 3],
    gradient: Vec<f64>,
}

impl Bigram {
    fn new() -> Self {
        Bigram { parts: [(); 3].map(|()| vec![0.0; VOCAB * VOCAB]), gradient: vec![0.0; VOCAB * VOCAB] }
    }

    /// Probabilities of the token after `id`.
    fn probabilities(&self, id: u32) -> Vec<f64> {
        let row = &self.parts[0][id as usize * VOCAB..][..VOCAB];
        let exp: Vec<f64> = row.iter().map(|x| f64::from(*x).exp()).collect();
        let sum: f64 = exp.iter().sum();
        exp.iter().map(|x| x / sum).collect()
    }
}

impl Learner for Bigram {
    type LogProbs = Vec<f32>;

    fn trained(&self) -> Shapes {
        [(NAME.to_owned(), vec![VOCAB, VOCAB])].into()
    }
    fn zero_gradients(&mut self) -> Result<(), BackendError> {
        self.gradient.fill(0.0);
        Ok(())
    }
    fn add_gradients(
        &mut self,
        batch: MicroBatch<'_>,
        scale: f64,
        _: Option<Dropout>,
    ) -> Result<Vec<f32>, BackendError> {
        let mut logprobs = Vec::new();
        for (ids, targets) in batch.rows() {
            for target in targets {
                let (from, p) = (ids[target.at], self.probabilities(ids[target.at]));
                logprobs.push(p[target.id as usize].ln() as f32);
                for (to, p) in p.into_iter().enumerate() {
                    let wanted = f64::from(to == target.id as usize);
                    self.gradient[from as usize * VOCAB + to] += scale * (p - wanted);
                }
            }
        }
        Ok(logprobs)
    }
    fn log_probs(&self, of: Vec<f32>) -> Result<Vec<f32>, BackendError> {
        Ok(of)
    }
    fn update(&mut self, step: OptimizerStep<'_>) -> Result<Vec<f64>, BackendError> {
        let square: f64 = self.gradient.iter().map(|g| g * g).sum();
        let clip = clip_factor(square.sqrt(), step.max_grad_norm);
        if !square.is_finite() {
            return Ok(vec![square]);
        }
        let AdamW { beta1, beta2, eps, .. } = *step.adamw;
        let [w, m, v] = &mut self.parts;
        for (((w, m), v), g) in w.iter_mut().zip(m).zip(v).zip(&self.gradient) {
            let g = g * clip;
            *m = (f64::from(*m) * beta1 + g * (1.0 - beta1)) as f32;
            *v = (f64::from(*v) * beta2 + g * g * (1.0 - beta2)) as f32;
            let t = step.number as i32;
            let (m, v) = (f64::from(*m) / (1.0 - beta1.powi(t)), f64::from(*v) / (1.0 - beta2.powi(t)));
            *w -= (step.learning_rate * m / (v.sqrt() + eps)) as f32;
        }
        Ok(vec![square])
    }
    fn score(&mut self, batch: MicroBatch<'_>) -> Result<Vec<f32>, BackendError> {
        let of = |target: karat_model::train::Label, ids: &[u32]| {
            self.probabilities(ids[target.at])[target.id as usize].ln() as f32
        };
        Ok(batch.rows().flat_map(|(ids, targets)| targets.map(|t| of(t, ids)).collect::<Vec<_>>()).collect())
    }
    fn read(&self, of: TensorState, _: &str, put: &mut Put<'_>) -> Result<(), BackendError> {
        put(&self.parts[of as usize])
    }
    fn write(&mut self, of: TensorState, _: &str, values: Vec<f32>) -> Result<(), BackendError> {
        self.parts[of as usize] = values;
        Ok(())
    }
}

fn config(folder: &Path) -> ModelConfig {
    let config = json!({
        "model_type": "qwen3", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": VOCAB,
        "max_position_embeddings": 16, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("tokenizer.json"), "{}").unwrap();
    ModelConfig::read(folder).unwrap()
}

/// Rows of which each has its own next token after 0: what one row teaches the others forget.
fn rows() -> (Tokens, Vec<i32>) {
    let tokens: Tokens = (1..6u32).map(|next| [0, next, 0, next, (next + 1) % 6]).collect();
    let labels = tokens.view().ids().iter().map(|id| *id as i32).collect();
    (tokens, labels)
}

fn plan(steps: usize, output_dir: &Path) -> TrainPlan {
    TrainPlan {
        method: Method::Full,
        steps: (0..steps as u32).map(|s| vec![vec![s % 5], vec![(s + 2) % 5]]).collect(),
        learning_rates: vec![0.3; steps],
        epochs: (1..=steps).map(|s| s as f64 / 4.0).collect(),
        optimizer: AdamW::default(),
        max_grad_norm: 1.0,
        eval_every: 1,
        eval_batch_size: 2,
        save_every: 1,
        save_total_limit: 2,
        early_stopping: None,
        recompute: false,
        output_dir: output_dir.to_owned(),
        resume_from: None,
        init_adapter: None,
        seed: 1,
        fingerprint: "a-plan".into(),
    }
}

fn run(
    learner: &mut impl Learner,
    plan: &TrainPlan,
    mut stop: impl FnMut(&Event) -> bool,
) -> (Result<TrainSummary, BackendError>, Vec<Event>) {
    let source = tempfile::tempdir().unwrap();
    let (config, (tokens, labels)) = (config(source.path()), rows());
    let data = LabelledView::new(tokens.view(), &labels).unwrap();
    let pool = ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let base = TrainedModel { backend: "bigram", config: &config, source: source.path(), pool: &pool };
    let mut events = Vec::new();
    let mut sink = |event: Event| {
        let flow = if stop(&event) { Flow::Stop } else { Flow::Continue };
        events.push(event);
        flow
    };
    let result = TrainingRun::new(&config, plan, data, data).unwrap().carry_out(base, learner, &mut sink);
    (result, events)
}

fn losses(events: &[Event]) -> Vec<(usize, f64)> {
    let loss = |event: &Event| match event {
        Event::Evaluation { step, loss, .. } => Some((*step, *loss)),
        _ => None,
    };
    events.iter().filter_map(loss).collect()
}

fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        names.map(|path| (path.file_name().unwrap().into(), std::fs::read(&path).unwrap())).collect();
    files.sort();
    files
}

#[test]
fn the_limit_keeps_the_last_checkpoint_and_the_best_and_deletes_the_oldest_others() {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan(9, dir.path());
    // Too large for the end of a run.
    plan.learning_rates[6..].fill(30.0);
    let (done, events) = run(&mut Bigram::new(), &plan, |_| false);
    let done = done.unwrap();
    let best = losses(&events).into_iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0;
    let mut kept: Vec<String> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    kept.sort();
    assert_eq!(done.best_checkpoint, Some(dir.path().join(format!("checkpoint-{best}"))));
    assert_eq!(done.last_checkpoint, dir.path().join("checkpoint-9"));
    assert!(kept.len() == 2 && kept.contains(&format!("checkpoint-{best}")), "{kept:?} {best}");
    assert!(best < 9 && kept.contains(&"checkpoint-9".into()), "{kept:?} {best}");
}

#[test]
fn a_resumed_run_is_bit_by_bit_the_one_that_never_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let whole = plan(6, &dir.path().join("whole"));
    let want = run(&mut Bigram::new(), &whole, |_| false).0.unwrap();
    let mut parts = TrainPlan { output_dir: dir.path().join("parts"), save_every: 5, ..whole };
    let (stopped, _) = run(&mut Bigram::new(), &parts, |e| matches!(e, Event::Step(s) if s.step == 3));
    assert_eq!(stopped.unwrap_err().kind, BackendErrorKind::Cancelled);
    parts.resume_from = Some(parts.output_dir.join("checkpoint-3"));
    parts.save_every = 1;
    let (got, events) = run(&mut Bigram::new(), &parts, |_| false);
    let got = got.unwrap();
    assert_eq!((got.steps, got.tokens), (6, want.tokens));
    assert_eq!(losses(&events).first().map(|(step, _)| *step), Some(3));
    let mut sets = [got, want].map(|done| files(&done.last_checkpoint));
    // The best of those saved is another where others were saved.
    sets.iter_mut().for_each(|files| files.retain(|(name, _)| name != Path::new("trainer_state.json")));
    let names: Vec<_> = sets[0].iter().map(|(name, _)| name.to_str().unwrap()).collect();
    assert_eq!(
        names,
        ["config.json", "karat_state.json", "model.safetensors", "optimizer.safetensors", "tokenizer.json"]
    );
    assert!(sets[0] == sets[1]);
}

#[test]
fn accumulated_micro_batches_are_one_large_batch() {
    let dir = tempfile::tempdir().unwrap();
    let (mut apart, mut together) = (Bigram::new(), Bigram::new());
    let of = |steps: Vec<Vec<Vec<u32>>>, name: &str| TrainPlan { steps, ..plan(1, &dir.path().join(name)) };
    run(&mut apart, &of(vec![vec![vec![0], vec![1, 2]]], "apart"), |_| false).0.unwrap();
    run(&mut together, &of(vec![vec![vec![0, 1, 2]]], "together"), |_| false).0.unwrap();
    let worst = apart.parts[0].iter().zip(&together.parts[0]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-6 && apart.parts[0].iter().any(|w| *w != 0.0), "{worst}");
}

#[test]
fn early_stopping_ends_the_run_with_a_checkpoint_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let early_stopping = Some(EarlyStopping { patience: 2, threshold: 0.0 });
    let plan = TrainPlan { early_stopping, save_every: 0, learning_rates: vec![50.0; 40], ..plan(40, dir.path()) };
    let (done, events) = run(&mut Bigram::new(), &plan, |_| false);
    let done = done.unwrap();
    assert!(done.steps < 40 && done.last_checkpoint.is_dir(), "{}", done.steps);
    let said = format!("stopped early after step {} of 40", done.steps);
    assert!(events.iter().any(|e| matches!(e, Event::Log { message, .. } if message.contains(&said))), "{said}");
}

#[test]
fn a_loss_that_is_not_finite_ends_the_run_and_leaves_no_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(2, &dir.path().join("out"));
    let mut broken = Bigram::new();
    broken.parts[0][3] = f32::NAN;
    let error = run(&mut broken, &plan, |_| false).0.unwrap_err();
    assert!(error.message.contains("step 1, micro-batch 1 (training rows [0]): the loss is NaN"), "{error}");
    assert!(!plan.output_dir.exists());
}

#[test]
fn a_session_trains_once_and_without_an_adapter() {
    let (mut trained, opened) = (false, OpenConfig::new("model"));
    assert!(admit(&mut trained, &opened).is_ok());
    assert!(admit(&mut trained, &opened).unwrap_err().message.contains("open a new one"));
    let with = OpenConfig { adapter: Some("adapter".into()), ..opened };
    assert_eq!(admit(&mut false, &with).unwrap_err().kind, BackendErrorKind::Unsupported);
}
