//! The training loop.

use std::cmp::Reverse;
use std::path::{Path, PathBuf};
use std::time::Instant;

use karat_backend::state::{LogEntry, Progress, checkpoint_folder};
use karat_backend::{BackendError, Event, EventSink, Flow, LabelledView, Level, StepEvent, TrainPlan, TrainSummary};
use rayon::ThreadPool;

use super::{Dropout, Learner, MicroBatch, OptimizerStep, Result, TensorState, checkpoint, plan};
use crate::config::ModelConfig;
use crate::publish::Shapes;

/// The model that is trained.
#[derive(Clone, Copy)]
pub struct TrainedModel<'a> {
    /// Short name of the backend that trains it.
    pub backend: &'static str,
    /// Its configuration.
    pub config: &'a ModelConfig,
    /// The folder it came from.
    pub source: &'a Path,
    /// The threads that compute.
    pub pool: &'a ThreadPool,
}

/// A plan with its rows, checked.
pub struct TrainingRun<'a> {
    plan: &'a TrainPlan,
    train: LabelledView<'a>,
    eval: LabelledView<'a>,
    started: Instant,
}

impl<'a> TrainingRun<'a> {
    /// Checks plan and rows against each other and against the model; the time of the run is
    /// counted from here.
    ///
    /// # Errors
    /// For a plan that contradicts itself or the model, rows that the model cannot take, data
    /// without labels.
    pub fn new(
        config: &ModelConfig,
        plan: &'a TrainPlan,
        train: LabelledView<'a>,
        eval: LabelledView<'a>,
    ) -> Result<Self> {
        let started = Instant::now();
        plan::check(config, plan, train, eval)?;
        Ok(TrainingRun { plan, train, eval, started })
    }

    /// Carries out the plan.
    ///
    /// # Errors
    /// See [`karat_backend::Trainer::train`]; also for losses and gradients that are not finite,
    /// and for a checkpoint to resume from that is broken or of another plan.
    pub fn carry_out(
        self,
        base: TrainedModel<'_>,
        learner: &mut impl Learner,
        sink: &mut dyn EventSink,
    ) -> Result<TrainSummary> {
        let (plan, started) = (self.plan, self.started);
        let trained = learner.trained();
        let mut steps = LoopState { run: self, base, learner, trained, progress: Progress::default() };
        if let Some(folder) = &plan.resume_from {
            let LoopState { learner, trained, .. } = &mut steps;
            steps.progress = base.pool.install(|| checkpoint::restore(folder, plan, *learner, trained))?;
            if steps.after_step(sink)? {
                return steps.cancel(sink);
            }
        }
        while !steps.done() {
            if steps.take_step(sink)? || steps.after_step(sink)? {
                return steps.cancel(sink);
            }
        }
        let LoopState { progress, learner, trained, .. } = steps;
        let elements = |shape: &Vec<usize>| shape.iter().map(|n| *n as u64).product::<u64>();
        Ok(TrainSummary {
            last_checkpoint: checkpoint_folder(&plan.output_dir, progress.step),
            best_checkpoint: progress.best_saved.map(|(_, step)| checkpoint_folder(&plan.output_dir, step)),
            steps: progress.step,
            trainable_parameters: trained.values().map(elements).sum(),
            tokens: progress.tokens,
            seconds: started.elapsed().as_secs_f64(),
            peak_memory: learner.peak_memory(),
        })
    }
}

/// Whether the sink said stop.
type Stop = bool;

/// A run between steps.
struct LoopState<'a, L> {
    run: TrainingRun<'a>,
    base: TrainedModel<'a>,
    learner: &'a mut L,
    trained: Shapes,
    progress: Progress,
}

