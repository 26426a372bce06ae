//! A thread that writes what trackers keep, fed by a bounded queue: a full one makes the run wait
//! rather than lose anything, and a tracker that fails is left out from then on. Trackers that write
//! files share one; those behind a network have another, so that a slow server holds up no file.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::TrackerName;
use super::entry::{Ending, Timed};
use super::sink::{Opening, Sink};
use super::swanlab::RunFolder;
use super::tensorboard::EventFile;
use crate::error::{Error, Result};

/// What a queue is used for.
#[derive(Clone, Copy, Debug)]
struct Manner {
    /// Entries that may wait.
    waiting: usize,
    /// How long something that was written may lie in this process.
    unflushed: Duration,
    /// How much of that is waited for more, where nothing else is to be written.
    patience: Duration,
}

const FILES: Manner = Manner { waiting: 1024, unflushed: Duration::from_millis(500), patience: Duration::ZERO };
/// A request takes as long with many entries as with one. A server that does not answer is given up
/// long before so many wait.
const NETWORK: Manner = Manner { waiting: 65_536, unflushed: Duration::from_secs(2), patience: Duration::from_secs(1) };

/// What the thread is told.
#[derive(Clone)]
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
    /// Starts the threads that write for `trackers`.
    ///
    /// # Errors
    /// If there can be no thread.
    pub fn start_all(trackers: &[TrackerName]) -> Result<Vec<Queue>> {
        let (network, files): (Vec<_>, Vec<_>) =
            trackers.iter().copied().partition(|tracker| *tracker == TrackerName::MlFlow);
        let queues = [(files, FILES), (network, NETWORK)];
        let used = queues.into_iter().filter(|(trackers, _)| !trackers.is_empty());
        used.map(|(trackers, manner)| Queue::start(trackers.into_iter().collect(), manner)).collect()
    }

    fn start(trackers: BTreeSet<TrackerName>, manner: Manner) -> Result<Queue> {
        let (sender, messages) = sync_channel(manner.waiting);
        let (warn, failures) = channel();
        let mut writer = Writer { trackers, manner, open: BTreeMap::new(), unflushed: None, warn };
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
    manner: Manner,
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
            let next = match self.unflushed {
                Some(_) => messages.recv_timeout(self.manner.patience),
                None => messages.recv().map_err(RecvTimeoutError::from),
            };
            let message = match next {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => {
                    self.flush();
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => break,
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
                if since.elapsed() > self.manner.unflushed {
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
                TrackerName::MlFlow => on_mlflow(&of_tracker),
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
            let of_tracker = |(other, _): &&Open| *other == tracker;
            let sinks = self.open.values().flatten().filter(of_tracker);
            let unsent = match sinks.map(|(_, sink)| sink.unsent()).sum::<usize>() {
                0 => String::new(),
                values => format!(" ({values} values were waiting)"),
            };
            self.open.values_mut().for_each(|sinks| sinks.retain(|(other, _)| *other != tracker));
            let _ = self.warn.send(format!("{}: {}{unsent}", tracker.title(), in_one_line(error)));
        }
    }
}

#[cfg(feature = "hub")]
fn on_mlflow(opening: &Opening) -> Result<Box<dyn Sink>> {
    let run = super::mlflow::TrackedRun::open(opening, &super::mlflow::Server::from_env()?)?;
    Ok(Box::new(run))
}

#[cfg(not(feature = "hub"))]
fn on_mlflow(_: &Opening) -> Result<Box<dyn Sink>> {
    Err(Error::usage("this karat is built without a client of servers")
        .help("build it with its feature `hub` (the default of karat-cli)"))
}

/// An error with its causes.
fn in_one_line(error: &Error) -> String {
    let mut text = error.to_string().replace('\n', " ");
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    if let Some(help) = error.help_text() {
        text.push_str(&format!(" ({help})"));
    }
    text
}
