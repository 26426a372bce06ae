//! The certificate finds what does not repeat itself, and only that.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use karat::ErrorKind;
use karat::backend::{
    Backend, BackendError, Completion, Descriptor, Evaluator, EventSink, GenerateConfig, OpenConfig, Scores, Session,
    SessionInfo, TokensView,
};
use karat::eval::determinism::{Certificate, Trial, certify};
use karat::run::{Cancel, LoadedBackend, Origin};
use karat_hostile::Bigram;

/// What a [`Moody`] backend lets its numbers depend on.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Steady,
    /// The last bits of log-probabilities on the rows of a call.
    Batch,
    /// The last bits on the threads.
    Threads,
    /// Everything on how often it was asked.
    Calls,
    /// Texts on the rows decoded together.
    Texts,
}

/// The honest backend, less so.
struct Moody(Mood);

struct Open {
    inner: Box<dyn Session>,
    mood: Mood,
    threads: usize,
    calls: usize,
}

impl Backend for Moody {
    fn describe(&self) -> Descriptor {
        Descriptor { name: "moody".into(), ..Bigram.describe() }
    }
    fn open(&self, config: &OpenConfig) -> Result<Box<dyn Session>, BackendError> {
        Ok(Box::new(Open { inner: Bigram.open(config)?, mood: self.0, threads: config.threads, calls: 0 }))
    }
}

impl Session for Open {
    fn evaluator(&mut self) -> Option<&mut dyn Evaluator> {
        Some(self)
    }
    fn info(&self) -> SessionInfo {
        self.inner.info()
    }
}

impl Evaluator for Open {
    fn score(&mut self, tokens: TokensView<'_>, sink: &mut dyn EventSink) -> Result<Scores, BackendError> {
        let mut scores = self.inner.evaluator().unwrap().score(tokens, sink)?;
        self.calls += 1;
        let off = match self.mood {
            Mood::Batch => tokens.rows() == 1,
            Mood::Threads => self.threads == 1,
            // The first pass takes three calls.
            Mood::Calls => self.calls > 3,
            Mood::Steady | Mood::Texts => false,
        };
        if off {
            scores.logprobs.iter_mut().for_each(|l| *l -= 1e-3);
        }
        Ok(scores)
    }

    fn generate(
        &mut self,
        prompts: TokensView<'_>,
        config: &GenerateConfig,
        sink: &mut dyn EventSink,
    ) -> Result<Vec<Completion>, BackendError> {
        let mut completions = self.inner.evaluator().unwrap().generate(prompts, config, sink)?;
        if self.mood == Mood::Texts && config.batch_size == 1 {
            *completions[2].ids.last_mut().unwrap() ^= 1;
        }
        Ok(completions)
    }
}

fn certificate(mood: Mood, cancel: &Cancel) -> karat::Result<Certificate> {
    let model = tempfile::tempdir().unwrap();
    Bigram::write_model(model.path(), 24, 1).unwrap();
    let backend = LoadedBackend { backend: Arc::new(Moody(mood)), origin: Origin::default() };
    let prompts = (1..6u32).map(|row| (0..row * 3).map(|i| (i * 5 + row) % 24).collect()).collect();
    let trial = Trial { prompts, max_new_tokens: 6, batch_size: 2, threads: 2 };
    let mut passes = Vec::new();
    let mut watch = |pass: &str| passes.push(pass.to_string());
    let certificate = certify(&backend, &OpenConfig::new(model.path()), &trial, &mut watch, cancel)?;
    assert_eq!(passes.len(), 4);
    Ok(certificate)
}

#[test]
fn every_dependence_shows_in_its_pass_and_breaks_the_promise_it_breaks() {
    for (mood, broken, deterministic) in [
        (Mood::Steady, None, true),
        (Mood::Batch, Some("batch 1"), true),
        (Mood::Threads, Some("1 thread"), false),
        (Mood::Calls, Some("again"), false),
        (Mood::Texts, Some("batch 1"), false),
    ] {
        let certificate = certificate(mood, &Cancel::new()).unwrap();
        assert_eq!(certificate.deterministic, deterministic, "{certificate:?}");
        // Prompts of 3 to 15 ids and six new ones each: every id but the first of a row is scored.
        assert_eq!((certificate.texts, certificate.tokens), (5, 45 + 30 - 5));
        for row in &certificate.comparisons {
            let differs = row.differing_logprobs + row.flipped_texts > 0;
            let expected = broken == Some(row.pass.as_str()) || (mood == Mood::Calls && row.pass == "batch 1");
            assert_eq!(differs, expected, "{certificate:?}");
        }
        let texts = mood == Mood::Texts;
        assert_eq!(certificate.flip_rate, if texts { 0.2 } else { 0.0 });
        let drift = certificate.logprob_drift;
        assert!(if mood == Mood::Steady || texts { drift == 0.0 } else { (drift - 1e-3).abs() < 1e-5 }, "{drift}");
    }
}

#[test]
fn it_can_be_interrupted_and_needs_texts() {
    let cancel = Cancel::new();
    cancel.request();
    assert_eq!(certificate(Mood::Steady, &cancel).unwrap_err().kind(), ErrorKind::Interrupted);
    let backend = LoadedBackend { backend: Arc::new(Moody(Mood::Steady)), origin: Origin::default() };
    let trial = Trial { prompts: vec![vec![]], max_new_tokens: 1, batch_size: 2, threads: 2 };
    let error = certify(&backend, &OpenConfig::new("nowhere"), &trial, &mut |_| {}, &Cancel::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
}
