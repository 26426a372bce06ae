//! What the caches hold, and what of it nobody needs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use karat_system::{Error, Result};

use crate::id::{RepoKind, Site};
use crate::lock::Lock;
use crate::settings::Settings;

/// A repository in a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cached {
    /// Where it came from.
    pub site: Site,
    /// Its kind.
    pub kind: RepoKind,
    /// `owner/name`, or a name alone, as old repositories of Hugging Face have.
    pub repo: String,
    /// Its folder.
    pub folder: PathBuf,
    /// Bytes on the disk, each once.
    pub bytes: u64,
    /// Files in its snapshots.
    pub files: usize,
    /// Commits, or on ModelScope revisions, that are here, each with the branches and tags that mean
    /// it.
    pub revisions: Vec<(String, Vec<String>)>,
    /// Blobs that no snapshot has, and their bytes.
    pub dangling: Vec<(PathBuf, u64)>,
    /// Files that are not whole, and their bytes.
    pub incomplete: Vec<(PathBuf, u64)>,
    /// Links to blobs that are not there.
    pub broken: Vec<PathBuf>,
    locks: Option<PathBuf>,
}

impl Cached {
    /// The id that names it.
    pub fn id(&self) -> String {
        format!("{}:{}", self.site.prefix(), self.repo)
    }

    /// Removes blobs that no snapshot has, files that are not whole, and links to nothing, but none
    /// that a process is at work on; gives the bytes that came free.
    ///
    /// # Errors
    /// I/O.
    pub fn prune(&self) -> Result<u64> {
        let mut freed = 0;
        for (path, bytes) in self.dangling.iter().chain(&self.incomplete) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let etag = name.split('.').next().unwrap_or(name);
            let lock = self.locks.as_ref().map(|locks| locks.join(format!("{etag}.lock")));
            if lock.is_some_and(|lock| Lock::is_taken(&lock)) {
                continue;
            }
            remove(path)?;
            freed += bytes;
        }
        self.broken.iter().try_for_each(|path| remove(path))?;
        Ok(freed)
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}

/// The repositories in the caches of both hubs, by hub, kind and name.
pub fn survey(settings: &Settings) -> Vec<Cached> {
    let mut all = Vec::new();
    for folder in folders(&settings.hf_cache) {
        let name = name(&folder).to_string();
        for kind in [RepoKind::Model, RepoKind::Dataset] {
            if let Some(repo) = name.strip_prefix(&format!("{}--", kind.plural())) {
                let locks = settings.hf_cache.join(".locks").join(&name);
                all.push(of_hugging_face(&folder, kind, repo.replacen("--", "/", 1), locks));
            }
        }
    }
    for kind in [RepoKind::Model, RepoKind::Dataset] {
        for folder in folders(&settings.ms_cache.join(kind.plural())) {
            if let Some((owner, repo)) = name(&folder).split_once("--") {
                let snapshots = folders(&folder.join("snapshots"));
                all.push(of_model_scope(&folder, kind, format!("{owner}/{repo}"), &snapshots));
            }
        }
        for owner in folders(&settings.ms_old_cache.join(kind.plural())) {
            for folder in folders(&owner).into_iter().filter(|_| !name(&owner).contains("--")) {
                let repo = format!("{}/{}", name(&owner), name(&folder).replace("___", "."));
                all.push(of_model_scope(&folder, kind, repo, std::slice::from_ref(&folder)));
            }
        }
    }
    all.sort_by(|a, b| (a.site, a.kind, &a.repo, &a.folder).cmp(&(b.site, b.kind, &b.repo, &b.folder)));
    all
}

fn of_hugging_face(folder: &Path, kind: RepoKind, repo: String, locks: PathBuf) -> Cached {
    let (mut used, mut files, mut broken, mut bytes) = (BTreeSet::new(), 0, Vec::new(), 0);
    let refs: Vec<(String, String)> = below(&folder.join("refs"))
        .into_iter()
        .filter_map(|path| {
            let revision = path.strip_prefix(folder.join("refs")).ok()?.to_str()?.to_string();
            Some((revision, fs::read_to_string(&path).ok()?.trim().to_string()))
        })
        .collect();
    let mut revisions = Vec::new();
    for snapshot in folders(&folder.join("snapshots")) {
        for path in below(&snapshot) {
            match (fs::read_link(&path), fs::metadata(&path)) {
                (_, Err(_)) => broken.push(path),
                (Ok(link), Ok(_)) => {
                    files += 1;
                    used.extend(link.file_name().map(ToOwned::to_owned));
                }
                (Err(_), Ok(metadata)) => {
                    files += 1;
                    bytes += metadata.len();
                }
            }
        }
        let commit = name(&snapshot).to_string();
        let meaning = refs.iter().filter(|(_, of)| *of == commit).map(|(revision, _)| revision.clone()).collect();
        revisions.push((commit, meaning));
    }
    let (mut dangling, mut incomplete) = (Vec::new(), Vec::new());
    for blob in below(&folder.join("blobs")) {
        let size = fs::symlink_metadata(&blob).map_or(0, |metadata| metadata.len());
        bytes += size;
        if name(&blob).ends_with(".incomplete") {
            incomplete.push((blob, size));
        } else if blob.file_name().is_none_or(|name| !used.contains(name)) {
            dangling.push((blob, size));
        }
    }
    let (site, folder, locks) = (Site::HuggingFace, folder.to_path_buf(), Some(locks));
    Cached { site, kind, repo, folder, bytes, files, revisions, dangling, incomplete, broken, locks }
}

fn of_model_scope(folder: &Path, kind: RepoKind, repo: String, snapshots: &[PathBuf]) -> Cached {
    let (mut files, mut bytes, mut incomplete, mut revisions) = (0, 0, Vec::new(), Vec::new());
    for snapshot in snapshots {
        for path in below(snapshot) {
            let size = fs::metadata(&path).map_or(0, |metadata| metadata.len());
            bytes += size;
            match name(&path).ends_with(".incomplete") {
                true => incomplete.push((path, size)),
                false => files += 1,
            }
        }
        let revision = if snapshot == folder { "master" } else { name(snapshot) };
        revisions.push((revision.to_string(), Vec::new()));
    }
    let (site, folder) = (Site::ModelScope, folder.to_path_buf());
    let (dangling, broken, locks) = (Vec::new(), Vec::new(), None);
    Cached { site, kind, repo, folder, bytes, files, revisions, dangling, incomplete, broken, locks }
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// The folders in a folder, in order.
fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    found.sort();
    found
}

/// All files and links below a folder, in order.
fn below(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).into_iter().flatten().flatten() {
            let path = entry.path();
            match path.is_dir() && !path.is_symlink() {
                true => folders.push(path),
                false => found.push(path),
            }
        }
    }
    found.sort();
    found
}
