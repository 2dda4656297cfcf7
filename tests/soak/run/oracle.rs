//! Decides whether a response is correct: the state and time that its client would have got without the gateway.
//!
//! Knows the life of each clip and the configured times, but nothing of the gateway's internals. Bounds on time are widened
//! by the calibration of this machine. The content of responses is checked exactly.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clipgate::core::coalescer::SNAPSHOT_LIMIT;
use clipgate::sim::Sim;
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;

use super::calibration::Calibration;
use super::clips::COMPLETED;
use super::counts::{Counts, Outcome, Violation};
use super::explain::{FailedRequest, FailureKind};
use super::fault_schedule::FaultSchedule;
use super::requests::{ClipQuery, Key, RequestKind};

/// Time of a request and its response without any delay. A debug build validates its whole state after each input, which is
/// slow with many waits.
const BASE_TRANSIT: Duration = Duration::from_millis(if cfg!(debug_assertions) { 500 } else { 50 });

/// A complete response.
pub(crate) struct ReceivedResponse {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Time before the request was sent.
    pub(crate) sent: Instant,
    /// Time of the last byte of the response.
    pub(crate) received: Instant,
}

impl ReceivedResponse {
    pub(crate) fn field(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }

    fn is_hit(&self) -> bool {
        self.field("cache-status").starts_with("clipgate; hit; ttl=")
    }
}

/// Configured times of the run. Ranges include all reloads.
#[derive(Clone, Debug)]
pub(crate) struct ExpectedTimes {
    /// Time for which the upstream holds a poll.
    pub(crate) hold: Duration,
    /// Time of a wait without `Prefer`.
    pub(crate) timeout: RangeInclusive<Duration>,
    /// `cache.live_ttl`: maximum age of a cached state that is not terminal.
    pub(crate) live: Duration,
    /// `upstream.retries`.
    pub(crate) retries: u32,
    /// Longest pause of a poll after an outage.
    pub(crate) pause: Duration,
}

pub(crate) struct Oracle {
    pub(crate) sim: Sim,
    pub(crate) times: ExpectedTimes,
    pub(crate) schedule: FaultSchedule,
    pub(crate) calibration: Calibration,
    /// Start of the drain: from then on waits may end early.
    draining_since: Mutex<Option<Instant>>,
    /// Whether the per-response headers of the nth upstream response have reached a client.
    seen_per_response: Mutex<Vec<bool>>,
    /// Number of admitted requests of each key.
    admitted: [AtomicU64; 64],
}

