//! Limit of client connections, in all and for each address. When it is reached, the longest idle connection closes.
//!
//! ```text
//!   acquire ──┬──► a permit is free: returns it
//!             ├──► all permits are taken: the longest idle connection closes, then acquire again
//!             └──► the address has half of them: its own longest idle connection closes
//! ```
//!
//! A connection holds a [`ConnectionPermit`]; its `Drop` releases it. A connection is idle while no response is under
//! way. A parked wait is a response under way, so its connection never has to close. Finding the longest idle
//! connection takes a pass over all connections. So one pass finds many, and the pause before the next pass grows
//! with the number of connections.

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

/// Part of the idle connections that one pass finds, and the least number.
const PASS_FRACTION: usize = 16;
const MIN_PER_PASS: usize = 16;

/// Pause between two passes, for each connection. Passes take at most a tenth of the time.
const PASS_INTERVAL_PER_CONNECTION: Duration = Duration::from_micros(1);

/// Source of a connection: an IPv4 address, or the /64 network of an IPv6 address.
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

/// Reason why no permit is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LimitReached {
    /// All permits are taken.
    All,
    /// Connections from this address hold half of the permits.
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
pub(super) struct ConnectionLimit {
    limit: usize,
    limit_per_origin: usize,
    state: Mutex<ConnectionTable>,
    /// Notified each time that a permit is released.
    released: Notify,
    /// Cancelled when the server stops. Each permit has a child of it.
    stop: CancellationToken,
}

#[derive(Debug, Default)]
struct ConnectionTable {
    open: HashMap<u64, OpenConnection, RandomState>,
    origins: HashMap<ConnectionOrigin, OriginConnections, RandomState>,
    idle: IdleCandidates,
    next_id: u64,
}

#[derive(Debug)]
struct OpenConnection {
    origin: Option<ConnectionOrigin>,
    activity: ConnectionActivity,
    close: CancellationToken,
}

#[derive(Debug, Default)]
struct OriginConnections {
    count: usize,
    idle: IdleCandidates,
}

/// Longest idle connections that the last pass found.
#[derive(Debug, Default)]
struct IdleCandidates {
    /// Longest idle last, each with the start of its idle time.
    found: Vec<(Instant, u64)>,
    next_pass: Option<Instant>,
}

/// Permission to keep one connection open. Dropping it releases the permit.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    id: u64,
    close: CancellationToken,
    limit: Arc<ConnectionLimit>,
}

impl ConnectionPermit {
    /// Returns the token that is cancelled when the connection has to close: another connection needs its permit, or
    /// the server stops.
    pub(super) fn close_requested(&self) -> &CancellationToken {
        &self.close
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut state = self.limit.state.lock();
        let Some(closed) = state.open.remove(&self.id) else { return };
        if let Some(origin) = closed.origin
            && let Some(of_origin) = state.origins.get_mut(&origin)
        {
            of_origin.count -= 1;
            if of_origin.count == 0 {
                state.origins.remove(&origin);
            }
        }
        drop(state);
        self.limit.released.notify_one();
    }
}

impl ConnectionLimit {
    pub(super) fn new(limit: usize, stop: CancellationToken) -> Self {
        Self {
            limit,
            // Half of one permit would be none.
            limit_per_origin: if limit > 1 { limit.div_ceil(2) } else { usize::MAX },
            state: Mutex::default(),
            released: Notify::new(),
            stop,
        }
    }

    /// Takes a permit. Pass `None` as the origin of a trusted proxy or a unix socket, which many clients share.
    pub(super) fn acquire(
        self: &Arc<Self>,
        origin: Option<ConnectionOrigin>,
        activity: &ConnectionActivity,
    ) -> Result<ConnectionPermit, LimitReached> {
        let mut state = self.state.lock();
        if let Some(origin) = origin
            && state.origins.get(&origin).is_some_and(|of_origin| of_origin.count >= self.limit_per_origin)
        {
            return Err(LimitReached::Origin(origin));
        }
        match state.open.len() < self.limit {
            true => Ok(self.insert(&mut state, origin, activity)),
            false => Err(LimitReached::All),
        }
    }

