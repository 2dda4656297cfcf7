//! Which fault explains a failure: one of the client's own key and jobs, or an outage that its time ended in.
//!
//! | what a client was told | explained by |
//! | --- | --- |
//! | the gateway's own 502 or 504, when its time was over | an outage at that moment, or a transport fault of its own |
//! | the gateway's own 429, for a paused key | a 429 to its key |
//! | an error as the upstream wrote it | that error, ordered for its key and none but its jobs |
//! | a 2xx that cannot be read | a page or a summary, ordered for its key and none but its jobs |
//! | the gateway's own 502 for several jobs | the same, for some of them: that cannot be handed over |
//! | anything else, or a transport failure with time left | nothing |
//!
//! No fault goes on for as long as the gateway retries (`upstream.retry_for`), so that time left is always enough.

use std::sync::Arc;
use std::time::{Duration, Instant};

use clipgate::sim::{Fault, FaultRecord, ListFormat};
use http::StatusCode;

use super::ask::Key;
use super::clips::Clip;
use super::oracle::Oracle;

/// What explains a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Connections failed when the request's time was over.
    Outage,
    /// A connection broke, hung or was closed under its own request.
    Transport,
    /// The upstream answered its own request with an error.
    UpstreamError,
    /// The upstream told its job 429 or 503 for longer than it had time.
    Throttled,
    /// The upstream told its key 429.
    KeyThrottled,
    /// The upstream's answer to its own request could not be read.
    Unreadable,
}

impl Cause {
    pub(crate) const ALL: [(Cause, &'static str); 6] = [
        (Cause::Outage, "outage when its time was over"),
        (Cause::Transport, "connection lost"),
        (Cause::UpstreamError, "upstream's error for its key and jobs"),
        (Cause::Throttled, "429 or 503 for its key and jobs"),
        (Cause::KeyThrottled, "429 for its key"),
        (Cause::Unreadable, "upstream's answer for its key and jobs unreadable"),
    ];
}

/// A request for jobs that failed.
pub(crate) struct Failed<'a> {
    pub(crate) key: Key,
    pub(crate) jobs: &'a [Arc<Clip>],
    /// Whether it waits for a status. Another is answered at once.
    pub(crate) is_wait: bool,
    pub(crate) sent: Instant,
    pub(crate) got: Instant,
    /// When its time is over at the earliest.
    pub(crate) deadline: Instant,
    pub(crate) how: How,
}

/// What a failed request was told.
#[derive(Clone, Copy, Debug)]
pub(crate) enum How {
    /// The gateway's own error.
    Own(StatusCode),
    /// The upstream's error.
    AsWritten(StatusCode),
    /// The upstream's success, of which nothing could be read.
    Unreadable,
}

