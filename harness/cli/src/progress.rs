//! Shows a run: bars on a terminal, a line now and then elsewhere.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use karat::backend::{Event, Level, StepEvent};
use karat::run::{Notice, Observer};

use crate::output::{Output, shown};

/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Draws notices.
pub struct Progress<'a> {
    output: &'a Output,
    bar: Option<ProgressBar>,
    stage_began: Instant,
    last_line: Instant,
    last_loss: f64,
    /// Tokens and time at the first step of the stage: a resumed training has seen tokens before.
    first_step: Option<(u64, Instant)>,
    /// Warnings that were shown.
    said: BTreeSet<String>,
}

impl<'a> Progress<'a> {
    /// Draws to `output`'s standard error.
    pub fn new(output: &'a Output) -> Self {
        let now = Instant::now();
        Progress {
            output,
            bar: None,
            stage_began: now,
            last_line: now,
            last_loss: f64::NAN,
            first_step: None,
            said: BTreeSet::new(),
        }
    }

    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.output.say(line)),
            None => self.output.say(line),
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Moves the bar, or prints a line if it is time for one.
    pub fn show(&mut self, stage: &str, done: u64, total: u64, message: String) {
        if self.output.interactive() {
            let bar = self.bar.get_or_insert_with(|| {
                let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
                let style = ProgressStyle::with_template("  {prefix:.dim} [{bar:32.yellow/dim}] {pos}/{len} {msg}");
                bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸─"));
                bar.set_prefix(shown(stage));
                bar
            });
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(shown(&message));
        } else if self.last_line.elapsed() >= LINE_EVERY && done < total {
            self.last_line = Instant::now();
            self.output.say(format!("  {stage}  {done}/{total}  {message}"));
        }
    }

    fn step(&mut self, stage: &str, total: usize, step: &StepEvent) {
        self.last_loss = step.loss;
        let now = Instant::now();
        let (tokens, began) = *self.first_step.get_or_insert((step.tokens, now));
        let rate = (step.tokens - tokens) as f64 / (now - began).as_secs_f64().max(1e-3);
        let message = format!("loss {:.3}  lr {:.1e}  {rate:.0} tokens/s", step.loss, step.learning_rate);
        self.show(stage, step.step as u64, total as u64, message);
    }
}

impl Observer for Progress<'_> {
    fn notice(&mut self, notice: Notice<'_>) {
        match notice {
            Notice::Stage { name, detail } => {
                self.finish();
                self.stage_began = Instant::now();
                self.first_step = None;
                self.last_line = Instant::now();
                self.say(&format!("{name}: {detail}"));
            }
            Notice::Reused { name, detail } => {
                self.finish();
                self.say(&format!("{name}: reused, {detail}"));
            }
            Notice::Done { name, detail } => {
                self.finish();
                self.say(&format!("{name}: {detail}  [{:.1} s]", self.stage_began.elapsed().as_secs_f64()));
            }
            // A model that is opened several times is read in the same way each time.
            Notice::Warning(text) if self.said.insert(text.clone()) => self.say(&format!("warning: {text}")),
            Notice::Said(text) => self.say(&text),
            Notice::Backend { stage, total, event } => match event {
                Event::Step(step) => self.step(stage, total.unwrap_or(step.step), step),
                Event::Evaluation { step, loss, .. } => {
                    self.say(&format!("  {stage}  step {step}: train loss {:.4}, eval loss {loss:.4}", self.last_loss));
                }
                Event::Checkpoint { .. } | Event::Completion { .. } => {}
                Event::Progress { done, total, tokens, .. } => {
                    let rate = *tokens as f64 / self.stage_began.elapsed().as_secs_f64().max(1e-9);
                    self.show(stage, *done, *total, format!("{rate:.0} tokens/s"));
                }
                Event::Log { level: Level::Warn, message } => self.say(&format!("warning: {stage}: {message}")),
                Event::Log { level: Level::Info, message } => self.say(&format!("  {stage}  {message}")),
                _ => {}
            },
            _ => {}
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        self.finish();
    }
}