    /// Takes a permit whether or not one is free. For the connections in the backlog when the server stops.
    pub(super) fn acquire_over_limit(self: &Arc<Self>, activity: &ConnectionActivity) -> ConnectionPermit {
        self.insert(&mut self.state.lock(), None, activity)
    }

    fn insert(
        self: &Arc<Self>,
        state: &mut ConnectionTable,
        origin: Option<ConnectionOrigin>,
        activity: &ConnectionActivity,
    ) -> ConnectionPermit {
        let id = state.next_id;
        state.next_id += 1;
        let close = self.stop.child_token();
        state.open.insert(id, OpenConnection { origin, activity: activity.clone(), close: close.clone() });
        if let Some(origin) = origin {
            state.origins.entry(origin).or_default().count += 1;
        }
        ConnectionPermit { id, close, limit: Arc::clone(self) }
    }

    /// Requests the longest idle connection to close, of those that count for the limit. Returns `None` if all are
    /// busy, or if it is too early for another pass.
    pub(super) fn request_close(&self, reached: LimitReached, now: Instant) -> Option<u64> {
        let mut state = self.state.lock();
        let ConnectionTable { open, origins, idle, .. } = &mut *state;
        let (idle, origin) = match reached {
            LimitReached::All => (idle, None),
            LimitReached::Origin(origin) => (&mut origins.get_mut(&origin)?.idle, Some(origin)),
        };
        let id = idle.next(open, origin).or_else(|| {
            idle.scan(open, origin, now);
            idle.next(open, origin)
        })?;
        open.get(&id)?.close.cancel();
        Some(id)
    }

    /// Resolves when the connection with this id has released its permit. Cancel safe.
    pub(super) async fn closed(&self, id: u64) {
        while self.state.lock().open.contains_key(&id) {
            self.released.notified().await;
        }
    }

    /// Resolves when a permit has been released, perhaps a while ago. Cancel safe.
    pub(super) async fn released(&self) {
        self.released.notified().await;
    }
}

impl IdleCandidates {
    /// Returns the longest idle connection that is still idle.
    fn next(
        &mut self,
        open: &HashMap<u64, OpenConnection, RandomState>,
        origin: Option<ConnectionOrigin>,
    ) -> Option<u64> {
        while let Some((since, id)) = self.found.pop() {
            if open.get(&id).and_then(|connection| connection.idle_since(origin)) == Some(since) {
                return Some(id);
            }
        }
        None
    }

    fn scan(
        &mut self,
        open: &HashMap<u64, OpenConnection, RandomState>,
        origin: Option<ConnectionOrigin>,
        now: Instant,
    ) {
        if self.next_pass.is_some_and(|next| now < next) {
            return;
        }
        self.next_pass =
            Some(now + PASS_INTERVAL_PER_CONNECTION * u32::try_from(open.len()).unwrap_or(u32::MAX));
        let all = open.iter().filter_map(|(id, connection)| Some((connection.idle_since(origin)?, *id)));
        self.found.extend(all);
        let part = self.found.len().div_ceil(PASS_FRACTION).max(MIN_PER_PASS);
        if part < self.found.len() {
            self.found.select_nth_unstable(part);
            self.found.truncate(part);
        }
        self.found.sort_unstable_by(|a, b| b.cmp(a));
        self.found.shrink_to(0);
    }
}

