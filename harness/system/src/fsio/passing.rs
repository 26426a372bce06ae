//! Folders that are there while something is written, and what a kill leaves of them.
//!
//! Everything of Karat's that passes has a name that begins with [`PASSING`]. Within a folder that
//! is locked all of it is what an ended process left ([`remove_rests`]). Beside an `--out` that
//! nobody locks, the name holds the number of the process, and the folder itself is locked for as
//! long as that works: a rest is what neither is alive nor locked, so that the folder of another
//! machine's process on a shared file system stays.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::{LOCK, is_locked};
use crate::error::{Error, Result};

/// Begins the name of every temporary file and folder of Karat's.
pub const PASSING: &str = ".karat-";

/// A folder that is filled under a passing name and then given its own: a reader sees it whole or
/// not at all, also after a kill at any moment. Dropping it removes it.
#[derive(Debug)]
pub struct PassingFolder {
    folder: tempfile::TempDir,
    /// Locked as long as it is open, where the file system has locks of folders.
    _held: Option<File>,
}

impl PassingFolder {
    /// As [`PassingFolder::new_in`], in the folder that `folder` will lie in, which is made if it
    /// is not there.
    ///
    /// # Errors
    /// I/O.
    pub fn beside(folder: &Path, purpose: &str) -> io::Result<PassingFolder> {
        fs::create_dir_all(parent(folder))?;
        Self::new_in(parent(folder), purpose)
    }

    /// A new folder in `parent`, `.karat-{purpose}-{process}-{random}`, as readable as the user's
    /// other folders (the umask takes its part). What processes that were killed left of the same
    /// purpose in `parent` is removed.
    ///
    /// # Errors
    /// I/O.
    pub fn new_in(parent: &Path, purpose: &str) -> io::Result<PassingFolder> {
        let prefix = format!("{PASSING}{purpose}-");
        remove_dead(parent, |name| name.strip_prefix(&prefix)?.split('-').next()?.parse().ok());
        let prefix = format!("{prefix}{}-", std::process::id());
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(fs::Permissions::from_mode(0o777));
        }
        let folder = builder.tempdir_in(parent)?;
        let _held = hold(folder.path());
        Ok(PassingFolder { folder, _held })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Gives it the name `to`, which must not be taken but by an empty folder.
    ///
    /// # Errors
    /// I/O; the folder is removed then.
    pub fn publish(self, to: &Path) -> io::Result<()> {
        sync(self.folder.path())?;
        fs::rename(self.folder.path(), to)?;
        // It has moved: nothing is left to remove.
        let _ = self.folder.keep();
        // The new name must survive a power cut as what is in the folder does.
        sync(parent(to))
    }

    /// Gives the folder `name` in it the name `to`, as [`PassingFolder::publish`] does for the
    /// whole.
    ///
    /// # Errors
    /// I/O; all is removed then.
    pub fn publish_inside(self, name: &str, to: &Path) -> io::Result<()> {
        let inside = self.folder.path().join(name);
        sync(&inside)?;
        fs::rename(inside, to)?;
        sync(parent(to))
    }

    /// As [`PassingFolder::publish`], in the place of a folder that has the name.
    ///
    /// # Errors
    /// I/O; the folder is removed then, and what was there before stays.
    pub fn replace(self, to: &Path) -> io::Result<()> {
        if !to.exists() {
            return self.publish(to);
        }
        // Not removed under its name: a kill half way through would leave half of it there.
        let old = PassingFolder::new_in(parent(to), OLD)?;
        let aside = old.path().join(OLD);
        fs::rename(to, &aside)?;
        self.publish(to).inspect_err(|_| {
            let _ = fs::rename(&aside, to);
        })
    }
}

/// What a folder is for that takes another one up which is to be removed.
const OLD: &str = "old";

/// Removes a folder of files that belong together: a reader sees all of it or nothing.
///
/// # Errors
/// I/O.
pub fn remove_folder(folder: &Path) -> io::Result<()> {
    let old = PassingFolder::new_in(parent(folder), OLD)?;
    fs::rename(folder, old.path().join(OLD))?;
    old.folder.close()
}

/// The folder that `path` lies in.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Flushes the names in a folder to disk.
fn sync(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

/// Locks a folder that is being filled for as long as the returned file is open; none where the
/// file system does not.
fn hold(folder: &Path) -> Option<File> {
    File::open(folder).ok().filter(|file| file.try_lock().is_ok())
}

/// Removes the entries of `parent` that processes left which are no more. `process` gives the
/// process that an entry's name tells of; an entry without one is left alone.
fn remove_dead(parent: &Path, process: impl Fn(&str) -> Option<u32>) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let dead = entry.file_name().to_str().and_then(&process).is_some_and(|id| !is_alive(id));
        // A rest that cannot be removed is no reason not to work.
        if dead && hold(&entry.path()).is_some() {
            let _ = remove(&entry.path());
        }
    }
}

