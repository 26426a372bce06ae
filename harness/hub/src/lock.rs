//! The lock of a file that is being written, which the hub's own clients honour too.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::time::Duration;

use karat_system::{Error, Result};

use crate::progress::{Event, Progress, wait};

/// How often a lock that somebody else has is tried again.
const AGAIN: Duration = Duration::from_millis(100);

/// A lock, held until it is dropped; none where the file system has no locks.
#[derive(Debug)]
pub(crate) struct Lock(#[allow(dead_code)] Option<File>);

impl Lock {
    /// Waits for the lock file at `path`, whose folder is made.
    ///
    /// # Errors
    /// I/O; interrupted.
    pub fn take(path: &Path, what: &str, progress: &dyn Progress) -> Result<Lock> {
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(|e| Error::io("create the folder", folder, e))?;
        let mut told = false;
        loop {
            let file = open(path).map_err(|e| Error::io("create", path, e))?;
            match file.try_lock() {
                // The one who had it may have removed the file: what was locked is then nobody's.
                Ok(()) if is_at(&file, path) => return Ok(Lock(Some(file))),
                Ok(()) => continue,
                Err(TryLockError::WouldBlock) => {
                    if !std::mem::replace(&mut told, true) {
                        progress.event(Event::Note(&format!("another process is fetching {what}; waiting for it")));
                    }
                }
                Err(TryLockError::Error(_)) => return Ok(Lock(None)),
            }
            wait(AGAIN, progress)?;
        }
    }

    /// Whether anybody honours it.
    pub fn is_held(&self) -> bool {
        self.0.is_some()
    }

    /// Whether somebody has the lock at `path`.
    pub fn is_taken(path: &Path) -> bool {
        File::open(path).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // Several users may share a cache: as huggingface_hub makes them.
        options.mode(0o664);
    }
    options.open(path)
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let same = |a: &std::fs::Metadata, b: &std::fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    matches!((file.metadata(), std::fs::metadata(path)), (Ok(a), Ok(b)) if same(&a, &b))
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::progress::Silent;

    struct Stopped;
    impl Progress for Stopped {
        fn event(&self, _: Event<'_>) {}
        fn cancelled(&self) -> bool {
            true
        }
    }

    #[test]
    fn a_lock_is_waited_for_and_the_wait_can_be_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("locks/x.lock");
        let held = Lock::take(&path, "x", &Silent).unwrap();
        assert!(held.is_held() && Lock::is_taken(&path));
        assert_eq!(Lock::take(&path, "x", &Stopped).unwrap_err().kind(), karat_system::ErrorKind::Interrupted);
        drop(held);
        assert!(!Lock::is_taken(&path));
        Lock::take(&path, "x", &Silent).unwrap();
    }
}
