//! One event stream: the states that its client has received, and the waits for further ones.
//!
//! Where the upstream never holds, jobs may go back: each state other than the last one sent is an event.
//!
//! | a wait ends with | event | then |
//! | --- | --- | --- |
//! | its goal reached | `status` | a wait for the next rung, or for any other state; `done` if every job is at the goal |
//! | time-out, or the gateway stops | `status` | the stream ends without `done`; the client reconnects |
//! | a body that cannot be split | none | one wait for each of its jobs; for a single job `error`, final |
//! | an error of the upstream, 3xx or 4xx | `error` | final: a reconnect gets 204 |
//! | any other error, a 429 included | `error` | the client reconnects after a pause |

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{self, FuturesUnordered, StreamExt as _};
use http::StatusCode;
use http_body::{Body as HttpBody, Frame};
use http_body_util::StreamBody;
use serde::de::IgnoredAny;
use tracing::info;

use super::last_event_id::{Position, PositionCodec};
use super::{EventStreams, StreamRequest};
use crate::clock;
use crate::core::coalescer::{Failure, WaitOutcome, WaitResult};
use crate::core::job::{JobId, JobSet, JobState, UpstreamResponse};
use crate::core::route::{Form, Goal, Route, Rung};
use crate::gateway::error::GatewayError;
use crate::hub::{HubError, WaitRequest};
use crate::limits::Subject;
use crate::protocol::request::RequestId;
use crate::protocol::sse::{self, SseEvent};

/// The longest time without an event before a comment is sent.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// The pause before the next wait on a job with an unknown status, as the upstream answers such a wait at once.
const UNKNOWN_STATUS_PAUSE: Duration = Duration::from_secs(2);

/// The client's pause after a 429 of the upstream without `Retry-After`.
const BUSY_PAUSE: Duration = Duration::from_secs(10);

/// A wait in progress, with its jobs.
type PendingWait = Pin<Box<dyn Future<Output = (JobSet, Result<WaitResult, HubError>)> + Send>>;

pub(super) struct JobStream {
    streams: EventStreams,
    request: StreamRequest,
    goal: Rung,
    codec: PositionCodec,
    deadline: Instant,
    /// In the order of the query.
    jobs: Vec<JobProgress>,
    /// At most one per job.
    pending: FuturesUnordered<PendingWait>,
    /// Events that the client has not read: at most one per job, and one for the end.
    unread: VecDeque<Bytes>,
    log: StreamLog,
}

struct JobProgress {
    id: JobId,
    /// The highest rung sent; the last one where jobs may go back.
    sent: Option<Rung>,
    /// Moment of the last state sent on this connection.
    sent_as_of: Option<Instant>,
    /// The digest of the state with an unknown status that was sent after `sent`.
    unknown_status_digest: Option<blake3::Hash>,
}

pub(super) enum StreamStart {
    /// Waits are parked.
    Waiting,
    /// The cache has all states, for at least `ttl`.
    Cached { ttl: Duration },
    /// The client already has all states.
    SentBefore,
}

impl JobStream {
    /// `sent` has the rung that the client already has of each job, in the order of the query.
    pub(super) fn new(
        streams: EventStreams,
        request: StreamRequest,
        goal: Rung,
        codec: PositionCodec,
        sent: Vec<Option<Rung>>,
    ) -> Self {
        let jobs = request.query.asked.iter().cloned().zip(sent);
        Self {
            jobs: jobs.map(|(id, sent)| JobProgress::new(id, sent)).collect(),
            deadline: request.arrived + request.options.timeout,
            pending: FuturesUnordered::new(),
            unread: VecDeque::from([sse::OPENING]),
            log: StreamLog::new(&request),
            streams,
            request,
            goal,
            codec,
        }
    }

    /// Queues the cached states and parks the first waits.
    pub(super) async fn start(&mut self) -> Result<StreamStart, GatewayError> {
        let cached = self.queue_cached_states()?;
        self.end_if_done();
        if self.request.options.only_if_cached {
            self.log.end.get_or_insert("only-if-cached");
        }
        if self.log.end.is_some() {
            return Ok(cached.map_or(StreamStart::SentBefore, |ttl| StreamStart::Cached { ttl }));
        }
        for wait in self.first_waits() {
            let jobs = wait.jobs.clone();
            let parked = self.streams.hub.park(wait).await?;
            self.pending.push(Box::pin(async move { (jobs, parked.await) }));
        }
        Ok(StreamStart::Waiting)
    }

