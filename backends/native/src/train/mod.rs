//! The training loop: what the host planned, carried out step by step.
//!
//! One step sums the gradients of its micro-batches, each scaled by the labelled tokens of the *whole* step, so that
//! accumulation equals one large batch; clips by the global norm as `torch.nn.utils.clip_grad_norm_` does; and updates
//! with AdamW. Everything random is drawn by counter, so a resumed run goes on as if it had never stopped.

pub(crate) mod checkpoint;
mod examples;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use karat_backend::LoraConfig;
use karat_backend::state::{LogEntry, RunState, TrainerState};
use karat_backend::{
    BackendError, Event, EventSink, Flow, LabelledView, Level, Method, StepEvent, TrainPlan, TrainSummary,
};
use karat_model::peft::TargetModules;
use karat_system::memory;
use rayon::ThreadPool;

use crate::adapter;
use crate::device::{Device, Optimizer, Parameter};
use crate::error::Result;
use crate::linear::{Dropout, Gradients};
use crate::memory::{TrainingShape, held, peak};
use crate::model::{Decoder, Targets, excluded_from_decay};
use crate::ops::adamw::Update;
use crate::profile;
use crate::tensor::{Gradient, Tensor, sum_of_squares, view, zeros_like};
use checkpoint::{Checkpoint, Moments};
use examples::{Examples, check_labels, label_tokens};
use karat_kernels::memory::arena;

/// What a training run borrows from its session.
pub struct Job<'a> {
    /// The model; trained in place.
    pub model: &'a mut Decoder,
    /// The folder it came from.
    pub source: &'a Path,
    /// Where the numbers are computed.
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
    model: &'a Decoder,
    source: &'a Path,
    pool: &'a ThreadPool,
    train: LabelledView<'a>,
    eval: LabelledView<'a>,
    plan: &'a TrainPlan,
    lora: Option<LoraConfig>,
    trained: BTreeMap<String, Tensor>,
    moments: Moments,
    gradients: Gradients,
    optimizer: Box<dyn Optimizer>,
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
        let Job { model, source, pool, train, eval, plan } = self;
        check_plan(plan, train)?;
        model.check(train.tokens().iter())?;
        model.check(eval.tokens().iter())?;
        check_labels("training", train)?;
        check_labels("evaluation", eval)?;
        let lora = match &plan.method {
            Method::Full => None,
            Method::Lora(config) => {
                let said = model.config.warnings.len();
                attach(model, config, plan)?;
                for message in &model.config.warnings[said..] {
                    // Who wants the run to stop says so again at its first step.
                    let _ = sink.event(Event::Log { level: Level::Warn, message: message.clone() });
                }
                let device = model.device().clone();
                model.place(&device)?;
                Some(config.clone())
            }
        };
        if model.device().is_host() {
            announce(model, plan, train, eval, sink);
        }
        let trained = if lora.is_some() { model.adapter_tensors() } else { model.own()? };
        let moments = trained
            .iter()
            .map(|(name, t)| Ok((name.clone(), [zeros_like(t)?, zeros_like(t)?])))
            .collect::<Result<Moments>>()?;
        let once = lora.is_none() && plan.steps.iter().all(|micros| micros.len() == 1);
        let gradients = Gradients::new(&**model.device(), &trained, once)?;
        let optimizer = optimizer(&**model.device(), &trained, &moments)?;
        let (step, tokens, log, best_saved) = (0, 0, Vec::new(), None);
        let mut run = Run {
            model,
            source,
            pool,
            train,
            eval,
            plan,
            lora,
            trained,
            moments,
            gradients,
            optimizer,
            step,
            tokens,
            log,
            best_saved,
        };
        if let Some(folder) = &plan.resume_from {
            run.restore(folder)?;
            if run.after_step(sink)? {
                return run.cancel(sink);
            }
        }
        profile::reset();
        let training = Instant::now();
        while !run.done() {
            if run.take_step(sink)? || run.after_step(sink)? {
                return run.cancel(sink);
            }
        }
        if let Some(table) = profile::table(training.elapsed().as_secs_f64()) {
            eprint!("Where the time of {} steps went:\n{table}", run.step);
        }
        Ok(TrainSummary {
            last_checkpoint: checkpoint::folder(&plan.output_dir, run.step),
            best_checkpoint: run.best_saved.map(|(_, step)| checkpoint::folder(&plan.output_dir, step)),
            steps: run.step,
            trainable_parameters: run.trained.values().map(|t| t.elem_count() as u64).sum(),
            tokens: run.tokens,
            seconds: started.elapsed().as_secs_f64(),
            peak_memory: run.model.device().peak_memory(),
        })
    }
}

