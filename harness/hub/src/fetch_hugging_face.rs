//! A fetch from Hugging Face: the revision resolved, then all asked by commit; blobs written under
//! their locks and linked once they are whole.

use std::path::PathBuf;

use karat_system::{Error, Result};

use crate::client::{Job, Snapshot, SnapshotFile, Want, Why};
use crate::hash::of_file;
use crate::http::is_unreachable;
use crate::hugging_face::HuggingFace;
use crate::id::is_commit;
use crate::layout::Repo;
use crate::lock::Lock;
use crate::progress::Event;
use crate::record::Record;
use crate::remote::{Hash, RemoteFile};
use crate::transfer::{self, INCOMPLETE, Meter};

/// Files that a model's user asks for one by one: that they are absent is noted.
const ASKED: [&str; 7] = [
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "vocab.json",
];

pub(crate) fn fetch(job: &Job<'_>) -> Result<Snapshot> {
    let settings = &job.client.settings;
    let hub = HuggingFace::new(&job.client.http, settings);
    let repo = Repo::new(job.id, job.kind, settings);
    let mut closed = settings.offline.then_some(Why::Offline);
    let commit = commit(job, &hub, &repo, &mut closed)?;
    let mut record = Record::read(&repo.folder, &commit);
    let before = record.clone();
    let folder = repo.snapshot(&commit);
    let mut files = std::mem::take(&mut record.files);
    let mut known = !files.is_empty();
    if !known && closed.is_none() {
        match hub.list(job.id, job.kind, &commit, job.progress) {
            Ok(listed) => (files, known) = (listed, true),
            Err(e) if is_unreachable(&e) && folder.is_dir() => closed = Some(Why::Unreachable(e)),
            Err(e) => return Err(e),
        }
    }
    if !known {
        // Another client's snapshot, and nobody to ask what else belongs to it.
        files = repo.listed(&commit);
        if let (Some(missing), Some(why)) = (gap(&files, job, &repo, &commit), &closed) {
            return Err(job.lacking(&[&missing], why));
        }
    }
    let transfer = Transfer { job, hub: &hub, repo: &repo, commit: &commit };
    let card = |file: &RemoteFile| {
        let local = folder.join(&file.path);
        if !local.is_file() {
            if let Some(why) = &closed {
                return Err(job.lacking(&[&file.path], why));
            }
            repo.make()?;
            let mut meter = Meter { progress: &crate::progress::Silent, done: 0, total: file.size };
            transfer.bring(file, &mut meter)?;
        }
        std::fs::read_to_string(&local).map_err(|e| Error::io("read", &local, e))
    };
    let chosen = job.chosen(&files, &card)?;
    let (mut here, missing) = job.present(&folder, &chosen.wanted, &mut record)?;
    if !missing.is_empty() {
        if let Some(why) = &closed {
            let names: Vec<&str> = missing.iter().map(|file| file.path.as_str()).collect();
            return Err(job.lacking(&names, why));
        }
        repo.make()?;
        here.extend(transfer.all(&missing, &mut record)?);
    }
    if known && *job.want == Want::Model && job.id.path.is_none() && closed.is_none() && repo.make().is_ok() {
        for name in ASKED.iter().filter(|name| files.iter().all(|file| file.path != **name)) {
            repo.set_absent(&commit, name)?;
        }
    }
    here.sort_by(|a, b| a.path.cmp(&b.path));
    let snapshot = job.snapshot(commit.clone(), folder, &chosen, here);
    drop(chosen);
    if known {
        record.files = files;
    }
    if record != before {
        record.keep(&repo.folder, &commit);
    }
    Ok(snapshot)
}

/// The commit that is meant.
fn commit(job: &Job<'_>, hub: &HuggingFace<'_>, repo: &Repo, closed: &mut Option<Why>) -> Result<String> {
    if let Some(pin) = job.pin {
        return match is_commit(pin) {
            true => Ok(pin.to_string()),
            false => Err(Error::usage(format!("{pin:?} is pinned, and is no commit"))
                .at(job.id)
                .help("a commit has 40 hexadecimal digits: correct it in [pins], or leave it out")),
        };
    }
    let revision = job.id.asked_revision();
    if job.id.is_commit() {
        return Ok(revision.to_string());
    }
    if closed.is_none() {
        match hub.resolve(job.id, job.kind, job.progress) {
            Ok(commit) => {
                repo.make()?;
                repo.set_commit(revision, &commit)?;
                return Ok(commit);
            }
            Err(e) if is_unreachable(&e) => *closed = Some(Why::Unreachable(e)),
            Err(e) => return Err(e),
        }
    }
    match (repo.commit_of(revision), closed) {
        (Some(commit), Some(Why::Unreachable(e))) => {
            job.note(&format!("{}; {} is taken from the cache as it was, at {}", e.what(), job.name(), &commit[..12]));
            Ok(commit)
        }
        (Some(commit), _) => Ok(commit),
        (None, Some(why)) => Err(job.lacking(&["the repository"], why)),
        (None, None) => Err(job.lacking(&["the repository"], &Why::Offline)),
    }
}

