//! The conformance suite: rules that every backend must satisfy.
//!
//! [`check`] puts a backend through its paces on a small model and says which rules hold. A
//! backend's own tests run it twice: on the type, in process, and on the plugin that the host loads
//! (`karat::plugin::Plugin`), across the boundary. The rules for scoring, generating, training and
//! exporting apply by the capabilities that the backend's descriptor names.
//!
//! ```no_run
//! use karat_backend::conformance::{self, Fixture};
//! use karat_backend::{Backend, OpenConfig};
//!
//! fn conforms(backend: &dyn Backend) {
//!     conformance::check(backend, &Fixture::new(OpenConfig::new("models/tiny"))).assert();
//! }
//! ```

mod exporting;
mod generating;
mod opening;
mod scoring;
mod training;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::LoraConfig;
use crate::{Backend, BackendError, BackendErrorKind, Capability, Event, Flow, OpenConfig, Session, Tokens};

/// What the rules are tried on.
#[derive(Clone, Debug)]
pub struct Fixture {
    /// How to open the model: a small one, which must hold sequences of 32 tokens and have 8 or
    /// more tokens.
    pub open: OpenConfig,
    /// How far a token's log-probability may move with the rows it is batched with, in nats. 1e-4
    /// by default: the order in which a matrix product is summed depends on its shape.
    pub score_tolerance: f32,
    /// How far, relatively, a resumed run may be from one that never stopped. 0 by default: bit by
    /// bit the same.
    pub resume_tolerance: f64,
    /// The highest learning rate of the training runs; 1e-3 by default.
    pub learning_rate: f64,
    /// The adapter that is trained if the backend trains adapters; the recipe's, of rank 2 and
    /// without dropout, by default.
    pub lora: LoraConfig,
}

impl Fixture {
    /// The defaults, on the model that `open` opens.
    pub fn new(open: OpenConfig) -> Fixture {
        Fixture {
            open,
            score_tolerance: 1e-4,
            resume_tolerance: 0.0,
            learning_rate: 1e-3,
            lora: LoraConfig { r: 2, lora_dropout: 0.0, ..LoraConfig::default() },
        }
    }
}

/// A rule that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The rule, as a claim.
    pub rule: &'static str,
    /// What was seen instead.
    pub detail: String,
}

/// What [`check`] found out.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Outcome {
    /// The rules that hold.
    pub held: Vec<&'static str>,
    /// Those that do not.
    pub findings: Vec<Finding>,
}

impl Outcome {
    /// Panics with all findings if there are any.
    ///
    /// # Panics
    /// If a rule does not hold.
    pub fn assert(&self) {
        let findings: Vec<String> = self.findings.iter().map(|f| format!("\n  {}: {}", f.rule, f.detail)).collect();
        assert!(
            findings.is_empty(),
            "{} of {} rules do not hold:{}",
            findings.len(),
            findings.len() + self.held.len(),
            findings.concat()
        );
    }
}

/// Tries every rule that applies to `backend`.
pub fn check(backend: &dyn Backend, fixture: &Fixture) -> Outcome {
    let mut suite = Suite { backend, fixture, outcome: Outcome::default() };
    opening::rules(&mut suite);
    let capabilities = backend.describe().capabilities;
    if capabilities.contains(&Capability::Score) {
        scoring::rules(&mut suite);
    }
    if capabilities.contains(&Capability::Generate) {
        generating::rules(&mut suite);
    }
    training::rules(&mut suite, &capabilities);
    exporting::rules(&mut suite, &capabilities);
    suite.outcome
}

/// Whether a rule holds, and if not, why.
type Verdict = Result<(), String>;

/// Returns from the rule with a reason unless the condition is true.
macro_rules! ensure {
    ($condition:expr, $($reason:tt)+) => {
        // Not `!`: for floats, `!(a <= b)` reads as if it were `a > b`.
        if $condition {
        } else {
            return Err(format!($($reason)+));
        }
    };
}
use ensure;

struct Suite<'a> {
    backend: &'a dyn Backend,
    fixture: &'a Fixture,
    outcome: Outcome,
}

impl<'a> Suite<'a> {
    fn rule(&mut self, rule: &'static str, holds: impl FnOnce(&Case<'a>) -> Verdict) {
        let case = Case { backend: self.backend, fixture: self.fixture };
        let verdict = catch_unwind(AssertUnwindSafe(|| holds(&case)))
            .unwrap_or_else(|payload| Err(format!("it panicked: {}", message(&*payload))));
        match verdict {
            Ok(()) => self.outcome.held.push(rule),
            Err(detail) => self.outcome.findings.push(Finding { rule, detail }),
        }
    }
}

fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}

/// What a rule works with.
struct Case<'a> {
    backend: &'a dyn Backend,
    fixture: &'a Fixture,
}

impl Case<'_> {
    fn open(&self) -> Result<Box<dyn Session>, String> {
        self.open_as(&self.fixture.open)
    }
    fn open_as(&self, config: &OpenConfig) -> Result<Box<dyn Session>, String> {
        self.backend.open(config).map_err(|e| format!("the model {} cannot be opened: {e}", config.model.display()))
    }
}

/// The longest sequence that the rules use.
const LONGEST: usize = 32;

/// Rows of ids below `vocab`, of the given lengths, drawn from a fixed sequence (Knuth's 64-bit
/// linear congruential generator, TAOCP 2, 3.3.4).
fn draw_rows(seed: u64, vocab: usize, lengths: &[usize]) -> Vec<Vec<u32>> {
    let mut state = seed;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % vocab.max(1) as u64) as u32
    };
    lengths.iter().map(|&len| (0..len).map(|_| draw()).collect()).collect()
}

fn ragged(rows: &[Vec<u32>]) -> Tokens {
    rows.iter().collect()
}

/// Passes over every event.
fn ignore(_: Event) -> Flow {
    Flow::Continue
}

/// The result must be an error, and one of those that blame the request.
fn refused<T>(what: &str, result: Result<T, BackendError>) -> Result<BackendError, String> {
    match result {
        Ok(_) => Err(format!("{what} was accepted")),
        Err(e) if matches!(e.kind, BackendErrorKind::Cancelled | BackendErrorKind::Panicked) => {
            Err(format!("{what} ended as {:?}: {e}", e.kind))
        }
        Err(e) => Ok(e),
    }
}

/// Answers the first event with stop and keeps what comes after.
#[derive(Default)]
struct Stopper {
    heard: usize,
    after: Vec<Event>,
}

impl Stopper {
    fn hear(&mut self, event: Event) -> Flow {
        self.heard += 1;
        if self.heard > 1 {
            self.after.push(event);
        }
        Flow::Stop
    }
    /// The call must have ended as cancelled, and without working on.
    fn verdict<T>(&self, result: Result<T, BackendError>) -> Verdict {
        ensure!(self.heard > 0, "no event came, so it cannot be cancelled");
        if let Some(event) = self.after.iter().find(|event| is_work(event)) {
            return Err(format!("it worked on after it was told to stop: {event:?}"));
        }
        match result {
            Ok(_) => Err("it was told to stop, but ended as if it had not been".into()),
            Err(e) if e.kind == BackendErrorKind::Cancelled => Ok(()),
            Err(e) => Err(format!("it was told to stop and ended as {:?}: {e}", e.kind)),
        }
    }
}

/// Log lines and the checkpoint that a stopped training run leaves may follow a stop; the rest is
/// work.
fn is_work(event: &Event) -> bool {
    !matches!(event, Event::Log { .. } | Event::Checkpoint { .. })
}
