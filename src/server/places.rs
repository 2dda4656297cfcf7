//! Places for client connections: how many there may be, in all and from one address, and whose connection has to go
//! when one more comes and all places are taken.
//!
//! ```text
//!   a newcomer ── enter ──▶ a free place: taken
//!                           all taken: ask the longest idle to leave, enter again when it has gone
//!                           half are taken by its address: the longest idle from there has to leave
//! ```
//!
//! Who has a place holds a [`Place`], whose `Drop` gives it back. A connection is idle while it answers nothing; a
//! parked wait is an answer to come, so it is never asked to leave. Looking for the longest idle takes a pass over all
//! connections, so one pass finds many, and the next one has to wait for a time that grows with their number.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::quality::RandomState;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::activity::ConnectionActivity;

/// One pass finds this part of the idle connections, and so many at least.
const PART: usize = 16;
const LEAST: usize = 16;

/// The time from one pass to the next, for each connection: a tenth of the time at most is spent on passes.
const REST: Duration = Duration::from_micros(1);

/// Whose connection it is: an IPv4 address, or the 64 bits of an IPv6 address that name a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ConnectionOrigin {
    V4(Ipv4Addr),
    V6(u64),
}

impl ConnectionOrigin {
    pub(super) fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip),
            IpAddr::V6(ip) => Self::V6((ip.to_bits() >> 64) as u64),
        }
    }
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// All places are taken.
    All,
    /// Connections from this address have half of the places.
    Origin(ConnectionOrigin),
}

impl fmt::Display for ConnectionOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(ip) => ip.fmt(f),
            Self::V6(network) => write!(f, "{}/64", Ipv6Addr::from_bits(u128::from(*network) << 64)),
        }
    }
}

#[derive(Debug)]
pub(super) struct Places {
    limit: usize,
    limit_of_origin: usize,
    state: Mutex<State>,
    /// Told each time that a place is given back.
    freed: Notify,
    /// Cancelled when the server stops; each place has a child of it.
    stop: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    taken: HashMap<u64, Taken, RandomState>,
    origins: HashMap<ConnectionOrigin, OfOrigin, RandomState>,
    idle: Candidates,
    next_id: u64,
}

/// A place that is taken.
#[derive(Debug)]
struct Taken {
    origin: Option<ConnectionOrigin>,
    answers: ConnectionActivity,
    leave: CancellationToken,
}

#[derive(Debug, Default)]
struct OfOrigin {
    count: usize,
    idle: Candidates,
}

/// The longest idle connections of the last pass.
#[derive(Debug, Default)]
struct Candidates {
    /// The longest idle last, each with since when it was.
    found: Vec<(Instant, u64)>,
    next_pass: Option<Instant>,
}

/// A place of a connection. Dropping it gives the place back.
#[derive(Debug)]
pub(super) struct Place {
    id: u64,
    leave: CancellationToken,
    places: Arc<Places>,
}

impl Place {
    /// Cancelled when the connection has to end: its place is needed, or the server stops.
    pub(super) fn leave(&self) -> &CancellationToken {
        &self.leave
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.places.state.lock();
        let Some(taken) = state.taken.remove(&self.id) else { return };
        if let Some(origin) = taken.origin
            && let Some(of_origin) = state.origins.get_mut(&origin)
        {
            of_origin.count -= 1;
            if of_origin.count == 0 {
                state.origins.remove(&origin);
            }
        }
        drop(state);
        self.places.freed.notify_one();
    }
}

impl Places {
    pub(super) fn new(limit: usize, stop: CancellationToken) -> Self {
        Self {
            limit,
            // Half of one place is nothing.
            limit_of_origin: if limit > 1 { limit.div_ceil(2) } else { usize::MAX },
            state: Mutex::default(),
            freed: Notify::new(),
            stop,
        }
    }

    /// Takes a place. `None` as origin: a trusted proxy or a unix socket, which many clients may be behind.
    pub(super) fn enter(
        self: &Arc<Self>,
        origin: Option<ConnectionOrigin>,
        answers: &ConnectionActivity,
    ) -> Result<Place, Full> {
        let mut state = self.state.lock();
        if let Some(origin) = origin
            && state.origins.get(&origin).is_some_and(|of_origin| of_origin.count >= self.limit_of_origin)
        {
            return Err(Full::Origin(origin));
        }
        match state.taken.len() < self.limit {
            true => Ok(self.take(&mut state, origin, answers)),
            false => Err(Full::All),
        }
    }

