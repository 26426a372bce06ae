//! What a hub's refusal means, and what to do about it.

use karat_system::{Error, Result};
use ureq::http::HeaderMap;

use crate::http::{Answer, host};
use crate::id::{HubId, RepoKind, Site};
use crate::settings::Settings;

/// The answer, if it is no refusal.
///
/// # Errors
/// Usage, for a repository, revision or file that is not there or not open to this account; failed,
/// for anything else.
pub(crate) fn checked(answer: Answer, id: &HubId, kind: RepoKind, settings: &Settings) -> Result<Answer> {
    match answer.status {
        200..=299 => Ok(answer),
        status => {
            let headers = answer.headers.clone();
            let body = answer.text().unwrap_or_default();
            Err(refused(status, &headers, &body, id, kind, settings))
        }
    }
}

fn refused(status: u16, headers: &HeaderMap, body: &str, id: &HubId, kind: RepoKind, settings: &Settings) -> Error {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let page = page(id, kind, settings);
    let token = match id.site {
        Site::HuggingFace => "HF_TOKEN",
        Site::ModelScope => "MODELSCOPE_API_TOKEN",
    };
    let has_token = match id.site {
        Site::HuggingFace => settings.hf_token.is_some(),
        Site::ModelScope => settings.ms_token.is_some(),
    };
    let error = |what: String| Error::usage(what).at(id);
    let other = match kind {
        RepoKind::Model => "a dataset stands where data is expected",
        RepoKind::Dataset => "a model stands where a model is expected",
    };
    let hidden = || {
        let how = match has_token {
            true => format!("or one that the token in {token} may not see"),
            false => format!("or a private one: then set {token}"),
        };
        error(format!("{} shows no such {} here", id.site.title(), kind.word()))
            .help(format!("check the spelling at {page}; it may be gone, {how} ({other})"))
    };
    match (header("x-error-code"), status) {
        (Some("GatedRepo"), _) => {
            error("this repository is gated: its licence must be accepted first".into()).help(match has_token {
                true => format!("accept the licence at {page} with the account whose token {token} holds"),
                false => format!("accept the licence at {page}, then set {token} to a token of that account"),
            })
        }
        (Some("RepoNotFound"), _) | (None, 401 | 404) => hidden(),
        (Some("RevisionNotFound"), _) => error(format!("the repository has no revision {:?}", id.asked_revision()))
            .help(format!("its branches and tags stand at {page}; the usual one is {}", id.site.default_revision())),
        (Some("EntryNotFound"), _) => {
            error("the repository has no such file".into()).help(format!("it lists them at {page}"))
        }
        (_, 401 | 403) => error(format!("{} refuses this with {status}", host(&page))).help(match has_token {
            true => format!("the token in {token} may have expired, or be of an account that may not see it"),
            false => format!("set {token} if the repository is private"),
        }),
        _ => {
            let said = header("x-error-message").map_or_else(|| said(body), str::to_string);
            failed(status, headers, &said).at(id)
        }
    }
}

/// The error for a file's data that does not come.
pub(crate) fn of_file(status: u16, headers: &HeaderMap, name: &str, url: &str) -> Error {
    match status {
        401 | 403 => Error::usage(format!("{} refuses this file with {status}", host(url)))
            .at(name)
            .help("the licence of the repository may have to be accepted, or the token may have expired"),
        404 | 410 => Error::data(format!("{} lists this file and does not have it", host(url)))
            .at(name)
            .help("the repository may have changed a moment ago: try again"),
        _ => failed(status, headers, &host(url)).at(name),
    }
}

/// The error for an answer that means nothing in particular.
pub(crate) fn failed(status: u16, headers: &HeaderMap, said: &str) -> Error {
    let request = headers.get("x-request-id").and_then(|id| id.to_str().ok());
    let request = request.map_or_else(String::new, |id| format!(" (request {id})"));
    let said = if said.is_empty() { String::new() } else { format!(": {said}") };
    Error::failed(format!("the hub answered {status}{request}{said}")).help("try again later, or take a mirror")
}

/// The first words of a body that is a message, as JSON or as text.
pub(crate) fn said(body: &str) -> String {
    let object: Option<serde_json::Value> = serde_json::from_str(body).ok();
    let field = |name: &str| Some(object.as_ref()?.get(name)?.as_str()?.to_string());
    let text = field("error").or_else(|| field("Message")).or_else(|| field("message"));
    let text = text.unwrap_or_else(|| if body.trim_start().starts_with('<') { String::new() } else { body.into() });
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(200).collect()
}

/// The page of a repository for people.
pub(crate) fn page(id: &HubId, kind: RepoKind, settings: &Settings) -> String {
    match (id.site, kind) {
        (Site::HuggingFace, RepoKind::Model) => format!("{}/{}", settings.hf_endpoint, id.repo()),
        (Site::HuggingFace, RepoKind::Dataset) => format!("{}/datasets/{}", settings.hf_endpoint, id.repo()),
        (Site::ModelScope, kind) => format!("{}/{}/{}", settings.ms_endpoint, kind.plural(), id.repo()),
    }
}
