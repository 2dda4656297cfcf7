//! Follows one job until it reaches the goal, and sends updates to a channel.
//!
//! | the server | requests |
//! | --- | --- |
//! | a gateway: sends events | one event stream |
//! | an API that holds requests | a long-poll for each rung in turn |
//! | an API that never holds | a GET after each `pace` of the route |

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{Response, StatusCode, Uri};
use tokio::sync::mpsc;

use crate::cli::error::root_cause;
use crate::cli::job_client::{JobRequestError, KeyField, fetch_job, message};
use crate::clock;
use crate::core::backoff::Backoff;
use crate::core::job::{JobId, JobSet};
use crate::core::job_body::{self, SplitBody};
use crate::core::route::{Form, Route, Rung, StatusSource};
use crate::protocol::retry_after::retry_after;
use crate::upstream::client::{Client, SendError};

/// Pauses between retries.
const BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), cap: Duration::from_secs(15) };

/// Shortest time between two requests if the first response came before the requested rung.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// Settings that all jobs share.
pub(super) struct Follower {
    pub(super) client: Client,
    pub(super) route: Arc<Route>,
    /// Address of the client, for messages.
    pub(super) server: Uri,
    /// Whether `--ca` names the trusted authorities.
    pub(super) has_own_authorities: bool,
    /// The field with the key, and those of `--header`.
    pub(super) fields: Vec<KeyField>,
    pub(super) goal: Rung,
    pub(super) deadline: Instant,
}

/// News of one job.
#[derive(Debug)]
pub(super) enum Update {
    /// The job reached this rung; with its body.
    State(Rung, Bytes),
    /// A request failed and is retried after this pause.
    Retrying(String, Duration),
    /// The last update.
    Ended(Ending),
}

#[derive(Debug)]
pub(super) enum Ending {
    Reached,
    /// The job reached a rung for failed jobs.
    Failed,
    TimedOut,
    /// A response without a state that a retry would not change.
    Rejected(String),
}

pub(super) enum FetchedJob {
    /// The state, and the pause before the next request if the server requested one.
    State(Rung, Bytes, Option<Duration>),
    /// Worth a retry, after this pause if the server requested one.
    Retryable(String, Option<Duration>),
    Final(String),
}

/// States and failures of one job so far.
pub(super) struct Progress<'f> {
    follower: &'f Follower,
    pub(super) id: &'f JobId,
    nth: usize,
    updates: &'f mpsc::Sender<(usize, Update)>,
    known: Option<Rung>,
    failures: u32,
    first_answer: Option<Instant>,
    /// Time of the next request to an API that never holds.
    next_read: Option<Instant>,
}

impl Follower {
    /// Follows one job to its end. `nth` identifies the job in the channel.
    pub(super) async fn follow(&self, id: &JobId, nth: usize, updates: &mpsc::Sender<(usize, Update)>) {
        let progress = Progress {
            follower: self,
            id,
            nth,
            updates,
            known: None,
            failures: 0,
            first_answer: None,
            next_read: None,
        };
        let following = self.follow_states(progress);
        let ending = match tokio::time::timeout_at(self.deadline.into(), following).await {
            Ok(ending) => ending,
            Err(_) => Ending::TimedOut,
        };
        let _ = updates.send((nth, Update::Ended(ending))).await;
    }

    async fn follow_states(&self, mut progress: Progress<'_>) -> Ending {
        // Events do not have the HTTP status.
        let may_be_events = matches!(self.route.status, StatusSource::Body(_));
        if may_be_events && let Some(ending) = self.follow_events(&mut progress).await {
            return ending;
        }
        self.poll(progress).await
    }

    async fn poll(&self, mut progress: Progress<'_>) -> Ending {
        loop {
            if let Some(at) = progress.next_read.take() {
                tokio::time::sleep_until(at.into()).await;
            }
            let wanted = progress.next_rung();
            let sent_at = clock::now();
            let fetched = self.fetch_job(progress.id, wanted).await;
            if let Some(ending) = progress.handle(fetched).await {
                return ending;
            }
            if !self.route.never_holds() && progress.known.is_some_and(|known| known < wanted) {
                tokio::time::sleep_until((sent_at + MIN_INTERVAL).into()).await;
            }
        }
    }

    async fn fetch_job(&self, id: &JobId, wanted: Rung) -> FetchedJob {
        match fetch_job(&self.client, &self.route, &self.fields, id, wanted).await {
            Ok(response) => self.classify(id, response),
            Err(error) => self.failed(&error),
        }
    }

    /// Classifies a request without a response.
    pub(super) fn failed(&self, error: &JobRequestError) -> FetchedJob {
        match error {
            JobRequestError::Target => FetchedJob::Final(error.to_string()),
            // Another attempt gets the same certificate.
            JobRequestError::Send(SendError::Tls(_)) => FetchedJob::Final(self.describe(error)),
            JobRequestError::Send(_) | JobRequestError::CutOff => {
                FetchedJob::Retryable(self.describe(error), None)
            }
        }
    }

