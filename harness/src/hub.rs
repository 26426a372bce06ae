//! Models and data by name: `hf:owner/name` and `ms:owner/name`, with `@revision` and a path behind,
//! wherever a folder or a file is taken.
//!
//! An id becomes a path here, once, before anything is opened; what it was stands in a [`Source`],
//! which a report keeps: the repository, the commit that a branch meant, the hash of every file. The
//! client is the crate `karat-hub`, built in with the feature `hub`; without it an id is an error.
//!
//! What a branch means is asked when a run begins. The run's folder notes the commit
//! ([`crate::suite::Suite::pins`]), and a run that goes on stays with it, wherever the branch has
//! moved since; one that begins anew takes what the branch means then.

#[cfg(feature = "hub")]
mod fetch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::Result;

#[cfg(feature = "hub")]
pub use fetch::{Access, allow};
#[cfg(feature = "hub")]
pub use karat_hub as client;

/// What stands where an id was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A model, an adapter, a GGUF file.
    Model,
    /// Data: of a dataset without a path, the files of this split (`train`, `validation`, `test`).
    Data(&'static str),
}

/// A repository that a run took something from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Where it stands: `model.base`, `data.file`, `--model`.
    pub key: String,
    /// `model` or `dataset`.
    pub kind: String,
    /// The id as it was written.
    pub id: String,
    /// The revision that was meant: a branch, a tag, a commit.
    pub revision: String,
    /// What it meant: the commit, or on ModelScope a digest over all files.
    pub state: String,
    /// The licence that the repository's card names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// The files that were used.
    pub files: Vec<SourceFile>,
    /// Where it lies on this machine, which is nobody else's business.
    #[serde(skip)]
    pub local: PathBuf,
}

/// A file of a [`Source`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Its path in the repository.
    pub path: String,
    /// SHA-256 of its bytes.
    pub sha256: String,
}

impl Source {
    /// The id with the state in place of the branch: what of a suite is compared, for a branch is a
    /// name of several things.
    pub fn pinned(&self) -> String {
        let (repository, path) = split(&self.id);
        format!("{}@{}{path}", repository.split('@').next().unwrap_or(repository), self.state)
    }

    /// The id without a path in it.
    pub fn repository(&self) -> &str {
        split(&self.id).0
    }

    /// By what its state is pinned: `hf:owner/name@revision`; of a dataset, which may have the name of
    /// a model, `hf:datasets/owner/name@revision`.
    pub fn pin(&self) -> String {
        pin(&self.kind, self.repository())
    }
}

fn pin(kind: &str, repository: &str) -> String {
    match kind {
        "dataset" => repository.replacen(':', ":datasets/", 1),
        _ => repository.to_string(),
    }
}

/// An id's repository with its revision, and the path behind.
fn split(id: &str) -> (&str, &str) {
    let name = id.find('/').map_or(id.len(), |slash| slash + 1);
    let end = id[name..].find('/').map_or(id.len(), |slash| name + slash);
    // `refs/pr/N` and `refs/convert/NAME` are of the revision.
    let end = match id[..end].ends_with("@refs") {
        true => id.match_indices('/').nth(3).map_or(id.len(), |(at, _)| at),
        false => end,
    };
    id.split_at(end)
}

/// Whether a path is meant as an id. `hf:NAME` without a slash is the model `NAME` of a run called
/// `hf`, if there is one, as `RUN:NAME` is.
pub fn is_id(path: &Path) -> bool {
    let is_run = |name: &str| {
        let runs = [PathBuf::from(name), Path::new("runs").join(name)];
        runs.iter().any(|run| run.join(crate::run::models::MODELS).is_dir())
    };
    let hub = path.to_str().and_then(|text| text.split_once(':')).filter(|(hub, _)| matches!(*hub, "hf" | "ms"));
    hub.is_some_and(|(hub, rest)| rest.contains('/') || !is_run(hub))
}

/// Puts the path that an id means in place of it; what is no id stays. `pins` has the states that
/// revisions are taken to mean ([`Source::pin`]).
///
/// # Errors
/// As `karat_hub::Client::fetch`; usage, in a build without a client.
pub fn bring(key: &str, path: &mut PathBuf, place: Place, pins: &BTreeMap<String, String>) -> Result<Option<Source>> {
    let Some(text) = path.to_str().filter(|_| is_id(path)).map(str::to_string) else { return Ok(None) };
    let source = found(key, &text, place, pins)?;
    path.clone_from(&source.local);
    Ok(Some(source))
}

