//! Whether a disk holds what is about to come.

use std::path::Path;

use karat_system::{Error, Result};

/// Refuses to begin what cannot end.
///
/// # Errors
/// Failed, if `bytes` do not fit where `folder` is, or will be.
pub(crate) fn check(folder: &Path, bytes: u64, cache: &str) -> Result<()> {
    match free(folder) {
        Some(free) if free < bytes => {
            Err(Error::failed(format!("{} are to come, and {} are free", in_words(bytes), in_words(free)))
                .at(folder.display())
                .help(format!("make room (`karat cache` says what takes it), or put the cache elsewhere with {cache}")))
        }
        _ => Ok(()),
    }
}

/// Free bytes where a folder is, or the nearest one above it; none where nobody knows.
#[cfg(unix)]
fn free(folder: &Path) -> Option<u64> {
    let there = folder.ancestors().find(|folder| folder.is_dir())?;
    let status = rustix::fs::statvfs(there).ok()?;
    status.f_bavail.checked_mul(status.f_frsize)
}

#[cfg(not(unix))]
fn free(_: &Path) -> Option<u64> {
    None
}

/// Bytes as people read them.
pub fn in_words(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ if value < 9.95 => format!("{value:.1} {}", UNITS[unit]),
        _ => format!("{value:.0} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn bytes_are_told_in_units_of_a_thousand() {
        let said = [0, 999, 1000, 9_940, 12_345_678, 999_999, 1_200_000_000].map(in_words);
        assert_eq!(said, ["0 B", "999 B", "1.0 kB", "9.9 kB", "12 MB", "1.0 MB", "1.2 GB"]);
    }

    #[cfg(unix)]
    #[test]
    fn what_no_disk_holds_is_refused_before_it_begins() {
        let folder = tempfile::tempdir().unwrap();
        let error = check(&folder.path().join("not/yet/there"), u64::MAX, "HF_HOME").unwrap_err();
        assert!(error.what().contains("are free") && error.help_text().unwrap().contains("HF_HOME"), "{error}");
        check(folder.path(), 1, "HF_HOME").unwrap();
    }
}
