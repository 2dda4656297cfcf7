//! Explains a failed request by an injected fault: one for its own key and jobs, or an outage at its deadline.
//!
//! | response | explained by |
//! | --- | --- |
//! | 502 or 504 of the gateway, at the deadline | an outage at that time, or a transport fault of the request itself |
//! | 429 of the gateway, for a paused key | a 429 for this key |
//! | an error of the upstream | the same error, injected for this key and only these jobs |
//! | a 2xx with an invalid body | an HTML page or a summary, injected for this key and only these jobs |
//! | 502 of the gateway, for several jobs | the same for some of the jobs: such a body cannot be split |
//! | any other, or a transport failure before the deadline | nothing |
//!
//! Each fault is shorter than `upstream.retry_for`, so a wait with time left always outlasts it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use clipgate::sim::{Fault, FaultRecord, ListFormat};
use http::StatusCode;

use super::clips::Clip;
use super::oracle::Oracle;
use super::requests::Key;

/// Cause of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Connections failed at the deadline of the request.
    Outage,
    /// The connection of the request itself broke, hung or was closed.
    Transport,
    /// The upstream answered the request itself with an error.
    UpstreamError,
    /// The upstream answered its jobs with 429 or 503 until the deadline.
    Throttled,
    /// The upstream answered its key with 429.
    KeyThrottled,
    /// The upstream's response to the request itself was invalid.
    InvalidBody,
}

impl Cause {
    pub(crate) const ALL: [(Cause, &'static str); 6] = [
        (Cause::Outage, "outage at its deadline"),
        (Cause::Transport, "connection lost"),
        (Cause::UpstreamError, "upstream error for its key and jobs"),
        (Cause::Throttled, "429 or 503 for its key and jobs"),
        (Cause::KeyThrottled, "429 for its key"),
        (Cause::InvalidBody, "invalid upstream body for its key and jobs"),
    ];
}

/// A request for jobs that failed.
pub(crate) struct FailedRequest<'a> {
    pub(crate) key: Key,
    pub(crate) jobs: &'a [Arc<Clip>],
    /// Whether the request waits for a status; others are answered at once.
    pub(crate) is_wait: bool,
    pub(crate) sent: Instant,
    pub(crate) received: Instant,
    /// Earliest time at which the gateway may end the wait.
    pub(crate) deadline: Instant,
    pub(crate) kind: FailureKind,
}

/// Origin of the response to a failed request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum FailureKind {
    /// An error of the gateway.
    GatewayError(StatusCode),
    /// An error of the upstream, passed on.
    UpstreamError(StatusCode),
    /// A success of the upstream with an invalid body.
    InvalidBody,
}

impl Oracle {
    /// Returns the cause, or the violated rule if no fault explains the failure.
    pub(crate) fn explain(&self, failed: &FailedRequest<'_>) -> Result<Cause, &'static str> {
        let &FailedRequest { key, jobs, is_wait, sent, received, deadline, kind } = failed;
        let ids = jobs.iter().map(|job| &*job.id);
        if self.schedule.is_calm_for(key, ids, sent, received) {
            return Err("an error in a calm period");
        }
        let is_past_deadline = |more: Duration| received + more + self.clock_skew() >= deadline;
        let since = sent - self.max_transit(sent, received);
        match kind {
            FailureKind::GatewayError(StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT) => {
                // An invalid body is passed on only to waits whose jobs were all in one upstream request.
                if jobs.len() > 1
                    && self.explain(&FailedRequest { kind: FailureKind::InvalidBody, ..*failed }).is_ok()
                {
                    return Ok(Cause::InvalidBody);
                }
                if !is_past_deadline(Duration::ZERO) {
                    return Err("a transport fault failed a request that had time left");
                }
                if self.schedule.outage_end(deadline - self.max_transit(sent, received), received).is_some() {
                    return Ok(Cause::Outage);
                }
                let is_broken =
                    self.own_faults(failed, since).iter().any(|fault| is_transport_fault(&fault.fault));
                if is_broken {
                    Ok(Cause::Transport)
                } else {
                    Err("a transport failure without a fault of its own")
                }
            }
            FailureKind::GatewayError(StatusCode::TOO_MANY_REQUESTS) => {
                let key = key.text();
                let is_429 = |fault: &FaultRecord| {
                    status(&fault.fault) == Some(StatusCode::TOO_MANY_REQUESTS)
                        && fault.key.is_some_and(|seen| seen.matches(&key))
                };
                // Includes a pause that began before the request.
                let throttled = self.sim.faults_since(since - LONGEST_PAUSE, is_429);
                if throttled.is_empty() {
                    Err("a paused key without a 429 from the upstream")
                } else {
                    Ok(Cause::KeyThrottled)
                }
            }
            FailureKind::GatewayError(_) => Err("rejected by the gateway itself"),
            FailureKind::UpstreamError(expected) => {
                let mut injected = self.own_faults(failed, since);
                injected.retain(|fault| status(&fault.fault) == Some(expected));
                if injected.is_empty() {
                    return Err("an error that was not injected for its key and jobs");
                }
                let pauses: Option<Vec<Duration>> =
                    injected.iter().map(|fault| retry_after(&fault.fault)).collect();
                let Some(pauses) = pauses else { return Ok(Cause::UpstreamError) };
                let longest = pauses.iter().max().copied().unwrap_or_default();
                let has_used_all_retries = injected.len() > self.times.retries as usize;
                if !is_wait || has_used_all_retries || is_past_deadline(longest) {
                    Ok(Cause::Throttled)
                } else {
                    Err("a wait with time left does not wait for Retry-After")
                }
            }
            FailureKind::InvalidBody => {
                let is_invalid_body = |fault: &FaultRecord| {
                    matches!(fault.fault, Fault::Html | Fault::Shape(ListFormat::Summary))
                };
                let is_injected = self.own_faults(failed, since).iter().any(is_invalid_body);
                if is_injected {
                    Ok(Cause::InvalidBody)
                } else {
                    Err("a body that differs from the upstream's")
                }
            }
        }
    }

    /// Returns the cause of the failure of a passed-through request. Each has a unique target.
    pub(crate) fn explain_passed(
        &self,
        key: Key,
        target: &str,
        sent: Instant,
        received: Instant,
    ) -> Result<Cause, &'static str> {
        if self.schedule.is_calm_for(key, std::iter::empty(), sent, received) {
            return Err("an error in a calm period");
        }
        let since = sent - self.max_transit(sent, received);
        if self.schedule.outage_end(since, received).is_some() {
            return Ok(Cause::Outage);
        }
        let own = self.sim.faults_since(since, |fault| *fault.target == *target);
        if let Some(own) = own.first() {
            let is_transport = is_transport_fault(&own.fault);
            return Ok(if is_transport { Cause::Transport } else { Cause::UpstreamError });
        }
        // A fault of another request may have closed the idle connection that this request was sent on.
        let lost = self.sim.faults_since(since, |fault| is_transport_fault(&fault.fault));
        if lost.is_empty() { Err("a failure without a fault of its own") } else { Ok(Cause::Transport) }
    }

