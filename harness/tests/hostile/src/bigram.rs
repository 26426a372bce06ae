//! A bigram language model: the logits of the next token are a row of a `[vocab, vocab]` table.
//!
//! A folder holds `bigram.json`, and a checkpoint also `optimizer.json`. Everything is f64,
//! computed on one thread and in one order, so that every promise of a backend can be kept to the
//! bit.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use karat_backend::{
    Backend, BackendError, BackendErrorKind, Capability, Completion, Descriptor, Dtype, Evaluator, Event, EventSink,
    Flow, GenerateConfig, IGNORE, LabelledView, Method, OpenConfig, Scores, Session, SessionInfo, StepEvent,
    StopReason, TokensView, TrainPlan, TrainSummary, Trainer, Weights,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bigram;

/// What `bigram.json` holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Table {
    vocab: usize,
    /// `[vocab, vocab]`, row-major: row `a` has the logits of what follows `a`.
    logits: Vec<f64>,
}

/// What `optimizer.json` holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Optimizer {
    fingerprint: String,
    step: usize,
    tokens: u64,
    first: Vec<f64>,
    second: Vec<f64>,
    best: Option<(f64, PathBuf)>,
}

const MAX_POSITIONS: usize = 64;

impl Bigram {
    /// Writes a model of `vocab` tokens, drawn from `seed`, into `folder`.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn write_model(folder: &Path, vocab: usize, seed: u64) -> Result<(), BackendError> {
        let mut random = Random(seed);
        let logits = (0..vocab * vocab).map(|_| 4.0 * random.uniform() - 2.0).collect();
        write(folder, "bigram.json", &Table { vocab, logits })
    }
}

impl Backend for Bigram {
    fn describe(&self) -> Descriptor {
        Descriptor {
            name: "bigram".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            capabilities: vec![Capability::Score, Capability::Generate, Capability::TrainFull],
            devices: vec!["cpu".into()],
            dtypes: vec![Dtype::F32],
            model_families: vec!["bigram".into()],
            build: BTreeMap::new(),
        }
    }

    fn open(&self, config: &OpenConfig) -> Result<Box<dyn Session>, BackendError> {
        if !matches!(config.device.as_str(), "cpu" | "auto") {
            return Err(BackendError::unsupported(format!("no device `{}`: there is only cpu", config.device)));
        }
        if let Some(option) = config.options.keys().next() {
            return Err(BackendError::unsupported(format!("unknown option `{option}`: there are none")));
        }
        if config.adapter.is_some() || config.weights != Weights::Load || config.dtype != Dtype::F32 {
            return Err(BackendError::unsupported("only f32 weights from a folder, without an adapter, can be opened"));
        }
        let table: Table = read(&config.model, "bigram.json")?;
        if table.vocab == 0 || table.logits.len() != table.vocab * table.vocab {
            let (vocab, len) = (table.vocab, table.logits.len());
            return Err(BackendError::failed(format!("{len} logits are not a table of {vocab} by {vocab}")));
        }
        Ok(Box::new(Model { table }))
    }
}

struct Model {
    table: Table,
}

impl Session for Model {
    fn evaluator(&mut self) -> Option<&mut dyn Evaluator> {
        Some(self)
    }
    fn trainer(&mut self) -> Option<&mut dyn Trainer> {
        Some(self)
    }
    fn info(&self) -> SessionInfo {
        SessionInfo {
            device: "cpu".into(),
            dtype: Dtype::F32,
            threads: 1,
            kernels: Vec::new(),
            parameters: self.table.logits.len() as u64,
            adapter_parameters: 0,
            vocab_size: self.table.vocab,
            max_positions: MAX_POSITIONS,
            warnings: Vec::new(),
        }
    }
}

