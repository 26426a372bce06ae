//! The training loop: what the host planned, carried out step by step.
//!
//! One step sums the gradients of its rows, each scaled by the labelled tokens of the *whole* step, so that accumulation
//! equals one large batch; clips by the global norm as `torch.nn.utils.clip_grad_norm_` does; and updates with AdamW.
//! Everything random is drawn by counter, so a resumed run goes on as if it had never stopped.

pub mod checkpoint;
mod learner;

use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::Device;
use karat_backend::state::{LogEntry, RunState, TrainerState};
use karat_backend::{
    BackendError, Event, EventSink, Flow, IGNORE, LabelledView, Level, LoraConfig, Method, StepEvent, TrainPlan,
    TrainSummary,
};
use karat_model::ModelConfig;
use karat_model::peft::{Adapter, TargetModules};
use karat_system::memory;
use rayon::ThreadPool;

use crate::causal::score;
use crate::dropout::Dropout;
use crate::lora::{self, Adapted};
use crate::model::{Decoder, Rotary};
use crate::weights::{Vars, handles};
use crate::{Result, failed};
use checkpoint::{Checkpoint, at};
use learner::{Learner, set, targets};

/// What a training run borrows from its session.
pub struct Job<'a> {
    /// The configuration of the model.
    pub config: &'a mut ModelConfig,
    /// What evaluates; it becomes that of the trained model.
    pub decoder: &'a mut Decoder,
    /// The rotary embedding.
    pub rotary: &'a mut Rotary,
    /// The tensors of the model; trained in place.
    pub vars: &'a Vars,
    /// The folder it came from.
    pub source: &'a Path,
    /// Where the numbers lie.
    pub device: &'a Device,
    /// What computes them on the CPU.
    pub pool: &'a ThreadPool,
    /// Training rows.
    pub train: LabelledView<'a>,
    /// Evaluation rows.
    pub eval: LabelledView<'a>,
    /// What to do.
    pub plan: &'a TrainPlan,
}

/// State of a run between steps.
struct Run<'a> {
    job: Job<'a>,
    lora: Option<LoraConfig>,
    learner: Learner,
    step: usize,
    tokens: u64,
    log: Vec<LogEntry>,
    /// The saved step with the lowest evaluation loss.
    best_saved: Option<(f64, usize)>,
}

/// Whether the sink said stop.
type Stop = bool;

impl Job<'_> {
    /// Carries out the plan.
    ///
    /// # Errors
    /// See [`karat_backend::Trainer::train`]; also for a plan that contradicts itself or the model, for data without
    /// labels, and for losses or gradients that are not finite.
    pub fn run(self, sink: &mut dyn EventSink) -> Result<TrainSummary> {
        let started = Instant::now();
        let plan = self.plan;
        check_plan(plan, self.train)?;
        check_labels("training", self.train)?;
        check_labels("evaluation", self.eval)?;
        let lora = match &plan.method {
            Method::Full => None,
            Method::Lora(config) => Some(config.clone()),
        };
        let said = self.config.warnings.len();
        let (trained, adapted) = match &lora {
            None => (self.vars.clone(), Adapted::new()),
            Some(config) => attach(self.config, config, plan, self.vars, self.device)?,
        };
        let mut messages = self.config.warnings[said..].to_vec();
        if plan.recompute {
            messages.push("candle's autograd keeps the activations of a row: recompute changes nothing here".into());
        }
        for message in messages {
            // Who wants the run to stop says so again at its first step.
            let _ = sink.event(Event::Log { level: Level::Warn, message });
        }
        let all = || self.vars.iter().chain(&trained);
        let decoder = |learned: &dyn Fn(&str) -> bool| {
            Decoder::new(self.config, handles(all(), learned), &adapted, self.device).map_err(failed)
        };
        *self.decoder = decoder(&|_| false)?;
        let learner = Learner::new(decoder(&|name| trained.contains_key(name))?, trained.clone())?;
        let (step, tokens, log, best_saved) = (0, 0, Vec::new(), None);
        let mut run = Run { job: self, lora, learner, step, tokens, log, best_saved };
        if let Some(folder) = &plan.resume_from {
            run.restore(folder)?;
            if run.after_step(sink)? {
                return run.cancel(sink);
            }
        }
        while !run.done() {
            if run.take_step(sink)? || run.after_step(sink)? {
                return run.cancel(sink);
            }
        }
        Ok(TrainSummary {
            last_checkpoint: checkpoint::folder(&plan.output_dir, run.step),
            best_checkpoint: run.best_saved.map(|(_, step)| checkpoint::folder(&plan.output_dir, step)),
            steps: run.step,
            trainable_parameters: run.learner.trained.values().map(|var| var.elem_count() as u64).sum(),
            tokens: run.tokens,
            seconds: started.elapsed().as_secs_f64(),
            peak_memory: memory::peak(),
        })
    }
}

