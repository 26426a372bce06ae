//! Training.

use std::path::{Path, PathBuf};

use super::{Case, Suite, Verdict, draw_rows, ensure, is_work, ragged, refused, scoring};
use crate::{
    AdamW, BackendError, BackendErrorKind, Capability, Event, Flow, IGNORE, LabelledView, Method, OpenConfig,
    StepEvent, TrainPlan, TrainSummary, Weights,
};

const TRAIN: [usize; 8] = [12, 7, 3, 9, 16, 2, 11, 5];
const EVAL: [usize; 3] = [8, 3, 14];
const STEPS: usize = 4;

pub(super) fn rules(suite: &mut Suite<'_>, capabilities: &[Capability]) {
    if capabilities.contains(&Capability::TrainFull) {
        suite.rule("full_training_reports_and_saves_every_step_of_the_plan", |case| runs_the_plan(case, Method::Full));
        suite.rule("full_training_stops_and_resumes_as_if_it_never_had", |case| resumes(case, Method::Full));
    }
    if capabilities.contains(&Capability::TrainLora) {
        suite.rule("lora_training_reports_and_saves_every_step_of_the_plan", |case| {
            runs_the_plan(case, Method::Lora(case.fixture.lora.clone()))
        });
        suite.rule("lora_training_stops_and_resumes_as_if_it_never_had", |case| {
            resumes(case, Method::Lora(case.fixture.lora.clone()))
        });
    }
}

fn runs_the_plan(case: &Case<'_>, method: Method) -> Verdict {
    let scratch = scratch()?;
    let data = Data::draw(case)?;
    let plan = plan(case, method, scratch.path());
    let run = data.train(case, &plan, |_| Flow::Continue)?;
    let summary = run.result.map_err(|e| format!("training failed: {e}"))?;

    let steps = steps_of(&run.events);
    ensure!(steps.len() == STEPS, "{} step events of {STEPS} steps", steps.len());
    let mut tokens = 0;
    for (i, step) in steps.iter().enumerate() {
        let rows = plan.steps[i].iter().flatten().map(|&row| row as usize);
        let label_tokens: u64 = rows.clone().map(|row| data.trained_on(row)).sum();
        tokens += rows.map(|row| data.train[row].len() as u64).sum::<u64>();
        ensure!(step.step == i + 1, "step {} comes as number {}", step.step, i + 1);
        let finite = step.loss.is_finite() && step.grad_norm.is_finite() && step.seconds >= 0.0;
        ensure!(finite && step.loss > 0.0 && step.grad_norm > 0.0, "{step:?}");
        ensure!(
            step.learning_rate == plan.learning_rates[i] && step.epoch == plan.epochs[i],
            "not as planned: {step:?}"
        );
        ensure!(step.label_tokens == label_tokens, "{label_tokens} tokens are trained on: {step:?}");
        ensure!(step.tokens == tokens, "{tokens} tokens have been fed: {step:?}");
        let sum: f64 = step.micro_losses.iter().sum();
        let adds_up = step.micro_losses.is_empty()
            || step.micro_losses.len() == plan.steps[i].len() && (sum - step.loss).abs() <= 1e-5 * step.loss.abs();
        ensure!(adds_up, "the losses of the micro-batches do not add up: {step:?}");
    }

    let evaluated: Vec<(usize, u64, bool)> = run
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Evaluation { step, loss, tokens, .. } => Some((*step, *tokens, loss.is_finite() && *loss > 0.0)),
            _ => None,
        })
        .collect();
    let held_out = data.eval_labels.iter().filter(|&&label| label != IGNORE).count() as u64;
    let wanted = [(2, held_out, true), (4, held_out, true)];
    ensure!(evaluated == wanted, "evaluations (step, tokens, is a loss): {evaluated:?}, not {wanted:?}");

    let saved = checkpoints_of(&run.events);
    let wanted = [2, 4].map(|step| (step, scratch.path().join(format!("checkpoint-{step}"))));
    ensure!(saved == wanted, "checkpoints {saved:?}, not {wanted:?}");
    let last = &wanted[1].1;
    ensure!(summary.last_checkpoint == *last, "the last checkpoint is {last:?}: {summary:?}");
    let best = summary.best_checkpoint.as_ref();
    ensure!(
        best.is_some_and(|best| wanted.iter().any(|(_, path)| path == best)),
        "the best is none of them: {summary:?}"
    );
    ensure!(summary.steps == STEPS && summary.tokens == tokens, "not what was done: {summary:?}");
    ensure!(summary.trainable_parameters > 0 && summary.seconds > 0.0, "{summary:?}");

    let before = scoring::score(&mut *case.open()?, &data.eval)?.logprobs;
    let after = data.score_checkpoint(case, &plan.method, last)?;
    ensure!(after.iter().all(|logprob| logprob.is_finite()), "the checkpoint scores {after:?}");
    ensure!(before != after, "the trained checkpoint scores exactly as the model it started from");
    Ok(())
}

