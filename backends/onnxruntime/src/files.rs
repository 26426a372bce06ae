//! Files of a model folder that go along with its weights, and the publishing of finished folders.

use std::path::Path;

use karat_system::fsio::PassingFolder;

use crate::manifest::MANIFEST;

/// Copied along so that the folder is usable on its own.
pub const COMPANIONS: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
];

/// Renames the finished folder into place. Loses gracefully against another process that published the same.
pub fn publish(temporary: PassingFolder, folder: &Path) -> std::io::Result<()> {
    match temporary.publish(folder) {
        Ok(()) => Ok(()),
        Err(_) if folder.join(MANIFEST).is_file() => Ok(()),
        Err(error) => Err(error),
    }
}
