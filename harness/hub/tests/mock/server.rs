//! The HTTP of the mock hub, and the protocol of Hugging Face.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;

use super::{Fault, MockFile, State};

/// What a listener is.
#[derive(Clone)]
pub enum Role {
    Hub { cdn: String },
    Cdn,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
}

impl Request {
    pub fn line(&self) -> String {
        format!("{} {}", self.method, self.target)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn path(&self) -> String {
        decoded(self.target.split('?').next().unwrap())
    }

    /// A parameter of the query.
    pub fn parameter(&self, name: &str) -> Option<String> {
        let (_, query) = self.target.split_once('?')?;
        query.split('&').filter_map(|p| p.split_once('=')).find(|(n, _)| *n == name).map(|(_, v)| decoded(v))
    }
}

/// An answer.
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Arc<Vec<u8>>,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Reply {
        Reply { status, headers: Vec::new(), body: Arc::new(body.into()) }
    }

    pub fn with(mut self, name: &str, value: impl ToString) -> Reply {
        self.headers.push((name.into(), value.to_string()));
        self
    }

    pub fn json(value: &serde_json::Value) -> Reply {
        Reply::new(200, value.to_string()).with("Content-Type", "application/json")
    }
}

pub fn listen(state: Arc<Mutex<State>>, role: Role) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (state, role) = (state.clone(), role.clone());
            std::thread::spawn(move || {
                let _ = serve(stream, &state, &role);
            });
        }
    });
    url
}

fn serve(stream: TcpStream, state: &Mutex<State>, role: &Role) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (Some(method), Some(target)) = (words.next(), words.next()) else { return Ok(()) };
    let mut request = Request { method: method.into(), target: target.into(), headers: Vec::new() };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        request.headers.push((name.to_lowercase(), value.trim().into()));
    }
    let length = request.header("content-length").and_then(|l| l.parse::<usize>().ok()).unwrap_or(0);
    reader.read_exact(&mut vec![0; length])?;
    let (fault, speed, reply) = {
        let mut state = state.lock().unwrap();
        state.requests.push(request.clone());
        let fault = state.fault(&request.line());
        let reply = match (&fault, role) {
            (Some(Fault::Status(status, headers, body)), _) => {
                let mut reply = Reply::new(*status, body.as_bytes());
                reply.headers.clone_from(headers);
                reply
            }
            (_, Role::Cdn) => cdn(&mut state, &request),
            (_, Role::Hub { cdn }) => hub(&mut state, &request, cdn),
        };
        (fault, state.bytes_per_second, reply)
    };
    send(stream, &request, reply, fault.as_ref(), speed)
}

