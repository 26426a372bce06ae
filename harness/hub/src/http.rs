//! Requests: redirects followed by hand, so that a token goes to the hub and to nobody else, and
//! made again where that can help.

use std::time::Duration;

use karat_system::{Error, Result};
use ureq::config::ConfigBuilder;
use ureq::http::{HeaderMap, Uri};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::typestate::AgentScope;
use ureq::{Agent, Body, Proxy};

use crate::progress::{Event, Progress, wait};
use crate::retry::{asked, is_passing};
use crate::settings::{Retry, Settings, Token};

/// Redirects of one request.
const MOST_REDIRECTS: usize = 10;
/// Attempts of a request that nobody answers.
const MOST_UNHEARD: u32 = 3;
/// The longest listing, in bytes.
const LONGEST_TEXT: u64 = 256 << 20;

/// Which redirects are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Follow {
    /// To wherever they lead: data.
    All,
    /// Within the same host, as after a repository was renamed: headers speak of the hub's own
    /// answer, not of the storage that it leads to.
    Relative,
}

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) struct Sign {
    /// Goes to the host that was asked, over whatever it redirects to there.
    pub token: Option<Token>,
    /// ModelScope wants it as a cookie too.
    pub as_cookie: bool,
}

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Ask<'a> {
    pub head: bool,
    pub url: &'a str,
    pub sign: &'a Sign,
    /// From this byte on.
    pub from: Option<u64>,
    pub follow: Follow,
}

impl<'a> Ask<'a> {
    pub fn get(url: &'a str, sign: &'a Sign) -> Ask<'a> {
        Ask { head: false, url, sign, from: None, follow: Follow::All }
    }
}

/// An answer; its body is not read yet.
pub(crate) struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Body,
}

impl Answer {
    /// A header's text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// A header's number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.header(name)?.trim().parse().ok()
    }

    /// The body as text.
    pub fn text(self) -> Result<String, ureq::Error> {
        self.body.into_with_config().limit(LONGEST_TEXT).lossy_utf8(true).read_to_string()
    }
}

/// What every connection has: the system's certificates, the environment's proxies, redirects left to
/// the caller. `answer` is how long a server may think about an answer or a connection, `read` how
/// long it may stand still.
pub(crate) fn agent(answer: Duration, read: Duration) -> ConfigBuilder<AgentScope> {
    Agent::config_builder()
        .user_agent(concat!("karat/", env!("CARGO_PKG_VERSION")))
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .proxy(Proxy::try_from_env())
        .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
        .timeout_resolve(Some(answer))
        .timeout_connect(Some(answer))
        // Listings of large repositories take a hub longer than a connection.
        .timeout_recv_response(Some(answer.max(Duration::from_secs(1)) * 3))
        .timeout_per_read(Some(read))
}

/// A connection to the hubs.
pub(crate) struct Http {
    agent: Agent,
    pub retry: Retry,
}

impl Http {
    pub fn new(settings: &Settings) -> Http {
        let config = agent(settings.answer_timeout, settings.read_timeout)
            // Bytes as they are, so that ranges and sizes are those of the file.
            .accept_encoding("identity")
            .build();
        Http { agent: config.into(), retry: settings.retry }
    }

