//! The backend.

use std::collections::BTreeMap;
use std::path::PathBuf;

use karat_backend::{
    Backend, BackendError, Capability, Completion, Descriptor, Dtype, Evaluator, Event, EventSink, Flow,
    GenerateConfig, OpenConfig, Scores, Session, SessionInfo, TokensView, Weights,
};

use crate::{FILE, Recording};

/// Opens recordings; [`OpenConfig::model`] is the folder of one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Replay;

impl Backend for Replay {
    fn describe(&self) -> Descriptor {
        Descriptor {
            name: "replay".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            capabilities: vec![Capability::Score, Capability::Generate],
            devices: vec!["cpu".into()],
            dtypes: vec![Dtype::F32, Dtype::Bf16, Dtype::F16],
            // What was recorded may be of any family.
            model_families: Vec::new(),
            build: BTreeMap::new(),
        }
    }

    fn open(&self, config: &OpenConfig) -> Result<Box<dyn Session>, BackendError> {
        if !matches!(config.device.as_str(), "cpu" | "auto") {
            let device = &config.device;
            return Err(BackendError::unsupported(format!("a recording is replayed on the cpu, not on `{device}`")));
        }
        if let Some(option) = config.options.keys().next() {
            return Err(BackendError::unsupported(format!("unknown option `{option}`: replay has none")));
        }
        if config.weights == Weights::Random {
            return Err(BackendError::unsupported("a recording has no weights to draw"));
        }
        if let Some(adapter) = &config.adapter {
            return Err(BackendError::unsupported(format!(
                "the adapter {} cannot be applied to a recording: record the model with its adapter, and open that",
                adapter.display()
            )));
        }
        let recording = Recording::read(&config.model)?;
        Ok(Box::new(Replayed { path: config.model.join(FILE), recording }))
    }
}

struct Replayed {
    path: PathBuf,
    recording: Recording,
}

impl Session for Replayed {
    fn evaluator(&mut self) -> Option<&mut dyn Evaluator> {
        Some(self)
    }
    /// The model's facts are those of the recording; what runs is this.
    fn info(&self) -> SessionInfo {
        let Recording { backend, version, info, .. } = &self.recording;
        let origin = format!("replay of {backend} {version} on {}, {} threads", info.device, info.threads);
        let kernels = std::iter::once(origin).chain(info.kernels.iter().cloned()).collect();
        SessionInfo { device: "cpu".into(), threads: 1, kernels, ..info.clone() }
    }
}

impl Replayed {
    fn check(&self, rows: TokensView<'_>) -> Result<(), BackendError> {
        let vocab = self.recording.info.vocab_size;
        match rows.ids().iter().find(|&&id| id as usize >= vocab) {
            Some(id) => Err(BackendError::failed(format!("id {id} is beyond the vocabulary of {vocab}"))),
            None => Ok(()),
        }
    }

    fn missing(&self, what: &str, row: usize, ids: &[u32]) -> BackendError {
        let start: Vec<String> = ids.iter().take(8).map(u32::to_string).collect();
        let more = if ids.len() > start.len() { " ..." } else { "" };
        BackendError::failed(format!(
            "{what} row {row} is not in {}: {} ids, {}{more}; record it again with this data and configuration",
            self.path.display(),
            ids.len(),
            start.join(" ")
        ))
    }
}

fn progress(
    sink: &mut dyn EventSink,
    stage: &str,
    done: usize,
    total: usize,
    tokens: usize,
) -> Result<(), BackendError> {
    let event = Event::Progress { stage: stage.into(), done: done as u64, total: total as u64, tokens: tokens as u64 };
    send(sink, event)
}

fn send(sink: &mut dyn EventSink, event: Event) -> Result<(), BackendError> {
    match sink.event(event) {
        Flow::Continue => Ok(()),
        Flow::Stop => Err(BackendError::cancelled()),
    }
}

impl Evaluator for Replayed {
    fn score(&mut self, tokens: TokensView<'_>, sink: &mut dyn EventSink) -> Result<Scores, BackendError> {
        self.check(tokens)?;
        let mut scores = Scores::default();
        for (row, ids) in tokens.iter().enumerate() {
            // Nothing is scored in such a row, so there is nothing to record either.
            if ids.len() > 1 {
                let found = self.recording.scores(ids).ok_or_else(|| self.missing("scoring", row, ids))?;
                if found.logprobs.len() != ids.len() - 1 {
                    return Err(BackendError::failed(format!(
                        "{}: {} scores for row {row} of {} ids: the file was changed",
                        self.path.display(),
                        found.logprobs.len(),
                        ids.len()
                    )));
                }
                scores.logprobs.extend(&found.logprobs);
                scores.greedy.extend(&found.greedy);
            }
            progress(sink, "score", row + 1, tokens.rows(), scores.logprobs.len())?;
        }
        Ok(scores)
    }

    fn generate(
        &mut self,
        prompts: TokensView<'_>,
        config: &GenerateConfig,
        sink: &mut dyn EventSink,
    ) -> Result<Vec<Completion>, BackendError> {
        self.check(prompts)?;
        let mut made = Vec::with_capacity(prompts.rows());
        let mut tokens = 0;
        for (row, prompt) in prompts.iter().enumerate() {
            let found = self
                .recording
                .completion(prompt, row, config)
                .ok_or_else(|| self.missing("generating from", row, prompt))?;
            tokens += found.ids.len();
            send(sink, Event::Completion { row, completion: found.clone() })?;
            progress(sink, "generate", row + 1, prompts.rows(), tokens)?;
            made.push(found.clone());
        }
        Ok(made)
    }
}
