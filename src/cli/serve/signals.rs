//! What the operator tells the process by signals.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that are listened to. One that comes while nobody asks is kept.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// What a signal asks for.
pub(super) enum SignalEvent {
    /// To stop, by the signal of this name.
    Stop(&'static str),
    /// To read the configuration again.
    Reload,
}

impl Signals {
    /// From now on none of them ends the process by itself.
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// What is asked for next. Cancel safe.
    pub(super) async fn next(&mut self) -> SignalEvent {
        tokio::select! {
            _ = self.terminate.recv() => SignalEvent::Stop("SIGTERM"),
            _ = self.interrupt.recv() => SignalEvent::Stop("SIGINT"),
            _ = self.hangup.recv() => SignalEvent::Reload,
        }
    }

    /// The next SIGTERM or SIGINT; a SIGHUP in between is passed over. Cancel safe.
    pub(super) async fn stop(&mut self) -> &'static str {
        loop {
            if let SignalEvent::Stop(signal) = self.next().await {
                return signal;
            }
        }
    }
}