/// The first file that a snapshot of unknown completeness surely lacks.
fn gap(files: &[RemoteFile], job: &Job<'_>, repo: &Repo, commit: &str) -> Option<String> {
    let has = |name: &str| files.iter().any(|file| file.path == name);
    if files.is_empty() {
        return Some("the repository".into());
    }
    if *job.want != Want::Model || job.id.path.is_some() || has("adapter_config.json") {
        return None;
    }
    if !has("config.json") {
        return Some("config.json".into());
    }
    let index = repo.snapshot(commit).join("model.safetensors.index.json");
    let index: Option<serde_json::Value> = karat_system::fsio::read_json(&index).ok();
    let parts = index.as_ref().and_then(|index| index["weight_map"].as_object());
    let mut parts: Vec<&str> = parts.into_iter().flat_map(|map| map.values()).filter_map(|v| v.as_str()).collect();
    parts.sort_unstable();
    let wanted = if parts.is_empty() && !files.iter().any(|f| f.path.ends_with(".safetensors")) {
        vec!["model.safetensors"]
    } else {
        parts
    };
    wanted.into_iter().find(|name| !has(name)).map(str::to_string)
}

/// Files of one commit on their way.
#[derive(Clone, Copy)]
struct Transfer<'a> {
    job: &'a Job<'a>,
    hub: &'a HuggingFace<'a>,
    repo: &'a Repo,
    commit: &'a str,
}

impl Transfer<'_> {
    fn all(&self, missing: &[&RemoteFile], record: &mut Record) -> Result<Vec<SnapshotFile>> {
        let job = self.job;
        let partial = |file: &RemoteFile| {
            let hash = file.hash.as_ref().map(Hash::digits).unwrap_or_default();
            let there = |path: PathBuf| std::fs::metadata(path).map(|m| m.len()).ok();
            there(self.repo.blob(hash)).or_else(|| there(self.partial(hash))).filter(|_| !hash.is_empty()).unwrap_or(0)
        };
        let total = job.begin(&self.repo.folder, missing, &partial)?;
        let mut meter = Meter { progress: job.progress, done: 0, total };
        let mut files = Vec::new();
        for file in missing {
            let sha256 = self.bring(file, &mut meter)?;
            record.note(&file.path, &self.repo.snapshot(self.commit).join(&file.path), &sha256);
            files.push(SnapshotFile { path: file.path.clone(), size: file.size, sha256 });
        }
        job.progress.event(Event::End);
        Ok(files)
    }

    fn partial(&self, etag: &str) -> PathBuf {
        self.repo.folder.join("blobs").join(format!("{etag}{INCOMPLETE}"))
    }

    /// Brings one file into the snapshot; its SHA-256.
    fn bring(&self, file: &RemoteFile, meter: &mut Meter<'_>) -> Result<String> {
        let Transfer { job, hub, repo, commit } = *self;
        let at = |error: Error| error.at(format!("{}/{}", job.name(), file.path));
        let head = hub.head(job.id, job.kind, commit, &file.path, job.progress)?;
        if head.commit.as_deref().is_some_and(|other| other != commit) {
            return Err(at(Error::data(format!(
                "the hub answers of commit {}, not of {commit}",
                head.commit.unwrap_or_default()
            ))));
        }
        if let Some(size) = head.size.filter(|size| *size != file.size) {
            return Err(at(Error::data(format!(
                "the hub lists {} bytes, and its answer has {size}: one of them is wrong",
                file.size
            ))
            .help("try again; a mirror may be behind (HF_ENDPOINT)")));
        }
        let etag = head.etag;
        // The listing's word is the hub's own; a mirror's header may be another thing.
        let hash = file.hash.clone().or_else(|| Hash::of_name(&etag)).ok_or_else(|| {
            at(Error::data("the hub does not say what the bytes of this file must be").help(
                "neither its listing nor its ETag is a hash, so nothing can be verified: try another HF_ENDPOINT",
            ))
        })?;
        let is_name = !etag.is_empty() && etag.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        let etag = if is_name { etag } else { hash.digits().to_string() };
        let lock = Lock::take(&repo.lock(&etag), &file.path, job.progress)?;
        let blob = repo.blob(&etag);
        let mut found = None;
        if std::fs::metadata(&blob).is_ok_and(|there| there.len() == file.size) {
            let (sha256, right) = of_file(&blob, Some(&hash), job.progress)?;
            found = right.then_some(sha256);
            meter.skip(&file.path, if right { file.size } else { 0 });
        }
        let sha256 = match found {
            Some(sha256) => sha256,
            None => {
                // What is there under this name is not what the name says.
                if blob.symlink_metadata().is_ok() {
                    std::fs::remove_file(&blob).map_err(|e| Error::io("remove", &blob, e))?;
                }
                self.download(file, &hash, &etag, lock.is_held(), meter)
                    .map_err(|e| if e.place() == Some(file.path.as_str()) { at(e) } else { e })?
            }
        };
        repo.link(commit, &file.path, &etag)?;
        drop(lock);
        Ok(sha256)
    }

    fn download(
        &self,
        file: &RemoteFile,
        hash: &Hash,
        etag: &str,
        alone: bool,
        meter: &mut Meter<'_>,
    ) -> Result<String> {
        let Transfer { job, hub, repo, commit } = *self;
        let blob = repo.blob(etag);
        let url = hub.url(job.id, job.kind, commit, &file.path);
        let mut fetch = |partial: PathBuf| {
            let job = transfer::Job {
                name: &file.path,
                url: &url,
                sign: &hub.sign,
                size: file.size,
                hash: Some(hash),
                partial,
                target: &blob,
            };
            transfer::fetch(hub.http, &job, meter)
        };
        if alone {
            return fetch(self.partial(etag));
        }
        // Where locks are not honoured, nobody else may write the same file.
        let own = tempfile::Builder::new()
            .prefix(&format!("{etag}."))
            .suffix(INCOMPLETE)
            .tempfile_in(repo.folder.join("blobs"))
            .map_err(|e| Error::io("create a file in", &repo.folder, e))?;
        fetch(own.path().to_path_buf())
    }
}
