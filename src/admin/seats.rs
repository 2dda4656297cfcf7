//! Places for the operator's connections. There is always one for a newcomer: so a health check is answered whoever
//! else has connected, and does what.
//!
//! Where all are taken, somebody has to go. First those that have never shown the token, then those that have: of
//! these first the idle ones, then the busy ones, and of these the one whose last request is the longest ago.

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

/// The places.
#[derive(Debug)]
pub(super) struct Seats {
    limit: usize,
    taken: Mutex<HashMap<u64, Arc<Seated>>>,
    next_id: AtomicU64,
}

/// A connection that has a place.
#[derive(Debug)]
pub(super) struct Seated {
    id: u64,
    has_shown_token: AtomicBool,
    is_busy: AtomicBool,
    /// When its last request began, or the connection itself.
    since: Mutex<Instant>,
    leave: CancellationToken,
}

/// Gives the place back when it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) seated: Arc<Seated>,
    seats: Arc<Seats>,
}

impl Seats {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, taken: Mutex::default(), next_id: AtomicU64::new(0) }
    }

    /// Takes a place, from another where none is free.
    pub(super) fn take(self: &Arc<Self>) -> Seat {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let seated = Arc::new(Seated {
            id,
            has_shown_token: AtomicBool::new(false),
            is_busy: AtomicBool::new(false),
            since: Mutex::new(clock::now()),
            leave: CancellationToken::new(),
        });
        let mut taken = self.taken.lock();
        if taken.len() >= self.limit {
            make_room(&mut taken);
        }
        taken.insert(id, Arc::clone(&seated));
        Seat { seated, seats: Arc::clone(self) }
    }

    /// Takes a place from whoever has to go first: descriptors have run out.
    pub(super) fn make_room(&self) {
        make_room(&mut self.taken.lock());
    }
}

fn make_room(taken: &mut HashMap<u64, Arc<Seated>>) {
    if let Some(first) = taken.values().min_by_key(|seated| seated.rank()) {
        first.leave.cancel();
        let first = first.id;
        taken.remove(&first);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.taken.lock().remove(&self.seated.id);
    }
}

impl Seated {
    /// It asks, until what comes back is dropped.
    pub(super) fn ask(self: &Arc<Self>, shows_token: bool) -> Asking {
        self.has_shown_token.fetch_or(shows_token, Ordering::Relaxed);
        self.is_busy.store(true, Ordering::Relaxed);
        *self.since.lock() = clock::now();
        Asking(Arc::clone(self))
    }

    /// Cancelled when it has to go.
    pub(super) fn leave(&self) -> &CancellationToken {
        &self.leave
    }

    /// The lowest goes first.
    fn rank(&self) -> (bool, bool, Instant) {
        let has_shown_token = self.has_shown_token.load(Ordering::Relaxed);
        (has_shown_token, self.is_busy.load(Ordering::Relaxed), *self.since.lock())
    }
}

/// A request whose answer is not all taken yet.
#[derive(Debug)]
pub(super) struct Asking(Arc<Seated>);

impl Asking {
    /// The body of its answer, which keeps it until it is dropped.
    pub(super) fn with(self, body: Body) -> SeatedBody {
        SeatedBody { body, _asking: self }
    }
}

/// The body of an answer.
#[derive(Debug)]
pub(super) struct SeatedBody {
    body: Body,
    _asking: Asking,
}

impl HttpBody for SeatedBody {
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

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.is_busy.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who has had to go, of these.
    fn gone(seats: &[Seat]) -> Vec<u64> {
        let gone = seats.iter().filter(|seat| seat.seated.leave().is_cancelled());
        gone.map(|seat| seat.seated.id).collect()
    }

    #[test]
    fn idle_ones_go_before_busy_ones_and_who_has_no_token_before_who_has() {
        let seats = Arc::new(Seats::new(4));
        let mut taken: Vec<_> = (0..4).map(|_| seats.take()).collect();
        drop(taken[0].seated.ask(true));
        let _with_token = taken[1].seated.ask(true);
        let _without = taken[2].seated.ask(false);
        drop(taken[3].seated.ask(false));
        for expected in [&[3][..], &[3, 4], &[3, 4, 5]] {
            taken.push(seats.take());
            assert_eq!(gone(&taken), expected);
        }
        let _all_busy = taken[6].seated.ask(true);
        taken.push(seats.take());
        assert_eq!(gone(&taken), [2, 3, 4, 5]);
        let _busy_too = taken[7].seated.ask(true);
        taken.push(seats.take());
        assert_eq!(gone(&taken), [0, 2, 3, 4, 5]);
        drop(taken);
        assert!(seats.taken.lock().is_empty());
    }
}
