//! The log of a training run: every optimizer step and evaluation as a JSON line, and what is read
//! off the curves.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::backend::state::TrainerState;
use crate::backend::{Event, StepEvent};
use crate::error::{Error, Result};

/// The curves of a training run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Curves {
    /// One entry per optimizer step, in order.
    pub steps: Vec<StepEvent>,
    /// Evaluations, in order.
    pub evaluations: Vec<EvaluationPoint>,
}

/// The evaluation loss after a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EvaluationPoint {
    /// After this optimizer step.
    pub step: usize,
    /// Mean negative log-likelihood of a labelled token, in nats.
    #[serde(with = "crate::abi::float")]
    pub loss: f64,
    /// Tokens of the evaluation, for the log; 0 where that is not known.
    #[serde(skip)]
    pub tokens: u64,
    /// Seconds that it took, likewise.
    #[serde(skip)]
    pub seconds: f64,
}

impl Curves {
    /// Keeps what belongs into the curves. An evaluation of a step that was evaluated before takes
    /// its place: a crash after it, before the next checkpoint, makes a resumed run evaluate again.
    pub fn push(&mut self, event: &Event) {
        match event {
            Event::Step(step) => self.steps.push(step.clone()),
            Event::Evaluation { step, loss, tokens, seconds } => {
                self.evaluations.retain(|e| e.step != *step);
                let (tokens, seconds) = (*tokens, *seconds);
                self.evaluations.push(EvaluationPoint { step: *step, loss: *loss, tokens, seconds });
            }
            _ => {}
        }
    }

    /// Seconds of all steps.
    pub fn seconds(&self) -> f64 {
        self.steps.iter().map(|s| s.seconds).sum()
    }

    /// Adds the steps and evaluations of a checkpoint's history that are missing here, as where the
    /// log was lost. Their losses, rates and norms are whole; seconds, memory and tokens are not
    /// known of them. Returns how many steps there were.
    pub fn complete(&mut self, state: &TrainerState) -> usize {
        let before = self.steps.len();
        for entry in &state.log_history {
            if let (Some(loss), false) = (entry.loss, self.steps.iter().any(|s| s.step == entry.step)) {
                self.steps.push(StepEvent {
                    step: entry.step,
                    epoch: entry.epoch,
                    loss,
                    micro_losses: Vec::new(),
                    learning_rate: entry.learning_rate.unwrap_or(f64::NAN),
                    grad_norm: entry.grad_norm.unwrap_or(f64::NAN),
                    label_tokens: 0,
                    tokens: 0,
                    seconds: 0.0,
                    memory: None,
                });
            }
            if let (Some(loss), false) = (entry.eval_loss, self.evaluations.iter().any(|e| e.step == entry.step)) {
                self.evaluations.push(EvaluationPoint { step: entry.step, loss, ..EvaluationPoint::default() });
            }
        }
        self.steps.sort_by_key(|s| s.step);
        self.evaluations.sort_by_key(|e| e.step);
        self.steps.len() - before
    }

    /// Forgets what happened after `step`: a resumed run does it again.
    pub fn truncate(&mut self, step: usize) {
        self.steps.retain(|s| s.step <= step);
        self.evaluations.retain(|e| e.step <= step);
    }
}

/// An append-only log file of events.
pub struct EventLog {
    path: PathBuf,
    file: File,
}

impl EventLog {
    /// Opens the log at `path`, keeping of an earlier one only what happened up to `step`. Returns
    /// the curves so far.
    ///
    /// # Errors
    /// I/O, or a broken line before the last one.
    pub fn resume(path: &Path, step: usize) -> Result<(EventLog, Curves)> {
        let mut curves = read(path)?;
        curves.truncate(step);
        Ok((Self::start(path, &curves)?, curves))
    }

    /// A log at `path` that holds `curves`, in the place of what was there.
    ///
    /// # Errors
    /// I/O.
    pub fn start(path: &Path, curves: &Curves) -> Result<EventLog> {
        let mut text = Vec::new();
        let steps = curves.steps.iter().map(|s| (s.step, 0, Event::Step(s.clone())));
        let evaluations = curves.evaluations.iter().map(|&EvaluationPoint { step, loss, tokens, seconds }| {
            (step, 1, Event::Evaluation { step, loss, tokens, seconds })
        });
        let mut events: Vec<_> = steps.chain(evaluations).collect();
        events.sort_by_key(|(step, kind, _)| (*step, *kind));
        for (_, _, event) in &events {
            text.extend(line(event, path)?);
        }
        crate::fsio::write_atomic(path, &text)?;
        let file = OpenOptions::new().append(true).open(path).map_err(|e| Error::io("open the log", path, e))?;
        Ok(EventLog { path: path.into(), file })
    }

    /// Appends an event.
    ///
    /// # Errors
    /// I/O.
    pub fn push(&mut self, event: &Event) -> Result<()> {
        let text = line(event, &self.path)?;
        self.file.write_all(&text).map_err(|e| Error::io("write the log", &self.path, e))
    }