fn resumes(case: &Case<'_>, method: Method) -> Verdict {
    let (whole, parts) = (scratch()?, scratch()?);
    let data = Data::draw(case)?;
    let plan_whole = plan(case, method, whole.path());
    let uninterrupted = data.train(case, &plan_whole, |_| Flow::Continue)?;
    uninterrupted.result.map_err(|e| format!("training failed: {e}"))?;

    let mut plan = TrainPlan { output_dir: parts.path().to_owned(), ..plan_whole.clone() };
    let stopped = data.train(case, &plan, |event| match event {
        Event::Step(_) => Flow::Stop,
        _ => Flow::Continue,
    })?;
    match stopped.result {
        Err(e) if e.kind == BackendErrorKind::Cancelled => {}
        Err(e) => return Err(format!("told to stop, it ended as {:?}: {e}", e.kind)),
        Ok(summary) => return Err(format!("told to stop after the first step, it did not: {summary:?}")),
    }
    let after = stopped.events.iter().skip_while(|event| !matches!(event, Event::Step(_))).skip(1);
    if let Some(event) = after.clone().find(|event| is_work(event)) {
        return Err(format!("it worked on after it was told to stop: {event:?}"));
    }
    let saved = checkpoints_of(&stopped.events);
    let wanted = [(1, parts.path().join("checkpoint-1"))];
    ensure!(saved == wanted && wanted[0].1.is_dir(), "it left the checkpoints {saved:?}, not {wanted:?}");

    plan.resume_from = Some(wanted[0].1.clone());
    let stranger = TrainPlan { fingerprint: "of another plan".into(), ..plan.clone() };
    refused("a checkpoint of another plan", data.train(case, &stranger, |_| Flow::Continue)?.result)?;

    let resumed = data.train(case, &plan, |_| Flow::Continue)?;
    let summary = resumed.result.map_err(|e| format!("resuming failed: {e}"))?;
    ensure!(summary.steps == STEPS, "{STEPS} steps were done in all: {summary:?}");
    let (all, rest) = (steps_of(&uninterrupted.events), steps_of(&resumed.events));
    ensure!(rest.len() == STEPS - 1, "{} steps were left, not {}", STEPS - 1, rest.len());
    let tolerance = case.fixture.resume_tolerance;
    let close = |a: f64, b: f64| (a - b).abs() <= tolerance * a.abs();
    for (all, rest) in all[1..].iter().zip(&rest) {
        let same = all.step == rest.step && all.tokens == rest.tokens;
        ensure!(
            same && close(all.loss, rest.loss) && close(all.grad_norm, rest.grad_norm),
            "without a stop: {all:?}; resumed: {rest:?}"
        );
    }
    let last = format!("checkpoint-{STEPS}");
    let a = data.score_checkpoint(case, &plan.method, &whole.path().join(&last))?;
    let b = data.score_checkpoint(case, &plan.method, &parts.path().join(&last))?;
    let same = a.len() == b.len() && a.iter().zip(&b).all(|(&a, &b)| close(a.into(), b.into()));
    ensure!(same, "the last checkpoint scores {a:?} without a stop, {b:?} resumed");
    Ok(())
}

fn scratch() -> Result<tempfile::TempDir, String> {
    tempfile::tempdir().map_err(|e| format!("no temporary folder: {e}"))
}

