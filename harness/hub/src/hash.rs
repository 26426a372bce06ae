//! Hashes of files, as the hubs name them: SHA-256, and SHA-1 of a git blob.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use karat_system::fsio::hex;
use karat_system::{Error, Result};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::progress::{Progress, go_on};
use crate::remote::Hash;

/// Hashes bytes as they come: always SHA-256, and the git blob SHA-1 if that is asked for.
pub(crate) struct Hasher {
    sha256: Sha256,
    /// `sha1("blob " + decimal length + "\0" + bytes)`, by git's definition.
    git: Option<Sha1>,
}

impl Hasher {
    /// For a file of `size` bytes that must be `hash`.
    pub fn new(hash: Option<&Hash>, size: u64) -> Hasher {
        let git = matches!(hash, Some(Hash::GitSha1(_))).then(|| {
            let mut sha1 = Sha1::new();
            sha1.update(format!("blob {size}\0"));
            sha1
        });
        Hasher { sha256: Sha256::new(), git }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        if let Some(git) = &mut self.git {
            git.update(bytes);
        }
    }

    /// The SHA-256, and whether the bytes are those of `hash`.
    pub fn finish(self, hash: Option<&Hash>) -> (String, bool) {
        let sha256 = hex(&self.sha256.finalize());
        let right = match hash {
            None => true,
            Some(Hash::Sha256(digits)) => *digits == sha256,
            Some(Hash::GitSha1(digits)) => self.git.is_some_and(|git| *digits == hex(&git.finalize())),
        };
        (sha256, right)
    }
}

/// The SHA-256 of a file, and whether its bytes are those of `hash`.
///
/// # Errors
/// I/O; interrupted.
pub(crate) fn of_file(path: &Path, hash: Option<&Hash>, progress: &dyn Progress) -> Result<(String, bool)> {
    let fail = |e| Error::io("read", path, e);
    let mut file = File::open(path).map_err(fail)?;
    let size = file.metadata().map_err(fail)?.len();
    let mut hasher = Hasher::new(hash, size);
    feed(&mut hasher, &mut file, path, progress)?;
    Ok(hasher.finish(hash))
}

/// Hashes the rest of a file.
pub(crate) fn feed(hasher: &mut Hasher, file: &mut File, path: &Path, progress: &dyn Progress) -> Result<()> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        go_on(progress)?;
        match file.read(&mut buffer).map_err(|e| Error::io("read", path, e))? {
            0 => return Ok(()),
            n => hasher.update(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::progress::Silent;

    #[test]
    fn hashes_are_those_of_git_and_of_sha256sum() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, "hello\n").unwrap();
        // git hash-object, sha256sum.
        let git = Hash::GitSha1("ce013625030ba8dba906f756967f9e9ca394464a".into());
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        assert_eq!(of_file(&path, Some(&git), &Silent).unwrap(), (sha256.into(), true));
        assert_eq!(of_file(&path, Some(&Hash::Sha256(sha256.into())), &Silent).unwrap(), (sha256.into(), true));
        std::fs::write(&path, "hellO\n").unwrap();
        assert!(!of_file(&path, Some(&git), &Silent).unwrap().1);
        assert!(!of_file(&path, Some(&Hash::Sha256(sha256.into())), &Silent).unwrap().1);
    }
}