    /// Waits until all is on the disk: a checkpoint that survives a power cut has the log that led
    /// to it.
    ///
    /// # Errors
    /// I/O.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io("write the log", &self.path, e))
    }
}

fn line(event: &Event, path: &Path) -> Result<Vec<u8>> {
    let mut text =
        serde_json::to_vec(event).map_err(|e| Error::failed("could not write JSON").at(path.display()).because(e))?;
    text.push(b'\n');
    Ok(text)
}

/// The curves of a log file; empty if it is not there. A last line that a crash cut short is left
/// out.
///
/// # Errors
/// I/O, or a broken line before the last one.
pub fn read(path: &Path) -> Result<Curves> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Curves::default()),
        Err(e) => return Err(Error::io("read the log", path, e)),
    };
    let mut curves = Curves::default();
    for (i, line) in text.split_inclusive('\n').enumerate() {
        if !line.ends_with('\n') {
            break;
        }
        let event: Event = serde_json::from_str(line).map_err(|e| {
            Error::data("broken line in a training log").at(format!("{}:{}", path.display(), i + 1)).because(e)
        })?;
        // A training takes each step once; the log of one that was resumed is cut where it goes on.
        if let (Event::Step(step), Some(last)) = (&event, curves.steps.last())
            && step.step <= last.step
        {
            return Err(Error::data(format!(
                "step {} stands after step {} in this training log: it was changed afterwards",
                step.step, last.step
            ))
            .at(format!("{}:{}", path.display(), i + 1)));
        }
        curves.push(&event);
    }
    Ok(curves)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::state::LogEntry;

    fn step(step: usize) -> Event {
        Event::Step(StepEvent {
            step,
            epoch: 0.0,
            loss: 1.0,
            micro_losses: vec![1.0],
            learning_rate: 1e-4,
            grad_norm: 1.0,
            label_tokens: 1,
            tokens: step as u64,
            seconds: 0.5,
            memory: None,
        })
    }

    fn evaluation(step: usize, loss: f64) -> Event {
        Event::Evaluation { step, loss, tokens: 3, seconds: 0.1 }
    }

    #[test]
    fn a_step_that_stands_twice_in_a_log_is_refused_by_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let (mut log, _) = EventLog::resume(&path, 0).unwrap();
        for event in [step(1), evaluation(1, 2.0), step(2)] {
            log.push(&event).unwrap();
        }
        drop(log);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.repeat(2)).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("step 1 stands after step 2") && error.contains("events.jsonl:4"), "{error}");
    }

    #[test]
    fn a_resumed_log_forgets_what_is_done_again_and_repeats_no_evaluation() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let (mut log, _) = EventLog::resume(&path, 0).unwrap();
        for event in [step(1), step(2), evaluation(2, 4.0), step(3), evaluation(3, 3.0)] {
            log.push(&event).unwrap();
        }
        // A crash cuts the last line; the checkpoint of step 2 is the last one.
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 3]).unwrap();
        let (mut log, curves) = EventLog::resume(&path, 2).unwrap();
        assert_eq!((curves.steps.len(), curves.evaluations.len(), curves.seconds()), (2, 1, 1.0));
        // What is kept is kept whole, also what the curves do not show.
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(r#""tokens":3,"seconds":0.1"#), "{text}");
        // The checkpoint did not hold the evaluation of its step, so it is made again.
        for event in [evaluation(2, 5.0), step(3)] {
            log.push(&event).unwrap();
        }
        let curves = read(&path).unwrap();
        assert_eq!(curves.steps.iter().map(|s| s.step).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(curves.evaluations, [EvaluationPoint { step: 2, loss: 5.0, tokens: 3, seconds: 0.1 }]);
    }

    #[test]
    fn a_lost_log_is_completed_from_the_history_of_a_checkpoint() {
        let entry = |step, loss, eval_loss| LogEntry {
            epoch: 0.5,
            step,
            loss,
            eval_loss,
            grad_norm: loss.map(|_| 2.0),
            learning_rate: loss.map(|_| 1e-4),
        };
        let log_history = vec![
            entry(1, Some(3.0), None),
            entry(2, Some(2.0), None),
            entry(2, None, Some(2.5)),
            entry(3, Some(1.0), None),
        ];
        let state = TrainerState { log_history, ..TrainerState::default() };
        let mut curves = Curves::default();
        curves.push(&step(2));
        assert_eq!(curves.complete(&state), 2);
        assert_eq!(curves.steps.iter().map(|s| (s.step, s.loss)).collect::<Vec<_>>(), [(1, 3.0), (2, 1.0), (3, 1.0)]);
        assert_eq!(curves.evaluations, [EvaluationPoint { step: 2, loss: 2.5, ..Default::default() }]);
        assert_eq!(curves.complete(&state), 0);
    }

    #[test]
    fn a_loss_that_is_no_number_can_be_stored_and_read() {
        let point = EvaluationPoint { step: 1, loss: f64::NAN, ..Default::default() };
        let text = serde_json::to_string(&point).unwrap();
        assert!(serde_json::from_str::<EvaluationPoint>(&text).unwrap().loss.is_nan(), "{text}");
    }
}