impl Oracle {
    /// The cause, or why nothing explains it.
    pub(crate) fn explain(&self, failed: &Failed<'_>) -> Result<Cause, &'static str> {
        let &Failed { key, jobs, is_wait, sent, got, deadline, how } = failed;
        let ids = jobs.iter().map(|job| &*job.id);
        if self.schedule.is_calm_for(key, ids, sent, got) {
            return Err("an error in a calm");
        }
        let had_its_time = |more: Duration| got + more + self.skew() >= deadline;
        let since = sent - self.hop(sent, got);
        match how {
            How::Own(StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT) => {
                // What cannot be read can only be handed over to those whose jobs were asked for in one request.
                if jobs.len() > 1 && self.explain(&Failed { how: How::Unreadable, ..*failed }).is_ok() {
                    return Ok(Cause::Unreadable);
                }
                if !had_its_time(Duration::ZERO) {
                    return Err("a transport fault failed a request that had time left");
                }
                if self.schedule.outage_end(deadline - self.hop(sent, got), got).is_some() {
                    return Ok(Cause::Outage);
                }
                let broke = self.own_faults(failed, since).iter().any(|fault| is_of_transport(&fault.fault));
                if broke {
                    Ok(Cause::Transport)
                } else {
                    Err("a transport failure without a fault of its own")
                }
            }
            How::Own(StatusCode::TOO_MANY_REQUESTS) => {
                let key = key.text();
                let is_429 = |fault: &FaultRecord| {
                    status(&fault.fault) == Some(StatusCode::TOO_MANY_REQUESTS)
                        && fault.key.is_some_and(|seen| seen.matches(&key))
                };
                // A pause that began before the request counts.
                let told = self.sim.faults_since(since - LONGEST_PAUSE, is_429);
                if told.is_empty() {
                    Err("a key is paused that was never told 429")
                } else {
                    Ok(Cause::KeyThrottled)
                }
            }
            How::Own(_) => Err("refused by the gateway itself"),
            How::AsWritten(written) => {
                let mut told = self.own_faults(failed, since);
                told.retain(|fault| status(&fault.fault) == Some(written));
                if told.is_empty() {
                    return Err("an error that was never ordered for its key and jobs");
                }
                let pauses: Option<Vec<Duration>> =
                    told.iter().map(|fault| retry_after(&fault.fault)).collect();
                let Some(pauses) = pauses else { return Ok(Cause::UpstreamError) };
                let longest = pauses.iter().max().copied().unwrap_or_default();
                let has_used_up_its_retries = told.len() > self.times.retries as usize;
                if !is_wait || has_used_up_its_retries || had_its_time(longest) {
                    Ok(Cause::Throttled)
                } else {
                    Err("Retry-After is not waited out by a wait that has the time")
                }
            }
            How::Unreadable => {
                let is_unreadable = |fault: &FaultRecord| {
                    matches!(fault.fault, Fault::Html | Fault::Shape(ListFormat::Summary))
                };
                let came = self.own_faults(failed, since).iter().any(is_unreadable);
                if came { Ok(Cause::Unreadable) } else { Err("other bytes than the upstream's") }
            }
        }
    }

    /// The cause of the failure of a request that is passed through. No two have the same target.
    pub(crate) fn explain_passed(
        &self,
        key: Key,
        target: &str,
        sent: Instant,
        got: Instant,
    ) -> Result<Cause, &'static str> {
        if self.schedule.is_calm_for(key, std::iter::empty(), sent, got) {
            return Err("an error in a calm");
        }
        let since = sent - self.hop(sent, got);
        if self.schedule.outage_end(since, got).is_some() {
            return Ok(Cause::Outage);
        }
        let own = self.sim.faults_since(since, |fault| *fault.target == *target);
        if let Some(own) = own.first() {
            let is_transport = is_of_transport(&own.fault);
            return Ok(if is_transport { Cause::Transport } else { Cause::UpstreamError });
        }
        // It may have been sent on a kept connection that another request's fault was closing.
        let lost = self.sim.faults_since(since, |fault| is_of_transport(&fault.fault));
        if lost.is_empty() { Err("a failure without a fault of its own") } else { Ok(Cause::Transport) }
    }

    /// The faults since then of requests with this key for none but these jobs.
    fn own_faults(&self, failed: &Failed<'_>, since: Instant) -> Vec<FaultRecord> {
        let key = failed.key.text();
        self.sim.faults_since(since, |fault| {
            fault.key.is_some_and(|seen| seen.matches(&key)) && is_for_none_but(&fault.target, failed.jobs)
        })
    }
}

/// How long a paused key's 429 may be ago: what `Retry-After` says at most, and the time to be told of it.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

fn is_for_none_but(target: &str, jobs: &[Arc<Clip>]) -> bool {
    let Some((_, query)) = target.split_once('?') else { return false };
    let mut ids = form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name.starts_with("clip_id"));
    ids.all(|(_, id)| jobs.iter().any(|job| job.id == id))
}

fn is_of_transport(fault: &Fault) -> bool {
    match fault {
        Fault::Refuse | Fault::Reset { .. } | Fault::Hang | Fault::Cut => true,
        Fault::Status { .. } | Fault::Html | Fault::Shape(_) => false,
    }
}

fn status(fault: &Fault) -> Option<StatusCode> {
    match fault {
        Fault::Status { status, .. } => Some(*status),
        Fault::Refuse | Fault::Reset { .. } | Fault::Hang => None,
        Fault::Cut | Fault::Html | Fault::Shape(_) => None,
    }
}

