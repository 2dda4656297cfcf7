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

use clipgate::sim::{Fault, FaultRecord, Shape};
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
                        && fault.key.is_some_and(|seen| seen.is(&key))
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
                let is_unreadable =
                    |fault: &FaultRecord| matches!(fault.fault, Fault::Html | Fault::Shape(Shape::Summary));
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
            fault.key.is_some_and(|seen| seen.is(&key)) && is_for_none_but(&fault.target, failed.jobs)
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
