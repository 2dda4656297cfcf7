//! The options of a wait in its header fields: `Prefer`, `Cache-Control` and `Accept`.

use std::time::Duration;

use headers::{CacheControl, HeaderMapExt as _};
use http::HeaderMap;

use crate::config;
use crate::core::coalescer::Proof;
use crate::protocol::preferences::{preferred_wait, prefers_events};

#[derive(Clone, Debug)]
pub(crate) struct RequestOptions {
    /// The duration of the wait, from its arrival.
    pub timeout: Duration,
    /// The granted `Prefer: wait` (P9).
    pub applied: Option<Duration>,
    /// The maximal age of a cached state; `None`: no cached state may be used.
    pub max_age: Option<Duration>,
    /// Whether the response may be stored.
    pub keep: bool,
    /// Whether requests to the upstream are forbidden.
    pub only_if_cached: bool,
    /// Whether the client asks for an event stream (P10).
    pub events: bool,
}

impl RequestOptions {
    pub(crate) fn from_headers(headers: &HeaderMap, wait: &config::WaitConfig) -> Self {
        let control = headers.typed_get().unwrap_or_else(CacheControl::new);
        // P9
        let applied = preferred_wait(headers).map(|preferred| preferred.min(wait.max_timeout));
        let bypasses_cache = control.no_cache() || control.no_store();
        let events = prefers_events(headers);
        Self {
            timeout: applied.unwrap_or(if events { wait.max_timeout } else { wait.timeout }),
            applied,
            max_age: (!bypasses_cache).then(|| control.max_age().unwrap_or(Duration::MAX)),
            keep: !control.no_store(),
            only_if_cached: control.only_if_cached(),
            events,
        }
    }

    /// Returns whether an open poll may prove the answer. `proven_ttl` is zero for a key without hits.
    pub(crate) fn proof(&self, proven_ttl: Duration) -> Proof {
        match self.max_age.map(|max_age| max_age.min(proven_ttl)) {
            None => Proof::NoCache,
            Some(Duration::ZERO) => Proof::Never,
            Some(max_age) => Proof::Within(max_age),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn proof_is_bounded_by_proven_ttl_and_max_age_and_forbidden_by_no_cache_and_no_store() {
        let secs = Duration::from_secs;
        let rows = [
            (None, 30, Proof::Within(secs(30))),
            (Some("max-age=5"), 30, Proof::Within(secs(5))),
            (Some("max-age=60"), 30, Proof::Within(secs(30))),
            (Some("max-age=0"), 30, Proof::Never),
            (None, 0, Proof::Never),
            (Some("no-cache"), 30, Proof::NoCache),
            (Some("no-cache"), 0, Proof::NoCache),
            (Some("no-store"), 30, Proof::NoCache),
        ];
        for (control, proven_ttl, expected) in rows {
            let mut headers = HeaderMap::new();
            if let Some(control) = control {
                headers.insert("cache-control", control.parse().unwrap());
            }
            let options = RequestOptions::from_headers(&headers, &Config::default().wait);
            assert_eq!(options.proof(secs(proven_ttl)), expected, "{control:?}, {proven_ttl} s");
        }
        assert_eq!(rows.len(), 8);
    }

    #[test]
    fn a_stream_lasts_for_max_timeout_and_a_wait_for_timeout_unless_prefer_says_otherwise() {
        let config = Config::default().wait;
        let rows = [
            (None, false, 120, None),
            (None, true, 600, None),
            (Some("wait=5"), false, 5, Some(5)),
            (Some("wait=5"), true, 5, Some(5)),
            (Some("wait=9999"), false, 600, Some(600)),
            (Some("wait=9999"), true, 600, Some(600)),
            (Some("wait=soon"), true, 600, None),
        ];
        for (prefer, events, timeout, applied) in rows {
            let mut headers = HeaderMap::new();
            if let Some(prefer) = prefer {
                headers.insert("prefer", prefer.parse().unwrap());
            }
            if events {
                headers.insert("accept", "text/event-stream".parse().unwrap());
            }
            let options = RequestOptions::from_headers(&headers, &config);
            let secs = Duration::from_secs;
            assert_eq!((options.timeout, options.applied), (secs(timeout), applied.map(secs)), "{prefer:?}");
        }
        assert_eq!(rows.len(), 7);
    }
}
