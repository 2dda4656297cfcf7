//! Follows one job: requests its next rung until it reaches the goal, and sends updates to a channel.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{Response, StatusCode};
use tokio::sync::mpsc;

use crate::cli::job_client::{JobRequestError, KeyField, fetch_job, message};
use crate::clock;
use crate::core::backoff::Backoff;
use crate::core::job::{JobId, JobSet};
use crate::core::job_body::{self, SplitBody};
use crate::core::route::{Form, Route, Rung};
use crate::protocol::retry_after::retry_after;
use crate::upstream::client::Client;

/// Pauses between retries.
const BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), cap: Duration::from_secs(15) };

/// Shortest time between two requests if the first response came before the requested rung.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// Settings that all jobs share.
pub(super) struct Follower {
    pub(super) client: Client,
    pub(super) route: Arc<Route>,
    pub(super) key: Option<KeyField>,
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

enum FetchedJob {
    State(Rung, Bytes),
    /// Worth a retry, after this pause if the server requested one.
    Retryable(String, Option<Duration>),
    Final(String),
}

impl Follower {
    /// Follows one job to its end. `nth` identifies the job in the channel.
    pub(super) async fn follow(&self, id: &JobId, nth: usize, updates: &mpsc::Sender<(usize, Update)>) {
        let following = self.follow_statuses(id, nth, updates);
        let ending = match tokio::time::timeout_at(self.deadline.into(), following).await {
            Ok(ending) => ending,
            Err(_) => Ending::TimedOut,
        };
        let _ = updates.send((nth, Update::Ended(ending))).await;
    }

    async fn follow_statuses(
        &self,
        id: &JobId,
        nth: usize,
        updates: &mpsc::Sender<(usize, Update)>,
    ) -> Ending {
        let (mut known, mut failures) = (None, 0);
        loop {
            let wanted = known.map_or(Some(self.route.ladder.lowest()), |rung| self.route.ladder.next(rung));
            let wanted = wanted.map_or(self.goal, |rung| rung.min(self.goal));
            let sent_at = clock::now();
            match self.fetch_job(id, wanted).await {
                FetchedJob::State(rung, body) => {
                    failures = 0;
                    if known < Some(rung) {
                        known = Some(rung);
                        let _ = updates.send((nth, Update::State(rung, body))).await;
                    }
                    if self.route.ladder.is_failure(rung) {
                        return Ending::Failed;
                    }
                    if rung >= self.goal {
                        return Ending::Reached;
                    }
                    if rung < wanted {
                        tokio::time::sleep_until((sent_at + MIN_INTERVAL).into()).await;
                    }
                }
                FetchedJob::Retryable(reason, requested_pause) => {
                    failures += 1;
                    let pause = requested_pause.unwrap_or_else(|| BACKOFF.pause(failures, fastrand::f64()));
                    let _ = updates.send((nth, Update::Retrying(reason, pause))).await;
                    tokio::time::sleep(pause).await;
                }
                FetchedJob::Final(reason) => return Ending::Rejected(reason),
            }
        }
    }

    async fn fetch_job(&self, id: &JobId, wanted: Rung) -> FetchedJob {
        match fetch_job(&self.client, &self.route, self.key.as_ref(), id, wanted).await {
            Ok(response) => self.classify(id, response),
            Err(JobRequestError::Target) => FetchedJob::Final(JobRequestError::Target.to_string()),
            Err(error @ (JobRequestError::Send(_) | JobRequestError::CutOff)) => {
                FetchedJob::Retryable(error.to_string(), None)
            }
        }
    }

    fn classify(&self, id: &JobId, response: Response<Bytes>) -> FetchedJob {
        let (head, body) = response.into_parts();
        let status = head.status;
        if !status.is_success() {
            let reason = message(status, &body);
            let is_temporary = status.is_server_error()
                || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT].contains(&status);
            return match is_temporary {
                true => FetchedJob::Retryable(reason, retry_after(&head.headers, SystemTime::now())),
                false => FetchedJob::Final(reason),
            };
        }
        match job_body::split(&self.route, Form::Single, &JobSet::new([id.clone()]), status.as_u16(), &body) {
            SplitBody::Jobs { mut jobs, .. } => match jobs.pop() {
                Some(job_body::JobSlice { rung: Some(rung), body, .. }) => FetchedJob::State(rung, body),
                _ => FetchedJob::Final("the status of the job is unknown".to_owned()),
            },
            SplitBody::Unsplit => FetchedJob::Final(
                "the response is not the job. Is --url the address of the API or of a gateway?".to_owned(),
            ),
            SplitBody::Invalid => FetchedJob::Retryable("the response is not JSON".to_owned(), None),
        }
    }
}