    /// Queues the cached states. Returns the shortest time for which one of them stays cached.
    fn queue_cached_states(&mut self) -> Result<Option<Duration>, GatewayError> {
        let (domain, now) = (self.request.identity.domain, clock::now());
        let open: Vec<JobId> = self.open_jobs().map(|job| job.id.clone()).collect();
        let mut shortest = None;
        for id in open {
            let max_age = self.request.options.max_age;
            match max_age.and_then(|max_age| self.streams.cache.get_within(domain, &id, max_age, now)) {
                Some(hit) => {
                    shortest = Some(shortest.map_or(hit.ttl, |shortest: Duration| shortest.min(hit.ttl)));
                    self.queue_state(&hit.entry.state);
                }
                None if self.request.options.only_if_cached => return Err(GatewayError::NotCached),
                None => {}
            }
        }
        Ok(shortest)
    }

    /// Returns one wait for all jobs without a sent state, and one for each other job.
    fn first_waits(&self) -> Vec<WaitRequest> {
        let (new, others): (Vec<&JobProgress>, Vec<&JobProgress>) =
            self.open_jobs().partition(|job| job.sent.is_none());
        let mut waits: Vec<WaitRequest> = others.into_iter().map(|job| self.next_wait(job)).collect();
        if !new.is_empty() {
            let jobs = JobSet::new(new.into_iter().map(|job| job.id.clone()));
            waits.push(self.wait(jobs, Goal::Rung(self.lowest_rung())));
        }
        waits
    }

    pub(super) fn into_body(self) -> impl HttpBody<Data = Bytes, Error = Infallible> + Send + use<> {
        StreamBody::new(stream::unfold(self, |mut stream| async {
            let bytes = stream.next().await?;
            Some((Ok(Frame::data(bytes)), stream))
        }))
    }

    /// Returns the next bytes for the client; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        let mut heartbeat = pin!(tokio::time::sleep(HEARTBEAT));
        loop {
            if let Some(bytes) = self.unread.pop_front() {
                return Some(bytes);
            }
            tokio::select! {
                // Cancel safe: an unfinished wait stays in the set.
                ended = self.pending.next() => match ended {
                    Some((jobs, result)) => self.handle_result(&jobs, result),
                    None => {
                        self.log.end.get_or_insert("timed-out");
                        return None;
                    }
                },
                () = &mut heartbeat => return Some(sse::COMMENT),
            }
        }
    }
}

impl JobStream {
    fn handle_result(&mut self, jobs: &JobSet, result: Result<WaitResult, HubError>) {
        match result.map(|result| result.end) {
            Ok(WaitOutcome::Reached(states)) => {
                self.queue_states(&states);
                self.wait_on(jobs);
            }
            // The wait has the stream's own deadline, or the gateway stops: no further wait.
            Ok(WaitOutcome::TimedOut(states)) => self.queue_states(&states),
            // The bodies of single jobs need no splitting.
            Ok(WaitOutcome::Unsplit(_)) if jobs.len() > 1 => self.wait_on(jobs),
            Ok(WaitOutcome::Unsplit(_)) => {
                self.end_with_error(&GatewayError::Poll(Failure::InvalidResponse(None)), Reconnect::Never)
            }
            Ok(WaitOutcome::Refused(reply)) if reply.status == StatusCode::TOO_MANY_REQUESTS => {
                self.end_with_reply(reply, Reconnect::After(Some(BUSY_PAUSE)));
            }
            Ok(WaitOutcome::Refused(reply)) => self.end_with_reply(reply, Reconnect::Never),
            Ok(WaitOutcome::Failed(Failure::UpstreamError(reply))) => {
                self.end_with_reply(reply, Reconnect::After(None))
            }
            Ok(WaitOutcome::Failed(failure)) => self.end_with_retry(&GatewayError::Poll(failure)),
            Err(error) => self.end_with_retry(&error.into()),
        }
        self.end_if_done();
    }