fn send(
    mut stream: TcpStream,
    request: &Request,
    reply: Reply,
    fault: Option<&Fault>,
    speed: usize,
) -> std::io::Result<()> {
    if let Some(Fault::Stall(duration)) = fault {
        std::thread::sleep(*duration);
    }
    let is_file = reply.headers.iter().any(|(name, _)| name == "ETag") && reply.status == 200;
    let from = request.header("range").filter(|_| is_file && !matches!(fault, Some(Fault::IgnoreRange)));
    let from = from.and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse::<usize>().ok());
    let (mut status, mut headers) = (reply.status, reply.headers);
    let mut body = &reply.body[..];
    let changed: Vec<u8>;
    if let Some(from) = from {
        let total = body.len();
        if from >= total {
            (status, body) = (416, &[]);
            headers.push(("Content-Range".into(), format!("bytes */{total}")));
        } else {
            let from = if matches!(fault, Some(Fault::WrongRange)) { from / 2 } else { from };
            (status, body) = (206, &body[from..]);
            headers.push(("Content-Range".into(), format!("bytes {from}-{}/{total}", total - 1)));
        }
    }
    match fault {
        Some(Fault::WrongByte) => {
            let mut bytes = body.to_vec();
            if let Some(byte) = bytes.last_mut() {
                *byte ^= 1;
            }
            changed = bytes;
            body = &changed;
        }
        Some(Fault::TooMuch) => {
            changed = [body, b"more"].concat();
            body = &changed;
        }
        _ => {}
    }
    let mut head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n", body.len());
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    if request.method == "HEAD" {
        return Ok(());
    }
    if let Some(Fault::Cut(after)) = fault {
        stream.write_all(&body[..(*after).min(body.len())])?;
        return stream.shutdown(std::net::Shutdown::Both);
    }
    if speed == 0 {
        return stream.write_all(body);
    }
    for part in body.chunks((speed / 100).max(1)) {
        stream.write_all(part)?;
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn cdn(state: &mut State, request: &Request) -> Reply {
    for secret in ["authorization", "cookie"] {
        if request.header(secret).is_some() {
            state.violations.push(format!("{secret} was sent to another host"));
        }
    }
    let wanted = request.path().trim_start_matches('/').to_string();
    let files = state.repos.values().flat_map(|repo| repo.commits.values()).flat_map(|files| files.values());
    match files.into_iter().find(|file| file.sha256() == wanted) {
        Some(file) => {
            Reply { status: 200, headers: vec![("ETag".into(), format!("\"{wanted}\""))], body: file.bytes.clone() }
        }
        None => Reply::new(404, ""),
    }
}

fn refused(status: u16, code: &str, message: &str) -> Reply {
    Reply::new(status, json!({ "error": message }).to_string())
        .with("X-Error-Code", code)
        .with("X-Error-Message", message)
}

fn hub(state: &mut State, request: &Request, cdn: &str) -> Reply {
    let path = request.path();
    if path.starts_with("/api/v1/") {
        return super::model_scope::answer(state, request, cdn);
    }
    let raw = request.target.split('?').next().unwrap();
    if let Some(rest) = raw.strip_prefix("/api/") {
        // kind, owner, name, what, revision
        let parts: Vec<String> = rest.splitn(5, '/').map(decoded).collect();
        let [kind, owner, name, what, revision] = &parts[..] else { return Reply::new(404, "") };
        let repo = format!("{kind}/{owner}/{name}");
        if let Some(to) = state.repos.get(&repo).and_then(|repo| repo.moved_to.clone()) {
            return Reply::new(307, "").with("Location", request.target.replacen(&repo, &to, 1));
        }
        if let Some(reply) = closed(state, &repo, request) {
            return reply;
        }
        let Some((commit, files)) = state.files(&repo, revision) else {
            return refused(404, "RevisionNotFound", &format!("Invalid rev id: {revision}"));
        };
        return match what.as_str() {
            "revision" => {
                let siblings: Vec<_> = files.keys().map(|path| json!({ "rfilename": path })).collect();
                Reply::json(&json!({
                    "id": format!("{owner}/{name}"), "sha": commit, "siblings": siblings, "private": false,
                    "gated": false, "tags": [], "downloads": 0, "likes": 0,
                }))
            }
            "tree" => tree(state, request, &files),
            _ => Reply::new(404, ""),
        };
    }
    let (kind, rest) = match path.strip_prefix("/datasets/") {
        Some(rest) => ("datasets", rest),
        None => ("models", path.trim_start_matches('/')),
    };
    let parts: Vec<&str> = rest.splitn(5, '/').collect();
    let [owner, name, "resolve", revision, file] = &parts[..] else { return Reply::new(404, "") };
    let repo = format!("{kind}/{owner}/{name}");
    if let Some(to) = state.repos.get(&repo).and_then(|repo| repo.moved_to.clone()) {
        let to = to.strip_prefix("models/").unwrap_or(&to).to_string();
        return Reply::new(307, "").with("Location", request.target.replacen(&format!("{owner}/{name}"), &to, 1));
    }
    if let Some(reply) = closed(state, &repo, request) {
        return reply;
    }
    let Some((commit, files)) = state.files(&repo, revision) else {
        return refused(404, "RevisionNotFound", "Invalid rev id");
    };
    match files.get(*file) {
        None => refused(404, "EntryNotFound", "Entry not found").with("X-Repo-Commit", commit),
        Some(found) => resolved(state, found, &commit, cdn),
    }
}

/// A file's answer: itself if it is small, else where it lies.
fn resolved(state: &State, file: &MockFile, commit: &str, cdn: &str) -> Reply {
    let etag = format!("\"{}\"", file.etag());
    let reply = match file.large {
        false => Reply { status: 200, headers: vec![("ETag".into(), etag)], body: file.bytes.clone() },
        true => Reply::new(302, "")
            .with("Location", format!("{cdn}/{}", file.sha256()))
            // Of the answer itself, not of the file: a client must take the linked one.
            .with("ETag", "\"of-the-redirect\"")
            .with("X-Linked-Etag", etag)
            .with("X-Linked-Size", file.bytes.len()),
    };
    if state.mute {
        let headers = reply.headers.into_iter().filter(|(name, _)| name == "Location").collect();
        return Reply { headers, ..reply };
    }
    reply.with("X-Repo-Commit", commit)
}

fn tree(state: &State, request: &Request, files: &super::Files) -> Reply {
    let mut entries: Vec<serde_json::Value> = files
        .iter()
        .map(|(path, file)| {
            let mut entry = json!({ "type": "file", "path": path, "size": file.bytes.len(), "oid": file.git_sha1() });
            if file.large {
                entry["lfs"] = json!({ "oid": file.sha256(), "size": file.bytes.len(), "pointerSize": 135 });
            }
            if state.mute {
                entry["oid"] = json!("unknown");
                entry.as_object_mut().unwrap().remove("lfs");
            }
            entry
        })
        .collect();
    let folders = files.keys().filter_map(|path| path.rsplit_once('/')).map(|(folder, _)| folder);
    let folders: std::collections::BTreeSet<&str> = folders.collect();
    entries.extend(folders.into_iter().map(|path| json!({ "type": "directory", "path": path, "size": 0, "oid": "0" })));
    let hostile = state.hostile_paths.iter();
    entries.extend(hostile.map(|path| json!({ "type": "file", "path": path, "size": 1, "oid": "0".repeat(40) })));
    if state.page == 0 {
        return Reply::json(&json!(entries));
    }
    let from: usize = request.parameter("cursor").and_then(|c| c.parse().ok()).unwrap_or(0);
    let end = (from + state.page).min(entries.len());
    let reply = Reply::json(&json!(entries[from..end]));
    if end == entries.len() {
        return reply;
    }
    let host = request.header("host").unwrap();
    let plain = request.target.split("&cursor=").next().unwrap();
    reply.with("Link", format!("<http://{host}{plain}&cursor={end}>; rel=\"next\""))
}

/// The refusal of a repository that is not there or not open.
fn closed(state: &State, repo: &str, request: &Request) -> Option<Reply> {
    let token = request.header("authorization").and_then(|text| text.strip_prefix("Bearer "));
    match state.repos.get(repo) {
        // Whether it exists is nobody's business.
        None if token.is_none() => Some(refused(401, "RepoNotFound", "Repository not found")),
        None => Some(refused(404, "RepoNotFound", "Repository not found")),
        Some(found) if found.private.is_some() && found.private.as_deref() != token => {
            Some(refused(401, "RepoNotFound", "Repository not found"))
        }
        Some(found) if found.gated && token.is_none() => {
            Some(refused(401, "GatedRepo", "Access to this model is restricted"))
        }
        Some(found) if found.gated => Some(refused(403, "GatedRepo", "Access to this model is restricted")),
        _ => None,
    }
}

pub fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let code = (bytes[at] == b'%').then(|| u8::from_str_radix(text.get(at + 1..at + 3)?, 16).ok()).flatten();
        out.push(code.unwrap_or(bytes[at]));
        at += if code.is_some() { 3 } else { 1 };
    }
    String::from_utf8(out).unwrap()
}
