//! What Karat keeps beside a repository in a cache: the listing of a commit, which never changes,
//! and which files were hashed. Everything here can be removed and comes again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use karat_system::{Result, fsio};
use serde::{Deserialize, Serialize};

use crate::hash::of_file;
use crate::progress::Progress;
use crate::remote::{Hash, RemoteFile};

/// The folder of records in a repository's.
pub(crate) const FOLDER: &str = ".karat";

/// The record of one revision.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// All files of the repository; empty where nobody listed them.
    pub files: Vec<RemoteFile>,
    /// Files that were hashed, by path.
    pub hashed: BTreeMap<String, Hashed>,
}

/// A file as it was when it was hashed and was right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hashed {
    size: u64,
    /// Nanoseconds since 1970 of its last change.
    changed: u64,
    sha256: String,
}

impl Record {
    /// The record in `folder` of a revision; an empty one where there is none, or a broken one.
    pub fn read(folder: &Path, revision: &str) -> Record {
        fsio::read_sealed_json(&file(folder, revision)).unwrap_or_default()
    }

    /// Keeps it. A cache that cannot be written is read without.
    pub fn keep(&self, folder: &Path, revision: &str) {
        let _ = fsio::write_sealed_json(&file(folder, revision), self);
    }

    /// The SHA-256 of the file at `local`, which must be `hash`; none where it is not. A file that
    /// was hashed and has not changed since is not read again.
    ///
    /// # Errors
    /// I/O; interrupted.
    pub fn sha256(
        &mut self,
        path: &str,
        local: &Path,
        hash: Option<&Hash>,
        progress: &dyn Progress,
    ) -> Result<Option<String>> {
        let now = state(local);
        if let (Some((size, changed)), Some(known)) = (now, self.hashed.get(path))
            && (known.size, known.changed) == (size, changed)
            && hash.is_none_or(|hash| !matches!(hash, Hash::Sha256(digits) if *digits != known.sha256))
        {
            return Ok(Some(known.sha256.clone()));
        }
        let (sha256, right) = of_file(local, hash, progress)?;
        match right {
            true => {
                self.note(path, local, &sha256);
                Ok(Some(sha256))
            }
            false => Ok(None),
        }
    }

    /// Notes that a file is right as it is now.
    pub fn note(&mut self, path: &str, local: &Path, sha256: &str) {
        if let Some((size, changed)) = state(local) {
            self.hashed.insert(path.into(), Hashed { size, changed, sha256: sha256.into() });
        }
    }
}

/// Size and last change of a file, through links.
fn state(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    let changed = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some((metadata.len(), u64::try_from(changed.as_nanos()).ok()?))
}

fn file(folder: &Path, revision: &str) -> PathBuf {
    folder.join(FOLDER).join(format!("{}.json", crate::http::encoded(revision, false)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::progress::Silent;

    #[test]
    fn a_file_is_hashed_once_and_again_when_it_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, "hello\n").unwrap();
        let right = Hash::GitSha1("ce013625030ba8dba906f756967f9e9ca394464a".into());
        let mut record = Record::default();
        let sha256 = record.sha256("x", &path, Some(&right), &Silent).unwrap().unwrap();
        record.keep(folder.path(), "refs/pr/1");
        let mut again = Record::read(folder.path(), "refs/pr/1");
        assert_eq!(again, record);
        assert_eq!(again.sha256("x", &path, Some(&right), &Silent).unwrap(), Some(sha256));
        std::fs::write(&path, "changed\n").unwrap();
        assert_eq!(again.sha256("x", &path, Some(&right), &Silent).unwrap(), None);
        assert_eq!(Record::read(folder.path(), "other"), Record::default());
    }
}