impl Table {
    fn row(&self, id: u32) -> &[f64] {
        let start = id as usize * self.vocab;
        &self.logits[start..start + self.vocab]
    }
    /// Log-probabilities of what follows `id`.
    fn log_softmax(&self, id: u32) -> Vec<f64> {
        let row = self.row(id);
        let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log_sum = top + row.iter().map(|x| (x - top).exp()).sum::<f64>().ln();
        row.iter().map(|x| x - log_sum).collect()
    }
    /// The most probable follower of `id`; ties go to the lowest.
    fn top(&self, id: u32) -> u32 {
        let row = self.row(id);
        (1..row.len()).fold(0, |best, next| if row[next] > row[best] { next } else { best }) as u32
    }
    fn check(&self, rows: TokensView<'_>) -> Result<(), BackendError> {
        match rows.ids().iter().find(|&&id| id as usize >= self.vocab) {
            Some(id) => Err(BackendError::failed(format!("id {id} is beyond the vocabulary of {}", self.vocab))),
            None => Ok(()),
        }
    }
}

fn progress(stage: &str, done: usize, total: usize, tokens: u64) -> Event {
    Event::Progress { stage: stage.into(), done: done as u64, total: total as u64, tokens }
}

fn send(sink: &mut dyn EventSink, event: Event) -> Result<(), BackendError> {
    match sink.event(event) {
        Flow::Continue => Ok(()),
        Flow::Stop => Err(BackendError::cancelled()),
    }
}

impl Evaluator for Model {
    fn score(&mut self, tokens: TokensView<'_>, sink: &mut dyn EventSink) -> Result<Scores, BackendError> {
        self.table.check(tokens)?;
        let mut scores = Scores::default();
        for (done, row) in tokens.iter().enumerate() {
            for pair in row.windows(2) {
                scores.logprobs.push(self.table.log_softmax(pair[0])[pair[1] as usize] as f32);
                scores.greedy.push(self.table.top(pair[0]) == pair[1]);
            }
            send(sink, progress("score", done + 1, tokens.rows(), scores.logprobs.len() as u64))?;
        }
        Ok(scores)
    }

    fn generate(
        &mut self,
        prompts: TokensView<'_>,
        config: &GenerateConfig,
        sink: &mut dyn EventSink,
    ) -> Result<Vec<Completion>, BackendError> {
        self.table.check(prompts)?;
        let mut made = Vec::new();
        for (row, prompt) in prompts.iter().enumerate() {
            let mut last = *prompt.last().ok_or_else(|| BackendError::failed(format!("prompt {row} is empty")))?;
            let mut random = Random(config.seed ^ (row as u64).wrapping_mul(0xd134_2543_de82_ef95));
            let mut completion = Completion { ids: Vec::new(), stop: StopReason::Length };
            while completion.ids.len() < config.max_new_tokens {
                if prompt.len() + completion.ids.len() >= MAX_POSITIONS {
                    completion.stop = StopReason::Context;
                    break;
                }
                send(sink, progress("generate", row, prompts.rows(), completion.ids.len() as u64))?;
                last = if config.temperature == 0.0 {
                    self.table.top(last)
                } else {
                    self.sample(last, config, &mut random)
                };
                completion.ids.push(last);
                if config.stop_ids.contains(&last) {
                    completion.stop = StopReason::Stop;
                    break;
                }
            }
            send(sink, Event::Completion { row, completion: completion.clone() })?;
            made.push(completion);
        }
        Ok(made)
    }
}

impl Model {
    /// Temperature, then top-k, then top-p.
    fn sample(&self, last: u32, config: &GenerateConfig, random: &mut Random) -> u32 {
        let row = self.table.row(last);
        let top = row[self.table.top(last) as usize];
        let mut candidates: Vec<(usize, f64)> =
            row.iter().map(|x| ((x - top) / config.temperature).exp()).enumerate().collect();
        candidates.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if config.top_k > 0 {
            candidates.truncate(config.top_k);
        }
        let total: f64 = candidates.iter().map(|c| c.1).sum();
        let mut kept = 0.0;
        let within = candidates.iter().take_while(|c| {
            let enough = kept >= config.top_p * total;
            kept += c.1;
            !enough
        });
        let within = within.count().max(1);
        candidates.truncate(within);
        let total: f64 = candidates.iter().map(|c| c.1).sum();
        let mut left = random.uniform() * total;
        for (id, weight) in &candidates {
            left -= weight;
            if left < 0.0 {
                return *id as u32;
            }
        }
        candidates[within - 1].0 as u32
    }

