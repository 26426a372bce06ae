//! The publishing of finished folders.

use std::path::Path;

use karat_system::fsio::PassingFolder;

use crate::manifest::MANIFEST;

/// Renames the finished folder into place. Loses gracefully against another process that published
/// the same.
pub fn publish(temporary: PassingFolder, folder: &Path) -> std::io::Result<()> {
    match temporary.publish(folder) {
        Ok(()) => Ok(()),
        Err(_) if folder.join(MANIFEST).is_file() => Ok(()),
        Err(error) => Err(error),
    }
}
