//! The options of a wait in its header fields: `Prefer`, `Cache-Control` and `Accept`.

use std::time::Duration;

use headers::{CacheControl, HeaderMapExt as _};
use http::HeaderMap;

use crate::config;
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

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