    /// Takes a place whether or not one is free: for the few that are still accepted when the server stops.
    pub(super) fn enter_last(self: &Arc<Self>, answers: &ConnectionActivity) -> Place {
        self.take(&mut self.state.lock(), None, answers)
    }

    fn take(
        self: &Arc<Self>,
        state: &mut State,
        origin: Option<ConnectionOrigin>,
        answers: &ConnectionActivity,
    ) -> Place {
        let id = state.next_id;
        state.next_id += 1;
        let leave = self.stop.child_token();
        state.taken.insert(id, Taken { origin, answers: answers.clone(), leave: leave.clone() });
        if let Some(origin) = origin {
            state.origins.entry(origin).or_default().count += 1;
        }
        Place { id, leave, places: Arc::clone(self) }
    }

    /// Asks the longest idle connection to leave, of those that stand in the newcomer's way. `None`: all are busy, or
    /// it is too early for another pass.
    pub(super) fn ask_to_leave(&self, full: Full, now: Instant) -> Option<u64> {
        let mut state = self.state.lock();
        let State { taken, origins, idle, .. } = &mut *state;
        let (idle, origin) = match full {
            Full::All => (idle, None),
            Full::Origin(origin) => (&mut origins.get_mut(&origin)?.idle, Some(origin)),
        };
        let id = idle.next(taken, origin).or_else(|| {
            idle.look(taken, origin, now);
            idle.next(taken, origin)
        })?;
        taken.get(&id)?.leave.cancel();
        Some(id)
    }

    /// Ends when this place is free. Cancel safe.
    pub(super) async fn left(&self, id: u64) {
        while self.state.lock().taken.contains_key(&id) {
            self.freed.notified().await;
        }
    }

    /// Ends when a place has become free, perhaps a while ago. Cancel safe.
    pub(super) async fn freed(&self) {
        self.freed.notified().await;
    }
}

impl Candidates {
    /// The longest idle, if it still is.
    fn next(
        &mut self,
        taken: &HashMap<u64, Taken, RandomState>,
        origin: Option<ConnectionOrigin>,
    ) -> Option<u64> {
        while let Some((since, id)) = self.found.pop() {
            if taken.get(&id).and_then(|taken| taken.idle_since(origin)) == Some(since) {
                return Some(id);
            }
        }
        None
    }

    fn look(
        &mut self,
        taken: &HashMap<u64, Taken, RandomState>,
        origin: Option<ConnectionOrigin>,
        now: Instant,
    ) {
        if self.next_pass.is_some_and(|next| now < next) {
            return;
        }
        self.next_pass = Some(now + REST * u32::try_from(taken.len()).unwrap_or(u32::MAX));
        let all = taken.iter().filter_map(|(id, taken)| Some((taken.idle_since(origin)?, *id)));
        self.found.extend(all);
        let part = self.found.len().div_ceil(PART).max(LEAST);
        if part < self.found.len() {
            self.found.select_nth_unstable(part);
            self.found.truncate(part);
        }
        self.found.sort_unstable_by(|a, b| b.cmp(a));
        self.found.shrink_to(0);
    }
}

