//! One job, followed up its ladder: asked for its next rung, again and again.
//!
//! It knows nothing of who watches.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode};
use tokio::sync::mpsc;

use crate::cli::job_client::{AskError, fetch_job, message};
use crate::clock;
use crate::core::backoff::Backoff;
use crate::core::job::{JobId, JobSet};
use crate::core::job_body::{self, SplitBody};
use crate::core::route::{Form, Route, Rung};
use crate::protocol::retry_after::retry_after;
use crate::upstream::client::Client;

/// The pauses between tries.
const BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), cap: Duration::from_secs(15) };

/// The least time between two requests where the first was answered too early.
const GAP: Duration = Duration::from_secs(1);

/// What is the same for all jobs that are followed.
pub(super) struct Follower {
    pub(super) client: Client,
    pub(super) route: Arc<Route>,
    pub(super) authorization: Option<HeaderValue>,
    pub(super) goal: Rung,
    pub(super) until: Instant,
}

/// Something happened to a job.
#[derive(Debug)]
pub(super) enum Update {
    /// It is on this rung now, and this is its body.
    State(Rung, Bytes),
    /// It could not be asked for, and will be again after so long.
    Trouble(String, Duration),
    /// No more is to come.
    Ended(Ending),
}

/// How following a job ended.
#[derive(Debug)]
pub(super) enum Ending {
    /// It is where it was wanted.
    Reached,
    /// It is on a rung where jobs fail.
    Failed,
    /// The time is over.
    TimedOut,
    /// The answer is final, and no state.
    Refused(String),
}

enum Answer {
    State(Rung, Bytes),
    Trouble(String, Option<Duration>),
    Final(String),
}

impl Follower {
    /// Follows one job to its end, the last news. Ends early when nobody takes them.
    pub(super) async fn follow(&self, id: &JobId, nth: usize, tell: &mpsc::Sender<(usize, Update)>) {
        let climb = self.follow_statuses(id, nth, tell);
        let ending = match tokio::time::timeout_at(self.until.into(), climb).await {
            Ok(ending) => ending,
            Err(_) => Ending::TimedOut,
        };
        let _ = tell.send((nth, Update::Ended(ending))).await;
    }

    async fn follow_statuses(&self, id: &JobId, nth: usize, tell: &mpsc::Sender<(usize, Update)>) -> Ending {
        let (mut known, mut failures) = (None, 0);
        loop {
            let wanted = known.map_or(Some(self.route.ladder.lowest()), |rung| self.route.ladder.next(rung));
            let wanted = wanted.map_or(self.goal, |rung| rung.min(self.goal));
            let asked_at = clock::now();
            match self.fetch_job(id, wanted).await {
                Answer::State(rung, body) => {
                    failures = 0;
                    if known < Some(rung) {
                        known = Some(rung);
                        let _ = tell.send((nth, Update::State(rung, body))).await;
                    }
                    if self.route.ladder.is_failure(rung) {
                        return Ending::Failed;
                    }
                    if rung >= self.goal {
                        return Ending::Reached;
                    }
                    if rung < wanted {
                        tokio::time::sleep_until((asked_at + GAP).into()).await;
                    }
                }
                Answer::Trouble(why, asked_pause) => {
                    failures += 1;
                    let pause = asked_pause.unwrap_or_else(|| BACKOFF.pause(failures, fastrand::f64()));
                    let _ = tell.send((nth, Update::Trouble(why, pause))).await;
                    tokio::time::sleep(pause).await;
                }
                Answer::Final(why) => return Ending::Refused(why),
            }
        }
    }

    async fn fetch_job(&self, id: &JobId, wanted: Rung) -> Answer {
        match fetch_job(&self.client, &self.route, self.authorization.as_ref(), id, wanted).await {
            Ok(response) => self.judge(id, response),
            Err(AskError::Target) => Answer::Final(AskError::Target.to_string()),
            Err(error @ (AskError::Send(_) | AskError::CutOff)) => Answer::Trouble(error.to_string(), None),
        }
    }

    fn judge(&self, id: &JobId, response: Response<Bytes>) -> Answer {
        let (head, body) = response.into_parts();
        let status = head.status;
        if !status.is_success() {
            let why = message(status, &body);
            let is_passing = status.is_server_error()
                || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT].contains(&status);
            return match is_passing {
                true => Answer::Trouble(why, retry_after(&head.headers, SystemTime::now())),
                false => Answer::Final(why),
            };
        }
        match job_body::split(&self.route, Form::Single, &JobSet::new([id.clone()]), &body) {
            SplitBody::Jobs { mut jobs, .. } => match jobs.pop() {
                Some(job_body::JobSlice { rung: Some(rung), body, .. }) => Answer::State(rung, body),
                _ => Answer::Final("its status is a word that is not known".to_owned()),
            },
            SplitBody::Unsplit => {
                Answer::Final("the answer is not the clip: is --url that of the API or a gateway?".to_owned())
            }
            SplitBody::Invalid => Answer::Trouble("the answer is no JSON".to_owned(), None),
        }
    }
}
