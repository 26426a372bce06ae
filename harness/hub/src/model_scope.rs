//! The protocol of ModelScope: files listed folder by folder or page by page, and the address of
//! one. Its errors come in the body of an answer that says 200.

use karat_system::{Error, Result};
use serde_json::Value;

use crate::http::{Ask, Http, Sign, encoded};
use crate::id::{HubId, RepoKind};
use crate::progress::Progress;
use crate::refusal::{checked, failed, said};
use crate::remote::{Hash, RemoteFile};
use crate::retry::is_passing;
use crate::settings::Settings;

/// Entries of a page of a dataset's listing.
const PAGE: usize = 200;
/// A model's listing of so many entries or more may be cut off: its folders are asked one by one.
const FULL: usize = 500;
/// Folders and pages of a repository; a hub with more goes round in a circle.
const MOST_REQUESTS: usize = 10_000;

/// A client of ModelScope.
pub(crate) struct ModelScope<'a> {
    pub http: &'a Http,
    pub settings: &'a Settings,
    pub sign: Sign,
}

impl<'a> ModelScope<'a> {
    pub fn new(http: &'a Http, settings: &'a Settings) -> Self {
        let sign = Sign { token: settings.ms_token.clone(), as_cookie: true };
        ModelScope { http, settings, sign }
    }

    /// The files at the revision of `id`.
    ///
    /// # Errors
    /// What the hub refuses; a hub that cannot be reached; data, for paths that lead elsewhere.
    pub fn list(&self, id: &HubId, kind: RepoKind, progress: &dyn Progress) -> Result<Vec<RemoteFile>> {
        let files = match kind {
            RepoKind::Model => self.list_model(id, progress)?,
            RepoKind::Dataset => self.list_dataset(id, progress)?,
        };
        crate::remote::check(&files, &id.to_string())?;
        Ok(files)
    }