    /// Summed negative log-likelihood of the labelled tokens of `row`, and their number; adds its
    /// gradient to `gradient`.
    fn loss(&self, data: LabelledView<'_>, row: usize, gradient: Option<&mut [f64]>) -> (f64, u64) {
        let (ids, labels) = (data.tokens().row(row), data.row_labels(row));
        let (mut loss, mut count) = (0.0, 0);
        let mut gradient = gradient;
        for k in 1..ids.len() {
            if labels[k] == IGNORE {
                continue;
            }
            let logprobs = self.table.log_softmax(ids[k - 1]);
            let label = labels[k] as usize;
            loss -= logprobs[label];
            count += 1;
            if let Some(gradient) = gradient.as_deref_mut() {
                let start = ids[k - 1] as usize * self.table.vocab;
                for (next, logprob) in logprobs.iter().enumerate() {
                    gradient[start + next] += logprob.exp() - f64::from(u8::from(next == label));
                }
            }
        }
        (loss, count)
    }

    fn save(&self, plan: &TrainPlan, state: &Optimizer) -> Result<PathBuf, BackendError> {
        let folder = checkpoint(plan, state.step);
        fs::create_dir_all(&folder)
            .map_err(|e| BackendError::failed(format!("could not create {}", folder.display())).because(&e))?;
        write(&folder, "bigram.json", &self.table)?;
        write(&folder, "optimizer.json", state)?;
        Ok(folder)
    }
}

impl Trainer for Model {
    fn train(
        &mut self,
        train: LabelledView<'_>,
        eval: LabelledView<'_>,
        plan: &TrainPlan,
        sink: &mut dyn EventSink,
    ) -> Result<TrainSummary, BackendError> {
        if plan.method != Method::Full {
            return Err(BackendError::unsupported("a bigram table has no linear layers to adapt"));
        }
        self.table.check(train.tokens())?;
        self.table.check(eval.tokens())?;
        let begin = Instant::now();
        let size = self.table.logits.len();
        let mut state = Optimizer {
            fingerprint: plan.fingerprint.clone(),
            step: 0,
            tokens: 0,
            first: vec![0.0; size],
            second: vec![0.0; size],
            best: None,
        };
        if let Some(folder) = &plan.resume_from {
            state = read(folder, "optimizer.json")?;
            if state.fingerprint != plan.fingerprint {
                return Err(BackendError::failed(format!("{} is a checkpoint of another plan", folder.display())));
            }
            self.table = read(folder, "bigram.json")?;
        }
        for step in state.step..plan.steps.len() {
            let flow = sink.event(Event::Step(self.step(train, plan, step, &mut state)));
            let last = step + 1 == plan.steps.len();
            let due = |every: usize| last || every > 0 && (step + 1) % every == 0;
            if flow == Flow::Continue && eval.tokens().rows() > 0 && due(plan.eval_every) {
                let start = Instant::now();
                let (loss, tokens) = (0..eval.tokens().rows())
                    .map(|row| self.loss(eval, row, None))
                    .fold((0.0, 0), |(a, n), (b, m)| (a + b, n + m));
                let loss = loss / tokens as f64;
                if state.best.as_ref().is_none_or(|(best, _)| loss < *best) {
                    state.best = Some((loss, checkpoint(plan, step + 1)));
                }
                let seconds = start.elapsed().as_secs_f64();
                send(sink, Event::Evaluation { step: step + 1, loss, tokens, seconds })?;
            }
            if flow == Flow::Stop || due(plan.save_every) {
                let path = self.save(plan, &state)?;
                let after = sink.event(Event::Checkpoint { step: step + 1, path });
                if flow == Flow::Stop || after == Flow::Stop {
                    return Err(BackendError::new(
                        BackendErrorKind::Cancelled,
                        format!("cancelled after step {}", step + 1),
                    ));
                }
            }
        }
        Ok(TrainSummary {
            last_checkpoint: checkpoint(plan, state.step),
            best_checkpoint: state.best.map(|(_, path)| path),
            steps: state.step,
            trainable_parameters: size as u64,
            tokens: state.tokens,
            seconds: begin.elapsed().as_secs_f64(),
            peak_memory: None,
        })
    }
}

