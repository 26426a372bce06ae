//! Names of repositories: `hf:owner/name`, `ms:owner/name`, with `@revision` and a path behind.

use std::fmt;

use karat_system::{Error, Result};

/// A place where models and data are published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Site {
    /// huggingface.co, or a mirror of it (`HF_ENDPOINT`).
    HuggingFace,
    /// modelscope.cn (`MODELSCOPE_ENDPOINT`).
    ModelScope,
}

impl Site {
    /// What stands before the colon of an id.
    pub fn prefix(self) -> &'static str {
        match self {
            Site::HuggingFace => "hf",
            Site::ModelScope => "ms",
        }
    }

    /// Its name for people.
    pub fn title(self) -> &'static str {
        match self {
            Site::HuggingFace => "Hugging Face",
            Site::ModelScope => "ModelScope",
        }
    }

    /// The branch of a repository that is meant where none is named.
    pub fn default_revision(self) -> &'static str {
        match self {
            Site::HuggingFace => "main",
            Site::ModelScope => "master",
        }
    }
}

/// Of which kind a repository is; where an id stands decides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RepoKind {
    /// Weights, tokenizers, adapters.
    Model,
    /// Items.
    Dataset,
}

impl RepoKind {
    /// `models` or `datasets`, as addresses and caches spell it.
    pub fn plural(self) -> &'static str {
        match self {
            RepoKind::Model => "models",
            RepoKind::Dataset => "datasets",
        }
    }

    /// `model` or `dataset`.
    pub fn word(self) -> &'static str {
        match self {
            RepoKind::Model => "model",
            RepoKind::Dataset => "dataset",
        }
    }
}

/// An id as it is written: `hf:owner/name[@revision][/path/in/repo]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HubId {
    /// Where.
    pub site: Site,
    /// The user or organisation.
    pub owner: String,
    /// The repository.
    pub name: String,
    /// A branch, tag or commit; absent, the site's default branch.
    pub revision: Option<String>,
    /// A file of it, or a folder.
    pub path: Option<String>,
}

impl HubId {
    /// Whether `text` is meant as an id: it begins with `hf:` or `ms:`.
    pub fn is_meant(text: &str) -> bool {
        text.starts_with("hf:") || text.starts_with("ms:")
    }

    /// Parses an id. A `/` in the name of a branch is written `%2F`; the revisions `refs/pr/N` and
    /// `refs/convert/NAME` are understood as they are.
    ///
    /// # Errors
    /// Usage, with how an id is spelled.
    pub fn parse(text: &str) -> Result<HubId> {
        let refused = |what: &str| {
            Error::usage(format!("{what}, so this names no repository"))
                .at(text)
                .help("it is spelled hf:owner/name or ms:owner/name, with @revision and /path/in/repo behind if wanted")
        };
        let (site, rest) = match text.split_once(':') {
            Some(("hf", rest)) => (Site::HuggingFace, rest),
            Some(("ms", rest)) => (Site::ModelScope, rest),
            _ => return Err(refused("it begins with neither hf: nor ms:")),
        };
        let (owner, rest) = rest.split_once('/').ok_or_else(|| refused("there is no owner before a slash"))?;
        let name_ends = rest.find(['/', '@']).unwrap_or(rest.len());
        let (name, rest) = rest.split_at(name_ends);
        for part in [owner, name] {
            if !is_word(part) {
                return Err(refused(&format!("{part:?} is no name of an owner or a repository")));
            }
        }
        let (revision, path) = match rest.strip_prefix('@') {
            None => (None, rest.strip_prefix('/')),
            Some(rest) => {
                let (revision, path) = split_revision(rest);
                if revision.is_empty() || revision.starts_with('-') || !revision.chars().all(is_of_revision) {
                    return Err(refused(&format!("{revision:?} is no revision")));
                }
                (Some(revision.replace("%2F", "/").replace("%2f", "/")), path)
            }
        };
        let path = path.map(|path| path.trim_end_matches('/')).filter(|path| !path.is_empty());
        if let Some(why) = path.and_then(crate::remote::unsafe_path) {
            return Err(refused(&format!("the path in it {why}")));
        }
        let (owner, name, path) = (owner.into(), name.into(), path.map(Into::into));
        Ok(HubId { site, owner, name, revision, path })
    }

