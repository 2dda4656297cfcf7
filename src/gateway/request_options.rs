//! How a client wants to be served, beside what it asks for: `Prefer`, `Cache-Control` and `Accept`.
//!
//! It must never know the request's target, nor who asks.

use std::time::Duration;

use headers::{CacheControl, HeaderMapExt as _};
use http::HeaderMap;
use http::header::ACCEPT;

use crate::config;
use crate::protocol::headers as fields;

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
    pub(crate) fn of(request: &HeaderMap, wait: &config::WaitConfig) -> Self {
        let control = request.typed_get().unwrap_or_else(CacheControl::new);
        let applied = fields::preferred_wait(request).map(|asked| asked.min(wait.max_timeout));
        let wants_new = control.no_cache() || control.no_store();
        let events = wants_events(request);
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

/// Whether `Accept` names server-sent events and likes JSON no better (RFC 9110 §12.5.1). That anything will do is
/// no wish for events.
pub(crate) fn wants_events(request: &HeaderMap) -> bool {
    let ranges: Vec<(&str, u16)> = fields::tokens(request, &ACCEPT).filter_map(range).collect();
    let weight = |name: &str| {
        let weights = ranges.iter().filter(|(range, _)| range.eq_ignore_ascii_case(name));
        weights.map(|(_, weight)| *weight).max()
    };
    let json = ["application/json", "application/*", "*/*"].into_iter().find_map(weight);
    weight("text/event-stream").is_some_and(|events| events > 0 && events >= json.unwrap_or(0))
}

/// A media range without its parameters, and its weight in thousandths. `None` where the weight is none.
fn range(text: &str) -> Option<(&str, u16)> {
    let mut parts = text.split(';').map(str::trim);
    let name = parts.next()?;
    let is_weight = |part: &&str| part.get(..2).is_some_and(|start| start.eq_ignore_ascii_case("q="));
    let weight = parts.find(is_weight).map_or(Some(1.0), |part| part[2..].trim().parse::<f32>().ok())?;
    (0.0..=1.0).contains(&weight).then_some((name, (weight * 1000.0) as u16))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn events_are_for_who_names_them_and_likes_json_no_better() {
        let rows = [
            ("text/event-stream", true),
            ("Text/Event-Stream;charset=utf-8", true),
            ("text/event-stream, */*;q=0.1", true),
            ("application/json, text/event-stream", true),
            ("application/json;q=0.8, text/event-stream; Q=0.9", true),
            ("*/*, application/json;q=0.5, text/event-stream;q=0.5", true),
            ("application/json, text/event-stream;q=0.9", false),
            ("text/event-stream;q=0.9, */*", false),
            ("text/event-stream;q=0", false),
            ("text/event-stream;q=much", false),
            ("text/event-stream;q=2", false),
            ("text/*", false),
            ("*/*", false),
            ("application/json", false),
            ("", false),
        ];
        for (accept, wants) in rows {
            let mut request = HeaderMap::new();
            request.insert(ACCEPT, accept.parse().unwrap());
            assert_eq!(wants_events(&request), wants, "{accept}");
        }
        assert_eq!(rows.len(), 15);
        assert!(!wants_events(&HeaderMap::new()));
        let mut lines = HeaderMap::new();
        lines.append(ACCEPT, "application/json".parse().unwrap());
        lines.append(ACCEPT, "text/event-stream".parse().unwrap());
        assert!(wants_events(&lines));
    }

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
                request.insert(ACCEPT, "text/event-stream".parse().unwrap());
            }
            let wish = RequestOptions::of(&request, &config);
            let secs = Duration::from_secs;
            assert_eq!((wish.timeout, wish.applied), (secs(timeout), applied.map(secs)), "{prefer:?}");
        }
        assert_eq!(rows.len(), 7);
    }
}
