//! Liveness of an HTTP/2 connection: its timer and its pings.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::Sleep;

use super::super::observed_stream::IoActivity;
use super::super::{PROBE_INTERVAL, PROBE_TIMEOUT};
use super::{Http2State, UNKNOWN};
use crate::clock;

/// Finds out that a connection is dead or unused.
pub(super) struct Probe {
    ping: PingPong,
    activity: Arc<IoActivity>,
    sleep: Pin<Box<Sleep>>,
    state: ProbeState,
}

#[derive(Clone, Copy)]
enum ProbeState {
    /// Waits for the SETTINGS of the peer.
    AwaitingSettings,
    /// Waits for the next check. Contains the number of requests served at the last check.
    Quiet(u64),
    /// Waits for the answer to a ping.
    AwaitingPong,
}

/// Reason why the connection should get no more requests.
pub(super) enum ProbeFinding {
    /// The peer does not answer.
    Dead,
    /// No request since the last check.
    Unused,
}

impl Probe {
    /// `settings_timeout`: time for the SETTINGS of the peer.
    pub(super) fn new(ping: PingPong, activity: Arc<IoActivity>, settings_timeout: Duration) -> Self {
        Self {
            ping,
            activity,
            sleep: Box::pin(tokio::time::sleep(settings_timeout)),
            state: ProbeState::AwaitingSettings,
        }
    }

    /// Resolves once the connection should get no more requests.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, shared: &Http2State) -> Poll<ProbeFinding> {
        loop {
            if matches!(self.state, ProbeState::AwaitingPong) && self.ping.poll_pong(cx).is_ready() {
                self.set_quiet(shared);
            }
            ready!(self.sleep.as_mut().poll(cx));
            let is_in_use = shared.slots_taken.load(Ordering::Relaxed) > 0;
            match self.state {
                ProbeState::AwaitingSettings if shared.limit.load(Ordering::Relaxed) == UNKNOWN => {
                    return Poll::Ready(ProbeFinding::Dead);
                }
                ProbeState::AwaitingSettings => self.set_quiet(shared),
                ProbeState::Quiet(served)
                    if !is_in_use && served == shared.served.load(Ordering::Relaxed) =>
                {
                    self.set_quiet(shared); // a request may be about to take a slot
                    return Poll::Ready(ProbeFinding::Unused);
                }
                ProbeState::Quiet(_) if !is_in_use => self.set_quiet(shared),
                ProbeState::Quiet(_) => {
                    self.activity.take_has_read();
                    if self.ping.send_ping(Ping::opaque()).is_ok() {
                        self.state = ProbeState::AwaitingPong;
                    }
                    self.wake_in(PROBE_TIMEOUT);
                }
                // Bytes arrive: the answer may be queued behind them.
                ProbeState::AwaitingPong if self.activity.take_has_read() => self.wake_in(PROBE_TIMEOUT),
                ProbeState::AwaitingPong => return Poll::Ready(ProbeFinding::Dead),
            }
        }
    }

    fn set_quiet(&mut self, shared: &Http2State) {
        self.state = ProbeState::Quiet(shared.served.load(Ordering::Relaxed));
        self.wake_in(PROBE_INTERVAL);
    }

    fn wake_in(&mut self, time: Duration) {
        self.sleep.as_mut().reset(tokio::time::Instant::from_std(clock::now() + time));
    }
}
