//! The clients: a closed loop. The next request of a client depends on the answer that it got.
//!
//! ```text
//!              Ask, Drop
//!   Clients ────────────▶ direct, gateway
//!           ◀────────────
//!              answer
//! ```
//!
//! [`Clients`] also keeps the record: each answer is compared with the true lives of the jobs, and its time with that of
//! the upstream.

use std::collections::BTreeMap;
use std::time::Duration;

use super::day::{COMPLETED, Day, RungNumber, STREAMING, SUBMITTED, Visit};
use super::events::EventQueue;
use super::mix::{Habit, UpstreamMix};

/// Indices of jobs of a day.
pub(crate) type JobsAsked<'a> = &'a [usize];

/// Number of a request, in order of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RequestId(pub(crate) u64);

/// A request of a client.
#[derive(Clone, Debug)]
pub(crate) struct ClientRequest {
    pub(crate) key: usize,
    pub(crate) jobs: Vec<usize>,
    /// Status to wait for; `None` for a plain GET.
    pub(crate) rung: Option<RungNumber>,
    /// End of the event stream to which the request belongs.
    pub(crate) stream_ends: Option<Duration>,
    asked_at: Duration,
    client: usize,
}

/// Action of a client.
#[derive(Debug)]
pub(crate) enum Action {
    Ask(RequestId, ClientRequest),
    /// The client closed the connection of this request.
    Drop(RequestId),
}

/// All clients of a day.
#[derive(Debug)]
pub(crate) struct Clients<'a> {
    day: &'a Day,
    mix: &'a UpstreamMix,
    clients: Vec<Client<'a>>,
    events: EventQueue<ClientEvent>,
    open: BTreeMap<RequestId, ClientRequest>,
    next_id: u64,
    pub(crate) record: Record,
}

/// The answers of a day, compared with the truth.
#[derive(Debug, Default)]
pub(crate) struct Record {
    pub(crate) requests: u64,
    /// Requests without a status.
    pub(crate) plain: u64,
    /// Greatest delay of an answer, compared with the upstream's own at its shortest latency.
    pub(crate) latest: Duration,
    /// Greatest age of a status: time from the end of that status until the answer.
    pub(crate) oldest_status: Duration,
    /// Statuses that were not true yet.
    pub(crate) false_statuses: u64,
    /// Last status of each job that each client saw; `None` for a client that left.
    pub(crate) results: Vec<Option<Vec<RungNumber>>>,
}

#[derive(Debug)]
enum ClientEvent {
    Ask(usize),
    /// The client drops this request, if it is still open, and asks again.
    Reload(RequestId),
    Leave(usize),
}

/// One client: its visit, and the statuses that it has seen.
#[derive(Debug)]
struct Client<'a> {
    visit: &'a Visit,
    seen: BTreeMap<usize, RungNumber>,
    open: Option<RequestId>,
    has_left: bool,
    reloads: u32,
    stream_ends: Option<Duration>,
    rng: fastrand::Rng,
}

impl<'a> Client<'a> {
    fn new(visit: &'a Visit) -> Self {
        Self {
            visit,
            seen: BTreeMap::new(),
            open: None,
            has_left: false,
            reloads: 0,
            stream_ends: None,
            rng: fastrand::Rng::with_seed(visit.seed),
        }
    }

    fn is_done(&self) -> bool {
        self.unfinished().next().is_none()
    }

    fn unfinished(&self) -> impl Iterator<Item = usize> {
        let is_finished = |job: &usize| self.seen.get(job).is_some_and(|&rung| rung >= COMPLETED);
        self.visit.jobs.iter().copied().filter(move |job| !is_finished(job))
    }

    /// Returns the status for which the client asks next.
    fn rung(&self) -> Option<RungNumber> {
        let seen = self.visit.jobs.first().and_then(|job| self.seen.get(job));
        match self.visit.habit {
            Habit::Poll(_) => None,
            Habit::LongPoll | Habit::Batch(_) | Habit::Reload(_) => Some(COMPLETED),
            Habit::Stages if seen.is_some_and(|&rung| rung >= STREAMING) => Some(COMPLETED),
            Habit::Stages => Some(STREAMING),
            Habit::Events => Some(seen.map_or(SUBMITTED, |&rung| (rung + 1).min(COMPLETED))),
        }
    }

    /// Returns the pause between an answer and the next request.
    fn pause(&self) -> Duration {
        match self.visit.habit {
            Habit::Poll(every) => every.0,
            _ => Duration::ZERO,
        }
    }

    fn request(&mut self, client: usize, now: Duration) -> ClientRequest {
        if self.visit.habit == Habit::Events && self.stream_ends.is_none_or(|ends| ends <= now) {
            self.stream_ends = Some(now + STREAM_LENGTH);
        }
        ClientRequest {
            key: self.visit.key,
            jobs: self.unfinished().collect(),
            rung: self.rung(),
            stream_ends: self.stream_ends,
            asked_at: now,
            client,
        }
    }