/// Says how much memory the run will need, and warns where the machine has less; gradients are put below that end.
fn announce(
    model: &Decoder,
    plan: &TrainPlan,
    train: LabelledView<'_>,
    eval: LabelledView<'_>,
    sink: &mut dyn EventSink,
) {
    let run = TrainingShape::of(model, plan, train, eval);
    let needs = peak(&model.config, &run);
    arena::expect(usize::try_from(needs.passes).unwrap_or(usize::MAX));
    for (level, message) in run.remarks(&needs, held(model), memory::available()) {
        // Who wants the run to stop says so again at its first step.
        let _ = sink.event(Event::Log { level, message });
    }
}

/// The optimizer of `trained`, in the order of their names.
fn optimizer(device: &dyn Device, trained: &BTreeMap<String, Tensor>, moments: &Moments) -> Result<Box<dyn Optimizer>> {
    let missing = || BackendError::failed("a trained tensor has no moments");
    let of_tensor = |(name, tensor): (&String, &Tensor)| {
        let moments = moments.get(name).ok_or_else(missing)?.clone();
        Ok(Parameter { tensor: tensor.clone(), moments, decays: !excluded_from_decay(name) })
    };
    device.optimizer(trained.iter().map(of_tensor).collect::<Result<_>>()?)
}

