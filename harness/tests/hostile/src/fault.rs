//! Faults that safe code can have.

use std::collections::BTreeMap;
use std::panic::panic_any;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::Duration;

use karat_backend::{
    Backend, BackendError, Completion, Descriptor, Evaluator, Event, EventSink, Flow, GenerateConfig, LabelledView,
    OpenConfig, Scores, Session, SessionInfo, TokensView, TrainPlan, TrainSummary, Trainer,
};

use crate::Bigram;

/// [`Bigram`] with the fault that the option `fault` names, or with none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hostile;

static SESSIONS: AtomicUsize = AtomicUsize::new(0);

/// How many sessions of this copy of the library are open.
pub fn sessions_alive() -> usize {
    SESSIONS.load(Ordering::SeqCst)
}

impl Backend for Hostile {
    fn describe(&self) -> Descriptor {
        if crate::table::fault_of_this_file().as_deref() == Some("describe_panics") {
            panic!("describe went wrong");
        }
        Descriptor { name: "hostile".into(), build: BTreeMap::new(), ..Bigram.describe() }
    }

    fn open(&self, config: &OpenConfig) -> Result<Box<dyn Session>, BackendError> {
        let mut config = config.clone();
        let fault = match config.options.remove("fault") {
            Some(serde_json::Value::String(fault)) => fault,
            _ => String::new(),
        };
        match fault.as_str() {
            "open_panics" => panic!("open went wrong"),
            // Its payload panics when it is dropped, and so does that one's.
            "payload_panics" => panic_any(Bomb(2)),
            _ => {}
        }
        let inner = Bigram.open(&config)?;
        SESSIONS.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(Faulty { inner, fault }))
    }
}

struct Bomb(u8);

impl Drop for Bomb {
    fn drop(&mut self) {
        if self.0 > 0 {
            panic_any(Bomb(self.0 - 1));
        }
    }
}

struct Faulty {
    inner: Box<dyn Session>,
    fault: String,
}

impl Drop for Faulty {
    fn drop(&mut self) {
        SESSIONS.fetch_sub(1, Ordering::SeqCst);
        if self.fault == "close_panics" {
            panic!("close went wrong");
        }
    }
}

impl Faulty {
    fn evaluate(&mut self) -> Result<&mut dyn Evaluator, BackendError> {
        self.inner.evaluator().ok_or_else(|| BackendError::failed("no evaluator"))
    }
}

impl Session for Faulty {
    fn evaluator(&mut self) -> Option<&mut dyn Evaluator> {
        Some(self)
    }
    fn trainer(&mut self) -> Option<&mut dyn Trainer> {
        Some(self)
    }
    /// The kernels tell what is alive in this copy of the library.
    fn info(&self) -> SessionInfo {
        if self.fault == "info_panics" {
            panic!("info went wrong");
        }
        let alive = vec![
            format!("answers alive: {}", karat_backend::abi::owned_alive()),
            format!("sessions alive: {}", sessions_alive()),
        ];
        SessionInfo { kernels: alive, ..self.inner.info() }
    }
}

impl Evaluator for Faulty {
    fn score(&mut self, tokens: TokensView<'_>, sink: &mut dyn EventSink) -> Result<Scores, BackendError> {
        match self.fault.as_str() {
            "score_panics" => panic!("score went wrong"),
            // Says so many things, and looks at the answer only at the end.
            "slow_cancel" => {
                let mut stop = false;
                for done in 0..20 {
                    sleep(Duration::from_millis(1));
                    let event = Event::Progress { stage: "score".into(), done, total: 20, tokens: 0 };
                    stop |= sink.event(event) == Flow::Stop;
                }
                return if stop { Err(BackendError::cancelled()) } else { self.evaluate()?.score(tokens, sink) };
            }
            "deaf" => {
                return self.evaluate()?.score(tokens, &mut |event: Event| {
                    sink.event(event);
                    Flow::Continue
                });
            }
            "silent" => return self.evaluate()?.score(tokens, &mut |_: Event| Flow::Continue),
            _ => {}
        }
        let mut scores = self.evaluate()?.score(tokens, sink)?;
        match self.fault.as_str() {
            "one_score_short" => drop(scores.logprobs.pop()),
            "improbable_scores" => scores.logprobs.iter_mut().for_each(|logprob| *logprob = -*logprob),
            "row_number_in_scores" => {
                scores.logprobs.iter_mut().enumerate().for_each(|(i, logprob)| *logprob -= i as f32 * 0.01);
            }
            _ => {}
        }
        Ok(scores)
    }

    fn generate(
        &mut self,
        prompts: TokensView<'_>,
        config: &GenerateConfig,
        sink: &mut dyn EventSink,
    ) -> Result<Vec<Completion>, BackendError> {
        let fault = self.fault.clone();
        match fault.as_str() {
            "generate_panics" => panic!("generate went wrong"),
            "untold_completions" => self.evaluate()?.generate(prompts, config, &mut |event: Event| match event {
                Event::Completion { .. } => Flow::Continue,
                event => sink.event(event),
            }),
            "no_stop_ids" => {
                self.evaluate()?.generate(prompts, &GenerateConfig { stop_ids: Vec::new(), ..config.clone() }, sink)
            }
            "no_seed" => self.evaluate()?.generate(prompts, &GenerateConfig { seed: 0, ..config.clone() }, sink),
            "one_token_more" => {
                let config = GenerateConfig { max_new_tokens: config.max_new_tokens + 1, ..config.clone() };
                self.evaluate()?.generate(prompts, &config, sink)
            }
            "one_completion_short" => {
                let mut made = self.evaluate()?.generate(prompts, config, sink)?;
                made.pop();
                Ok(made)
            }
            _ => self.evaluate()?.generate(prompts, config, sink),
        }
    }
}

impl Trainer for Faulty {
    fn train(
        &mut self,
        train: LabelledView<'_>,
        eval: LabelledView<'_>,
        plan: &TrainPlan,
        sink: &mut dyn EventSink,
    ) -> Result<TrainSummary, BackendError> {
        let fault = self.fault.clone();
        let trainer = self.inner.trainer().ok_or_else(|| BackendError::failed("no trainer"))?;
        match fault.as_str() {
            "train_panics" => panic!("train went wrong"),
            // The other way a value can be unlike any number: the run must still be told of it.
            "diverges" => trainer.train(train, eval, plan, &mut |event: Event| {
                sink.event(match event {
                    Event::Step(step) => {
                        Event::Step(karat_backend::StepEvent { loss: f64::NAN, grad_norm: f64::INFINITY, ..step })
                    }
                    other => other,
                })
            }),
            "steps_untold" => trainer.train(train, eval, plan, &mut |event: Event| match event {
                Event::Step(step) if step.step == 2 => Flow::Continue,
                event => sink.event(event),
            }),
            // The learning rate of the first steps is that of the resumed ones: a wrong
            // continuation.
            "resumes_wrong" if plan.resume_from.is_some() => {
                let mut plan = plan.clone();
                plan.learning_rates.iter_mut().for_each(|rate| *rate *= 0.5);
                trainer.train(train, eval, &plan, sink)
            }
            _ => trainer.train(train, eval, plan, sink),
        }
    }
}
