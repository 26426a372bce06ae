//! A cache of its own and a client of a mock hub, for one test.
#![allow(dead_code, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use karat_hub::{Client, Event, HubId, Progress, RepoKind, Retry, Settings, Snapshot, Want};
use karat_system::Result;

use crate::mock::MockHub;

pub struct Place {
    pub folder: tempfile::TempDir,
    pub hub: MockHub,
    pub told: Told,
}

impl Place {
    pub fn new() -> Place {
        Place { folder: tempfile::tempdir().unwrap(), hub: MockHub::start(), told: Told::default() }
    }

    pub fn settings(&self) -> Settings {
        let mut settings = Settings::of(&|_| None);
        settings.hf_endpoint.clone_from(&self.hub.url);
        settings.ms_endpoint.clone_from(&self.hub.url);
        settings.hf_cache = self.folder.path().join("hf");
        settings.ms_cache = self.folder.path().join("ms");
        settings.ms_old_cache = self.folder.path().join("ms/hub");
        settings.read_timeout = Duration::from_millis(400);
        settings.answer_timeout = Duration::from_millis(400);
        settings.retry = Retry { attempts: 4, first: Duration::from_millis(5), longest: Duration::from_millis(20) };
        settings
    }

    pub fn client(&self) -> Client {
        Client::new(self.settings())
    }

    pub fn with(&self, change: impl FnOnce(&mut Settings)) -> Client {
        let mut settings = self.settings();
        change(&mut settings);
        Client::new(settings)
    }

    pub fn offline(&self) -> Client {
        self.with(|settings| settings.offline = true)
    }

    pub fn model(&self, id: &str) -> Result<Snapshot> {
        self.fetch(&self.client(), id)
    }

    pub fn fetch(&self, client: &Client, id: &str) -> Result<Snapshot> {
        client.fetch(&HubId::parse(id).unwrap(), RepoKind::Model, &Want::Model, None, &self.told)
    }

    pub fn data(&self, id: &str) -> Result<Snapshot> {
        self.client().fetch(&HubId::parse(id).unwrap(), RepoKind::Dataset, &Want::Data, None, &self.told)
    }

    /// The repository `o/n` in the cache of Hugging Face.
    pub fn repo(&self) -> PathBuf {
        self.folder.path().join("hf/models--o--n")
    }
}

/// What a client told.
#[derive(Default)]
pub struct Told {
    pub notes: Mutex<Vec<String>>,
    pub bytes: AtomicU64,
}

impl Told {
    pub fn notes(&self) -> String {
        self.notes.lock().unwrap().join("\n")
    }
}

impl Progress for Told {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Note(note) => self.notes.lock().unwrap().push(note.into()),
            Event::Bytes { done, .. } => self.bytes.store(done, Ordering::Relaxed),
            _ => {}
        }
    }
}

/// Every file below a folder, hidden ones too, by its path from there.
pub fn all_files(folder: &Path) -> Vec<String> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).into_iter().flatten().flatten() {
            let path = entry.path();
            match path.is_dir() && !path.is_symlink() {
                true => folders.push(path),
                false => files.push(path.strip_prefix(folder).unwrap().to_string_lossy().into_owned()),
            }
        }
    }
    files.sort();
    files
}
