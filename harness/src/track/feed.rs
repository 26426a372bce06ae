//! From the notices of a run to the queue of its trackers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::TrackerName;
use super::entry::{Ending, Entry};
use super::queue::{Message, Queue};
use super::settings;
use super::sink::{Opening, Origin, Start, Title};
use super::tags::{Tags, answers, metrics};
use crate::error::{ErrorKind, Result};
use crate::fsio;
use crate::run::{Begun, Notice, Observer};
use crate::suite::Suite;

/// A clock: time since the beginning of 1970.
pub type Clock = Box<dyn Fn() -> Duration + Send>;

/// What is tracked, and where.
pub struct Tracking {
    /// Which trackers.
    pub to: Vec<TrackerName>,
    /// The folder with one folder for each of them.
    pub folder: PathBuf,
    /// The folder inside that, where several runs share it; or empty.
    pub inside: PathBuf,
    /// The folder of the run, by which it is told from others.
    pub run: PathBuf,
    /// What the experiment is called.
    pub title: Title,
    /// Items whose texts are shown.
    pub samples: usize,
    /// The suite's settings, if it is one's.
    pub suite: Option<serde_json::Value>,
    /// Who writes.
    pub origin: Origin,
    /// When.
    pub clock: Clock,
}

impl Tracking {
    /// The folder of trackers in a run folder.
    pub const FOLDER: &str = "track";

    /// What `suite` asks for of a run in `run`, an absolute path.
    ///
    /// # Errors
    /// If the suite has no form as TOML.
    pub fn of_suite(suite: &Suite, run: &Path) -> Result<Tracking> {
        let asked = &suite.track;
        let name = asked.name.clone().unwrap_or_else(|| suite.name.clone());
        Ok(Tracking {
            to: asked.to.clone(),
            title: Title {
                project: asked.project.clone().unwrap_or_else(|| suite.name.clone()),
                workspace: asked.workspace.clone().unwrap_or_default(),
                name,
            },
            samples: asked.samples,
            suite: Some(settings::of_suite(suite)?),
            ..Tracking::new(run)
        }
        .below(asked.dir.as_deref()))
    }

    /// Of a folder without a suite.
    pub fn new(run: &Path) -> Tracking {
        let name = run.file_name().map_or_else(|| "karat".into(), |name| name.to_string_lossy().into_owned());
        Tracking {
            to: Vec::new(),
            folder: run.join(Self::FOLDER),
            inside: PathBuf::new(),
            run: run.into(),
            title: Title { project: name.clone(), workspace: String::new(), name },
            samples: 0,
            suite: None,
            origin: Origin::here(),
            clock: Box::new(|| since_1970(SystemTime::now())),
        }
    }

    /// The same below a folder that runs share, where each is under its name.
    #[must_use]
    pub fn below(self, shared: Option<&Path>) -> Tracking {
        match shared {
            Some(shared) => Tracking { folder: shared.into(), inside: self.title.name.clone().into(), ..self },
            None => self,
        }
    }

    /// Eight letters and digits that tell a training of `model` here from others.
    fn id(&self, model: &str, fingerprint: &str) -> String {
        let text = format!("{}\n{model}\n{fingerprint}", self.run.display());
        fsio::sha256(text.as_bytes())[..8].to_string()
    }
}

pub(super) fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Follows a run: hands its notices on, and what they say to the trackers, if there are any.
pub struct Follower<'a> {
    observer: &'a mut dyn Observer,
    feed: Option<Feed>,
}

impl<'a> Follower<'a> {
    /// Follows for `tracking`; without a tracker notices are handed on and nothing else is done.
    ///
    /// # Errors
    /// If there can be no thread.
    pub fn new(observer: &'a mut dyn Observer, tracking: Tracking) -> Result<Follower<'a>> {
        let feed = if tracking.to.is_empty() { None } else { Some(Feed::start(tracking)?) };
        Ok(Follower { observer, feed })
    }

    /// Says how the run ended and waits until all is written.
    pub fn end<T>(mut self, result: &Result<T>) {
        let Some(feed) = self.feed.take() else { return };
        let (ending, why) = match result {
            Ok(_) => (Ending::Finished, ""),
            Err(error) if error.kind() == ErrorKind::Interrupted => (Ending::Stopped, error.what()),
            Err(error) => (Ending::Crashed, error.what()),
        };
        let failures = feed.end(ending, why);
        self.warn(failures);
    }

    fn warn(&mut self, failures: Vec<String>) {
        for failure in failures {
            let text = format!("{failure}; the run goes on without it, and karat track writes all of it afterwards");
            self.observer.notice(Notice::Warning(text));
        }
    }
}

impl Observer for Follower<'_> {
    fn notice(&mut self, notice: Notice<'_>) {
        if let Some(feed) = &mut self.feed {
            feed.notice(&notice);
            let failures = feed.failures();
            self.warn(failures);
        }
        self.observer.notice(notice);
    }
}

