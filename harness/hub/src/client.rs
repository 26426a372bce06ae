//! The client: an id becomes a folder of files on this machine, each of them verified.

use std::path::{Path, PathBuf};

use karat_system::dataset::{Card, shortened};
use karat_system::{Error, Result};

use crate::choose;
use crate::http::Http;
use crate::id::{HubId, RepoKind, Site};
use crate::progress::{Event, Progress};
use crate::record::Record;
use crate::refusal::page;
use crate::remote::{RemoteFile, check_case};
use crate::settings::Settings;
use crate::{fetch_hugging_face, fetch_model_scope, space};

/// What of a repository is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    /// A model or an adapter; of an id with a path, that file or folder.
    Model,
    /// The data files; of an id with a path, that file or those of that folder.
    Data,
    /// What some patterns name (`*` stands for `/` too).
    Patterns(Vec<String>),
}

/// A repository as it is on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The id that was asked for.
    pub id: HubId,
    /// Its kind.
    pub kind: RepoKind,
    /// The state that the revision meant: the commit on Hugging Face; on ModelScope, which names
    /// none, `sha256:` and a digest over the hashes of all files.
    pub state: String,
    /// The folder that the paths of `files` begin at.
    pub folder: PathBuf,
    /// The files that were wanted, by path.
    pub files: Vec<SnapshotFile>,
    /// The data files with their splits, where data was wanted.
    pub splits: Vec<(String, PathBuf)>,
    /// The licence that the card names.
    pub licence: Option<String>,
}

/// A file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// Its path in the repository.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
}

impl Snapshot {
    /// What the id names: the file of its path, or the folder.
    pub fn local(&self) -> PathBuf {
        self.id.path.as_ref().map_or_else(|| self.folder.clone(), |path| self.folder.join(path))
    }

    /// The id at the state that was found, where that can be asked for again.
    pub fn pinned(&self) -> HubId {
        match self.id.site {
            Site::HuggingFace => HubId { revision: Some(self.state.clone()), ..self.id.clone() },
            Site::ModelScope => self.id.clone(),
        }
    }
}

/// Fetches from the hubs into their caches.
pub struct Client {
    pub(crate) settings: Settings,
    pub(crate) http: Http,
}

/// One fetch: what is asked, of whom, who is told.
pub(crate) struct Job<'a> {
    pub client: &'a Client,
    pub id: &'a HubId,
    pub kind: RepoKind,
    pub want: &'a Want,
    pub pin: Option<&'a str>,
    pub progress: &'a dyn Progress,
}

impl Client {
    /// A client; nothing is asked yet.
    pub fn new(settings: Settings) -> Client {
        Client { http: Http::new(&settings), settings }
    }

    /// What it goes by.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The wanted files of a repository, from the cache or from the hub. `pin` is the state that the
    /// revision is taken to mean, whatever it means now.
    ///
    /// # Errors
    /// Usage, for what is not there, not open to this account, not a kind that is read, or not in
    /// the cache while offline; data, for bytes that are not what the hub says they are; failed,
    /// when the hub cannot be reached or the disk is full; interrupted. What came is kept.
    pub fn fetch(
        &self,
        id: &HubId,
        kind: RepoKind,
        want: &Want,
        pin: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<Snapshot> {
        let job = Job { client: self, id, kind, want, pin, progress };
        match id.site {
            Site::HuggingFace => fetch_hugging_face::fetch(&job),
            Site::ModelScope => fetch_model_scope::fetch(&job),
        }
    }
}

impl Job<'_> {
    /// A note for the user.
    pub fn note(&self, text: &str) {
        self.progress.event(Event::Note(text));
    }

    /// The id without its path, as it is named where it is fetched.
    pub fn name(&self) -> String {
        self.id.repository().to_string()
    }