    fn list_model(&self, id: &HubId, progress: &dyn Progress) -> Result<Vec<RemoteFile>> {
        let all = self.page_of_model(id, "", true, progress)?;
        if all.len() < FULL {
            return Ok(all.into_iter().filter_map(Entry::file).collect());
        }
        // It may have been cut off without a word.
        let (mut files, mut folders, mut asked) = (Vec::new(), vec![String::new()], 0);
        while let Some(folder) = folders.pop() {
            asked += 1;
            if asked > MOST_REQUESTS {
                return Err(Error::data("the hub's listing does not end").at(id));
            }
            for entry in self.page_of_model(id, &folder, false, progress)? {
                match entry.is_folder {
                    true => folders.push(entry.path),
                    false => files.extend(entry.file()),
                }
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(files)
    }

    fn page_of_model(&self, id: &HubId, root: &str, recursive: bool, progress: &dyn Progress) -> Result<Vec<Entry>> {
        let root = if root.is_empty() { String::new() } else { format!("&Root={}", encoded(root, false)) };
        let url = format!(
            "{}/api/v1/models/{}/repo/files?Revision={}&Recursive={}{root}",
            self.settings.ms_endpoint,
            id.repo(),
            encoded(id.asked_revision(), false),
            if recursive { "True" } else { "False" },
        );
        entries(&self.ask(&url, id, RepoKind::Model, false, progress)?, id)
    }

    fn list_dataset(&self, id: &HubId, progress: &dyn Progress) -> Result<Vec<RemoteFile>> {
        let mut files = Vec::new();
        for page in 1..MOST_REQUESTS {
            let url = format!(
                "{}/api/v1/datasets/{}/repo/tree?Revision={}&Recursive=True&PageNumber={page}&PageSize={PAGE}",
                self.settings.ms_endpoint,
                id.repo(),
                encoded(id.asked_revision(), false),
            );
            let found = entries(&self.ask(&url, id, RepoKind::Dataset, page > 1, progress)?, id)?;
            let is_last = found.len() < PAGE;
            files.extend(found.into_iter().filter_map(Entry::file));
            if is_last {
                return Ok(files);
            }
        }
        Err(Error::data("the hub's listing does not end").at(id))
    }

    /// The address of a file.
    pub fn url(&self, id: &HubId, kind: RepoKind, path: &str) -> String {
        // FilePath stays the last parameter: some servers cut what follows it.
        let source = if kind == RepoKind::Dataset { "Source=SDK&" } else { "" };
        format!(
            "{}/api/v1/{}/{}/repo?{source}Revision={}&FilePath={}",
            self.settings.ms_endpoint,
            kind.plural(),
            id.repo(),
            encoded(id.asked_revision(), false),
            encoded(path, false)
        )
    }

    /// The `Data` of an answer.
    fn ask(&self, url: &str, id: &HubId, kind: RepoKind, later: bool, progress: &dyn Progress) -> Result<Value> {
        // A later page is refused now and then although the first was not.
        let passing = |status: u16| is_passing(status) || (later && status == 403);
        let answer = self.http.ask_until(&Ask::get(url, &self.sign), progress, &passing)?;
        let answer = checked(answer, id, kind, self.settings)?;
        let headers = answer.headers.clone();
        let broken = || Error::failed("the hub's answer is no JSON as it should be").at(id);
        let text = answer.text().map_err(|e| broken().because(e))?;
        let mut body: Value = serde_json::from_str(&text).map_err(|e| {
            broken()
                .because(e)
                .help("a proxy or a login page may stand between: check HTTPS_PROXY and MODELSCOPE_ENDPOINT")
        })?;
        let code = body.get("Code").and_then(Value::as_i64).unwrap_or(200);
        if code == 200 && body.get("Success").and_then(Value::as_bool) != Some(false) {
            return Ok(body.get_mut("Data").map(Value::take).unwrap_or_default());
        }
        let status = u16::try_from(code).unwrap_or(0);
        let error = failed(status, &headers, &said(&text)).at(id);
        // 10010201001 and the like: what is not there, or not for this account.
        match code {
            404 | 401 | 403 | 10_000.. => Err(Error::usage(format!(
                "ModelScope has no such {} of this name and revision for us: code {code}{}",
                kind.word(),
                detail(&headers, &text)
            ))
            .at(id)
            .help(format!(
                "check the spelling at {}/{}/{}; a private one needs a token in MODELSCOPE_API_TOKEN (the cookies that \
                 `modelscope login` keeps are a pickle, which is not read)",
                self.settings.ms_endpoint,
                kind.plural(),
                id.repo()
            ))),
            _ => Err(error),
        }
    }
}

fn detail(headers: &ureq::http::HeaderMap, text: &str) -> String {
    let request = headers.get("x-request-id").and_then(|id| id.to_str().ok());
    let request = request.map_or_else(String::new, |id| format!(" (request {id})"));
    let said = said(text);
    if said.is_empty() { request } else { format!("{request}, {said:?}") }
}

/// A line of a listing.
struct Entry {
    path: String,
    is_folder: bool,
    size: u64,
    sha256: Option<String>,
}

impl Entry {
    fn file(self) -> Option<RemoteFile> {
        let hash = self.sha256.map(|digits| digits.to_lowercase()).and_then(|digits| Hash::of_name(&digits));
        let hash = hash.filter(|hash| matches!(hash, Hash::Sha256(_)));
        (!self.is_folder).then_some(RemoteFile { path: self.path, size: self.size, hash })
    }
}

/// The entries of `Data`: its `Files`, or itself.
fn entries(data: &Value, id: &HubId) -> Result<Vec<Entry>> {
    let list = data.get("Files").unwrap_or(data);
    let broken = || Error::failed("the hub's listing is not of the form it should have").at(id);
    let entry = |value: &Value| {
        Some(Entry {
            path: value.get("Path")?.as_str()?.to_string(),
            is_folder: value.get("Type").and_then(Value::as_str) == Some("tree"),
            size: value.get("Size").and_then(Value::as_u64).unwrap_or(0),
            sha256: value.get("Sha256").and_then(Value::as_str).map(str::to_string),
        })
    };
    match list {
        Value::Null => Ok(Vec::new()),
        Value::Array(list) => list.iter().map(|value| entry(value).ok_or_else(broken)).collect(),
        _ => Err(broken()),
    }
}
