//! The cache of Hugging Face's clients, as they lay it out: blobs by hash, snapshots of links to
//! them, refs.
//!
//! ```text
//! models--owner--name/refs/main                      the commit, without a line end
//!                     blobs/<etag>                   the bytes
//!                     snapshots/<commit>/config.json -> ../../blobs/<etag>
//!                     .no_exist/<commit>/<path>      empty: known to be absent
//! .locks/models--owner--name/<etag>.lock
//! ```

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use karat_system::{Error, Result};

use crate::id::{HubId, RepoKind, is_commit};
use crate::record;
use crate::remote::{Hash, RemoteFile};
use crate::settings::Settings;

/// Marks a folder as a cache for programs that make backups (bford.info/cachedir).
const CACHEDIR_TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n# This file is a cache directory tag, for the models and data of Hugging Face's clients.\n";

/// A repository's place in the cache.
#[derive(Clone, Debug)]
pub(crate) struct Repo {
    pub folder: PathBuf,
    locks: PathBuf,
    symlinks: bool,
}

impl Repo {
    pub fn new(id: &HubId, kind: RepoKind, settings: &Settings) -> Repo {
        let name = format!("{}--{}--{}", kind.plural(), id.owner, id.name);
        let locks = settings.hf_cache.join(".locks").join(&name);
        Repo { folder: settings.hf_cache.join(name), locks, symlinks: settings.symlinks }
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    pub fn lock(&self, etag: &str) -> PathBuf {
        self.locks.join(format!("{etag}.lock"))
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Makes its folders, and marks the cache as one.
    ///
    /// # Errors
    /// I/O.
    pub fn make(&self) -> Result<()> {
        for name in ["refs", "blobs", "snapshots", record::FOLDER] {
            let folder = self.folder.join(name);
            fs::create_dir_all(&folder).map_err(|e| {
                Error::io("create the folder", &folder, e).help("HF_HOME or HF_HUB_CACHE puts the cache elsewhere")
            })?;
        }
        let tag = self.folder.with_file_name("CACHEDIR.TAG");
        match fs::OpenOptions::new().write(true).create_new(true).open(&tag) {
            Ok(mut file) => file.write_all(CACHEDIR_TAG.as_bytes()).map_err(|e| Error::io("write", &tag, e)),
            Err(_) => Ok(()),
        }
    }

    /// The commit that a revision meant when it was last asked.
    pub fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.into());
        }
        let text = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(text.trim().to_string()).filter(|commit| is_commit(commit))
    }

    /// Notes which commit a revision means.
    ///
    /// # Errors
    /// I/O.
    pub fn set_commit(&self, revision: &str, commit: &str) -> Result<()> {
        if is_commit(revision) || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        self.publish(&path, |passing| fs::write(passing, commit))
    }

    /// Puts what `make` makes under a passing name at `path`, in place of what is there.
    fn publish(&self, path: &Path, make: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<()> {
        let folder = path.parent().unwrap_or(&self.folder);
        fs::create_dir_all(folder).map_err(|e| Error::io("create the folder", folder, e))?;
        // Not beside it: other clients take every file of these folders for one of theirs.
        let passing = tempfile::Builder::new()
            .prefix("passing-")
            .tempdir_in(self.folder.join(record::FOLDER))
            .map_err(|e| Error::io("create a folder in", &self.folder, e))?;
        let made = passing.path().join("made");
        make(&made).and_then(|()| fs::rename(&made, path)).map_err(|e| Error::io("write", path, e))
    }

    /// Links `path` of a snapshot to a blob that is whole; where there are no links, it becomes the
    /// file itself.
    ///
    /// # Errors
    /// I/O.
    pub fn link(&self, commit: &str, path: &str, etag: &str) -> Result<()> {
        let target = self.snapshot(commit).join(path);
        let up = "../".repeat(2 + path.matches('/').count());
        let relative = PathBuf::from(format!("{up}blobs/{etag}"));
        if fs::read_link(&target).is_ok_and(|there| there == relative) {
            return Ok(());
        }
        if self.symlinks && self.publish(&target, |passing| symlink(&relative, passing)).is_ok() {
            return Ok(());
        }
        let blob = self.blob(etag);
        self.publish(&target, |passing| fs::copy(&blob, passing).map(drop))
    }

    /// Notes that a repository has no such file at a commit.
    ///
    /// # Errors
    /// I/O.
    pub fn set_absent(&self, commit: &str, path: &str) -> Result<()> {
        let marker = self.folder.join(".no_exist").join(commit).join(path);
        if marker.exists() {
            return Ok(());
        }
        self.publish(&marker, |passing| fs::write(passing, ""))
    }

    /// The files of a snapshot as they lie there, for a listing that nobody has: sizes, and hashes
    /// where the names of their blobs are some.
    pub fn listed(&self, commit: &str) -> Vec<RemoteFile> {
        let root = self.snapshot(commit);
        let (mut files, mut folders) = (Vec::new(), vec![root.clone()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let path = entry.path();
                let Ok(metadata) = fs::metadata(&path) else { continue };
                if metadata.is_dir() {
                    folders.push(path);
                    continue;
                }
                let inside = path.strip_prefix(&root).ok().and_then(Path::to_str).map(|p| p.replace('\\', "/"));
                let blob = fs::read_link(&path).ok();
                let name = blob.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
                files.extend(inside.map(|path| RemoteFile {
                    path,
                    size: metadata.len(),
                    hash: name.and_then(Hash::of_name),
                }));
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        files
    }
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn repo(symlinks: bool) -> (tempfile::TempDir, Repo) {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = Settings::of(&|_| None);
        (settings.hf_cache, settings.symlinks) = (folder.path().join("hub"), symlinks);
        let repo = Repo::new(&HubId::parse("hf:o/n").unwrap(), RepoKind::Dataset, &settings);
        repo.make().unwrap();
        (folder, repo)
    }

    #[test]
    fn a_snapshot_is_relative_links_to_blobs_however_deep() {
        let (folder, repo) = repo(true);
        let (commit, etag) = ("0".repeat(40), "a".repeat(64));
        fs::write(repo.blob(&etag), "bytes").unwrap();
        repo.link(&commit, "a/b/c.jsonl", &etag).unwrap();
        repo.link(&commit, "top.jsonl", &etag).unwrap();
        let root = folder.path().join("hub/datasets--o--n/snapshots").join(&commit);
        assert_eq!(fs::read_link(root.join("top.jsonl")).unwrap(), Path::new(&format!("../../blobs/{etag}")));
        assert_eq!(fs::read_link(root.join("a/b/c.jsonl")).unwrap(), Path::new(&format!("../../../../blobs/{etag}")));
        assert_eq!(fs::read_to_string(root.join("a/b/c.jsonl")).unwrap(), "bytes");
        let listed = repo.listed(&commit);
        assert_eq!(listed.iter().map(|f| f.path.as_str()).collect::<Vec<_>>(), ["a/b/c.jsonl", "top.jsonl"]);
        assert_eq!(listed[0].hash, Some(Hash::Sha256(etag)));
        assert!(
            fs::read_to_string(folder.path().join("hub/CACHEDIR.TAG")).unwrap().starts_with("Signature: 8a477f597d28")
        );
    }

    #[test]
    fn where_there_are_no_links_a_snapshot_has_the_files() {
        let (_folder, repo) = repo(false);
        let commit = "0".repeat(40);
        fs::write(repo.blob("etag"), "bytes").unwrap();
        repo.link(&commit, "x.jsonl", "etag").unwrap();
        let file = repo.snapshot(&commit).join("x.jsonl");
        assert!(!file.is_symlink() && fs::read_to_string(file).unwrap() == "bytes");
    }

    #[test]
    fn a_ref_is_the_commit_without_a_line_end_and_moves() {
        let (_folder, repo) = repo(true);
        let (one, two) = ("1".repeat(40), "2".repeat(40));
        assert_eq!(repo.commit_of("main"), None);
        for commit in [&one, &two] {
            repo.set_commit("main", commit).unwrap();
            assert_eq!(fs::read_to_string(repo.folder.join("refs/main")).unwrap(), *commit);
        }
        repo.set_commit("refs/pr/1", &one).unwrap();
        assert_eq!(repo.commit_of("refs/pr/1").as_deref(), Some(one.as_str()));
        // A commit is itself, and no ref.
        repo.set_commit(&two, &two).unwrap();
        assert!(!repo.folder.join("refs").join(&two).exists());
        assert_eq!(repo.commit_of(&two), Some(two));
    }

    #[test]
    fn what_is_absent_is_an_empty_file() {
        let (_folder, repo) = repo(true);
        repo.set_absent("c", "a/vocab.json").unwrap();
        assert_eq!(fs::read_to_string(repo.folder.join(".no_exist/c/a/vocab.json")).unwrap(), "");
    }
}
