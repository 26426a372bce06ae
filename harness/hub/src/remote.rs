//! What a hub says that a repository holds, and which paths are believed.

use std::collections::BTreeMap;

use karat_system::{Error, Result};
use serde::{Deserialize, Serialize};

/// What the bytes of a file must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hash {
    /// SHA-256 in hexadecimal, of large files and of ModelScope's.
    Sha256(String),
    /// The git blob SHA-1 in hexadecimal, of small files of Hugging Face.
    GitSha1(String),
}

impl Hash {
    /// The hash that a name of so many hexadecimal digits is; none of another text.
    pub fn of_name(name: &str) -> Option<Hash> {
        let hexadecimal = name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match name.len() {
            64 if hexadecimal => Some(Hash::Sha256(name.into())),
            40 if hexadecimal => Some(Hash::GitSha1(name.into())),
            _ => None,
        }
    }

    /// The digits.
    pub fn digits(&self) -> &str {
        match self {
            Hash::Sha256(digits) | Hash::GitSha1(digits) => digits,
        }
    }
}

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteFile {
    /// Its path there, with `/`.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// What they must be, as far as the listing says.
    pub hash: Option<Hash>,
}

/// Why a path of a listing cannot be a file below a folder of ours; none if it can.
pub(crate) fn unsafe_path(path: &str) -> Option<&'static str> {
    let bytes = path.as_bytes();
    let drive = bytes.len() > 1 && bytes[1] == b':' && bytes[0].is_ascii_alphabetic();
    if path.is_empty() {
        return Some("is empty");
    }
    if path.starts_with('/') || drive {
        return Some("is absolute");
    }
    if path.split('/').any(|part| part == "..") {
        return Some("leads out of its folder");
    }
    if path.contains('\\') || path.split('/').any(|part| part.is_empty() || part == ".") {
        return Some("is no plain path");
    }
    if path.chars().any(char::is_control) || path.contains(" -> ") {
        return Some("has a name that no file here gets");
    }
    None
}

/// Refuses a listing that a careless client would let write anywhere, and one in which a file is
/// also a folder, as a link would be that others are written through.
///
/// # Errors
/// Data, with the path.
pub(crate) fn check(files: &[RemoteFile], place: &str) -> Result<()> {
    let refused = |path: &str, why: &str| {
        Err(Error::data(format!("the hub lists the file {path:?}, which {why}: nothing of it is fetched"))
            .at(place)
            .help("an honest repository has no such file: tell its owner, and take another"))
    };
    let mut lower: BTreeMap<String, &str> = BTreeMap::new();
    for file in files {
        if let Some(why) = unsafe_path(&file.path) {
            return refused(&file.path, why);
        }
        if lower.insert(file.path.to_lowercase(), &file.path).is_some_and(|other| other == file.path) {
            return refused(&file.path, "is there twice");
        }
    }
    for file in files {
        let folders = file.path.match_indices('/').map(|(at, _)| &file.path[..at]);
        if let Some(folder) = folders.into_iter().find(|folder| lower.contains_key(&folder.to_lowercase())) {
            return refused(folder, "is a folder as well");
        }
    }
    Ok(())
}

/// Refuses chosen files whose names differ in the case of letters alone: some file systems keep one.
///
/// # Errors
/// Data, with both.
pub(crate) fn check_case(files: &[&RemoteFile], place: &str) -> Result<()> {
    let mut lower: BTreeMap<String, &str> = BTreeMap::new();
    for file in files {
        if let Some(other) = lower.insert(file.path.to_lowercase(), &file.path) {
            return Err(Error::data(format!("{other} and {} differ in the case of letters alone", file.path))
                .at(place)
                .help("name the one that is meant by its path"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn file(path: &str) -> RemoteFile {
        RemoteFile { path: path.into(), size: 1, hash: None }
    }

    #[test]
    fn a_path_that_leads_elsewhere_refuses_the_whole_listing() {
        for path in ["../../etc/x", "/etc/x", "a/../b", "C:/x", "a\\b", "./x", "a//b", "x\n", "", "x -> /etc/passwd"] {
            let error = check(&[file("config.json"), file(path)], "hf:o/n").unwrap_err();
            assert!(error.what().contains("nothing of it is fetched"), "{path}");
        }
        check(&[file("config.json"), file("data/train-00000-of-00001.parquet"), file("..config")], "hf:o/n").unwrap();
    }

    #[test]
    fn a_file_that_is_a_folder_as_well_is_refused() {
        for path in ["model", "MODEL"] {
            let error = check(&[file(path), file("model/x.json")], "hf:o/n").unwrap_err();
            assert!(error.what().contains("a folder as well"), "{error}");
        }
        assert!(check(&[file("a"), file("a")], "hf:o/n").unwrap_err().what().contains("twice"));
    }

    #[test]
    fn names_that_some_file_systems_take_for_one_are_refused_where_both_are_wanted() {
        let files = [file("Train.jsonl"), file("train.jsonl")];
        check(&files, "hf:o/n").unwrap();
        assert!(check_case(&files.iter().collect::<Vec<_>>(), "hf:o/n").is_err());
        check_case(&[&files[0]], "hf:o/n").unwrap();
    }
}
