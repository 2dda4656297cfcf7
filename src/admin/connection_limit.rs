//! Limit of the admin listener's connections. A new connection always gets a slot, so health checks are answered
//! even while other clients hold all connections.
//!
//! At the limit the new connection evicts another one, by this order:
//!
//! | evicted | token shown | state | among equals |
//! | --- | --- | --- | --- |
//! | first | never | idle | the one with the oldest last request |
//! | | never | busy | |
//! | | yes | idle | |
//! | last | yes | busy | |

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::protocol::body::{Body, BoxError};

#[derive(Debug)]
pub(super) struct AdminConnectionLimit {
    limit: usize,
    open: Mutex<HashMap<u64, Arc<LimitedConnection>>>,
    next_id: AtomicU64,
}

/// A connection that has a slot.
#[derive(Debug)]
pub(super) struct LimitedConnection {
    id: u64,
    has_shown_token: AtomicBool,
    is_busy: AtomicBool,
    /// Start of the last request, or of the connection.
    active_at: Mutex<Instant>,
    evicted: CancellationToken,
}

/// Slot of a connection; its drop frees the slot.
#[derive(Debug)]
pub(super) struct AdminConnectionPermit {
    pub(super) connection: Arc<LimitedConnection>,
    limit: Arc<AdminConnectionLimit>,
}

impl AdminConnectionLimit {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, open: Mutex::default(), next_id: AtomicU64::new(0) }
    }

    /// Returns a slot. At the limit, evicts another connection.
    pub(super) fn acquire(self: &Arc<Self>) -> AdminConnectionPermit {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let connection = Arc::new(LimitedConnection {
            id,
            has_shown_token: AtomicBool::new(false),
            is_busy: AtomicBool::new(false),
            active_at: Mutex::new(clock::now()),
            evicted: CancellationToken::new(),
        });
        let mut open = self.open.lock();
        if open.len() >= self.limit {
            evict_first(&mut open);
        }
        open.insert(id, Arc::clone(&connection));
        AdminConnectionPermit { connection, limit: Arc::clone(self) }
    }

    /// Evicts a connection, to free a descriptor.
    pub(super) fn evict_one(&self) {
        evict_first(&mut self.open.lock());
    }
}

fn evict_first(open: &mut HashMap<u64, Arc<LimitedConnection>>) {
    if let Some(first) = open.values().min_by_key(|connection| connection.rank()) {
        first.evicted.cancel();
        let first = first.id;
        open.remove(&first);
    }
}

impl Drop for AdminConnectionPermit {
    fn drop(&mut self) {
        self.limit.open.lock().remove(&self.connection.id);
    }
}

impl LimitedConnection {
    /// Marks the connection as busy until the returned guard is dropped.
    pub(super) fn begin_request(self: &Arc<Self>, has_token: bool) -> ActiveRequest {
        self.has_shown_token.fetch_or(has_token, Ordering::Relaxed);
        self.is_busy.store(true, Ordering::Relaxed);
        *self.active_at.lock() = clock::now();
        ActiveRequest(Arc::clone(self))
    }

    /// Returns the token that an eviction cancels.
    pub(super) fn evicted(&self) -> &CancellationToken {
        &self.evicted
    }

    /// Returns the sort key of evictions, the lowest first.
    fn rank(&self) -> (bool, bool, Instant) {
        let has_shown_token = self.has_shown_token.load(Ordering::Relaxed);
        (has_shown_token, self.is_busy.load(Ordering::Relaxed), *self.active_at.lock())
    }
}

/// Guard of a request whose response is not sent completely.
#[derive(Debug)]
pub(super) struct ActiveRequest(Arc<LimitedConnection>);

impl ActiveRequest {
    /// Keeps the request active until the body is dropped.
    pub(super) fn track(self, body: Body) -> ActiveBody {
        ActiveBody { body, _request: self }
    }
}

/// Response body that keeps its request active.
#[derive(Debug)]
pub(super) struct ActiveBody {
    body: Body,
    _request: ActiveRequest,
}

impl HttpBody for ActiveBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.is_busy.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the ids of the evicted connections.
    fn evicted(permits: &[AdminConnectionPermit]) -> Vec<u64> {
        let evicted = permits.iter().filter(|permit| permit.connection.evicted().is_cancelled());
        evicted.map(|permit| permit.connection.id).collect()
    }

    #[test]
    fn idle_connections_and_those_without_the_token_are_evicted_first() {
        let limit = Arc::new(AdminConnectionLimit::new(4));
        let mut permits: Vec<_> = (0..4).map(|_| limit.acquire()).collect();
        drop(permits[0].connection.begin_request(true));
        let _with_token = permits[1].connection.begin_request(true);
        let _without = permits[2].connection.begin_request(false);
        drop(permits[3].connection.begin_request(false));
        for expected in [&[3][..], &[3, 4], &[3, 4, 5]] {
            permits.push(limit.acquire());
            assert_eq!(evicted(&permits), expected);
        }
        let _all_busy = permits[6].connection.begin_request(true);
        permits.push(limit.acquire());
        assert_eq!(evicted(&permits), [2, 3, 4, 5]);
        let _busy_too = permits[7].connection.begin_request(true);
        permits.push(limit.acquire());
        assert_eq!(evicted(&permits), [0, 2, 3, 4, 5]);
        drop(permits);
        assert!(limit.open.lock().is_empty());
    }
}