fn plan(case: &Case<'_>, method: Method, output_dir: &Path) -> TrainPlan {
    // Two micro-batches of one row each: every row is seen once in four steps.
    let steps = (0..STEPS as u32).map(|step| vec![vec![2 * step], vec![2 * step + 1]]).collect();
    let share = |step: usize| step as f64 / STEPS as f64;
    TrainPlan {
        method,
        steps,
        learning_rates: (0..STEPS).map(|step| case.fixture.learning_rate * (1.0 - share(step))).collect(),
        epochs: (1..=STEPS).map(share).collect(),
        optimizer: AdamW::default(),
        max_grad_norm: 1.0,
        eval_every: 2,
        eval_batch_size: 2,
        save_every: 2,
        save_total_limit: 0,
        early_stopping: None,
        recompute: false,
        output_dir: output_dir.to_owned(),
        resume_from: None,
        init_adapter: None,
        seed: 42,
        fingerprint: "the plan of the conformance suite".into(),
    }
}

struct Data {
    train: Vec<Vec<u32>>,
    train_labels: Vec<i32>,
    eval: Vec<Vec<u32>>,
    eval_labels: Vec<i32>,
}

struct Run {
    result: Result<TrainSummary, BackendError>,
    events: Vec<Event>,
}

impl Data {
    fn draw(case: &Case<'_>) -> Result<Data, String> {
        let vocab = case.open()?.info().vocab_size;
        let (train, eval) = (draw_rows(3, vocab, &TRAIN), draw_rows(4, vocab, &EVAL));
        Ok(Data { train_labels: labels(&train), eval_labels: labels(&eval), train, eval })
    }

    /// Labels of row `row` that are trained on.
    fn trained_on(&self, row: usize) -> u64 {
        labels(&self.train[row..=row]).iter().filter(|&&label| label != IGNORE).count() as u64
    }

    fn train(&self, case: &Case<'_>, plan: &TrainPlan, mut answer: impl FnMut(&Event) -> Flow) -> Result<Run, String> {
        let mut session = case.open()?;
        let trainer = session.trainer().ok_or("the session has no trainer")?;
        let (train, eval) = (ragged(&self.train), ragged(&self.eval));
        let train = LabelledView::new(train.view(), &self.train_labels).map_err(|e| e.to_string())?;
        let eval = LabelledView::new(eval.view(), &self.eval_labels).map_err(|e| e.to_string())?;
        let mut events = Vec::new();
        let mut sink = |event: Event| {
            let flow = answer(&event);
            events.push(event);
            flow
        };
        let result = trainer.train(train, eval, plan, &mut sink);
        Ok(Run { result, events })
    }

    fn score_checkpoint(&self, case: &Case<'_>, method: &Method, path: &Path) -> Result<Vec<f32>, String> {
        ensure!(path.is_dir(), "there is no folder {}", path.display());
        let open = case.fixture.open.clone();
        let config = match method {
            Method::Full => OpenConfig { model: path.to_owned(), weights: Weights::Load, ..open },
            Method::Lora(_) => OpenConfig { adapter: Some(path.to_owned()), ..open },
        };
        Ok(scoring::score(&mut *case.open_as(&config)?, &self.eval)?.logprobs)
    }
}

/// The first third of a row is its prompt, and at least its first token, which nothing predicts.
fn labels(rows: &[Vec<u32>]) -> Vec<i32> {
    let row_labels = |row: &Vec<u32>| {
        let prompt = (row.len() / 3).max(1);
        let labels = row.iter().enumerate().map(|(k, &id)| if k < prompt { IGNORE } else { id as i32 });
        labels.collect::<Vec<_>>()
    };
    rows.iter().flat_map(row_labels).collect()
}

fn steps_of(events: &[Event]) -> Vec<&StepEvent> {
    events.iter().filter_map(|event| if let Event::Step(step) = event { Some(step) } else { None }).collect()
}

fn checkpoints_of(events: &[Event]) -> Vec<(usize, PathBuf)> {
    let checkpoint = |event: &Event| match event {
        Event::Checkpoint { step, path } => Some((*step, path.clone())),
        _ => None,
    };
    events.iter().filter_map(checkpoint).collect()
}