fn retry_after(fault: &Fault) -> Option<Duration> {
    match fault {
        Fault::Status { retry_after, .. } => *retry_after,
        Fault::Refuse | Fault::Reset { .. } | Fault::Hang => None,
        Fault::Cut | Fault::Html | Fault::Shape(_) => None,
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
    use super::super::oracle::Times;
    use super::super::upstream::Upstream;
    use super::*;

    const HOLD: Duration = Duration::from_secs(8);

    /// An oracle in the middle of an outage of two seconds, and its upstream, which serves all the same.
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
            let begun = sent.checked_sub(HOLD + Duration::from_secs(1)).unwrap();
            let (mut rng, minute) = (Rng::with_seed(1), Duration::from_secs(60));
            let schedule = FaultSchedule::new(begun, minute, HOLD, &[ScenarioKind::Away(2000)], &mut rng);
            let second = Duration::from_secs(1);
            let times = Times { hold: HOLD, timeout: HOLD..=HOLD, live: second, retries: 4, pause: second };
            let oracle = Oracle::new(sim.clone(), upstream.address(), times, schedule);
            let clips = Clips::new(sim.clone(), HOLD);
            let jobs = ["a", "b"].map(|id| clips.make_named(&mut rng, id));
            Self { sim, upstream, oracle, jobs, sent }
        }

        /// A request of this key that this fault is for.
        async fn strike(&self, query: &str, key: Key, fault: Fault) {
            self.sim.fault(FaultTarget::Any, fault, 1);
            let mut stream = TcpStream::connect(self.upstream.address()).await.unwrap();
            let key = key.text();
            let head = format!(
                "GET /v2/generate/audio/suno-ai/clips?{query} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\
                 connection: close\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            // A reset is an error here.
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }

        /// What explains that the key's wait for these jobs failed so, this long before its time was over.
        fn explain(&self, key: Key, jobs: &[Arc<Clip>], how: How, left: Duration) -> Option<Cause> {
            let got = clock::now();
            let (is_wait, sent, deadline) = (true, self.sent, got + left);
            self.oracle.explain(&Failed { key, jobs, is_wait, sent, got, deadline, how }).ok()
        }
    }

    const KEY: Key = Key::Good(1);
    const WRITTEN: How = How::AsWritten(StatusCode::INTERNAL_SERVER_ERROR);
    const UNREACHABLE: How = How::Own(StatusCode::BAD_GATEWAY);
    const LEFT: Duration = Duration::from_secs(1);
    const OVER: Duration = Duration::ZERO;

    #[tokio::test]
    async fn an_error_as_written_is_explained_by_one_for_the_same_key_and_none_but_the_same_jobs() {
        let outage = Outage::new().await;
        let error = || Fault::status_with(500, ErrorBody::Json);
        let [a, both] = [&outage.jobs[..1], &outage.jobs[..]];
        outage.strike("clip_ids[]=a", Key::Good(2), error()).await;
        outage.strike("clip_ids[]=a&clip_ids[]=b", KEY, error()).await;
        outage.strike("clip_ids[]=a", KEY, Fault::status(502)).await;
        assert_eq!(
            outage.explain(KEY, a, WRITTEN, LEFT),
            None,
            "of another key, of a neighbour, another status"
        );
        assert_eq!(outage.explain(KEY, both, WRITTEN, LEFT), Some(Cause::UpstreamError));
        outage.strike("clip_ids[]=a", KEY, error()).await;
        assert_eq!(outage.explain(KEY, a, WRITTEN, LEFT), Some(Cause::UpstreamError));
    }

    #[tokio::test]
    async fn a_transport_failure_is_explained_only_when_the_time_is_over() {
        let outage = Outage::new().await;
        let a = &outage.jobs[..1];
        outage.strike("clip_ids[]=a", KEY, Fault::reset()).await;
        assert_eq!(outage.explain(KEY, a, UNREACHABLE, LEFT), None);
        assert_eq!(outage.explain(KEY, a, UNREACHABLE, OVER), Some(Cause::Outage));
    }

    #[tokio::test]
    async fn a_refusal_of_the_gateways_own_is_never_explained() {
        let outage = Outage::new().await;
        let busy = How::Own(StatusCode::SERVICE_UNAVAILABLE);
        outage.strike("clip_ids[]=a", KEY, Fault::status(503)).await;
        for left in [LEFT, OVER] {
            assert_eq!(outage.explain(KEY, &outage.jobs[..1], busy, left), None);
        }
    }

    #[tokio::test]
    async fn retry_after_has_to_be_waited_out_by_who_has_the_time() {
        let outage = Outage::new().await;
        let (a, busy) = (&outage.jobs[..1], How::AsWritten(StatusCode::TOO_MANY_REQUESTS));
        let paused = How::Own(StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(outage.explain(KEY, a, paused, OVER), None);
        outage.strike("clip_ids[]=a", KEY, Fault::retry_after(429, 2 * LEFT)).await;
        assert_eq!(outage.explain(KEY, a, busy, 3 * LEFT), None);
        assert_eq!(outage.explain(KEY, a, busy, LEFT), Some(Cause::Throttled));
        assert_eq!(outage.explain(KEY, a, paused, LEFT), Some(Cause::KeyThrottled));
        assert_eq!(outage.explain(Key::Good(2), a, paused, LEFT), None);
    }
}
