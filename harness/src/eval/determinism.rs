//! The determinism certificate: how far a backend's numbers depend on what they should not depend
//! on.
//!
//! The same texts are continued and scored several times — again, one by one instead of together,
//! on another number of threads — and every time compared with the first. A backend promises that
//! texts do not depend on how rows are batched, and that no number depends on the threads or on
//! when it was asked ([`crate::backend`]): with these promises a report is the same bytes twice,
//! and a difference between two models is a difference between the models. Where log-probabilities
//! depend on the batch, the certificate says by how much.

use serde::{Deserialize, Serialize};

use crate::backend::{Event, Flow, GenerateConfig, OpenConfig, Scores, Session, SessionInfo, Tokens};
use crate::run::{Cancel, LoadedBackend, backend_error, evaluator, scores as asked};
use crate::{Error, Result};

/// What to try.
#[derive(Clone, Debug)]
pub struct Trial {
    /// Token ids to continue; none empty.
    pub prompts: Vec<Vec<u32>>,
    /// Tokens to continue each by.
    pub max_new_tokens: usize,
    /// Rows decoded together in the first pass; compared with 1.
    pub batch_size: usize,
    /// Threads of the first pass; compared with 1.
    pub threads: usize,
}

/// One pass against the first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunComparison {
    /// `again`, `batch 1` (rows one by one), `1 thread`.
    pub pass: String,
    /// Texts that differ, of [`Certificate::texts`].
    pub flipped_texts: usize,
    /// Scored tokens of which only one of the two passes says that it is the most probable, of
    /// [`Certificate::tokens`].
    pub flipped_tokens: usize,
    /// Log-probabilities whose bits differ.
    pub differing_logprobs: usize,
    /// Largest difference of a token's log-probability, in nats.
    pub logprob_drift: f64,
    /// Whether a backend that keeps its promises may differ here: log-probabilities may depend on
    /// the batch, nothing else may depend on anything.
    pub logprobs_may_differ: bool,
}

impl RunComparison {
    /// Whether the promise is kept.
    pub fn holds(&self) -> bool {
        let bits = self.logprobs_may_differ || (self.differing_logprobs == 0 && self.flipped_tokens == 0);
        self.flipped_texts == 0 && bits
    }
}

/// How far a backend repeats itself with one model on one machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Certificate {
    /// The backend's name and version.
    pub backend: String,
    /// What it ran with in the first pass.
    pub session: SessionInfo,
    /// Rows decoded together in the first pass.
    pub batch_size: usize,
    /// Texts that were continued.
    pub texts: usize,
    /// Tokens that were scored: the prompts and their continuations.
    pub tokens: usize,
    /// Every other pass against the first.
    pub comparisons: Vec<RunComparison>,
    /// Largest share of texts that a pass changed.
    pub flip_rate: f64,
    /// Largest drift of a log-probability, in nats.
    pub logprob_drift: f64,
    /// Whether every promise was kept.
    pub deterministic: bool,
}

/// What a pass says.
struct Pass {
    texts: Vec<Vec<u32>>,
    scores: Scores,
}

