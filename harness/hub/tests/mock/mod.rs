//! A hub on this machine, for both protocols, that misbehaves where a test tells it to. The real
//! huggingface_hub package downloads from it, so it is an honest one where nobody tells it.
#![allow(dead_code, clippy::unwrap_used)]

mod model_scope;
mod server;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};

pub use server::Request;

/// A file, and whether it is kept as a large one is (LFS).
#[derive(Clone)]
pub struct MockFile {
    pub bytes: Arc<Vec<u8>>,
    pub large: bool,
}

impl MockFile {
    pub fn git_sha1(&self) -> String {
        let mut sha1 = Sha1::new();
        sha1.update(format!("blob {}\0", self.bytes.len()));
        sha1.update(&*self.bytes);
        hex(&sha1.finalize())
    }

    pub fn sha256(&self) -> String {
        hex(&Sha256::digest(&*self.bytes))
    }

    /// What names its blob.
    pub fn etag(&self) -> String {
        if self.large { self.sha256() } else { self.git_sha1() }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

type Files = BTreeMap<String, MockFile>;

/// A repository.
#[derive(Clone, Default)]
pub struct MockRepo {
    /// Commits by branch or tag.
    pub refs: BTreeMap<String, String>,
    /// Files by commit.
    pub commits: BTreeMap<String, Files>,
    /// Asks for a licence.
    pub gated: bool,
    /// Shown with this token alone.
    pub private: Option<String>,
    /// Has another name now: answered by a relative redirect.
    pub moved_to: Option<String>,
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This status, with these headers and this body.
    Status(u16, Vec<(String, String)>, String),
    /// The connection closes after so many bytes of the body.
    Cut(usize),
    /// All bytes come, whatever range was asked for.
    IgnoreRange,
    /// One byte of the body is another.
    WrongByte,
    /// Another range than was asked for.
    WrongRange,
    /// Nothing comes for so long.
    Stall(Duration),
    /// More bytes than the file has.
    TooMuch,
}

#[derive(Default)]
pub struct State {
    pub repos: BTreeMap<String, MockRepo>,
    faults: Vec<(String, Fault, usize)>,
    pub requests: Vec<Request>,
    /// What no client may do.
    pub violations: Vec<String>,
    /// Entries of a page of a listing; 0 is all.
    pub page: usize,
    /// Bytes a second; 0 is as fast as it goes.
    pub bytes_per_second: usize,
    /// Listed beside the files of any repository, as a hostile hub would.
    pub hostile_paths: Vec<String>,
    /// ModelScope: a model's listing ends after so many entries without a word; 0 is never.
    pub truncated: usize,
    /// Headers that say what a file is are left out.
    pub mute: bool,
}

/// A hub, and beside it a host that has its large files. Both end with the process.
#[derive(Clone)]
pub struct MockHub {
    state: Arc<Mutex<State>>,
    /// `http://127.0.0.1:PORT`.
    pub url: String,
    /// The other host.
    pub cdn: String,
}

impl MockHub {
    pub fn start() -> MockHub {
        let state = Arc::new(Mutex::new(State::default()));
        let cdn = server::listen(state.clone(), server::Role::Cdn);
        let url = server::listen(state.clone(), server::Role::Hub { cdn: cdn.clone() });
        MockHub { state, url, cdn }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Adds a commit to `branch` of a repository, `models/o/n` or `datasets/o/n`, and gives it.
    /// Files of more than 1000 bytes are large ones.
    pub fn push(&self, repo: &str, branch: &str, files: &[(&str, &[u8])]) -> String {
        let files: Files = files
            .iter()
            .map(|(path, bytes)| {
                (path.to_string(), MockFile { bytes: Arc::new(bytes.to_vec()), large: bytes.len() > 1000 })
            })
            .collect();
        let mut sha1 = Sha1::new();
        for (path, file) in &files {
            sha1.update(format!("{path} {}\n", file.etag()));
        }
        let commit = hex(&sha1.finalize());
        let mut state = self.state();
        let repo = state.repos.entry(repo.into()).or_default();
        repo.refs.insert(branch.into(), commit.clone());
        repo.commits.insert(commit.clone(), files);
        commit
    }

    /// The next `times` requests whose line (`GET /path`) contains `what` go wrong.
    pub fn fail(&self, what: &str, fault: Fault, times: usize) {
        self.state().faults.push((what.into(), fault, times));
    }

    /// The lines of all requests since the last call: `GET /path`.
    pub fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state().requests).iter().map(Request::line).collect()
    }

    /// Requests since the last call, whole.
    pub fn take_whole_requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state().requests)
    }

    /// Fails the test if a client did what none may.
    pub fn was_respected(&self) {
        assert_eq!(self.state().violations, Vec::<String>::new());
    }
}

impl State {
    fn fault(&mut self, line: &str) -> Option<Fault> {
        let at = self.faults.iter().position(|(what, _, times)| *times > 0 && line.contains(what.as_str()))?;
        self.faults[at].2 -= 1;
        Some(self.faults[at].1.clone())
    }

    /// The repository and the commit that a revision of it means.
    fn files(&self, repo: &str, revision: &str) -> Option<(String, Files)> {
        let repo = self.repos.get(repo)?;
        let commit = repo
            .refs
            .get(revision)
            .cloned()
            .or_else(|| repo.commits.contains_key(revision).then(|| revision.into()))?;
        let files = repo.commits.get(&commit)?.clone();
        Some((commit, files))
    }
}

/// Bytes that look like noise and are the same each time.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