impl OpenConnection {
    /// Returns the start of the idle time, unless the connection was requested to close or has another origin.
    fn idle_since(&self, origin: Option<ConnectionOrigin>) -> Option<Instant> {
        let has_origin = origin.is_none_or(|origin| self.origin == Some(origin));
        if !has_origin || self.close.is_cancelled() {
            return None;
        }
        self.activity.idle_since()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const SECOND: Duration = Duration::from_secs(1);

    fn limit_of(limit: usize) -> Arc<ConnectionLimit> {
        Arc::new(ConnectionLimit::new(limit, CancellationToken::new()))
    }

    fn origin(ip: &str) -> Option<ConnectionOrigin> {
        Some(ConnectionOrigin::of(ip.parse().unwrap()))
    }

    /// Returns a connection that becomes idle at `began + since`.
    fn idle(began: Instant, since: Duration) -> ConnectionActivity {
        let activity = ConnectionActivity::new();
        activity.set_idle(began + since);
        activity
    }

    #[test]
    fn the_longest_idle_connection_has_to_close_and_a_busy_one_never() {
        let (limit, began) = (limit_of(4), clock::now());
        let busy = ConnectionActivity::new();
        busy.set_busy();
        let all = [busy.clone(), idle(began, 3 * SECOND), idle(began, 2 * SECOND), idle(began, 4 * SECOND)];
        let mut permits: Vec<_> = all.iter().map(|activity| limit.acquire(None, activity).unwrap()).collect();
        assert_eq!(limit.acquire(None, &ConnectionActivity::new()).unwrap_err(), LimitReached::All);
        let mut now = began + 10 * SECOND;
        for longest in [2, 1, 3] {
            assert_eq!(limit.request_close(LimitReached::All, now), Some(permits[longest].id));
            assert!(permits[longest].close_requested().is_cancelled());
            now += SECOND;
        }
        assert_eq!(limit.request_close(LimitReached::All, now), None);
        assert!(!permits[0].close_requested().is_cancelled());
        permits.remove(2);
        assert!(limit.acquire(None, &ConnectionActivity::new()).is_ok());
    }

    #[test]
    fn a_connection_that_is_busy_again_keeps_its_permit() {
        let (limit, began) = (limit_of(40), clock::now());
        let all: Vec<_> = (0..40).map(|n| idle(began, n * SECOND)).collect();
        let permits: Vec<_> = all.iter().map(|activity| limit.acquire(None, activity).unwrap()).collect();
        let now = began + 60 * SECOND;
        assert_eq!(limit.request_close(LimitReached::All, now), Some(permits[0].id));
        all[1].set_busy();
        all[2].set_busy();
        all[2].set_idle(now);
        assert_eq!(limit.request_close(LimitReached::All, now), Some(permits[3].id));
        all[4..16].iter().for_each(|activity| activity.set_busy());
        assert_eq!(limit.request_close(LimitReached::All, now), None, "it is too early for another pass");
        assert_eq!(limit.request_close(LimitReached::All, now + SECOND), Some(permits[16].id));
    }

    #[test]
    fn one_address_gets_half_of_the_permits_and_its_own_idle_connections_close_for_more() {
        let (limit, began) = (limit_of(5), clock::now());
        let (one, other) = (origin("192.0.2.1"), origin("192.0.2.2"));
        let first = limit.acquire(other, &idle(began, SECOND)).unwrap();
        let own: Vec<_> = (2..5).map(|n| limit.acquire(one, &idle(began, n * SECOND)).unwrap()).collect();
        let reached = limit.acquire(one, &ConnectionActivity::new()).unwrap_err();
        assert_eq!(reached, LimitReached::Origin(one.unwrap()));
        assert_eq!(
            limit.request_close(reached, began + 9 * SECOND),
            Some(own[0].id),
            "not of the other address"
        );
        drop(own);
        assert!(limit.acquire(one, &ConnectionActivity::new()).is_ok());
        assert!(!first.close_requested().is_cancelled());
        let proxies: Vec<_> =
            (0..4).map(|_| limit.acquire(None, &ConnectionActivity::new()).unwrap()).collect();
        assert_eq!(proxies.len(), 4, "a trusted proxy may take all permits");
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
    fn a_released_permit_leaves_no_entry_behind() {
        let limit = limit_of(2);
        let permits = [
            limit.acquire(origin("192.0.2.1"), &ConnectionActivity::new()).unwrap(),
            limit.acquire_over_limit(&ConnectionActivity::new()),
        ];
        drop(permits);
        let state = limit.state.lock();
        assert!(state.open.is_empty() && state.origins.is_empty());
    }

    #[tokio::test]
    async fn a_waiting_connection_is_notified_of_a_released_permit() {
        let limit = limit_of(1);
        let permit = limit.acquire(None, &ConnectionActivity::new()).unwrap();
        let id = permit.id;
        let (_, ()) = tokio::join!(limit.closed(id), async { drop(permit) });
        limit.closed(id).await;
    }
}