    /// `owner/name`.
    pub fn repo(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    /// The revision that is asked for.
    pub fn asked_revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(self.site.default_revision())
    }

    /// The id without the path.
    pub fn repository(&self) -> HubId {
        HubId { path: None, ..self.clone() }
    }

    /// Whether the revision is a commit already, which no branch can move.
    pub fn is_commit(&self) -> bool {
        self.site == Site::HuggingFace && is_commit(self.asked_revision())
    }
}

/// Whether `text` is a whole git commit.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.site.prefix(), self.owner, self.name)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{}", if is_reference(revision) { revision.clone() } else { revision.replace('/', "%2F") })?;
        }
        self.path.as_ref().map_or(Ok(()), |path| write!(f, "/{path}"))
    }
}

/// A name as both sites allow them; what could lead out of a folder is none.
fn is_word(part: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let ends = |c: char| matches!(c, '-' | '.');
    !part.is_empty()
        && part.len() <= 96
        && part.chars().all(word)
        && !part.starts_with(ends)
        && !part.ends_with(ends)
        && !part.contains("..")
        && !part.contains("--")
}

fn is_of_revision(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '%' | '+' | '=')
}

/// `refs/pr/N`, `refs/convert/NAME`.
fn is_reference(revision: &str) -> bool {
    let mut parts = revision.split('/');
    parts.next() == Some("refs") && matches!(parts.next(), Some("pr" | "convert")) && parts.count() == 1
}

/// The revision at the start of `rest`, and the path behind it.
fn split_revision(rest: &str) -> (&str, Option<&str>) {
    let ends: Vec<usize> = rest.match_indices('/').map(|(at, _)| at).collect();
    let third = ends.get(2).copied().unwrap_or(rest.len());
    let end = if is_reference(&rest[..third]) { third } else { ends.first().copied().unwrap_or(rest.len()) };
    (&rest[..end], rest[end..].strip_prefix('/'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_id_is_written_as_it_was_read() {
        for text in [
            "hf:Qwen/Qwen3-0.6B",
            "ms:Qwen/Qwen3-0.6B",
            "hf:o/n@v1.0",
            "hf:o/n@feature%2Fx/data/train.jsonl",
            "hf:o/n@refs/pr/3",
            "hf:o/n@refs/convert/parquet/default/train/0000.parquet",
            "ms:krisfu/delicate_medical_r1_data/a b.jsonl",
        ] {
            assert_eq!(HubId::parse(text).unwrap().to_string(), text);
        }
        let id = HubId::parse("hf:o/n@refs/convert/parquet/default/train/0000.parquet").unwrap();
        assert_eq!(id.asked_revision(), "refs/convert/parquet");
        assert_eq!(id.path.as_deref(), Some("default/train/0000.parquet"));
        assert_eq!(HubId::parse("hf:o/n@feature%2Fx").unwrap().asked_revision(), "feature/x");
        assert_eq!(HubId::parse("ms:o/n").unwrap().asked_revision(), "master");
        assert_eq!(HubId::parse("hf:o/n/").unwrap().path, None);
        let commit = format!("hf:o/n@{}", "0123456789abcdef".repeat(3).split_at(40).0);
        assert!(HubId::parse(&commit).unwrap().is_commit());
    }

    #[test]
    fn what_could_lead_out_of_a_cache_is_no_id() {
        for text in [
            "hf:Qwen",
            "hf:/n",
            "hf:o/",
            "hf:../n",
            "hf:o/..",
            "hf:o/n--x",
            "hf:o/n@",
            "hf:o/n@-x",
            "hf:o/n@a b",
            "hf:o/n/../../etc/passwd",
            "hf:o/n//etc",
            "hf:o/n/a\\b",
            "hf:o/n/./x",
            "xx:o/n",
            "hf:o o/n",
        ] {
            let error = HubId::parse(text).unwrap_err();
            assert!(error.help_text().unwrap().contains("hf:owner/name or ms:owner/name"), "{text}");
        }
    }
}
