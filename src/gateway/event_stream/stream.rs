//! One client's stream: what it has been told of each job, and the waits that will tell it more.
//!
//! A job waits for the rung after the one told, then for the next, until it is where the client wants it. When each
//! is, the stream is done; when the client's time is over before, or the gateway stops, it just ends: the client
//! connects anew, says what it was told last, and goes on.

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
use crate::core::job::{JobId, JobSet, JobState, Reply};
use crate::core::route::{Form, Goal, Rung};
use crate::gateway::error::GatewayError;
use crate::hub::{HubError, WaitRequest};
use crate::limits::Subject;
use crate::protocol::request::RequestId;
use crate::protocol::sse::{self, SseEvent};

/// How long a stream is silent at most (contract, section 7).
const HEARTBEAT: Duration = Duration::from_secs(15);

/// The pause before a job on no ladder is asked for again: that is answered at once, whatever is asked for.
const STRAY_PAUSE: Duration = Duration::from_secs(2);

/// The pause before a client connects anew that the upstream has no time for, where it does not say how long.
const BUSY_PAUSE: Duration = Duration::from_secs(10);

/// A wait under way, with the jobs that it is for.
type Asked = Pin<Box<dyn Future<Output = (JobSet, Result<WaitResult, HubError>)> + Send>>;

pub(super) struct JobStream {
    streams: EventStreams,
    ask: StreamRequest,
    goal: Rung,
    marks: PositionCodec,
    until: Instant,
    /// In the order asked for.
    jobs: Vec<Job>,
    /// One for each job at most.
    asked: FuturesUnordered<Asked>,
    /// What the client has not read: an event for each job and one for the end, at most.
    unread: VecDeque<Bytes>,
    log: Log,
}

struct Job {
    id: JobId,
    /// The highest rung told.
    told: Option<Rung>,
    /// The digest of the state told since then that is on no ladder.
    unknown_status_digest: Option<blake3::Hash>,
}

/// What a stream begins with.
pub(super) enum StreamStart {
    /// Waits are parked.
    Asking,
    /// All that it will tell was kept, for so much longer.
    Kept { ttl: Duration },
    /// All was told before.
    ToldBefore,
}

impl JobStream {
    /// A stream to a client that has been told these rungs, in the order asked for.
    pub(super) fn new(
        streams: EventStreams,
        ask: StreamRequest,
        goal: Rung,
        marks: PositionCodec,
        told: Vec<Option<Rung>>,
    ) -> Self {
        let jobs = ask.asked.asked.iter().cloned().zip(told);
        Self {
            jobs: jobs.map(|(id, told)| Job { id, told, unknown_status_digest: None }).collect(),
            until: ask.arrived + ask.wish.timeout,
            asked: FuturesUnordered::new(),
            unread: VecDeque::from([sse::OPENING]),
            log: Log::new(&ask),
            streams,
            ask,
            goal,
            marks,
        }
    }

    /// Takes what is kept, and parks the first waits.
    pub(super) async fn begin(&mut self) -> Result<StreamStart, GatewayError> {
        let kept = self.tell_what_is_kept()?;
        self.end_if_done();
        if self.ask.wish.only_if_cached {
            self.log.end.get_or_insert("only-kept");
        }
        if self.log.end.is_some() {
            return Ok(kept.map_or(StreamStart::ToldBefore, |ttl| StreamStart::Kept { ttl }));
        }
        for wait in self.first_waits() {
            let jobs = wait.jobs.clone();
            let parked = self.streams.hub.park(wait).await?;
            self.asked.push(Box::pin(async move { (jobs, parked.await) }));
        }
        Ok(StreamStart::Asking)
    }

    /// Tells what is kept; for how long all of it will be yet.
    fn tell_what_is_kept(&mut self) -> Result<Option<Duration>, GatewayError> {
        let (domain, now) = (self.ask.identity.domain, clock::now());
        let open: Vec<JobId> = self.open_jobs().map(|job| job.id.clone()).collect();
        let mut least = None;
        for id in open {
            let max_age = self.ask.wish.max_age;
            match max_age.and_then(|max_age| self.streams.cache.get_within(domain, &id, max_age, now)) {
                Some(hit) => {
                    least = Some(least.map_or(hit.ttl, |least: Duration| least.min(hit.ttl)));
                    self.tell(&hit.kept.state);
                }
                None if self.ask.wish.only_if_cached => return Err(GatewayError::NotCached),
                None => {}
            }
        }
        Ok(least)
    }

