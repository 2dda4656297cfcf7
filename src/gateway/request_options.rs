//! How a client wants to be served, beside what it asks for: `Prefer`, `Cache-Control` and `Accept`.
//!
//! It must never know the request's target, nor who asks.

use std::time::Duration;

use headers::{CacheControl, HeaderMapExt as _};
use http::HeaderMap;

use crate::config;
use crate::protocol::preferences::{preferred_wait, prefers_events};

/// What a wait's fields ask for.
#[derive(Clone, Debug)]
pub(crate) struct RequestOptions {
    /// How long it waits.
    pub timeout: Duration,
    /// The preference that was followed (promise 9).
    pub applied: Option<Duration>,
    /// The oldest kept state that will do; `None`: none will.
    pub max_age: Option<Duration>,
    /// Whether the answer may be kept.
    pub keep: bool,
    /// Whether the upstream must not be asked.
    pub only_if_cached: bool,
    /// Whether the client wants each state as it is reached (promise 10).
    pub events: bool,
}

impl RequestOptions {
    /// What these fields say, and else the configuration.
    pub(crate) fn of(request: &HeaderMap, wait: &config::Wait) -> Self {
        let control = request.typed_get().unwrap_or_else(CacheControl::new);
        let applied = preferred_wait(request).map(|asked| asked.min(wait.max_timeout));
        let wants_new = control.no_cache() || control.no_store();
        let events = prefers_events(request);
        Self {
            timeout: applied.unwrap_or(if events { wait.max_timeout } else { wait.timeout }),
            applied,
            max_age: (!wants_new).then(|| control.max_age().unwrap_or(Duration::MAX)),
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
    fn a_stream_may_last_longer_than_a_wait_and_both_as_is_preferred() {
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
            let mut request = HeaderMap::new();
            if let Some(prefer) = prefer {
                request.insert("prefer", prefer.parse().unwrap());
            }
            if events {
                request.insert("accept", "text/event-stream".parse().unwrap());
            }
            let wish = RequestOptions::of(&request, &config);
            let secs = Duration::from_secs;
            assert_eq!((wish.timeout, wish.applied), (secs(timeout), applied.map(secs)), "{prefer:?}");
        }
        assert_eq!(rows.len(), 7);
    }
}