/// A new adapter, or the one the plan starts from.
fn attach(model: &mut Decoder, config: &LoraConfig, plan: &TrainPlan) -> Result<()> {
    let Some(folder) = &plan.init_adapter else { return adapter::draw(model, config, plan.seed) };
    let adapter = adapter::open(model, folder)?;
    let theirs = adapter.config();
    if TargetModules::new(&model.config, theirs)? != TargetModules::new(&model.config, config)? {
        let says = |config: &LoraConfig| serde_json::to_string(config).unwrap_or_default();
        return Err(crate::files::at(
            folder,
            format!("the adapter to start from is another one, {}; the plan says {}", says(theirs), says(config)),
        ));
    }
    adapter::load(model, config, adapter)
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
        if micros.iter().map(|micro| label_tokens(train, micro)).sum::<u64>() == 0 {
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

impl Run<'_> {
    fn restore(&mut self, folder: &Path) -> Result<()> {
        let (trainer, run) =
            checkpoint::restore(folder, &self.plan.fingerprint, self.lora.is_some(), &self.trained, &self.moments)?;
        if run.step > self.plan.steps.len() {
            let what = format!("step {} of a plan with {} steps", run.step, self.plan.steps.len());
            return Err(crate::files::at(folder, what));
        }
        self.pool.install(|| self.model.renorm())?;
        (self.step, self.tokens, self.log) = (run.step, run.tokens, trainer.log_history);
        let best = trainer.best_model_checkpoint.as_deref().and_then(|name| name.strip_prefix("checkpoint-"));
        self.best_saved = best.and_then(|step| step.parse().ok()).and_then(|step| Some((self.evaluated(step)?, step)));
        Ok(())
    }

    /// One optimizer step.
    fn take_step(&mut self, sink: &mut dyn EventSink) -> Result<Stop> {
        let started = Instant::now();
        let (plan, index) = (self.plan, self.step);
        let step = index + 1;
        let micros = &plan.steps[index];
        let window: u64 = micros.iter().map(|micro| label_tokens(self.train, micro)).sum();
        self.pool.install(|| self.gradients.clear(&**self.model.device()))?;
        let (mut micro_logprobs, mut first_token) = (Vec::with_capacity(micros.len()), 0u64);
        for rows in micros {
            let e = Examples::new(self.train, rows);
            let dropout = self.lora.as_ref().map(|_| Dropout { seed: plan.seed, step: step as u32, first_token });
            let scale = (1.0 / window as f64) as f32;
            let (model, gradients) = (self.model, &self.gradients);
            let targets = Targets { at: &e.at, ids: &e.targets };
            let logprobs =
                self.pool.install(|| model.train(&e.batch, targets, scale, dropout, plan.recompute, gradients))?;
            micro_logprobs.push(logprobs);
            first_token += e.batch.ids.len() as u64;
        }
        let losses = || -> Result<Vec<f64>> {
            let of_micro = |(number, (rows, logprobs)): (usize, (&Vec<u32>, &Tensor))| {
                let loss = view(logprobs)?.iter().map(|l| -f64::from(*l)).sum::<f64>() / window as f64;
                if loss.is_finite() {
                    return Ok(loss);
                }
                Err(BackendError::failed(format!(
                    "step {step}, micro-batch {} (training rows {rows:?}): the loss is {loss}; no checkpoint is \
                     written. Lower the learning rate or look at these rows",
                    number + 1
                )))
            };
            micros.iter().zip(&micro_logprobs).enumerate().map(of_micro).collect()
        };
        // Numbers come to the host after all of the step is queued. A gradient that is not finite has changed nothing.
        let updated = self.update(index);
        let (micro_losses, grad_norm) = (losses()?, updated?);
        self.step = step;
        self.tokens += first_token;
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
            memory: self.model.device().memory(),
        };
        Ok(sink.event(Event::Step(event)) == Flow::Stop)
    }

    /// Checks, clips and applies the gradients; returns their norm before clipping.
    fn update(&self, index: usize) -> Result<f64> {
        let (plan, step) = (self.plan, index + 1);
        // By the second step every trained tensor must have had a gradient; `A` of a fresh adapter has one only after
        // `B` has moved, that is after the first learning rate above 0.
        let moved = plan.learning_rates.iter().position(|lr| *lr > 0.0).unwrap_or(plan.steps.len());
        let check_reach = index == (moved + 1).max(1);
        let update = Update {
            lr: plan.learning_rates[index],
            beta1: plan.optimizer.beta1,
            beta2: plan.optimizer.beta2,
            eps: plan.optimizer.eps,
            weight_decay: plan.optimizer.weight_decay,
            step: step as u32,
            gradient_scale: 1.0,
        };
        self.pool.install(|| {
            let gradients: Vec<&Gradient> = self.gradients.0.values().collect();
            let sums = self.optimizer.step(&gradients, plan.max_grad_norm, &update)?;
            let mut total = 0f64;
            for (name, sum) in self.gradients.0.keys().zip(sums) {
                if !sum.is_finite() {
                    return Err(BackendError::failed(format!(
                        "step {step} (training rows {:?}): the gradient of {name} is not finite; no checkpoint is \
                         written. Lower the learning rate or look at these rows",
                        plan.steps[index].concat()
                    )));
                }
                if sum == 0.0 && check_reach && self.never_reached(name)? {
                    return Err(BackendError::failed(format!(
                        "step {step}: {name} has had no gradient other than zero yet, so it would not be trained: an \
                         adapter of scale 0, or a backward pass that is cut"
                    )));
                }
                total += sum;
            }
            self.model.renorm()?;
            Ok(total.sqrt())
        })
    }

    /// Whether no gradient ever reached this tensor: its second moment is zero.
    fn never_reached(&self, name: &str) -> Result<bool> {
        match self.moments.get(name) {
            Some([_, v]) => Ok(sum_of_squares(v)? == 0.0),
            None => Ok(true),
        }
    }

    /// Whether the plan is carried out, or the evaluation losses say that it is enough.
    fn done(&self) -> bool {
        let losses = self.log.iter().filter_map(|entry| entry.eval_loss);
        self.step == self.plan.steps.len() || self.plan.early_stopping.is_some_and(|early| early.stops(losses))
    }

    /// Evaluates and saves where the plan says so; a step done before a resume is not done again.
    fn after_step(&mut self, sink: &mut dyn EventSink) -> Result<Stop> {
        let last = self.step == self.plan.steps.len();
        let due = |every: usize| last || (every > 0 && self.step.is_multiple_of(every) && self.step > 0);
        let (evaluate, save) = (due(self.plan.eval_every), due(self.plan.save_every));
        if evaluate && self.eval.tokens().rows() > 0 && self.evaluated(self.step).is_none() && self.evaluate(sink)? {
            return Ok(true);
        }
        let early = !last && self.done();
        if early {
            let message = format!(
                "stopped early after step {} of {}: the evaluation loss no longer falls",
                self.step,
                self.plan.steps.len()
            );
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

    /// Mean negative log-likelihood of the held-out labels; rows of like length go together.
    fn evaluate(&mut self, sink: &mut dyn EventSink) -> Result<Stop> {
        let started = Instant::now();
        let rows = self.eval.tokens().rows();
        let mut order: Vec<u32> = (0..rows as u32).collect();
        order.sort_by_key(|&row| std::cmp::Reverse(self.eval.tokens().row(row as usize).len()));
        let (mut sums, mut count, mut done, mut tokens) = (vec![0f64; rows], 0u64, 0u64, 0u64);
        for batch in order.chunks(self.plan.eval_batch_size.max(1)) {
            let e = Examples::new(self.eval, batch);
            let targets = self.pool.install(|| self.model.score(&e.batch, &e.at, &e.targets))?;
            for (target, row) in targets.iter().zip(&e.rows) {
                sums[batch[*row] as usize] -= f64::from(target.logprob);
            }
            count += targets.len() as u64;
            done += batch.len() as u64;
            tokens += e.batch.ids.len() as u64;
            let event = Event::Progress { stage: "evaluate".into(), done, total: rows as u64, tokens };
            if sink.event(event) == Flow::Stop {
                return Ok(true);
            }
        }
        if count == 0 {
            return Err(BackendError::failed(
                "every label of the evaluation rows is -100, there is nothing to measure",
            ));
        }
        let loss = sums.iter().sum::<f64>() / count as f64;
        if !loss.is_finite() {
            return Err(BackendError::failed(format!("step {}: the evaluation loss is {loss}", self.step)));
        }
        let epoch = self.step.checked_sub(1).map_or(0.0, |i| self.plan.epochs[i]);
        self.log.push(LogEntry { epoch, eval_loss: Some(loss), step: self.step, ..LogEntry::default() });
        let seconds = started.elapsed().as_secs_f64();
        Ok(sink.event(Event::Evaluation { step: self.step, loss, tokens: count, seconds }) == Flow::Stop)
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
        let run = RunState {
            version: RunState::VERSION,
            fingerprint: self.plan.fingerprint.clone(),
            step: self.step,
            tokens: self.tokens,
            backend: crate::NAME.into(),
        };
        let folder = checkpoint::folder(&self.plan.output_dir, self.step);
        let trainer = self.trainer_state();
        // What a resumed run would write again is there already, to the byte.
        if !checkpoint::says(&folder, &trainer, &run) {
            self.write(&folder, &trainer, &run)?;
        }
        let best = self.best_saved.map(|(_, step)| step);
        checkpoint::rotate(&self.plan.output_dir, &run.fingerprint, self.plan.save_total_limit, self.step, best)?;
        Ok(folder)
    }

    fn write(&self, folder: &Path, trainer: &TrainerState, run: &RunState) -> Result<()> {
        Checkpoint {
            model: self.model,
            source: self.source,
            lora: self.lora.as_ref(),
            moments: &self.moments,
            trainer,
            run,
        }
        .publish(folder)
    }

    fn trainer_state(&self) -> TrainerState {
        let plan = self.plan;
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