    /// Returns the faults since then of requests with this key for only these jobs.
    fn own_faults(&self, failed: &FailedRequest<'_>, since: Instant) -> Vec<FaultRecord> {
        let key = failed.key.text();
        self.sim.faults_since(since, |fault| {
            fault.key.is_some_and(|seen| seen.matches(&key)) && is_for_only(&fault.target, failed.jobs)
        })
    }
}

/// Upper bound of the age of a 429 that pauses a key: the longest `Retry-After`, plus the time of the response.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

fn is_for_only(target: &str, jobs: &[Arc<Clip>]) -> bool {
    let Some((_, query)) = target.split_once('?') else { return false };
    let mut ids = form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name.starts_with("clip_id"));
    ids.all(|(_, id)| jobs.iter().any(|job| job.id == id))
}

fn is_transport_fault(fault: &Fault) -> bool {
    match fault {
        Fault::Refuse | Fault::Reset { .. } | Fault::Hang | Fault::Cut => true,
        Fault::Status { .. } | Fault::Html | Fault::Shape(_) | Fault::Slow { .. } | Fault::Field(..) => false,
    }
}

fn status(fault: &Fault) -> Option<StatusCode> {
    match fault {
        Fault::Status { status, .. } => Some(*status),
        Fault::Refuse | Fault::Reset { .. } | Fault::Hang => None,
        Fault::Cut | Fault::Html | Fault::Shape(_) | Fault::Slow { .. } | Fault::Field(..) => None,
    }
}

fn retry_after(fault: &Fault) -> Option<Duration> {
    match fault {
        Fault::Status { retry_after, .. } => *retry_after,
        Fault::Refuse | Fault::Reset { .. } | Fault::Hang => None,
        Fault::Cut | Fault::Html | Fault::Shape(_) | Fault::Slow { .. } | Fault::Field(..) => None,
    }
}

#[cfg(test)]
mod tests {
    use clipgate::sim::{ErrorBody, FaultTarget, Sim, SimOptions};
    use clipgate::testing::clock;
    use fastrand::Rng;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::super::clips::Clips;
    use super::super::fault_schedule::{FaultSchedule, ScenarioKind};
    use super::super::oracle::ExpectedTimes;
    use super::super::upstream::Upstream;
    use super::*;

    const HOLD: Duration = Duration::from_secs(8);

    /// An oracle in the middle of an outage of two seconds. The upstream continues to serve.
    struct Outage {
        sim: Sim,
        upstream: Upstream,
        oracle: Oracle,
        jobs: [Arc<Clip>; 2],
        sent: Instant,
    }

