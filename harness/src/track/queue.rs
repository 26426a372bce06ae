//! One thread that writes what trackers keep, fed by one bounded queue: a full one makes the run
//! wait rather than lose anything, and a tracker that fails is left out from then on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::TrackerName;
use super::entry::{Ending, Timed};
use super::sink::{Opening, Sink};
use super::swanlab::RunFolder;
use super::tensorboard::EventFile;
use crate::error::{Error, Result};

/// Entries that may wait.
const WAITING: usize = 1024;

/// How long something that was written may lie in this process.
const UNFLUSHED: Duration = Duration::from_millis(500);

/// What the thread is told.
pub(super) enum Message {
    /// The files of a model; those that are open are closed.
    Open(Box<Opening>),
    /// Something happened to the model of that name.
    Entry(String, Timed),
    /// The run ended.
    End(Duration, Ending, String),
}

/// The end of the queue that a run holds.
pub(super) struct Queue {
    sender: Option<SyncSender<Message>>,
    thread: Option<JoinHandle<()>>,
    failures: Receiver<String>,
}

impl Queue {
    /// Starts the thread that writes for `trackers`.
    ///
    /// # Errors
    /// If there can be no thread.
    pub fn start(trackers: &[TrackerName]) -> Result<Queue> {
        let (sender, messages) = sync_channel(WAITING);
        let (warn, failures) = channel();
        let trackers = trackers.iter().copied().collect();
        let mut writer = Writer { trackers, open: BTreeMap::new(), unflushed: None, warn };
        let thread = std::thread::Builder::new().name("track".into()).spawn(move || writer.work(&messages));
        let thread = thread.map_err(|e| Error::failed("could not start the thread of the trackers").because(e))?;
        Ok(Queue { sender: Some(sender), thread: Some(thread), failures })
    }

    /// Puts a message at the end, when there is room.
    pub fn push(&self, message: Message) {
        if let Some(sender) = &self.sender {
            // A thread that is no more has said why.
            let _ = sender.send(message);
        }
    }

    /// The trackers that failed since this was last asked, each with its reason.
    pub fn failures(&self) -> Vec<String> {
        self.failures.try_iter().collect()
    }

    /// Waits until all is written.
    pub fn close(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.close();
    }
}

/// A tracker's files.
type Open = (TrackerName, Box<dyn Sink>);

/// The thread's own.
struct Writer {
    /// Those that have not failed.
    trackers: BTreeSet<TrackerName>,
    /// By model.
    open: BTreeMap<String, Vec<Open>>,
    /// Since when something is.
    unflushed: Option<Instant>,
    warn: Sender<String>,
}

impl Writer {
    fn work(&mut self, messages: &Receiver<Message>) {
        loop {
            // What is written must survive that the process is killed, but not every row alone needs
            // a call of the system where they come faster than that.
            let message = match messages.try_recv() {
                Ok(message) => message,
                Err(TryRecvError::Empty) => {
                    self.flush();
                    match messages.recv() {
                        Ok(message) => message,
                        Err(_) => break,
                    }
                }
                Err(TryRecvError::Disconnected) => break,
            };
            self.take(message);
        }
        self.flush();
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Open(opening) => self.open(&opening),
            Message::Entry(model, entry) => {
                self.each(|name, sink| if name == model { sink.write(&entry) } else { Ok(()) });
                let since = *self.unflushed.get_or_insert_with(Instant::now);
                if since.elapsed() > UNFLUSHED {
                    self.flush();
                }
            }
            Message::End(at, ending, why) => self.each(|_, sink| sink.end(at, ending, &why)),
        }
    }

    fn open(&mut self, opening: &Opening) {
        self.flush();
        self.open.remove(&opening.model);
        for tracker in self.trackers.clone() {
            let of_tracker = Opening { folder: opening.folder.join(tracker.name()), ..opening.clone() };
            let opened: Result<Box<dyn Sink>> = match tracker {
                TrackerName::TensorBoard => EventFile::open(&of_tracker).map(|sink| Box::new(sink) as Box<dyn Sink>),
                TrackerName::SwanLab => RunFolder::open(&of_tracker).map(|sink| Box::new(sink) as Box<dyn Sink>),
            };
            match opened {
                Ok(sink) => self.open.entry(opening.model.clone()).or_default().push((tracker, sink)),
                Err(error) => self.fail(tracker, &error),
            }
        }
    }

    fn flush(&mut self) {
        if self.unflushed.take().is_some() {
            self.each(|_, sink| sink.flush());
        }
    }

    /// Does something with every open file.
    fn each(&mut self, mut act: impl FnMut(&str, &mut dyn Sink) -> Result<()>) {
        let mut failed = Vec::new();
        for (model, sinks) in &mut self.open {
            for (tracker, sink) in sinks {
                if let Err(error) = act(model, sink.as_mut()) {
                    failed.push((*tracker, error));
                }
            }
        }
        failed.iter().for_each(|(tracker, error)| self.fail(*tracker, error));
    }

    /// Leaves a tracker out from now on and says so, once.
    fn fail(&mut self, tracker: TrackerName, error: &Error) {
        if self.trackers.remove(&tracker) {
            self.open.values_mut().for_each(|sinks| sinks.retain(|(other, _)| *other != tracker));
            let _ = self.warn.send(format!("{}: {}", tracker.title(), in_one_line(error)));
        }
    }
}

/// An error with its causes.
fn in_one_line(error: &Error) -> String {
    let mut text = error.to_string().replace('\n', " ");
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}
