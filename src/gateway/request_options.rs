//! The options of a wait in its header fields: `Prefer`, `Cache-Control` and `Accept`.

use std::time::Duration;

use headers::{CacheControl, HeaderMapExt as _};
use http::HeaderMap;

use crate::config;
use crate::core::query::WaitQuery;
use crate::core::route::{Form, Goal, Route};
use crate::protocol::preferences::{has_preference, preferred_wait, prefers_events};

#[derive(Clone, Debug)]
pub(crate) struct RequestOptions {
    /// The duration of the wait, from its arrival.
    pub timeout: Duration,
    /// The granted preference.
    pub applied: Option<AppliedPreference>,
    /// The maximal age of a cached state; `None`: no cached state may be used.
    pub max_age: Option<Duration>,
    /// Whether the response may be stored.
    pub keep: bool,
    /// Whether requests to the upstream are forbidden.
    pub only_if_cached: bool,
    /// Whether the client asks for an event stream (P10).
    pub events: bool,
}

/// The value of `Preference-Applied` (RFC 7240 §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AppliedPreference {
    /// P9
    Wait(Duration),
    RespondAsync,
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
            applied: applied.map(AppliedPreference::Wait),
            max_age: (!bypasses_cache).then(|| control.max_age().unwrap_or(Duration::MAX)),
            keep: !control.no_store(),
            only_if_cached: control.only_if_cached(),
            events,
        }
    }

    /// Applies the rules of a configured route to a request without a body, in this order:
    ///
    /// | request | held for |
    /// | --- | --- |
    /// | event stream, or a parameter for the state or the seconds | that state or the end, as the parameters say |
    /// | `Prefer: wait` or `wait=N`, if the upstream does not hold for a named state | the end of the jobs |
    /// | `Prefer: respond-async` | nothing: the current state |
    /// | any other, if the route has a `default_wait` | the next change of its job: the returned time |
    /// | any other | nothing: the current state |
    pub(crate) fn apply_route(
        &mut self,
        route: &Route,
        headers: &HeaderMap,
        wait: &config::WaitConfig,
        query: &mut WaitQuery,
    ) -> Option<Duration> {
        if let Some(hold) = query.hold {
            (self.timeout, self.applied) = (hold.min(wait.max_timeout), None);
        }
        if self.events || query.goal != Goal::Now {
            return None;
        }
        let preferred = match self.applied {
            Some(AppliedPreference::Wait(preferred)) => Some(preferred),
            Some(AppliedPreference::RespondAsync) | None => None,
        };
        if !route.proves() {
            let preferred = preferred.or_else(|| has_preference(headers, "wait").then_some(wait.timeout));
            if let Some(preferred) = preferred {
                (self.timeout, self.applied) = (preferred, Some(AppliedPreference::Wait(preferred)));
                if !preferred.is_zero() {
                    query.goal = Goal::Rung(route.ladder.highest_askable());
                }
                return None;
            }
        }
        if has_preference(headers, "respond-async") {
            self.applied = Some(AppliedPreference::RespondAsync);
            return None;
        }
        // The states of several jobs change at different times.
        let has_default_wait = !route.default_wait.is_zero() && query.form == Form::Single;
        has_default_wait.then(|| route.default_wait.min(preferred.unwrap_or(wait.max_timeout)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::core::query::{self, Query};
    use crate::core::route::{Ladder, PathTemplate, Routes, RungSpec};

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
            let applied = applied.map(secs).map(AppliedPreference::Wait);
            assert_eq!((options.timeout, options.applied), (secs(timeout), applied), "{prefer:?}");
        }
        assert_eq!(rows.len(), 7);
    }

    const SECS: fn(u64) -> Duration = Duration::from_secs;

    /// Returns the goal, the timeout, the applied preference and the time of a held plain request.
    fn applied(
        route: &Route,
        target: &str,
        fields: &[(&'static str, &str)],
    ) -> (Goal, u64, Option<AppliedPreference>, Option<u64>) {
        let routes = Routes::from(route.clone());
        let (path, params) =
            target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        let Query::Wait(mut query) = query::parse(&routes, path, params, 6) else { panic!("{target}") };
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        let wait = Config::default().wait;
        let mut options = RequestOptions::from_headers(&headers, &wait);
        let held = options.apply_route(route, &headers, &wait, &mut query);
        (query.goal, options.timeout.as_secs(), options.applied, held.map(|held| held.as_secs()))
    }

    fn plain_route() -> Route {
        Route {
            name: "jobs".to_owned(),
            path: PathTemplate::parse("/jobs/{id}").unwrap(),
            id_param: None,
            list: None,
            ladder: Ladder::new(vec![
                RungSpec::pending("waiting"),
                RungSpec::pending("running"),
                RungSpec::succeeded("done"),
                RungSpec::failed("failed"),
            ]),
            wait_param: Some("until".to_owned()),
            ..Route::never_holding()
        }
    }

    #[test]
    fn on_a_route_that_never_holds_each_request_has_one_meaning() {
        use AppliedPreference::{RespondAsync, Wait};
        let route = Route { default_wait: SECS(8), ..plain_route() };
        let rung = |word| Goal::Rung(route.ladder.rung(word).unwrap());
        let rows: [(_, &[_], _); 13] = [
            ("/jobs/a", &[], (Goal::Now, 120, None, Some(8))),
            ("/jobs/a", &[("accept", "text/event-stream")], (Goal::Now, 600, None, None)),
            ("/jobs/a?until=done", &[("accept", "text/event-stream")], (rung("done"), 600, None, None)),
            ("/jobs/a?until=running", &[], (rung("running"), 120, None, None)),
            (
                "/jobs/a?until=running",
                &[("prefer", "wait=5")],
                (rung("running"), 5, Some(Wait(SECS(5))), None),
            ),
            ("/jobs/a?until=running", &[("prefer", "respond-async")], (rung("running"), 120, None, None)),
            ("/jobs/a", &[("prefer", "wait")], (rung("done"), 120, Some(Wait(SECS(120))), None)),
            ("/jobs/a", &[("prefer", "wait=5")], (rung("done"), 5, Some(Wait(SECS(5))), None)),
            ("/jobs/a", &[("prefer", "wait=9999")], (rung("done"), 600, Some(Wait(SECS(600))), None)),
            ("/jobs/a", &[("prefer", "respond-async, wait=5")], (rung("done"), 5, Some(Wait(SECS(5))), None)),
            ("/jobs/a", &[("prefer", "wait=0")], (Goal::Now, 0, Some(Wait(SECS(0))), None)),
            ("/jobs/a", &[("prefer", "respond-async")], (Goal::Now, 120, Some(RespondAsync), None)),
            ("/jobs/a", &[("prefer", "wait=soon")], (Goal::Now, 120, None, Some(8))),
        ];
        for (target, fields, expected) in rows {
            assert_eq!(applied(&route, target, fields), expected, "{target} {fields:?}");
        }
        assert_eq!(applied(&plain_route(), "/jobs/a", &[]), (Goal::Now, 120, None, None));
    }

    #[test]
    fn on_a_route_that_holds_for_a_named_state_prefer_keeps_its_meaning() {
        let route = Route { hold: SECS(60), ..plain_route() };
        let granted = Some(AppliedPreference::Wait(SECS(5)));
        assert_eq!(applied(&route, "/jobs/a", &[("prefer", "wait=5")]), (Goal::Now, 5, granted, None));
        assert_eq!(applied(&route, "/jobs/a", &[("prefer", "wait")]), (Goal::Now, 120, None, None));
        let route = Route { default_wait: SECS(8), ..route };
        assert_eq!(applied(&route, "/jobs/a", &[("prefer", "wait=5")]), (Goal::Now, 5, granted, Some(5)));
    }

    #[test]
    fn on_a_route_that_holds_for_seconds_they_and_prefer_are_a_wait_for_the_end() {
        let held = Route { hold: SECS(60), hold_param: Some("wait".to_owned()), ..plain_route() };
        let done = Goal::Rung(held.ladder.highest_askable());
        let granted = |seconds| Some(AppliedPreference::Wait(SECS(seconds)));
        assert_eq!(applied(&held, "/jobs/a?wait=7", &[("prefer", "wait=5")]), (done, 7, None, None));
        assert_eq!(applied(&held, "/jobs/a?wait=9999", &[]), (done, 600, None, None));
        let without_states = Route { wait_param: None, ..held };
        for default_wait in [Duration::ZERO, SECS(8)] {
            let route = Route { default_wait, ..without_states.clone() };
            assert_eq!(applied(&route, "/jobs/a?wait=7", &[("prefer", "wait=5")]), (done, 7, None, None));
            assert_eq!(applied(&route, "/jobs/a", &[("prefer", "wait=5")]), (done, 5, granted(5), None));
            assert_eq!(applied(&route, "/jobs/a", &[("prefer", "wait")]), (done, 120, granted(120), None));
        }
    }
}