    /// One request, redirects followed.
    pub fn once(&self, ask: &Ask<'_>) -> Result<Answer, ureq::Error> {
        let mut url = ask.url.to_string();
        let mut token = ask.sign.token.as_ref();
        for _ in 0..=MOST_REDIRECTS {
            let mut request = if ask.head { self.agent.head(&url) } else { self.agent.get(&url) };
            if let Some(token) = token {
                request = request.header("authorization", format!("Bearer {}", token.secret()));
                if ask.sign.as_cookie {
                    request = request.header("cookie", format!("m_session_id={}", token.secret()));
                }
            }
            if let Some(from) = ask.from {
                request = request.header("range", format!("bytes={from}-"));
            }
            let (head, body) = match is_loopback(&url) {
                true => request.config().proxy(None).build().call()?,
                false => request.call()?,
            }
            .into_parts();
            let answer = Answer { status: head.status.as_u16(), headers: head.headers, body };
            if !matches!(answer.status, 301 | 302 | 303 | 307 | 308) {
                return Ok(answer);
            }
            let Some(next) = answer.header("location").and_then(|location| joined(&url, location)) else {
                return Ok(answer);
            };
            let same = same_origin(&url, &next);
            if ask.follow == Follow::Relative && !same {
                return Ok(answer);
            }
            if url.starts_with("https:") && !next.starts_with("https:") {
                return Err(ureq::Error::RedirectFailed);
            }
            // Once it left, it does not come back.
            token = token.filter(|_| same);
            url = next;
        }
        Err(ureq::Error::TooManyRedirects)
    }

    /// A request that is made again while that can help; the answer is one that stays.
    ///
    /// # Errors
    /// Failed, when the hub cannot be reached; interrupted.
    pub fn ask(&self, ask: &Ask<'_>, progress: &dyn Progress) -> Result<Answer> {
        self.ask_until(ask, progress, &is_passing)
    }

    /// As [`Http::ask`]; `passing` says of which status an answer is not taken for the last.
    pub fn ask_until(&self, ask: &Ask<'_>, progress: &dyn Progress, passing: &dyn Fn(u16) -> bool) -> Result<Answer> {
        let mut failures = 0;
        loop {
            crate::progress::go_on(progress)?;
            let answer = self.once(ask);
            failures += 1;
            let (asked, why) = match answer {
                Ok(answer) if failures >= self.retry.attempts || !passing(answer.status) => return Ok(answer),
                Ok(answer) => (asked(&answer.headers), format!("it answered {}", answer.status)),
                // One without a network wants to go on with what is here, not to wait for half a minute.
                Err(e) if failures >= self.retry.attempts.min(MOST_UNHEARD) || !may_pass(&e) => {
                    return Err(unreachable(ask.url, e));
                }
                Err(e) => (None, e.to_string()),
            };
            self.pause(failures, asked, &host(ask.url), &why, progress)?;
        }
    }

    /// Waits after a failure, and says so where it takes long enough to wonder.
    pub fn pause(
        &self,
        failures: u32,
        asked: Option<Duration>,
        host: &str,
        why: &str,
        progress: &dyn Progress,
    ) -> Result<()> {
        let pause = self.retry.wait(failures, asked);
        if pause >= Duration::from_secs(2) {
            let text = format!("{host}: {why}; asking again in {} s", pause.as_secs());
            progress.event(Event::Note(&text));
        }
        wait(pause, progress)
    }
}

/// Whether a failure without an answer may be another one a little later.
pub(crate) fn may_pass(error: &ureq::Error) -> bool {
    use ureq::Error as E;
    match error {
        error if is_of_certificate(error) => false,
        E::Io(_) | E::Timeout(_) | E::ConnectionFailed | E::Protocol(_) | E::HostNotFound => true,
        other => matches!(other, E::BodyStalled),
    }
}

/// Whether a connection failed for a certificate, which the next one will too.
fn is_of_certificate(error: &ureq::Error) -> bool {
    matches!(error, ureq::Error::Rustls(_) | ureq::Error::Tls(_)) || error.to_string().contains("certificate")
}

/// The error for a hub that does not answer.
pub(crate) fn unreachable(url: &str, error: ureq::Error) -> Error {
    let help = match &error {
        error if is_of_certificate(error) => {
            "the certificate is not trusted here: install the system's certificates, or name the file of yours in SSL_CERT_FILE"
        }
        _ => {
            "check the network and the proxy (HTTPS_PROXY, NO_PROXY); HF_ENDPOINT or MODELSCOPE_ENDPOINT names a mirror; \
              --offline takes what the cache has"
        }
    };
    Error::failed(format!("{} cannot be reached", host(url))).help(help).because(error)
}