    /// The wanted ones of `files`. `card` gives the text of the card, where data is wanted.
    pub fn chosen<'f>(
        &self,
        files: &'f [RemoteFile],
        card: &dyn Fn(&RemoteFile) -> Result<String>,
    ) -> Result<Chosen<'f>> {
        let page = page(self.id, self.kind, &self.client.settings);
        let mut splits = Vec::new();
        let words = || {
            let named = files.iter().filter(|f| {
                let upper = f.path.to_uppercase();
                upper == "README.MD" || (upper.starts_with("LICEN") && !f.path.contains('/'))
            });
            named.collect::<Vec<&RemoteFile>>()
        };
        let mut wanted = match (self.want, &self.id.path) {
            (Want::Patterns(patterns), _) => choose::by_patterns(files, patterns, self.id)?,
            (Want::Model, None) => choose::of_model(files, self.id, &page)?,
            (Want::Model, Some(path)) => [choose::at_path(files, path, self.id)?, words()].concat(),
            (Want::Data, path) => {
                if let Some(path) = path {
                    choose::at_path(files, path, self.id)?;
                }
                let readme = files.iter().find(|file| file.path == "README.md").filter(|_| path.is_none());
                let card = readme.map(card).transpose()?.map(|text| Card::parse(&text)).transpose()?;
                splits = choose::of_data(files, &card.unwrap_or_default(), self.id)?;
                [splits.iter().map(|(_, file)| *file).collect(), words()].concat()
            }
        };
        wanted.sort_by(|a, b| a.path.cmp(&b.path));
        wanted.dedup_by(|a, b| a.path == b.path);
        check_case(&wanted, &self.name())?;
        Ok(Chosen { wanted, splits: splits.into_iter().map(|(split, file)| (split, file.path.clone())).collect() })
    }

    /// The snapshot of files that are all in `folder` now.
    pub fn snapshot(&self, state: String, folder: PathBuf, chosen: &Chosen<'_>, files: Vec<SnapshotFile>) -> Snapshot {
        let licence = std::fs::read_to_string(folder.join("README.md")).ok();
        // A card that is no YAML says nothing here.
        let licence = licence.and_then(|text| Card::parse(&text).ok()?.licence);
        let splits = chosen.splits.iter().map(|(split, path)| (split.clone(), folder.join(path))).collect();
        Snapshot { id: self.id.clone(), kind: self.kind, state, folder, files, splits, licence }
    }

    /// The error for files that are wanted, not in the cache, and cannot be asked for.
    pub fn lacking(&self, missing: &[&str], why: &Why) -> Error {
        let them = shortened(missing);
        let help = format!("where there is a network: karat download {}{}", self.id, self.kind_flag());
        match why {
            Why::Offline => Error::usage(format!("offline, and the cache lacks {them}"))
                .at(self.id)
                .help(format!("{help}; or unset HF_HUB_OFFLINE and leave out --offline")),
            Why::Unreachable(error) => {
                let said = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
                Error::failed(format!("{}, and the cache lacks {them}", error.what()))
                    .at(self.id)
                    .help(error.help_text().unwrap_or_default())
                    .because(said)
            }
        }
    }

    fn kind_flag(&self) -> &'static str {
        if self.kind == RepoKind::Dataset { " --dataset" } else { "" }
    }

    /// Of the wanted files those that are in `folder` and right, and those that are not. What is
    /// there and wrong is named.
    pub fn present<'f>(
        &self,
        folder: &Path,
        wanted: &[&'f RemoteFile],
        record: &mut Record,
    ) -> Result<(Vec<SnapshotFile>, Vec<&'f RemoteFile>)> {
        let (mut here, mut missing) = (Vec::new(), Vec::new());
        for file in wanted {
            let local = folder.join(&file.path);
            let sha256 = match std::fs::metadata(&local) {
                Ok(there) if there.is_file() && there.len() == file.size => {
                    record.sha256(&file.path, &local, file.hash.as_ref(), self.progress)?
                }
                _ => None,
            };
            match sha256 {
                Some(sha256) => here.push(SnapshotFile { path: file.path.clone(), size: file.size, sha256 }),
                None => {
                    if local.is_file() {
                        self.note(&format!("{}: {} in the cache is not what it should be", self.name(), file.path));
                    }
                    missing.push(*file);
                }
            }
        }
        Ok((here, missing))
    }

    /// Says what is to come, if there is room for it.
    pub fn begin(&self, folder: &Path, missing: &[&RemoteFile], partial: &dyn Fn(&RemoteFile) -> u64) -> Result<u64> {
        let total: u64 = missing.iter().map(|file| file.size).sum();
        let there: u64 = missing.iter().map(|file| partial(file).min(file.size)).sum();
        let cache = if self.id.site == Site::HuggingFace { "HF_HOME" } else { "MODELSCOPE_CACHE" };
        space::check(folder, total - there, cache)?;
        let id = self.name();
        self.progress.event(Event::Begin { id: &id, files: missing.len(), bytes: total - there });
        Ok(total)
    }
}

/// The wanted files of a repository, by path, and the splits of data among them.
pub(crate) struct Chosen<'a> {
    pub wanted: Vec<&'a RemoteFile>,
    pub splits: Vec<(String, String)>,
}

/// Why the hub is not asked.
pub(crate) enum Why {
    /// It must not be.
    Offline,
    /// It does not answer.
    Unreachable(Error),
}
