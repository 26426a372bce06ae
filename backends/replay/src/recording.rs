//! The file: one JSON object a line, the first about the model, each other an answer to a question.
//!
//! ```text
//! {"format":1,"backend":"native","version":"0.1.0","info":{...}}
//! {"key":"0b5e...","ids":[7,3],"stop":"length"}
//! {"key":"91c0...","logprobs":[-0.25],"greedy":[true]}
//! ```
//!
//! A question is known by its SHA-256 ([`score_key`], [`generate_key`]), and the lines are sorted
//! by it: the same answers make the same bytes, in whatever order they were given.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use karat_backend::{BackendError, Completion, GenerateConfig, SessionInfo, StopReason};
use karat_system::fsio::write_atomic;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The name of the file in a recording's folder.
pub const FILE: &str = "recording.jsonl";

const FORMAT: u32 = 1;

/// What one model answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Recording {
    pub(crate) backend: String,
    pub(crate) version: String,
    pub(crate) info: SessionInfo,
    scores: BTreeMap<String, RowScores>,
    completions: BTreeMap<String, Completion>,
}

/// The scores of one row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RowScores {
    pub(crate) logprobs: Vec<f32>,
    pub(crate) greedy: Vec<bool>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: u32,
    backend: String,
    version: String,
    info: SessionInfo,
}

/// One line: a completion has `ids` and `stop`, scores have `logprobs` and `greedy`.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ids: Option<Vec<u32>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stop: Option<StopReason>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<f32>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    greedy: Option<Vec<bool>>,
}

/// The key of scoring the row `ids`.
pub(crate) fn score_key(ids: &[u32]) -> String {
    key("score", ids, &[])
}

/// The key of continuing `prompt`, which is row number `row`. All of `config` counts but the batch
/// size; the row and the seed count only where text is sampled, since greedy text does not depend
/// on them.
pub(crate) fn generate_key(prompt: &[u32], row: usize, config: &GenerateConfig) -> String {
    let mut stop_ids = config.stop_ids.clone();
    stop_ids.sort_unstable();
    stop_ids.dedup();
    let mut facts = vec![config.max_new_tokens as u64, stop_ids.len() as u64];
    facts.extend(stop_ids.into_iter().map(u64::from));
    if config.temperature > 0.0 {
        let sampling = [config.temperature.to_bits(), config.top_p.to_bits(), config.top_k as u64, config.seed];
        facts.extend(sampling);
        facts.push(row as u64);
    }
    key("generate", prompt, &facts)
}