impl Taken {
    /// Since when it is idle, where it has not been asked to leave yet and is of this origin or of any.
    fn idle_since(&self, origin: Option<ConnectionOrigin>) -> Option<Instant> {
        let is_meant = origin.is_none_or(|origin| self.origin == Some(origin));
        if !is_meant || self.leave.is_cancelled() {
            return None;
        }
        self.answers.idle_since()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const SECOND: Duration = Duration::from_secs(1);

    fn places(limit: usize) -> Arc<Places> {
        Arc::new(Places::new(limit, CancellationToken::new()))
    }

    fn origin(ip: &str) -> Option<ConnectionOrigin> {
        Some(ConnectionOrigin::of(ip.parse().unwrap()))
    }

    /// A connection that is idle since so long after `began`.
    fn idle(began: Instant, since: Duration) -> ConnectionActivity {
        let answers = ConnectionActivity::new();
        answers.note_idle(true, began + since);
        answers
    }

    #[test]
    fn the_longest_idle_has_to_leave_and_a_busy_one_never() {
        let (places, began) = (places(4), clock::now());
        let busy = ConnectionActivity::new();
        busy.note_idle(false, began);
        let all = [busy.clone(), idle(began, 3 * SECOND), idle(began, 2 * SECOND), idle(began, 4 * SECOND)];
        let mut held: Vec<_> = all.iter().map(|answers| places.enter(None, answers).unwrap()).collect();
        assert_eq!(places.enter(None, &ConnectionActivity::new()).unwrap_err(), Full::All);
        let mut now = began + 10 * SECOND;
        for longest in [2, 1, 3] {
            assert_eq!(places.ask_to_leave(Full::All, now), Some(held[longest].id));
            assert!(held[longest].leave().is_cancelled());
            now += SECOND;
        }
        assert_eq!(places.ask_to_leave(Full::All, now), None);
        assert!(!held[0].leave().is_cancelled());
        held.remove(2);
        assert!(places.enter(None, &ConnectionActivity::new()).is_ok());
    }

    #[test]
    fn one_that_is_busy_again_when_its_turn_comes_is_passed_over() {
        let (places, began) = (places(40), clock::now());
        let all: Vec<_> = (0..40).map(|n| idle(began, n * SECOND)).collect();
        let held: Vec<_> = all.iter().map(|answers| places.enter(None, answers).unwrap()).collect();
        let now = began + 60 * SECOND;
        assert_eq!(places.ask_to_leave(Full::All, now), Some(held[0].id));
        all[1].note_idle(false, now);
        all[2].note_idle(false, now);
        all[2].note_idle(true, now);
        assert_eq!(places.ask_to_leave(Full::All, now), Some(held[3].id));
        all[4..16].iter().for_each(|answers| answers.note_idle(false, now));
        assert_eq!(places.ask_to_leave(Full::All, now), None, "it is too early for another pass");
        assert_eq!(places.ask_to_leave(Full::All, now + SECOND), Some(held[16].id));
    }

    #[test]
    fn one_address_has_half_of_the_places_and_its_own_have_to_leave_for_it() {
        let (places, began) = (places(5), clock::now());
        let (one, other) = (origin("192.0.2.1"), origin("192.0.2.2"));
        let first = places.enter(other, &idle(began, SECOND)).unwrap();
        let own: Vec<_> = (2..5).map(|n| places.enter(one, &idle(began, n * SECOND)).unwrap()).collect();
        let full = places.enter(one, &ConnectionActivity::new()).unwrap_err();
        assert_eq!(full, Full::Origin(one.unwrap()));
        assert_eq!(places.ask_to_leave(full, began + 9 * SECOND), Some(own[0].id), "not the other's");
        drop(own);
        assert!(places.enter(one, &ConnectionActivity::new()).is_ok());
        assert!(!first.leave().is_cancelled());
        let proxies: Vec<_> =
            (0..4).map(|_| places.enter(None, &ConnectionActivity::new()).unwrap()).collect();
        assert_eq!(proxies.len(), 4, "a trusted proxy may have all");
    }

    #[test]
    fn an_ipv6_network_is_one_origin_and_an_ipv4_address_is_the_same_in_both_spellings() {
        assert_eq!(origin("2001:db8::1"), origin("2001:db8::ffff:2:1"));
        assert_ne!(origin("2001:db8::1"), origin("2001:db8:0:1::1"));
        assert_eq!(origin("::ffff:192.0.2.1"), origin("192.0.2.1"));
        let shown = ["192.0.2.1", "2001:db8::1"].map(|ip| origin(ip).unwrap().to_string());
        assert_eq!(shown, ["192.0.2.1", "2001:db8::/64"]);
    }

    #[test]
    fn what_is_given_back_leaves_nothing_behind() {
        let places = places(2);
        let held = [
            places.enter(origin("192.0.2.1"), &ConnectionActivity::new()).unwrap(),
            places.enter_last(&ConnectionActivity::new()),
        ];
        drop(held);
        let state = places.state.lock();
        assert!(state.taken.is_empty() && state.origins.is_empty());
    }

    #[tokio::test]
    async fn who_waits_for_a_place_is_told_when_it_is_free() {
        let places = places(1);
        let place = places.enter(None, &ConnectionActivity::new()).unwrap();
        let id = place.id;
        let (_, ()) = tokio::join!(places.left(id), async { drop(place) });
        places.left(id).await;
    }
}
