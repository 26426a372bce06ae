//! When a request is made again, and after how long.

use std::time::Duration;

use ureq::http::HeaderMap;

use crate::settings::Retry;

/// Whether an answer of this status may be another one a little later.
pub(crate) fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
}

/// How long the hub asks to wait: `RateLimit: "api";r=0;t=55` (seconds until more is allowed) or
/// `Retry-After: 55`, and a second on top, for clocks differ; none where it says nothing.
pub(crate) fn asked(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    let of_limit = text("ratelimit").and_then(|limit| {
        let field = |name: &str| {
            limit
                .split(';')
                .filter_map(|part| part.trim().split_once('='))
                .find(|(key, _)| *key == name)
                .map(|(_, v)| v)
        };
        field("t")?.trim().parse::<u64>().ok()
    });
    let seconds = of_limit.or_else(|| text("retry-after")?.trim().parse().ok())?;
    Some(Duration::from_secs(seconds.saturating_add(1)))
}

impl Retry {
    /// The wait after so many failures in a row, from 1: what the hub asks for, else twice as long
    /// each time.
    pub(crate) fn wait(&self, failures: u32, asked: Option<Duration>) -> Duration {
        let doubled = self.first.saturating_mul(1 << failures.saturating_sub(1).min(16));
        asked.unwrap_or(doubled).min(self.longest)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
    }

    #[test]
    fn a_limit_says_how_long_and_one_second_more_is_waited() {
        let seconds = |headers: &HeaderMap| asked(headers).map(|wait| wait.as_secs());
        assert_eq!(seconds(&headers("ratelimit", "\"api\";r=0;t=55")), Some(56));
        assert_eq!(seconds(&headers("retry-after", "3")), Some(4));
        assert_eq!(seconds(&headers("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT")), None);
        assert_eq!(seconds(&HeaderMap::new()), None);
    }

    #[test]
    fn a_wait_doubles_and_ends_somewhere() {
        let retry = Retry { attempts: 5, first: Duration::from_secs(1), longest: Duration::from_secs(6) };
        let waits: Vec<u64> = (1..=5).map(|n| retry.wait(n, None).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 6, 6]);
        assert_eq!(retry.wait(1, Some(Duration::from_secs(99))).as_secs(), 6);
        assert_eq!(retry.wait(90, None).as_secs(), 6);
    }
}