impl Oracle {
    pub(crate) fn new(sim: Sim, upstream: SocketAddr, times: ExpectedTimes, schedule: FaultSchedule) -> Self {
        Self {
            sim,
            times,
            schedule,
            calibration: Calibration::new(upstream),
            draining_since: Mutex::new(None),
            seen_per_response: Mutex::default(),
            admitted: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    pub(crate) fn drain_started(&self) {
        *self.draining_since.lock() = Some(clipgate::testing::clock::now());
    }

    /// Returns the number of requests of this key that the quotas admitted.
    pub(crate) fn admitted(&self, key: usize) -> u64 {
        self.admitted[key].load(Ordering::Relaxed)
    }

    /// Returns a lower bound of the number of requests at the upstream.
    pub(crate) fn upstream_requests(&self) -> usize {
        self.seen_per_response.lock().len()
    }

    /// Returns the maximum time of a request and its response in this period, apart from the wait itself.
    pub(crate) fn max_transit(&self, from: Instant, to: Instant) -> Duration {
        BASE_TRANSIT + self.calibration.between(from, to) * 6
    }

    /// Returns the maximum time from request to response.
    pub(crate) fn max_duration(&self, prefer: Option<Duration>) -> Duration {
        self.timeouts(prefer).end().saturating_add(self.times.hold / 24 + SNAPSHOT_LIMIT)
    }

    /// Returns the maximum difference between timers of gateway and client.
    pub(crate) fn clock_skew(&self) -> Duration {
        self.times.hold / 500
    }

    /// Returns the maximum age of a state in a response to this kind of request.
    pub(crate) fn max_age(&self, kind: RequestKind) -> Duration {
        if matches!(kind, RequestKind::NoCache | RequestKind::NoStore) {
            Duration::ZERO
        } else {
            self.times.live
        }
    }

    /// Returns whether the gateway was stopping at this time.
    pub(crate) fn is_draining_at(&self, at: Instant) -> bool {
        self.draining_since.lock().is_some_and(|from| from <= at)
    }

    /// Returns whether no fault affects the query in this period.
    pub(crate) fn is_calm(&self, query: &ClipQuery, from: Instant, to: Instant) -> bool {
        self.schedule.is_calm_for(query.key, query.clips.iter().map(|clip| &*clip.id), from, to)
    }

    fn timeouts(&self, prefer: Option<Duration>) -> RangeInclusive<Duration> {
        prefer.map_or(self.times.timeout.clone(), |wait| wait..=wait)
    }

    /// Records a response in the figures of the run. Called once for each.
    pub(crate) fn record_response(&self, key: Key, response: &ReceivedResponse) -> Result<(), Violation> {
        let is_over = response.status == StatusCode::TOO_MANY_REQUESTS && is_gateway_error(response);
        if let Some(index) = key.index().filter(|_| !is_over) {
            self.admitted[index].fetch_add(1, Ordering::Relaxed);
        }
        let number = response.field("x-inference-id").strip_prefix("inference-");
        let Some(number) = number.and_then(|number| number.parse::<usize>().ok()) else { return Ok(()) };
        let mut seen = self.seen_per_response.lock();
        if seen.len() <= number {
            seen.resize(number + 1, false);
        }
        if std::mem::replace(&mut seen[number], true) {
            violation("per-response headers reached two clients", format!("{:?}", response.headers))
        } else {
            Ok(())
        }
    }

    /// Checks a response to a query of clips. May be called again after a failure.
    pub(crate) fn check(
        &self,
        query: &ClipQuery,
        response: &ReceivedResponse,
        counts: &Counts,
    ) -> Result<Outcome, Violation> {
        check_common_headers(response)?;
        self.check_duration(query, response)?;
        let is_calm = self.is_calm(query, response.sent, response.received);
        match response.status {
            // Invalid bodies are passed on unchanged.
            StatusCode::OK
                if query.key.index().is_none() && response.body.starts_with(b"<!DOCTYPE html>") =>
            {
                self.failed(query, response, FailureKind::InvalidBody, counts)
            }
            StatusCode::OK if query.key.index().is_none() => {
                violation("a state for a rejected key", self.describe(query, response))
            }
            StatusCode::OK => self.check_states(query, response, is_calm, counts),
            StatusCode::NOT_MODIFIED => {
                let is_asked = query.kind == RequestKind::Conditional && response.body.is_empty();
                if is_asked {
                    Ok(Outcome::NotModified)
                } else {
                    violation("an unexpected 304", self.describe(query, response))
                }
            }
            StatusCode::TOO_MANY_REQUESTS if is_gateway_error(response) && !is_key_paused(response) => {
                let is_limited = matches!(query.key, Key::OverQuota | Key::Invalid(_));
                let has_time = response.field("retry-after").parse::<u64>().is_ok();
                if is_limited && has_time {
                    Ok(Outcome::RateLimited)
                } else {
                    violation("429 within the quotas", self.describe(query, response))
                }
            }
            StatusCode::UNAUTHORIZED if query.key.index().is_none() => Ok(Outcome::Rejected),
            StatusCode::GATEWAY_TIMEOUT
                if response.field("cache-status") == "clipgate; detail=not-cached" =>
            {
                let is_asked = query.kind == RequestKind::OnlyIfCached;
                if is_asked {
                    Ok(Outcome::Rejected)
                } else {
                    violation("504 without only-if-cached", self.describe(query, response))
                }
            }
            status if is_failure(status) => {
                let kind = if is_gateway_error(response) {
                    FailureKind::GatewayError(status)
                } else {
                    FailureKind::UpstreamError(status)
                };
                self.failed(query, response, kind, counts)
            }
            _ => violation("an unexpected status", self.describe(query, response)),
        }
    }

    fn failed(
        &self,
        query: &ClipQuery,
        response: &ReceivedResponse,
        kind: FailureKind,
        counts: &Counts,
    ) -> Result<Outcome, Violation> {
        let explained = self.explain(&FailedRequest {
            key: query.key,
            jobs: &query.clips,
            // A wait for the lowest rung is answered at once, errors included.
            is_wait: query.goal.is_some_and(|goal| goal > 0),
            sent: response.sent,
            received: response.received,
            deadline: self.deadline(query.prefer, response.sent),
            kind,
        });
        match explained {
            Ok(cause) => {
                counts.record_cause(cause);
                Ok(Outcome::Failed)
            }
            Err(why) => violation(why, self.describe(query, response)),
        }
    }

    /// Checks the bound that always applies.
    fn check_duration(&self, query: &ClipQuery, response: &ReceivedResponse) -> Result<(), Violation> {
        let took = response.received - response.sent;
        let limit = self.max_duration(query.prefer) + self.max_transit(response.sent, response.received);
        if took <= limit {
            Ok(())
        } else {
            violation("a response after the maximum time", self.describe(query, response))
        }
    }

    fn check_states(
        &self,
        query: &ClipQuery,
        response: &ReceivedResponse,
        is_calm: bool,
        counts: &Counts,
    ) -> Result<Outcome, Violation> {
        let has_preferred = query
            .prefer
            .is_none_or(|wait| response.field("preference-applied") == format!("wait={}", wait.as_secs()));
        if !has_preferred {
            return violation("no Preference-Applied", self.describe(query, response));
        }
        let (is_hit, is_no_cache) =
            (response.is_hit(), matches!(query.kind, RequestKind::NoCache | RequestKind::NoStore));
        if is_hit && query.kind == RequestKind::Removed {
            return violation("a hit for a removed clip", self.describe(query, response));
        }
        if (is_hit && is_no_cache) || (!is_hit && query.kind == RequestKind::OnlyIfCached) {
            return violation("Cache-Control is ignored", self.describe(query, response));
        }
        if (is_hit || is_coalesced(response)) && has_per_response_headers(response) {
            return violation("per-response headers of another response", self.describe(query, response));
        }
        let Some(states) = self.states(query, &response.body) else {
            // Passed on unchanged: an HTML page, or a summary of several jobs.
            let is_page = response.body.starts_with(b"<!DOCTYPE html>");
            let is_summary = response.body.starts_with(b"{\"summary\":") && !query.is_single;
            return if is_page || is_summary {
                self.failed(query, response, FailureKind::InvalidBody, counts)
            } else {
                violation("a body that differs from the upstream's", self.describe(query, response))
            };
        };
        self.check_truth(query, response, &states)?;
        query.clips.iter().for_each(|clip| clip.mark_delivered(query.key.bit()));
        let is_reached = query.is_reached_by(&states);
        self.check_delay(query, response, is_calm)?;
        self.check_delay_after_outage(query, response, is_reached, counts)?;
        if !is_reached {
            self.check_deadline(query, response, &states, is_calm)?;
        }
        self.count(query, response, is_reached, is_calm, counts);
        Ok(if is_proven(response) {
            Outcome::Proven
        } else if is_hit {
            Outcome::Hit
        } else if is_coalesced(response) {
            Outcome::Coalesced
        } else {
            Outcome::Opened
        })
    }

    /// Returns the states that these bytes contain: exactly the queried clips, in their order, in one of the upstream's
    /// list shapes.
    fn states(&self, query: &ClipQuery, body: &[u8]) -> Option<Vec<usize>> {
        if query.is_single {
            let (state, rest) = self.state(query, 0, body)?;
            return rest.is_empty().then(|| vec![state]);
        }
        [(&b"["[..], &b"]"[..], false), (b"{\"clips\":[", b"]}", false), (b"{", b"}", true)]
            .into_iter()
            .find_map(|(before, after, is_named)| {
                let mut rest = body.strip_prefix(before)?;
                let mut states = Vec::new();
                for (index, clip) in query.clips.iter().enumerate() {
                    if index > 0 {
                        rest = rest.strip_prefix(b",")?;
                    }
                    if is_named {
                        rest = rest.strip_prefix(format!("\"{}\":", clip.id).as_bytes())?;
                    }
                    let (state, more) = self.state(query, index, rest)?;
                    states.push(state);
                    rest = more;
                }
                (rest == after).then_some(states)
            })
    }

    pub(crate) fn state<'b>(
        &self,
        query: &ClipQuery,
        index: usize,
        body: &'b [u8],
    ) -> Option<(usize, &'b [u8])> {
        let clip = &query.clips[index];
        (0..=COMPLETED + 1)
            .rev()
            .filter(|&state| clip.has_state(state))
            .find_map(|state| Some((state, body.strip_prefix(&clip.body(&self.sim, state)[..])?)))
    }

    /// Checks that no state lies in the future, and none is older than a client alone would see, plus the maximum age of
    /// cached states (P7).
    fn check_truth(
        &self,
        query: &ClipQuery,
        response: &ReceivedResponse,
        states: &[usize],
    ) -> Result<(), Violation> {
        let max_transit = self.max_transit(response.sent, response.received);
        // The upstream may leave a poll unanswered for longer than a proof takes.
        let is_slow = self.calibration.between(response.sent, response.received) > self.times.hold / 240;
        let is_deceptive = is_slow || self.schedule.is_silence_deceptive(response.sent, response.received);
        let max_age = if is_deceptive && is_proven(response) {
            let age = response.field("age").parse().map_or(Duration::ZERO, Duration::from_secs);
            (age + Duration::from_secs(1)).max(self.max_age(query.kind))
        } else if is_deceptive && !query.is_reached_by(states) {
            // At its deadline it got the state that such a poll seemed to prove.
            self.times.hold * 2
        } else if is_proven(response) && query.is_single {
            // True when it is sent, however old its bytes are. A list may have cached states too.
            Duration::ZERO
        } else {
            self.max_age(query.kind)
        };
        let (oldest_at_request, oldest_at_response) =
            (response.sent - max_age - max_transit, response.received - max_age - max_transit);
        for (clip, &state) in query.clips.iter().zip(states) {
            if state > clip.latest_possible(response.received) {
                return violation("a state that was not reached", self.describe(query, response));
            }
            if state < clip.latest_certain(oldest_at_request) {
                return violation("a state older than the request", self.describe(query, response));
            }
            let is_calm = self.is_calm(query, response.sent, response.received);
            if is_calm && query.is_single && state < clip.latest_certain(oldest_at_response) {
                return violation("an outdated state", self.describe(query, response));
            }
        }
        Ok(())
    }

    /// P1: checks that the response comes when a client alone would get it, unless the deadline is earlier.
    fn check_delay(
        &self,
        query: &ClipQuery,
        response: &ReceivedResponse,
        is_calm: bool,
    ) -> Result<(), Violation> {
        let latest = self
            .alone_at(query, response)
            .map(|alone| alone + self.max_transit(response.sent, response.received));
        let is_late = latest
            .is_some_and(|latest| latest < response.received.min(self.deadline(query.prefer, response.sent)));
        if is_calm && is_late { violation("a late response", self.describe(query, response)) } else { Ok(()) }
    }

    /// P12: checks that a wait that was held through an outage is answered soon after it, unless the deadline is earlier.
    fn check_delay_after_outage(
        &self,
        query: &ClipQuery,
        response: &ReceivedResponse,
        is_reached: bool,
        counts: &Counts,
    ) -> Result<(), Violation> {
        let ReceivedResponse { sent, received, .. } = *response;
        let Some(end) = self.schedule.outage_end(sent, received).filter(|end| *end < received) else {
            return Ok(());
        };
        let Some(alone) = self.alone_at(query, response).filter(|_| is_reached) else { return Ok(()) };
        if !self.schedule.is_outage_only(sent, received) {
            return Ok(());
        }
        let expected_at = alone.max(end);
        if expected_at + self.times.pause + self.max_transit(sent, received)
            < received.min(self.deadline(query.prefer, sent))
        {
            return violation("a late response after an outage", self.describe(query, response));
        }
        counts.record_wait_after_outage(received.saturating_duration_since(expected_at));
        Ok(())
    }

    /// P2, P7: checks that a wait without its goal had its whole time, and got the true state.
    fn check_deadline(
        &self,
        query: &ClipQuery,
        response: &ReceivedResponse,
        states: &[usize],
        is_calm: bool,
    ) -> Result<(), Violation> {
        let (clock_skew, max_transit) =
            (self.clock_skew(), self.max_transit(response.sent, response.received));
        let deadline = self.deadline(query.prefer, response.sent);
        let ends = self.draining_since.lock().map_or(deadline, |from| from.min(deadline));
        if response.received + clock_skew < ends {
            return violation("a wait that ended early", self.describe(query, response));
        }
        for (clip, &state) in query.clips.iter().zip(states).filter(|_| is_calm) {
            if state < clip.latest_certain(ends - clock_skew - max_transit) {
                return violation("an outdated state at the deadline", self.describe(query, response));
            }
        }
        let latest = response.sent
            + *self.timeouts(query.prefer).end()
            + self.times.hold / 24
            + clock_skew
            + max_transit * 2;
        if is_calm && response.received > latest {
            violation("a response after the deadline", self.describe(query, response))
        } else {
            Ok(())
        }
    }

    /// Returns the time at which a client alone would get all clips at its goal, if they reach it.
    fn alone_at(&self, query: &ClipQuery, response: &ReceivedResponse) -> Option<Instant> {
        let each = query
            .clips
            .iter()
            .map(|clip| query.goal.map_or(Some(response.sent), |goal| clip.reached_by(goal)));
        each.collect::<Option<Vec<_>>>()?.into_iter().chain([response.sent]).max()
    }

    /// Returns the earliest deadline of a request that was sent then.
    pub(crate) fn deadline(&self, prefer: Option<Duration>, sent: Instant) -> Instant {
        sent + *self.timeouts(prefer).start()
    }

    fn count(
        &self,
        query: &ClipQuery,
        response: &ReceivedResponse,
        is_reached: bool,
        is_calm: bool,
        counts: &Counts,
    ) {
        let is_wait = matches!(query.kind, RequestKind::Wait | RequestKind::Waits | RequestKind::Prefer);
        if response.is_hit() {
            counts.record_hit(response.received - response.sent);
        } else if !is_reached {
            counts.record_deadline();
        } else if let Some(alone) = self.alone_at(query, response).filter(|_| is_calm && is_wait) {
            counts.record_wait(response.received.saturating_duration_since(alone));
        }
    }

    fn describe(&self, query: &ClipQuery, response: &ReceivedResponse) -> String {
        let ClipQuery { kind, key, goal, prefer, .. } = query;
        let (took, text) = (response.received - response.sent, String::from_utf8_lossy(&response.body));
        let clips: Vec<String> = query
            .clips
            .iter()
            .map(|clip| {
                let (at_start, at_end) =
                    (clip.latest_certain(response.sent), clip.latest_possible(response.received));
                format!("{} {at_start} to {at_end}", clip.id)
            })
            .collect();
        let start: String = text.chars().take(160).collect();
        format!(
            "{kind:?} by {key:?} until {goal:?} prefer {prefer:?}, clips {clips:?}: {} {} after {took:?}, {}; {start}",
            self.schedule.describe(response.sent),
            response.status,
            response.field("cache-status"),
        )
    }
}

/// Checks the headers of each response of the gateway.
fn check_common_headers(response: &ReceivedResponse) -> Result<(), Violation> {
    let is_there = |name| !response.field(name).is_empty();
    let has_all = is_there("x-request-id")
        && is_there("via")
        && response.field("cache-status").starts_with("clipgate; ");
    if has_all {
        Ok(())
    } else {
        violation("missing headers", format!("{} {:?}", response.status, response.headers))
    }
}

/// Returns whether the gateway rejects the request because the upstream answered its key with 429.
fn is_key_paused(response: &ReceivedResponse) -> bool {
    response.field("cache-status").starts_with("clipgate; detail=key-r")
}

pub(crate) fn is_gateway_error(response: &ReceivedResponse) -> bool {
    response.field("cache-status").starts_with("clipgate; detail=")
}

fn is_coalesced(response: &ReceivedResponse) -> bool {
    response.field("cache-status") == "clipgate; fwd=miss; collapsed"
}

fn is_proven(response: &ReceivedResponse) -> bool {
    response.field("cache-status") == "clipgate; hit; ttl=0; detail=proven"
}

fn has_per_response_headers(response: &ReceivedResponse) -> bool {
    ["set-cookie", "x-inference-id", "x-aimlapi-request", "ratelimit-remaining"]
        .iter()
        .any(|name| response.headers.contains_key(*name))
}

pub(crate) fn is_failure(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

pub(crate) fn violation<T>(rule: &'static str, details: String) -> Result<T, Violation> {
    Err(Violation { rule, details })
}