#[cfg(feature = "hub")]
use fetch::found;

/// Without the feature.
#[cfg(not(feature = "hub"))]
fn found(_: &str, id: &str, _: Place, _: &BTreeMap<String, String>) -> Result<Source> {
    let repo = split(id).0.split_once(':').map_or("", |(_, repo)| repo);
    Err(crate::Error::usage("this karat is built without a client of the hubs").at(id).help(format!(
        "build it with its feature `hub` (the default of karat-cli), or download it another way and give the folder: \
         hf download {repo} --local-dir DIR"
    )))
}

/// What to do about `owner/name` where no folder is called so.
pub(crate) fn spellings(id: &str) -> String {
    format!("name the hub: hf:{id} (Hugging Face) or ms:{id} (ModelScope)")
}

/// A repository that two reports took at different states, although both meant the same revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// The repository, with the revision if one was named.
    pub id: String,
    /// The branch or tag.
    pub revision: String,
    /// What it meant in the first report.
    pub first: String,
    /// What it meant in the second.
    pub second: String,
}

impl std::fmt::Display for Moved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Moved { id, revision, first, second } = self;
        write!(f, "{revision} of {id} moved from {} to {}", short(first), short(second))
    }
}

/// The first digits of a commit or a digest.
pub fn short(state: &str) -> &str {
    let from = state.find(':').map_or(0, |at| at + 1);
    state.get(from..from + 12).unwrap_or(state)
}

/// The branches and tags that moved between two sets of sources.
pub fn moved(first: &[Source], second: &[Source]) -> Vec<Moved> {
    let mut found: Vec<Moved> = Vec::new();
    for old in first {
        let same = second.iter().find(|new| new.pin() == old.pin() && new.revision == old.revision);
        let Some(new) = same.filter(|new| new.state != old.state) else { continue };
        let one = Moved {
            id: old.repository().into(),
            revision: old.revision.clone(),
            first: old.state.clone(),
            second: new.state.clone(),
        };
        if !found.contains(&one) {
            found.push(one);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(id: &str, state: &str) -> Source {
        Source { id: id.into(), revision: "main".into(), state: state.into(), ..Source::default() }
    }

    #[test]
    fn an_id_is_told_from_a_path_and_from_a_model_of_a_run() {
        for id in ["hf:Qwen/Qwen3-0.6B", "ms:o/n@v1/x.jsonl", "hf:Qwen"] {
            assert!(is_id(Path::new(id)), "{id}");
        }
        for path in ["Qwen/Qwen3-0.6B", "runs/hf:x", "mine:lora", "./hf:o/n", "/a/hf:o/n"] {
            assert!(!is_id(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn a_pinned_id_has_the_commit_where_the_branch_was() {
        for (id, pinned) in [
            ("hf:o/n", "hf:o/n@c0"),
            ("hf:o/n@main", "hf:o/n@c0"),
            ("hf:o/n@v1/a/b.jsonl", "hf:o/n@c0/a/b.jsonl"),
            ("hf:o/n/a.jsonl", "hf:o/n@c0/a.jsonl"),
            ("hf:o/n@refs/convert/parquet/d/0.parquet", "hf:o/n@c0/d/0.parquet"),
        ] {
            assert_eq!(source(id, "c0").pinned(), pinned);
        }
        assert_eq!(source("hf:o/n@refs/pr/3", "c0").repository(), "hf:o/n@refs/pr/3");
        let data = Source { kind: "dataset".into(), ..source("hf:o/n@v1/a.jsonl", "c0") };
        assert_eq!((data.pin(), source("hf:o/n/x", "c0").pin()), ("hf:datasets/o/n@v1".into(), "hf:o/n".into()));
    }

    #[test]
    fn a_branch_that_moved_is_named_once_and_one_that_stayed_is_not() {
        let old = [source("hf:o/n/a", "1"), source("hf:o/n/b", "1"), source("hf:o/m", "1"), source("hf:o/x", "1")];
        let new = [source("hf:o/n/a", "2"), source("hf:o/n/b", "2"), source("hf:o/m", "1")];
        let found = moved(&old, &new);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].to_string(), "main of hf:o/n moved from 1 to 2");
    }
}