/// Whether a process of this number is there; taken to be where the system does not tell.
fn is_alive(process: u32) -> bool {
    !Path::new("/proc/self").exists() || Path::new("/proc").join(process.to_string()).exists()
}

/// Removes all that passes in `folder` and below, which the caller has locked. Folders below that
/// another process has locked are left alone.
///
/// # Errors
/// I/O.
pub fn remove_rests(folder: &Path) -> Result<()> {
    let fail = |e| Error::io("read the folder", folder, e);
    for entry in fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let path: PathBuf = entry.path();
        if entry.file_name().to_string_lossy().starts_with(PASSING) {
            remove(&path).map_err(|e| Error::io("remove", &path, e))?;
        } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !is_locked(&path.join(LOCK)) {
            remove_rests(&path)?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match path.is_dir() && !path.is_symlink() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of a process that has ended.
    fn ended() -> u32 {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id()
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_what_a_living_one_fills_stays() {
        if !Path::new("/proc/self").exists() {
            println!("skipped: this system does not tell which processes are alive");
            return;
        }
        let parent = tempfile::tempdir().unwrap();
        let put = |name: String| {
            let path = parent.path().join(name);
            fs::create_dir_all(path.join("inside")).unwrap();
            path
        };
        let dead = put(format!(".karat-import-{}-aaaaaa", ended()));
        let other_purpose = put(format!(".karat-merge-{}-aaaaaa", ended()));
        let unknown = put(".karat-import-aaaaaa".into());
        let locked = put(format!(".karat-import-{}-bbbbbb", ended()));
        let _held = File::open(&locked).unwrap();
        _held.lock().unwrap();
        let living = PassingFolder::new_in(parent.path(), "import").unwrap();
        let second = PassingFolder::new_in(parent.path(), "import").unwrap();
        assert!(!dead.exists());
        for path in [&other_purpose, &unknown, &locked, &living.path().to_path_buf(), &second.path().to_path_buf()] {
            assert!(path.exists(), "{}", path.display());
        }
        let to = parent.path().join("done");
        living.publish(&to).unwrap();
        drop(second);
        assert!(to.is_dir());
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 4);
    }

    #[test]
    fn a_folder_is_replaced_or_removed_whole_and_nothing_passing_stays() {
        let parent = tempfile::tempdir().unwrap();
        let to = parent.path().join("deep/model");
        for content in ["one", "two"] {
            let passing = PassingFolder::beside(&to, "test").unwrap();
            fs::write(passing.path().join(content), content).unwrap();
            passing.replace(&to).unwrap();
            let names: Vec<_> = fs::read_dir(&to).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(names, [content]);
        }
        for part in [false, true] {
            let passing = PassingFolder::beside(&to, "test").unwrap();
            fs::create_dir(passing.path().join("part")).unwrap();
            let published = if part { passing.publish_inside("part", &to) } else { passing.publish(&to) };
            assert!(published.is_err(), "a folder that holds something is not published over");
        }
        assert_eq!(fs::read_dir(to.parent().unwrap()).unwrap().count(), 1);
        remove_folder(&to).unwrap();
        assert_eq!(fs::read_dir(to.parent().unwrap()).unwrap().count(), 0);
        let passing = PassingFolder::beside(&to, "test").unwrap();
        fs::create_dir_all(passing.path().join("part/of it")).unwrap();
        passing.publish_inside("part", &to).unwrap();
        assert!(to.join("of it").is_dir());
        remove_folder(&to).unwrap();
        assert!(remove_folder(&to).is_err());
    }

    #[test]
    fn rests_in_a_locked_folder_go_but_not_those_below_another_lock() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path();
        for name in ["results", "train/lora", "train/full", ".karat-merged-x/merged"] {
            fs::create_dir_all(place.join(name)).unwrap();
        }
        for name in
            ["results/.karat-aaaaaa", "train/lora/.karat-bbbbbb", "train/full/.karat-cccccc", "results/base.json"]
        {
            fs::write(place.join(name), "x").unwrap();
        }
        let _busy = super::super::lock(&place.join("train/full")).unwrap();
        remove_rests(place).unwrap();
        for (name, there) in [
            ("results/.karat-aaaaaa", false),
            ("train/lora/.karat-bbbbbb", false),
            (".karat-merged-x", false),
            ("train/full/.karat-cccccc", true),
            ("results/base.json", true),
        ] {
            assert_eq!(place.join(name).exists(), there, "{name}");
        }
    }
}
