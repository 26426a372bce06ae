//! The protocol of ModelScope on the mock hub. Its errors are answers of 200.

use serde_json::json;

use super::server::{Reply, Request};
use super::{MockFile, State};

fn failed(code: i64, message: &str) -> Reply {
    Reply::json(&json!({ "Code": code, "Success": false, "Message": message, "Data": null }))
        .with("X-Request-ID", "request-7")
}

pub fn answer(state: &mut State, request: &Request, cdn: &str) -> Reply {
    let path = request.path();
    let parts: Vec<&str> = path.trim_start_matches("/api/v1/").splitn(5, '/').collect();
    let [kind, owner, name, rest @ ..] = &parts[..] else { return Reply::new(404, "") };
    let repo = format!("{kind}/{owner}/{name}");
    let revision = request.parameter("Revision").unwrap_or_default();
    let secret = state.repos.get(&repo).and_then(|repo| repo.private.clone());
    if let Some(secret) = secret {
        let wanted = [("authorization", format!("Bearer {secret}")), ("cookie", format!("m_session_id={secret}"))];
        if wanted.iter().any(|(name, value)| request.header(name) != Some(value)) {
            return failed(10010205001, "the repository does not exist or is private");
        }
    }
    let Some((_, files)) = state.files(&repo, &revision) else {
        return failed(10010205001, "the repository does not exist or is private");
    };
    match rest {
        ["repo", "files"] => {
            let root = request.parameter("Root").unwrap_or_default();
            let deep = request.parameter("Recursive").as_deref() == Some("True");
            let mut entries = entries(state, &files, &root, deep);
            if state.truncated > 0 {
                entries.truncate(state.truncated);
            }
            Reply::json(&json!({ "Code": 200, "Success": true, "Message": "", "Data": { "Files": entries } }))
        }
        ["repo", "tree"] => {
            let number = |name: &str| request.parameter(name).and_then(|n| n.parse::<usize>().ok()).unwrap();
            let (page, size) = (number("PageNumber"), number("PageSize"));
            let entries = entries(state, &files, "", true);
            let entries: Vec<_> = entries.into_iter().skip((page - 1) * size).take(size).collect();
            Reply::json(&json!({ "Code": 200, "Success": true, "Message": "", "Data": { "Files": entries } }))
        }
        ["repo"] => match files.get(&request.parameter("FilePath").unwrap_or_default()) {
            None => failed(10010404001, "no such file"),
            Some(file) if file.large => Reply::new(302, "").with("Location", format!("{cdn}/{}", file.sha256())),
            Some(file) => Reply {
                status: 200,
                headers: vec![("ETag".into(), file.git_sha1()), ("X-Linked-ETag".into(), file.sha256())],
                body: file.bytes.clone(),
            },
        },
        _ => failed(404, "no such page"),
    }
}

fn entry(state: &State, path: &str, file: &MockFile) -> serde_json::Value {
    let mut entry = json!({
        "Path": path, "Name": path.rsplit('/').next(), "Type": "blob", "Size": file.bytes.len(),
        "Sha256": file.sha256(), "Revision": "0", "IsLFS": file.large,
    });
    if state.mute {
        entry["Sha256"] = json!("");
    }
    entry
}

fn entries(state: &State, files: &super::Files, root: &str, deep: bool) -> Vec<serde_json::Value> {
    let root = if root.is_empty() { String::new() } else { format!("{root}/") };
    let (mut found, mut folders) = (Vec::new(), std::collections::BTreeSet::new());
    for (path, file) in files {
        let Some(inside) = path.strip_prefix(&root) else { continue };
        if let Some((folder, _)) = inside.split_once('/') {
            folders.insert(format!("{root}{folder}"));
            if !deep {
                continue;
            }
        }
        found.push(entry(state, path, file));
    }
    found.extend(
        folders.iter().map(|path| json!({ "Path": path, "Name": path, "Type": "tree", "Size": 0, "Sha256": "" })),
    );
    found.extend(
        state.hostile_paths.iter().map(|path| json!({ "Path": path, "Type": "blob", "Size": 1, "Sha256": "" })),
    );
    found
}
