//! The protocol of Hugging Face: a revision resolved to a commit, its files listed, and the headers
//! of one.

use karat_system::{Error, Result};
use serde::Deserialize;

use crate::http::{Ask, Follow, Http, Sign, encoded};
use crate::id::{HubId, RepoKind, is_commit};
use crate::progress::Progress;
use crate::refusal::checked;
use crate::remote::{Hash, RemoteFile};
use crate::settings::Settings;

/// Pages of a listing; a hub with more goes round in a circle.
const MOST_PAGES: usize = 10_000;

/// A client of Hugging Face or a mirror of it.
pub(crate) struct HuggingFace<'a> {
    pub http: &'a Http,
    pub settings: &'a Settings,
    pub sign: Sign,
}

/// The headers of a file.
#[derive(Debug)]
pub(crate) struct Head {
    /// Names the blob: the linked file's where there is one.
    pub etag: String,
    pub size: Option<u64>,
    /// The commit that the answer is of.
    pub commit: Option<String>,
}

impl<'a> HuggingFace<'a> {
    pub fn new(http: &'a Http, settings: &'a Settings) -> Self {
        let sign = Sign { token: settings.hf_token.clone(), as_cookie: false };
        HuggingFace { http, settings, sign }
    }

    /// The commit that the revision of `id` means now.
    ///
    /// # Errors
    /// What the hub refuses; a hub that cannot be reached.
    pub fn resolve(&self, id: &HubId, kind: RepoKind, progress: &dyn Progress) -> Result<String> {
        let url = format!(
            "{}/api/{}/{}/revision/{}",
            self.settings.hf_endpoint,
            kind.plural(),
            id.repo(),
            encoded(id.asked_revision(), false)
        );
        let answer = checked(self.http.ask(&Ask::get(&url, &self.sign), progress)?, id, kind, self.settings)?;
        #[derive(Deserialize)]
        struct Info {
            sha: Option<String>,
        }
        let info: Info = parsed(answer, id)?;
        info.sha.filter(|sha| is_commit(sha)).ok_or_else(|| {
            Error::data("the hub does not say which commit this revision is").at(id).help(mirror(self.settings))
        })
    }