/// The trackers of a run.
pub(super) struct Feed {
    tracking: Tracking,
    queues: Vec<Queue>,
    /// The models whose files are open.
    models: BTreeMap<String, Followed>,
}

#[derive(Default)]
struct Followed {
    tags: Tags,
    /// When its training ended, if that was before this run.
    ended: Option<Duration>,
}

impl Feed {
    /// Begins to write.
    ///
    /// # Errors
    /// If there can be no thread.
    pub fn start(tracking: Tracking) -> Result<Feed> {
        Ok(Feed { queues: Queue::start_all(&tracking.to)?, tracking, models: BTreeMap::new() })
    }

    /// Says how the run ended and waits until all is written; what failed meanwhile, with its
    /// reason.
    pub fn end(mut self, ending: Ending, why: &str) -> Vec<String> {
        self.send(Message::End((self.tracking.clock)(), ending, why.into()));
        self.queues.iter_mut().for_each(Queue::close);
        self.failures()
    }

    /// The trackers that failed since this was last asked, each with its reason.
    fn failures(&self) -> Vec<String> {
        self.queues.iter().flat_map(Queue::failures).collect()
    }

    fn send(&self, message: Message) {
        if let Some((last, others)) = self.queues.split_last() {
            others.iter().for_each(|queue| queue.push(message.clone()));
            last.push(message);
        }
    }

    /// Takes what is for trackers.
    pub fn notice(&mut self, notice: &Notice<'_>) {
        let now = (self.tracking.clock)();
        match notice {
            Notice::Begun(begun) => self.begin(begun, now),
            Notice::Backend { stage, event, .. } => {
                let Some(model) = stage.strip_prefix("train ") else { return };
                let entry = self.models.get_mut(model).and_then(|followed| followed.tags.event(event));
                if let Some(entry) = entry {
                    self.push(model, now, entry);
                }
            }
            Notice::Trained { name, summary, curves } => {
                let Some(followed) = self.models.get(*name) else { return };
                let (at, totals) = (followed.ended.unwrap_or(now), followed.tags.totals(summary, curves));
                self.push(name, at, totals);
            }
            Notice::Reported { report, answered } => {
                for one in *answered {
                    if !self.models.contains_key(&one.name) {
                        self.open(self.opening(&one.name, "", None, now), Followed::default());
                    }
                    for entry in metrics(report, &one.name, one.step) {
                        self.push(&one.name, now, entry);
                    }
                    let texts = answers(report, &one.predictions, self.tracking.samples);
                    if !texts.is_empty() {
                        self.push(&one.name, now, Entry::Texts { tag: "Prediction", step: one.step, texts });
                    }
                }
            }
            _ => {}
        }
    }

    fn begin(&mut self, begun: &Begun<'_>, now: Duration) {
        let written = begun.written.map(since_1970);
        let mut tags = Tags::new(begun.extent);
        let history = tags.history(begun.curves, written.unwrap_or(now));
        let (start, ended) = match begun.after {
            Some(step) => (Start::After(step), None),
            None => (Start::Anew, written),
        };
        let began = history.first().map_or(now, |(at, _)| *at);
        let opening = self.opening(begun.name, begun.fingerprint, Some(begun.settings), now);
        self.open(Opening { start, history, began, ..opening }, Followed { tags, ended });
    }

    fn opening(
        &self,
        model: &str,
        fingerprint: &str,
        settings: Option<&BTreeMap<String, String>>,
        now: Duration,
    ) -> Opening {
        let tracking = &self.tracking;
        Opening {
            folder: tracking.folder.clone(),
            inside: tracking.inside.clone(),
            model: model.into(),
            id: tracking.id(model, fingerprint),
            title: tracking.title.clone(),
            config: settings::config(tracking.suite.as_ref(), settings),
            start: Start::Anew,
            began: now,
            now,
            history: Vec::new(),
            origin: tracking.origin.clone(),
        }
    }

    fn open(&mut self, opening: Opening, followed: Followed) {
        self.models.insert(opening.model.clone(), followed);
        self.send(Message::Open(Box::new(opening)));
    }

    fn push(&self, model: &str, at: Duration, entry: Entry) {
        self.send(Message::Entry(model.into(), (at, entry)));
    }
}