    fn queue_states(&mut self, states: &[JobState]) {
        for at in 0..self.jobs.len() {
            if let Some(state) = states.iter().find(|state| state.id == self.jobs[at].id) {
                self.queue_state(state);
            }
        }
    }

    /// Queues an event for a state that the client does not have yet (P10).
    fn queue_state(&mut self, state: &JobState) {
        let may_go_back = self.route().never_holds();
        let Some(job) = self.jobs.iter_mut().find(|job| job.id == state.id) else { return };
        if !job.advance(state, may_go_back) {
            return;
        }
        let position = Position::Sent(self.jobs.iter().map(|job| job.sent).collect());
        let id = self.codec.encode(&position);
        self.unread.push_back(SseEvent::new("status", &state.body).with_id(&id).to_bytes());
        self.log.events += 1;
    }

    /// Starts the next wait of each of these jobs that has not reached the goal, if there is time left.
    fn wait_on(&mut self, jobs: &JobSet) {
        let now = clock::now();
        let next: Vec<(WaitRequest, Duration)> = self
            .open_jobs()
            .filter(|job| jobs.contains(&job.id))
            .map(|job| (self.next_wait(job), job.pause(self.route().pace)))
            .filter(|(_, pause)| now + *pause < self.deadline)
            .collect();
        for (wait, pause) in next {
            let jobs = wait.jobs.clone();
            if !pause.is_zero() {
                let (hub, timeout) = (self.streams.hub.clone(), wait.timeout.saturating_sub(pause));
                let later = WaitRequest { arrived: now + pause, timeout, ..wait };
                self.pending.push(Box::pin(async move {
                    tokio::time::sleep(pause).await;
                    (jobs, hub.wait(later).await)
                }));
                continue;
            }
            match self.streams.hub.join(wait) {
                Ok(parked) => self.pending.push(Box::pin(async move { (jobs, parked.await) })),
                Err(error) => return self.end_with_retry(&error.into()),
            }
        }
    }

    fn next_wait(&self, job: &JobProgress) -> WaitRequest {
        let route = self.route();
        let goal = match job.sent {
            None => Goal::Rung(self.lowest_rung()),
            // After an unknown status, any known state is new.
            Some(_) if route.never_holds() && job.unknown_status_digest.is_some() => {
                Goal::Rung(self.lowest_rung())
            }
            Some(sent) if route.never_holds() => Goal::Not(sent),
            Some(sent) => Goal::Rung(route.ladder.next(sent).unwrap_or(sent).min(self.goal)),
        };
        let newer_than = job.sent_as_of.filter(|_| route.never_holds());
        WaitRequest { newer_than, ..self.wait(JobSet::new([job.id.clone()]), goal) }
    }

    /// Returns a wait like that of a client which arrives now and waits until the stream's deadline.
    fn wait(&self, jobs: JobSet, goal: Goal) -> WaitRequest {
        let now = clock::now();
        let StreamRequest { identity, options, arrived, links, .. } = &self.request;
        WaitRequest {
            identity: identity.clone(),
            quota_subject: self.quota_subject(),
            form: if jobs.len() == 1 { Form::Single } else { Form::Multi },
            jobs,
            goal,
            arrived: now,
            timeout: self.deadline.saturating_duration_since(now),
            // With `no-cache`, states that were seen since the request arrived are still recent enough.
            max_age: options.max_age.or(Some(now.saturating_duration_since(*arrived))),
            may_store: options.keep,
            is_patient: true,
            newer_than: None,
            links: links.clone(),
        }
    }

    /// Returns the owner of the quotas: the address until the upstream has accepted the key, which the stream's own
    /// first wait may cause, then the key.
    fn quota_subject(&self) -> Subject {
        let domain = self.request.identity.domain;
        match self.request.subject {
            Subject::Address(_) if self.streams.cache.is_key_proven(domain) => Subject::Key(domain),
            subject @ (Subject::Key(_) | Subject::Member(_) | Subject::Address(_)) => subject,
        }
    }

    fn route(&self) -> &Route {
        self.streams.routes.get(self.request.query.route)
    }

    fn lowest_rung(&self) -> Rung {
        self.route().ladder.lowest()
    }

