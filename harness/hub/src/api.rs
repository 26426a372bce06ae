//! Calls to a server that speaks JSON, by the rules of the hubs' client: the system's certificates,
//! the environment's proxies and none for this machine, attempts that end.

use std::time::Duration;

use karat_system::{Error, Result};
use serde_json::Value;
use ureq::Agent;
use ureq::http::Response;
use ureq::{Body, RequestBuilder};

use crate::http::{agent, encoded, host, is_loopback, may_pass};
use crate::progress::{Silent, wait};
use crate::retry::{asked, is_passing};
use crate::settings::{Retry, Token};

/// The longest answer, in bytes.
const LONGEST_ANSWER: u64 = 16 << 20;

/// Who calls.
#[derive(Clone, Debug)]
pub enum Login {
    /// Nobody in particular.
    None,
    /// `Authorization: Bearer`.
    Bearer(Token),
    /// `Authorization: Basic`, of a name and a password in base64.
    Basic(Token),
}

/// A server. No redirect is followed: one that moved is named by its new address.
pub struct Api {
    agent: Agent,
    /// Its address, without a slash at the end.
    base: String,
    login: Login,
    retry: Retry,
}

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The status of HTTP.
    pub status: u16,
    /// The body.
    pub text: String,
    /// Where a redirect leads.
    pub location: Option<String>,
}

impl Api {
    /// The server at `base`, that answers within `timeout`, the last byte included.
    pub fn new(base: &str, login: Login, timeout: Duration, retry: Retry) -> Api {
        let config = agent(timeout.min(Duration::from_secs(10)), timeout).timeout_global(Some(timeout)).build();
        Api { agent: config.into(), base: base.trim_end_matches('/').into(), login, retry }
    }

    /// The server's host, with its port.
    pub fn host(&self) -> String {
        host(&self.base)
    }

    /// A text of the server's without the secret that it was sent.
    pub fn without_secret(&self, text: &str) -> String {
        match &self.login {
            Login::None => text.into(),
            Login::Bearer(token) | Login::Basic(token) => text.replace(token.secret(), "***"),
        }
    }

    /// Asks for `path` below the address with these parameters.
    ///
    /// # Errors
    /// Failed, if nobody answers, or with more than 16 MiB.
    pub fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<Reply> {
        let mut url = format!("{}/{path}", self.base);
        for (i, (key, value)) in query.iter().enumerate() {
            url.push_str(&format!("{}{key}={}", if i == 0 { '?' } else { '&' }, encoded(value, false)));
        }
        self.until(|| self.signed(self.agent.get(&url), &url).call())
    }

    /// Posts a value.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub fn post(&self, path: &str, value: &Value) -> Result<Reply> {
        let (url, body) = (format!("{}/{path}", self.base), value.to_string());
        self.until(|| {
            let request = self.signed(self.agent.post(&url), &url).header("content-type", "application/json");
            request.send(body.as_bytes())
        })
    }

    /// Puts bytes under `path`, whose parts may have any names.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub fn put(&self, path: &str, bytes: &[u8]) -> Result<Reply> {
        let url = format!("{}/{}", self.base, encoded(path, true));
        self.until(|| {
            let request = self.signed(self.agent.put(&url), &url).header("content-type", "application/octet-stream");
            request.send(bytes)
        })
    }

    fn signed<B>(&self, request: RequestBuilder<B>, url: &str) -> RequestBuilder<B> {
        let request = match &self.login {
            Login::None => request,
            Login::Bearer(token) => request.header("authorization", format!("Bearer {}", token.secret())),
            Login::Basic(token) => request.header("authorization", format!("Basic {}", token.secret())),
        };
        if is_loopback(url) { request.config().proxy(None).build() } else { request }
    }

    /// Calls again while that can help.
    fn until(&self, call: impl Fn() -> Result<Response<Body>, ureq::Error>) -> Result<Reply> {
        let mut failures = 0;
        loop {
            let answer = call().and_then(|response| {
                let (head, body) = response.into_parts();
                let status = head.status.as_u16();
                let location = head.headers.get("location").and_then(|to| to.to_str().ok()).map(Into::into);
                let text = body.into_with_config().limit(LONGEST_ANSWER).lossy_utf8(true).read_to_string()?;
                Ok((asked(&head.headers), Reply { status, text, location }))
            });
            failures += 1;
            let last = failures >= self.retry.attempts;
            let asked = match answer {
                Ok((asked, reply)) if !last && is_passing(reply.status) => asked,
                Ok((_, reply)) => return Ok(reply),
                Err(e) if !last && may_pass(&e) => None,
                Err(e) => return Err(Error::failed(format!("{} does not answer", self.host())).because(e)),
            };
            wait(self.retry.wait(failures, asked), &Silent)?;
        }
    }
}