/// Carries out the passes. `watch` hears of each before it begins.
///
/// # Errors
/// No prompts, the backend's errors, interrupted.
pub fn certify(
    backend: &LoadedBackend,
    open: &OpenConfig,
    trial: &Trial,
    watch: &mut dyn FnMut(&str),
    cancel: &Cancel,
) -> Result<Certificate> {
    if trial.prompts.is_empty() || trial.prompts.iter().any(Vec::is_empty) {
        return Err(Error::usage("determinism is tried on texts of at least one token"));
    }
    let descriptor = backend.backend.describe();
    let opened = |threads: usize| backend.open(&OpenConfig { threads, ..open.clone() });
    let mut session = opened(trial.threads)?;
    let info = session.info();
    let together = trial.batch_size;
    watch(&format!("{} texts, {together} together on {} threads", trial.prompts.len(), info.threads));
    let texts = texts(&mut session, &descriptor.name, trial, together, cancel)?;
    // What is scored is the same in every pass: the first pass's texts.
    let rows: Vec<Vec<u32>> = trial.prompts.iter().zip(&texts).map(|(p, t)| [&p[..], t].concat()).collect();
    let scored = scores(&mut session, &descriptor.name, &rows, together, cancel)?;
    let first = Pass { texts, scores: scored };

    let mut comparisons = Vec::new();
    let mut pass = |name: &str, session: &mut Box<dyn Session>, batch: usize, may_differ: bool| -> Result<()> {
        watch(name);
        let texts = self::texts(session, &descriptor.name, trial, batch, cancel)?;
        let scores = scores(session, &descriptor.name, &rows, batch, cancel)?;
        comparisons.push(compare(name, &first, &Pass { texts, scores }, may_differ));
        Ok(())
    };
    pass("again", &mut session, together, false)?;
    pass("batch 1", &mut session, 1, true)?;
    drop(session);
    pass("1 thread", &mut opened(1)?, together, false)?;

    let share = |c: &RunComparison| c.flipped_texts as f64 / first.texts.len() as f64;
    Ok(Certificate {
        backend: format!("{} {}", descriptor.name, descriptor.version),
        session: info,
        batch_size: together,
        texts: first.texts.len(),
        tokens: first.scores.logprobs.len(),
        flip_rate: comparisons.iter().map(share).fold(0.0, f64::max),
        logprob_drift: comparisons.iter().map(|c| c.logprob_drift).fold(0.0, f64::max),
        deterministic: comparisons.iter().all(RunComparison::holds),
        comparisons,
    })
}

fn compare(pass: &str, first: &Pass, other: &Pass, logprobs_may_differ: bool) -> RunComparison {
    let pairs = || first.scores.logprobs.iter().zip(&other.scores.logprobs);
    let flags = first.scores.greedy.iter().zip(&other.scores.greedy);
    RunComparison {
        pass: pass.into(),
        flipped_texts: first.texts.iter().zip(&other.texts).filter(|(a, b)| a != b).count(),
        flipped_tokens: flags.filter(|(a, b)| a != b).count(),
        differing_logprobs: pairs().filter(|(a, b)| a.to_bits() != b.to_bits()).count(),
        logprob_drift: pairs().map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs()).fold(0.0, f64::max),
        logprobs_may_differ,
    }
}

fn flow(cancel: &Cancel) -> impl FnMut(Event) -> Flow {
    let cancel = cancel.clone();
    move |_| if cancel.requested() { Flow::Stop } else { Flow::Continue }
}

/// Greedy continuations without stop ids: every text has its full length, so that late tokens are
/// tried too.
fn texts(
    session: &mut Box<dyn Session>,
    backend: &str,
    trial: &Trial,
    batch_size: usize,
    cancel: &Cancel,
) -> Result<Vec<Vec<u32>>> {
    let config = GenerateConfig { batch_size, ..GenerateConfig::greedy(trial.max_new_tokens, Vec::new()) };
    let prompts: Tokens = trial.prompts.iter().collect();
    let completions = evaluator(session, backend)?.generate(prompts.view(), &config, &mut flow(cancel));
    let completions = completions.map_err(|e| backend_error("generation failed", e))?;
    Ok(completions.into_iter().map(|c| c.ids).collect())
}

/// Scores of `rows`, so many in a call.
fn scores(
    session: &mut Box<dyn Session>,
    backend: &str,
    rows: &[Vec<u32>],
    batch_size: usize,
    cancel: &Cancel,
) -> Result<Scores> {
    let evaluator = evaluator(session, backend)?;
    let mut all = Scores::default();
    for chunk in rows.chunks(batch_size.max(1)) {
        let tokens: Tokens = chunk.iter().collect();
        let place = |row: usize| format!("row {row}");
        let scores = asked(evaluator, tokens.view(), "scoring failed", &place, &mut flow(cancel))?;
        all.logprobs.extend(scores.logprobs);
        all.greedy.extend(scores.greedy);
    }
    Ok(all)
}