/// SHA-256 over the question, each part with its length before it, numbers as little-endian u64.
fn key(kind: &str, ids: &[u32], facts: &[u64]) -> String {
    let mut hash = Sha256::new();
    hash.update((kind.len() as u64).to_le_bytes());
    hash.update(kind);
    for list in [ids.iter().copied().map(u64::from).collect(), facts.to_vec()] {
        hash.update((list.len() as u64).to_le_bytes());
        list.iter().for_each(|number| hash.update(number.to_le_bytes()));
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Recording {
    /// An empty recording of a session of the backend `backend` in `version`.
    pub fn new(backend: impl Into<String>, version: impl Into<String>, info: SessionInfo) -> Recording {
        Recording {
            backend: backend.into(),
            version: version.into(),
            info,
            scores: BTreeMap::new(),
            completions: BTreeMap::new(),
        }
    }

    /// How many answers it holds.
    pub fn len(&self) -> usize {
        self.scores.len() + self.completions.len()
    }
    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds the answer to scoring the row `ids`: one log-probability and one flag for each token
    /// after the first.
    ///
    /// # Errors
    /// If their number is wrong, one is not finite, or the row has been answered differently
    /// before.
    pub fn add_scores(&mut self, ids: &[u32], logprobs: &[f32], greedy: &[bool]) -> Result<(), BackendError> {
        let wanted = ids.len().max(1) - 1;
        if logprobs.len() != wanted || greedy.len() != wanted {
            let (a, b) = (logprobs.len(), greedy.len());
            return Err(BackendError::failed(format!(
                "{a} log-probabilities and {b} flags for {wanted} scored tokens"
            )));
        }
        if let Some(odd) = logprobs.iter().find(|logprob| !logprob.is_finite()) {
            return Err(BackendError::failed(format!("the log-probability {odd} cannot be recorded")));
        }
        let scores = RowScores { logprobs: logprobs.to_vec(), greedy: greedy.to_vec() };
        add(&mut self.scores, score_key(ids), scores)
    }

    /// Adds the answer to continuing `prompt`, row number `row` of its call.
    ///
    /// # Errors
    /// If it has been answered differently before.
    pub fn add_completion(
        &mut self,
        prompt: &[u32],
        row: usize,
        config: &GenerateConfig,
        completion: &Completion,
    ) -> Result<(), BackendError> {
        add(&mut self.completions, generate_key(prompt, row, config), completion.clone())
    }

    pub(crate) fn scores(&self, ids: &[u32]) -> Option<&RowScores> {
        self.scores.get(&score_key(ids))
    }
    pub(crate) fn completion(&self, prompt: &[u32], row: usize, config: &GenerateConfig) -> Option<&Completion> {
        self.completions.get(&generate_key(prompt, row, config))
    }

    /// Reads the recording in `folder`.
    ///
    /// # Errors
    /// If there is none, or with the number of the line that is broken.
    pub fn read(folder: impl AsRef<Path>) -> Result<Recording, BackendError> {
        let path = folder.as_ref().join(FILE);
        let text = fs::read_to_string(&path).map_err(|e| {
            BackendError::failed(format!("there is no recording to be read at {}", path.display())).because(&e)
        })?;
        let mut lines = text.lines().enumerate().map(|(i, line)| (i + 1, line));
        let broken = |number: usize, why: &str| BackendError::failed(format!("{}:{number}: {why}", path.display()));
        let (_, first) = lines.next().ok_or_else(|| broken(1, "the file is empty"))?;
        let Header { format, backend, version, info } = serde_json::from_str(first)
            .map_err(|e| broken(1, "the first line does not describe a recording").because(&e))?;
        if format != FORMAT {
            return Err(broken(1, &format!("format {format} is not known, only {FORMAT} is: record it again")));
        }
        let mut recording = Recording::new(backend, version, info);
        for (number, line) in lines {
            let line: Line =
                serde_json::from_str(line).map_err(|e| broken(number, "this line is no answer").because(&e))?;
            let fresh = match line {
                Line { key, ids: Some(ids), stop: Some(stop), logprobs: None, greedy: None } => {
                    recording.completions.insert(key, Completion { ids, stop }).is_none()
                }
                Line { key, ids: None, stop: None, logprobs: Some(logprobs), greedy: Some(greedy) }
                    if logprobs.len() == greedy.len() =>
                {
                    recording.scores.insert(key, RowScores { logprobs, greedy }).is_none()
                }
                _ => return Err(broken(number, "this line is neither a completion nor scores")),
            };
            if !fresh {
                return Err(broken(number, "this key has been answered before"));
            }
        }
        Ok(recording)
    }

    /// Writes the recording into `folder`, which is made if need be; the file appears whole or not
    /// at all.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, folder: impl AsRef<Path>) -> Result<PathBuf, BackendError> {
        let folder = folder.as_ref();
        let path = folder.join(FILE);
        let failed =
            |e: &dyn std::error::Error| BackendError::failed(format!("could not write {}", path.display())).because(e);
        let bytes = self.to_bytes().map_err(|e| failed(&e))?;
        write_atomic(&path, &bytes).map_err(|e| failed(&e))?;
        Ok(path)
    }

    fn to_bytes(&self) -> serde_json::Result<Vec<u8>> {
        let header = Header {
            format: FORMAT,
            backend: self.backend.clone(),
            version: self.version.clone(),
            info: self.info.clone(),
        };
        let mut bytes = serde_json::to_vec(&header)?;
        bytes.push(b'\n');
        let completions = self.completions.iter().map(|(key, Completion { ids, stop })| Line {
            key: key.clone(),
            ids: Some(ids.clone()),
            stop: Some(*stop),
            ..Line::default()
        });
        let scores = self.scores.iter().map(|(key, RowScores { logprobs, greedy })| Line {
            key: key.clone(),
            logprobs: Some(logprobs.clone()),
            greedy: Some(greedy.clone()),
            ..Line::default()
        });
        let mut lines: Vec<Line> = completions.chain(scores).collect();
        lines.sort_by(|a, b| a.key.cmp(&b.key));
        for line in lines {
            serde_json::to_writer(&mut bytes, &line)?;
            bytes.push(b'\n');
        }
        Ok(bytes)
    }
}

fn add<T: PartialEq>(answers: &mut BTreeMap<String, T>, key: String, answer: T) -> Result<(), BackendError> {
    match answers.get(&key) {
        Some(before) if *before != answer => Err(BackendError::failed(format!(
            "the question {key} was answered differently before: what is recorded must not depend on the batch"
        ))),
        Some(_) => Ok(()),
        None => {
            answers.insert(key, answer);
            Ok(())
        }
    }
}