    /// Returns the jobs that have not reached the goal.
    fn open_jobs(&self) -> impl Iterator<Item = &JobProgress> {
        self.jobs.iter().filter(|job| job.sent < Some(self.goal))
    }

    fn end_if_done(&mut self) {
        if self.log.end.is_none() && self.open_jobs().next().is_none() {
            let id = self.codec.encode(&Position::Over);
            self.end(SseEvent::new("done", b"{}").with_id(&id), "done");
        }
    }

    fn end_with_retry(&mut self, error: &GatewayError) {
        self.end_with_error(error, Reconnect::After(error.retry_after()));
    }

    fn end_with_error(&mut self, error: &GatewayError, reconnect: Reconnect) {
        let path = self.route().template(self.request.query.form);
        let body = error.to_response_bytes(&self.request.id, path).into_body();
        self.end_with_event(&body, reconnect, error.reason());
    }

    /// Sends the upstream's own error if it is JSON, else an error of the gateway: the data of every event is JSON.
    fn end_with_reply(&mut self, reply: Arc<UpstreamResponse>, reconnect: Reconnect) {
        if serde_json::from_slice::<IgnoredAny>(&reply.body).is_ok() {
            self.end_with_event(&reply.body, reconnect, "upstream_rejected");
        } else {
            self.end_with_error(&GatewayError::Poll(Failure::UpstreamError(reply)), reconnect);
        }
    }

    fn end_with_event(&mut self, data: &[u8], reconnect: Reconnect, reason: &'static str) {
        let event = SseEvent::new("error", data);
        match reconnect {
            Reconnect::Never => {
                let id = self.codec.encode(&Position::Over);
                self.end(event.with_id(&id), reason);
            }
            Reconnect::After(Some(pause)) => self.end(event.with_retry(pause.max(sse::RETRY)), reason),
            Reconnect::After(None) => self.end(event, reason),
        }
    }

    fn end(&mut self, event: SseEvent<'_>, reason: &'static str) {
        self.pending.clear();
        self.unread.push_back(event.to_bytes());
        self.log.end = Some(reason);
    }
}

/// The client's reconnect after an error.
enum Reconnect {
    /// The error is final: a reconnect gets 204.
    Never,
    /// After this pause, else after [`sse::RETRY`].
    After(Option<Duration>),
}

impl JobProgress {
    fn new(id: JobId, sent: Option<Rung>) -> Self {
        Self { id, sent, sent_as_of: None, unknown_status_digest: None }
    }

    /// Records a state as sent. Returns false if the client has it already.
    fn advance(&mut self, state: &JobState, may_go_back: bool) -> bool {
        let is_other = state.rung != self.sent || self.unknown_status_digest.is_some();
        let is_next = state.rung > self.sent || (may_go_back && is_other);
        match state.rung {
            Some(_) if is_next => (self.sent, self.unknown_status_digest) = (state.rung, None),
            Some(_) => return false,
            None => {
                let digest = Some(blake3::hash(&state.body));
                if self.unknown_status_digest == digest {
                    return false;
                }
                self.unknown_status_digest = digest;
            }
        }
        self.sent_as_of = Some(state.as_of);
        true
    }

    /// Returns the time until the next wait. `pace` is that of the route.
    fn pause(&self, pace: Duration) -> Duration {
        if self.unknown_status_digest.is_some() { UNKNOWN_STATUS_PAUSE.max(pace) } else { Duration::ZERO }
    }
}

/// The log line of the stream's end. Dropping it writes the line.
struct StreamLog {
    id: RequestId,
    arrived: Instant,
    events: usize,
    /// `None`: the client disconnected.
    end: Option<&'static str>,
}

impl StreamLog {
    fn new(request: &StreamRequest) -> Self {
        Self { id: request.id.clone(), arrived: request.arrived, events: 0, end: None }
    }
}

impl Drop for StreamLog {
    fn drop(&mut self) {
        info!(
            http.server.request.duration = clock::now().saturating_duration_since(self.arrived).as_secs_f64(),
            clipgate.reason = self.end.unwrap_or("client_closed"),
            clipgate.events = self.events,
            clipgate.request_id = self.id.as_str(),
            "event stream ended"
        );
    }
}