    /// Describes why a request had no response: address, cause, and what to do where that is known.
    pub(super) fn describe(&self, error: &JobRequestError) -> String {
        let server = self.server.to_string();
        let server = server.trim_end_matches('/');
        let JobRequestError::Send(failure) = error else { return error.to_string() };
        let cause = root_cause(failure);
        match failure {
            SendError::Connect(_) => format!("cannot connect to {server}: {cause}. {NO_SERVER}"),
            SendError::ConnectTimeout(_) => format!("{server} does not accept connections. {NO_SERVER}"),
            SendError::Tls(_) => {
                format!("the TLS handshake with {server} failed: {cause}. {}", self.tls_advice(&cause))
            }
            SendError::Reset(_) => {
                format!(
                    "{server} closed the connection before it responded. A server with TLS needs https://."
                )
            }
            SendError::LocalResources(_) | SendError::Closed(_) | SendError::TooManyInterim => {
                format!("{server}: {failure}")
            }
        }
    }

    /// Returns what to do about a failed handshake.
    fn tls_advice(&self, cause: &str) -> &'static str {
        if cause.contains("UnknownIssuer") && self.has_own_authorities {
            "The certificate is not from an authority of --ca."
        } else if cause.contains("UnknownIssuer") {
            "The certificate is from an authority that is not known here: name its file with --ca FILE."
        } else if cause.contains("NotValidForName") || cause.contains("not valid for") {
            "The certificate is for another name: use that name in --url."
        } else if cause.contains("Expired") || cause.contains("expired") {
            "The certificate has expired: renew it at the server, or check the clock of this machine."
        } else {
            "Is --url right? A server without TLS needs http://, and each port has its own protocol."
        }
    }

    pub(super) fn classify(&self, id: &JobId, response: Response<Bytes>) -> FetchedJob {
        let (head, body) = response.into_parts();
        let (status, pause) = (head.status, retry_after(&head.headers, SystemTime::now()));
        let has_state = match self.route.status {
            StatusSource::Body(_) => status.is_success(),
            StatusSource::HttpStatus => self.route.ladder.rung(status.as_str()).is_some(),
        };
        if !has_state {
            let reason = message(status, &body);
            let is_temporary = status.is_server_error()
                || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT].contains(&status);
            return match is_temporary {
                true => FetchedJob::Retryable(reason, pause),
                false => FetchedJob::Final(reason),
            };
        }
        match job_body::split(&self.route, Form::Single, &JobSet::new([id.clone()]), status.as_u16(), &body) {
            SplitBody::Jobs { mut jobs, .. } => match jobs.pop() {
                Some(job_body::JobSlice { rung: Some(rung), body, .. }) => {
                    FetchedJob::State(rung, body, pause)
                }
                _ => FetchedJob::Final("the status of the job is unknown".to_owned()),
            },
            SplitBody::Unsplit => FetchedJob::Final(
                "the response is not the job. Is --url the address of the API or of a gateway?".to_owned(),
            ),
            SplitBody::Invalid => FetchedJob::Retryable("the response is not JSON".to_owned(), None),
        }
    }
}

/// Advice where no server listens.
const NO_SERVER: &str = "Is a gateway running there? --url names another address.";

impl Progress<'_> {
    /// Records an answer and sends the update. Returns the ending, if this is the last answer. Sleeps before a retry.
    pub(super) async fn handle(&mut self, fetched: FetchedJob) -> Option<Ending> {
        match fetched {
            FetchedJob::State(rung, body, requested_pause) => self.reach(rung, body, requested_pause).await,
            FetchedJob::Retryable(reason, requested_pause) => {
                self.pause(reason, requested_pause).await;
                None
            }
            FetchedJob::Final(reason) => Some(Ending::Rejected(reason)),
        }
    }

    async fn reach(&mut self, rung: Rung, body: Bytes, requested_pause: Option<Duration>) -> Option<Ending> {
        let Follower { route, goal, .. } = self.follower;
        self.failures = 0;
        // A job may return to an earlier state where the upstream never holds.
        if self.known < Some(rung) || (route.never_holds() && self.known != Some(rung)) {
            self.known = Some(rung);
            let _ = self.updates.send((self.nth, Update::State(rung, body))).await;
        }
        if route.never_holds() {
            let now = clock::now();
            let age = now.saturating_duration_since(*self.first_answer.get_or_insert(now));
            let pace = (age / 10).clamp(route.pace, route.max_pace.max(route.pace));
            self.next_read = Some(now + pace.max(requested_pause.unwrap_or_default()));
        }
        if route.ladder.is_failure(rung) {
            return Some(Ending::Failed);
        }
        (rung >= *goal).then_some(Ending::Reached)
    }

    /// Reports a failure and sleeps before the retry.
    pub(super) async fn pause(&mut self, reason: String, requested: Option<Duration>) {
        self.failures += 1;
        let pause = requested.unwrap_or_else(|| BACKOFF.pause(self.failures, fastrand::f64()));
        let _ = self.updates.send((self.nth, Update::Retrying(reason, pause))).await;
        tokio::time::sleep(pause).await;
    }

    /// Returns the rung of the next long-poll.
    fn next_rung(&self) -> Rung {
        let (ladder, goal) = (&self.follower.route.ladder, self.follower.goal);
        let next = self.known.map_or(Some(ladder.lowest()), |rung| ladder.next(rung));
        next.map_or(goal, |rung| rung.min(goal))
    }
}