    /// The files at `commit`.
    ///
    /// # Errors
    /// As [`HuggingFace::resolve`]; data, for paths that lead elsewhere.
    pub fn list(&self, id: &HubId, kind: RepoKind, commit: &str, progress: &dyn Progress) -> Result<Vec<RemoteFile>> {
        #[derive(Deserialize)]
        struct Lfs {
            oid: String,
            size: Option<u64>,
        }
        #[derive(Deserialize)]
        struct Entry {
            r#type: String,
            path: String,
            #[serde(default)]
            size: u64,
            oid: Option<String>,
            lfs: Option<Lfs>,
        }
        let mut url = format!(
            "{}/api/{}/{}/tree/{commit}?recursive=true&expand=false",
            self.settings.hf_endpoint,
            kind.plural(),
            id.repo()
        );
        let mut files = Vec::new();
        for _ in 0..MOST_PAGES {
            let answer = checked(self.http.ask(&Ask::get(&url, &self.sign), progress)?, id, kind, self.settings)?;
            let next = answer.headers.get_all("link").iter().filter_map(|link| next_of(link.to_str().ok()?)).next();
            let entries: Vec<Entry> = parsed(answer, id)?;
            files.extend(entries.into_iter().filter(|entry| entry.r#type == "file").map(|entry| {
                let hash =
                    entry.lfs.as_ref().map(|lfs| lfs.oid.trim_start_matches("sha256:").to_string()).or(entry.oid);
                let size = entry.lfs.and_then(|lfs| lfs.size).unwrap_or(entry.size);
                RemoteFile { path: entry.path, size, hash: hash.and_then(|hash| Hash::of_name(&hash)) }
            }));
            match next {
                Some(next) => {
                    url = if next.starts_with('/') { format!("{}{next}", self.settings.hf_endpoint) } else { next }
                }
                None => {
                    crate::remote::check(&files, &id.to_string())?;
                    return Ok(files);
                }
            }
        }
        Err(Error::data("the hub's listing does not end").at(id))
    }

    /// The address of a file at `commit`.
    pub fn url(&self, id: &HubId, kind: RepoKind, commit: &str, path: &str) -> String {
        let folder = if kind == RepoKind::Dataset { "datasets/" } else { "" };
        format!("{}/{folder}{}/resolve/{commit}/{}", self.settings.hf_endpoint, id.repo(), encoded(path, true))
    }

    /// The headers of a file at `commit`.
    ///
    /// # Errors
    /// As [`HuggingFace::resolve`]; data, for headers that do not name the file.
    pub fn head(&self, id: &HubId, kind: RepoKind, commit: &str, path: &str, progress: &dyn Progress) -> Result<Head> {
        let url = self.url(id, kind, commit, path);
        let ask = Ask { head: true, follow: Follow::Relative, ..Ask::get(&url, &self.sign) };
        let answer = self.http.ask(&ask, progress)?;
        let redirected = matches!(answer.status, 300..=399);
        let answer = if redirected { answer } else { checked(answer, &with_path(id, path), kind, self.settings)? };
        let etag = answer.header("x-linked-etag").or_else(|| answer.header("etag")).map(plain_etag);
        let size = answer.number("x-linked-size");
        let size = size.or_else(|| answer.number("content-length").filter(|_| !redirected));
        let commit = answer.header("x-repo-commit").map(str::to_string);
        match etag {
            Some(etag) => Ok(Head { etag, size, commit }),
            None => Err(Error::data("the hub does not say what the bytes of this file are (no ETag)")
                .at(with_path(id, path))
                .help(mirror(self.settings))),
        }
    }
}

fn with_path(id: &HubId, path: &str) -> HubId {
    HubId { path: Some(path.into()), ..id.clone() }
}

fn mirror(settings: &Settings) -> String {
    format!("{} may be a mirror that leaves this out: try another HF_ENDPOINT", settings.hf_endpoint)
}

/// An ETag without what marks it as weak, and without quotes.
fn plain_etag(etag: &str) -> String {
    etag.trim().trim_start_matches("W/").trim_matches('"').to_string()
}

/// The address of `Link: <address>; rel="next"`.
fn next_of(link: &str) -> Option<String> {
    link.split(',').find_map(|part| {
        let (address, rel) = part.trim().strip_prefix('<')?.split_once('>')?;
        rel.split(';').any(|p| matches!(p.trim(), "rel=\"next\"" | "rel=next")).then(|| address.to_string())
    })
}

fn parsed<T: serde::de::DeserializeOwned>(answer: crate::http::Answer, id: &HubId) -> Result<T> {
    let broken = || {
        Error::failed("the hub's answer is no JSON as it should be").at(id).help(
            "a proxy or a login page may stand between: open the hub's address in a browser, or check HTTPS_PROXY and HF_ENDPOINT",
        )
    };
    let text = answer.text().map_err(|e| broken().because(e))?;
    serde_json::from_str(&text).map_err(|e| broken().because(e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_leads_to_the_next_page_alone() {
        let link = "<https://h.example/a?cursor=x%3D>; rel=\"next\"";
        assert_eq!(next_of(link).as_deref(), Some("https://h.example/a?cursor=x%3D"));
        assert_eq!(next_of("</api/x>; rel=\"prev\", </api/y>; rel=\"next\"").as_deref(), Some("/api/y"));
        assert_eq!(next_of("</api/x>; rel=\"last\""), None);
    }

    #[test]
    fn an_etag_loses_its_marks() {
        for etag in ["\"abc\"", "W/\"abc\"", "abc"] {
            assert_eq!(plain_etag(etag), "abc");
        }
    }
}