/// What an adapter trains: a new one, or the one that the plan starts from.
fn attach(
    model: &mut ModelConfig,
    config: &LoraConfig,
    plan: &TrainPlan,
    vars: &Vars,
    device: &Device,
) -> Result<(Vars, Adapted)> {
    let targets = lora::targets(model, config)?;
    let adapter = match &plan.init_adapter {
        Some(folder) => Some(Adapter::open(folder, &model.linears())?),
        None => None,
    };
    if let (Some(adapter), Some(folder)) = (&adapter, &plan.init_adapter) {
        let theirs = adapter.config();
        if TargetModules::new(model, theirs)? != targets {
            let says = |config: &LoraConfig| serde_json::to_string(config).unwrap_or_default();
            return Err(at(
                folder,
                format!("the adapter to start from is another one, {}; the plan says {}", says(theirs), says(config)),
            ));
        }
        model.warnings.extend_from_slice(adapter.warnings());
    }
    let drawn = (config.init_lora_weights, plan.seed);
    let mut trained = lora::low_rank(model, &targets, adapter.as_ref(), drawn, device)?;
    for name in &targets.whole {
        let Some(var) = vars.get(name) else { continue };
        if let Some(numbers) = adapter.as_ref().and_then(|a| a.saved_rows(name, var.dims(), 0..var.dims()[0])) {
            set(var, numbers?, device)?;
        }
        trained.insert(name.clone(), var.clone());
    }
    Ok((trained, targets.modules))
}

fn check_plan(plan: &TrainPlan, train: LabelledView<'_>) -> Result<()> {
    let n = plan.steps.len();
    if n == 0 || plan.learning_rates.len() != n || plan.epochs.len() != n {
        return Err(BackendError::failed(format!(
            "the plan has {n} steps, {} learning rates and {} epochs; it needs as many of each, at least one",
            plan.learning_rates.len(),
            plan.epochs.len()
        )));
    }
    if plan.early_stopping.is_some_and(|early| early.patience == 0) {
        return Err(BackendError::failed("early stopping needs a patience of at least 1"));
    }
    if plan.init_adapter.is_some() && plan.method == Method::Full {
        return Err(BackendError::failed("the plan trains all parameters but names an adapter to start from"));
    }
    let rows = train.tokens().rows();
    for (step, micros) in plan.steps.iter().enumerate() {
        if let Some(row) = micros.iter().flatten().find(|row| **row as usize >= rows) {
            return Err(BackendError::failed(format!("step {}: row {row} of {rows} training rows", step + 1)));
        }
        if label_tokens(train, micros.iter().flatten()) == 0 {
            return Err(BackendError::failed(format!(
                "step {}: every label is -100, there is nothing to train on (rows {:?}); drop these rows or raise the \
                 maximum length",
                step + 1,
                micros.concat()
            )));
        }
    }
    Ok(())
}