impl<L: Learner> LoopState<'_, L> {
    /// One optimizer step.
    fn take_step(&mut self, sink: &mut dyn EventSink) -> Result<Stop> {
        let started = Instant::now();
        let LoopState { run: TrainingRun { plan, train, .. }, base, learner, progress, .. } = self;
        let (plan, index) = (*plan, progress.step);
        let (step, micros) = (index + 1, &plan.steps[index]);
        let batches: Vec<MicroBatch<'_>> = micros.iter().map(|rows| MicroBatch::new(*train, rows)).collect();
        let window: u64 = batches.iter().map(|batch| batch.targets().count() as u64).sum();
        base.pool.install(|| learner.zero_gradients())?;
        let (mut queued, mut fed) = (Vec::with_capacity(micros.len()), 0u64);
        for &batch in &batches {
            let dropout =
                checkpoint::lora(plan).map(|_| Dropout { seed: plan.seed, step: step as u32, first_token: fed });
            queued.push(base.pool.install(|| learner.add_gradients(batch, 1.0 / window as f64, dropout))?);
            fed += batch.tokens();
        }
        // Numbers come to the host after all of the step is queued. A gradient that is not finite
        // has changed nothing.
        let updated = self.update(index);
        let mut micro_losses = Vec::with_capacity(micros.len());
        for (number, (rows, logprobs)) in micros.iter().zip(queued).enumerate() {
            let logprobs = self.learner.log_probs(logprobs)?;
            let loss = logprobs.iter().map(|l| -f64::from(*l)).sum::<f64>() / window as f64;
            if !loss.is_finite() {
                return Err(BackendError::failed(format!(
                    "step {step}, micro-batch {} (training rows {rows:?}): the loss is {loss}; no checkpoint is written. \
                     Lower the learning rate or look at these rows",
                    number + 1
                )));
            }
            micro_losses.push(loss);
        }
        let grad_norm = updated?;
        let (learning_rate, epoch) = (plan.learning_rates[index], plan.epochs[index]);
        let (progress, loss) = (&mut self.progress, micro_losses.iter().sum());
        (progress.step, progress.tokens) = (step, progress.tokens + fed);
        progress.log.push(LogEntry {
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
            tokens: progress.tokens,
            seconds: started.elapsed().as_secs_f64(),
            memory: self.learner.memory(),
        };
        Ok(sink.event(Event::Step(event)) == Flow::Stop)
    }

    /// Clips, applies and checks the gradients; returns their norm before clipping.
    fn update(&mut self, index: usize) -> Result<f64> {
        let LoopState { run: TrainingRun { plan, .. }, base, learner, trained, .. } = self;
        let number = index + 1;
        // By the second step every trained tensor must have had a gradient; `A` of a fresh adapter
        // has one only after `B` has moved, that is after the first learning rate above 0.
        let moved = plan.learning_rates.iter().position(|lr| *lr > 0.0).unwrap_or(plan.steps.len());
        let check_reach = index == (moved + 1).max(1);
        let (learning_rate, adamw, max_grad_norm) = (plan.learning_rates[index], &plan.optimizer, plan.max_grad_norm);
        let step = OptimizerStep { number, learning_rate, adamw, max_grad_norm };
        let squares = base.pool.install(|| learner.update(step))?;
        let mut total = 0f64;
        for (name, square) in trained.keys().zip(squares) {
            if !square.is_finite() {
                return Err(BackendError::failed(format!(
                    "step {number} (training rows {:?}): the gradient of {name} is not finite; no checkpoint is written. \
                     Lower the learning rate or look at these rows",
                    plan.steps[index].concat()
                )));
            }
            if square == 0.0 && check_reach && never_reached(*learner, name)? {
                return Err(BackendError::failed(format!(
                    "step {number}: {name} has had no gradient other than zero yet, so it would not be trained: an \
                     adapter of scale 0, or a backward pass that is cut"
                )));
            }
            total += square;
        }
        Ok(total.sqrt())
    }

    /// Whether the plan is carried out, or the evaluation losses say that it is enough.
    fn done(&self) -> bool {
        let losses = self.progress.log.iter().filter_map(|entry| entry.eval_loss);
        let plan = self.run.plan;
        self.progress.step == plan.steps.len() || plan.early_stopping.is_some_and(|early| early.stops(losses))
    }

    /// Evaluates and saves where the plan says so; a step done before a resume is not done again.
    fn after_step(&mut self, sink: &mut dyn EventSink) -> Result<Stop> {
        let (plan, step) = (self.run.plan, self.progress.step);
        let last = step == plan.steps.len();
        let due = |every: usize| last || (every > 0 && step.is_multiple_of(every) && step > 0);
        let (evaluate, save) = (due(plan.eval_every), due(plan.save_every));
        let rows = self.run.eval.tokens().rows();
        if evaluate && rows > 0 && self.progress.evaluated(step).is_none() && self.evaluate(sink)? {
            return Ok(true);
        }
        let early = !last && self.done();
        if early {
            let planned = plan.steps.len();
            let message = format!("stopped early after step {step} of {planned}: the evaluation loss no longer falls");
            if sink.event(Event::Log { level: Level::Info, message }) == Flow::Stop {
                return Ok(true);
            }
        }
        if save || early {
            let path = self.publish(true)?;
            return Ok(sink.event(Event::Checkpoint { step, path }) == Flow::Stop);
        }
        Ok(false)
    }

    /// Mean negative log-likelihood of the held-out labels; rows of like length go together.
    fn evaluate(&mut self, sink: &mut dyn EventSink) -> Result<Stop> {
        let started = Instant::now();
        let LoopState { run: TrainingRun { plan, eval, .. }, base, learner, progress, .. } = self;
        let (rows, step) = (eval.tokens().rows(), progress.step);
        let mut order: Vec<u32> = (0..rows as u32).collect();
        order.sort_by_key(|&row| Reverse(eval.tokens().row(row as usize).len()));
        let (mut sums, mut count, mut done, mut tokens) = (vec![0f64; rows], 0u64, 0u64, 0u64);
        for together in order.chunks(plan.eval_batch_size.max(1)) {
            let batch = MicroBatch::new(*eval, together);
            let logprobs = base.pool.install(|| learner.score(batch))?;
            let mut rest = logprobs.iter();
            for (&row, (_, targets)) in together.iter().zip(batch.rows()) {
                rest.by_ref().take(targets.count()).for_each(|logprob| sums[row as usize] -= f64::from(*logprob));
            }
            count += logprobs.len() as u64;
            done += together.len() as u64;
            tokens += batch.tokens();
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
            return Err(BackendError::failed(format!("step {step}: the evaluation loss is {loss}")));
        }
        let epoch = progress.epoch(plan);
        progress.log.push(LogEntry { epoch, eval_loss: Some(loss), step, ..LogEntry::default() });
        let seconds = started.elapsed().as_secs_f64();
        Ok(sink.event(Event::Evaluation { step, loss, tokens: count, seconds }) == Flow::Stop)
    }

    /// Publishes the checkpoint of this step and deletes those beyond the limit. One that the plan
    /// did not ask for is no candidate for the best: an interrupted run ends with the same best as
    /// one that went through.
    fn publish(&mut self, planned: bool) -> Result<PathBuf> {
        let (plan, base, progress) = (self.run.plan, self.base, &mut self.progress);
        if planned
            && let Some(loss) = progress.evaluated(progress.step)
            && progress.best_saved.is_none_or(|(best, _)| loss < best)
        {
            progress.best_saved = Some((loss, progress.step));
        }
        let folder = checkpoint_folder(&plan.output_dir, progress.step);
        // A resumed run finds the checkpoint that it started from, to the byte.
        if !progress.is_in(&folder, plan, base.backend) {
            checkpoint::publish(&folder, base, plan, &*self.learner, &self.trained, progress)?;
        }
        checkpoint::rotate(plan, progress)?;
        Ok(folder)
    }

    /// Leaves a checkpoint to resume from.
    fn cancel(&mut self, sink: &mut dyn EventSink) -> Result<TrainSummary> {
        let path = self.publish(false)?;
        sink.event(Event::Checkpoint { step: self.progress.step, path });
        Err(BackendError::cancelled())
    }
}

/// Whether no gradient ever reached the trained tensor `name`: its second moment is zero.
fn never_reached(learner: &impl Learner, name: &str) -> Result<bool> {
    let mut zero = true;
    learner.read(TensorState::SecondMoment, name, &mut |values| {
        zero &= values.iter().all(|v| *v == 0.0);
        Ok(())
    })?;
    Ok(zero)
}
