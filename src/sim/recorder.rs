//! What came in and how it ended: the record that tests ask.
//!
//! A request holds a [`Ticket`], a poll that is held also a [`Held`]; dropped, they say so here.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, Method, StatusCode, Version};

use super::Sim;
use super::faults::Fault;
use super::keys::RecordedKey;
use crate::clock;

/// A request that reached the simulated upstream. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RecordedRequest {
    /// Its method.
    pub method: Method,
    /// Its path and query as they came.
    pub target: Arc<str>,
    /// The protocol it came in.
    pub version: Version,
    /// Its header fields, but `authorization`: that is `key`.
    pub headers: Arc<HeaderMap>,
    /// The key it came with, if it was a Bearer one.
    pub key: Option<RecordedKey>,
    /// When its head was read.
    pub at: Instant,
    /// How it ended.
    pub end: RequestEnd,
    /// When that was.
    pub ended_at: Option<Instant>,
}

impl RecordedRequest {
    /// The path of the target.
    pub fn path(&self) -> &str {
        self.target.split_once('?').map_or(&*self.target, |(path, _)| path)
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestEnd {
    /// It has not yet.
    Open,
    /// With an answer; one that streams has been taken whole.
    Answered(StatusCode),
    /// Its client hung up, or the upstream was stopped.
    Abandoned,
    /// A fault ended it without a whole answer.
    Broken,
}

/// A request that a fault was ordered for. Cheap to clone.
#[derive(Clone, Debug)]
pub struct FaultRecord {
    /// The request's path and query as they came.
    pub target: Arc<str>,
    /// The key it came with, if it was a Bearer one.
    pub key: Option<RecordedKey>,
    /// When its head was read.
    pub at: Instant,
    /// The fault.
    pub fault: Fault,
    /// When the request ended; `None`: it has not yet.
    pub ended_at: Option<Instant>,
    number: u64,
}

/// What can be seen of the simulated upstream at one moment.
#[derive(Clone, Debug)]
pub struct Observation {
    /// The requests that are remembered, the oldest first.
    pub requests: Vec<RecordedRequest>,
    /// The long-polls that are held.
    pub open: usize,
    /// The connections that stand.
    pub connections: usize,
    /// The connections that were ever accepted.
    pub accepted: u64,
}

impl Observation {
    /// How many requests for this path are remembered.
    pub fn count(&self, path: &str) -> usize {
        self.requests.iter().filter(|seen| seen.path() == path).count()
    }

    /// How many requests were abandoned.
    pub fn abandoned(&self) -> usize {
        self.requests.iter().filter(|seen| seen.end == RequestEnd::Abandoned).count()
    }
}

pub(super) struct RequestRecorder {
    requests: VecDeque<RecordedRequest>,
    /// The number of the first that is remembered.
    first: u64,
    keep: usize,
    /// As many as requests at most, by number. They outlast their requests, of which most have no fault.
    faults: VecDeque<FaultRecord>,
    open: usize,
    connections: usize,
    accepted: u64,
}

impl RequestRecorder {
    pub(super) fn new(keep: usize) -> Self {
        Self {
            requests: VecDeque::new(),
            first: 0,
            keep,
            faults: VecDeque::new(),
            open: 0,
            connections: 0,
            accepted: 0,
        }
    }

    /// The faults that are remembered, the newest first.
    pub(super) fn faults(&self) -> impl Iterator<Item = &FaultRecord> {
        self.faults.iter().rev()
    }

    pub(super) fn open(&self) -> usize {
        self.open
    }

    pub(super) fn observed(&self) -> Observation {
        Observation {
            requests: self.requests.iter().cloned().collect(),
            open: self.open,
            connections: self.connections,
            accepted: self.accepted,
        }
    }

    /// Writes the request down and gives it its number.
    fn enter(&mut self, seen: RecordedRequest) -> u64 {
        let number = self.first + self.requests.len() as u64;
        self.requests.push_back(seen);
        if self.requests.len() > self.keep {
            self.requests.pop_front();
            self.first += 1;
        }
        number
    }

    fn struck(&mut self, record: FaultRecord) {
        // Two requests may be given their numbers in one order and their faults in the other.
        let place = self.faults.partition_point(|known| known.number < record.number);
        self.faults.insert(place, record);
        if self.faults.len() > self.keep {
            self.faults.pop_front();
        }
    }

    fn end(&mut self, number: u64, end: RequestEnd) {
        if let Ok(place) = self.faults.binary_search_by_key(&number, |record| record.number) {
            self.faults[place].ended_at = Some(clock::now());
        }
        let at = number.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        if let Some(seen) = at.and_then(|at| self.requests.get_mut(at)) {
            seen.end = end;
            seen.ended_at = Some(clock::now());
        }
    }
}

/// One request's line in the journal. Dropped before it was told an end, the client has hung up.
pub(super) struct RequestGuard {
    sim: Sim,
    number: u64,
    end: RequestEnd,
}

impl RequestGuard {
    pub(super) fn new(sim: &Sim, seen: RecordedRequest) -> Self {
        let number = sim.0.state.lock().recorder.enter(seen);
        sim.changed();
        Self { sim: sim.clone(), number, end: RequestEnd::Abandoned }
    }

    /// The request's number, the first is 0.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// A fault was ordered for the request.
    pub(super) fn fault_injected(&self, seen: &RecordedRequest, fault: &Fault) {
        let RecordedRequest { target, key, at, .. } = seen;
        self.sim.0.state.lock().recorder.struck(FaultRecord {
            target: Arc::clone(target),
            key: *key,
            at: *at,
            fault: fault.clone(),
            ended_at: None,
            number: self.number,
        });
    }

    pub(super) fn answered(mut self, status: StatusCode) {
        self.end = RequestEnd::Answered(status);
    }

    pub(super) fn broken(mut self) {
        self.end = RequestEnd::Broken;
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.sim.0.state.lock().recorder.end(self.number, self.end);
        self.sim.changed();
    }
}

/// A poll that is held.
pub(super) struct HoldGuard(Sim);

impl HoldGuard {
    pub(super) fn new(sim: &Sim) -> Self {
        sim.0.state.lock().recorder.open += 1;
        sim.changed();
        Self(sim.clone())
    }
}

impl Drop for HoldGuard {
    fn drop(&mut self) {
        self.0.0.state.lock().recorder.open -= 1;
        self.0.changed();
    }
}

/// A connection that stands.
pub(super) struct ConnectionGuard(Sim);

impl ConnectionGuard {
    pub(super) fn new(sim: &Sim) -> Self {
        {
            let journal = &mut sim.0.state.lock().recorder;
            journal.connections += 1;
            journal.accepted += 1;
        }
        sim.changed();
        Self(sim.clone())
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.0.state.lock().recorder.connections -= 1;
        self.0.changed();
    }
}