/// How many labels of `rows` are trained on.
fn label_tokens<'r>(data: LabelledView<'_>, rows: impl IntoIterator<Item = &'r u32>) -> u64 {
    rows.into_iter().map(|row| targets(data.row_labels(*row as usize)).0.len() as u64).sum()
}

/// Refuses labels that are neither ignored nor the id they stand for.
fn check_labels(what: &str, data: LabelledView<'_>) -> Result<()> {
    for (row, ids) in data.tokens().iter().enumerate() {
        for (place, (&id, &label)) in ids.iter().zip(data.row_labels(row)).enumerate() {
            if label != IGNORE && i64::from(label) != i64::from(id) {
                return Err(BackendError::failed(format!(
                    "{what} row {row}: label {label} at place {place} is neither {IGNORE} nor the id there ({id})"
                )));
            }
        }
    }
    Ok(())
}

impl Run<'_> {
    fn restore(&mut self, folder: &Path) -> Result<()> {
        let (plan, device) = (self.job.plan, self.job.device);
        let (trainer, run) =
            checkpoint::restore(folder, &plan.fingerprint, self.lora.is_some(), &mut self.learner, device)?;
        if run.step > plan.steps.len() {
            return Err(at(folder, format!("step {} of a plan with {} steps", run.step, plan.steps.len())));
        }
        (self.step, self.tokens, self.log) = (run.step, run.tokens, trainer.log_history);
        let best = trainer.best_model_checkpoint.as_deref().and_then(|name| name.strip_prefix("checkpoint-"));
        self.best_saved = best.and_then(|step| step.parse().ok()).and_then(|step| Some((self.evaluated(step)?, step)));
        Ok(())
    }

    /// One optimizer step.
    fn take_step(&mut self, sink: &mut dyn EventSink) -> Result<Stop> {
        let started = Instant::now();
        let (plan, index) = (self.job.plan, self.step);
        let (step, micros) = (index + 1, &plan.steps[index]);
        let window = label_tokens(self.job.train, micros.iter().flatten());
        let (mut micro_losses, mut fed) = (Vec::with_capacity(micros.len()), 0);
        for (number, rows) in micros.iter().enumerate() {
            let dropout = self.lora.as_ref().filter(|lora| lora.lora_dropout > 0.0);
            let dropout = dropout.map(|lora| Dropout {
                p: lora.lora_dropout,
                seed: plan.seed,
                step: step as u32,
                first_token: fed,
            });
            let Run { job: Job { pool, train, rotary, .. }, learner, .. } = self;
            let logprobs = pool.install(|| learner.add(*train, rows, 1.0 / window as f64, dropout, rotary))?;
            let loss = logprobs.iter().map(|l| -f64::from(*l)).sum::<f64>() / window as f64;
            if !loss.is_finite() {
                return Err(BackendError::failed(format!(
                    "step {step}, micro-batch {} (training rows {rows:?}): the loss is {loss}; no checkpoint is \
                     written. Lower the learning rate or look at these rows",
                    number + 1
                )));
            }
            micro_losses.push(loss);
            fed += rows.iter().map(|row| self.job.train.tokens().row(*row as usize).len() as u64).sum::<u64>();
        }
        let grad_norm = self.update(index)?;
        self.step = step;
        self.tokens += fed;
        let loss: f64 = micro_losses.iter().sum();
        let (learning_rate, epoch) = (plan.learning_rates[index], plan.epochs[index]);
        self.log.push(LogEntry {
            epoch,
            grad_norm: Some(grad_norm),
            learning_rate: Some(learning_rate),
            loss: Some(loss),
            step,
            ..LogEntry::default()
        });
        let event = StepEvent {
            step,
            epoch,
            loss,
            micro_losses,
            learning_rate,
            grad_norm,
            label_tokens: window,
            tokens: self.tokens,
            seconds: started.elapsed().as_secs_f64(),
            memory: memory::resident(),
        };
        Ok(sink.event(Event::Step(event)) == Flow::Stop)
    }

    /// Checks, clips and applies the gradients; returns their norm before clipping.
    fn update(&mut self, index: usize) -> Result<f64> {
        let Run { job: Job { plan, pool, .. }, learner, .. } = self;
        let step = index + 1;
        // By the second step every trained tensor must have had a gradient; `A` of a fresh adapter has one only after
        // `B` has moved, that is after the first learning rate above 0.
        let moved = plan.learning_rates.iter().position(|lr| *lr > 0.0).unwrap_or(plan.steps.len());
        let check_reach = index == (moved + 1).max(1);
        pool.install(|| {
            let mut total = 0f64;
            for (name, sum) in learner.squares()? {
                if !sum.is_finite() {
                    return Err(BackendError::failed(format!(
                        "step {step} (training rows {:?}): the gradient of {name} is not finite; no checkpoint is \
                         written. Lower the learning rate or look at these rows",
                        plan.steps[index].concat()
                    )));
                }
                if sum == 0.0 && check_reach && !learner.reached(name)? {
                    return Err(BackendError::failed(format!(
                        "step {step}: {name} has had no gradient other than zero yet, so it would not be trained: an \
                         adapter of scale 0, or a backward pass that is cut"
                    )));
                }
                total += sum;
            }
            let norm = total.sqrt();
            let clip = if plan.max_grad_norm > 0.0 { (plan.max_grad_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
            learner.update(&plan.optimizer, plan.learning_rates[index], step, clip)?;
            Ok(norm)
        })
    }

    /// Whether the plan is carried out, or the evaluation losses say that it is enough.
    fn done(&self) -> bool {
        let losses = self.log.iter().filter_map(|entry| entry.eval_loss);
        let plan = self.job.plan;
        self.step == plan.steps.len() || plan.early_stopping.is_some_and(|early| early.stops(losses))
    }

    /// Evaluates and saves where the plan says so; a step done before a resume is not done again.
    fn after_step(&mut self, sink: &mut dyn EventSink) -> Result<Stop> {
        let plan = self.job.plan;
        let last = self.step == plan.steps.len();
        let due = |every: usize| last || (every > 0 && self.step.is_multiple_of(every) && self.step > 0);
        let (evaluate, save) = (due(plan.eval_every), due(plan.save_every));
        let rows = self.job.eval.tokens().rows();
        if evaluate && rows > 0 && self.evaluated(self.step).is_none() && self.evaluate(sink)? {
            return Ok(true);
        }
        let early = !last && self.done();
        if early {
            let (step, planned) = (self.step, plan.steps.len());
            let message = format!("stopped early after step {step} of {planned}: the evaluation loss no longer falls");
            if sink.event(Event::Log { level: Level::Info, message }) == Flow::Stop {
                return Ok(true);
            }
        }
        if save || early {
            let path = self.publish(true)?;
            return Ok(sink.event(Event::Checkpoint { step: self.step, path }) == Flow::Stop);
        }
        Ok(false)
    }

    fn evaluated(&self, step: usize) -> Option<f64> {
        self.log.iter().find(|entry| entry.step == step && entry.eval_loss.is_some())?.eval_loss
    }

    /// Mean negative log-likelihood of the held-out labels.
    fn evaluate(&mut self, sink: &mut dyn EventSink) -> Result<Stop> {
        let started = Instant::now();
        let Job { decoder, rotary, pool, eval, plan, .. } = &mut self.job;
        let total = eval.tokens().rows();
        let (mut sum, mut count, mut tokens) = (0f64, 0u64, 0u64);
        for (row, ids) in eval.tokens().iter().enumerate() {
            let (at, _) = targets(eval.row_labels(row));
            if !at.is_empty() {
                let scores = pool.install(|| score(&mut decoder.row(rotary), ids))?;
                sum -= at.iter().map(|at| f64::from(scores.logprobs[*at as usize])).sum::<f64>();
            }
            count += at.len() as u64;
            tokens += ids.len() as u64;
            let done = row + 1;
            if done == total || done.is_multiple_of(plan.eval_batch_size.max(1)) {
                let (done, total) = (done as u64, total as u64);
                if sink.event(Event::Progress { stage: "evaluate".into(), done, total, tokens }) == Flow::Stop {
                    return Ok(true);
                }
            }
        }
        if count == 0 {
            return Err(BackendError::failed(
                "every label of the evaluation rows is -100, there is nothing to measure",
            ));
        }
        let (loss, step) = (sum / count as f64, self.step);
        if !loss.is_finite() {
            return Err(BackendError::failed(format!("step {step}: the evaluation loss is {loss}")));
        }
        let epoch = step.checked_sub(1).map_or(0.0, |i| plan.epochs[i]);
        self.log.push(LogEntry { epoch, eval_loss: Some(loss), step, ..LogEntry::default() });
        let seconds = started.elapsed().as_secs_f64();
        Ok(sink.event(Event::Evaluation { step, loss, tokens: count, seconds }) == Flow::Stop)
    }

    /// Publishes the checkpoint of this step and deletes those beyond the limit. One that the plan did not ask for is no
    /// candidate for the best: an interrupted run ends with the same best as one that went through.
    fn publish(&mut self, planned: bool) -> Result<PathBuf> {
        if planned
            && let Some(loss) = self.evaluated(self.step)
            && self.best_saved.is_none_or(|(best, _)| loss < best)
        {
            self.best_saved = Some((loss, self.step));
        }
        let plan = self.job.plan;
        let run = RunState {
            version: RunState::VERSION,
            fingerprint: plan.fingerprint.clone(),
            step: self.step,
            tokens: self.tokens,
            backend: crate::NAME.into(),
        };
        let folder = checkpoint::folder(&plan.output_dir, self.step);
        let trainer = self.trainer_state();
        // What a resumed run would write again is there already, to the byte.
        if !checkpoint::says(&folder, &trainer, &run) {
            let (Job { config, source, .. }, Learner { trained, moments, .. }) = (&self.job, &self.learner);
            let lora = self.lora.as_ref();
            Checkpoint { config, source, lora, trained, moments, trainer: &trainer, run: &run }.publish(&folder)?;
        }
        let best = self.best_saved.map(|(_, step)| step);
        checkpoint::rotate(&plan.output_dir, &run.fingerprint, plan.save_total_limit, self.step, best)?;
        Ok(folder)
    }

    fn trainer_state(&self) -> TrainerState {
        let plan = self.job.plan;
        let evaluations = self.log.iter().filter_map(|entry| Some((entry.eval_loss?, entry.step)));
        let best = evaluations.min_by(|a, b| a.0.total_cmp(&b.0));
        TrainerState {
            best_global_step: best.map(|(_, step)| step),
            best_metric: best.map(|(loss, _)| loss),
            best_model_checkpoint: self.best_saved.map(|(_, step)| format!("checkpoint-{step}")),
            epoch: self.step.checked_sub(1).map_or(0.0, |i| plan.epochs[i]),
            eval_steps: plan.eval_every,
            global_step: self.step,
            is_local_process_zero: true,
            is_world_process_zero: true,
            log_history: self.log.clone(),
            logging_steps: 1,
            max_steps: plan.steps.len(),
            num_input_tokens_seen: self.tokens,
            num_train_epochs: plan.epochs.last().map_or(0, |e| e.ceil() as usize),
            save_steps: plan.save_every,
            train_batch_size: plan.steps.first().and_then(|step| step.first()).map(Vec::len),
            ..TrainerState::default()
        }
    }

    /// Leaves a checkpoint to resume from.
    fn cancel(&mut self, sink: &mut dyn EventSink) -> Result<TrainSummary> {
        let path = self.publish(false)?;
        sink.event(Event::Checkpoint { step: self.step, path });
        Err(BackendError::cancelled())
    }
}
