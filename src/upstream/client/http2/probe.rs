//! Whether an HTTP/2 connection is alive and of any use: its timer, and its pings.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::Sleep;

use super::super::link::Link;
use super::super::{PROBE_EVERY, PROBE_TIMEOUT};
use super::{Http2State, UNKNOWN};
use crate::clock;

/// Sees whether a connection is alive, of any use, and not too old.
pub(super) struct Probe {
    ping: PingPong,
    link: Arc<Link>,
    sleep: Pin<Box<Sleep>>,
    state: ProbeState,
}

#[derive(Clone, Copy)]
enum ProbeState {
    /// The peer owes its SETTINGS.
    Begins,
    /// Nothing is owed. So many requests had been served at the last look.
    Rests(u64),
    /// The peer owes the answer to a ping.
    Asks,
}

/// Why a connection should be given no more requests.
pub(super) enum Found {
    /// The peer does not answer.
    Dead,
    /// There was none for a while.
    Unused,
}

impl Probe {
    /// The peer has so long to send its SETTINGS.
    pub(super) fn new(ping: PingPong, link: Arc<Link>, patience: Duration) -> Self {
        Self { ping, link, sleep: Box::pin(tokio::time::sleep(patience)), state: ProbeState::Begins }
    }

    /// Ready once no more requests should go to the connection.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, shared: &Http2State) -> Poll<Found> {
        loop {
            if matches!(self.state, ProbeState::Asks) && self.ping.poll_pong(cx).is_ready() {
                self.rest(shared);
            }
            ready!(self.sleep.as_mut().poll(cx));
            let is_in_use = shared.taken.load(Ordering::Relaxed) > 0;
            match self.state {
                ProbeState::Begins if shared.limit.load(Ordering::Relaxed) == UNKNOWN => {
                    return Poll::Ready(Found::Dead);
                }
                ProbeState::Begins => self.rest(shared),
                ProbeState::Rests(served)
                    if !is_in_use && served == shared.served.load(Ordering::Relaxed) =>
                {
                    self.rest(shared); // somebody may be about to take a place
                    return Poll::Ready(Found::Unused);
                }
                ProbeState::Rests(_) if !is_in_use => self.rest(shared),
                ProbeState::Rests(_) => {
                    self.link.take_has_read();
                    if self.ping.send_ping(Ping::opaque()).is_ok() {
                        self.state = ProbeState::Asks;
                    }
                    self.wake_in(PROBE_TIMEOUT);
                }
                // Its answer waits behind what comes.
                ProbeState::Asks if self.link.take_has_read() => self.wake_in(PROBE_TIMEOUT),
                ProbeState::Asks => return Poll::Ready(Found::Dead),
            }
        }
    }

    fn rest(&mut self, shared: &Http2State) {
        self.state = ProbeState::Rests(shared.served.load(Ordering::Relaxed));
        self.wake_in(PROBE_EVERY);
    }

    fn wake_in(&mut self, time: Duration) {
        self.sleep.as_mut().reset(tokio::time::Instant::from_std(clock::now() + time));
    }
}
