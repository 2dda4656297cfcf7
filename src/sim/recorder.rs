//! Record of the requests that the simulated upstream has received, and of how each ended. Tests read it.
//!
//! Guards own the entries: a [`RequestGuard`] for each request, a [`HoldGuard`] for each held poll and a
//! [`ConnectionGuard`] for each connection. Dropping a guard records the end. The recorder has a lock of its own, so
//! that a guard needs no other state.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, Method, StatusCode, Version};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::faults::Fault;
use super::keys::RecordedKey;
use crate::clock;

/// A request that reached the simulated upstream. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RecordedRequest {
    /// Method of the request.
    pub method: Method,
    /// Path and query as received.
    pub target: Arc<str>,
    /// HTTP version of the request.
    pub version: Version,
    /// Header fields without that of the key; see `key`.
    pub headers: Arc<HeaderMap>,
    /// The key of the request.
    pub key: Option<RecordedKey>,
    /// When the head was read.
    pub at: Instant,
    /// The end of the request.
    pub end: RequestEnd,
    /// When the request ended.
    pub ended_at: Option<Instant>,
}

impl RecordedRequest {
    /// Returns the path of the target.
    pub fn path(&self) -> &str {
        self.target.split_once('?').map_or(&*self.target, |(path, _)| path)
    }
}

/// The end of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestEnd {
    /// The request has not ended.
    Open,
    /// A response was sent. A streamed body was taken to its end.
    Answered(StatusCode),
    /// The client disconnected, or the upstream was stopped.
    Abandoned,
    /// A fault ended the request without a complete response.
    Broken,
}

/// A fault that was injected into a request. Cheap to clone.
#[derive(Clone, Debug)]
pub struct FaultRecord {
    /// Path and query of the request as received.
    pub target: Arc<str>,
    /// The Bearer key of the request.
    pub key: Option<RecordedKey>,
    /// When the head of the request was read.
    pub at: Instant,
    /// The injected fault.
    pub fault: Fault,
    /// When the request ended. `None`: it has not ended.
    pub ended_at: Option<Instant>,
    number: u64,
}

/// State of a simulated upstream at one moment.
#[derive(Clone, Debug)]
pub struct Observation {
    /// The recorded requests, the oldest first.
    pub requests: Vec<RecordedRequest>,
    /// Number of held long-polls and hanging requests.
    pub open: usize,
    /// Number of open connections.
    pub connections: usize,
    /// Number of connections accepted since the start.
    pub accepted: u64,
}

impl Observation {
    /// Returns the number of recorded requests for this path.
    pub fn count(&self, path: &str) -> usize {
        self.requests.iter().filter(|seen| seen.path() == path).count()
    }

    /// Returns the number of abandoned requests.
    pub fn abandoned(&self) -> usize {
        self.requests.iter().filter(|seen| seen.end == RequestEnd::Abandoned).count()
    }
}

pub(super) struct RequestRecorder {
    records: Mutex<Records>,
    /// Counts the changes of the record and of clips.
    changes: watch::Sender<u64>,
}

struct Records {
    requests: VecDeque<RecordedRequest>,
    /// Number of the first request in `requests`.
    first: u64,
    max_requests: usize,
    /// At most `max_requests`, sorted by request number. A fault outlives the record of its request, as few requests
    /// have one.
    faults: VecDeque<FaultRecord>,
    open: usize,
    connections: usize,
    accepted: u64,
}

impl RequestRecorder {
    pub(super) fn new(max_requests: usize) -> Self {
        let records = Records {
            requests: VecDeque::new(),
            first: 0,
            max_requests,
            faults: VecDeque::new(),
            open: 0,
            connections: 0,
            accepted: 0,
        };
        Self { records: Mutex::new(records), changes: watch::Sender::new(0) }
    }

    /// Returns the recorded faults that match, the newest first. `matches` runs under the recorder's lock.
    pub(super) fn faults(&self, matches: impl FnMut(&&FaultRecord) -> bool) -> Vec<FaultRecord> {
        self.records.lock().faults.iter().rev().filter(matches).cloned().collect()
    }

    pub(super) fn open(&self) -> usize {
        self.records.lock().open
    }

    pub(super) fn observe(&self) -> Observation {
        let records = self.records.lock();
        Observation {
            requests: records.requests.iter().cloned().collect(),
            open: records.open,
            connections: records.connections,
            accepted: records.accepted,
        }
    }

    /// Returns a receiver that sees each change of the record and each [`Self::notify`].
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(super) fn notify(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn update<T>(&self, change: impl FnOnce(&mut Records) -> T) -> T {
        let value = change(&mut self.records.lock());
        self.notify();
        value
    }
}

impl Records {
    /// Adds a request and returns its number.
    fn add(&mut self, request: RecordedRequest) -> u64 {
        let number = self.first + self.requests.len() as u64;
        self.requests.push_back(request);
        if self.requests.len() > self.max_requests {
            self.requests.pop_front();
            self.first += 1;
        }
        number
    }

    fn add_fault(&mut self, record: FaultRecord) {
        // Faults may be added in another order than their requests.
        let index = self.faults.partition_point(|known| known.number < record.number);
        self.faults.insert(index, record);
        if self.faults.len() > self.max_requests {
            self.faults.pop_front();
        }
    }

    fn end(&mut self, number: u64, end: RequestEnd) {
        if let Ok(index) = self.faults.binary_search_by_key(&number, |record| record.number) {
            self.faults[index].ended_at = Some(clock::now());
        }
        let index = number.checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
        if let Some(request) = index.and_then(|index| self.requests.get_mut(index)) {
            request.end = end;
            request.ended_at = Some(clock::now());
        }
    }
}

/// The record of one request. Dropping it without an end records that the client disconnected.
pub(super) struct RequestGuard {
    recorder: Arc<RequestRecorder>,
    number: u64,
    end: RequestEnd,
}

impl RequestGuard {
    pub(super) fn new(recorder: &Arc<RequestRecorder>, request: RecordedRequest) -> Self {
        let number = recorder.update(|records| records.add(request));
        Self { recorder: Arc::clone(recorder), number, end: RequestEnd::Abandoned }
    }

    /// Returns the number of the request. The first request has number 0.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Records a fault that is injected into the request.
    pub(super) fn fault_injected(&self, request: &RecordedRequest, fault: &Fault) {
        let RecordedRequest { target, key, at, .. } = request;
        self.recorder.records.lock().add_fault(FaultRecord {
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
        self.recorder.update(|records| records.end(self.number, self.end));
    }
}

/// Counts a held poll or a hanging request.
pub(super) struct HoldGuard(Arc<RequestRecorder>);

impl HoldGuard {
    pub(super) fn new(recorder: &Arc<RequestRecorder>) -> Self {
        recorder.update(|records| records.open += 1);
        Self(Arc::clone(recorder))
    }
}

impl Drop for HoldGuard {
    fn drop(&mut self) {
        self.0.update(|records| records.open -= 1);
    }
}

/// Counts an open connection.
pub(super) struct ConnectionGuard(Arc<RequestRecorder>);

impl ConnectionGuard {
    pub(super) fn new(recorder: &Arc<RequestRecorder>) -> Self {
        recorder.update(|records| {
            records.connections += 1;
            records.accepted += 1;
        });
        Self(Arc::clone(recorder))
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.update(|records| records.connections -= 1);
    }
}