    impl Outage {
        async fn new() -> Self {
            let sim = Sim::new(SimOptions::default());
            let upstream = Upstream::start(sim.clone()).await.unwrap();
            let sent = clock::now();
            let started_at = sent.checked_sub(HOLD + Duration::from_secs(1)).unwrap();
            let (mut rng, minute) = (Rng::with_seed(1), Duration::from_secs(60));
            let schedule =
                FaultSchedule::new(started_at, minute, HOLD, &[ScenarioKind::Away(2000)], &mut rng);
            let second = Duration::from_secs(1);
            let times =
                ExpectedTimes { hold: HOLD, timeout: HOLD..=HOLD, live: second, retries: 4, pause: second };
            let oracle = Oracle::new(sim.clone(), upstream.address(), times, schedule);
            let clips = Clips::new(sim.clone(), HOLD);
            let jobs = ["a", "b"].map(|id| clips.make_named(&mut rng, id));
            Self { sim, upstream, oracle, jobs, sent }
        }

        /// Sends a request with this key, and injects the fault into it.
        async fn inject(&self, query: &str, key: Key, fault: Fault) {
            self.sim.fault(FaultTarget::Any, fault, 1);
            let mut stream = TcpStream::connect(self.upstream.address()).await.unwrap();
            let key = key.text();
            let head = format!(
                "GET /v2/generate/audio/suno-ai/clips?{query} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\
                 connection: close\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            // A reset makes this an error.
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }

        /// Explains the failure of a wait of this key for these jobs, this long before its deadline.
        fn explain(&self, key: Key, jobs: &[Arc<Clip>], kind: FailureKind, left: Duration) -> Option<Cause> {
            let received = clock::now();
            let (is_wait, sent, deadline) = (true, self.sent, received + left);
            self.oracle.explain(&FailedRequest { key, jobs, is_wait, sent, received, deadline, kind }).ok()
        }
    }

    const KEY: Key = Key::Valid(1);
    const UPSTREAM_ERROR: FailureKind = FailureKind::UpstreamError(StatusCode::INTERNAL_SERVER_ERROR);
    const UNREACHABLE: FailureKind = FailureKind::GatewayError(StatusCode::BAD_GATEWAY);
    const LEFT: Duration = Duration::from_secs(1);
    const PAST: Duration = Duration::ZERO;

    #[tokio::test]
    async fn an_upstream_error_is_explained_by_the_same_error_for_this_key_and_only_these_jobs() {
        let outage = Outage::new().await;
        let error = || Fault::status_with(500, ErrorBody::Json);
        let [a, both] = [&outage.jobs[..1], &outage.jobs[..]];
        outage.inject("clip_ids[]=a", Key::Valid(2), error()).await;
        outage.inject("clip_ids[]=a&clip_ids[]=b", KEY, error()).await;
        outage.inject("clip_ids[]=a", KEY, Fault::status(502)).await;
        assert_eq!(
            outage.explain(KEY, a, UPSTREAM_ERROR, LEFT),
            None,
            "another key, another job, another status"
        );
        assert_eq!(outage.explain(KEY, both, UPSTREAM_ERROR, LEFT), Some(Cause::UpstreamError));
        outage.inject("clip_ids[]=a", KEY, error()).await;
        assert_eq!(outage.explain(KEY, a, UPSTREAM_ERROR, LEFT), Some(Cause::UpstreamError));
    }

    #[tokio::test]
    async fn a_transport_failure_is_explained_only_at_the_deadline() {
        let outage = Outage::new().await;
        let a = &outage.jobs[..1];
        outage.inject("clip_ids[]=a", KEY, Fault::reset()).await;
        assert_eq!(outage.explain(KEY, a, UNREACHABLE, LEFT), None);
        assert_eq!(outage.explain(KEY, a, UNREACHABLE, PAST), Some(Cause::Outage));
    }

    #[tokio::test]
    async fn a_rejection_by_the_gateway_itself_is_never_explained() {
        let outage = Outage::new().await;
        let busy = FailureKind::GatewayError(StatusCode::SERVICE_UNAVAILABLE);
        outage.inject("clip_ids[]=a", KEY, Fault::status(503)).await;
        for left in [LEFT, PAST] {
            assert_eq!(outage.explain(KEY, &outage.jobs[..1], busy, left), None);
        }
    }

    #[tokio::test]
    async fn a_wait_with_time_left_must_wait_for_retry_after() {
        let outage = Outage::new().await;
        let (a, busy) = (&outage.jobs[..1], FailureKind::UpstreamError(StatusCode::TOO_MANY_REQUESTS));
        let paused = FailureKind::GatewayError(StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(outage.explain(KEY, a, paused, PAST), None);
        outage.inject("clip_ids[]=a", KEY, Fault::retry_after(429, 2 * LEFT)).await;
        assert_eq!(outage.explain(KEY, a, busy, 3 * LEFT), None);
        assert_eq!(outage.explain(KEY, a, busy, LEFT), Some(Cause::Throttled));
        assert_eq!(outage.explain(KEY, a, paused, LEFT), Some(Cause::KeyThrottled));
        assert_eq!(outage.explain(Key::Valid(2), a, paused, LEFT), None);
    }
}