/// Whether an error is that of a hub which cannot be reached.
pub(crate) fn is_unreachable(error: &Error) -> bool {
    error.kind() == karat_system::ErrorKind::Failed && error.what().ends_with("cannot be reached")
}

/// The host of an address, with its port.
pub(crate) fn host(url: &str) -> String {
    let authority = url.parse::<Uri>().ok().and_then(|uri| uri.authority().map(|a| a.to_string()));
    // Not what stands before an @: that may be a password.
    authority.map_or_else(|| url.into(), |a| a.rsplit('@').next().unwrap_or_default().to_string())
}

/// Whether an address is of this machine, which no proxy has to do with.
pub(crate) fn is_loopback(url: &str) -> bool {
    let host = host(url);
    let name = host.rsplit_once(':').map_or(host.as_str(), |(name, _)| name);
    matches!(name, "localhost" | "[::1]") || name.starts_with("127.")
}

/// Where a `Location` leads from an address; none where it is no address.
fn joined(base: &str, location: &str) -> Option<String> {
    let (scheme, rest) = base.split_once("://")?;
    if location.contains("://") {
        let known = location.starts_with("https://") || location.starts_with("http://");
        return known.then(|| location.to_string());
    }
    if location.starts_with("//") {
        return Some(format!("{scheme}:{location}"));
    }
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    if location.starts_with('/') {
        return Some(format!("{scheme}://{authority}{location}"));
    }
    let path = &rest[authority.len()..rest.find(['?', '#']).unwrap_or(rest.len())];
    let folder = path.rfind('/').map_or("", |at| &path[..at]);
    Some(format!("{scheme}://{authority}{folder}/{location}"))
}

fn same_origin(a: &str, b: &str) -> bool {
    let origin = |url: &str| {
        let uri: Uri = url.parse().ok()?;
        let scheme = uri.scheme_str()?.to_lowercase();
        let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
        Some((scheme, uri.host()?.to_lowercase(), port))
    };
    origin(a).is_some_and(|first| Some(first) == origin(b))
}

/// A path or a revision as one part, or several, of an address.
pub(crate) fn encoded(text: &str, keep_slashes: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte as char),
            b'/' if keep_slashes => out.push('/'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_read_from_where_it_was_given() {
        let base = "https://hub.example:8443/o/m/resolve/main/a.bin?x=1";
        for (location, to) in [
            ("https://cdn.example/y", "https://cdn.example/y"),
            ("//cdn.example/y", "https://cdn.example/y"),
            ("/p/q?z", "https://hub.example:8443/p/q?z"),
            ("b.bin", "https://hub.example:8443/o/m/resolve/main/b.bin"),
        ] {
            assert_eq!(joined(base, location).as_deref(), Some(to));
        }
        assert_eq!(joined("https://hub.example", "x").as_deref(), Some("https://hub.example/x"));
        assert_eq!(joined(base, "file:///etc/passwd"), None);
    }

    #[test]
    fn another_port_or_scheme_is_another_host() {
        assert!(same_origin("https://a.example/x", "https://A.example:443/y"));
        for other in ["https://b.example/", "http://a.example/", "https://a.example:444/", "https://a.example.evil/"] {
            assert!(!same_origin("https://a.example/x", other), "{other}");
        }
    }

    #[test]
    fn odd_names_are_written_so_that_an_address_stays_one() {
        assert_eq!(encoded("data/a b#1%?.jsonl", true), "data/a%20b%231%25%3F.jsonl");
        assert_eq!(encoded("refs/convert/parquet", false), "refs%2Fconvert%2Fparquet");
        assert_eq!(encoded("数", true), "%E6%95%B0");
        assert_eq!(host("https://user:secret@proxy.example:1/x"), "proxy.example:1");
    }
}