    /// Returns the time after which the client drops its request, if it is one of those that reload.
    fn reloads_after(&mut self) -> Option<Duration> {
        let Habit::Reload(range) = self.visit.habit else { return None };
        self.reloads += 1;
        (self.reloads <= MAX_RELOADS).then(|| range.draw_uniform(&mut self.rng))
    }
}

impl<'a> Clients<'a> {
    pub(crate) fn new(day: &'a Day, mix: &'a UpstreamMix) -> Self {
        let mut events = EventQueue::new();
        for (client, visit) in day.visits.iter().enumerate() {
            events.add(visit.arrives, ClientEvent::Ask(client));
            if let Some(at) = visit.leaves {
                events.add(at, ClientEvent::Leave(client));
            }
        }
        let clients = day.visits.iter().map(Client::new).collect();
        Self { day, mix, clients, events, open: BTreeMap::new(), next_id: 0, record: Record::default() }
    }

    /// Returns the time of the next event.
    pub(crate) fn next_at(&self) -> Option<Duration> {
        self.events.next_at()
    }

    /// Handles the next event. Returns its time, and the action of the client.
    pub(crate) fn handle_event(&mut self) -> Option<(Duration, Option<Action>)> {
        let (now, event) = self.events.pop()?;
        let action = match event {
            ClientEvent::Ask(client) => (!self.clients[client].has_left).then(|| self.ask(client, now)),
            ClientEvent::Reload(id) => self.open.remove(&id).map(|request| {
                self.events.add(now, ClientEvent::Ask(request.client));
                Action::Drop(id)
            }),
            ClientEvent::Leave(client) => {
                let client = &mut self.clients[client];
                client.has_left = !client.is_done();
                client
                    .open
                    .filter(|_| client.has_left)
                    .and_then(|id| self.open.remove(&id).map(|_| Action::Drop(id)))
            }
        };
        Some((now, action))
    }

    fn ask(&mut self, client: usize, now: Duration) -> Action {
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let request = self.clients[client].request(client, now);
        self.clients[client].open = Some(id);
        if let Some(after) = self.clients[client].reloads_after() {
            self.events.add(now + after, ClientEvent::Reload(id));
        }
        self.record.requests += 1;
        self.record.plain += u64::from(request.rung.is_none());
        self.open.insert(id, request.clone());
        Action::Ask(id, request)
    }

    /// Gives a client the answer to a request: the status of each job. A dropped request is ignored.
    pub(crate) fn answer(&mut self, id: RequestId, states: &[(usize, RungNumber)], now: Duration) {
        let Some(request) = self.open.remove(&id) else { return };
        self.check(&request, states, now);
        let client = &mut self.clients[request.client];
        client.open = None;
        client.seen.extend(states.iter().copied());
        if !client.is_done() {
            self.events.add(now + client.pause(), ClientEvent::Ask(request.client));
        }
    }

    /// Compares an answer with the truth.
    fn check(&mut self, request: &ClientRequest, states: &[(usize, RungNumber)], now: Duration) {
        let record = &mut self.record;
        record.latest = record.latest.max(now.saturating_sub(alone_at(self.day, self.mix, request)));
        assert!(
            request.jobs.iter().all(|job| states.iter().any(|state| state.0 == *job)),
            "a job is missing"
        );
        for &(job, rung) in states {
            match self.day.jobs[job].since_at(rung, now) {
                Some(age) => record.oldest_status = record.oldest_status.max(age),
                None => record.false_statuses += 1,
            }
        }
    }

    /// Ends the day and returns its record.
    pub(crate) fn into_record(mut self) -> Record {
        assert!(self.open.is_empty(), "{} requests have no answer", self.open.len());
        self.record.results =
            self.clients.iter().map(|c| (!c.has_left).then(|| c.seen.values().copied().collect())).collect();
        self.record
    }
}

/// Returns the earliest time at which the upstream itself would have answered.
fn alone_at(day: &Day, mix: &UpstreamMix, request: &ClientRequest) -> Duration {
    let half = mix.latency.min / 2;
    let arrives = request.asked_at + half;
    let Some(rung) = request.rung else { return arrives + half };
    let reached = request.jobs.iter().map(|&job| day.jobs[job].reaches_at(rung)).max().unwrap_or(arrives);
    let ends = request.stream_ends.unwrap_or(request.asked_at + mix.hold.0) + half;
    reached.min(ends).max(arrives) + half
}

/// `wait.max_timeout`: the length of an event stream.
const STREAM_LENGTH: Duration = Duration::from_secs(600);

/// Most reloads of one client.
const MAX_RELOADS: u32 = 3;
