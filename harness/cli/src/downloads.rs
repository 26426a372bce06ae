//! Shows downloads: a bar with rate and time left on a terminal, a line now and then elsewhere.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use karat::Result;
use karat::hub::client::{Event, Progress, in_words};
use karat::run::Cancel;

use crate::output::{Output, shown};
use crate::signals::cancel_on_signal;

/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Draws the events of a client.
pub struct Downloads {
    output: Output,
    /// Asked to stop, where a signal is to be answered with words: what came is kept anyway.
    cancel: Option<Cancel>,
    state: Mutex<State>,
}

struct State {
    bar: Option<ProgressBar>,
    began: Instant,
    last_line: Instant,
    /// Bytes that were here when it began.
    first: Option<u64>,
    said: BTreeSet<String>,
}

impl Downloads {
    /// Draws to `output`'s standard error.
    ///
    /// # Errors
    /// If the system does not take the handlers of signals, where they are to be answered.
    pub fn new(output: &Output, answers_signals: bool) -> Result<Downloads> {
        let cancel = answers_signals.then(cancel_on_signal).transpose()?;
        let now = Instant::now();
        let state = State { bar: None, began: now, last_line: now, first: None, said: BTreeSet::new() };
        Ok(Downloads { output: output.among_others(), cancel, state: Mutex::new(state) })
    }

    fn say(&self, bar: Option<&ProgressBar>, line: &str) {
        match bar {
            Some(bar) => bar.suspend(|| self.output.say(line)),
            None => self.output.say(line),
        }
    }
}

impl Progress for Downloads {
    fn event(&self, event: Event<'_>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Begin { id, files, bytes } => {
                let word = if files == 1 { "file" } else { "files" };
                self.output.say(format!("download: {id}, {files} {word}, {}", in_words(bytes)));
                let now = Instant::now();
                (state.began, state.last_line, state.first) = (now, now, None);
            }
            Event::Bytes { file, done, total } => {
                let first = *state.first.get_or_insert(done);
                if self.output.interactive() {
                    let bar = state.bar.get_or_insert_with(|| {
                        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
                        let style = "  [{bar:32.yellow/dim}] {bytes}/{total_bytes} {bytes_per_sec}, {eta} left  {msg}";
                        let style = ProgressStyle::with_template(style);
                        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸─"));
                        // What was here before came at no rate.
                        bar.with_position(first)
                    });
                    bar.set_length(total);
                    bar.set_position(done);
                    bar.set_message(shown(file));
                } else if state.last_line.elapsed() >= LINE_EVERY && done < total {
                    state.last_line = Instant::now();
                    let rate = done.saturating_sub(first) as f64 / state.began.elapsed().as_secs_f64().max(1e-3);
                    let left = (total - done) as f64 / rate.max(1.0);
                    let (have, all, rate) = (in_words(done), in_words(total), in_words(rate as u64));
                    self.output.say(format!("  {have} of {all}, {rate}/s, {left:.0} s left  {file}"));
                }
            }
            Event::End => {
                if let Some(bar) = state.bar.take() {
                    bar.finish_and_clear();
                }
            }
            Event::Note(note) if state.said.insert(note.to_string()) => {
                self.say(state.bar.as_ref(), &format!("hub: {note}"));
            }
            _ => {}
        }
    }

    fn cancelled(&self) -> bool {
        self.cancel.as_ref().is_some_and(Cancel::requested)
    }
}

impl Drop for Downloads {
    fn drop(&mut self) {
        if let Some(bar) = self.state.get_mut().unwrap_or_else(PoisonError::into_inner).bar.take() {
            bar.finish_and_clear();
        }
    }
}