    /// One for all jobs of which nothing is told, and one for each of the others.
    fn first_waits(&self) -> Vec<WaitRequest> {
        let (new, others): (Vec<&Job>, Vec<&Job>) = self.open_jobs().partition(|job| job.told.is_none());
        let mut waits: Vec<WaitRequest> = others.into_iter().map(|job| self.next_wait(job)).collect();
        if !new.is_empty() {
            let jobs = JobSet::new(new.into_iter().map(|job| job.id.clone()));
            waits.push(self.wait(jobs, self.lowest()));
        }
        waits
    }

    /// The events, as the client reads them.
    pub(super) fn into_body(self) -> impl HttpBody<Data = Bytes, Error = Infallible> + Send + use<> {
        StreamBody::new(stream::unfold(self, |mut climb| async {
            let bytes = climb.next().await?;
            Some((Ok(Frame::data(bytes)), climb))
        }))
    }

    /// What the client is sent next; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        let mut heartbeat = pin!(tokio::time::sleep(HEARTBEAT));
        loop {
            if let Some(bytes) = self.unread.pop_front() {
                return Some(bytes);
            }
            tokio::select! {
                // Cancel safe: a wait that is not taken stays in the set.
                settled = self.asked.next() => match settled {
                    Some((jobs, settled)) => self.settled(&jobs, settled),
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
    fn settled(&mut self, jobs: &JobSet, settled: Result<WaitResult, HubError>) {
        match settled.map(|settled| settled.end) {
            Ok(WaitOutcome::Reached(states)) => {
                self.tell_all(&states);
                self.go_on(jobs);
            }
            // The wait's time is all that the stream has; or the gateway stops.
            Ok(WaitOutcome::TimedOut(states)) => self.tell_all(&states),
            // One by one they can be told apart.
            Ok(WaitOutcome::Unsplit(_)) if jobs.len() > 1 => self.go_on(jobs),
            Ok(WaitOutcome::Unsplit(_)) => {
                self.fail(&GatewayError::Poll(Failure::InvalidResponse(None)), Reconnect::Nothing)
            }
            Ok(WaitOutcome::Refused(reply)) if reply.status == StatusCode::TOO_MANY_REQUESTS => {
                self.fail_as_written(reply, Reconnect::After(Some(BUSY_PAUSE)));
            }
            Ok(WaitOutcome::Refused(reply)) => self.fail_as_written(reply, Reconnect::Nothing),
            Ok(WaitOutcome::Failed(Failure::UpstreamError(reply))) => {
                self.fail_as_written(reply, Reconnect::After(None))
            }
            Ok(WaitOutcome::Failed(failure)) => self.fail_for_now(&GatewayError::Poll(failure)),
            Err(error) => self.fail_for_now(&error.into()),
        }
        self.end_if_done();
    }

    fn tell_all(&mut self, states: &[JobState]) {
        for at in 0..self.jobs.len() {
            if let Some(state) = states.iter().find(|state| state.id == self.jobs[at].id) {
                self.tell(state);
            }
        }
    }

    /// Tells a state, if it is news.
    fn tell(&mut self, state: &JobState) {
        let Some(job) = self.jobs.iter_mut().find(|job| job.id == state.id) else { return };
        if !job.take(state) {
            return;
        }
        let told = Position::Told(self.jobs.iter().map(|job| job.told).collect());
        let id = self.marks.write(&told);
        self.unread.push_back(SseEvent::new("status", &state.body).with_id(&id).to_bytes());
        self.log.told += 1;
    }

    /// Asks on for each of these jobs that is not where it is wanted, while there is time.
    fn go_on(&mut self, jobs: &JobSet) {
        let now = clock::now();
        let next: Vec<(WaitRequest, Duration)> = self
            .open_jobs()
            .filter(|job| jobs.contains(&job.id))
            .map(|job| (self.next_wait(job), job.pause()))
            .filter(|(_, pause)| now + *pause < self.until)
            .collect();
        for (wait, pause) in next {
            let jobs = wait.jobs.clone();
            if !pause.is_zero() {
                let (hub, timeout) = (self.streams.hub.clone(), wait.timeout.saturating_sub(pause));
                let later = WaitRequest { arrived: now + pause, timeout, ..wait };
                self.asked.push(Box::pin(async move {
                    tokio::time::sleep(pause).await;
                    (jobs, hub.wait(later).await)
                }));
                continue;
            }
            match self.streams.hub.join(wait) {
                Ok(parked) => self.asked.push(Box::pin(async move { (jobs, parked.await) })),
                Err(error) => return self.fail_for_now(&error.into()),
            }
        }
    }

    fn next_wait(&self, job: &Job) -> WaitRequest {
        let ladder = &self.streams.route.ladder;
        let rung = job.told.map_or(self.lowest(), |told| ladder.next(told).unwrap_or(told).min(self.goal));
        self.wait(JobSet::new([job.id.clone()]), rung)
    }

    /// A wait as a client's that asks now, and has as long as the stream has.
    fn wait(&self, jobs: JobSet, rung: Rung) -> WaitRequest {
        let now = clock::now();
        WaitRequest {
            identity: self.ask.identity.clone(),
            who: self.quota_subject(),
            form: if jobs.len() == 1 { Form::Single } else { Form::Multi },
            jobs,
            goal: Goal::Rung(rung),
            arrived: now,
            timeout: self.until.saturating_duration_since(now),
            // Who wants nothing that is kept takes what has been seen since it asked.
            max_age: self.ask.wish.max_age.or(Some(now.saturating_duration_since(self.ask.arrived))),
            keep: self.ask.wish.keep,
            is_patient: true,
            links: self.ask.links.clone(),
        }
    }

    /// By its address until the upstream has accepted the key, which the stream's own first wait may bring about.
    fn quota_subject(&self) -> Subject {
        let domain = self.ask.identity.domain;
        match self.ask.subject {
            Subject::Address(_) if self.streams.cache.is_key_proven(domain) => Subject::Key(domain),
            who @ (Subject::Key(_) | Subject::Member(_) | Subject::Address(_)) => who,
        }
    }

    fn lowest(&self) -> Rung {
        self.streams.route.ladder.lowest()
    }

    /// The jobs that are not where they are wanted.
    fn open_jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.iter().filter(|job| job.told < Some(self.goal))
    }

    fn end_if_done(&mut self) {
        if self.log.end.is_none() && self.open_jobs().next().is_none() {
            let id = self.marks.write(&Position::Over);
            self.end(SseEvent::new("done", b"{}").with_id(&id), "done");
        }
    }

    fn fail_for_now(&mut self, refusal: &GatewayError) {
        self.fail(refusal, Reconnect::After(refusal.retry_after()));
    }

    fn fail(&mut self, refusal: &GatewayError, next: Reconnect) {
        let route = &self.streams.route;
        let path = match self.ask.asked.form {
            Form::Single => &route.single_path,
            Form::Multi => &route.multi_path,
        };
        let body = refusal.answer_bytes(&self.ask.id, path).into_body();
        self.end_with_error(&body, next, refusal.reason());
    }

    /// With the upstream's own error, if that is JSON, so that a client can read the data of every event alike.
    fn fail_as_written(&mut self, reply: Arc<Reply>, next: Reconnect) {
        if serde_json::from_slice::<IgnoredAny>(&reply.body).is_ok() {
            self.end_with_error(&reply.body, next, "upstream_rejected");
        } else {
            self.fail(&GatewayError::Poll(Failure::UpstreamError(reply)), next);
        }
    }

    fn end_with_error(&mut self, data: &[u8], next: Reconnect, reason: &'static str) {
        let event = SseEvent::new("error", data);
        match next {
            Reconnect::Nothing => {
                let id = self.marks.write(&Position::Over);
                self.end(event.with_id(&id), reason);
            }
            Reconnect::After(Some(pause)) => self.end(event.with_retry(pause.max(sse::RETRY)), reason),
            Reconnect::After(None) => self.end(event, reason),
        }
    }

    fn end(&mut self, event: SseEvent<'_>, reason: &'static str) {
        self.asked.clear();
        self.unread.push_back(event.to_bytes());
        self.log.end = Some(reason);
    }
}

/// What comes after an error.
enum Reconnect {
    /// Nothing: a client that connects anew is told so.
    Nothing,
    /// Another try, after this pause or the usual one.
    After(Option<Duration>),
}

impl Job {
    /// Takes a state as told, unless the client knows as much.
    fn take(&mut self, state: &JobState) -> bool {
        match state.rung {
            Some(_) if state.rung > self.told => (self.told, self.unknown_status_digest) = (state.rung, None),
            Some(_) => return false,
            None => {
                let digest = Some(blake3::hash(&state.body));
                if self.unknown_status_digest == digest {
                    return false;
                }
                self.unknown_status_digest = digest;
            }
        }
        true
    }

    fn pause(&self) -> Duration {
        if self.unknown_status_digest.is_some() { STRAY_PAUSE } else { Duration::ZERO }
    }
}

/// The line in the log that tells how a stream ended. Dropping it writes it.
struct Log {
    id: RequestId,
    since: Instant,
    told: usize,
    /// `None`: the client hung up.
    end: Option<&'static str>,
}

impl Log {
    fn new(ask: &StreamRequest) -> Self {
        Self { id: ask.id.clone(), since: ask.arrived, told: 0, end: None }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        info!(
            reason = self.end.unwrap_or("client_closed"),
            states = self.told,
            seconds = clock::now().saturating_duration_since(self.since).as_secs_f64(),
            request_id = %self.id,
            "stream ended"
        );
    }
}