impl Model {
    /// One step of AdamW with clipping.
    fn step(&mut self, train: LabelledView<'_>, plan: &TrainPlan, step: usize, state: &mut Optimizer) -> StepEvent {
        let start = Instant::now();
        let mut gradient = vec![0.0; self.table.logits.len()];
        let (mut micro, mut count) = (Vec::new(), 0);
        for batch in &plan.steps[step] {
            let mut sum = 0.0;
            for &row in batch {
                let (loss, labelled) = self.loss(train, row as usize, Some(&mut gradient));
                sum += loss;
                count += labelled;
                state.tokens += train.tokens().row(row as usize).len() as u64;
            }
            micro.push(sum);
        }
        let scale = 1.0 / count.max(1) as f64;
        micro.iter_mut().for_each(|loss| *loss *= scale);
        gradient.iter_mut().for_each(|g| *g *= scale);
        let grad_norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
        let clip = if plan.max_grad_norm > 0.0 { (plan.max_grad_norm / (grad_norm + 1e-6)).min(1.0) } else { 1.0 };
        state.step = step + 1;
        let (adam, rate) = (&plan.optimizer, plan.learning_rates[step]);
        let correction = |beta: f64| 1.0 - beta.powi(state.step as i32);
        let (first, second) = (correction(adam.beta1), correction(adam.beta2));
        for (i, g) in gradient.into_iter().enumerate() {
            let g = g * clip;
            state.first[i] = adam.beta1 * state.first[i] + (1.0 - adam.beta1) * g;
            state.second[i] = adam.beta2 * state.second[i] + (1.0 - adam.beta2) * g * g;
            let weight = &mut self.table.logits[i];
            *weight -= rate * adam.weight_decay * *weight;
            *weight -= rate * (state.first[i] / first) / ((state.second[i] / second).sqrt() + adam.eps);
        }
        StepEvent {
            step: state.step,
            epoch: plan.epochs[step],
            loss: micro.iter().sum(),
            micro_losses: micro,
            learning_rate: rate,
            grad_norm,
            label_tokens: count,
            tokens: state.tokens,
            seconds: start.elapsed().as_secs_f64(),
            memory: None,
        }
    }
}

fn checkpoint(plan: &TrainPlan, step: usize) -> PathBuf {
    plan.output_dir.join(format!("checkpoint-{step}"))
}

fn read<T: DeserializeOwned>(folder: &Path, name: &str) -> Result<T, BackendError> {
    let path = folder.join(name);
    let text =
        fs::read(&path).map_err(|e| BackendError::failed(format!("could not read {}", path.display())).because(&e))?;
    serde_json::from_slice(&text).map_err(|e| BackendError::failed(format!("{} is broken", path.display())).because(&e))
}

fn write<T: Serialize>(folder: &Path, name: &str, value: &T) -> Result<(), BackendError> {
    let path = folder.join(name);
    let failed =
        |e: &dyn std::error::Error| BackendError::failed(format!("could not write {}", path.display())).because(e);
    fs::write(&path, serde_json::to_vec(value).map_err(|e| failed(&e))?).map_err(|e| failed(&e))
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    /// In `[0, 1)`.
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}
