//! Recording.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use karat_backend::{
    Backend, BackendError, Capability, Completion, Descriptor, Evaluator, EventSink, GenerateConfig, OpenConfig,
    Scores, Session, SessionInfo, TokensView,
};

use crate::Recording;

/// A backend that passes everything on to another, and keeps the answers of the one model it opens.
///
/// Its sessions score and generate; they do not train, for that would change the model under the
/// recording.
pub struct Recorder {
    backend: Box<dyn Backend>,
    tape: Arc<Mutex<Option<Tape>>>,
}

/// What is recorded, and of which model.
struct Tape {
    config: OpenConfig,
    recording: Recording,
}

fn lock(tape: &Mutex<Option<Tape>>) -> MutexGuard<'_, Option<Tape>> {
    // What is recorded is whole after every step, also if another thread panicked.
    tape.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Recorder {
    /// Records `backend`.
    pub fn new(backend: impl Backend) -> Recorder {
        Recorder { backend: Box::new(backend), tape: Arc::default() }
    }

    /// What has been recorded so far, `None` before a model was opened.
    pub fn recording(&self) -> Option<Recording> {
        lock(&self.tape).as_ref().map(|tape| tape.recording.clone())
    }

    /// Writes what has been recorded so far into `folder`, and gives the path of the file.
    ///
    /// # Errors
    /// If no model was opened, or the file cannot be written.
    pub fn write(&self, folder: impl AsRef<Path>) -> Result<PathBuf, BackendError> {
        match self.recording() {
            Some(recording) => recording.write(folder),
            None => Err(BackendError::failed("nothing was recorded: no model has been opened")),
        }
    }
}

impl Backend for Recorder {
    fn describe(&self) -> Descriptor {
        let mut descriptor = self.backend.describe();
        descriptor.capabilities.retain(|c| !matches!(c, Capability::TrainFull | Capability::TrainLora));
        descriptor
    }

    /// Opens the model; a recorder opens one only, as often as wanted.
    fn open(&self, config: &OpenConfig) -> Result<Box<dyn Session>, BackendError> {
        if let Some(tape) = &*lock(&self.tape)
            && tape.config != *config
        {
            return Err(BackendError::failed(format!(
                "this recorder records {} and cannot open {} as well: a recording is of one model, opened in one way",
                tape.config.model.display(),
                config.model.display()
            )));
        }
        let inner = self.backend.open(config)?;
        let descriptor = self.backend.describe();
        lock(&self.tape).get_or_insert_with(|| Tape {
            config: config.clone(),
            recording: Recording::new(descriptor.name, descriptor.version, inner.info()),
        });
        Ok(Box::new(Recorded { inner, tape: Arc::clone(&self.tape) }))
    }
}

struct Recorded {
    inner: Box<dyn Session>,
    tape: Arc<Mutex<Option<Tape>>>,
}

impl Session for Recorded {
    fn evaluator(&mut self) -> Option<&mut dyn Evaluator> {
        if self.inner.evaluator().is_some() { Some(self) } else { None }
    }
    fn info(&self) -> SessionInfo {
        self.inner.info()
    }
}

impl Recorded {
    fn inner(&mut self) -> Result<&mut dyn Evaluator, BackendError> {
        self.inner.evaluator().ok_or_else(|| BackendError::unsupported("the recorded session has no evaluator"))
    }
    fn keep(&self, add: impl FnOnce(&mut Recording) -> Result<(), BackendError>) -> Result<(), BackendError> {
        lock(&self.tape).as_mut().map_or(Ok(()), |tape| add(&mut tape.recording))
    }
}

impl Evaluator for Recorded {
    fn score(&mut self, tokens: TokensView<'_>, sink: &mut dyn EventSink) -> Result<Scores, BackendError> {
        let scores = self.inner()?.score(tokens, sink)?;
        let lengths: Vec<usize> = tokens.iter().map(|ids| ids.len().max(1) - 1).collect();
        let total: usize = lengths.iter().sum();
        if scores.logprobs.len() != total || scores.greedy.len() != total {
            let (a, b) = (scores.logprobs.len(), scores.greedy.len());
            return Err(BackendError::failed(format!("{a} log-probabilities and {b} flags for {total} scored tokens")));
        }
        self.keep(|recording| {
            let mut start = 0;
            for (ids, len) in tokens.iter().zip(lengths).filter(|(_, len)| *len > 0) {
                let range = start..start + len;
                recording.add_scores(ids, &scores.logprobs[range.clone()], &scores.greedy[range])?;
                start += len;
            }
            Ok(())
        })?;
        Ok(scores)
    }

    fn generate(
        &mut self,
        prompts: TokensView<'_>,
        config: &GenerateConfig,
        sink: &mut dyn EventSink,
    ) -> Result<Vec<Completion>, BackendError> {
        let made = self.inner()?.generate(prompts, config, sink)?;
        self.keep(|recording| {
            prompts
                .iter()
                .zip(&made)
                .enumerate()
                .try_for_each(|(row, (prompt, completion))| recording.add_completion(prompt, row, config, completion))
        })?;
        Ok(made)
    }
}
